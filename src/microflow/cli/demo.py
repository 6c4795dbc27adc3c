"""`microflow demo`: watch an order saga run."""

from __future__ import annotations

import click

from microflow.cli.look import Look, look_options, pass_look


@click.command()
@click.option("--orders", type=click.IntRange(min=1), metavar="N", help="Place N orders and end.  [default: go on]")
@click.option("--rate", type=click.FloatRange(min=0.01, max=1000), default=5.0, metavar="R", help="Orders a second.")
@click.option("--faults", is_flag=True, help="Kill services, repeat events, slow the card company meanwhile.")
@click.option("--seed", type=int, default=1, metavar="S", help="Decides the orders and the faults.  [default: 1]")
@click.option("--processes", type=click.IntRange(1, 8), default=1, metavar="N", help="Of each service.  [default: 1]")
@click.option("--database", metavar="URL", help="A PostgreSQL server, on which each service gets its own database.")
@click.option("--kafka", "--log", "kafka", metavar="ADDRESS", help="A Kafka on which no order saga has run before.")
@look_options
@pass_look
def demo(
    look: Look,
    orders: int | None,
    rate: float,
    faults: bool,
    seed: int,
    processes: int,
    database: str | None,
    kafka: str | None,
) -> int:
    """Watch an order saga run: five services in five processes, each with its own database.

    Ends when every order has ended, or, without --orders, when Ctrl-C is typed. Exits with 0 if every order ended
    exactly once and the money adds up. Nothing is installed and nothing is kept: an embedded log, and SQLite. With
    --log and --database the same services run on Kafka and PostgreSQL; their topics stay there.
    """
    import asyncio

    from microflow.cli.saga_demo import Demo, DemoOptions
    from microflow.cli.screen import Screen

    screen = Screen(look)
    options = DemoOptions(
        orders=orders, rate=rate, faults=faults, seed=seed, kafka=kafka, database=database, processes=processes
    )
    return asyncio.run(Demo(options, screen).run())
