"""Whoever watches a file learns of a commit, whoever made it and however hostile the temporary folder is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from microflow.clocks import SystemClock
from microflow.embedded.notifications import Notifications, Watch
from tests.asynchronous import asynchronous

NEVER = timedelta(hours=1)
OFTEN = timedelta(milliseconds=1)


@pytest.fixture(autouse=True)
def temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mf") as folder:  # short: a socket's name may have 107 bytes
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@contextlib.asynccontextmanager
async def opened(
    path: Path, *, version: Callable[[], int] = lambda: 0, look_every: timedelta = NEVER, alone: bool = False
) -> AsyncIterator[Notifications]:
    notifications = Notifications(path, clock=SystemClock(), version=version, look_every=look_every, alone=alone)
    try:
        yield notifications
    finally:
        notifications.close()


async def settled(watch: Watch) -> None:
    """Let the first look, which always wakes, be over."""
    for _ in range(3):
        await asyncio.sleep(0)
    watch._event.clear()


async def wakes(watch: Watch, *, within: float = 5) -> bool:
    try:
        async with asyncio.timeout(within):
            await watch.wait()
    except TimeoutError:
        return False
    return True


@asynchronous
async def test_a_watcher_in_the_same_process_is_woken() -> None:
    async with opened(Path("a.db")) as one:
        watch = one.watch()
        await settled(watch)

        one.notify()

        assert await wakes(watch)


@asynchronous
async def test_a_watcher_elsewhere_is_woken_by_a_datagram() -> None:
    async with opened(Path("a.db")) as here, opened(Path("a.db")) as there, opened(Path("b.db")) as of_another_file:
        watch, stranger = there.watch(), of_another_file.watch()
        await settled(watch)
        await settled(stranger)

        here.notify()

        assert await wakes(watch)
        assert not await wakes(stranger, within=0.02)


@asynchronous
async def test_many_commits_end_one_wait() -> None:
    async with opened(Path("a.db")) as here, opened(Path("a.db")) as there:
        watch = there.watch()
        await settled(watch)
        for _ in range(5000):  # more than a socket's queue can hold
            here.notify()

        assert await wakes(watch)
        await asyncio.sleep(0.02)
        watch._event.clear()
        assert not await wakes(watch, within=0.02)


@asynchronous
async def test_what_happens_between_two_waits_ends_the_second() -> None:
    async with opened(Path("a.db")) as here:
        watch = here.watch()
        await settled(watch)
        here.notify()

        assert await wakes(watch, within=0.02)
        assert not await wakes(watch, within=0.02)


@asynchronous
async def test_a_cancelled_wait_loses_nothing() -> None:
    async with opened(Path("a.db")) as here:
        watch = here.watch()
        await settled(watch)
        waiting = asyncio.ensure_future(watch.wait())
        await asyncio.sleep(0)
        here.notify()
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting

        assert await wakes(watch, within=0.02)


@asynchronous
async def test_a_closed_watch_is_woken_no_more() -> None:
    async with opened(Path("a.db")) as here:
        watch = here.watch()
        await settled(watch)
        watch.close()

        here.notify()

        assert not await wakes(watch, within=0.02)


@asynchronous
async def test_a_commit_of_a_program_that_tells_nobody_is_found_by_looking(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with contextlib.closing(sqlite3.connect(path)) as ours, contextlib.closing(sqlite3.connect(path)) as foreign:
        ours.execute("pragma journal_mode = wal")

        def version() -> int:
            return int(ours.execute("pragma data_version").fetchone()[0])

        async with opened(path, version=version, look_every=OFTEN) as here:
            watch = here.watch()
            await settled(watch)

            foreign.execute("create table t (x)")

            assert await wakes(watch)
            assert not await wakes(watch, within=0.05)


@asynchronous
async def test_looking_goes_on_after_the_file_could_not_be_read() -> None:
    answers: Iterator[int | sqlite3.Error] = iter([1, sqlite3.OperationalError("disk I/O error"), 1, 2])

    def version() -> int:
        answer = next(answers, 2)
        if isinstance(answer, sqlite3.Error):
            raise answer
        return answer

    async with opened(Path("a.db"), version=version, look_every=OFTEN) as here:
        watch = here.watch()
        await settled(watch)

        assert await wakes(watch)


@asynchronous
async def test_the_socket_of_a_killed_process_is_removed(temporary_folder: Path) -> None:
    async with opened(Path("a.db")) as here, opened(Path("a.db")) as there:
        there.watch()
        left_behind = there._folder / "4711-dead"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
            dead.bind(str(left_behind))
        assert left_behind.exists()

        here.notify()

        assert not left_behind.exists()
        assert (there._folder / there._name).exists()


@asynchronous
async def test_closing_leaves_nothing_behind(temporary_folder: Path) -> None:
    async with opened(Path("a.db")) as here:
        here.watch()
        assert here._folder.exists()
    assert not here._folder.exists()


@pytest.mark.parametrize("obstacle", ["file", "link"])
def test_a_temporary_folder_that_cannot_be_trusted_is_not_used(temporary_folder: Path, obstacle: str) -> None:
    ours = temporary_folder / f"microflow-{os.getuid()}"
    elsewhere = temporary_folder / "elsewhere"
    elsewhere.mkdir()
    if obstacle == "file":
        ours.write_text("")
    else:
        ours.symlink_to(elsewhere)
    versions = iter(range(100_000))

    async def scenario() -> None:
        async with opened(Path("a.db"), version=lambda: next(versions), look_every=OFTEN) as here:
            watch = here.watch()
            await settled(watch)
            here.notify()
            watch._event.clear()
            assert await wakes(watch), "looking still works"

    asyncio.run(scenario())
    assert list(elsewhere.iterdir()) == []


def test_our_own_folder_is_nobody_elses_business(temporary_folder: Path) -> None:
    async def scenario() -> None:
        async with opened(Path("a.db")) as here:
            here.watch()
            assert here._folder.stat().st_mode & 0o077 == 0
            assert here._folder.parent.stat().st_mode & 0o077 == 0

    asyncio.run(scenario())


@asynchronous
async def test_a_file_of_ones_own_needs_no_socket(temporary_folder: Path) -> None:
    async with opened(Path("a.db"), alone=True) as here:
        watch = here.watch()
        here.notify()

        assert await wakes(watch)
        assert os.listdir(temporary_folder) == []


def test_watching_goes_on_in_another_loop() -> None:
    here = Notifications(Path("a.db"), clock=SystemClock(), version=lambda: 0, look_every=NEVER)
    there = Notifications(Path("a.db"), clock=SystemClock(), version=lambda: 0, look_every=NEVER)

    async def scenario() -> None:
        watch = there.watch()
        await settled(watch)
        here.notify()
        assert await wakes(watch)
        watch.close()

    asyncio.run(scenario())
    asyncio.run(scenario())
    there.close()
    here.close()
