"""What an error says, cause first: of a group its first error, of a validation its first field."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic_core import ValidationError

from microflow.errors import MicroflowError

MOST_FIELDS = 5


def said_by(error: BaseException) -> str:
    """An error's class and text, with its cause in the first line. Never raises."""
    first, *others = leaves(error)
    try:
        text = _text(first)
    except Exception as failure:
        text = f"(its text cannot be had: {type(failure).__name__})"
    said = f"{type(first).__name__}: {text}" if text else type(first).__name__
    if first is error:
        return said
    line, separator, rest = said.partition("\n")
    count = f"the first of {len(others) + 1} errors" if others else "the only error"
    return f"{line} ({count} in {type(error).__name__}){separator}{rest}"


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group and in the groups within it; an error that is no group is itself all there is."""
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseExceptionGroup):
            waiting += reversed(each.exceptions)
        else:
            yield each


def _text(error: BaseException) -> str:
    if isinstance(error, MicroflowError):
        # Where it is comes last: a path is long, and lines are cut.
        parts = [error.what, error.why, error.fix, error.where and f"at {error.where}"]
        return "\n  ".join(part for part in parts if part)
    if isinstance(error, ValidationError):
        return _invalid(error)
    return str(error)


def _invalid(error: ValidationError) -> str:
    fields = error.errors(include_url=False, include_context=False)
    said = [": ".join(filter(None, [".".join(map(str, each["loc"])), each["msg"]])) for each in fields[:MOST_FIELDS]]
    more = f" (and {len(fields) - MOST_FIELDS} more)" if len(fields) > MOST_FIELDS else ""
    return f"{error.title}: {'; '.join(said)}{more}"
