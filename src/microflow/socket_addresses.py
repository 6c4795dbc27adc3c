"""Where to listen, as a person types it: `:8081`, `127.0.0.1:8081`, `[::1]:8081`."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import Any

from microflow.errors import SettingsError

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:]+)\]|(?P<host>[^:\[\]]*)):(?P<port>\d{1,5})|(?P<alone>\d{1,5})")
_INHERITED = re.compile(r"fd:(\d+)")


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """A host (`""`: every interface) and a port, or the `descriptor` of a socket that listens already."""

    host: str
    port: int
    descriptor: int | None = None

    @property
    def both_families(self) -> bool:
        return not self.host and socket.has_dualstack_ipv6()

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.host or self.both_families else socket.AF_INET

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(value: Any, where: str) -> SocketAddress:
    """The address that a text names; a port alone is every interface's. Raises SettingsError for what is none."""
    text = str(value).strip()
    if match := _INHERITED.fullmatch(text):
        return SocketAddress("", 0, int(match[1]))
    match = _ADDRESS.fullmatch(text)
    port = int(match["port"] or match["alone"]) if match else -1
    if match is None or not 0 <= port <= 65_535:
        raise SettingsError(
            f"{where}: {text!r} is no address to listen on.", fix="For example :8081, or 127.0.0.1:8081."
        )
    return SocketAddress(match["six"] or match["host"] or "", port)
