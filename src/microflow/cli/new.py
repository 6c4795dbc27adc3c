"""`microflow new`: a project that runs."""

from __future__ import annotations

import click

from microflow.cli.look import Look, look_options, pass_look


@click.command()
@click.argument("name")
@look_options
@pass_look
def new(look: Look, name: str) -> int:
    """Make a project NAME in a new folder: a service, its table, its test."""
    from pathlib import Path

    from microflow.cli.project import create_project
    from microflow.cli.report_lines import json_line
    from microflow.cli.screen import Screen

    files, next_steps = create_project(name, Path.cwd())
    screen = Screen(look)
    if screen.json:
        screen.line(json_line({"files": [str(file) for file in files], "next": next_steps}))
        return 0
    for file in files:
        screen.line(f"  {file.relative_to(Path.cwd())}")
    screen.line("\nNext:\n" + "\n".join(f"  {step}" for step in next_steps))
    return 0
