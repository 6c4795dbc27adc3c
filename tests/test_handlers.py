"""`@on`: marks a function, registers nothing, and tells misuse where it is written."""

from __future__ import annotations

import importlib
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest

from microflow.errors import DefinitionError
from microflow.handlers import Handler, Trigger
from microflow.retries import Retry
from microflow.service import Service, build
from tests.user_code import IMPORTS, place_of, user_module


def handlers_of(folder: Path, source: str) -> dict[str, Handler]:
    definition = build(Service.of_module(user_module(folder, source)))
    return {handler.name: handler for handler in definition.handlers}


def misuse(folder: Path, source: str) -> DefinitionError:
    with pytest.raises(DefinitionError) as raised:
        handlers_of(folder, source)
    return raised.value


def test_the_function_is_returned_unchanged(tmp_path: Path) -> None:
    module = user_module(
        tmp_path,
        """
        def take_payment(order: OrderAccepted) -> PaymentReceived:
            return PaymentReceived(order_id=order.order_id)
        before = take_payment
        after = on("OrderAccepted")(take_payment)
        """,
    )

    assert module.after is module.before
    assert module.after(module.OrderAccepted(order_id="1")) == module.PaymentReceived(order_id="1")


def test_a_handler_knows_all_that_was_said(tmp_path: Path) -> None:
    handlers = handlers_of(
        tmp_path,
        """
        @on("OrderAccepted", topic="orders", name="pay", retry={TimeoutError: Retry.never()},
            deadline=timedelta(seconds=5), order="handler", halt=True)
        async def take_payment(order: OrderAccepted, context: Context, connection: Connection) -> PaymentReceived:
            ...
        """,
    )

    handler = handlers["pay"]
    assert handler.triggers == (Trigger("OrderAccepted", "orders"),)
    assert handler.retry == {TimeoutError: Retry.never()}
    assert (handler.deadline, handler.order, handler.halt) == (timedelta(seconds=5), "handler", True)
    assert [parameter.asks_for for parameter in handler.parameters] == ["event", "context", "connection"]
    assert handler.asks_for_connection
    assert handler.where == place_of(tmp_path, '@on("OrderAccepted", topic')


def test_without_options_the_functions_name_and_the_types_own_topic_count(tmp_path: Path) -> None:
    handlers = handlers_of(tmp_path, '@on("OrderAccepted")\nasync def take_payment(order: OrderAccepted) -> None: ...')

    handler = handlers["take_payment"]
    assert handler.triggers == (Trigger("OrderAccepted", "OrderAccepted"),)
    assert (handler.retry, handler.deadline, handler.order, handler.halt) == (None, None, "key", False)
    assert not handler.asks_for_connection


def test_a_class_is_the_short_form_of_its_type_and_topic(tmp_path: Path) -> None:
    handlers = handlers_of(
        tmp_path,
        """
        class Parcel(Event):
            order_id: str
        class Shipped(Parcel, type="shop.Shipped", topic="shipping"): ...
        @on(Shipped)
        async def one(event: Shipped) -> None: ...
        @on(Shipped)
        async def other(event: Parcel) -> None: ...
        """,
    )

    assert handlers["one"].triggers == handlers["other"].triggers == (Trigger("shop.Shipped", "shipping"),)


def test_the_annotation_is_the_readers_projection_whatever_it_is_called(tmp_path: Path) -> None:
    handlers = handlers_of(
        tmp_path,
        """
        class WhatIRead(Event):
            order_id: str
        @on("OrderAccepted")
        async def take_payment(order: WhatIRead) -> None: ...
        """,
    )

    assert handlers["take_payment"].event_class.__name__ == "WhatIRead"
    assert handlers["take_payment"].triggers == (Trigger("OrderAccepted", "OrderAccepted"),)


def test_several_marks_make_one_handler_of_several_events(tmp_path: Path) -> None:
    handlers = handlers_of(
        tmp_path,
        """
        @on("OrderAccepted", retry=Retry(attempts=2))
        @on("OrderChanged")
        @on("OrderChanged")
        async def take_payment(order: OrderAccepted) -> None: ...
        """,
    )

    handler = handlers["take_payment"]
    assert handler.triggers == (Trigger("OrderAccepted", "OrderAccepted"), Trigger("OrderChanged", "OrderChanged"))
    assert handler.retry == Retry(attempts=2)


