"""`microflow`: its verbs, each imported when it is typed, and the end of the process with its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import click

from microflow.cli.look import Look
from microflow.errors import MicroflowError, nearest
from microflow.version import __version__

EXAMPLES = """\b
Three to begin with:
  microflow demo                                       watch an order saga run
  microflow run payments.py                            run a service of your own
  microflow emit OrderAccepted order_id=o-1 --key order_id   give it something to do
"""


class Verb(NamedTuple):
    """Where a verb is (`module:attribute`) and its line of help: listing the verbs imports none of them."""

    place: str
    help: str


VERBS = {
    "demo": Verb("microflow.cli.demo:demo", "Watch an order saga run."),
    "new": Verb("microflow.cli.new:new", "Make a project that runs."),
    "dev": Verb("microflow.cli.dev:dev", "Run services, anew whenever their files change."),
    "run": Verb("microflow.cli.run:run", "Run services until they are told to stop."),
    "emit": Verb("microflow.cli.emit:emit", "Publish an event, or a file of them, to the log."),
    "dead-letters": Verb(
        "microflow.cli.dead_letters:dead_letters", "List, show and redrive events that were given up."
    ),
    "topics": Verb("microflow.cli.topics:topics", "Plan and make the topics that services need."),
    "db": Verb("microflow.cli.db:db", "Migrate databases, or show what would be."),
    "doctor": Verb("microflow.cli.doctor:doctor", "Look at everything that services need, and say what to do."),
    "handlers": Verb(
        "microflow.cli.handlers:handlers", "List the handlers of services; say that one was renamed or removed."
    ),
    "outbox": Verb("microflow.cli.outbox:outbox", "Show what waits to be published; give up what never can be."),
    "relay": Verb("microflow.cli.relay:relay", "Publish the outbox of a program that is no service."),
}


class LazyGroup(click.Group):
    """A group whose verbs are imported one at a time, when they are typed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name].place.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = nearest(args[0], VERBS)
            meant = f" Did you mean {near}?" if near else f" There are {', '.join(VERBS)}."
            raise click.UsageError(f"There is no microflow {args[0]}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, message="microflow %(version)s")
@click.pass_context
def command(context: click.Context) -> None:
    """Choreographed, event-driven microworkflows: durable, visible, without an engine."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and leave the process."""
    sys.exit(execute(arguments))


def execute(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; what went wrong has been told on stderr."""
    look = Look()
    return _quietly_without_reader(lambda: _execute(arguments, look))


def _execute(arguments: Sequence[str] | None, look: Look) -> int:
    try:
        code: Any = command.main(arguments, prog_name="microflow", standalone_mode=False, obj=look)
        if look.lost is not None:
            raise MicroflowError(f"stdout cannot be written: {look.lost.strerror}.")
    except BrokenPipeError:
        raise
    except (Exception, SystemExit) as error:
        failures = import_module("microflow.cli.failures")  # what it needs is not for those who ask for help
        return int(failures.failed(error, look))
    return code if isinstance(code, int) else 0


def _quietly_without_reader(work: Callable[[], int]) -> int:
    try:
        code = work()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code
