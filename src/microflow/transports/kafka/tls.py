"""Encrypted connections: whom to trust, and who we are."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microflow.errors import SettingsError


def tls_context(values: Mapping[str, Any], places: Mapping[str, str]) -> ssl.SSLContext:
    """The context of all connections: TLS 1.2 at least, and the broker's name checked unless that was switched off.

    Raises SettingsError for a file that cannot be used. Without `ssl_cafile` the system's authorities are trusted.
    """
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        if name in values and not Path(values[name]).is_file():
            raise SettingsError(f"{places[name]}: there is no file {values[name]}.")
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=values.get("ssl_cafile"))
    except (ssl.SSLError, OSError) as cause:
        raise SettingsError(
            f"{places['ssl_cafile']}: {values['ssl_cafile']} holds no certificates.", why="They are expected as PEM."
        ) from cause
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = values.get("ssl_check_hostname", True)
    if "ssl_certfile" in values:
        _load_own(context, values, places)
    elif "ssl_keyfile" in values:
        raise SettingsError(f"{places['ssl_keyfile']} is set, and there is no ssl_certfile to go with it.")
    return context


def _load_own(context: ssl.SSLContext, values: Mapping[str, Any], places: Mapping[str, str]) -> None:
    # Without a password OpenSSL would ask for it at the terminal.
    password = str(values.get("ssl_password", ""))
    try:
        context.load_cert_chain(values["ssl_certfile"], values.get("ssl_keyfile"), password=lambda: password)
    except (ssl.SSLError, OSError, ValueError) as cause:
        raise SettingsError(
            f"{places['ssl_certfile']}: {values['ssl_certfile']} and its key cannot be used.",
            why="They are expected as PEM, they must belong together, and ssl_password must open the key.",
        ) from cause
