"""Why there is no connection to a server, or no tables of ours in it: where it is, what it said, and what helps."""

from __future__ import annotations

import socket
import ssl
from urllib.parse import urlsplit

import asyncpg

from microflow.addresses import MASK, masked
from microflow.errors import StoreError, StoreUnavailable, StoreUnreachable
from microflow.stores.postgres.errors import translate

START_IT = "Start it:  docker compose up -d postgres     or run without: leave MICROFLOW_DATABASE out"
CHECK_IT = "Check MICROFLOW_DATABASE (--database)."
WRONG_PASSWORD = (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)


def no_connection(url: str, cause: BaseException) -> StoreError:
    """The error for a server that could not be connected to. Only one that does not answer is worth another try."""
    place, user, database = _place(url), _user(url), _database(url)
    address = f"postgresql://{user}:{MASK}@{place}/{database}"
    if isinstance(cause, asyncpg.CannotConnectNowError):
        return StoreUnreachable(f"PostgreSQL at {place} is starting or stopping ({cause}).")
    if isinstance(cause, WRONG_PASSWORD):
        return StoreUnavailable(
            f"PostgreSQL at {place} does not let {user} in.",
            why=str(cause),
            fix=f"Encrypt the connection:  {address}?sslmode=require"
            if "no encryption" in str(cause)
            else f"Check user and password in MICROFLOW_DATABASE:  {address}",
        )
    if isinstance(cause, asyncpg.InvalidCatalogNameError):
        return StoreUnavailable(
            f"PostgreSQL at {place} has no database {database}.",
            fix=f"createdb {database}     or name another one",
        )
    if "rejected SSL upgrade" in str(cause):
        return StoreUnavailable(
            f"PostgreSQL at {place} does not speak TLS.",
            fix="Switch it on there (ssl = on), or leave sslmode out of MICROFLOW_DATABASE.",
        )
    if isinstance(cause, ssl.SSLError):
        return StoreUnavailable(
            f"The certificate of PostgreSQL at {place} is not trusted.",
            why=getattr(cause, "verify_message", "") or cause.reason or str(cause),
            fix="Name the authority's file:  …?sslmode=verify-full&sslrootcert=ca.pem     and the host as it does",
        )
    if isinstance(cause, ConnectionRefusedError):
        return StoreUnreachable(f"PostgreSQL is not reachable at {place} (connection refused).", fix=START_IT)
    if isinstance(cause, socket.gaierror):
        return StoreUnreachable(
            f"PostgreSQL is not reachable at {place} (no such host).", fix="Check MICROFLOW_DATABASE."
        )
    if isinstance(cause, TimeoutError | OSError):
        said = "no answer" if isinstance(cause, TimeoutError) else getattr(cause, "strerror", None) or str(cause)
        return StoreUnreachable(f"PostgreSQL is not reachable at {place} ({said}).", fix=CHECK_IT)
    return translate(cause)


def not_permitted(url: str, cause: asyncpg.InsufficientPrivilegeError) -> StoreUnavailable:
    """The error for a role that may not use, or not make, our tables."""
    user = _user(url)
    return StoreUnavailable(
        f"{user} may not use microflow's tables in {_database(url)}, or not make them: {cause}.",
        why="Its tables are in the schema microflow.",
        fix="As the database's owner:  microflow db migrate TARGET --database postgresql://OWNER@…\n"
        f"and then the grants that docs/operations.md lists for {user}",
    )


def database_of(url: str) -> str:
    """Which database a URL names, in words at the beginning of a sentence."""
    return f"The database {_database(url)} of PostgreSQL at {_place(url)}"


def _user(url: str) -> str:
    """Whom a URL names, in words."""
    shown = masked(url).partition("://")[2]
    return shown.rpartition("@")[0].partition(":")[0] or "this user"


def _place(url: str) -> str:
    """Host and port, as they are written."""
    rest = masked(url).partition("://")[2].rpartition("@")[2]
    return rest.partition("/")[0].partition("?")[0] or "the local socket"


def _database(url: str) -> str:
    return urlsplit(masked(url)).path.removeprefix("/") or "its user's database"
