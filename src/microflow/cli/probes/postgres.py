"""A PostgreSQL server: whether it keeps what it has committed, has room for us, and lets deleted rows be removed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from microflow.cli.console_lines import in_words
from microflow.cli.probes.findings import Finding, problem, warning
from microflow.ports import ServerState

CONNECTIONS_OF_A_PROCESS = 10
"""What a process takes at most: a lane each and one more, for reading, relaying, what is rare, and to listen."""
LONG_OPEN = timedelta(minutes=5)
KEEPS = {
    "fsync": "a crash of the machine destroys the database",
    "full_page_writes": "a crash of the machine may destroy the database",
    "synchronous_commit": "a crash of the server loses what was committed last (our own sessions switch it on)",
}


def look_at_server(name: str, server: ServerState, *, workers: int, now: datetime) -> Iterator[Finding]:
    """What speaks against a server that holds the database of a service."""
    if server.read_only:
        yield problem(
            f"{name}: the database only reads: its server is a standby, or default_transaction_read_only is on",
            "MICROFLOW_DATABASE=… of the primary     or:  alter database NAME reset default_transaction_read_only",
        )
    for setting, danger in KEEPS.items():
        if server.settings.get(setting) == "off":
            yield warning(
                f"{name}: {setting} is off: {danger}", f"alter system set {setting} = on; select pg_reload_conf()"
            )
    free, wanted = server.most_connections - server.connections, workers * CONNECTIONS_OF_A_PROCESS
    if free < wanted:
        yield warning(
            f"{name}: {free} of {server.most_connections} connections are free, and {workers} process"
            f"{'es' if workers != 1 else ''} may take {wanted}",
            "alter system set max_connections = 200     (and restart), or fewer processes",
        )
    if server.oldest_transaction is not None and (open_for := now - server.oldest_transaction) > LONG_OPEN:
        yield warning(
            f"{name}: a transaction of {server.oldest_owner} is open for {in_words(open_for)}: no row that was deleted "
            f"since then can be removed, and the outbox grows",
            "end it, or set idle_in_transaction_session_timeout for that program",
        )
