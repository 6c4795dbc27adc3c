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
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from microflow.embedded.errors import breaks_connection, cannot_open, is_busy, translated
from microflow.embedded.notifications import Notifications, Watch
from microflow.embedded.write_lock import write_lock_holder
from microflow.errors import StoreGone, StoreUnavailable
from microflow.ports import Clock

logger = logging.getLogger("microflow.embedded")

CHECKPOINT_WHEN_WAL_HAS = 4 * 1024 * 1024
FIRST_WAIT = timedelta(milliseconds=0.5)
LONGEST_WAIT = timedelta(milliseconds=10)
TELL_AFTER = timedelta(seconds=2)
PATIENCE_TO_OPEN = timedelta(seconds=5)
PATIENCE_TO_READ = timedelta(seconds=2)
PATIENCE_OF_PROBE = timedelta(seconds=5)
ATTEMPTS_TO_OPEN = 1000
BETWEEN_ATTEMPTS_TO_OPEN = timedelta(milliseconds=1)


class Database:
    """An open SQLite file; the same object for everybody in a thread who opens the same file.

    `memory=True` makes a file in a temporary folder that is never synced and is gone with the last `close`: the
    code that runs is the code of a real file.
    """

    _opened: ClassVar[dict[tuple[Path, int], Database]] = {}

    def __init__(self, path: Path, *, clock: Clock, memory: bool) -> None:
        self.path = path
        self._clock = clock
        self._memory = memory
        self._synchronous = "off" if memory else "full"
        self._users = 0
        self._thread = threading.get_ident()
        self._lock = asyncio.Lock()
        self._broken = False
        self._checkpoint_lock = -1
        self._checkpoint_at = CHECKPOINT_WHEN_WAL_HAS
        self.writer = self.connect()
        try:
            self.reader = self._connect_reader()
        except BaseException:
            self.writer.close()
            raise
        self._inode = path.stat().st_ino
        self.notifications = Notifications(path, clock=clock, version=self._version, alone=memory)

    @classmethod
    def open(cls, path: Path, *, clock: Clock, memory: bool = False) -> Database:
        """Open a file, making it and its folder if they are missing. Raises StoreUnavailable if that fails."""
        folder = Path(tempfile.mkdtemp(prefix="microflow-")) if memory else path.parent
        path = (folder / path.name).resolve()
        # A thread has a loop of its own, and neither the connections nor the lock may be used by two at once.
        key = (path, threading.get_ident())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if key not in cls._opened:
                cls._opened[key] = cls(path, clock=clock, memory=memory)
        except (sqlite3.Error, OSError) as cause:
            if memory:
                shutil.rmtree(folder, ignore_errors=True)
            raise cannot_open(path, cause) from cause
        database = cls._opened[key]
        database._users += 1
        return database

    def close(self) -> None:
        """Forget the file once everybody who opened it has closed it."""
        self._users -= 1
        if self._users > 0:
            return
        self._opened.pop((self.path, self._thread), None)
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
            timeout=PATIENCE_TO_OPEN.total_seconds(),
            check_same_thread=False,
            cached_statements=512,
            detect_types=sqlite3.PARSE_DECLTYPES,
        )
        try:
            self._use_write_ahead_log(connection)
            connection.execute(f"pragma synchronous = {self._synchronous}")
            connection.execute("pragma foreign_keys = on")
            # WAL-reset corruption (SQLite before 3.51.3) needs two checkpoints at once: only the holder of a lock file
            # makes one.
            connection.execute("pragma wal_autocheckpoint = 0")
            connection.execute("pragma busy_timeout = 0")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.asynccontextmanager
    async def writing(
        self, *, patience: timedelta | None = None, runs_foreign_code: bool = False, synced: bool = True
    ) -> AsyncIterator[sqlite3.Connection]:
        """Hold the write lock: commit when the block ends, roll back when it raises.

        Waits for other tasks and other processes without blocking the loop, naming the holder after two seconds;
        with `patience`, raises StoreUnavailable after that. The block must not wait for the outside world. Errors of
        SQLite, the commit's too, are raised as StoreErrors; not those of a block that `runs_foreign_code`, where they
        may be another database's. What is not `synced` survives the process, but a power cut only once somebody has
        committed after it. Raises StoreGone for a commit into a file that was deleted.
        """
        async with self._lock:
            with contextlib.nullcontext() if synced else self._unsynced():
                await self._begin(patience)
                try:
                    with contextlib.nullcontext() if runs_foreign_code else translated(self.path):
                        yield self.writer
                    with translated(self.path):
                        self.writer.execute("commit")
                    # Afterwards, so that nothing is taken for committed that went into a file that nobody will open.
                    self.check_still_there()
                except BaseException as error:
                    self._roll_back(error)
                    raise
            # Before the lock is free: the connection is nobody's for this moment.
            self._checkpoint()
        self.notifications.notify()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection on which all statements see the same commits. Must not be held over an await."""
        with self._reader_replaced_if_broken(), translated(self.path):
            self.reader.execute("begin")
            try:
                yield self.reader
            finally:
                self.reader.execute("rollback")

    def read(self, sql: str, args: Sequence[object] | dict[str, object] = ()) -> list[Any]:
        """Rows as they were last committed, by whichever process."""
        with self._reader_replaced_if_broken(), translated(self.path):
            return self.reader.execute(sql, args).fetchall()

    async def probe(self, statement: str) -> None:
        """Commit a statement on a fresh connection. Raises StoreUnavailable if that is not possible now."""
        self.check_still_there()
        with translated(self.path):
            connection = self.connect()
            try:
                await self._begin_on(connection, patience=PATIENCE_OF_PROBE)
                connection.execute(statement)
                connection.execute("commit")
            finally:
                connection.close()

    def watch(self) -> Watch:
        """Begin to watch for commits, of this process and of others."""
        return self.notifications.watch()

    def holder(self) -> int | None:
        """The pid of the other process that holds the write lock, if there is one."""
        return write_lock_holder(self.path)

    @contextlib.contextmanager
    def _unsynced(self) -> Iterator[None]:
        # Of a broken connection nothing is asked: the one that replaces it syncs.
        if not self._broken:
            self.writer.execute("pragma synchronous = off" if self._memory else "pragma synchronous = normal")
        try:
            yield
        finally:
            if not self._broken:
                self.writer.execute(f"pragma synchronous = {self._synchronous}")

    async def _begin(self, patience: timedelta | None) -> None:
        with translated(self.path):
            if self._broken:
                self.check_still_there()  # to connect would make another file
                self.writer = self.connect()
                self._broken = False
            try:
                await self._begin_on(self.writer, patience=patience)
            except sqlite3.Error as error:
                self._roll_back(error)
                raise

    async def _begin_on(self, connection: sqlite3.Connection, *, patience: timedelta | None) -> None:
        started = self._clock.monotonic()
        told = False
        wait = FIRST_WAIT
        while True:
            try:
                connection.execute("begin immediate")
                return
            except sqlite3.OperationalError as cause:
                if not is_busy(cause):
                    raise
            waited = self._clock.monotonic() - started
            if patience is not None and waited > patience:
                raise StoreUnavailable(f"{self.path} is locked by {self._holder_in_words()}.")
            if waited > TELL_AFTER and not told:
                told = True
                logger.warning("waiting for %s: %s holds its write lock", self.path, self._holder_in_words())
            await self._clock.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT)

    def _holder_in_words(self) -> str:
        pid = self.holder()
        return "another connection" if pid is None else f"process {pid}"

    def _roll_back(self, error: BaseException) -> None:
        """Leave the write connection without a transaction, or mark it to be replaced."""
        self._broken = breaks_connection(error)
        try:
            if self.writer.in_transaction:
                self.writer.execute("rollback")
        except sqlite3.Error as cause:
            logger.debug("rollback on %s: %s", self.path, cause)
            self._broken = True
        if self._broken:
            self.writer.close()

    def _connect_reader(self) -> sqlite3.Connection:
        reader = self.connect()
        reader.execute("pragma query_only = on")
        # A reader waits for nobody but one who recovers the file after a crash: milliseconds, once.
        reader.execute(f"pragma busy_timeout = {PATIENCE_TO_READ // timedelta(milliseconds=1)}")
        return reader

    @contextlib.contextmanager
    def _reader_replaced_if_broken(self) -> Iterator[None]:
        try:
            yield
        except StoreUnavailable as error:
            if breaks_connection(error):
                with contextlib.suppress(sqlite3.Error, StoreUnavailable):
                    self.check_still_there()
                    reader = self._connect_reader()
                    self.reader.close()
                    self.reader = reader
            raise

    def _use_write_ahead_log(self, connection: sqlite3.Connection) -> None:
        # Two processes that change the mode at once can each wait for the other, so SQLite refuses one at once,
        # whatever its busy timeout. The mode is the file's: whoever comes second finds it changed.
        for _ in range(ATTEMPTS_TO_OPEN):
            try:
                connection.execute("pragma journal_mode = wal")
                return
            except sqlite3.OperationalError as cause:
                if not is_busy(cause):
                    raise
                time.sleep(BETWEEN_ATTEMPTS_TO_OPEN.total_seconds())
        connection.execute("pragma journal_mode = wal")

    def check_still_there(self) -> None:
        """Raise StoreGone if the file is not the one that was opened: it was deleted, or replaced. Takes 2 µs."""
        try:
            replaced = os.stat(self.path).st_ino != self._inode
        except (FileNotFoundError, NotADirectoryError):
            raise StoreGone(f"{self.path} is gone: it was deleted while it was open.", fix="Start again.") from None
        except OSError as cause:
            raise StoreUnavailable(f"{self.path} cannot be looked at: {cause.strerror}.") from cause
        if replaced:
            raise StoreGone(f"{self.path} was replaced by another file while it was open.", fix="Start again.")

    def _version(self) -> int:
        try:
            self.check_still_there()
            return int(self.reader.execute("pragma data_version").fetchone()[0])
        except (sqlite3.Error, StoreUnavailable):
            return -1  # whoever is woken by this reads, and is told why that fails

    def _checkpoint(self) -> None:
        try:
            size = os.stat(f"{self.path}-wal").st_size
            if size < self._checkpoint_at:
                return
            if self._checkpoint_lock < 0:
                self._checkpoint_lock = os.open(f"{self.path}-checkpoint", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._checkpoint_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return  # no log yet, or another process is at it
        try:
            busy = self.writer.execute("pragma wal_checkpoint(truncate)").fetchone()[0]
            # Somebody reads an old state: not again for each commit, but when as much has come on top.
            self._checkpoint_at = size + CHECKPOINT_WHEN_WAL_HAS if busy else CHECKPOINT_WHEN_WAL_HAS
        except sqlite3.Error as cause:
            logger.debug("checkpoint of %s put off: %s", self.path, cause)
        finally:
            fcntl.flock(self._checkpoint_lock, fcntl.LOCK_UN)
