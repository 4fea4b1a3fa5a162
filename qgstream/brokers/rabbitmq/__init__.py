"""The log in a RabbitMQ stream."""
