"""The chain's second service: takes what was continued, remembers it, and says that it has ended."""

from __future__ import annotations

from microflow import Context, Event, Service, on


class Continued(Event, key="account"):
    account: str
    number: int


class Ended(Event, key="account"):
    account: str
    number: int


@on(Continued)
async def bring_to_an_end(continued: Continued, context: Context) -> Ended:
    context.write(
        "insert into accounts (account, events, last) values ($1, 1, $2) "
        "on conflict (account) do update set events = accounts.events + 1, last = excluded.last",
        continued.account,
        continued.number,
    )
    return Ended(account=continued.account, number=continued.number)


service = Service("second", tables="accounts.sql")
