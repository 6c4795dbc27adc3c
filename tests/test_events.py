"""Events and commands: values with a key, a topic and a type."""

from __future__ import annotations

import math
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError, create_model

from microflow.decoding import decode
from microflow.errors import ContractError, DefinitionError
from microflow.events import Command, Event, Message, check_event_class, check_topic, key_of, options_of

T = TypeVar("T")


class OrderPlaced(Event, key="order_id", topic="orders"):
    order_id: str


def here(offset: int = 0) -> str:
    return f"{__file__}:{sys._getframe(1).f_lineno + offset}"


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_cannot_be_changed() -> None:
    event = OrderPlaced(order_id="1")

    with pytest.raises(ValidationError, match="frozen"):
        event.order_id = "2"  # type: ignore[misc] # that is the point


def test_events_are_equal_by_class_and_fields() -> None:
    class OrderSeen(Event):
        order_id: str

    assert OrderPlaced(order_id="1") == OrderPlaced(order_id="1")
    assert OrderPlaced(order_id="1") != OrderPlaced(order_id="2")
    assert OrderPlaced(order_id="1") != OrderSeen(order_id="1")  # type: ignore[comparison-overlap] # mypy knows it


def test_an_event_is_equal_to_itself_read_back_even_if_a_default_was_left_out() -> None:
    class Noted(Event):
        order_id: str
        note: str = "none"

    assert decode(Noted, b'{"order_id": "1"}', None) == Noted(order_id="1", note="none")


def test_events_are_hashable_if_their_fields_are() -> None:
    class Listed(Event):
        items: list[str]

    assert len({OrderPlaced(order_id="1"), OrderPlaced(order_id="1")}) == 1
    with pytest.raises(TypeError):
        hash(Listed(items=["a"]))


def test_fields_that_the_reader_does_not_know_are_ignored() -> None:
    assert decode(OrderPlaced, b'{"order_id": "1", "colour": "red"}', None) == OrderPlaced(order_id="1")


def test_fields_may_be_called_like_the_keywords() -> None:
    class Odd(Event, key="key", topic="odd", type="odd.event", external=True):
        key: str
        topic: int
        type: str
        external: str
        model: str
        model_name: str
        where: str
        name: str

    event = Odd(key="k", topic=1, type="t", external="e", model="m", model_name="n", where="w", name="x")

    assert (event.key, event.topic, event.type, event.external) == ("k", 1, "t", "e")
    assert key_of(event) == "k"
    assert options_of(Odd).topic == "odd"
    assert options_of(Odd).type == "odd.event"
    assert decode(Odd, to_json(event), None) == event


class Everything(Event):
    text: str = ""
    whole: int = 0
    real: float = 0.0
    exact: Decimal = Decimal(0)
    raw: bytes = b""
    instant: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    day: date = date(2026, 1, 1)
    span: timedelta = timedelta(0)
    identity: UUID = UUID(int=0)
    maybe: str | None = None
    many: tuple[int, ...] = ()
    table: dict[str, list[int]] = Field(default_factory=dict)


def to_json(event: Message) -> bytes:
    return event.__pydantic_serializer__.to_json(event, by_alias=True)


@given(
    st.builds(
        Everything,
        text=st.text(st.characters(exclude_categories=["Cs"])),
        whole=st.integers(-(10**30), 10**30),
        real=st.floats(allow_nan=False),
        exact=st.decimals(allow_nan=False, allow_infinity=False),
        raw=st.binary(),
        instant=st.datetimes(timezones=st.just(UTC)),
        day=st.dates(),
        span=st.timedeltas(timedelta(days=-10000), timedelta(days=10000)),
        identity=st.uuids(),
        maybe=st.none() | st.just("x"),
        many=st.lists(st.integers(-100, 100)).map(tuple),
    )
)
def test_what_is_written_is_read_back_equal(event: Everything) -> None:
    read = decode(Everything, to_json(event), "application/json")

    assert read == event
    assert isinstance(read, Everything)
    assert str(read.exact) == str(event.exact)


