"""PostgreSQL on this machine: a server that can be stopped, killed and restarted, and fresh databases on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from urllib.parse import quote, urlsplit

import asyncpg

from servers.downloads import postgres_programs
from servers.folders import new_folder, remove
from servers.ports import LOOPBACK, free_ports
from servers.processes import Process, ServerFailed

STARTS_WITHIN = 120.0
SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "64MB",
    "wal_level": "logical",
    "max_prepared_transactions": "10",
}
# One call instead of one for each of a thousand files: a crash recovery of 0.2 s instead of 2.
LINUX = {"recovery_init_sync_method": "syncfs"} if sys.platform == "linux" else {}


class Postgres:
    """A server of its own, gone with this process. Use it in a `with`.

    `durable=False` is for tests that never stop it: nothing is synced. `size` puts its files on a disk of so many
    mebibytes (Linux, as root), which a test can fill. With a `password` nobody is let in without it.
    """

    def __init__(
        self,
        *,
        settings: Mapping[str, str] | None = None,
        durable: bool = True,
        size: int | None = None,
        password: str | None = None,
    ) -> None:
        durability = {} if durable else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        self.folder = new_folder("postgres")
        [self.port] = free_ports(1)
        self._user = "nobody" if os.geteuid() == 0 else ""
        self._settings = {**SETTINGS, **LINUX, **durability, **(settings or {})}
        self._process: Process | None = None
        self._password = password
        self._small = size is not None
        if size is not None:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(self.folder)]
            subprocess.run(mount, check=True, capture_output=True)
        if self._user:
            shutil.chown(self.folder, self._user)

    @property
    def url(self) -> str:
        """The URL of the database `postgres`."""
        secret = "" if self._password is None else f":{quote(self._password, safe='')}"
        return f"postgresql://postgres{secret}@{LOOPBACK}:{self.port}/postgres"

    @property
    def pid(self) -> int:
        """The process id; only while it runs."""
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether there is a process, be it paused."""
        return self._process is not None and self._process.running

    @property
    def log(self) -> Path:
        """What the server prints. It is beside its folder, so that a full disk leaves it whole."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def start(self) -> None:
        """Start the server and return when it takes connections. Makes its files the first time."""
        if not (self.folder / "data" / "PG_VERSION").exists():
            self._make_files()
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            **self._settings,
        }
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        self._process = Process(
            [postgres_programs() / "postgres", "-D", self.folder / "data", *options],
            log=self.log,
            at_the_end=signal.SIGQUIT,
            user=self._user,
        )
        self.wait_until_ready()

    def wait_until_ready(self, *, seconds: float = STARTS_WITHIN) -> None:
        """Return when the server takes connections."""
        try:
            asyncio.run(until_ready(self.url, seconds=seconds))
        except TimeoutError as late:
            raise ServerFailed(f"{late}:\n{self._running().last_lines()}") from None

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server and wait for it: open transactions are rolled back; after `immediate` the start recovers."""
        self._end(signal.SIGQUIT if immediate else signal.SIGINT)

    def kill(self) -> None:
        """End the server now (SIGKILL to its first process; the others notice and end)."""
        self._running().kill()

    def restart(self, *, immediate: bool = False) -> None:
        """Stop it and start it again, with the same port and data."""
        self.stop(immediate=immediate)
        self.start()

    def pause(self) -> None:
        """Stop the first process in its tracks (SIGSTOP): nobody new is let in; who is in goes on."""
        self._running().send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on (SIGCONT)."""
        self._running().send(signal.SIGCONT)

    def fill_disk(self) -> None:
        """Leave no byte free on its small disk."""
        with contextlib.suppress(OSError), (self.folder / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(65536))

    def free_disk(self) -> None:
        """Make room again. A server that has given up in the meantime is started again by whoever runs it."""
        (self.folder / "ballast").unlink()

    def close(self) -> None:
        """End the server and delete its data."""
        if self.running:
            self.stop(immediate=True)
        remove(self.folder)
        remove(self.log)

    def __enter__(self) -> Postgres:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _running(self) -> Process:
        assert self._process is not None, "the server has not been started"
        return self._process

    def _end(self, number: signal.Signals) -> None:
        process = self._running()
        process.send(signal.SIGCONT)
        process.send(number)
        process.wait(seconds=60)

    def _make_files(self) -> None:
        options = ["-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C"]
        if self._password is None:
            options.append("--auth=trust")
        else:
            secret = self.folder / "password"
            secret.write_text(self._password, encoding="utf-8")
            options += ["--auth=scram-sha-256", f"--pwfile={secret}"]
        if self._small:
            options.append("--wal-segsize=1")
        done = subprocess.run(
            [postgres_programs() / "initdb", "-D", self.folder / "data", *options],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            user=self._user or None,
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
        )
        if done.returncode != 0:
            raise ServerFailed(f"PostgreSQL's files cannot be made:\n{done.stdout}{done.stderr}")


def require() -> None:
    """Have all that a local PostgreSQL needs, downloaded if need be. Raises NotInstalled."""
    postgres_programs()


async def until_ready(url: str, *, seconds: float = STARTS_WITHIN) -> None:
    """Return when the server takes connections. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = await asyncpg.connect(url, timeout=5)
        except (OSError, asyncpg.PostgresError, TimeoutError) as refused:
            if time.monotonic() > deadline:
                raise TimeoutError(f"PostgreSQL is not ready after {seconds:.0f} s: {refused}") from None
            await asyncio.sleep(0.02)
        else:
            await connection.close()
            return


@contextmanager
def fresh_database(server: str) -> Iterator[str]:
    """The URL of a new, empty database on the server with this URL; it is dropped at the end, whoever is connected."""
    name = f"test_{uuid.uuid4().hex}"
    asyncio.run(_execute(server, f"create database {name}"))
    yield urlsplit(server)._replace(path=f"/{name}").geturl()
    with contextlib.suppress(OSError):
        asyncio.run(_execute(server, f"drop database {name} with (force)"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
