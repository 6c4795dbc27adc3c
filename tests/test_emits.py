"""The return grammar: how an annotation is read, and what a handler returned is held against it."""

from __future__ import annotations

import asyncio
import collections.abc
import itertools
import sys
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, List, Never, NoReturn, Optional, Tuple, TypeVar, Union  # noqa: UP035

import pytest
from pydantic import BaseModel
from typing_extensions import TypeAliasType

from microflow.emits import (
    Drained,
    Fixed,
    Item,
    Many,
    Nothing,
    OneOf,
    classes_of,
    describe,
    drain,
    drain_async,
    emitted,
    read_emits,
    written,
)
from microflow.errors import ContractError, DefinitionError
from microflow.events import Command, Event, Message
from microflow.signatures import handler_of
from tests.asynchronous import asynchronous
from tests.user_code import user_module

T = TypeVar("T")


class A(Event):
    n: int = 0


class B(Event):
    pass


class Retrieve(Command):
    pass


class Page(Event, Generic[T]):
    item: T


class Numbers(Page[int]):
    pass


class Plain(BaseModel):
    pass


def read(annotation: Any) -> Any:
    return read_emits(annotation, function="take_payment", where="payments.py:3", names=globals())


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────

Maybe = TypeAliasType("Maybe", T | None, type_params=(T,))
Same = TypeAliasType("Same", T, type_params=(T,))
Outcome = TypeAliasType("Outcome", Union[A, "Later"])
Later = TypeAliasType("Later", Annotated[B, "later"])


@pytest.mark.parametrize(
    ("annotation", "grammar"),
    [
        (None, Nothing()),
        (type(None), Nothing()),
        (NoReturn, Nothing()),
        (Never, Nothing()),
        (A, Item(A)),
        (Retrieve, Item(Retrieve)),
        (Numbers, Item(Numbers)),
        (A | B, OneOf((Item(A), Item(B)))),
        (Union[A, B], OneOf((Item(A), Item(B)))),  # noqa: UP007
        (Optional[A], OneOf((Item(A), Nothing()))),  # noqa: UP045
        (A | None, OneOf((Item(A), Nothing()))),
        (Annotated[A, "why"], Item(A)),
        (Annotated[A | None, "why"], OneOf((Item(A), Nothing()))),
        (tuple[A, B], Fixed((Item(A), Item(B)))),
        (Tuple[A, B], Fixed((Item(A), Item(B)))),  # noqa: UP006
        (tuple[()], Fixed(())),
        (tuple[A, ...], Many(Item(A), streamed=False)),
        (list[A], Many(Item(A), streamed=False)),
        (List[A], Many(Item(A), streamed=False)),  # noqa: UP006
        (Sequence[A | B], Many(OneOf((Item(A), Item(B))), streamed=False)),
        (typing.Sequence[A], Many(Item(A), streamed=False)),
        (Iterator[A], Many(Item(A), streamed=True)),
        (Iterable[A], Many(Item(A), streamed=True)),
        (Generator[A, None, None], Many(Item(A), streamed=True)),
        (AsyncIterator[A], Many(Item(A), streamed=True)),
        (AsyncGenerator[A, None], Many(Item(A), streamed=True)),
        (typing.AsyncIterator[A], Many(Item(A), streamed=True)),
        (list[A] | list[B], OneOf((Many(Item(A), streamed=False), Many(Item(B), streamed=False)))),
        (tuple[A, list[B | None]], Fixed((Item(A), Many(OneOf((Item(B), Nothing())), streamed=False)))),
        (Iterator[tuple[A, B]], Many(Fixed((Item(A), Item(B))), streamed=True)),
        (Outcome, OneOf((Item(A), Item(B)))),
        (Maybe[A], OneOf((Item(A), Nothing()))),
        (Same[A], Item(A)),
        ("A | B", OneOf((Item(A), Item(B)))),
        (list["A"], Many(Item(A), streamed=False)),
        (list[Maybe[A]], Many(OneOf((Item(A), Nothing())), streamed=False)),
    ],
)
def test_the_grammar_is_recursive(annotation: Any, grammar: Any) -> None:
    assert read(annotation) == grammar


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        (Event, "emits Event, which says nothing"),
        (Command, "emits Command, which says nothing"),
        (Message, "emits Message, which says nothing"),
        (list[Event], "emits Event, which says nothing"),
        (Plain, "emits Plain, which is no event"),
        (int, "emits int, which is no event"),
        (list, "emits list, which is no event"),
        (tuple, "emits tuple, which is no event"),
        (A | str, "emits str, which is no event"),
        (dict[str, A], "which is no event"),
        (set[A], "which is no event"),
        (Any, "emits Any, which is no event"),
        (collections.abc.Iterator, "emits Iterator, which is no event"),
        (typing.Callable[[], A], "which is no event"),
        ("Plain", "emits Plain, which is no event"),
    ],
)
def test_what_names_no_event_is_refused_at_the_handlers_line(annotation: Any, told: str) -> None:
    with pytest.raises(DefinitionError, match=told) as raised:
        read(annotation)
    assert raised.value.where == "payments.py:3"
    assert raised.value.fix


