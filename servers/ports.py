"""Free ports on the loopback interface."""

from __future__ import annotations

import random
import socket

LOOPBACK = "127.0.0.1"
# Below what systems hand to outgoing connections, so that a server that is away for a while finds its port free again.
RANGE = range(15_000, 30_000)


def free_ports(count: int) -> list[int]:
    """Different ports on which nobody listens now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(RANGE, len(RANGE)):
        if len(found) == count:
            return found
        if _is_free(port):
            found.append(port)
    raise OSError(f"no {count} free ports between {RANGE.start} and {RANGE.stop}")


def answers(port: int, *, host: str = LOOPBACK) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((host, port)) == 0


def _is_free(port: int) -> bool:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