def test_marks_that_disagree_are_refused(tmp_path: Path) -> None:
    error = misuse(
        tmp_path,
        """
        @on("OrderAccepted", order="none")
        @on("OrderChanged", order="key")
        async def take_payment(order: OrderAccepted) -> None: ...
        """,
    )

    assert error.what == "The @on over take_payment disagree on order: 'none' and 'key'."
    assert error.where == place_of(tmp_path, "OrderChanged")


def test_plain_functions_and_generators_are_handlers(tmp_path: Path) -> None:
    handlers = handlers_of(
        tmp_path,
        """
        @on("OrderAccepted")
        def plain(order: OrderAccepted) -> None: ...
        @on("OrderAccepted")
        def plain_generator(order: OrderAccepted) -> Iterator[PaymentReceived]:
            yield PaymentReceived(order_id=order.order_id)
        @on("OrderAccepted")
        async def coroutine(order: OrderAccepted) -> None: ...
        @on("OrderAccepted")
        async def generator(order: OrderAccepted) -> AsyncIterator[PaymentReceived]:
            yield PaymentReceived(order_id=order.order_id)
        """,
    )

    assert {name: handler.is_async for name, handler in handlers.items()} == {
        "plain": False,
        "plain_generator": False,
        "coroutine": True,
        "generator": True,
    }


@pytest.mark.parametrize("order", ["traced_inside", "traced_outside"])
def test_a_wrapped_function_is_told_as_itself(tmp_path: Path, order: str) -> None:
    marks = ['@on("OrderAccepted")', "@traced"]
    above, below = marks if order == "traced_inside" else reversed(marks)
    handlers = handlers_of(
        tmp_path,
        f"""
        def traced(function):
            @wraps(function)
            def wrapper(*args, **kwargs):
                return function(*args, **kwargs)
            return wrapper
        {above}
        {below}
        async def take_payment(order: OrderAccepted) -> PaymentReceived: ...
        """,
    )

    handler = handlers["take_payment"]
    assert handler.is_async
    assert handler.where == place_of(tmp_path, above)
    assert [parameter.name for parameter in handler.parameters] == ["order"]