def test_a_class_that_could_be_an_event_is_told_how_to_become_one() -> None:
    with pytest.raises(DefinitionError) as raised:
        read(Plain)
    assert raised.value.fix == "Make it one: class Plain(Event), or declare `-> None` if take_payment emits nothing."


Endless = TypeAliasType("Endless", "A | list[Endless]")


def test_an_alias_that_contains_itself_is_refused() -> None:
    with pytest.raises(DefinitionError, match="take_payment contains itself"):
        read(Endless)


def test_a_name_that_is_not_there_is_told() -> None:
    with pytest.raises(DefinitionError, match="cannot be read: name 'Missing' is not defined"):
        read(list["Missing"])  # type: ignore[name-defined] # noqa: F821 - that is the point


def test_classes_are_named_once_and_in_order() -> None:
    grammar = read(tuple[B, list[A | B]] | A | None)

    assert classes_of(grammar) == (B, A)
    assert describe(grammar) == "B | A"
    assert written(grammar) == "tuple[B, list[A | B]] | A | None"
    assert describe(read(None)) == "nothing"


# ── holding a result against it ───────────────────────────────────────────────────────────────────────────────────


def hold(value: Any, annotation: Any) -> list[Message]:
    return emitted(drain(value, limit=10), read(annotation), function="take_payment", where="payments.py:3")


@pytest.mark.parametrize(
    ("value", "annotation", "events"),
    [
        (None, None, []),
        (None, A | None, []),
        (A(), A, [A()]),
        (B(), A | B, [B()]),
        ((A(), B()), tuple[A, B], [A(), B()]),
        ((), tuple[()], []),
        ((A(), A()), tuple[A, ...], [A(), A()]),
        ([], list[A], []),
        ([A(), B(), A()], list[A | B], [A(), B(), A()]),
        ([B()], list[A] | list[B], [B()]),
        ((A(), [B(), None]), tuple[A, list[B | None]], [A(), B()]),
        (iter([A(), B()]), Iterator[A | B], [A(), B()]),
        ([A()], Iterable[A], [A()]),
        ((A() for _ in range(3)), Generator[A, None, None], [A()] * 3),
        (((A(), [B()]) for _ in range(2)), Iterator[tuple[A, list[B]]], [A(), B(), A(), B()]),
        ((A(), iter([B()])), tuple[A, Iterator[B]], [A(), B()]),
    ],
)
def test_what_is_declared_may_be_returned(value: Any, annotation: Any, events: list[Message]) -> None:
    assert hold(value, annotation) == events


@pytest.mark.parametrize(
    ("value", "annotation", "told"),
    [
        (B(), A, "take_payment emitted B, but declares A."),
        ([A(), B()], list[A], "take_payment emitted B, but declares A."),
        (A(), None, "take_payment emitted A, but declares nothing."),
        (None, A, "take_payment returned nothing, but declares A."),
        ([A()], A, "take_payment returned a list of 1, but declares A."),
        (A(), list[A], "take_payment returned A, but declares list[A]."),
        ((A(),), tuple[A, A], "take_payment returned a tuple of 1, but declares tuple[A, A]."),
        ((B(), A()), tuple[A, B], "take_payment returned a tuple of 2, but declares tuple[A, B]."),
        ([A(), B()], list[A] | list[B], "take_payment returned a list of 2, but declares list[A] | list[B]."),
        (iter([A()]), list[A], "take_payment returned an iterator over 1, but declares list[A]."),
        ("text", A | None, "take_payment returned a str, which is no event; it declares A | None."),
        ("", list[A], "take_payment returned a str, which is no event; it declares list[A]."),
        (5, None, "take_payment returned an int, which is no event; it declares None."),
        ({"n": 1}, A, "take_payment returned a dict, which is no event; it declares A."),
        (A, A, "take_payment returned a ModelMetaclass, which is no event; it declares A."),
    ],
)
def test_what_is_not_declared_is_refused_with_the_users_line(value: Any, annotation: Any, told: str) -> None:
    with pytest.raises(ContractError) as raised:
        hold(value, annotation)
    assert raised.value.what == told
    assert raised.value.where == "payments.py:3"
    assert "Nothing was written" in str(raised.value)


