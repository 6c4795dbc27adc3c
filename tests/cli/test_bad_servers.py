"""Bad servers: a PostgreSQL and a Kafka that cannot be used as they were named; one clear error each, nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from servers.finding import Found
from servers.postgres import Postgres
from tests.cli.projects import Project

PASSWORD = "hunter2-and-a-half"
WAIT = ["--wait", "4s"]


def refused(project: Project, *arguments: str, code: int = 3) -> str:
    """What is told on stderr; nothing of ours and no password may be in it."""
    ended = project.run("run", "payments.py", *WAIT, *arguments)
    assert ended.returncode == code, f"{ended.returncode}: {ended.stdout}{ended.stderr}"
    told = ended.stderr.partition("✗")
    assert told[1]
    for never in ("Traceback", "src/microflow", "bug in microflow", PASSWORD):
        assert never not in ended.stderr + ended.stdout
    return f"✗{told[2]}"


def run_sql(url: str, *statements: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


def elsewhere(url: str, *, user: str = "postgres", password: str = "", database: str = "") -> str:
    """The URL of another user, or another database, on the same server."""
    parts = urlsplit(url)
    secret = f":{password}" if password else ""
    return f"postgresql://{user}{secret}@{parts.hostname}:{parts.port}{f'/{database}' if database else parts.path}"


def place(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="module")
def strict() -> Iterator[str]:
    """The URL of a server that asks the user `shop` for a password."""
    with Postgres(durable=False) as server:
        run_sql(server.url, f"create role shop login password '{PASSWORD}'", "create database shop owner shop")
        rules = server.folder / "data" / "pg_hba.conf"
        rules.write_text(f"host all shop 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        run_sql(server.url, "select pg_reload_conf()")
        yield server.url


# ── PostgreSQL ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_server_that_does_not_answer_is_tried_again_and_then_told(project: Project, nobody: str) -> None:
    told = refused(project, "--database", f"postgresql://shop:{PASSWORD}@{nobody}/shop")

    assert re.match(
        rf"✗ PostgreSQL is not reachable at {nobody} \(connection refused; tried \d+ times in \d s\)\.\n"
        r"  Start it:  docker compose up -d postgres ",
        told,
    )


def test_a_host_that_does_not_exist_is_told(project: Project) -> None:
    told = refused(project, "--database", f"postgresql://shop:{PASSWORD}@no-such-host.invalid/shop")

    assert told.startswith("✗ PostgreSQL is not reachable at no-such-host.invalid (no such host")


@pytest.mark.parametrize("given", ["--database", "MICROFLOW_DATABASE", "MICROFLOW_PAYMENTS_DATABASE"])
def test_what_is_to_be_checked_is_called_as_it_was_given(project: Project, strict: str, given: str) -> None:
    url = elsewhere(strict, user="shop", password=f"{PASSWORD}-wrong", database="shop")
    flags, environment = ([given, url], {}) if given.startswith("-") else ([], {given: url})

    for verb in ("run", "db status", "doctor"):
        ended = project.run(*verb.split(), "payments.py", *flags, environment=environment)

        assert f"Check user and password in {given}:  postgresql://shop:…@" in ended.stdout + ended.stderr


def test_a_wrong_password_is_told_at_once_and_not_shown(project: Project, strict: str) -> None:
    told = refused(project, "--database", elsewhere(strict, user="shop", password=f"{PASSWORD}-wrong", database="shop"))

    assert told.startswith(f"✗ PostgreSQL at {place(strict)} does not let shop in.\n")
    assert 'password authentication failed for user "shop"' in told
    assert f"postgresql://shop:…@{place(strict)}/shop" in told


def test_a_password_that_is_right_is_shown_by_no_verb(project: Project, strict: str) -> None:
    url = elsewhere(strict, user="shop", password=PASSWORD, database="shop")
    service = project.start("run", "payments.py", "--database", url)
    service.until_ready()
    service.stop()
    relay = project.start("relay", "--database", url)
    relay.until_ready()
    relay.stop()
    said = service.stdout + service.stderr + relay.stdout + relay.stderr
    for verb in (["db", "status"], ["doctor"], ["dead-letters", "list"]):
        for form in ([], ["--json"]):
            ended = project.run(*verb, "payments.py", "--database", url, *form)
            said += ended.stdout + ended.stderr

    assert "postgresql://shop:…@" in said
    assert PASSWORD not in said


def test_a_database_that_does_not_exist_is_told(project: Project, strict: str) -> None:
    told = refused(project, "--database", elsewhere(strict, database="shpo"))

    assert told.startswith(f"✗ PostgreSQL at {place(strict)} has no database shpo.\n  createdb shpo")


def test_a_server_without_tls_is_told_to_who_wants_it(project: Project, strict: str) -> None:
    told = refused(project, "--database", f"{strict}?sslmode=require")

    assert told.startswith(f"✗ PostgreSQL at {place(strict)} does not speak TLS.")


@contextmanager
def speaking_tls(folder: Path) -> Iterator[str]:
    """The address of somebody who begins TLS as PostgreSQL does, with a certificate of his own."""
    key, certificate = folder / "server.key", folder / "server.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=elsewhere", "-days", "2",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(8)
                        connection.sendall(b"S")
                        context.wrap_socket(connection, server_side=True).recv(1)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_certificate_that_nobody_trusts_is_told(project: Project, tmp_path: Path) -> None:
    with speaking_tls(tmp_path) as address:
        url = f"postgresql://shop:{PASSWORD}@{address}/shop?sslmode=verify-full&sslrootcert={authorities_of_this_machine()}"

        told = refused(project, "--database", url)

    assert told.startswith(f"✗ The certificate of PostgreSQL at {address} is not trusted.\n  self-signed certificate")


def authorities_of_this_machine() -> str:
    """A file of authorities that have signed something else."""
    return ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"


def test_a_user_who_may_not_make_tables_is_told_who_can(project: Project, strict: str) -> None:
    run_sql(strict, "create database closed", "revoke create on database closed from public")

    told = refused(project, "--database", elsewhere(strict, user="shop", password=PASSWORD, database="closed"))

    assert told.startswith("✗ shop may not use microflow's tables in closed, or not make them: permission denied for")
    assert "microflow db migrate TARGET --database postgresql://OWNER@…" in told


def test_what_a_database_refuses_is_found_once_by_doctor_with_whose_it_is(project: Project, strict: str) -> None:
    run_sql(strict, "create database kept", "revoke create on database kept from public")
    project.json_lines("db", "migrate", "payments.py", "--database", elsewhere(strict, database="kept"))
    project.json_lines("topics", "apply", "payments.py")
    for password, told in (
        (f"{PASSWORD}-wrong", f"PostgreSQL at {place(strict)} does not let shop in."),
        (PASSWORD, "shop may not use microflow's tables in kept"),
    ):
        url = elsewhere(strict, user="shop", password=password, database="kept")

        ended = project.run("doctor", "payments.py", "--database", url)

        [problem] = [line for line in ended.stdout.splitlines() if line.startswith(" ✗ ")]
        assert problem.startswith(f" ✗ payments: {told}")
        assert " ✔ group payments · 0 members\n" in ended.stdout


def test_the_status_of_a_database_that_refuses_is_told_as_a_start_tells_it(project: Project, strict: str) -> None:
    run_sql(strict, "create database locked", "revoke create on database locked from public")
    project.json_lines("db", "migrate", "payments.py", "--database", elsewhere(strict, database="locked"))
    url = elsewhere(strict, user="shop", password=PASSWORD, database="locked")

    ended = project.run("db", "status", "payments.py", "--database", url)

    assert ended.returncode == 3
    assert ended.stderr == refused(project, "--database", url)


def test_a_database_that_only_reads_is_told(project: Project, strict: str) -> None:
    run_sql(strict, "create database standby", "alter database standby set default_transaction_read_only = on")

    told = refused(project, "--database", elsewhere(strict, database="standby"))

    assert "in a read-only transaction" in told
    assert "The database only reads: its server is a standby, or default_transaction_read_only is on." in told
    assert "alter database NAME reset default_transaction_read_only" in told


def test_a_database_of_a_newer_version_is_told(project: Project, strict: str) -> None:
    run_sql(strict, "create database newer")
    url = elsewhere(strict, database="newer")
    project.json_lines("db", "migrate", "payments.py", "--database", url)
    run_sql(url, "insert into microflow.schema_versions values (99, '0099_future', 99)")

    told = refused(project, "--database", url)
    assert told.startswith(
        f"✗ The database newer of PostgreSQL at {place(strict)} was migrated by a newer microflow.\n"
    )
    for verb in ("db status", "doctor"):
        ended = project.run(*verb.split(), "payments.py", "--database", url)

        assert ended.returncode == 1
        assert (
            " the database was migrated by a newer microflow: its tables need one that knows version 99" in ended.stdout
        )
        assert "pip install --upgrade microworkflow" in ended.stdout
        assert "0 pending" not in ended.stdout
        assert "db migrate" not in ended.stdout


def test_what_is_no_url_is_told(project: Project) -> None:
    told = refused(project, "--database", f"postgresql://shop:{PASSWORD}@host:abc/shop", code=2)

    assert told.startswith("✗ 'postgresql://shop:…@host:abc/shop' is no address of a database: ")


def test_services_whose_databases_were_mixed_up_are_told_which_they_had(
    project: Project, strict: str, kafka: Found
) -> None:
    """Rule 11."""
    run_sql(strict, "create database mixed")
    url = elsewhere(strict, database="mixed")
    service = project.start("run", "payments.py", "--database", url)
    service.until_ready()
    service.stop()

    told = refused(project, "--database", url, "--log", kafka.address)

    assert told.startswith(f"✗ The database belongs to the log .microflow/log.db, and this is {kafka.address}.\n")


# ── Kafka ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_kafka_that_does_not_answer_is_tried_again_and_then_told(project: Project, nobody: str) -> None:
    told = refused(project, "--log", nobody)

    assert re.match(rf"✗ Kafka is not reachable at {nobody} \(connection refused; tried \d+ times in \d s\)\.\n", told)


def test_a_topic_that_a_service_writes_and_kafka_does_not_have_is_told_with_what_makes_it(
    project: Project, kafka: Found
) -> None:
    """Rule 23: a missing emitted topic stops the start with the line to type."""
    told = refused(project, "--log", kafka.address, code=2)

    assert "payments emits to PaymentReceived, which the log does not have." in told
    assert "microflow topics apply TARGET" in told


def test_an_address_that_is_none_is_told(project: Project) -> None:
    told = refused(project, "--log", "kafka://localhost:9092", code=2)

    assert told.startswith("✗ The log 'kafka://localhost:9092' cannot be used: it is no address of Kafka")


def test_a_broker_without_a_port_is_told_with_the_one_that_was_tried(project: Project) -> None:
    ended = project.run("run", "payments.py", "--kafka", "no-such-host.invalid", "--wait", "0s")

    assert "✗ Kafka is not reachable at no-such-host.invalid:9092 (no such host" in ended.stderr
    assert "Check --kafka." in ended.stderr
