"""The command on a Kafka that encrypts, asks who is there and permits little: one clear error for each way out."""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from microflow.ports import TopicLayout
from microflow.transports.kafka import KafkaTransport, read_client_settings
from tests.cli.projects import SERVICE, Project
from tests.transports.kafka.secure_broker import PASSWORD, SecureBroker, secure_broker

pytestmark = pytest.mark.local_servers("kafka")

WRONG = "battery-staple"
NEVER = ("Traceback", "src/microflow", "bug in microflow", "in the clear", PASSWORD, WRONG)
QUIET = {"OTEL_TRACES_EXPORTER": "none"}
UNREACHABLE, PROBLEMS = 3, 1
DOCTOR = "doctor"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    with secure_broker(tmp_path_factory.mktemp("certificates")) as it:
        yield it


@pytest.fixture
def shop(project: Project) -> Shop:
    return Shop(project)


class Shop:
    """A project whose service and topics nobody else has, and the verbs that need its log."""

    def __init__(self, project: Project) -> None:
        self.project = project
        suffix = uuid.uuid4().hex[:8]
        self.service, self.read, self.written = (
            f"payments_{suffix}",
            f"OrderAccepted{suffix}",
            f"PaymentReceived{suffix}",
        )
        self.file = f"{self.service}.py"
        source = SERVICE.replace("OrderAccepted", self.read).replace("PaymentReceived", self.written)
        project.write(self.file, source)
        self.verbs = {
            "run": ["run", self.file, "--wait", "5s"],
            "plan": ["topics", "plan", self.file, "--wait", "5s"],
            "emit": ["emit", self.read, "order_id=o-1", "--app", self.file],
            DOCTOR: [DOCTOR, self.file],
        }

    @property
    def topics(self) -> list[str]:
        return [self.read, self.written, f"dlq-{self.service}"]

    def run(self, *verbs: str, **settings: str) -> dict[str, subprocess.CompletedProcess[str]]:
        """Verbs side by side, each to its end; nothing of ours and no password may be in what they say."""
        names = verbs or tuple(self.verbs)
        environment = {**QUIET, **settings}
        with ThreadPoolExecutor() as all_at_once:
            ended = dict(
                zip(
                    names,
                    all_at_once.map(lambda name: self.project.run(*self.verbs[name], environment=environment), names),
                    strict=True,
                )
            )
        for name, each in ended.items():
            for never in NEVER:
                assert never not in each.stdout + each.stderr, f"{name}: {each.stdout}{each.stderr}"
        return ended

    def each_refused(self, *lines: str, **settings: str) -> None:
        """Every verb ends with one error, which has these lines; `doctor` finds what the others fail at."""
        for name, ended in self.run(**settings).items():
            if name == DOCTOR:
                assert ended.returncode == PROBLEMS, ended.stdout + ended.stderr
                [problem] = [line for line in ended.stdout.splitlines() if line.startswith(" ✗ ")]
                assert problem.startswith(f" ✗ {lines[0]}")
                assert f"fix: {lines[-1]}" in ended.stdout
            else:
                assert ended.returncode == UNREACHABLE, ended.stdout + ended.stderr
                assert ended.stderr == "\n  ".join([f"✗ {lines[0]}", *lines[1:]]) + "\n"


def variables(address: str, **client: str) -> dict[str, str]:
    return {"MICROFLOW_KAFKA": address} | {f"MICROFLOW_KAFKA_{name.upper()}": value for name, value in client.items()}


