"""Bad use: every error says what happened, where, why and what to type, without a frame of ours."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from microflow.cli.failures import as_text, exit_code, failed
from microflow.cli.look import Look
from microflow.errors import (
    DefinitionError,
    IdentityError,
    MicroflowError,
    StoreUnavailable,
    TargetError,
    TransportError,
)
from tests.cli.projects import SERVICE, Project

NO_HANDLER = "class OrderAccepted: ...\n"


def refused(project: Project, *arguments: str, code: int = 2) -> str:
    """What is told on stderr; nothing of ours may be in it."""
    ended = project.run(*arguments)
    assert ended.returncode == code, f"{ended.returncode}: {ended.stdout}{ended.stderr}"
    assert ended.stderr.startswith("✗ ")
    assert "Traceback" not in ended.stderr
    assert "src/microflow" not in ended.stderr
    assert "bug in microflow" not in ended.stderr
    return ended.stderr


# ── targets ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_path_that_does_not_exist_is_told_with_the_one_that_was_meant(project: Project) -> None:
    told = refused(project, "run", "paymnets.py")

    assert told == (
        "✗ There is no paymnets.py.\n  This folder holds payments.py.\n  Did you mean microflow run payments.py\n"
    )


@pytest.mark.parametrize(
    "typed",
    [
        "topics plan",
        "topics switch PaymentReceived",
        "db status",
        "handlers list",
        "handlers rename take_payment charge",
        "dead-letters redrive 3 7",
        "run payments.py",
    ],
)
def test_what_was_meant_is_told_with_the_verb_that_was_typed(project: Project, typed: str) -> None:
    project.write("letters.py")

    told = refused(project, *shlex.split(typed), "leters.py")

    assert told.splitlines()[-1] == f"  Did you mean microflow {typed} letters.py"


def test_doctor_tells_what_was_meant_with_its_own_name(project: Project) -> None:
    ended = project.run("doctor", "paymnets.py")

    assert "     fix: Did you mean microflow doctor payments.py\n" in ended.stdout


@pytest.mark.parametrize("typed", ["payments.sql", "./payments.sql"])
def test_a_file_of_another_kind_is_told_with_the_one_that_was_meant(project: Project, typed: str) -> None:
    project.write("payments.sql", "create table payments (order_id text);")
    project.write("orders.py")

    assert refused(project, "db", "migrate", typed) == (
        "✗ payments.sql is no Python file.\n"
        "  This folder holds orders.py, payments.py.\n"
        "  Did you mean microflow db migrate payments.py\n"
    )


@pytest.mark.parametrize("group", ["db", "topics", "dead-letters", "handlers", "outbox"])
def test_a_group_without_a_verb_shows_what_there_is_and_tells_no_error(project: Project, group: str) -> None:
    ended = project.run(group)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"Usage: microflow {group} [OPTIONS] COMMAND [ARGS]...\n")


def test_an_attribute_that_is_missing_is_told_with_what_is_there(project: Project) -> None:
    project.write("shop.py", f"from microflow import Service\n{SERVICE}\nflow = Service('shop')\n")

    told = refused(project, "run", "shop.py:flw")

    assert told == (
        '✗ Cannot load "shop.py:flw": shop.py has no "flw".\n'
        "  It defines: flow.\n"
        "  Did you mean  microflow run shop.py:flow\n"
    )


def test_an_error_in_the_users_file_shows_the_users_frames_only(project: Project) -> None:
    project.write("prices.py", "def load():\n    return 1 / 0\n")
    project.write("shop.py", "import prices\n\nPRICES = prices.load()\n")

    told = refused(project, "run", "shop.py")

    assert re.sub(r" *[~^]+\n", "", told) == (
        "✗ prices.py:2  shop.py cannot be loaded: ZeroDivisionError: division by zero\n"
        '  File "shop.py", line 3, in <module>\n'
        "    PRICES = prices.load()\n"
        '  File "prices.py", line 2, in load\n'
        "    return 1 / 0\n"
    )


def test_an_import_that_fails_in_the_users_file_is_the_users(project: Project) -> None:
    project.write("shop.py", "import nonexistent_library\n")

    told = refused(project, "run", "shop.py")

    assert "✗ shop.py:1  shop.py cannot be loaded: ModuleNotFoundError: No module named 'nonexistent_library'" in told


def test_a_syntax_error_shows_the_line(project: Project) -> None:
    project.write("shop.py", "def take_payment(:\n    pass\n")

    told = refused(project, "run", "shop.py")

    assert told.startswith("✗ shop.py:1  Invalid syntax.\n  def take_payment(:\n")
    assert told.splitlines()[2] == f"  {' ' * 17}^"


def test_a_file_that_ends_the_process_when_imported_is_told(project: Project) -> None:
    project.write("shop.py", "import sys\nsys.exit(3)\n")

    assert "✗ shop.py:2  shop.py cannot be loaded: it called sys.exit(3)" in refused(project, "run", "shop.py")


def test_a_module_without_handlers_is_told_how_to_mark_one(project: Project) -> None:
    project.write("shop.py", NO_HANDLER)

    told = refused(project, "run", "shop.py")

    assert told.startswith("✗ shop.py:1  The service shop has no handlers.\n")
    assert '@on("OrderAccepted")' in told


def test_misuse_is_told_at_the_users_line(project: Project) -> None:
    project.write("shop.py", SERVICE.replace("retry=", "rerty="))

    told = refused(project, "run", "shop.py")

    assert told.startswith("✗ shop.py:11  @on has an unknown keyword: rerty.\n")
    assert "Did you mean retry?" in told


def test_a_target_given_twice_is_refused(project: Project) -> None:
    told = refused(project, "run", "payments.py", "payments")

    assert "payments and payments.py are one: it is given twice." in told


def test_two_services_of_one_name_are_refused(project: Project) -> None:
    project.write("shop.py", f"from microflow import Service\n{SERVICE}\nservice = Service('payments')\n")

    told = refused(project, "run", "payments.py", "shop.py")

    assert "Two services are called payments: shop.py and payments.py." in told
    assert "The other one is at payments.py:1." in told


def test_settings_that_cannot_be_read_are_told_with_their_place(project: Project) -> None:
    project.write("microflow.toml", "drain = '1 fortnight'\n")

    assert "✗ drain in microflow.toml: '1 fortnight' is no span of time." in refused(project, "run", "payments.py")


# ── logs and databases ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_that_cannot_be_made_is_told(project: Project) -> None:
    (project.folder / ".microflow").touch()

    told = refused(project, "run", "payments.py", code=3)

    assert ".microflow/log.db" in told


def test_a_file_that_is_no_database_is_told(project: Project) -> None:
    project.write(".microflow/payments.db", "these are no tables\n" * 100)

    told = refused(project, "run", "payments.py", code=3)

    assert "✗ Cannot open the database .microflow/payments.db" in told
    assert "Move it away, or name another file." in told


def test_a_log_that_is_damaged_is_told(project: Project) -> None:
    project.write(".microflow/log.db", "this is no log\n" * 100)

    told = refused(project, "run", "payments.py", code=3)

    assert "✗ The log .microflow/log.db cannot be used" in told
    assert "Move it away, or name another file." in told


@pytest.mark.parametrize(
    "typed",
    [
        "run payments.py --database sqlite:///{missing}/payments.db",
        "run payments.py --log local:{missing}/log.db",
        "relay --database sqlite:///{missing}/payments.db",
        "db migrate payments.py --database sqlite:///{missing}/payments.db",
        "db status payments.py --database sqlite:///{missing}/payments.db",
        "emit OrderAccepted order_id=o-1 --key order_id --log local:{missing}/log.db",
    ],
)
def test_a_folder_that_is_not_there_is_told_and_not_made(project: Project, typed: str) -> None:
    missing = project.folder / "not there" / "data"

    told = refused(project, *(word.format(missing=missing) for word in shlex.split(typed)))

    assert re.match(r"✗ not there/data/(payments|log)\.db cannot be made: there is no folder not there/data\.\n", told)
    assert told.splitlines()[-1] == "  mkdir -p 'not there/data'"
    assert not missing.parent.exists()


def test_a_database_of_a_newer_version_is_told(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()
    service.stop()
    with sqlite3.connect(project.folder / ".microflow" / "payments.db") as connection:
        connection.execute("insert into microflow_schema values (999, '999_from_the_future')")
    connection.close()

    told = refused(project, "run", "payments.py", code=3)

    assert "✗ .microflow/payments.db was migrated by a newer microflow." in told
    assert "pip install --upgrade microworkflow" in told


def test_a_log_of_another_version_is_told(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()
    service.stop()
    with sqlite3.connect(project.folder / ".microflow" / "log.db") as connection:
        connection.execute("update microflow_log set format = 999")
    connection.close()

    assert "has format 999" in refused(project, "run", "payments.py", code=3)


def test_a_database_of_another_log_is_told(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()
    service.stop()

    told = refused(project, "run", "payments.py", "--log", f"local:{project.folder}/other.db", code=3)

    assert told == (
        "✗ The database .microflow/payments.db belongs to the log .microflow/log.db, and this is other.db.\n"
        "  Its offsets are those of another log: with this one, events would be skipped or repeated.\n"
        "  To go on as before:  --log local:.microflow/log.db\n"
        "  To begin anew, in development (all events are lost):  rm -r .microflow/payments.db* other.db*\n"
    )


def test_a_log_that_is_gone_is_told_with_how_to_begin_anew(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()
    service.stop()
    for file in (project.folder / ".microflow").glob("log.db*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()

    told = refused(project, "run", "payments.py", code=3)

    assert "belongs to another log, which is not here any more, and this is .microflow/log.db." in told
    assert "  To begin anew, in development (all events are lost):  rm -r .microflow\n" in told


def test_a_service_with_another_database_is_told_which_it_had(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()
    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--app", "payments.py")
    service.until(service.reports)
    service.stop()

    told = refused(project, "run", "payments.py", "--database", "sqlite:///wrong.db", code=3)

    assert told.startswith(
        "✗ The group payments has been served from the database .microflow/payments.db, and this is wrong.db.\n"
    )
    assert "  To go on as before:  --database sqlite:///.microflow/payments.db\n" in told


def test_who_holds_a_locked_database_is_told_while_it_waits(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()
    service.stop()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sqlite3, sys\n"
            "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "connection.execute('begin immediate')\n"
            "print('held', flush=True)\n"
            "sys.stdin.read()",
            str(project.folder / ".microflow" / "payments.db"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"

        service = project.start("run", "payments.py", environment={"MICROFLOW_LOG_FORMAT": "console"})
        service.until(lambda: "waiting" in service.stderr)
        assert f"process {holder.pid} holds its write lock" in service.stderr
    finally:
        holder.communicate()
    service.until_ready()


def test_a_full_disk_is_told(project: Project) -> None:
    # The largest size a file may have stands in for a disk that is full.
    ended = subprocess.run(
        ["bash", "-c", f"ulimit -f 40; exec {sys.executable} -m microflow run payments.py"],
        cwd=project.folder, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip

    assert ended.returncode == 3, ended.stdout + ended.stderr
    assert ended.stderr.startswith("✗ ")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("arguments", [["run", "payments.py"], ["--help"]])
def test_output_that_cannot_be_written_is_told_and_ends_the_command(project: Project, arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "microflow", *arguments],
            cwd=project.folder, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20, check=False,
        )  # fmt: skip

    assert ended.returncode == 1
    assert "No space left on device" in ended.stderr
    assert "uvloop" not in ended.stderr
    assert "bug in microflow" not in ended.stderr


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        (
            "[services.payments]\ndatabas = 'sqlite:///a.db'",
            "services.payments in microflow.toml has an unknown setting",
        ),
        ("[services]\npayments = 'sqlite:///a.db'", "services.payments in microflow.toml is no table."),
        ("[services.payments]\ndatabase = 5", "services.payments.database in microflow.toml is 5"),
        ("[topics]\nOrderAccepted = 5", "topics.OrderAccepted in microflow.toml is 5, and a topic's name is text."),
    ],
)
def test_a_setting_in_a_table_is_checked_too(project: Project, toml: str, said: str) -> None:
    project.write("microflow.toml", toml)

    assert said in refused(project, "run", "payments.py")


def test_a_variable_that_nothing_reads_is_told_with_the_one_that_was_meant(project: Project) -> None:
    ended = project.run("run", "nothing.py", environment={"MICROFLOW_DATABSE": "x", "MICROFLOW_SHOP_DATABASE": "y"})

    assert "MICROFLOW_DATABSE is not read: did you mean MICROFLOW_DATABASE?" in ended.stderr
    assert "SHOP" not in ended.stderr


# ── the user's code when it starts ────────────────────────────────────────────────────────────────────────────────


def test_a_lifespan_that_fails_is_told_with_the_users_frames(project: Project) -> None:
    project.write(
        "payments.py",
        f"""
{SERVICE}
from contextlib import asynccontextmanager
from microflow import Service

