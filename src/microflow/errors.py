"""Everything that microflow raises, as one tree.

MicroflowError
├── DefinitionError          a service is written in a way that cannot work; told when it is built
├── TargetError              what the command was asked to run cannot be loaded
├── SettingsError            a setting cannot be read
├── ContractError            a handler emitted what it does not declare
│   └── DecodeError          a record does not hold the event that it names
├── Reject                   raised by a handler: this event is hopeless
├── HandlerTimeout           a handler ran past its deadline
├── Crashed                  an event ended the process that handled it
├── IdentityError            this database and this log do not belong together
├── Fenced                   another process owns the partition now
├── RegistryChanged          the service has other handlers now than this process knew of
├── StoreError               the database said no
│   ├── StoreUnavailable     … because it cannot be reached, or cannot write
│   │   ├── StoreUnreachable … because nobody answers at its address; somebody may, soon
│   │   └── StoreGone        … and will not be again: it was deleted
│   ├── StoreConflict        … because another transaction was in the way
│   ├── TransactionAborted   … because an earlier statement of the transaction failed
│   ├── SqlError             … because the statement is wrong
│   └── IntegrityViolation   … because a constraint forbids it
│       ├── UniqueViolation · ForeignKeyViolation · NotNullViolation · CheckViolation
└── TransportError           the log said no
    ├── LogUnreachable       … nothing: nobody answers at its address; somebody may, soon
    ├── LogRefused           … because we lack a permission, as a member of a group or altogether
    ├── LogGone              … and will not be there again: it was deleted
    ├── TopicRefused         … because this topic is missing, or closed to us; others may be well
    └── RecordTooLarge       … and will never take this record
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class MicroflowError(Exception):
    """What happened (`str(error)`), with where, why and what to type, where they are known.

    `where` is `file:line` in the user's code, `why` one sentence, `fix` something to type.
    """

    def __init__(self, what: str, *, where: str | None = None, why: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        parts = [f"{self.where}  {self.what}" if self.where else self.what, self.why, self.fix]
        return "\n  ".join(part for part in parts if part)

    @property
    def line(self) -> str:
        """The same in one line, for a log."""
        first = f"{self.where}  {self.what}" if self.where else self.what
        *others, last = [part for part in (first, self.why, self.fix) if part]
        sentences = [part if part[-1] in ".:?!" else f"{part}." for part in others]
        return " ".join(" ".join([*sentences, last]).split())


class DefinitionError(MicroflowError):
    """A service is written in a way that cannot work. Raised when it is built, before any event."""


class TargetError(MicroflowError):
    """What the command was asked to run cannot be loaded."""


class SettingsError(MicroflowError):
    """A setting cannot be read or makes no sense."""


class ContractError(MicroflowError):
    """A handler emitted something that it does not declare, or that the log will never take. Nothing was written."""


class DecodeError(ContractError):
    """A record does not hold the event that it names. A retry cannot help, so it becomes a dead letter at once."""


class Reject(MicroflowError):
    """Raise it from a handler to say that an event is hopeless: it becomes a dead letter without further attempts.

    When the business says no, return an event instead; `Reject` is for what should never have been sent.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class HandlerTimeout(MicroflowError):
    """A handler ran past its deadline and was cancelled; that is an attempt like any other."""


class Crashed(MicroflowError):
    """An event ended the process that handled it, or was alone in hand when it ended, so often that it is given up."""

    def __init__(self, times: int, *, where: str | None = None) -> None:
        super().__init__(
            f"The process ended {times} times while it handled this event and no other.",
            where=where,
            why="A crash in a C library or the end of the memory, most likely: Python had no time to say more.",
            fix="Handle it alone, under python -X faulthandler, and redrive it when that goes well.",
        )


class IdentityError(MicroflowError):
    """This database and this log do not belong together: starting would skip or repeat events."""


