"""Wake-ups: who waits for rows learns of commits, its own process's at once and others' by NOTIFY.

Nothing depends on them: a waiter looks for itself after a while. A NOTIFY inside the transaction that it tells of
would make all commits of the database queue up for one lock, so it is sent afterwards, by itself, and not often.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from microflow.errors import StoreError
from microflow.stores.postgres.session import Session
from microflow.stores.postgres.sessions import Sessions

logger = logging.getLogger("microflow.postgres")

AT_MOST_EVERY = timedelta(milliseconds=5)
FIRST_WAIT = timedelta(milliseconds=250)
LONGEST_WAIT = timedelta(seconds=30)
NOTIFY = "select pg_notify(name, $1) from unnest($2::text[]) as name"


class Channel:
    """News of one kind."""

    def __init__(self, name: str, notifications: Notifications, *, look_every: timedelta) -> None:
        self.name = name
        self._notifications = notifications
        self._look_every = look_every
        self._news = asyncio.Event()
        notifications.channels[name] = self

    def tell(self, *, others: bool = True) -> None:
        """There is news, of this process's making; the other processes are told too, unless that would be useless."""
        self._news.set()
        if others:
            self._notifications.send(self.name)

    def heard(self) -> None:
        """There is news, of another process's making."""
        self._news.set()

    async def wait(self) -> None:
        """Return once there is news since the last return, or may be."""
        self._notifications.listen()
        try:
            async with asyncio.timeout(self._look_every.total_seconds()):
                await self._news.wait()
        except TimeoutError:
            return
        self._news.clear()


class Notifications:
    """What this process hears from the others, on a connection of its own, and what it tells them.

    `listener` opens that connection; a pooler in between must keep it for one client, else nothing is heard.
    """

    def __init__(self, sessions: Sessions, *, listener: Callable[[], Awaitable[Session]]) -> None:
        self.channels: dict[str, Channel] = {}
        self._sessions = sessions
        self._connect = listener
        self._name = uuid.uuid4().hex
        self._unsent: set[str] = set()
        self._sending: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    def send(self, channel: str) -> None:
        """Tell the other processes, soon."""
        self._unsent.add(channel)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.get_running_loop().create_task(self._send())

    def listen(self) -> None:
        """Begin to listen, unless that has begun."""
        if self._listening is None:
            self._listening = asyncio.get_running_loop().create_task(self._listen())

    async def close(self) -> None:
        """Tell and hear nothing any more."""
        tasks = [task for task in (self._sending, self._listening) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self) -> None:
        while self._unsent:
            channels, self._unsent = list(self._unsent), set()
            try:
                await self._sessions.fetch(NOTIFY, self._name, channels)
            except StoreError as error:
                logger.debug("the other processes were not told of a commit: %s", error)
                return
            await asyncio.sleep(AT_MOST_EVERY.total_seconds())

    async def _listen(self) -> None:
        wait = FIRST_WAIT
        while True:
            try:
                await self._listen_once()
                wait = FIRST_WAIT
            except StoreError as error:
                logger.debug("commits of other processes are not heard: %s", error)
            await asyncio.sleep(wait.total_seconds())
            wait = min(wait * 2, LONGEST_WAIT)

    async def _listen_once(self) -> None:
        """Listen until the connection ends."""
        session = await self._connect()
        ended = asyncio.Event()
        session.raw.add_termination_listener(lambda _: ended.set())
        try:
            for channel in self.channels:
                await session.raw.add_listener(channel, self._heard)
            await ended.wait()
        finally:
            session.hang_up()

    def _heard(self, _connection: Any, _pid: int, channel: str, sender: str) -> None:
        if sender != self._name and channel in self.channels:
            self.channels[channel].heard()