@asynccontextmanager
async def bank():
    raise ConnectionRefusedError("the bank is closed")
    yield {{}}

service = Service("payments", lifespan=bank)
""",
    )

    told = refused(project, "run", "payments.py", code=1)

    assert "payments.py:23  ConnectionRefusedError: the bank is closed" in told
    assert 'File "payments.py", line 23, in bank' in told


def test_v_shows_every_frame(project: Project) -> None:
    project.write("shop.py", "1 / 0\n")

    ended = project.run("run", "shop.py", "-v")

    assert ended.returncode == 2
    assert ended.stderr.startswith("✗ shop.py:1  ")
    assert "Traceback" in ended.stderr


def test_with_json_an_error_is_one_object(project: Project) -> None:
    ended = project.run("run", "paymnets.py", "--json")

    [line] = ended.stderr.splitlines()
    assert json.loads(line) == {
        "level": "error",
        "message": "There is no paymnets.py.",
        "error": "TargetError",
        "what": "There is no paymnets.py.",
        "where": None,
        "why": "This folder holds payments.py.",
        "fix": "Did you mean microflow run payments.py",
    }


# ── the parts ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_error_of_ours_that_nobody_foresaw_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    error = KeyError("position")

    assert failed(error, Look()) == 1
    assert capsys.readouterr().err == "✗ KeyError: 'position' (this is a bug in microflow: -v shows where)\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TargetError("no"), 2),
        (DefinitionError("no"), 2),
        (StoreUnavailable("no"), 3),
        (TransportError("no"), 3),
        (IdentityError("no"), 3),
        (RuntimeError("no"), 1),
    ],
)
def test_the_exit_code_says_what_kind_of_failure_it_was(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_an_error_has_four_parts_and_short_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = MicroflowError("It broke.", where=f"{tmp_path}/shop.py:7", why="It was old.\nVery old.", fix="buy one")

    assert as_text(error) == "✗ shop.py:7  It broke.\n  It was old.\n  Very old.\n  buy one"


def test_a_fix_of_two_lines_can_be_pasted() -> None:
    error = DefinitionError("No handlers.", fix='@on("A")\n  async def handle(a: A): …')

    assert as_text(error) == '✗ No handlers.\n  @on("A")\n  async def handle(a: A): …'
