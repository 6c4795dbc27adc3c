"""Kafka: the log of production, by aiokafka."""

from microflow.transports.kafka.client_settings import ClientSettings
from microflow.transports.kafka.reading_settings import Given, read_client_settings
from microflow.transports.kafka.transport import KafkaTransport

__all__ = ["ClientSettings", "Given", "KafkaTransport", "read_client_settings"]