class Fenced(MicroflowError):
    """Another process owns these partitions now; nothing of the transaction was written."""

    def __init__(self, partitions: Iterable[tuple[str, int]]) -> None:
        self.partitions = frozenset(partitions)
        names = ", ".join(sorted(f"{topic}[{partition}]" for topic, partition in self.partitions))
        super().__init__(f"another process owns {names} now")

    def __reduce__(self) -> tuple[type[Fenced], tuple[frozenset[tuple[str, int]]]]:
        return Fenced, (self.partitions,)


class RegistryChanged(MicroflowError):
    """The service has other handlers now than this process knew of; nothing of the transaction was written."""

    def __init__(self, version: int) -> None:
        self.version = version
        super().__init__(f"the registry of handlers has version {version} now")

    def __reduce__(self) -> tuple[type[RegistryChanged], tuple[int]]:
        return RegistryChanged, (self.version,)


class StoreError(MicroflowError):
    """The service's database refused something. `transient` ones may succeed on a fresh connection."""

    transient = False


class StoreUnavailable(StoreError):
    """The database cannot be reached, or cannot write (disk full, read-only, corrupt, locked away)."""

    transient = True


class StoreUnreachable(StoreUnavailable):
    """Nobody answers at the database's address, or it is still starting: worth another try."""


class StoreGone(StoreUnavailable):
    """The database was deleted, or replaced by another one, while it was open: what is committed now is lost."""

    transient = False


class StoreConflict(StoreError):
    """Another transaction was in the way (a deadlock, a lock not given in time): the same again may well succeed."""

    transient = True


class TransactionAborted(StoreError):
    """A statement after one that failed: the transaction can only be rolled back.

    Wrap the statement that may fail in `async with connection.savepoint()` and catch its error outside of it.
    """


class SqlError(StoreError):
    """A statement is wrong: its syntax, a table or column that is missing, a parameter of the wrong type."""


class IntegrityViolation(StoreError):
    """A constraint of the service's own tables forbids the change."""


class UniqueViolation(IntegrityViolation):
    """A row with this key is already there."""


class ForeignKeyViolation(IntegrityViolation):
    """A row refers to one that is not there, or is still referred to."""


class NotNullViolation(IntegrityViolation):
    """A column that must have a value has none."""


class CheckViolation(IntegrityViolation):
    """A row does not satisfy a check constraint."""


class TransportError(MicroflowError):
    """The log did not take or give a record; the same call may succeed later."""


class LogUnreachable(TransportError):
    """Nobody answers at the log's address: worth another try."""


class LogGone(TransportError):
    """The log was deleted, or replaced by another one, while it was open: what is published now is lost."""


class LogRefused(TransportError):
    """The log answers, and we lack a permission: to be a member of a group, or to publish anything."""


class TopicRefused(TransportError):
    """The log does not have this topic, or does not let us see, read or write it. Other topics may be well."""


class RecordTooLarge(TransportError):
    """The log will never take this record: it is larger than the log allows."""


def nearest(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """What a misspelt word was probably meant to be, for "did you mean"."""
    by_folded = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=likeness)
    return by_folded[near[0]] if near else None


def misspelling(word: str, known: Iterable[str]) -> str | None:
    """What a word was meant to be that may be right: one of the known that differs by a slip only, as OrderPlcaed does
    from OrderPlaced, and OrderAccepted does not."""
    return nearest(word, known, likeness=0.8)


def refuse_unknown(owner: str, misspelt: Sequence[str], known: Sequence[str], *, where: str, example: str) -> None:
    """Raise DefinitionError if there are keywords that `owner` does not take, with what was probably meant."""
    if not misspelt:
        return
    near = nearest(misspelt[0], known)
    raise DefinitionError(
        f"{owner} has an unknown keyword: {', '.join(misspelt)}.",
        where=where,
        why=f"It takes {', '.join(known)}.",
        fix=f"Did you mean {near}?" if near else example,
    )
