"""Getting into a cluster that encrypts, asks who is there and permits little; and one plain error for each way out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.server
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from microflow.conformance.transports.harness import LONG, Member, member_of, numbered, publish, refuses, values
from microflow.errors import LogRefused, LogUnreachable, TopicRefused, TransportError
from microflow.ports import TopicLayout, TopicPartition
from microflow.transports.kafka import Given, KafkaTransport, read_client_settings
from servers.ports import free_ports
from tests.asynchronous import asynchronous
from tests.transports.kafka.secure_broker import PASSWORD, SecureBroker, secure_broker, unsecured_token

pytestmark = pytest.mark.local_servers("kafka")

ANNA = {"sasl_username": "anna", "sasl_password": PASSWORD}
OTTO = {"security_protocol": "SASL_PLAINTEXT", "sasl_username": "otto", "sasl_password": PASSWORD}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    with secure_broker(tmp_path_factory.mktemp("certificates")) as it:
        yield it


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """aiokafka's own words are no part of what a user is told."""
    logger = logging.getLogger("aiokafka")
    level, logger.level = logger.level, logging.CRITICAL
    yield
    logger.setLevel(level)


@contextlib.asynccontextmanager
async def opened(servers: str, **values: str) -> AsyncIterator[KafkaTransport]:
    given = {name: Given(value, f"<{name}>") for name, value in values.items()}
    transport = await KafkaTransport.open(read_client_settings(servers, given))
    try:
        yield transport
    finally:
        await transport.close()


async def told(servers: str, **values: str) -> TransportError:
    """The error of an attempt to get in, which must not hold the password and leaves no connection open."""
    before = open_connections()
    with pytest.raises(TransportError) as caught:
        async with opened(servers, **values):
            pass
    assert not open_connections() - before
    assert PASSWORD not in f"{caught.value}{caught.value!r}"
    return caught.value


def open_connections() -> set[asyncio.Transport]:
    # By their type: to be asked what it is an instance of wakes a lazy object.
    transports = (each for each in gc.get_objects() if issubclass(type(each), asyncio.Transport))
    return {each for each in transports if not each.is_closing()}


def tls(broker: SecureBroker, **others: str) -> dict[str, str]:
    return {"security_protocol": "SSL", "ssl_cafile": broker.file("ca.pem"), **others}


async def carries_events(transport: KafkaTransport) -> None:
    """Create, publish, read as a member of a group: what a service does."""
    topic = f"secure-{uuid.uuid4().hex}"
    await transport.administration.create({topic: TopicLayout(partitions=1)})
    async with member_of(transport, [topic], group=topic) as member:
        await publish(transport, *numbered(topic, 3))
        assert sorted(int(each.value or b"") for each in await member.collect(3)) == [0, 1, 2]


# ── ways in ───────────────────────────────────────────────────────────────────────────────────────────────────────


@asynchronous
async def test_events_are_carried_over_tls_whose_name_and_authority_are_checked(broker: SecureBroker) -> None:
    async with opened(broker.address("TLS"), **tls(broker)) as transport:
        await carries_events(transport)


@asynchronous
async def test_events_are_carried_under_a_client_certificate(broker: SecureBroker) -> None:
    own = {"ssl_certfile": broker.file("us.crt"), "ssl_keyfile": broker.file("us.key")}
    async with opened(broker.address("MUTUAL"), **tls(broker, **own)) as transport:
        await carries_events(transport)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@asynchronous
async def test_events_are_carried_after_a_login(mechanism: str, broker: SecureBroker) -> None:
    login = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": mechanism, **ANNA}
    async with opened(broker.address("LOGIN"), **login) as transport:
        await carries_events(transport)


@asynchronous
async def test_events_are_carried_after_a_login_over_tls(broker: SecureBroker) -> None:
    login = tls(broker, sasl_mechanism="SCRAM-SHA-512", **ANNA) | {"security_protocol": "SASL_SSL"}
    async with opened(broker.address("SECURE"), **login) as transport:
        await carries_events(transport)


@asynchronous
async def test_events_are_carried_with_a_token_of_a_command(broker: SecureBroker) -> None:
    command = f"echo {unsecured_token('anna')}"
    login = tls(broker, sasl_mechanism="OAUTHBEARER", sasl_oauth_token_command=command)
    async with opened(broker.address("SECURE"), **login | {"security_protocol": "SASL_SSL"}) as transport:
        await carries_events(transport)


@asynchronous
async def test_a_member_with_a_name_of_its_own_comes_back_to_its_partitions(broker: SecureBroker) -> None:
    topic = f"static-{uuid.uuid4().hex}"
    async with opened(broker.plain, group_instance_id="pod-0") as transport:
        await transport.administration.create({topic: TopicLayout(partitions=2)})
        async with member_of(transport, [topic], group=topic) as member:
            await member.settle()
            assert len(member.partitions) == 2
    async with (
        opened(broker.plain, group_instance_id="pod-0") as transport,
        member_of(transport, [topic], group=topic) as member,
    ):
        await member.settle()
        assert len(member.partitions) == 2


