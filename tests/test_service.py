"""A service: what its author wrote, collected and checked when it is built."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest

from microflow.errors import DefinitionError
from microflow.retries import Retry
from microflow.service import Definition, Service, build, topic_of
from tests.user_code import IMPORTS, place_of, user_module

HANDLER = """
@on("OrderAccepted")
async def take_payment(order: OrderAccepted) -> PaymentReceived | None: ...
"""


def built(folder: Path, source: str, *, name: str = "payments") -> Definition:
    module = user_module(folder, source, name=name)
    return build(getattr(module, "service", None) or Service.of_module(module))


def misuse(folder: Path, source: str, *, name: str = "payments") -> DefinitionError:
    with pytest.raises(DefinitionError) as raised:
        built(folder, source, name=name)
    return raised.value


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - before:
        module = sys.modules[name]
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_service_may_stand_above_its_handlers(tmp_path: Path) -> None:
    definition = built(tmp_path, 'service = Service("shop")\n' + HANDLER)

    assert definition.name == "shop"
    assert [handler.name for handler in definition.handlers] == ["take_payment"]


def test_a_module_without_a_service_is_one_named_after_it(tmp_path: Path) -> None:
    assert built(tmp_path, HANDLER).name == "payments"
    assert built(tmp_path, HANDLER, name="shop.sub.payments").name == "payments"


def test_building_twice_gives_the_same(tmp_path: Path) -> None:
    service = Service.of_module(user_module(tmp_path, HANDLER))

    assert build(service) == build(service)


def test_topics_say_what_is_read_and_emitted_where(tmp_path: Path) -> None:
    module = user_module(
        tmp_path,
        """
        class Paid(Event, topic="payments"): ...
        class Unpaid(Paid): ...
        class Elsewhere(Event): ...
        @on("OrderAccepted", topic="orders")
        @on("OrderCancelled", topic="orders")
        async def one(order: OrderAccepted) -> Paid | Unpaid: ...
        @on("Recorded")
        async def other(order: OrderAccepted) -> Elsewhere | None: ...
        """,
    )

    definition = build(Service.of_module(module), topics={"Recorded": "from-schemas", "Elsewhere": "else", "Paid": "x"})

    assert definition.topics == {
        "orders": frozenset({"OrderAccepted", "OrderCancelled"}),
        "from-schemas": frozenset({"Recorded"}),
    }
    assert {event.__name__: topic for event, topic in definition.emitted.items()} == {
        "Paid": "payments",
        "Unpaid": "payments",
        "Elsewhere": "else",
    }
    assert topic_of(module.Elsewhere, {}) == "Elsewhere"


def test_handlers_of_further_modules_are_collected_by_module_and_by_name(importable: Path) -> None:
    (importable / "more_handlers.py").write_text(IMPORTS + HANDLER)
    (importable / "others.py").write_text(IMPORTS + HANDLER.replace("take_payment", "handle_x"))

    definition = built(importable, 'import others\nservice = Service("shop", modules=["more_handlers", others])')

    assert {handler.name for handler in definition.handlers} == {"take_payment", "handle_x"}


def test_an_imported_handler_belongs_to_the_module_that_marked_it(importable: Path) -> None:
    (importable / "more_handlers.py").write_text(IMPORTS + HANDLER)

    definition = built(
        importable,
        """
        from more_handlers import take_payment
        @on("X")
        async def handle_x(order: OrderAccepted) -> None: ...
        """,
    )

    assert [handler.name for handler in definition.handlers] == ["handle_x"]


def test_a_handler_made_by_a_function_of_a_library_belongs_to_the_module_that_marked_it(importable: Path) -> None:
    (importable / "library.py").write_text(
        IMPORTS + "def make():\n    async def handle(order: OrderAccepted) -> None: ...\n    return handle\n"
    )

    definition = built(importable, 'from library import make\nhandle = on("X")(make())')

    assert [handler.name for handler in definition.handlers] == ["handle"]


def test_a_class_of_the_same_name_in_two_modules_is_two_handlers_of_one_name(importable: Path) -> None:
    (importable / "more_handlers.py").write_text(IMPORTS + HANDLER)

    error = misuse(importable, 'service = Service("shop", modules=["more_handlers"])' + HANDLER)

    assert error.what.startswith("Two handlers are called take_payment: here and at ")


def test_everything_that_was_given_is_kept(tmp_path: Path) -> None:
    (tmp_path / "payments.sql").write_text("create table payments (id text)")

    definition = built(
        tmp_path,
        """
        @asynccontextmanager
        async def cards():
            yield {}
        async def timed(call_next, event, context):
            return await call_next(event, context)
        service = Service("payments", tables="payments.sql", lifespan=cards, middleware=[timed],
                          retry={TimeoutError: Retry.never()}, start="latest")
        """
        + HANDLER.replace("\n", "\n        "),
    )

    assert definition.tables == tmp_path / "payments.sql"
    assert definition.lifespan is not None
    assert [each.__name__ for each in definition.middleware] == ["timed"]
    assert definition.retry == {TimeoutError: Retry.never()}
    assert definition.start == "latest"
    assert definition.where == place_of(tmp_path, 'Service("payments"')


def test_an_instant_is_a_start() -> None:
    instant = datetime(2026, 1, 1, tzinfo=UTC)
    service = Service("tests", start=instant)
    service.namespace = {}

    assert service.start == instant
    with pytest.raises(DefinitionError, match="has no handlers"):
        build(service)


# ── misuse ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["app", "main", "__main__", "shop.app"])
def test_a_module_whose_name_says_nothing_must_say_one(tmp_path: Path, name: str) -> None:
    error = misuse(tmp_path, HANDLER, name=name)

    assert error.what.startswith("This service has no name: a module called ")
    assert error.fix == 'service = Service("payments")'


@pytest.mark.parametrize("name", ["Payments", "pay ments", "", "1st", "x" * 49, "größe", 5])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: object) -> None:
    error = misuse(tmp_path, f"service = Service({name!r})  # here" + HANDLER)

    assert error.what.endswith("is no name for a service.")
    assert error.where == place_of(tmp_path, "# here")


@pytest.mark.parametrize(
    ("arguments", "what", "fix"),
    [
        ('table="x.sql"', "Service has an unknown keyword: table.", "Did you mean tables?"),
        ("zzz=1", "Service has an unknown keyword: zzz.", 'service = Service("payments"'),
        ('modules="handlers"', "modules='handlers' is one thing, and a list is expected.", 'modules=["handlers"]'),
        ("modules=[5]", "modules holds 5, which is no module.", 'modules=["shop.handlers"]'),
        ('tables="payment.sql"', "tables='payment.sql': there is no such file or folder.", "Did you mean payments.sql"),
        ('tables="nowhere"', "tables='nowhere': there is no such file or folder.", "Create it, or leave tables= out"),
        ('tables="empty"', "tables='empty': the folder has no .sql files.", "touch "),
        ("tables=5", "tables=5 is no path.", 'tables="payments.sql"'),
        ("lifespan=good()", "lifespan=", "lifespan=cards, not lifespan=cards()"),
        ("lifespan=5", "lifespan=5 cannot be called.", "lifespan=cards, where cards is an @asynccontextmanager"),
        ("lifespan=bare", "lifespan=bare is no context manager yet.", "@asynccontextmanager\n  async def bare()"),
        ("lifespan=blocking", "lifespan=blocking is not asynchronous.", "@asynccontextmanager\n  async def blocking()"),
        ("lifespan=greedy", "lifespan=greedy takes parameters, and is called without.", "async def greedy(): ..."),
        ("middleware=short", "middleware=<function short at ", "middleware=[timed]"),
        ("middleware=[short]", "middleware holds short, which cannot be called with", "async def timed("),
        ("middleware=[5]", "middleware holds 5, which cannot be called with", "async def timed("),
        ("retry=5", "retry=5 is no retry policy.", "For example: Retry(attempts=5"),
        ("retry=Retry", "retry=<class 'microflow.retries.Retry'> is no retry policy. A class", "For example: Retry("),
        ("retry={int: Retry()}", "retry maps int to Retry(", "retry={TimeoutError"),
        ('start="first"', "start='first' is no place to start from.", 'start="earliest"'),
        ("start=datetime(2026, 1, 1)", "start=datetime.datetime(2026, 1, 1, 0, 0) is no place", 'start="earliest"'),
    ],
)
def test_what_makes_no_sense_is_told_at_the_services_line(tmp_path: Path, arguments: str, what: str, fix: str) -> None:
    (tmp_path / "payments.sql").touch()
    (tmp_path / "empty").mkdir()

    error = misuse(
        tmp_path,
        f"""
        from datetime import datetime
        @asynccontextmanager
        async def good():
            yield {{}}
        async def bare():
            yield {{}}
        @contextmanager
        def blocking():
            yield {{}}
        @asynccontextmanager
        async def greedy(url):
            yield {{}}
        async def short(event, context): ...
        service = Service("payments", {arguments})  # here
        """
        + HANDLER.replace("\n", "\n        "),
    )

    assert error.what.startswith(what)
    assert error.fix is not None
    assert error.fix.startswith(fix)
    assert error.where == place_of(tmp_path, "# here")


def test_a_service_without_handlers_is_refused(tmp_path: Path) -> None:
    error = misuse(tmp_path, 'service = Service("payments")  # here')

    assert error.what == "The service payments has no handlers."
    assert error.why == "None of its modules (payments) has a function marked with @on."
    assert error.where == place_of(tmp_path, "# here")


def test_a_module_that_is_not_there_is_told_with_a_suggestion(importable: Path) -> None:
    (importable / "handlers.py").write_text("")

    error = misuse(importable, 'service = Service("payments", modules=["handler"])  # here')

    assert error.what == "modules names 'handler', and there is no such module."
    assert error.fix == "Did you mean 'handlers'?"
    assert error.where == place_of(importable, "# here")
    assert "There is no nowhere" in str(misuse(importable, 'service = Service("p", modules=["nowhere.handlers"])'))


@pytest.mark.parametrize(
    ("source", "told", "line"),
    [
        ("x = 1\nx.y\n", "AttributeError: 'int' object has no attribute 'y'", 2),
        ("x = 1\nimport nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all'", 2),
        ("x = 1\n\ndef f(:\n", "SyntaxError: invalid syntax", 3),
        ("raise RuntimeError('early')\n", "RuntimeError: early", 1),
    ],
)
def test_a_module_that_fails_is_told_at_the_line_that_fails(
    importable: Path, source: str, told: str, line: int
) -> None:
    (importable / "broken.py").write_text(source)

    error = misuse(importable, 'service = Service("payments", modules=["broken"])  # here')

    assert error.what.startswith(f"The module broken cannot be imported: {told}")
    assert error.where == f"{importable / 'broken.py'}:{line}"
    assert error.why == f"It is named in modules= at {place_of(importable, '# here')}."


def test_a_misuse_in_a_further_module_is_told_as_itself(importable: Path) -> None:
    (importable / "broken.py").write_text(IMPORTS + '@on("X", nam="x")\nasync def f(order: OrderAccepted) -> None: ...')

    error = misuse(importable, 'service = Service("payments", modules=["broken"])')

    assert error.what == "@on has an unknown keyword: nam."


def test_a_service_is_built_from_the_module_that_was_given_not_from_one_imported_again(tmp_path: Path) -> None:
    module = user_module(tmp_path, 'service = Service("payments")' + HANDLER)

    assert "payments" not in sys.modules
    (handler,) = build(module.service).handlers
    assert handler.function is module.take_payment
    assert isinstance(module, ModuleType)
