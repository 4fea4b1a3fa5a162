"""The RabbitMQ broker: the log is a RabbitMQ stream."""
