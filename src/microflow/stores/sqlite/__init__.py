"""The SQLite store, how events reach its outbox from outside a handler, and what can be known of a file without it."""

from microflow.stores.sqlite.append import append
from microflow.stores.sqlite.migrate import script as own_script
from microflow.stores.sqlite.state import state_of
from microflow.stores.sqlite.store import SqliteStore
from microflow.stores.sqlite.tables import script

__all__ = ["SqliteStore", "append", "own_script", "script", "state_of"]