def login(user: str, password: str = PASSWORD, *, tls: str | None = None) -> dict[str, str]:
    """The settings of a login, over TLS if its authority is named."""
    encrypted = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN"}
    if tls is not None:
        encrypted = {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512", "ssl_cafile": tls}
    return {**encrypted, "sasl_username": user, "sasl_password": password}


def as_table(address: str, client: Mapping[str, str]) -> str:
    """`[tool.microflow.kafka]` of a project's file, with the names that Kafka's own clients have for settings."""
    lines = [f"{name.replace('_', '.')} = {json.dumps(value)}" for name, value in client.items()]
    return "\n".join(['[project]\nname = "shop"\n[tool.microflow.kafka]', f'servers = "{address}"', *lines, ""])


# ── ways out ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_password_is_told_and_not_shown(shop: Shop, broker: SecureBroker) -> None:
    address = broker.address("SECURE")
    client = login("anna", WRONG, tls=broker.file("ca.pem"))
    shop.project.write("pyproject.toml", as_table(address, client))

    shop.each_refused(
        f"Kafka at {address} refuses the password of anna.",
        "Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-512",
        "Check sasl_mechanism, sasl_username and sasl_password (MICROFLOW_KAFKA_SASL_…).",
    )


def test_a_login_that_was_left_out_is_told_once_by_however_many_processes(shop: Shop, broker: SecureBroker) -> None:
    shop.verbs["run"] += ["--workers", "2"]

    shop.each_refused(
        f"Kafka at {broker.address('LOGIN')} expects a login.",
        "Set security_protocol to SASL_PLAINTEXT or SASL_SSL, sasl_mechanism, sasl_username and sasl_password.",
        **variables(broker.address("LOGIN")),
    )


def test_tls_that_only_one_side_speaks_is_told(shop: Shop, broker: SecureBroker) -> None:
    encrypted = {"security_protocol": "SSL", "ssl_cafile": broker.file("ca.pem")}
    everything = dict(shop.verbs)
    for names, address, client, other in (
        (("plan", DOCTOR), broker.address("TLS"), {}, "with"),
        (("run", "emit"), broker.plain, encrypted, "without"),
    ):
        shop.verbs = {name: everything[name] for name in names}
        shop.each_refused(
            f"What listens at {address} does not speak Kafka's protocol as it was asked to.",
            f"It closed the connection, as a listener {other} TLS would.",
            "Check the port, and security_protocol (PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL).",
            **variables(address, **client),
        )


# ── permissions ───────────────────────────────────────────────────────────────────────────────────────────────────


def made(shop: Shop, broker: SecureBroker) -> dict[str, str]:
    """Have the topics made by somebody who may, and return the settings of otto, who may do nothing."""

    async def make() -> None:
        transport = await KafkaTransport.open(read_client_settings(broker.plain, {}))
        try:
            await transport.administration.create(dict.fromkeys(shop.topics, TopicLayout(partitions=1)))
        finally:
            await transport.close()

    asyncio.run(make())
    return variables(broker.address("LOGIN"), **login("otto"))


def permit(broker: SecureBroker, *rights: tuple[str, str]) -> None:
    async def each_right() -> None:
        for operation, name in rights:
            group = name if name.startswith("payments_") else None
            await broker.permit("otto", operation, topic=None if group else name, group=group)

    asyncio.run(each_right())


def line(broker: SecureBroker, operation: str, resource: str) -> str:
    where = f"kafka-acls.sh --bootstrap-server {broker.address('LOGIN')}"
    return f"{where} --add --allow-principal User:otto --operation {operation} --{resource}"


def test_who_may_not_look_at_topics_is_told_which_and_what_permits_it(shop: Shop, broker: SecureBroker) -> None:
    otto = made(shop, broker)
    permit(broker, ("Describe", shop.read))

    ended = shop.run(**otto)

    unseen = f"{shop.written}, dlq-{shop.service}"
    assert {name: each.returncode for name, each in ended.items()} == {"run": 3, "plan": 3, "emit": 3, "doctor": 1}
    assert ended["plan"].stderr.splitlines()[0] == f"✗ Kafka does not permit to look at {unseen}."
    assert f"--operation Describe --topic {shop.written} --topic dlq-{shop.service} " in ended["plan"].stderr
    assert ended["emit"].stderr.splitlines()[0] == "✗ Kafka does not permit us to publish anything."
    assert ended["emit"].stderr.endswith(f"--operation Write --topic {shop.read}\n")
    assert "1 of 3 topics exist, and 2 cannot be looked at" in ended["doctor"].stdout
    for name in ("run", "doctor"):
        said = ended[name].stdout + ended[name].stderr
        for needed in (
            line(broker, "Read", f"topic {shop.read}"),
            line(broker, "Write", f"topic {shop.written}"),
            line(broker, "Write", f"topic dlq-{shop.service}"),
            line(broker, "Read", f"group {shop.service}"),
        ):
            assert needed in said


@pytest.mark.parametrize("missing", ["read", "write", "join"])
def test_a_service_that_lacks_one_permission_does_not_start_and_says_which(
    missing: str, shop: Shop, broker: SecureBroker
) -> None:
    otto = made(shop, broker)
    rights = {"read": ("Read", shop.read), "write": ("Write", shop.written), "join": ("Read", shop.service)}
    lacked = rights.pop(missing)
    permit(broker, *rights.values(), ("Write", f"dlq-{shop.service}"), *(("Describe", each) for each in shop.topics))

    ended = shop.run("run", DOCTOR, **otto)

    verb = {"read": "read", "write": "write to", "join": "join the group"}[missing]
    resource = f"{'group' if missing == 'join' else 'topic'} {lacked[1]}"
    assert ended["run"].returncode == UNREACHABLE
    assert ended["run"].stdout == ""
    assert ended["run"].stderr == (
        f"✗ Kafka at {broker.address('LOGIN')} does not permit {shop.service} to {verb} {lacked[1]}.\n"
        f"  otto lacks the permission.\n"
        f"  {line(broker, lacked[0], resource)}\n"
    )
    assert ended[DOCTOR].returncode == PROBLEMS
    assert ended[DOCTOR].stdout.count(" ✗ ") == 1
    assert f"fix: {line(broker, lacked[0], resource)}\n" in ended[DOCTOR].stdout


def test_with_the_least_that_a_service_needs_it_starts(shop: Shop, broker: SecureBroker) -> None:
    otto = made(shop, broker)
    written = [("Write", name) for name in shop.topics[1:]]
    permit(broker, ("Read", shop.read), ("Read", shop.service), *written)

    service = shop.project.start("run", shop.file, environment={**QUIET, **otto})

    service.until_ready()
    assert service.stop() == 0
    assert service.stderr == ""


# ── the way in ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_with_the_right_login_over_tls_every_verb_does_its_work(shop: Shop, broker: SecureBroker) -> None:
    client = login("anna", tls=broker.file("ca.pem"))
    password = {"MICROFLOW_KAFKA_SASL_PASSWORD": client.pop("sasl_password"), **QUIET}
    shop.project.write("pyproject.toml", as_table(broker.address("SECURE"), client))

    planned = shop.run("plan", **password)["plan"]
    shop.verbs["apply"] = ["topics", "apply", shop.file, "--partitions", "2"]
    applied = shop.run("apply", **password)["apply"]
    # -v: even where all that the driver says is shown, a login is not.
    service = shop.project.start("run", shop.file, "-v", environment=password)
    service.until_ready()
    ended = shop.run("emit", DOCTOR, **password)
    emitted, examined = ended["emit"], ended[DOCTOR]
    service.until(service.reports)
    assert service.stop() == 0

    assert "3 to create, 0 to change." in planned.stdout
    assert applied.returncode == 0, applied.stdout + applied.stderr
    assert emitted.returncode == 0, emitted.stdout + emitted.stderr
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert "all is well" in examined.stdout
    [report] = service.reports()
    assert (report["outcome"], [each["type"] for each in report["emitted"]]) == ("done", [shop.written])
    assert "SaslHandShake" in service.stdout
    assert PASSWORD not in service.stdout + service.stderr
