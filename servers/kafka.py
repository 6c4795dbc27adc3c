"""Apache Kafka on this machine: a broker, or a cluster of several that are killed, paused and restarted one by one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from servers.downloads import java, kafka_jars
from servers.folders import new_folder, remove
from servers.ports import LOOPBACK, free_ports
from servers.processes import Process, ServerFailed
from servers.proxy import Proxy

STARTS_WITHIN = 120.0
# Only C1: it starts faster, and no test runs long enough for C2. A benchmark hands in its own options.
JAVA_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
LISTENER = "PLAINTEXT"
INTERNAL = "INTERNAL"

PROPERTIES = {
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "log.cleaner.dedupe.buffer.size": "8388608",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
    "controlled.shutdown.enable": "false",
}


class Broker:
    """One node, broker and controller. It keeps its ports and its data from start to start."""

    def __init__(
        self,
        folder: Path,
        *,
        node: int,
        cluster_id: str,
        properties: Mapping[str, str],
        java_options: Sequence[str],
    ) -> None:
        self.node = node
        self._cluster_id = cluster_id
        self._folder = folder
        self._file = folder / "server.properties"
        self._java_options = tuple(java_options)
        self._ports = _ports(properties["advertised.listeners"])
        self._process: Process | None = None
        self.proxy: Proxy | None = None
        folder.mkdir()
        self._file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))

    def address(self, listener: str = LISTENER) -> str:
        """`host:port` of a listener."""
        return f"{LOOPBACK}:{self._ports[listener]}"

    @property
    def port(self) -> int:
        """The port of the plain listener."""
        return self._ports[LISTENER]

    @property
    def pid(self) -> int:
        """The process id; only while it runs."""
        return self._running().pid

    @property
    def log(self) -> Path:
        """What the broker prints."""
        return self._folder / "broker.log"

    def start(self) -> None:
        """Start the process; return at once. Formats the folder the first time."""
        if not (self._folder / "data" / "meta.properties").exists():
            self._format()
        self._process = Process(
            [java(), *self._java_options, *_class_path(), "kafka.Kafka", self._file],
            log=self.log,
        )

    def stop(self) -> None:
        """Stop it as an operator would (SIGTERM), and wait for it."""
        process = self._running()
        process.send(signal.SIGCONT)
        process.send(signal.SIGTERM)
        process.wait(seconds=60)

    def kill(self) -> None:
        """End it now (SIGKILL); what it has not written is lost."""
        self._running().kill()

    def pause(self) -> None:
        """Stop its process in its tracks (SIGSTOP): its connections stay open and nothing answers."""
        self._running().send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        self._running().send(signal.SIGCONT)

    @property
    def running(self) -> bool:
        """Whether there is a process, be it paused."""
        return self._process is not None and self._process.running

    def last_lines(self) -> str:
        """The end of the log, for a message."""
        return self._running().last_lines()

    def _running(self) -> Process:
        assert self._process is not None, "the broker has not been started"
        return self._process

    def _format(self) -> None:
        run_tool("kafka.tools.StorageTool", "format", f"--cluster-id={self._cluster_id}", "-c", str(self._file))


def run_tool(tool: str, *arguments: str) -> str:
    """Run one of Kafka's own tools, named by its class, and return what it says. Raises ServerFailed."""
    options = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", *_class_path()]
    done = subprocess.run([java(), *options, tool, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServerFailed(f"{tool} has failed:\n{done.stdout}{done.stderr}")
    return done.stdout


class Kafka:
    """A cluster of one or more brokers on this machine, gone with this process. Use it in a `with`.

    `properties` are set on each broker; `listeners` adds some to the plain one: {"SASL": "SASL_PLAINTEXT"}. With
    `proxied`, clients reach each broker through its `proxy`; the brokers reach each other without.
    """

    def __init__(
        self,
        *,
        brokers: int = 1,
        properties: Mapping[str, str] | None = None,
        listeners: Mapping[str, str] | None = None,
        proxied: bool = False,
        java_options: Sequence[str] = JAVA_OPTIONS,
    ) -> None:
        self._folder = new_folder("kafka")
        # It may begin with a dash, and is then taken for an option unless it stands behind an equals sign.
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        protocols = {LISTENER: "PLAINTEXT", INTERNAL: "PLAINTEXT", **(listeners or {})}
        ports = free_ports(brokers * (1 + len(protocols)))
        controllers = {node: ports.pop() for node in range(1, brokers + 1)}
        replication = min(brokers, 3)
        self.brokers: list[Broker] = []
        for node, controller in controllers.items():
            bound = {name: ports.pop() for name in protocols}
            proxy = Proxy(bound[LISTENER]) if proxied else None
            advertised = {**bound, LISTENER: proxy.port} if proxy else bound
            folder = self._folder / f"broker-{node}"
            all_properties = {
                **PROPERTIES,
                **_replication(replication),
                **_roles(node, controllers),
                **_listeners(protocols, bound, advertised, controller),
                "log.dirs": str(folder / "data"),
                **(properties or {}),
            }
            broker = Broker(
                folder, node=node, cluster_id=cluster_id, properties=all_properties, java_options=java_options
            )
            broker.proxy = proxy
            self.brokers.append(broker)

    def address(self, listener: str = LISTENER) -> str:
        """Bootstrap servers: `host:port` of every broker, with commas between them."""
        return ",".join(broker.address(listener) for broker in self.brokers)

    @property
    def folder(self) -> Path:
        """Where the brokers keep their data and logs."""
        return self._folder

    def start(self) -> None:
        """Start all brokers and return when clients can use them: metadata, and the coordinator of groups."""
        for broker in self.brokers:
            broker.start()
        self.wait_until_ready()

    def wait_until_ready(self, *, seconds: float = STARTS_WITHIN) -> None:
        """Return when all running brokers are known and a group finds its coordinator."""
        try:
            asyncio.run(until_ready(self.address(), brokers=len(self._alive()), seconds=seconds))
        except TimeoutError as late:
            logs = "\n".join(broker.last_lines() for broker in self.brokers)
            raise ServerFailed(f"Kafka is not ready: {late}\n{logs}") from None

    def stop(self) -> None:
        """End all brokers and delete their data."""
        for broker in self._alive():
            broker.kill()
        for broker in self.brokers:
            if broker.proxy is not None:
                broker.proxy.close()
        remove(self._folder)

    def __enter__(self) -> Kafka:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def _alive(self) -> list[Broker]:
        return [broker for broker in self.brokers if broker.running]


def require() -> None:
    """Have all that a local Kafka needs, downloaded if need be. Raises NotInstalled."""
    kafka_jars()
    java()


async def until_ready(bootstrap: str, *, brokers: int = 1, seconds: float = STARTS_WITHIN) -> None:
    """Return when `brokers` brokers are known and a group finds its coordinator. Raises TimeoutError.

    The first question for a coordinator makes the topic of offsets, which takes seconds: better here than in a test.
    """
    deadline = time.monotonic() + seconds
    # Each attempt that is too early would be an error in the log.
    quiet = logging.getLogger("aiokafka")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        while problem := await _not_ready(bootstrap, brokers=brokers):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{problem} after {seconds:.0f} s")
            await asyncio.sleep(0.1)
    finally:
        quiet.setLevel(level)


async def _not_ready(bootstrap: str, *, brokers: int) -> str:
    """What is not there yet, or nothing."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=5000)
    problem = "nobody answers"
    try:
        await admin.start()
        known = len((await admin.describe_cluster())["brokers"])
        problem = f"{known} of {brokers} brokers are there"
        if known >= brokers:
            problem = "groups have no coordinator yet"
            await admin.find_coordinator("warm-up")
            return ""
    except (KafkaError, OSError, TimeoutError):
        pass
    finally:
        with contextlib.suppress(KafkaError, OSError):
            await admin.close()
    return problem


def _class_path() -> Sequence[str]:
    return ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{kafka_jars()}/*"]


def _replication(factor: int) -> Mapping[str, str]:
    return {
        "default.replication.factor": str(factor),
        "min.insync.replicas": str(max(1, factor - 1)),
        "offsets.topic.replication.factor": str(factor),
        "transaction.state.log.replication.factor": str(factor),
        "transaction.state.log.min.isr": str(max(1, factor - 1)),
        "share.coordinator.state.topic.replication.factor": str(factor),
        "share.coordinator.state.topic.min.isr": str(max(1, factor - 1)),
    }


def _roles(node: int, controllers: Mapping[int, int]) -> Mapping[str, str]:
    return {
        "process.roles": "broker,controller",
        "node.id": str(node),
        "controller.quorum.voters": ",".join(f"{other}@{LOOPBACK}:{port}" for other, port in controllers.items()),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": INTERNAL,
    }


def _listeners(
    protocols: Mapping[str, str], bound: Mapping[str, int], advertised: Mapping[str, int], controller: int
) -> Mapping[str, str]:
    return {
        "listeners": f"{_places(bound)},CONTROLLER://{LOOPBACK}:{controller}",
        "advertised.listeners": _places(advertised),
        "listener.security.protocol.map": ",".join(
            f"{name}:{protocol}" for name, protocol in {**protocols, "CONTROLLER": "PLAINTEXT"}.items()
        ),
    }


def _places(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://{LOOPBACK}:{port}" for name, port in ports.items())


def _ports(advertised: str) -> Mapping[str, int]:
    pairs = (listener.split("://") for listener in advertised.split(","))
    return {name: int(place.rpartition(":")[2]) for name, place in pairs}
