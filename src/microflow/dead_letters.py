"""Failures: whether there is another attempt, and what is kept of an event that no attempt will help."""

from __future__ import annotations

import traceback
from datetime import datetime

from microflow import frames
from microflow.causes import said_by
from microflow.deliveries import Execution, Failed
from microflow.errors import ContractError, DecodeError, Reject
from microflow.ports import DeadLetter
from microflow.retries import RetryPolicy, choose

LONGEST_TEXT = 4096


def judge(
    execution: Execution, error: BaseException, *, service_retry: RetryPolicy | None, now: datetime, chance: float
) -> Failed:
    """What becomes of an execution that failed: a next attempt, or a dead letter and why."""
    retry = choose(error, execution.handler.retry if execution.handler else None, service_retry)
    delay = retry.delay_after(execution.attempt, chance=chance)
    if delay is not None:
        return Failed(error, at=now, due=now + delay)
    return Failed(error, at=now, due=None, reason=_reason(error))


def attempts_of(execution: Execution, error: BaseException | None, service_retry: RetryPolicy | None) -> int:
    """How many attempts an execution has in all, as far as its last error says."""
    own = execution.handler.retry if execution.handler else None
    return choose(error or Exception(), own, service_retry).attempts


def dead_letter_of(execution: Execution, failed: Failed) -> DeadLetter:
    """The dead letter of an execution, with all bytes of its record."""
    parked = execution.parked
    return DeadLetter(
        claim=execution.claim_key,
        record=execution.delivery.record,
        reason=failed.reason,
        error=describe(failed.error),
        trace=user_frames(failed.error),
        attempts=execution.attempt,
        first_failed_at=(parked.first_failed_at if parked else None) or failed.at,
        failed_at=failed.at,
        order=execution.order,
        content=execution.delivery.envelope.content,
    )


def describe(error: BaseException) -> str:
    """An error's class and text, its cause in the first line; at most 4 KiB, cut in the middle."""
    return _storable(said_by(error))


def user_frames(error: BaseException) -> str:
    """Where an error passed through the user's code, the innermost last; at most 4 KiB, cut in the middle."""
    return _storable("".join(traceback.format_list(frames.user_frames(error))).rstrip())


def _storable(text: str) -> str:
    """A text that every database takes: no half characters, no zero bytes, and not longer than anybody reads."""
    if len(text) > LONGEST_TEXT:
        half = LONGEST_TEXT // 2
        text = f"{text[:half]}\n  …\n{text[-half:]}"
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")


def _reason(error: BaseException) -> str:
    match error:
        case DecodeError():
            return "decode"
        case ContractError():
            return "contract"
        case Reject():
            return "rejected"
        case _:
            return "exhausted"
