"""The log in a NATS JetStream stream."""
