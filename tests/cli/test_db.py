"""`microflow db` on SQLite: what a start would do, done before it, or done by another tool."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from tests.cli.projects import SERVICE, Project

TABLES = "create table payments (order_id text primary key);"


def with_tables(project: Project) -> None:
    project.write(
        "payments.py",
        f"from microflow import Service\n{SERVICE}\nservice = Service('payments', tables='payments.sql')\n",
    )
    project.write("payments.sql", TABLES)


def tables_of(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}


def test_migrate_makes_our_tables_and_the_service_s_and_does_nothing_the_second_time(project: Project) -> None:
    with_tables(project)

    [first] = project.json_lines("db", "migrate", "payments.py")
    [second] = project.json_lines("db", "migrate", "payments.py")

    assert first["ours"][0] == "0001_tables"
    assert first["own"] == ["payments"]
    assert (second["ours"], second["own"]) == ([], [])
    assert {"payments", "microflow_inbox"} <= tables_of(project.folder / ".microflow" / "payments.db")


def test_the_status_tells_what_is_to_be_run_and_changes_nothing(project: Project) -> None:
    with_tables(project)

    before = project.run("db", "status", "payments.py")
    assert before.returncode == 1
    assert "no tables yet" in before.stdout
    assert "payments     microflow db migrate payments.py" in before.stdout
    assert not (project.folder / ".microflow" / "payments.db").exists()

    project.json_lines("db", "migrate", "payments.py")
    [after] = project.json_lines("db", "status", "payments.py")
    assert after["to_run"] == []
    assert after["version"] == after["known"]
    assert (after["outbox"], after["inbox"], after["parked"], after["dead_letters"]) == (0, 0, 0, 0)


def test_a_migration_that_was_edited_after_it_was_run_is_told(project: Project) -> None:
    with_tables(project)
    project.json_lines("db", "migrate", "payments.py")
    project.write("payments.sql", TABLES.replace("text", "integer"))

    status = project.run("db", "status", "payments.py")
    doctor = project.run("doctor", "payments.py")

    fix = "put it back as it was, and the change into a new file with the next number"
    assert (status.returncode, doctor.returncode) == (1, 1)
    assert f"  payments.sql has changed since it was run     {fix}\n" in status.stdout
    assert f" ✗ payments: payments.sql has changed since it was run\n     fix: {fix}\n" in doctor.stdout


def test_a_database_of_a_newer_microflow_is_told(project: Project) -> None:
    with_tables(project)
    project.json_lines("db", "migrate", "payments.py")
    with closing(sqlite3.connect(project.folder / ".microflow" / "payments.db")) as connection, connection:
        connection.execute("insert into microflow_schema values (99, '0099_future')")

    status = project.run("db", "status", "payments.py")

    assert status.returncode == 1
    first, second = status.stdout.splitlines()
    assert " · tables 99/" in first
    assert "  the database was migrated by a newer microflow: its tables need one that knows version 99" in second


def test_the_printed_sql_is_all_that_a_start_needs(project: Project) -> None:
    with_tables(project)
    project.write("payments.sql", "create table payments (order_id text primary key) -- 'no end;")
    printed = project.run("db", "sql", "payments.py").stdout
    path = project.folder / ".microflow" / "payments.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(printed)
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE constraint failed: microflow_migrations"):
            connection.executescript(printed.partition("-- payments: payments")[2])

    [status] = project.json_lines("db", "status", "payments.py")
    [migrated] = project.json_lines("db", "migrate", "payments.py")

    assert status["to_run"] == []
    assert (migrated["ours"], migrated["own"]) == ([], [])


def test_the_printed_sql_is_all_that_a_start_on_postgresql_needs(project: Project, postgres_url: str) -> None:
    with_tables(project)
    printed = project.run("db", "sql", "payments.py", "--dialect", "postgres").stdout

    async def run_twice() -> None:
        connection = await asyncpg.connect(postgres_url)
        try:
            await connection.execute(printed)
            with pytest.raises(asyncpg.UniqueViolationError):
                await connection.execute(printed.partition("-- payments: payments")[2])
        finally:
            await connection.close()

    asyncio.run(run_twice())
    [status] = project.json_lines("db", "status", "payments.py", "--database", postgres_url)
    [migrated] = project.json_lines("db", "migrate", "payments.py", "--database", postgres_url)

    assert status["to_run"] == []
    assert (migrated["ours"], migrated["own"]) == ([], [])


def test_sql_that_a_start_would_refuse_is_not_printed(project: Project) -> None:
    with_tables(project)
    project.write("payments.sql", "create table payments (order_id text);\ncommit;")

    refused = project.run("db", "sql", "payments.py")

    assert refused.returncode == 2
    assert "payments.sql:2  A migration says COMMIT." in refused.stderr


def test_the_printed_sql_of_a_target_has_its_own_migrations(project: Project) -> None:
    with_tables(project)

    printed = project.run("db", "sql", "payments.py", "--after", "1").stdout

    assert f"\n\n{TABLES}\n\ncommit;" in printed.partition("-- payments: payments\n\nbegin immediate;\n\n")[2]
    assert "create table microflow_inbox" not in printed


def test_a_start_that_is_told_not_to_migrate_makes_no_tables_and_says_what_does(project: Project) -> None:
    with_tables(project)
    never = {"MICROFLOW_MIGRATE": "never"}

    refused = project.run("run", "payments.py", environment=never)
    migrated = project.run("db", "migrate", "payments.py", environment=never)
    service = project.start("run", "payments.py", environment=never)
    service.until_ready()

    assert refused.returncode == 3
    assert "✗ Migrations are to be run in .microflow/payments.db: 0001_tables, " in refused.stderr
    assert "microflow db migrate TARGET" in refused.stderr
    assert migrated.returncode == 0
