"""How a command fails: what happened, where, why and what to type, on stderr; and the exit code that goes with it."""

from __future__ import annotations

import json
import sys
import traceback
from textwrap import dedent

import click

from microflow.causes import said_by
from microflow.cli.colours import wants_colour
from microflow.cli.look import Look
from microflow.cli.paths import shortened
from microflow.errors import (
    ContractError,
    DefinitionError,
    IdentityError,
    MicroflowError,
    SettingsError,
    StoreUnavailable,
    TargetError,
    TransportError,
)
from microflow.frames import is_users_fault, place_raised, user_frames

FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130


def failed(error: BaseException, look: Look) -> int:
    """Tell an error on stderr and return the exit code it ends the process with."""
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):  # a group without a verb: what there is, and no fault
        click.echo(error.format_message(), err=True)
        return USAGE
    told = _in_four_parts(error)
    if look.json:
        parts = {"what": told.what, "where": told.where, "why": told.why, "fix": told.fix}
        fields = {"level": "error", "message": shortened(told.what), "error": type(error).__name__, **parts}
        print(json.dumps(fields, ensure_ascii=False), file=sys.stderr)  # noqa: T201
    else:
        print(as_text(told, colour=wants_colour(sys.stderr)), file=sys.stderr)  # noqa: T201
    if look.verbose and not isinstance(error, click.ClickException):
        traceback.print_exception(error, file=sys.stderr)
    sys.stderr.flush()
    return exit_code(error)


def exit_code(error: BaseException) -> int:
    """1 for what failed while it ran, 2 for what cannot be run, 3 for a log or a database that cannot be used."""
    match error:
        case click.ClickException() | TargetError() | DefinitionError() | SettingsError():
            return USAGE
        case ContractError():
            return USAGE
        case StoreUnavailable() | TransportError() | IdentityError():
            return UNREACHABLE
        case _:
            return FAILED


def as_text(error: MicroflowError, *, colour: bool = False) -> str:
    """An error in its four parts, with paths as they are seen from here."""
    first = f"{error.where}  {error.what}" if error.where else error.what
    lines = first.splitlines()
    lines += (error.why or "").splitlines()
    lines += _pasteable(error.fix or "")
    text = shortened("\n  ".join(lines))
    return f"{click.style('✗', fg='red') if colour else '✗'} {text}"


def _pasteable(fix: str) -> list[str]:
    """The lines of a fix; what a decorator stands above begins below it, so that both can be pasted."""
    first, newline, rest = fix.partition("\n")
    return [first, *dedent(rest).splitlines()] if newline and first.startswith("@") else fix.splitlines()


def _in_four_parts(error: BaseException) -> MicroflowError:
    if isinstance(error, MicroflowError):
        return error
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        fix = f"{context.command_path} --help" if context is not None else None
        return MicroflowError(error.format_message(), fix=fix)
    said = said_by(error)
    if is_users_fault(error):
        frames = "".join(traceback.format_list(user_frames(error))).rstrip()
        return MicroflowError(said, where=place_raised(error), why=frames)
    if isinstance(error, OSError):  # a disk that is full, a file that may not be read: the machine's
        return MicroflowError(said)
    return MicroflowError(f"{said} (this is a bug in microflow: -v shows where)")
