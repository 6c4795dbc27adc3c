"""The Kafka transport."""

from microflow.transports.kafka.client_settings import ClientSettings as ClientSettings
from microflow.transports.kafka.transport import KafkaTransport as KafkaTransport
