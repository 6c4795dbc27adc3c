"""A database and a log that do not belong together, told in the places that a person knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from microflow.cli.identities import with_files
from microflow.errors import IdentityError
from microflow.settings import Settings

THIS, OTHER = "0" * 32, "f" * 32
OF_THE_GROUP = IdentityError(
    f"The group payments has been served from the database {OTHER}, and this one is {THIS}.",
    why="Its offsets are another database's.",
    fix="Start with the database the service had, or give the service another name.",
)


def test_a_database_on_a_server_is_told_without_its_password_and_nothing_is_to_be_deleted(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, kafka="broker:9092", database="postgresql://shop:secret@db:5432/shop")

    told = with_files(OF_THE_GROUP, settings, "payments")

    assert told.what == (
        "The group payments has been served from another database, and this is postgresql://shop:…@db:5432/shop."
    )
    assert told.fix == OF_THE_GROUP.fix


@pytest.mark.parametrize("log", ["broker:9092", "local:log.db"])
def test_no_password_and_no_rm_whatever_the_log_is(tmp_path: Path, log: str) -> None:
    settings = Settings(home=tmp_path, kafka=log, database="postgresql://shop:secret@db:5432/shop")

    told = str(with_files(OF_THE_GROUP, settings, "payments"))

    assert "secret" not in told
    assert "rm " not in told


def test_a_database_that_belonged_to_a_file_is_told_which_cluster_this_is(tmp_path: Path) -> None:
    error = IdentityError(
        f"The database belongs to the log {OTHER}, and this is the log 4L6g3nShT-eMCtK--X86sw.",
        why="Its offsets are those of another log.",
        fix="Name the log it belongs to.",
    )
    settings = Settings(home=tmp_path, kafka="broker:9092", database="postgresql://shop:secret@db:5432/shop")

    told = with_files(error, settings, "payments")

    assert told.what == "The database belongs to another log, and this is broker:9092."
    assert told.fix == "Name the log it belongs to."
