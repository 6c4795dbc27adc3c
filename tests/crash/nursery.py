"""A process that has imported everything and forks the processes under test: 10 ms for each instead of 500.

Reads a line of orders from standard input for each and answers with its pid; a line with a pid asks whether that one
has ended, and the answer is its wait status, or nothing. At the end of its input everything it forked is killed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import traceback
from pathlib import Path

from tests.crash.orders import Orders
from tests.crash.service_under_test import run


def main() -> None:
    alive: set[int] = set()
    gc.freeze()
    try:
        for line in sys.stdin:
            if line.startswith("{"):
                alive.add(pid := _fork(Orders.from_json(line)))
                print(pid, flush=True)  # noqa: T201
            else:
                ended, status = os.waitpid(int(line), os.WNOHANG)
                alive.discard(ended)
                print(status if ended else "", flush=True)  # noqa: T201
    finally:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _fork(orders: Orders) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        _redirect(Path(orders.folder) / f"{orders.process}.log")
        run(orders)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)  # it never ends by itself: whatever ended it is a failure


def _redirect(log: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), 2)


if __name__ == "__main__":
    main()
