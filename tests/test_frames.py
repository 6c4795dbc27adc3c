"""Whose line it was: libraries, the standard library and microflow itself are not the user's."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from microflow import Event, frames
from microflow.frames import is_users_fault, place_raised, user_frames


def test_an_error_in_the_standard_library_is_told_where_the_user_called_it() -> None:
    with pytest.raises(ValueError, match="Expecting") as raised:
        json.loads("{")

    place = place_raised(raised.value)

    assert place is not None
    assert place.startswith(f"{__file__}:")
    assert {frame.filename for frame in user_frames(raised.value)} == {__file__}


def test_our_own_frames_are_left_out() -> None:
    with pytest.raises(Exception, match="validation error") as raised:
        Event.model_validate([])

    assert all(not frame.filename.startswith(frames.OURS) for frame in user_frames(raised.value))


def test_an_error_that_never_passed_a_users_file_is_not_theirs() -> None:
    error = KeyError("position")

    assert not is_users_fault(error)
    assert place_raised(error) is None


def test_a_syntax_error_is_where_the_file_says() -> None:
    with pytest.raises(SyntaxError) as raised:
        compile("def f(:", "shop.py", "exec")

    assert place_raised(raised.value) == "shop.py:1"


def test_a_folder_that_only_begins_like_ours_is_the_users() -> None:
    path = f"{Path(frames.__file__).parent}_shop/payments.py"

    with pytest.raises(ZeroDivisionError) as raised:
        exec(compile("1 / 0", path, "exec"))

    assert place_raised(raised.value) == f"{path}:1"


def test_a_frame_that_only_frameworks_passed_is_no_place() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        exec(compile("1 / 0", "uvloop/loop.pyx", "exec"))
    error = raised.value.with_traceback(raised.tb.tb_next)

    assert not is_users_fault(error)
    assert place_raised(error) is None


def test_a_frame_of_the_standard_library_alone_is_no_place() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        exec(compile("1 / 0", contextlib.__file__, "exec"))

    assert user_frames(raised.value.with_traceback(raised.tb.tb_next)) == []


def test_a_group_is_where_its_first_error_was() -> None:
    with pytest.raises(ValueError, match="Expecting") as raised:
        json.loads("{")
    group = ExceptionGroup("two", [ExceptionGroup("one", [raised.value]), KeyError("a")])

    assert place_raised(group) == place_raised(raised.value)
