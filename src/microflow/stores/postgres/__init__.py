"""The PostgreSQL store, and what can be known of a database without it."""

from microflow.stores.postgres.migrate import script as own_script
from microflow.stores.postgres.scratch import fetch, scratch_databases
from microflow.stores.postgres.state import state_of
from microflow.stores.postgres.store import PostgresStore
from microflow.stores.postgres.tables import script

__all__ = ["PostgresStore", "fetch", "own_script", "scratch_databases", "script", "state_of"]