def test_not_a_number_and_infinity_are_read_back() -> None:
    read = decode(Everything, to_json(Everything(real=math.nan)), None)

    assert isinstance(read, Everything)
    assert math.isnan(read.real)
    assert decode(Everything, to_json(Everything(real=math.inf)), None) == Everything(real=math.inf)


def test_an_alias_is_a_fields_name_on_the_wire() -> None:
    class Aliased(Event, key="order_id"):
        order_id: str = Field(alias="orderId")

    event = Aliased(order_id="1")

    assert to_json(event) == b'{"orderId":"1"}'
    assert decode(Aliased, b'{"orderId":"1"}', None) == event
    assert key_of(event) == "1"


# ── the class keywords ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_type_is_called_like_its_class_unless_it_says_otherwise() -> None:
    class Renamed(Event, type="com.example.renamed"):
        pass

    class Heir(Renamed):
        pass

    assert options_of(OrderPlaced).type == "OrderPlaced"
    assert options_of(Renamed).type == "com.example.renamed"
    assert options_of(Heir).type == "Heir"


def test_keywords_are_inherited_over_several_levels_and_the_nearest_counts() -> None:
    class First(Event, key="order_id", topic="first"):
        order_id: str

    class Second(First, topic="second", external=True):
        pass

    class Third(Second, external=False):
        pass

    third = options_of(Third)
    assert (third.key, third.topic, third.external) == (("order_id",), "second", False)
    assert options_of(First).topic == "first"


def test_each_keyword_comes_from_the_nearest_base_that_says_it() -> None:
    class Root(Event, key="root", topic="root"):
        pass

    class Keyed(Root, key="order_id"):
        order_id: str

    class Placed(Root, topic="placed"):
        pass

    class Both(Placed, Keyed):
        pass

    assert options_of(Both).key == ("order_id",)
    assert options_of(Both).topic == "placed"


def test_generic_events_inherit_too() -> None:
    class Page(Event, Generic[T], key="order_id", topic="pages"):
        order_id: str
        items: list[T]

    class Numbers(Page[int]):
        pass

    assert options_of(Page[str]).topic == "pages"
    assert options_of(Numbers) == options_of(Numbers)
    assert (options_of(Numbers).type, options_of(Numbers).key) == ("Numbers", ("order_id",))
    check_event_class(Numbers)
    with pytest.raises(DefinitionError, match="has no name on the wire"):
        check_event_class(Page[int])


def test_commands_take_the_same_keywords() -> None:
    class RetrievePayment(Command, key="order_id", topic="payments"):
        order_id: str

    assert key_of(RetrievePayment(order_id="1")) == "1"
    assert options_of(RetrievePayment).topic == "payments"


def test_a_pydantic_setting_is_no_misspelt_keyword() -> None:
    class Strict(Event, key="n", strict=True):
        n: int

    with pytest.raises(ValidationError):
        Strict.model_validate({"n": "1"})


def test_a_misspelt_keyword_is_told_with_its_place_and_a_suggestion() -> None:
    with pytest.raises(DefinitionError) as raised:

        class Misspelt(Event, kye="order_id"):
            order_id: str

    assert "class Misspelt has an unknown keyword: kye" in raised.value.what
    assert raised.value.where == here(-4)
    assert raised.value.fix == "Did you mean key?"


