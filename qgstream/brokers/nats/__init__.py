"""The NATS broker: the log is a JetStream stream."""
