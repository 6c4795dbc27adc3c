"""How often, and how long apart, a failed event is tried again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

from microflow.errors import ContractError, DefinitionError, Reject

NO_TIME = timedelta(0)


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

    def __post_init__(self) -> None:
        wrong = None
        if self.attempts < 1:
            wrong = f"attempts={self.attempts}: the first attempt counts, so it is at least 1"
        elif self.first_delay < NO_TIME or self.max_delay < NO_TIME:
            wrong = "a delay cannot be negative"
        elif self.backoff < 1:
            wrong = f"backoff={self.backoff}: below 1 the delays would shrink"
        elif not 0 <= self.jitter <= 1:
            wrong = f"jitter={self.jitter}: it is a share of the delay, between 0 and 1"
        if wrong is not None:
            raise DefinitionError(
                f"Retry({wrong})", fix="for example Retry(attempts=5, first_delay=timedelta(seconds=1))"
            )

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


RetryPolicy: TypeAlias = Retry | Mapping[type[Exception], Retry]
"""One `Retry` for every failure, or one for each class of exception; the nearest base class counts."""

Order: TypeAlias = Literal["key", "handler", "none"]
"""What waits while an event is parked: everything of its topic and key, only its own handler, or nothing."""

HOPELESS = (Reject, ContractError)


def choose(error: BaseException, *policies: RetryPolicy | None) -> Retry:
    """The `Retry` that applies to an error: of the first policy that knows its class, else the default one."""
    if isinstance(error, HOPELESS):
        return Retry.never()
    for policy in policies:
        if isinstance(policy, Retry):
            return policy
        for base in type(error).__mro__ if policy else ():
            if policy is not None and (retry := policy.get(base)) is not None:
                return retry
    return Retry()
