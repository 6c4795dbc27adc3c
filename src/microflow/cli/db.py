"""`microflow db`: the tables of services and our own, migrated or shown."""

from __future__ import annotations

import click

from microflow.cli.look import Look, look_options, pass_look
from microflow.cli.options import database_option


@click.group()
def db() -> None:
    """Migrate the databases of services, show their state, or print the SQL."""


@db.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET…")
@database_option
@click.option("--wait", metavar="SPAN", help="How long to wait for a database that is not up yet.  [default: 30s]")
@look_options
@pass_look
def migrate(look: Look, targets: tuple[str, ...], database: str | None, wait: str | None) -> int:
    """Make and change tables: ours, and those of the services' own migrations.

    A start does the same, unless it is told not to (run --migrate never, MICROFLOW_MIGRATE=never). Safe to be run by
    several processes at once, and while the version before is still running.
    """
    from microflow.cli.migrating import migrate_databases

    return migrate_databases(targets, flags={"database": database, "wait": wait}, look=look)


@db.command()
@click.argument("targets", nargs=-1, metavar="[TARGET…]")
@click.option("--dialect", type=click.Choice(["postgres", "sqlite"]), help="Without a TARGET: for which database.")
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="N", help="Ours from version N on.")
@database_option
@look_options
@pass_look
def sql(look: Look, targets: tuple[str, ...], dialect: str | None, after: int, database: str | None) -> int:
    """Print the SQL of migrations, for people with a migration tool of their own.

    Without a TARGET that of our own tables; with one, that of the service's own migrations, too. It records itself, so
    that a start, and db migrate, find nothing left to do.
    """
    from microflow.cli.migrating import print_sql

    return print_sql(targets, dialect=dialect, after=after, flags={"database": database}, look=look)


@db.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET…")
@database_option
@look_options
@pass_look
def status(look: Look, targets: tuple[str, ...], database: str | None) -> int:
    """Show the version of databases and what waits in them. Exits with 1 if a start would migrate, or refuse, one."""
    from microflow.cli.migrating import show_status

    return show_status(targets, flags={"database": database}, look=look)
