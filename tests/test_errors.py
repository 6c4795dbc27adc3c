"""The tree of errors: as drawn, and each says what, where, why and what to type."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from microflow import errors
from microflow.errors import DecodeError, DefinitionError, Fenced, MicroflowError, Reject, StoreUnavailable, nearest

CLASSES = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, MicroflowError)]


def test_the_tree_that_is_drawn_is_the_tree_that_is_there() -> None:
    drawing = (errors.__doc__ or "").splitlines()[2:]
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in drawing:
        depth = len(re.match(r"[│├└─ ]*", line)[0]) // 4  # type: ignore[index] # it matches the empty text too
        names = re.findall(r"[A-Z]\w+", line.split("  ")[0] if "·" not in line else line)
        names = names or re.findall(r"[├└]── ([A-Z]\w+)", line)
        for name in names:
            if depth:
                drawn[name] = path[depth - 1]
        path[depth:] = names[:1]

    there = {each.__name__: each.__mro__[1].__name__ for each in CLASSES if each is not MicroflowError}
    assert drawn == there


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_has_a_sentence_of_its_own(error: type[MicroflowError]) -> None:
    assert error.__doc__
    assert error.__doc__ != MicroflowError.__doc__ or error is MicroflowError


def test_in_a_log_an_error_is_one_line() -> None:
    error = StoreUnavailable("cannot execute INSERT", why="It only reads.", fix="Name the primary,\n  or:  reset it")

    assert error.line == "cannot execute INSERT. It only reads. Name the primary, or: reset it"
    assert StoreUnavailable("the disk is full").line == "the disk is full"


def test_an_error_says_what_where_why_and_what_to_type_in_this_order() -> None:
    error = DefinitionError("It is wrong.", where="app.py:3", why="Because.", fix="make it right")

    assert str(error) == "app.py:3  It is wrong.\n  Because.\n  make it right"
    assert str(DefinitionError("It is wrong.")) == "It is wrong."
    assert str(DefinitionError("It is wrong.", fix="so")) == "It is wrong.\n  so"


def test_errors_survive_a_pickle() -> None:
    full = DecodeError("It is wrong.", where="app.py:3", why="Because.", fix="make it right")
    for error in (full, Reject("hopeless"), Fenced([("orders", 1)]), StoreUnavailable("gone")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.__dict__ == error.__dict__


def test_a_rejection_keeps_its_reason() -> None:
    assert Reject("never sent").reason == str(Reject("never sent")) == "never sent"


def test_a_fence_names_its_partitions() -> None:
    assert str(Fenced([("b", 2), ("a", 1)])) == "another process owns a[1], b[2] now"


@pytest.mark.parametrize(
    ("word", "suggestion"), [("retries", "retry"), ("TOPIC", "topic"), ("nmae", "name"), ("zzz", None), ("", None)]
)
def test_a_misspelt_word_is_answered_with_the_nearest_one(word: str, suggestion: str | None) -> None:
    assert nearest(word, ("topic", "name", "retry", "deadline")) == suggestion