# ── ways out ──────────────────────────────────────────────────────────────────────────────────────────────────────


@asynchronous
async def test_a_broker_that_nobody_we_trust_vouches_for_is_refused(broker: SecureBroker) -> None:
    for values_ in (tls(broker, ssl_cafile=broker.file("other-ca.pem")), {"security_protocol": "SSL"}):
        error = await told(broker.address("TLS"), **values_)
        assert error.what == f"The certificate of Kafka at {broker.address('TLS')} is not trusted."


@asynchronous
async def test_a_broker_with_another_name_is_refused_unless_names_are_not_checked(broker: SecureBroker) -> None:
    address = broker.address("STRANGE", host="localhost")

    error = await told(address, **tls(broker))

    assert error.what == f"The certificate of Kafka at {address} is not trusted."
    assert "localhost" in (error.why or "")
    async with opened(broker.address("STRANGE"), **tls(broker, ssl_check_hostname="false")):
        pass


@asynchronous
async def test_a_missing_client_certificate_is_told(broker: SecureBroker) -> None:
    error = await told(broker.address("MUTUAL"), **tls(broker))

    assert "asks for a client certificate" in error.what


@asynchronous
async def test_tls_on_one_side_only_is_told(broker: SecureBroker) -> None:
    to_tls = await told(broker.address("TLS"))
    to_plain = await told(broker.plain, **tls(broker))

    assert to_tls.why == "It closed the connection, as a listener with TLS would."
    assert to_plain.why == "It closed the connection, as a listener without TLS would."
    assert "security_protocol" in (to_tls.fix or "")


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@asynchronous
async def test_a_wrong_password_is_told_and_not_shown(mechanism: str, broker: SecureBroker) -> None:
    login = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": mechanism, "sasl_username": "anna"}

    error = await told(broker.address("LOGIN"), **login, sasl_password="battery-staple")

    assert error.what == f"Kafka at {broker.address('LOGIN')} refuses the password of anna."
    assert "battery-staple" not in str(error)


@asynchronous
async def test_a_login_that_was_left_out_is_told(broker: SecureBroker) -> None:
    error = await told(broker.address("LOGIN"))

    assert error.what == f"Kafka at {broker.address('LOGIN')} expects a login."


@asynchronous
async def test_a_login_where_none_is_taken_is_told(broker: SecureBroker) -> None:
    plain = await told(broker.plain, security_protocol="SASL_PLAINTEXT", **ANNA)
    encrypted = await told(broker.address("TLS"), **tls(broker, **ANNA) | {"security_protocol": "SASL_SSL"})

    assert plain.what == f"What listens at {broker.plain} takes no login."
    assert (plain.fix or "").endswith("(MICROFLOW_KAFKA_SECURITY_PROTOCOL) to PLAINTEXT.")
    assert encrypted.what == f"What listens at {broker.address('TLS')} takes no login."
    assert (encrypted.fix or "").endswith("to SSL.")


@asynchronous
async def test_a_mechanism_that_the_broker_does_not_have_is_told(broker: SecureBroker) -> None:
    login = tls(broker, sasl_mechanism="PLAIN", **ANNA) | {"security_protocol": "SASL_SSL"}

    assert "does not take this sasl_mechanism" in (await told(broker.address("SECURE"), **login)).what


@asynchronous
async def test_a_token_that_the_broker_does_not_take_is_told(broker: SecureBroker) -> None:
    login = tls(broker, sasl_mechanism="OAUTHBEARER", sasl_oauth_token_command="echo nonsense")

    error = await told(broker.address("SECURE"), **login | {"security_protocol": "SASL_SSL"})

    assert error.what == f"Kafka at {broker.address('SECURE')} refuses who we say we are."
    assert "nonsense" not in str(error)


@asynchronous
async def test_a_port_where_nobody_listens_and_a_host_that_is_none_are_told() -> None:
    [port] = free_ports(1)

    nobody, nowhere = await told(f"127.0.0.1:{port}"), await told("nowhere.invalid:9092")

    assert nobody.what == f"Kafka is not reachable at 127.0.0.1:{port} (connection refused)."
    assert nowhere.what == "Kafka is not reachable at nowhere.invalid:9092 (no such host)."
    assert isinstance(nobody, LogUnreachable)
    assert isinstance(nowhere, LogUnreachable)


