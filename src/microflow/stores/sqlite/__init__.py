"""The SQLite store, and how events reach its outbox from outside a handler."""

from microflow.stores.sqlite.append import append_async, append_sync
from microflow.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore", "append_async", "append_sync"]
