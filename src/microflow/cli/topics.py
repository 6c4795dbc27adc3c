"""`microflow topics`: what the topics of services are, what they should be, and the way there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from microflow.cli.look import Look, look_options, pass_look
from microflow.cli.options import database_option, log_option

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group()
def topics() -> None:
    """Plan and make the topics of services. Nothing is ever deleted, and nothing shrinks."""


def _layout_options(function: Command) -> Command:
    for option in (
        click.option("--wait", metavar="SPAN", help="How long to wait for a log that is not up yet.  [default: 30s]"),
        click.option("--retention", metavar="SPAN", help="How long records are kept: 7d, forever."),
        click.option("--min-in-sync", metavar="N", help="Copies that have a record before it counts as written."),
        click.option("--replication", metavar="N", help="Copies of each partition of a topic that is made."),
        click.option(
            "--partitions",
            multiple=True,
            metavar="[TOPIC=]N",
            help="Partitions: of topics that are made, or of one that may grow.",
        ),
        click.argument("targets", nargs=-1, required=True, metavar="TARGET…"),
    ):
        function = option(function)
    return log_option(function)


@topics.command()
@_layout_options
@click.option("--check", is_flag=True, help="Exit with 1 if something is to be done.")
@look_options
@pass_look
def plan(look: Look, /, check: bool, **options: Any) -> int:
    """Show what is to be done for the topics that services read, write and send dead letters to."""
    from microflow.cli.topic_laying import Wishes, show_plan

    return show_plan(Wishes(**options), check=check, look=look)


@topics.command()
@_layout_options
@click.option("--yes", is_flag=True, help="Do also what cannot be undone, or deletes records.")
@look_options
@pass_look
def apply(look: Look, /, yes: bool, **options: Any) -> int:
    """Make topics that are missing, and change those that are to be otherwise.

    What cannot be undone (more partitions, a shorter retention) is done with --yes only. Partitions by which a topic
    grows are used after `microflow topics switch`.
    """
    from microflow.cli.topic_laying import Wishes, apply_plan

    return apply_plan(Wishes(**options), yes=yes, look=look)


@topics.command()
@click.argument("topic")
@click.argument("targets", nargs=-1, metavar="[TARGET…]")
@click.option("--force", is_flag=True, help="Although events of one key may then be handled in another order.")
@database_option
@log_option
@look_options
@pass_look
def switch(
    look: Look, topic: str, targets: tuple[str, ...], force: bool, database: str | None, kafka: str | None
) -> int:
    """Use all partitions of a TOPIC that has grown, in the databases of those who write it.

    Keys move to other partitions by that, so it is refused while events of the topic wait in an outbox or are unread by
    a group: stop what writes it, let it be published and read, switch, and start again. Without a TARGET, all services
    with a database here.
    """
    from microflow.cli.topic_switching import switch as switch_databases

    return switch_databases(topic, targets, flags={"kafka": kafka, "database": database}, force=force, look=look)
