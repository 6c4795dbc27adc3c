"""Retries: how often, how long apart, and what makes no sense."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microflow.errors import ContractError, DecodeError, DefinitionError, Reject
from microflow.retries import Retry, RetryPolicy, check_policy, choose

SECOND = timedelta(seconds=1)
IN_THE_MIDDLE = 0.5  # a chance that leaves the delay where it is


def test_the_first_attempt_counts() -> None:
    assert Retry.never().delay_after(1, chance=0) is None
    assert Retry(attempts=3).delay_after(2, chance=0) is not None
    assert Retry(attempts=3).delay_after(3, chance=0) is None


def test_the_default_is_the_one_that_is_documented() -> None:
    assert Retry() == Retry(attempts=5, first_delay=SECOND, backoff=2, max_delay=timedelta(minutes=5), jitter=0.2)


def test_delays_grow_up_to_the_largest() -> None:
    retry = Retry(attempts=100, max_delay=timedelta(seconds=30))

    delays = [retry.delay_after(attempt, chance=IN_THE_MIDDLE) for attempt in (1, 2, 3, 5, 6, 99)]

    assert [delay.total_seconds() for delay in delays if delay is not None] == [1, 2, 4, 16, 30, 30]


@given(
    attempts=st.integers(2, 10**9),
    attempt=st.integers(1, 10**9),
    first=st.timedeltas(timedelta(0), timedelta(days=366)),
    largest=st.timedeltas(timedelta(0), timedelta(days=366)),
    backoff=st.floats(1, 1000),
    jitter=st.floats(0, 1),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_a_delay_is_never_negative_and_never_beyond_the_largest_and_its_jitter(
    attempts: int, attempt: int, first: timedelta, largest: timedelta, backoff: float, jitter: float, chance: float
) -> None:
    retry = Retry(attempts=attempts, first_delay=first, max_delay=largest, backoff=backoff, jitter=jitter)

    delay = retry.delay_after(attempt, chance=chance)

    assert (delay is None) == (attempt >= attempts)
    if delay is not None:
        assert timedelta(0) <= delay <= largest * (1 + jitter) + timedelta(microseconds=1)


def test_a_policy_is_a_value() -> None:
    retry = Retry(attempts=2)

    assert dataclasses.replace(retry, attempts=3) == Retry(attempts=3)
    assert pickle.loads(pickle.dumps(retry)) == copy.deepcopy(retry) == retry
    assert len({retry, Retry(attempts=2)}) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"attempts": 0}, "attempts=0: the first attempt counts"),
        ({"attempts": "5"}, "attempts='5': it is a whole number"),
        ({"attempts": 2.5}, "attempts=2.5: it is a whole number"),
        ({"first_delay": 1}, "a delay is a span of time: timedelta(seconds=1)"),
        ({"max_delay": -SECOND}, "a delay cannot be negative"),
        ({"max_delay": timedelta.max}, "a delay is at most a year"),
        ({"backoff": 0.5}, "backoff=0.5: it is a factor from 1 to 1000"),
        ({"backoff": float("nan")}, "backoff=nan: it is a factor from 1 to 1000"),
        ({"jitter": 2}, "jitter=2: it is a share of the delay"),
        ({"jitter": float("nan")}, "jitter=nan: it is a share of the delay"),
        ({"attemps": 3}, "unknown keyword attemps"),
    ],
)
def test_numbers_that_make_no_sense_are_told_at_their_line(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError) as raised:
        Retry(**arguments)
    assert raised.value.what.startswith(f"Retry({told}")
    assert raised.value.where == f"{__file__}:{sys._getframe().f_lineno - 2}"


def test_a_misspelt_keyword_is_answered_with_the_right_one() -> None:
    with pytest.raises(DefinitionError) as raised:
        Retry(attemps=3)  # type: ignore[call-arg] # mypy sees it too
    assert raised.value.fix == "Did you mean attempts?"
    with pytest.raises(DefinitionError, match="its arguments are given by name"):
        Retry(3)  # type: ignore[call-arg] # mypy sees it too


def test_the_nearest_class_of_the_first_policy_that_knows_it_counts() -> None:
    handler: RetryPolicy = {OSError: Retry(attempts=2), ConnectionError: Retry(attempts=3)}
    service: RetryPolicy = {Exception: Retry(attempts=4)}

    assert choose(ConnectionResetError(), handler, service) == Retry(attempts=3)
    assert choose(TimeoutError(), handler, service) == Retry(attempts=2)
    assert choose(ValueError(), handler, service) == Retry(attempts=4)
    assert choose(ValueError(), handler, None) == Retry()
    assert choose(ValueError(), Retry(attempts=7), service) == Retry(attempts=7)
    assert choose(ValueError(), None, {}, service) == Retry(attempts=4)


@pytest.mark.parametrize("error", [Reject("no"), ContractError("no"), DecodeError("no")])
def test_what_no_retry_can_help_is_never_retried(error: Exception) -> None:
    assert choose(error, Retry(attempts=9), {Exception: Retry(attempts=9)}) == Retry.never()


def test_what_is_no_policy_is_refused() -> None:
    assert check_policy(None, where="here") is None
    assert check_policy(Retry(), where="here") == Retry()
    with pytest.raises(DefinitionError, match="call it"):
        check_policy(Retry.never, where="here")
