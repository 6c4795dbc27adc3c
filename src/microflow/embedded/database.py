"""One SQLite file used by several processes: opening it, waiting for its write lock, learning of others' commits.

Each process has one write connection for a file, behind an asyncio lock, and one for reading. Transactions are
short and run on the loop's own thread: in a worker thread the same transaction is a thousand times slower while the
loop is busy, because the two fight for the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from microflow.embedded.notifications import Notifications, Watch
from microflow.errors import (
    CheckViolation,
    ForeignKeyViolation,
    IntegrityViolation,
    NotNullViolation,
    SqlError,
    StoreError,
    StoreUnavailable,
    UniqueViolation,
)
from microflow.ports import Clock

logger = logging.getLogger("microflow.embedded")

CHECKPOINT_WHEN_WAL_HAS = 4 * 1024 * 1024
FIRST_WAIT = timedelta(milliseconds=0.5)
LONGEST_WAIT = timedelta(milliseconds=10)
TELL_AFTER = timedelta(seconds=2)


class Database:
    """An open SQLite file; the same object for everybody in the process who opens the same file.

    `memory=True` makes a file in a temporary folder that is never synced and is gone with the last `close`: the
    code that runs is the code of a real file.
    """

    _opened: ClassVar[dict[Path, Database]] = {}

    def __init__(self, path: Path, *, clock: Clock, memory: bool) -> None:
        self.path = path
        self._clock = clock
        self._memory = memory
        self._users = 0
        self._lock = asyncio.Lock()
        self._checkpoint_lock = -1
        self.writer = self.connect()
        self.reader = self.connect()
        self.reader.execute("pragma query_only = on")
        self.notifications = Notifications(path, clock=clock, version=self._version, alone=memory)

    @classmethod
    def open(cls, path: Path, *, clock: Clock, memory: bool = False) -> Database:
        """Open a file, making it and its folder if they are missing. Raises StoreUnavailable if that fails."""
        try:
            if memory:
                path = Path(tempfile.mkdtemp(prefix="microflow-")) / path.name
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
            path = path.resolve()
            if path not in cls._opened:
                cls._opened[path] = cls(path, clock=clock, memory=memory)
        except (sqlite3.Error, OSError) as cause:
            raise StoreUnavailable(f"Cannot open the database {path}: {cause}.") from cause
        database = cls._opened[path]
        database._users += 1
        return database

    def close(self) -> None:
        """Forget the file once everybody who opened it has closed it."""
        self._users -= 1
        if self._users > 0:
            return
        self._opened.pop(self.path, None)
        self.notifications.close()
        self.reader.close()
        self.writer.close()
        if self._checkpoint_lock >= 0:
            os.close(self._checkpoint_lock)
        if self._memory:
            shutil.rmtree(self.path.parent, ignore_errors=True)

    def connect(self) -> sqlite3.Connection:
        """A fresh connection with the settings that the guarantees rest on."""
        connection = sqlite3.connect(
            self.path,
            isolation_level=None,
            timeout=0,
            check_same_thread=False,
            cached_statements=512,
            detect_types=sqlite3.PARSE_DECLTYPES,
        )
        connection.execute("pragma journal_mode = wal")
        connection.execute(f"pragma synchronous = {'off' if self._memory else 'full'}")
        connection.execute("pragma foreign_keys = on")
        # WAL-reset corruption (SQLite before 3.51.3) needs two checkpoints at once: only the holder of a lock file makes one.
        connection.execute("pragma wal_autocheckpoint = 0")
        return connection

    @contextlib.asynccontextmanager
    async def writing(self, *, patience: timedelta | None = None) -> AsyncIterator[sqlite3.Connection]:
        """Hold the write lock: commit when the block ends, roll back when it raises.

        Waits for other tasks and other processes without blocking the loop, naming the holder after two seconds;
        with `patience`, raises StoreUnavailable after that. The block must not wait for the outside world.
        """
        async with self._lock:
            await self._begin(patience)
            try:
                yield self.writer
                self.writer.execute("commit")
            except BaseException:
                if self.writer.in_transaction:
                    self.writer.execute("rollback")
                raise
        self.notifications.notify()
        self._checkpoint()

    def read(self, sql: str, args: Sequence[object] | dict[str, object] = ()) -> list[Any]:
        """Rows as they were last committed, by whichever process."""
        with translated():
            return self.reader.execute(sql, args).fetchall()

    def watch(self) -> Watch:
        """Begin to watch for commits, of this process and of others."""
        return self.notifications.watch()

    def holder(self) -> int | None:
        """The pid of the other process that holds the write lock, if there is one."""
        # SQLite's write lock in WAL mode is byte 120 of the -shm file. The descriptor is left open on purpose: closing
        # any descriptor of a file drops all POSIX locks that this process, so its SQLite, has on it.
        try:
            descriptor = os.open(f"{self.path}-shm", os.O_RDWR)
            answer = fcntl.fcntl(
                descriptor, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 120, 1, 0)
            )
        except OSError:
            return None
        kind, _, _, _, pid = struct.unpack("hhqqi4x", answer)
        return int(pid) if kind != fcntl.F_UNLCK else None

    async def _begin(self, patience: timedelta | None) -> None:
        started = self._clock.monotonic()
        told = False
        wait = FIRST_WAIT
        while True:
            try:
                self.writer.execute("begin immediate")
                return
            except sqlite3.OperationalError as cause:
                if cause.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                    raise translate(cause) from cause
            waited = self._clock.monotonic() - started
            if patience is not None and waited > patience:
                raise StoreUnavailable(f"{self.path} is locked by process {self.holder()}.")
            if waited > TELL_AFTER and not told:
                told = True
                logger.warning("waiting for %s: process %s holds its write lock", self.path, self.holder())
            await self._clock.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT)

    def _version(self) -> int:
        return int(self.reader.execute("pragma data_version").fetchone()[0])

    def _checkpoint(self) -> None:
        try:
            if os.stat(f"{self.path}-wal").st_size < CHECKPOINT_WHEN_WAL_HAS:
                return
            if self._checkpoint_lock < 0:
                self._checkpoint_lock = os.open(f"{self.path}-checkpoint", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._checkpoint_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return  # no log yet, or another process is at it
        try:
            self.writer.execute("pragma wal_checkpoint(truncate)")
        except sqlite3.Error as cause:
            logger.debug("checkpoint of %s put off: %s", self.path, cause)
        finally:
            fcntl.flock(self._checkpoint_lock, fcntl.LOCK_UN)


VIOLATIONS: dict[int, type[IntegrityViolation]] = {
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: UniqueViolation,
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: UniqueViolation,
    sqlite3.SQLITE_CONSTRAINT_ROWID: UniqueViolation,
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: ForeignKeyViolation,
    sqlite3.SQLITE_CONSTRAINT_NOTNULL: NotNullViolation,
    sqlite3.SQLITE_CONSTRAINT_CHECK: CheckViolation,
}

UNAVAILABLE: Collection[int] = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOMEM,
    }
)


def translate(error: sqlite3.Error) -> StoreError:
    """The error of `microflow.errors` that says what SQLite said."""
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, sqlite3.IntegrityError):
        return VIOLATIONS.get(code or 0, IntegrityViolation)(str(error))
    if code is not None and code & 0xFF in UNAVAILABLE:
        return StoreUnavailable(str(error))
    return SqlError(str(error))


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise StoreErrors for the errors of SQLite inside."""
    try:
        yield
    except sqlite3.Error as cause:
        raise translate(cause) from cause