def test_annotations_may_be_text_and_name_what_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "late.py"
    path.write_text(
        "from __future__ import annotations\n"
        + IMPORTS
        + """
@on("OrderAccepted")
async def take_payment(order: Projection, context: "Context") -> list[Later] | None: ...
class Projection(Event):
    order_id: str
class Later(Event):
    order_id: str
"""
    )
    spec = importlib.util.spec_from_file_location("late", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    (handler,) = build(Service.of_module(module)).handlers
    assert handler.event_class is module.Projection


# ── misuse ────────────────────────────────────────────────────────────────────────────────────────────────────────

BODY = "\nasync def take_payment(order: OrderAccepted) -> None: ...  # the function"


@pytest.mark.parametrize(
    ("mark", "what", "fix"),
    [
        ('@on("X", retries=Retry())', "@on has an unknown keyword: retries.", "Did you mean retry?"),
        ('@on("X", Topic="orders")', "@on has an unknown keyword: Topic.", "Did you mean topic?"),
        ('@on("X", zzz=1)', "@on has an unknown keyword: zzz.", '@on("OrderAccepted", name="take_payment")'),
        ("@on", "@on stands over take_payment without saying which event it handles.", "@on("),
        ("@on(5)", "@on(5) names no event.", '@on("OrderAccepted")'),
        ('@on("")', "@on('') names no event.", '@on("OrderAccepted")'),
        ("@on(Event)", "@on(Event) names no particular event.", '@on("OrderAccepted")'),
        ("@on(BaseModel)", "@on(BaseModel) names no event.", '@on("BaseModel")'),
        ('@on("X", topic="a b")', "'a b' is no topic name.", 'For example: topic="payments"'),
        ('@on("größe")', "'größe' is no topic name.", 'For example: topic="payments"'),
        ('@on("X", name="")', "name='' is no name for a handler.", 'name="take_payment"'),
        ('@on("X", name=5)', "name=5 is no name for a handler.", 'name="take_payment"'),
        ('@on("X", retry=5)', "retry=5 is no retry policy.", "For example: Retry(attempts=5"),
        ('@on("X", retry={5: Retry()})', "retry maps 5 to Retry(", "retry={TimeoutError"),
        ('@on("X", retry={TimeoutError: 5})', "retry maps TimeoutError to 5.", "retry={TimeoutError"),
        ('@on("X", retry={KeyboardInterrupt: Retry()})', "retry maps KeyboardInterrupt to Retry(", "retry={Timeout"),
        ('@on("X", deadline=5)', "deadline=5 is no span of time.", "deadline=timedelta(seconds=30)"),
        ('@on("X", deadline=timedelta(0))', "deadline=datetime.timedelta(0) is no span", "deadline=timedelta(sec"),
        ('@on("X", order="handlers")', "order='handlers' is none of key, handler, none.", 'order="handler"'),
    ],
)
def test_a_mark_that_makes_no_sense_is_told_at_its_line(tmp_path: Path, mark: str, what: str, fix: str) -> None:
    error = misuse(tmp_path, mark + "  # the mark" + BODY)

    assert error.what.startswith(what)
    assert error.fix is not None
    assert error.fix.startswith(fix)
    assert error.where == place_of(tmp_path, "# the mark")


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ('@on("X")  # here\nclass Handler: ...', "@on stands over the class Handler"),
        (
            'class Payments:\n    @on("X")  # here\n    async def take(self, order: OrderAccepted) -> None: ...',
            "@on stands over the method Payments.take",
        ),
        (
            'class Payments:\n    @on("X")  # here\n    @staticmethod\n'
            "    async def take(order: OrderAccepted) -> None: ...",
            "@on stands over staticmethod take",
        ),
        ('handler = on("X")(print)  # here', "@on stands over builtin_function_or_method print"),
    ],
)
def test_what_is_no_function_of_a_module_is_refused(tmp_path: Path, source: str, what: str) -> None:
    error = misuse(tmp_path, source)

    assert error.what == f"{what}, and a handler is a function of a module."
    assert error.where == place_of(tmp_path, "# here")


def test_two_handlers_of_one_name_in_a_module_are_told(tmp_path: Path) -> None:
    error = misuse(
        tmp_path,
        """
        @on("OrderAccepted")  # first
        async def handle(order: OrderAccepted) -> None: ...
        @on("OrderCancelled")  # second
        async def handle(order: OrderAccepted) -> None: ...
        """,
    )

    assert error.what == f"Two handlers are called handle: here and at {place_of(tmp_path, '# first')}."
    assert error.where == place_of(tmp_path, "# second")


def test_two_handlers_that_are_given_one_name_are_told(tmp_path: Path) -> None:
    error = misuse(
        tmp_path,
        """
        @on("OrderAccepted", name="handle")  # first
        async def one(order: OrderAccepted) -> None: ...
        @on("OrderCancelled", name="handle")  # second
        async def other(order: OrderAccepted) -> None: ...
        """,
    )

    assert error.what == f"Two handlers are called handle: here and at {place_of(tmp_path, '# first')}."
    assert error.where == place_of(tmp_path, "# second")
    assert error.fix == 'Rename one, or say @on("…", name="handle_again").'


