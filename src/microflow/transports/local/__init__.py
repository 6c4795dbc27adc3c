"""The embedded log: partitions, groups and offsets in one SQLite file, for the processes of one machine."""

from microflow.transports.local.transport import LocalTransport

__all__ = ["LocalTransport"]
