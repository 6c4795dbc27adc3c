"""The PostgreSQL store, and what can be known of a database without it."""

from microflow.stores.postgres.scratch import fetch, scratch_databases
from microflow.stores.postgres.state import state_of
from microflow.stores.postgres.store import PostgresStore
from microflow.stores.postgres.tables import script

__all__ = ["PostgresStore", "fetch", "scratch_databases", "script", "state_of"]