def test_a_subclass_of_a_declared_event_is_another_event() -> None:
    class Heir(A):
        pass

    with pytest.raises(ContractError, match="emitted Heir, but declares A"):
        hold(Heir(), A)


def test_a_misspelt_twin_is_suggested() -> None:
    class PaymentReceived(Event):
        pass

    class PaymentRecieved(Event):
        pass

    with pytest.raises(ContractError) as raised:
        hold(PaymentRecieved(), PaymentReceived | B)
    assert raised.value.what == "take_payment emitted PaymentRecieved, but declares PaymentReceived | B."
    assert raised.value.fix == "Did you mean PaymentReceived?"


def test_a_class_of_the_same_name_from_elsewhere_is_told_apart() -> None:
    twin = type("A", (Event,), {"__module__": "elsewhere"})

    with pytest.raises(ContractError, match="two classes called A: declare the one from elsewhere"):
        hold(twin(), A)


@pytest.mark.parametrize(
    ("make", "annotation"),
    [
        (lambda: iter([A()] * 11), Iterator[A]),
        (lambda: [A()] * 11, list[A]),
        (lambda: ([A()] * 6 for _ in range(2)), Iterator[list[A]]),
    ],
)
def test_more_than_the_limit_is_refused_however_it_is_returned(make: Any, annotation: Any) -> None:
    with pytest.raises(ContractError, match="emits more than 10 events"):
        hold(make(), annotation)


def test_an_endless_generator_is_stopped_at_the_limit_and_closed() -> None:
    ended = []

    def endless() -> Iterator[A]:
        try:
            while True:
                yield A()
        finally:
            ended.append(True)

    generator = endless()
    with pytest.raises(ContractError, match="more than 10"):
        drain(generator, limit=10)
    assert ended == [True]


@asynchronous
async def test_an_asynchronous_iterator_is_drained_and_closed_too() -> None:
    ended = []

    async def endless() -> AsyncIterator[A | list[B]]:
        try:
            while True:
                yield A()
                yield [B()]
        finally:
            ended.append(True)

    async def two() -> AsyncIterator[A]:
        yield A(n=1)
        yield A(n=2)

    assert await drain_async(two(), limit=2) == Drained([A(n=1), A(n=2)])
    assert await drain_async((A(), two()), limit=3) == (A(), Drained([A(n=1), A(n=2)]))
    assert await drain_async(iter([A()]), limit=3) == Drained([A()])
    assert await drain_async(None, limit=3) is None
    with pytest.raises(ContractError, match="more than 10"):
        await drain_async(endless(), limit=10)
    assert ended == [True]


@asynchronous
async def test_an_error_in_an_iterator_is_the_handlers_own() -> None:
    async def failing() -> AsyncIterator[A]:
        yield A()
        raise TimeoutError("carrier")

    with pytest.raises(TimeoutError, match="carrier"):
        await drain_async(failing(), limit=10)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="PEP 695 is Python 3.12's")
def test_type_statements_are_read(tmp_path: Path) -> None:
    module = user_module(
        tmp_path,
        """
        type Outcome = PaymentReceived | Late
        type Maybe[T] = T | None
        type Endless = list[Endless]
        @on("OrderAccepted")
        async def take_payment(order: OrderAccepted) -> list[Maybe[Outcome]]: ...
        @on("OrderAccepted")
        async def endless(order: OrderAccepted) -> Endless: ...
        class Late(Event):
            pass
        """,
    )

    grammar = handler_of(module.take_payment, {}).emits
    assert written(grammar) == "list[PaymentReceived | Late | None]"
    with pytest.raises(DefinitionError, match="contains itself"):
        handler_of(module.endless, {})


def test_an_endless_iterator_over_no_events_is_stopped_as_well() -> None:
    with pytest.raises(ContractError, match="more than 10"):
        drain(itertools.repeat("no event"), limit=10)
    with pytest.raises(ContractError, match="more than 10"):
        asyncio.run(drain_async(itertools.repeat(None), limit=10))
