"""A steady load on a chain, from a thread of its own, that no outage keeps from being published in the end."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from microflow.ports import Record
from tests.crash.harness import Chain

PAUSE = 0.1
AT_ONCE = 55
"""Enough for some of every kind."""


class Load:
    """Publishes orders while the block runs, about so many a second, first some that take long. Leaving it waits until
    the last ones are in the log.

    What may not have been stored is published again: then it stands in the log twice, as with any producer.
    """

    def __init__(self, chain: Chain, *, rate: int, long: int = 0) -> None:
        self.published = 0
        self._chain = chain
        self._batch = max(1, round(rate * PAUSE))
        self._long = long
        self._ending = threading.Event()
        self._publishing = threading.Lock()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> Load:
        self._chain.publish([self._chain.placed(f"long-{number}", "long") for number in range(self._long)])
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is published while the block runs, and what was is in the log."""
        with self._publishing:
            yield

    def _run(self) -> None:
        orders = itertools.chain.from_iterable(self._chain.orders(AT_ONCE) for _ in itertools.count())
        try:
            while not self._ending.wait(PAUSE):
                records = list(itertools.islice(orders, self._batch))
                with self._publishing:
                    while not self._is_published(records):
                        time.sleep(PAUSE)
                    self.published += len(records)
        except BaseException as error:
            self._failure = error

    def _is_published(self, records: Sequence[Record]) -> bool:
        with contextlib.suppress(Exception):
            self._chain.publish(records)
            return True
        return False
