"""The chain's first service: takes what has begun, remembers it, and lets it continue."""

from __future__ import annotations

from collections.abc import Callable

from microflow import Context, Event, Service, on


class Begun(Event, key="account"):
    account: str
    number: int


class Continued(Event, key="account"):
    account: str
    number: int


AT_FIRST: list[Callable[[], None]] = []
"""Who measures is told of the first event without a middleware, which other services do not have either."""


@on(Begun)
async def carry_on(begun: Begun, context: Context) -> Continued:
    while AT_FIRST:
        AT_FIRST.pop()()
    context.write(
        "insert into accounts (account, events, last) values ($1, 1, $2) "
        "on conflict (account) do update set events = accounts.events + 1, last = excluded.last",
        begun.account,
        begun.number,
    )
    return Continued(account=begun.account, number=begun.number)


service = Service("first", tables="accounts.sql")
