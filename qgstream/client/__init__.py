"""The client: the other end of a stream, for programs that subscribe or publish."""
