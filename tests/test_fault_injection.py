"""Fault injection: a process is killed where and when it was told, and a specification that makes no sense is told."""

from __future__ import annotations

import os
import signal

import pytest

from microflow.errors import SettingsError
from microflow.fault_injection import read_fault
from microflow.faults import pass_by


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What would have been sent. That a real process dies of it is shown in `tests/crash`."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    return sent


def test_without_a_specification_nothing_happens() -> None:
    assert read_fault("") is pass_by


def test_the_process_is_killed_when_a_point_is_reached_for_the_nth_time(signals: list[tuple[int, int]]) -> None:
    reach = read_fault("after commit:3")

    reach("after commit")
    reach("after commit")
    reach("before commit")
    assert signals == []
    reach("after commit")
    assert signals == [(os.getpid(), signal.SIGKILL)]
    reach("after commit")
    assert len(signals) == 1


def test_a_point_without_a_number_means_the_first_time(signals: list[tuple[int, int]]) -> None:
    read_fault("before publish")("before publish")

    assert signals == [(os.getpid(), signal.SIGKILL)]


def test_of_several_faults_each_counts_for_itself_and_one_may_stop_the_process(signals: list[tuple[int, int]]) -> None:
    reach = read_fault("before publish:2:stop, after commit:1")

    reach("before publish")
    reach("after commit")
    reach("before publish")

    assert signals == [(os.getpid(), signal.SIGKILL), (os.getpid(), signal.SIGSTOP)]


@pytest.mark.parametrize(
    "wrong",
    ["commit:3", "after commit:x", "after commit:0", "after commit:-1", "after commit:1:explode", "after commit,"],
)
def test_a_specification_that_makes_no_sense_is_told_with_what_would(wrong: str) -> None:
    with pytest.raises(SettingsError, match="is no fault") as told:
        read_fault(wrong)

    assert "after commit" in str(told.value.why)
    assert told.value.fix == 'MICROFLOW_FAULT="after commit:3"'
