"""microflow: one service of the chain, as `microflow run` has it. The variant is the number of lanes.

With `--instants FILE` it remembers when each event's handler was called and when what it did was committed, and what it
emitted, and writes that at its end.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from microflow.cli.garbage import collect_seldom
from microflow.hosting import running
from microflow.reports import Report
from microflow.settings import read_settings
from peers.peer import Peer, read_arguments, run, say


async def work(peer: Peer) -> None:
    flags = {"kafka": peer.kafka, "database": peer.database, "lanes": peer.variant or None}
    settings = read_settings(flags, environment={})
    module = import_module(f"chain.{peer.service}")
    read, emitted = ("Begun", "Continued") if peer.service == "first" else ("Continued", "Ended")
    topics = {read: peer.source, emitted: peer.target}
    service = module.service
    service.name = peer.group  # a group belongs to the database that it was served from first
    committed: list[tuple[str, float, list[str]]] = []
    called: dict[str, float] = {}

    def observe(report: Report) -> None:
        if report.outcome not in {"done", "duplicate"}:
            say(failure=f"{report.handler} ended with {report.outcome}: {report.error!r}")
        committed.append((report.event_id, time.monotonic(), [each.id for each in report.emitted]))

    async def note_the_call(call_next, event, context):  # type: ignore[no-untyped-def]
        called.setdefault(context.event_id, time.monotonic())
        return await call_next(event, context)

    if peer.instants:
        service.middleware = (note_the_call,)
    if peer.service == "first":
        module.AT_FIRST.append(peer.begin)
    onlooker = {"observe": observe} if peer.instants else {}
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with running(service, settings=replace(settings, topics=topics), **onlooker):
        collect_seldom()
        if peer.instants:
            say(ready=True)
        await stop.wait()
    if peer.instants:
        write_down({"committed": committed, "called": called}, Path(peer.instants))


def write_down(instants: object, file: Path) -> None:
    file.write_text(json.dumps(instants))


if __name__ == "__main__":
    run(work(read_arguments()))
