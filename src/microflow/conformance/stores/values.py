"""Values go in as parameters and come back from columns selected by name, alike on every store."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

from microflow.conformance.scenarios import Scenarios
from microflow.conformance.stores.harness import Harness
from microflow.errors import StoreError
from microflow.ports import Store

values: Scenarios[Harness] = Scenarios()

VALUES: dict[str, tuple[Any, ...]] = {
    "text": ("", "plain", "Grüße 😀", "o'clock", "1", "1.50", "null", "a\nb"),
    "varchar(40)": ("plain", "12"),
    "integer": (0, -1, 2**31 - 1, -(2**31)),
    "bigint": (0, 2**63 - 1, -(2**63)),
    "boolean": (True, False),
    "double precision": (0.0, -1.5, 0.1, 1e300, 5e-324, 2.0, float("inf"), 1 / 3),
    "bytea": (b"", b"\x00\xff", bytes(range(256)), b"text"),
    "numeric(15, 4)": (Decimal("0"), Decimal("-0.0001"), Decimal("12345678901.2345"), Decimal("3")),
    "numeric": (Decimal("0.1"), Decimal("999999999999999"), Decimal("1E-10"), Decimal("1E+20"), Decimal("12.50")),
    "decimal(9, 2)": (Decimal("1234567.89"), Decimal("-1")),
    "timestamptz": (
        datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        datetime(2030, 1, 2, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2030, 6, 1, 12, 0, 0, 1, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    ),
    "timestamp with time zone": (datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=UTC),),
    "timestamp": (datetime(2030, 1, 2, 3, 4, 5, 678901), datetime(1999, 12, 31)),  # noqa: DTZ001 - without a zone
    "date": (date(2030, 1, 2), date(1, 1, 1), date(9999, 12, 31)),
    "uuid": (UUID("0190163d-8694-739b-aea5-966c26f8ad91"), UUID(int=0)),
    "json": ({}, [], {"a": [1, 2.5, None, True, "ü"], "b": {"c": {}}}, [1, "two", None]),
    "jsonb": ({"a": [1, 2.5, None, True, "ü"]}, [{"b": 1}], {"12": "34"}),
}


async def _round_trips(store: Store, declared: str, values: tuple[Any, ...]) -> list[Any]:
    found: list[Any] = []
    async with store.transaction() as transaction:
        connection = transaction.connection
        await connection.execute(f"create table kept (id integer primary key, value {declared})")
        for number, value in enumerate(values):
            await connection.execute("insert into kept (id, value) values ($1, $2)", number, value)
            found.append(await connection.fetchval("select value from kept where id = $1", number))
        rows = await connection.fetch("select k.value as other_name from kept as k order by k.id")
        assert [row["other_name"] for row in rows] == found, "a column is the same under another name"
        nothing = await connection.fetchrow("insert into kept (id) values (-1) returning id, value")
        assert nothing is not None
        assert nothing["value"] is None
        returned = await connection.fetchval("update kept set value = value where id = 0 returning value")
        assert returned == found[0], "and from `returning`"
        # SQLite keeps a whole float as an integer, and forgets to turn it back for `returning`.
        assert isinstance(returned, type(found[0])) or isinstance(found[0], float)
        await connection.execute("drop table kept")
    return found


@values.add()
async def every_value_comes_back_as_it_went_in(harness: Harness) -> None:
    """`str int bool float bytes Decimal datetime date UUID` and JSON values go in as parameters and come back."""
    store = await harness.open()

    for declared, values in VALUES.items():
        found = await _round_trips(store, declared, values)
        assert found == list(values), declared
        assert [type(value) for value in found] == [type(value) for value in values], declared


@values.add()
async def an_instant_with_a_zone_comes_back_in_utc(harness: Harness) -> None:
    """Alike on every store: the instant is the same, its zone is UTC."""
    store = await harness.open()
    instant = datetime(2030, 6, 1, 12, tzinfo=timezone(timedelta(hours=-7)))

    (found,) = await _round_trips(store, "timestamptz", (instant,))

    assert found == instant
    assert found.utcoffset() == timedelta(0)


@values.add()
async def instants_compare_in_sql_as_they_do_in_python(harness: Harness) -> None:
    """Go in as parameters: also behind `where` and `order by`, whatever their zones and fractions."""
    store = await harness.open()
    east, west = timezone(timedelta(hours=9)), timezone(timedelta(hours=-8))
    instants = [
        datetime(2030, 1, 1, 0, 0, 0, tzinfo=UTC),
        datetime(2030, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(2030, 1, 1, 0, 0, 1, tzinfo=UTC),
        datetime(2029, 12, 31, 20, tzinfo=west),
        datetime(2030, 1, 1, 8, tzinfo=east),
    ]
    async with store.transaction() as transaction:
        connection = transaction.connection
        await connection.execute("create table seen (at timestamptz)")
        await connection.executemany("insert into seen values ($1)", [(instant,) for instant in instants])
        found = [row["at"] for row in await connection.fetch("select at from seen order by at")]
        before = [row[0] for row in await connection.fetch("select at from seen where at < $1", instants[1])]  # type: ignore[index]  # by position too
        exact = await connection.fetchval("select at from seen where at = $1", instants[3].astimezone(east))

    assert found == sorted(instants)
    assert sorted(before) == sorted(instant for instant in instants if instant < instants[1])
    assert exact == instants[3]


@values.add()
async def decimals_compare_and_add_up_in_sql(harness: Harness) -> None:
    """Go in as parameters: numbers are numbers there."""
    store = await harness.open()
    amounts = [Decimal("9.5"), Decimal("10"), Decimal("100.25"), Decimal("0.1")]

    async with store.transaction() as transaction:
        connection = transaction.connection
        await connection.execute("create table paid (amount numeric(15, 2))")
        await connection.executemany("insert into paid values ($1)", [(amount,) for amount in amounts])
        found = [row["amount"] for row in await connection.fetch("select amount from paid order by amount")]
        large = await connection.fetchval("select count(*) from paid where amount >= $1", Decimal("9.50"))
        total = await connection.fetchval("select sum(amount) from paid")

    assert found == sorted(amounts)
    assert large == 3
    assert round(Decimal(str(total)), 2) == sum(amounts)


@values.add()
async def enumerations_go_in_as_their_values(harness: Harness) -> None:
    """A `str` or an `int` of a subclass is one."""
    store = await harness.open()

    class State(StrEnum):
        PAID = "paid"

    class Level(IntEnum):
        HIGH = 3

    assert await _round_trips(store, "text", (State.PAID,)) == ["paid"]
    assert await _round_trips(store, "integer", (Level.HIGH,)) == [3]


@values.add()
async def a_decimal_of_many_digits_is_never_rounded(harness: Harness) -> None:
    """A `Decimal` comes back equal, or is refused."""
    store = await harness.open()
    for value in ("1234567890123456.7", "0.12345678901234567", "99999999999999999999"):
        try:
            found = await _round_trips(store, "numeric", (Decimal(value),))
        except StoreError:
            assert not harness.abilities.any_decimal
        else:
            assert found == [Decimal(value)]


@values.add()
async def what_no_column_can_hold_is_refused(harness: Harness) -> None:
    """Alike on every store: a value comes back, or is refused; it never becomes another one."""
    store = await harness.open()
    refused: tuple[tuple[str, object], ...] = (
        ("bigint", 2**63),
        ("bigint", -(2**63) - 1),
        ("text", "\ud800"),
        ("json", {"a": object()}),
        ("json", {"a": float("nan")}),
        ("text", object()),
    )
    for declared, value in refused:
        try:
            found = await _round_trips(store, declared, (value,))
        except StoreError:
            continue
        raise AssertionError(f"{value!r} became {found!r}")


@values.add()
async def an_expression_comes_back_as_its_store_gives_it(harness: Harness) -> None:
    """Only columns selected by name have a type that is alike on every store; counting is the same everywhere."""
    store = await harness.open()

    async with store.transaction() as transaction:
        await transaction.connection.execute("create table seen (at timestamptz)")
        assert await transaction.connection.fetchval("select count(*) from seen") == 0
        assert await transaction.connection.fetchval("select max(at) from seen") is None
