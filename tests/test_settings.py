"""Settings: where each may be said, which place wins, and what is told to somebody who mistyped one."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from microflow.errors import SettingsError
from microflow.limits import Limits
from microflow.settings import LIMIT_SETTINGS, SETTINGS, TOPIC_SETTINGS, Setting, TopicSettings, read_settings

README = Path(__file__).parents[1] / "README.md"
NOT_FOR_USERS = {"fault"}


def in_file(folder: Path, toml: str) -> Path:
    (folder / "microflow.toml").write_text(toml, encoding="utf-8")
    return folder


def test_a_flag_goes_before_the_environment_and_that_before_the_file_and_that_before_the_default(
    tmp_path: Path,
) -> None:
    assert read_settings(environment={}, folder=tmp_path).drain == timedelta(seconds=25)

    folder = in_file(tmp_path, 'drain = "1s"')
    environment = {"MICROFLOW_DRAIN": "2s"}

    assert read_settings(environment={}, folder=folder).drain == timedelta(seconds=1)
    assert read_settings(environment=environment, folder=folder).drain == timedelta(seconds=2)
    assert read_settings({"drain": "3s"}, environment=environment, folder=folder).drain == timedelta(seconds=3)


@pytest.mark.parametrize(
    ("toml", "said", "fix"),
    [
        ("drain = 5", "drain in {}: 5 of what? A span of time has a unit.", "5s"),
        ('drain = "5"', "drain in {}: 5 of what? A span of time has a unit.", "5s"),
        ("drain = true", "drain in {}: True is no span of time.", "25s"),
        ('drain = "soon"', "drain in {}: 'soon' is no span of time.", "25s"),
        ("concurrency = 0", "concurrency in {}: 0 is no positive number.", ""),
        ("concurrency = true", "concurrency in {}: True is no positive number.", ""),
        ('log_level = "inof"', "log_level in {}: 'inof' is none of debug, info, warning, error.", "Did you mean info?"),
        ("database = 5", "database in {} is 5, and a text is expected.", ""),
        ("drian = 5", "{} has an unknown setting: drian.", "Did you mean drain?"),
        ("[topic.orders]\npartitoins = 5", "topic.orders in {} has an unknown setting: partitoins.", "partitions?"),
        ("[topic]\nretenton = 5", "topic in {} has an unknown setting: retenton.", "Did you mean retention?"),
        ("[topic.orders]\npartitions = 0", "topic.orders.partitions in {}: 0 is no positive number.", ""),
        ('drain = "9999999999d"', "drain in {}: 9999999999d is longer than anything lasts.", ""),
        ("in_flight = 0", "in_flight in {}: 0 is no positive number.", ""),
        ("failing_keys = -1", "failing_keys in {}: -1 is no positive number.", ""),
        ("parked_per_handlers = 1", "{} has an unknown setting: parked_per_handlers.", "parked_per_handler?"),
        ("inbox_retention = 7", "inbox_retention in {}: 7 of what? A span of time has a unit.", "7s"),
        ('inbox_retention = "10s"', "inbox_retention in {}: '10s' is too short.", "60s or more."),
        ("dead_letter_retention = 0", "dead_letter_retention in {}: 0 is too short.", "60s or more."),
        ('careful_for = "0"', "careful_for in {}: '0' is too short.", "1s or more."),
        ('careful_for = "forever"', "careful_for in {}: 'forever' is no span of time.", "25s"),
        ("topic = 5", "topic in {} is no table.", "[tool.microflow.topic]"),
        ("[topics.orders]\npartitions = 5", "topics.orders in {} is {{'partitions': 5}}", ""),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(tmp_path: Path, toml: str, said: str, fix: str) -> None:
    folder = in_file(tmp_path, toml)

    with pytest.raises(SettingsError) as told:
        read_settings(environment={}, folder=folder)

    assert told.value.what.startswith(said.format(folder / "microflow.toml"))
    assert fix in (told.value.fix or "")


def test_how_a_topic_is_made_is_said_for_all_and_for_one(tmp_path: Path) -> None:
    folder = in_file(
        tmp_path, '[topic]\npartitions = 3\nretention = "7d"\n[topic.orders]\npartitions = 12\nretention = "forever"\n'
    )

    settings = read_settings(
        {"topic_replication": "3"}, environment={"MICROFLOW_TOPIC_MIN_IN_SYNC": "2"}, folder=folder
    )

    assert settings.made_as("payments") == TopicSettings(
        partitions=3, replication=3, min_in_sync=2, retention=timedelta(days=7)
    )
    assert settings.made_as("orders") == TopicSettings(
        partitions=12, replication=3, min_in_sync=2, retention=timedelta.max
    )


TUNED = {
    "batch": "50",
    "in_flight": "200",
    "failing_keys": "5",
    "careful_for": "2m",
    "parked_per_handler": "1000",
    "outbox_per_destination": "2000",
    "inbox_retention": "14d",
    "dead_letter_retention": "forever",
}
AS_LIMITS = Limits(
    batch=50,
    in_flight=200,
    failing_keys=5,
    careful_for=timedelta(minutes=2),
    parked_per_handler=1000,
    outbox_per_destination=2000,
    inbox_retention=timedelta(days=14),
    dead_letter_retention=timedelta.max,
)


def test_the_bounds_of_a_service_are_tuned_in_a_file_or_by_variables(tmp_path: Path) -> None:
    assert TUNED.keys() == {each.name for each in LIMIT_SETTINGS}
    assert read_settings(environment={}, folder=tmp_path).limits == Limits()
    variables = {f"MICROFLOW_{name.upper()}": value for name, value in TUNED.items()}
    assert read_settings(environment=variables, folder=tmp_path).limits == AS_LIMITS

    folder = in_file(tmp_path, "".join(f'{name} = "{value}"\n' for name, value in TUNED.items()))

    assert read_settings(environment={}, folder=folder).limits == AS_LIMITS
    before = {"MICROFLOW_BATCH": "7", "MICROFLOW_CONCURRENCY": "3"}
    assert read_settings(environment=before, folder=folder).limits == replace(AS_LIMITS, batch=7, concurrency=3)


def test_no_password_is_printed_with_the_settings(tmp_path: Path) -> None:
    environment = {
        "MICROFLOW_DATABASE": "postgresql://shop:hunter2@db/shop",
        "MICROFLOW_PAYMENTS_DATABASE": "postgresql://db/payments?password=hunter2",
    }

    settings = read_settings(environment=environment, folder=tmp_path)

    assert settings.database_of("payments") == "postgresql://db/payments?password=hunter2"
    assert "postgresql://shop:…@db/shop" in repr(settings)
    assert "hunter2" not in repr(settings)


def test_a_variable_that_nothing_reads_is_told_and_those_of_tests_are_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment = {"MICROFLOW_TOPIC_PARTITONS": "5", "MICROFLOW_TEST_REQUIRE": "kafka", "MICROFLOW_SHOP_DATABASE": "x"}

    with caplog.at_level(logging.WARNING):
        read_settings(environment=environment, folder=tmp_path)

    assert caplog.messages == [
        "the environment variable MICROFLOW_TOPIC_PARTITONS is not read: did you mean MICROFLOW_TOPIC_PARTITIONS?"
    ]


@pytest.mark.parametrize("setting", [*SETTINGS, *LIMIT_SETTINGS, *TOPIC_SETTINGS], ids=lambda setting: setting.name)
def test_every_setting_is_in_the_table_of_the_readme(setting: Setting) -> None:
    table = README.read_text(encoding="utf-8").partition("## Settings")[2].partition("\n## ")[0]

    assert setting.name in NOT_FOR_USERS or re.search(rf"`{setting.variable}`", table)


def test_a_text_calls_the_addresses_as_they_were_given(tmp_path: Path) -> None:
    (tmp_path / "microflow.toml").write_text(
        'kafka = "broker:9092"\n[services.ledger]\ndatabase = "sqlite:///ledger.db"\n', encoding="utf-8"
    )
    text = "Check MICROFLOW_KAFKA (--log), MICROFLOW_KAFKA_SASL_USERNAME and MICROFLOW_DATABASE (--database)."
    environment = {"MICROFLOW_CARD_COMPANY_DATABASE": "sqlite:///cards.db"}

    settings = read_settings({"database": None}, environment=environment, folder=tmp_path)
    typed = read_settings({"database": "sqlite:///all.db"}, environment=environment, folder=tmp_path)

    kafka = f"Check kafka in {tmp_path / 'microflow.toml'}, MICROFLOW_KAFKA_SASL_USERNAME and"
    ledger = f"services.ledger.database in {tmp_path / 'microflow.toml'}"
    assert settings.as_given(text, "ledger") == f"{kafka} {ledger}."
    assert settings.as_given(text, "card-company") == f"{kafka} MICROFLOW_CARD_COMPANY_DATABASE."
    assert settings.as_given(text, "orders") == f"{kafka} MICROFLOW_DATABASE."
    assert typed.as_given(text, "ledger") == f"{kafka} --database."