def test_a_module_may_be_reloaded_after_it_was_edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "reloaded.py"
    path.write_text(IMPORTS + '@on("OrderAccepted")\nasync def handle(order: OrderAccepted) -> None: ...\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("reloaded")
    try:
        path.write_text(IMPORTS + '\n\n@on("OrderAccepted")\nasync def handle(order: OrderAccepted) -> None: ...\n')
        module = importlib.reload(module)

        (handler,) = build(Service.of_module(module)).handlers
        assert handler.where == f"{path}:{len(IMPORTS.splitlines()) + 3}"
    finally:
        del sys.modules["reloaded"]


@pytest.mark.parametrize(
    ("function", "what", "fix"),
    [
        (
            "async def f(order) -> None: ...",
            "The parameter 'order' of f has no annotation.",
            "order: OrderAccepted",
        ),
        ("async def f(order: OrderAccepted): ...", "f does not say what it emits.", "Annotate it: ->"),
        (
            "async def f(order: OrderAccepted) -> BaseModel: ...",
            "f declares that it emits BaseModel, which is no event.",
            "Make it one: class BaseModel(Event)",
        ),
        (
            "async def f(order: OrderAccepted) -> Event: ...",
            "f declares that it emits Event, which says nothing: name the events.",
            "For example: -> PaymentReceived",
        ),
        (
            "def f(order: OrderAccepted, connection: Connection) -> None: ...",
            "f is a plain def and asks for Connection.",
            "Write `async def f`",
        ),
        ("async def f() -> None: ...", "f has no parameter that is an event.", "def f(order: OrderAccepted"),
        (
            "async def f(context: Context) -> None: ...",
            "f has no parameter that is an event.",
            "def f(order: OrderAccepted",
        ),
        (
            "async def f(order: PlainOrder) -> None: ...",
            "f has no parameter that is an event.",
            "class PlainOrder(Event): …",
        ),
        (
            "async def f(order: Event) -> None: ...",
            "f has no parameter that is an event.",
            "def f(order: OrderAccepted",
        ),
        (
            "async def f(order: OrderAccepted | PaymentReceived) -> None: ...",
            "f has no parameter that is an event.",
            "class OrderChanged(Event): …",
        ),
        (
            "async def f(order: OrderAccepted, payment: PaymentReceived) -> None: ...",
            "f has 2 parameters that are events (order, payment), and needs exactly one.",
            "def f(order: …)",
        ),
        (
            "async def f(order: OrderAccepted, *rest: Any) -> None: ...",
            "f takes *rest: Any, and a handler's parameters are given by name.",
            "Name each parameter",
        ),
        (
            "async def f(order: OrderAccepted, /) -> None: ...",
            "f takes order: payments.OrderAccepted, and a handler's parameters are given by name.",
            "Name each parameter",
        ),
        (
            "def f(order: OrderAccepted) -> PaymentReceived: yield PaymentReceived(order_id='o')",
            "f yields, but declares PaymentReceived.",
            "-> Iterator[PaymentReceived], or return",
        ),
        (
            "async def f(order: OrderAccepted) -> list[PaymentReceived] | None: yield PaymentReceived(order_id='o')",
            "f yields, but declares list[PaymentReceived] | None.",
            "-> AsyncIterator[PaymentReceived], or return",
        ),
        (
            "def f(order: OrderAccepted) -> None: yield",
            "f yields, but declares None.",
            "-> Iterator[…], or return",
        ),
        (
            'async def f(order: "OrderAcepted") -> None: ...',
            "An annotation of f cannot be read: name 'OrderAcepted' is not defined.",
            "from … import OrderAcepted",
        ),
        (
            'async def f(order: "Order Accepted") -> None: ...',
            "An annotation of f cannot be read: ",
            "Write the annotation so that Python can evaluate it",
        ),
        (
            "async def f(order: WrongKey) -> None: ...",
            "WrongKey says key='order_di', but has no such field.",
            "Did you mean key='order_id'?",
        ),
        (
            "async def f(order: OrderAccepted) -> WrongTopic: ...",
            "'a b' is no topic name.",
            'For example: topic="payments"',
        ),
    ],
)
def test_a_signature_that_cannot_work_is_told(tmp_path: Path, function: str, what: str, fix: str) -> None:
    error = misuse(
        tmp_path,
        f"""
        class PlainOrder(BaseModel):
            order_id: str
        class WrongKey(Event, key="order_di"):  # wrong class
            order_id: str
        class WrongTopic(Event, topic="a b"):  # wrong class
            order_id: str
        @on("OrderAccepted")  # the mark
        {function}
        """,
    )

    assert error.what.startswith(what)
    assert error.fix is not None
    assert error.fix.startswith(fix)
    wrong_class = next((name for name in ("WrongKey", "WrongTopic") if name in function), None)
    assert error.where == place_of(tmp_path, f"class {wrong_class}" if wrong_class else "# the mark")


def test_a_class_in_the_mark_is_the_class_that_is_read(tmp_path: Path) -> None:
    error = misuse(
        tmp_path,
        """
        @on(PaymentReceived)  # the mark
        async def f(order: OrderAccepted) -> None: ...
        """,
    )

    assert error.what == "@on(PaymentReceived) stands over a handler of OrderAccepted."
    assert error.where == place_of(tmp_path, "# the mark")
    assert error.fix is not None
    assert error.fix.startswith('@on("PaymentReceived")')


def parameters_of(folder: Path, parameters: str) -> list[tuple[str, str, Any, bool]]:
    handlers = handlers_of(
        folder,
        f"""
        class Cards: ...
        class Clock(Protocol):
            def now(self) -> int: ...
        @on("OrderAccepted")
        async def f({parameters}) -> None: ...
        """,
    )
    return [(each.name, each.asks_for, each.key, each.optional) for each in handlers["f"].parameters]


def test_everything_else_is_asked_for_by_annotation(tmp_path: Path) -> None:
    asked = parameters_of(tmp_path, "cards: Cards, order: OrderAccepted, clock: Clock, limit: Annotated[int, 'limit']")

    assert [(name, asks_for) for name, asks_for, _, _ in asked] == [
        ("cards", "dependency"),
        ("order", "event"),
        ("clock", "dependency"),
        ("limit", "dependency"),
    ]
    assert asked[3][2] == Annotated[int, "limit"]


def test_metadata_does_not_hide_what_microflow_provides(tmp_path: Path) -> None:
    asked = parameters_of(
        tmp_path, "order: Annotated[OrderAccepted, 'x'], context: Annotated[Context, 'y'], c: Annotated[Connection, 1]"
    )

    assert [asks_for for _, asks_for, _, _ in asked] == ["event", "context", "connection"]


def test_a_parameter_with_a_default_is_left_alone_if_unknown(tmp_path: Path) -> None:
    asked = parameters_of(tmp_path, "order: OrderAccepted, cards: Cards | None = None, verbose=False, *, n: int = 3")

    assert [(name, optional) for name, _, _, optional in asked] == [("order", False), ("cards", True), ("n", True)]
    assert asked[1][2].__name__ == "Cards"


SESSIONS = """
        from sqlalchemy.ext.asyncio import AsyncSession
        from typing_extensions import TypeAliasType
        class Session(AsyncSession): ...
        Alias = TypeAliasType("Alias", Session)
"""


def test_a_session_of_sqlalchemy_is_asked_for_by_its_class_or_one_of_its_own(tmp_path: Path) -> None:
    handlers = handlers_of(
        tmp_path,
        f"""{SESSIONS}
        @on("OrderAccepted")
        async def f(order: OrderAccepted, session: AsyncSession, other: Session, alias: Alias) -> None: ...
        """,
    )

    assert [(each.name, each.asks_for, each.key.__name__) for each in handlers["f"].parameters[1:]] == [
        ("session", "session", "AsyncSession"),
        ("other", "session", "Session"),
        ("alias", "session", "Session"),
    ]
    assert handlers["f"].asks_for_connection


def test_a_session_with_a_name_is_asked_of_the_lifespan(tmp_path: Path) -> None:
    handlers = handlers_of(
        tmp_path,
        f"""{SESSIONS}
        @on("OrderAccepted")
        async def f(order: OrderAccepted, reports: Annotated[AsyncSession, "reports"]) -> None: ...
        """,
    )

    assert handlers["f"].parameters[1].asks_for == "dependency"
    assert not handlers["f"].asks_for_connection


def test_a_plain_def_may_not_ask_for_a_session(tmp_path: Path) -> None:
    error = misuse(
        tmp_path,
        f"""{SESSIONS}
        @on("OrderAccepted")  # the mark
        def f(order: OrderAccepted, session: AsyncSession) -> None: ...
        """,
    )

    assert error.what == "f is a plain def and asks for AsyncSession."
    assert error.where == place_of(tmp_path, "# the mark")


def test_a_session_without_the_extra_is_told_with_the_line_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy alone can be imported: what its asynchronous half needs is missing when the first session is used."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    error = misuse(
        tmp_path,
        f"""{SESSIONS}
        @on("OrderAccepted")
        async def f(order: OrderAccepted, session: AsyncSession) -> None: ...
        """,
    )

    assert error.what == "f asks for a session of SQLAlchemy, whose asynchronous half is not installed."
    assert error.fix == 'pip install "microworkflow[sqlalchemy]"'
