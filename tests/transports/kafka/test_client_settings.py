"""What Kafka's clients are told: by any name a client has for it, with its place in every error, no secret shown."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from aiokafka.errors import AuthenticationFailedError

from microflow.errors import SettingsError
from microflow.settings import read_settings
from microflow.transports.kafka import ClientSettings, Given, read_client_settings
from microflow.transports.kafka.tokens import TokenCommand, TokenFile, TokenFunction

SECRET = "correct-horse-battery"
LOGIN = {"security_protocol": "SASL_PLAINTEXT", "sasl_username": "anna", "sasl_password": SECRET}


def read(values: Mapping[str, str]) -> ClientSettings:
    return read_client_settings("kafka:9092", {name: Given(value, f"<{name}>") for name, value in values.items()})


def refused(values: Mapping[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        read(values)
    assert SECRET not in f"{caught.value}{caught.value!r}"
    return str(caught.value)


def test_variables_and_the_file_set_up_the_clients_and_variables_win(tmp_path: Path) -> None:
    (tmp_path / "microflow.toml").write_text(
        '[kafka]\nbootstrap_servers = "kafka:9092"\nsession.timeout.ms = 30000\n"sasl.username" = "anna"\n'
    )

    settings = read_settings(environment={"MICROFLOW_KAFKA_SASL_USERNAME": "otto"}, folder=tmp_path)

    assert settings.kafka == "kafka:9092"
    assert settings.kafka_client == {
        "session_timeout_ms": ("30000", f"kafka.session.timeout.ms in {tmp_path / 'microflow.toml'}"),
        "sasl_username": ("otto", "MICROFLOW_KAFKA_SASL_USERNAME"),
    }


def test_a_file_may_still_name_the_log_alone(tmp_path: Path) -> None:
    (tmp_path / "microflow.toml").write_text('kafka = "kafka:9092"\n')

    assert read_settings(environment={}, folder=tmp_path).kafka == "kafka:9092"


def test_a_password_is_in_no_representation(tmp_path: Path) -> None:
    settings = read_settings(environment={"MICROFLOW_KAFKA_SASL_PASSWORD": SECRET}, folder=tmp_path)

    client = read(LOGIN)

    assert SECRET not in repr(settings)
    assert SECRET not in repr(client)
    assert SECRET not in repr(Given(SECRET, "here"))
    assert client.sasl_password == SECRET


@pytest.mark.parametrize(
    ("written", "name", "value", "expected"),
    [
        ("sasl_plain_username", "sasl_username", "anna", "anna"),
        ("sasl_mechanisms", "sasl_mechanism", "scram-sha-512", "SCRAM-SHA-512"),
        ("batch_size", "max_batch_size", "1000", 1000),
        ("message_timeout_ms", "delivery_timeout_ms", "2000", 2000),
        ("compression_codec", "compression_type", "gzip", "gzip"),
    ],
)
def test_the_names_of_other_clients_are_known(written: str, name: str, value: str, expected: object) -> None:
    login = LOGIN if written.startswith("sasl") else {}
    settings = read({**login, written: value})

    assert getattr(settings, name) == expected


def test_a_misspelt_name_is_told_with_its_place_and_what_was_meant() -> None:
    told = refused({"sesion_timeout_ms": "30000"})

    assert told.startswith("<sesion_timeout_ms>: Kafka's clients have no setting sesion_timeout_ms.")
    assert "Did you mean session_timeout_ms?" in told


@pytest.mark.parametrize("name", ["acks", "enable_auto_commit", "auto_offset_reset", "group_id", "isolation_level"])
def test_what_a_guarantee_rests_on_cannot_be_set(name: str) -> None:
    assert refused({name: "1"}).startswith(f"<{name}>: {name} is not to be set.")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"session_timeout_ms": "ten"}, "<session_timeout_ms>: 'ten' is no whole number."),
        ({"security_protocol": "TLS"}, "<security_protocol>: 'TLS' is none of PLAINTEXT, SSL"),
        ({"heartbeat_interval_ms": "10000"}, "heartbeat_interval_ms (10000) is not shorter than session_timeout_ms"),
        ({"sasl_password": SECRET}, "<sasl_password> is set, and security_protocol is PLAINTEXT."),
        ({"ssl_cafile": "ca.pem"}, "<ssl_cafile> is set, and security_protocol is PLAINTEXT."),
        ({"security_protocol": "SSL", "ssl_cafile": "/gone/ca.pem"}, "<ssl_cafile>: there is no file /gone/ca.pem."),
        ({"security_protocol": "SASL_SSL"}, "sasl_mechanism is PLAIN, and sasl_username or sasl_password is missing."),
        ({**LOGIN, "sasl_mechanism": "OAUTHBEARER"}, "sasl_mechanism is OAUTHBEARER, and it is not clear where tokens"),
    ],
)
def test_what_makes_no_sense_is_told_with_its_place(values: dict[str, str], told: str) -> None:
    assert refused(values).startswith(told)


def test_a_file_without_certificates_is_told(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")

    told = refused({"security_protocol": "SSL", "ssl_cafile": str(tmp_path / "ca.pem")})

    assert told.startswith(f"<ssl_cafile>: {tmp_path / 'ca.pem'} holds no certificates.")


def test_a_key_with_another_password_is_told_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, "-subj", "/CN=us", "-passout", "pass:right"], check=True, capture_output=True)
    values = {"security_protocol": "SSL", "ssl_certfile": str(certificate), "ssl_keyfile": str(key)}

    assert read({**values, "ssl_password": "right"}).encrypted
    assert refused({**values, "ssl_password": SECRET}).startswith(f"<ssl_certfile>: {certificate} and its key cannot")
    assert refused(values).startswith(f"<ssl_certfile>: {certificate} and its key cannot be used.")


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def asynchronous_token() -> str:
    return "from-a-coroutine"


def blocking_token() -> str:
    return "from-a-function"


def failing_token() -> str:
    raise RuntimeError(SECRET)


def no_token() -> None:
    return None


def test_tokens_come_from_commands_files_and_functions(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file\n")

    async def collect() -> list[str]:
        sources: list[TokenCommand | TokenFile | TokenFunction] = [
            TokenCommand("echo from-a-command"),
            TokenFile(str(tmp_path / "token")),
            TokenFunction.load(f"{__name__}:asynchronous_token", where="here"),
            TokenFunction.load(f"{__name__}:blocking_token", where="here"),
        ]
        return [await source.token() for source in sources]

    assert asyncio.run(collect()) == ["from-a-command", "from-a-file", "from-a-coroutine", "from-a-function"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (TokenCommand("echo no login >&2; exit 3"), "sasl_oauth_token_command ended with 3 and no token: no login"),
        (TokenCommand("true"), "sasl_oauth_token_command ended with 0 and no token"),
        (TokenFile("/gone/token"), "sasl_oauth_token_file cannot be read"),
        (TokenFunction.load(f"{__name__}:failing_token", where="here"), "failing_token raised RuntimeError"),
        (TokenFunction.load(f"{__name__}:no_token", where="here"), "no_token returned no token but NoneType"),
    ],
)
def test_a_token_that_does_not_come_is_told_without_a_secret(
    source: TokenCommand | TokenFile | TokenFunction, told: str
) -> None:
    with pytest.raises(AuthenticationFailedError) as caught:
        asyncio.run(source.token())

    assert told in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_function_that_is_not_there_is_told_with_its_place() -> None:
    with pytest.raises(SettingsError, match="here: 'nowhere:token' cannot be loaded"):
        TokenFunction.load("nowhere:token", where="here")
