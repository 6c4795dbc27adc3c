"""How often, and how long apart, a failed event is tried again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Self, TypeAlias

from microflow.errors import ContractError, DefinitionError, Reject, nearest
from microflow.places import calling_place

NO_TIME = timedelta(0)
A_YEAR = timedelta(days=366)
EXAMPLE = "For example: Retry(attempts=5, first_delay=timedelta(seconds=1))"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Attempts (the first one included) with exponentially growing delays in between.

    The delay after attempt n is `first_delay * backoff ** (n - 1)`, at most `max_delay`, then moved by up to
    ±`jitter` of itself so that what failed together does not come back together. A retry is a row in the service's
    database: it survives restarts, and while it waits only its own key waits.

    Raises DefinitionError for numbers that make no sense.
    """

    attempts: int = 5
    first_delay: timedelta = timedelta(seconds=1)
    backoff: float = 2.0
    max_delay: timedelta = timedelta(minutes=5)
    jitter: float = 0.2

    def __new__(cls, *args: object, **keywords: object) -> Self:
        misspelt = [word for word in keywords if word not in cls.__dataclass_fields__]
        if args or misspelt:
            near = nearest(misspelt[0], cls.__dataclass_fields__) if misspelt else "attempts"
            raise _wrong(
                f"unknown keyword {misspelt[0]}" if misspelt else f"{args[0]!r}: its arguments are given by name",
                fix=f"Did you mean {near}?" if near else EXAMPLE,
            )
        return object.__new__(cls)

    def __post_init__(self) -> None:
        wrong = _what_is_wrong(self)
        if wrong is not None:
            raise _wrong(wrong, fix=EXAMPLE)

    @classmethod
    def never(cls) -> Retry:
        """One attempt; a failure is a dead letter."""
        return cls(attempts=1)

    def delay_after(self, attempt: int, *, chance: float) -> timedelta | None:
        """The wait after attempt number `attempt` (from 1) failed, or None when there is no further one.

        `chance` is a random number in [0, 1), handed in.
        """
        if attempt >= self.attempts:
            return None
        # The exponent is capped because 2.0 ** 1024 is an OverflowError, and no max_delay is that far away.
        delay = min(
            self.first_delay.total_seconds() * self.backoff ** min(attempt - 1, 64), self.max_delay.total_seconds()
        )
        return timedelta(seconds=delay * (1 + self.jitter * (2 * chance - 1)))


def _what_is_wrong(retry: Any) -> str | None:
    wrong = None
    if type(retry.attempts) is not int:
        wrong = f"attempts={retry.attempts!r}: it is a whole number"
    elif retry.attempts < 1:
        wrong = f"attempts={retry.attempts}: the first attempt counts, so it is at least 1"
    elif not (isinstance(retry.first_delay, timedelta) and isinstance(retry.max_delay, timedelta)):
        wrong = "a delay is a span of time: timedelta(seconds=1)"
    elif retry.first_delay < NO_TIME or retry.max_delay < NO_TIME:
        wrong = "a delay cannot be negative"
    elif max(retry.first_delay, retry.max_delay) > A_YEAR:
        wrong = "a delay is at most a year"
    elif not (isinstance(retry.backoff, int | float) and 1 <= retry.backoff <= 1000):
        wrong = f"backoff={retry.backoff!r}: it is a factor from 1 to 1000; below 1 the delays would shrink"
    elif not (isinstance(retry.jitter, int | float) and 0 <= retry.jitter <= 1):
        wrong = f"jitter={retry.jitter!r}: it is a share of the delay, between 0 and 1"
    return wrong


def _wrong(what: str, *, fix: str) -> DefinitionError:
    return DefinitionError(f"Retry({what})", where=calling_place(), fix=fix)


RetryPolicy: TypeAlias = Retry | Mapping[type[Exception], Retry]
"""One `Retry` for every failure, or one for each class of exception; the nearest base class counts."""

Order: TypeAlias = Literal["key", "handler", "none"]
"""What waits while an event is parked: everything of its topic and key, only its own handler, or nothing."""


def check_policy(policy: Any, *, where: str) -> RetryPolicy | None:
    """A retry policy as it was given, or None. Raises DefinitionError for anything else."""
    if policy is None or isinstance(policy, Retry):
        return policy
    if not isinstance(policy, Mapping):
        called = " A class or function stands there: call it." if callable(policy) else ""
        raise DefinitionError(f"retry={policy!r} is no retry policy.{called}", where=where, fix=EXAMPLE)
    for error, retry in policy.items():
        if not (isinstance(error, type) and issubclass(error, Exception) and isinstance(retry, Retry)):
            named = error.__name__ if isinstance(error, type) else repr(error)
            raise DefinitionError(
                f"retry maps {named} to {retry!r}.",
                where=where,
                why="It maps classes of exceptions to Retry(…) or Retry.never().",
                fix="retry={TimeoutError: Retry(attempts=10), ValueError: Retry.never()}",
            )
    return policy


HOPELESS = (Reject, ContractError)
DEFAULT = Retry()
NEVER = Retry.never()


def choose(error: BaseException, *policies: RetryPolicy | None) -> Retry:
    """The `Retry` that applies to an error: of the first policy that knows its class, else the default one."""
    if isinstance(error, HOPELESS):
        return NEVER
    for policy in policies:
        if isinstance(policy, Retry):
            return policy
        for base in type(error).__mro__ if policy else ():
            if policy is not None and (retry := policy.get(base)) is not None:
                return retry
    return DEFAULT
