"""`microflow dev`: services that start anew when their files change."""

from __future__ import annotations

import click

from microflow.cli.look import Look, look_options, pass_look
from microflow.cli.options import database_option, log_option


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET…")
@log_option
@database_option
@look_options
@pass_look
def dev(look: Look, targets: tuple[str, ...], kafka: str | None, database: str | None) -> int:
    """Run each service in a process of its own, start it anew when its files change, show the live tree of flows.

    Needs the extra `dev` (pip install 'microworkflow[dev]'). Ctrl-C ends it.
    """
    import asyncio

    from microflow.cli.developing import Dev
    from microflow.cli.screen import Screen
    from microflow.errors import SettingsError
    from microflow.settings import read_settings

    if read_settings({"kafka": kafka, "database": database}).kafka == "memory:":
        raise SettingsError(
            "dev runs each service in a process of its own, and a log in memory is one process's.",
            fix="Leave --log out, or run them in one process: microflow run TARGET… --log memory:",
        )
    flags = {"MICROFLOW_KAFKA": kafka, "MICROFLOW_DATABASE": database}
    environment = {name: value for name, value in flags.items() if value is not None}
    return asyncio.run(Dev(targets, environment=environment, screen=Screen(look)).run())