def test_the_place_of_a_class_is_the_users_line_however_it_is_made() -> None:
    class Generated(Event, Generic[T]):
        item: T

    class_line = here(-3)
    parametrized = Generated[int]
    parametrized_line = here(-1)
    created = create_model("Created", __base__=Event, order_id=(str, ...))
    created_line = here(-1)

    assert options_of(Generated).where == class_line
    assert options_of(parametrized).where == parametrized_line
    assert options_of(created).where == created_line


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"key": 5}, "key=5"),
        ({"key": ()}, r"key=\(\)"),
        ({"key": ("a", 1)}, "key="),
        ({"topic": 5}, "topic=5"),
        ({"type": ""}, "type=''"),
        ({"type": "a\nb"}, "type="),
        ({"external": "yes"}, "external='yes'"),
    ],
)
def test_a_keyword_of_the_wrong_kind_is_refused(keywords: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        create_model("Wrong", __base__=Event, __cls_kwargs__=keywords)


# ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Colour(Enum):
    RED = "red"


class Size(IntEnum):
    LARGE = 3


class Share(Enum):
    HALF = 0.5


@pytest.mark.parametrize(
    ("kind", "value", "key"),
    [
        (str, "Grüße", "Grüße"),
        (str, "", ""),
        (int, -7, "-7"),
        (UUID, UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour, Colour.RED, "red"),
        (Size, Size.LARGE, "3"),
        (Literal["a"], "a", "a"),
        (Annotated[str, Field(min_length=1)], "a", "a"),
        (str | int, 5, "5"),
    ],
)
def test_text_whole_numbers_uuids_and_enums_are_keys(kind: Any, value: Any, key: str) -> None:
    keyed = create_model("Keyed", __base__=Event, __cls_kwargs__={"key": "id"}, id=(kind, ...))

    check_event_class(keyed)
    assert key_of(keyed(id=value)) == key


@pytest.mark.parametrize(
    "kind", [bool, float, Decimal, bytes, datetime, date, str | None, list[str], dict[str, str], Share, OrderPlaced]
)
def test_what_can_be_no_key_is_refused_when_the_service_is_built(kind: Any) -> None:
    keyed = create_model("Keyed", __base__=Event, __cls_kwargs__={"key": "id"}, id=(kind, ...))

    with pytest.raises(DefinitionError, match=r"Keyed\.id is the event's key, and may be .*, which cannot be one"):
        check_event_class(keyed)


@pytest.mark.parametrize("value", [True, 1.5, None, b"x", ["a"]])
def test_what_can_be_no_key_is_refused_when_the_event_is_emitted(value: object) -> None:
    class Loose(Event, key="id"):
        id: Any

    with pytest.raises(ContractError, match="cannot be one"):
        key_of(Loose(id=value))


def test_a_tuple_of_fields_is_a_json_array_of_texts() -> None:
    class Stocked(Event, key=("shop", "number")):
        shop: str
        number: int

    class Single(Event, key=("shop",)):
        shop: str

    assert key_of(Stocked(shop='Ü"', number=7)) == '["Ü\\"","7"]'
    assert key_of(Single(shop="a")) == '["a"]'


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_different_tuples_have_different_keys(one: tuple[str, str], other: tuple[str, str]) -> None:
    class Pair(Event, key=("a", "b")):
        a: Any
        b: Any

    assert (key_of(Pair(a=one[0], b=one[1])) == key_of(Pair(a=other[0], b=other[1]))) == (one == other)


def test_an_event_without_the_keyword_has_no_key_of_its_own() -> None:
    class Keyless(Event):
        order_id: str

    assert key_of(Keyless(order_id="1")) is None


def test_a_key_field_that_does_not_exist_is_refused_with_a_suggestion() -> None:
    class Lost(Event, key="order_di"):
        order_id: str

    with pytest.raises(DefinitionError, match="says key='order_di', but has no such field") as raised:
        check_event_class(Lost)
    assert raised.value.fix == "Did you mean key='order_id'?"
    assert raised.value.where == here(-6)


def test_the_model_of_a_plain_pydantic_class_may_be_a_field() -> None:
    class Address(BaseModel):
        street: str

    class Moved(Event, key="order_id"):
        order_id: str
        address: Address

    event = Moved(order_id="1", address=Address(street="Long Road"))

    assert decode(Moved, to_json(event), None) == event


# ── topics ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("topic", ["orders", "Orders.placed", "a_b-c", "x" * 249])
def test_a_topic_that_kafka_takes_is_taken(topic: str) -> None:
    check_topic(topic, where="here")


@pytest.mark.parametrize("topic", ["", ".", "..", "x" * 250, "a b", "größe", "a.b_c", "__offsets", "a/b", "a\n"])
def test_a_topic_that_kafka_would_refuse_is_refused(topic: str) -> None:
    with pytest.raises(DefinitionError, match="is no topic name"):
        check_topic(topic, where="here")


def test_a_default_of_the_users_is_left_alone() -> None:
    class Described(Event):
        shape: dict[str, Any] = {"type": "list"}  # noqa: RUF012 - pydantic copies it

    assert decode(Described, b"{}", None) == Described(shape={"type": "list"})
