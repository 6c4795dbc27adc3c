"""The SQLite store, and how events reach its outbox from outside a handler."""

from microflow.stores.sqlite.append import append
from microflow.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore", "append"]
