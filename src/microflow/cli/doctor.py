"""`microflow doctor`: everything that services need, looked at."""

from __future__ import annotations

import click

from microflow.cli.look import Look, look_options, pass_look
from microflow.cli.options import database_option, log_option


@click.command()
@click.argument("targets", nargs=-1, metavar="[TARGET…]")
@log_option
@database_option
@look_options
@pass_look
def doctor(look: Look, targets: tuple[str, ...], kafka: str | None, database: str | None) -> int:
    """Look at everything that services need, and say what to do.

    Python and its packages, the services of the TARGETs, the log and its topics, databases, and where traces go. Every
    probe asks the real thing, all of them at once, and none for longer than three seconds. Nothing is changed. Exits
    with 1 if there are problems.
    """
    from microflow.cli.diagnosis import diagnose

    return diagnose(targets, flags={"kafka": kafka, "database": database}, look=look)
