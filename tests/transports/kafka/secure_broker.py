"""A broker that encrypts, asks who is there and says who may do what: one listener for each way to get in."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import CreateAclsRequest, DescribeAclsRequest

from servers.kafka import Kafka
from tests.transports.kafka.tools import run_tool

PASSWORD = "correct-horse-battery"
PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule"
OAUTH = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"

# The numbers of Kafka's protocol.
TOPIC, GROUP = 2, 3
LITERAL, ALLOW = 3, 3
OPERATIONS = {"Read": 3, "Write": 4, "Describe": 8}
ANY_HOST = "*"

LISTENERS = {
    "TLS": "SSL",
    "MUTUAL": "SSL",
    "STRANGE": "SSL",
    "LOGIN": "SASL_PLAINTEXT",
    "SECURE": "SASL_SSL",
}


@dataclass(frozen=True)
class SecureBroker:
    """`anna` may do everything, `otto` nothing."""

    kafka: Kafka
    folder: Path

    def address(self, listener: str, *, host: str = "127.0.0.1") -> str:
        return self.kafka.address(listener).replace("127.0.0.1", host)

    @property
    def plain(self) -> str:
        return self.kafka.address()

    def file(self, name: str) -> str:
        return str(self.folder / name)

    async def permit(self, user: str, operation: str, *, topic: str | None = None, group: str | None = None) -> None:
        """Give a user a right, and return when the broker knows of it."""
        resource = (TOPIC, topic) if topic is not None else (GROUP, group)
        right = (*resource, LITERAL, f"User:{user}", ANY_HOST, OPERATIONS[operation], ALLOW)
        client = AIOKafkaClient(bootstrap_servers=self.plain)
        await client.bootstrap()
        try:
            [(code, said)] = (await client.send(client.get_random_node(), CreateAclsRequest(*right))).creation_responses
            assert code == 0, said
            while not (await client.send(client.get_random_node(), DescribeAclsRequest(*right))).resources:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        finally:
            await client.close()


@contextmanager
def secure_broker(folder: Path) -> Iterator[SecureBroker]:
    """Make certificates, users and rights, and start the broker."""
    _certificates(folder)
    properties = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.strange.ssl.keystore.type": "PEM",
        "listener.name.strange.ssl.keystore.location": str(folder / "strange.pem"),
        "listener.name.login.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.login.plain.sasl.jaas.config": f"{PLAIN} required user_anna={PASSWORD} user_otto={PASSWORD};",
        "listener.name.login.scram-sha-256.sasl.jaas.config": f"{SCRAM} required;",
        "listener.name.login.scram-sha-512.sasl.jaas.config": f"{SCRAM} required;",
        "listener.name.secure.sasl.enabled.mechanisms": "SCRAM-SHA-512,OAUTHBEARER",
        "listener.name.secure.scram-sha-512.sasl.jaas.config": f"{SCRAM} required;",
        "listener.name.secure.oauthbearer.sasl.jaas.config": f"{OAUTH} required;",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS;User:anna;User:CN=us",
    }
    with Kafka(listeners=LISTENERS, properties=properties) as kafka:
        with ThreadPoolExecutor() as both:  # in one request the broker does not take them
            list(both.map(lambda bits: _give_scram(kafka, bits), (256, 512)))
        yield SecureBroker(kafka, folder)


def _give_scram(kafka: Kafka, bits: int) -> None:
    scram = f"SCRAM-SHA-{bits}=[password={PASSWORD}]"
    arguments = ["--alter", "--add-config", scram, "--entity-type", "users", "--entity-name", "anna"]
    run_tool("kafka.admin.ConfigCommand", "--bootstrap-server", kafka.address(), *arguments)


def _certificates(folder: Path) -> None:
    """An authority, the broker's certificate for localhost, one for another host, and a client's."""
    _openssl(folder, "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem")
    _openssl(folder, "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=nobody -keyout other.key -out other-ca.pem")
    for name, subject, names in (
        ("broker", "/CN=broker", "DNS:localhost,IP:127.0.0.1"),
        ("strange", "/CN=strange", "DNS:kafka.example"),
        ("us", "/CN=us", "DNS:us"),
    ):
        (folder / f"{name}.ext").write_text(f"subjectAltName={names}\n")
        _openssl(folder, f"req -newkey rsa:2048 -nodes -subj {subject} -keyout {name}.key -out {name}.csr")
        signed = f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile {name}.ext"
        _openssl(folder, f"{signed} -out {name}.crt")
        both = (folder / f"{name}.key").read_text() + (folder / f"{name}.crt").read_text()
        (folder / f"{name}.pem").write_text(both)


def unsecured_token(user: str) -> str:
    """A token that a broker without a validator of its own takes: not signed, and not over."""
    now = int(time.time())
    return ".".join([_base64('{"alg":"none"}'), _base64(f'{{"sub":"{user}","iat":{now},"exp":{now + 3600}}}'), ""])


def _base64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def _openssl(folder: Path, arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)
