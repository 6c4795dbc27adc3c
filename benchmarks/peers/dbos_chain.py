"""DBOS on PostgreSQL: a workflow that upserts a row in a step and starts the next one: a chain of two hops.

`threads` starts workflows directly, `queue` through a queue with ten workers that looks every 10 ms.
"""

from __future__ import annotations

import os
import time

import psycopg
from dbos import DBOS
from psycopg_pool import ConnectionPool

from peers.peer import Peer, read_arguments, say

UPSERT = (
    "insert into accounts as a (account, events, last) values (%s, 1, %s) "
    "on conflict (account) do update set events = a.events + 1, last = excluded.last"
)
QUEUE = "chain"
pool: ConnectionPool
through_queue = False


@DBOS.step()
def count(account: str, number: int) -> None:
    with pool.connection() as connection:
        connection.execute(UPSERT, (account, number))


@DBOS.workflow()
def second(account: str, number: int) -> None:
    count(account, number)


@DBOS.workflow()
def first(account: str, number: int) -> str:
    count(account, number)
    if through_queue:
        return DBOS.enqueue_workflow(QUEUE, second, account, number).workflow_id
    return DBOS.start_workflow(second, account, number).workflow_id


def work(peer: Peer) -> None:
    global pool, through_queue
    through_queue = peer.variant == "queue"
    with psycopg.connect(peer.database, autocommit=True) as connection:
        connection.execute("create table if not exists accounts (account text primary key, events int, last int)")
    pool = ConnectionPool(peer.database, min_size=10, max_size=10, open=True)
    DBOS(config={"name": "benchmark", "system_database_url": peer.database, "log_level": "ERROR"})
    DBOS.launch()
    if through_queue:
        DBOS.register_queue(QUEUE, worker_concurrency=10, polling_interval_sec=0.01)
    peer.begin()
    if through_queue:
        handles = [DBOS.enqueue_workflow(QUEUE, first, f"account-{n % 1000}", n) for n in range(peer.events // 2)]
    else:
        handles = [DBOS.start_workflow(first, f"account-{n % 1000}", n) for n in range(peer.events // 2)]
    for handle in handles:
        DBOS.retrieve_workflow(handle.get_result()).get_result()
    say(ended=time.monotonic())
    os._exit(0)  # its threads poll for seconds before they notice a shutdown


if __name__ == "__main__":
    work(read_arguments())
