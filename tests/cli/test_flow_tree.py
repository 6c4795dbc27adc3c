"""The live tree: each execution below the one that emitted its event."""

from __future__ import annotations

from typing import Any

from microflow.cli.flow_tree import MOST_FLOWS, FlowTree, short, span


def report(event: str, cause: str | None, **changes: Any) -> dict[str, Any]:
    """A line of a service, with the event's id as its type."""
    return {
        "at": "2026-01-01T12:00:00.250Z",
        "service": "shop",
        "handler": "handle",
        "outcome": "done",
        "type": event.upper(),
        "event": event,
        "flow": "o-1",
        "cause": cause,
        "attempt": 1,
        "attempts": 5,
        "took_ms": 12.4,
        "emitted": [],
        "error": None,
        "where": "shop.py:3",
        "retry_in_ms": None,
        **changes,
    }


def emits(*ids: str) -> list[dict[str, str]]:
    return [{"type": each.upper(), "id": each, "topic": each} for each in ids]


def texts(tree: FlowTree, *reports: dict[str, Any]) -> list[str]:
    """The lines without their time and flow."""
    return [line[14:].removeprefix(" ").split("  ", 1)[1].strip() for each in reports for line in tree.lines(each)]


def test_an_execution_stands_below_the_one_that_caused_it() -> None:
    lines = texts(
        FlowTree(),
        report("a", None, emitted=emits("b", "c")),
        report("b", "a", emitted=emits("d")),
        report("d", "b"),
        report("c", "a", handler="other"),
    )

    assert lines == [
        "● A",
        "├─ shop.handle  12 ms  → B + C",
        "│  ├─ shop.handle  12 ms  → D",
        "│  │  ├─ shop.handle  12 ms",
        "│  ├─ shop.other  12 ms",
    ]


def test_many_events_of_one_type_are_counted() -> None:
    line = texts(FlowTree(), report("a", None, emitted=[*emits("b"), *emits("c"), *emits("b")]))[1]

    assert line.endswith("→ 2 × B + C")


def test_a_failed_attempt_and_a_dead_letter_say_why() -> None:
    error = "TimeoutError: carrier\nmore"
    lines = texts(
        FlowTree(),
        report("a", None, outcome="retry", error=error, retry_in_ms=1500.0),
        report("a", None, outcome="dead", attempt=2, error=error),
        report("b", None, outcome="duplicate"),
        report("b", None, outcome="waiting"),
    )

    assert lines == [
        "● A",
        "├─ shop.handle  ✗ TimeoutError: carrier · try 1/5 · again in 1.5 s",
        "├─ shop.handle  ✗ TimeoutError: carrier · dead letter · shop.py:3",
        "● B",
    ]


def test_the_end_of_a_flow_is_counted() -> None:
    tree = FlowTree(ends={"C"})
    tree.lines(report("a", None, emitted=emits("b")))
    tree.lines(report("b", "a", outcome="retry", error="no", retry_in_ms=10.0))

    lines = texts(tree, report("b", "a", at="2026-01-01T12:00:01.250Z", attempt=2, emitted=emits("c")))

    assert lines == ["│  ├─ shop.handle  12 ms  → C  (try 2)", "✔ C in 1.0 s   3 events · 1 retry"]


def test_the_tree_forgets_the_oldest_flows() -> None:
    tree = FlowTree()
    for number in range(MOST_FLOWS + 50):
        tree.lines(report("a", None, flow=f"o-{number}"))

    assert len(tree._flows) == MOST_FLOWS


def test_ids_and_spans_are_short() -> None:
    assert short("order-0001") == "order-0001"
    assert short("01a1fc9a-c246-7bbb-9b73-9a83453a8687") == "453a8687"
    assert (span(0.2), span(999.0), span(1240.0)) == ("0 ms", "999 ms", "1.2 s")
