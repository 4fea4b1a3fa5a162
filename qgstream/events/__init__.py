"""Events: topics, publications, subscriptions, and the bounded history. Pure: the time is an argument."""
