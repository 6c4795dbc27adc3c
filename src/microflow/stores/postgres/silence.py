"""Sessions that will never go on: their process was paused between two messages of one statement.

To the server such a session is neither idle in its transaction nor at work. It waits for the rest of what it was told,
and of the limits that a session sets for itself none ends that wait: `idle_in_transaction_session_timeout` begins with
the end of a statement, and `statement_timeout` is passed over while the server reads. (`transaction_timeout`, from
PostgreSQL 17 on, would, and would end the healthy long ones with it.) So whoever needs the locks ends the session.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

import asyncpg

from microflow.stores.postgres.locks import ALONE, lock
from microflow.stores.postgres.session import Session

logger = logging.getLogger("microflow.stores.postgres")

LOOK_AFTER = "6s"
LONGER_THAN_ANY = "15s"
"""For how long one waits for others to end: longer than the longest of them may last."""

END_SILENT = """
select activity.pid, pg_terminate_backend(activity.pid)
from pg_locks as held join pg_stat_activity as activity using (pid)
where held.locktype = 'advisory' and held.granted and held.objsubid = 2
and held.database = (select oid from pg_database where datname = current_database())
and held.classid = $1::integer::oid and held.objid::integer = any($2::integer[])
and activity.usename = current_user
and activity.state = 'active' and activity.wait_event = 'ClientRead'
and activity.state_change < clock_timestamp() - interval '5 s'
-- Who copies into a table is read from all the time.
and activity.query !~* '^\\s*copy'
"""


async def begin_alone(session: Session, kind: int, numbers: Collection[int] = (0,)) -> None:
    """Begin a transaction after all those that share these locks, and before all those that come to them.

    Raises what the driver raises; after a lock timeout whoever holds them is at work, and it may be tried again.
    """
    locks = lock(ALONE, kind, numbers)
    try:
        await session.script(f"begin; set local lock_timeout = '{LOOK_AFTER}'; {locks}")
    except asyncpg.LockNotAvailableError:
        await session.script("rollback")
        for row in await session.fetch(END_SILENT, kind, list(numbers)):
            logger.warning("a process that has fallen silent held locks: its session %d was ended", row["pid"])
        await session.script(f"begin; set local lock_timeout = '{LONGER_THAN_ANY}'; {locks}")