@asynchronous
async def test_a_port_where_somebody_speaks_another_protocol_is_told() -> None:
    class Silent(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base's name for it
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"127.0.0.1:{server.server_address[1]}"
        error = await told(address)
        encrypted = await told(address, security_protocol="SSL")
    finally:
        server.shutdown()
        server.server_close()

    assert error.what == f"What listens at {address} is not Kafka."
    assert not isinstance(error, LogUnreachable)
    assert encrypted.what == f"What answers at {address} does not speak TLS."


# ── permissions ───────────────────────────────────────────────────────────────────────────────────────────────────


@asynchronous
async def test_without_a_permission_nothing_is_published_and_the_error_says_what_is_missing(
    broker: SecureBroker,
) -> None:
    topic, another = f"forbidden-{uuid.uuid4().hex}", f"another-{uuid.uuid4().hex}"
    async with opened(broker.plain) as admin, opened(broker.address("LOGIN"), **OTTO) as transport:
        await admin.administration.create({topic: TopicLayout(partitions=1)})

        [unseen] = await transport.publish(numbered(topic, 1))
        await broker.permit("otto", "Describe", topic=topic)
        [nothing] = await transport.publish(numbered(topic, 1))
        await broker.permit("otto", "Write", topic=another)
        [refused] = await transport.publish(numbered(topic, 1))
        await broker.permit("otto", "Write", topic=topic)
        [taken] = await transport.publish(numbered(topic, 1))

    assert isinstance(unseen, TopicRefused)
    assert unseen.what == f"Kafka does not permit to look at {topic}."
    assert isinstance(nothing, LogRefused)
    assert nothing.what == "Kafka does not permit us to publish anything."
    assert nothing.fix == f"kafka-acls.sh --add --allow-principal User:… --operation Write --topic {topic}"
    assert isinstance(refused, TopicRefused)
    assert refused.what == f"Kafka does not permit to write to {topic}[0]."
    assert taken is None


@asynchronous
async def test_without_a_permission_nothing_is_read_and_with_the_least_a_service_needs_everything_works(
    broker: SecureBroker,
) -> None:
    topic = f"least-{uuid.uuid4().hex}"
    async with opened(broker.plain) as admin, opened(broker.address("LOGIN"), **OTTO) as transport:
        await admin.administration.create({topic: TopicLayout(partitions=1)})
        await publish(admin, *numbered(topic, 1))
        await broker.permit("otto", "Describe", topic=topic)
        async with member_of(transport, [topic], group=topic) as member:
            no_group = await refuses(_fetch(member))
            await broker.permit("otto", "Read", group=topic)
            no_topic = await refuses(_fetch(member))
            while "group" in no_topic.what:  # told before it was permitted
                no_topic = await refuses(_fetch(member))
            await broker.permit("otto", "Read", topic=topic)
            while not member.records:
                with contextlib.suppress(TransportError):
                    await member.fetch()

    assert isinstance(no_group, LogRefused)
    assert isinstance(no_topic, TopicRefused)
    assert no_topic.what == f"Kafka does not permit to read {topic}[0] at 0."
    assert f"--operation Read --topic {topic} " in (no_topic.fix or "")
    assert values(member.records) == [0]


@asynchronous
async def test_what_is_refused_is_left_at_once_by_who_was_told(broker: SecureBroker) -> None:
    topic = f"left-{uuid.uuid4().hex}"
    async with opened(broker.plain) as admin, opened(broker.address("LOGIN"), **OTTO) as transport:
        await admin.administration.create({topic: TopicLayout(partitions=1)})
        await broker.permit("otto", "Describe", topic=topic)
        error: TransportError | None = None

        async def until_told() -> None:
            nonlocal error
            async with transport.subscribe([topic], group=topic, listener=_Deaf()) as subscription:
                while error is None:
                    try:
                        await subscription.fetch(max_records=1, wait=LONG)
                    except TransportError as told:
                        error = told

        left, _ = await asyncio.wait([asyncio.create_task(until_told())], timeout=LONG.total_seconds())

    assert left
    assert isinstance(error, LogRefused)
    assert f"--operation Read --group {topic} " in (error.fix or "")


@asynchronous
async def test_of_several_topics_those_are_named_that_may_not_be_looked_at(broker: SecureBroker) -> None:
    seen, unseen = f"seen-{uuid.uuid4().hex}", f"unseen-{uuid.uuid4().hex}"
    async with opened(broker.plain) as admin, opened(broker.address("LOGIN"), **OTTO) as transport:
        await admin.administration.create({seen: TopicLayout(partitions=1), unseen: TopicLayout(partitions=1)})
        await broker.permit("otto", "Describe", topic=seen)

        error = await refuses(transport.topics.describe([seen, unseen]))

    assert error.what == f"Kafka does not permit to look at {unseen}."


# ── secrets ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
@asynchronous
async def test_a_login_is_written_into_no_log(
    mechanism: str, broker: SecureBroker, caplog: pytest.LogCaptureFixture
) -> None:
    login = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": mechanism, **ANNA}
    with caplog.at_level(logging.DEBUG, "aiokafka"):
        async with opened(broker.address("LOGIN"), **login) as transport:
            await carries_events(transport)

    assert "SaslHandShakeRequest" in caplog.text
    assert "SaslAuthenticate" not in caplog.text
    assert PASSWORD not in caplog.text


class _Deaf:
    """A listener that is told nothing, because it gets nothing."""

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        raise AssertionError(partitions)

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        raise AssertionError(partitions)


async def _fetch(member: Member) -> object:
    """Fetch until something is told."""
    async with asyncio.timeout(LONG.total_seconds()):
        while True:
            await member.fetch()
