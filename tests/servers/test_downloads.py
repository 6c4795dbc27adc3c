"""What is downloaded or built is there when it is whole, made once for all who want it, or it is told why not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from servers.folders import is_alive
from servers.processes import wait_until

ROOT = Path(__file__).parents[2]
BUILDS = """
import sys
from servers.downloads import NotInstalled, build_jaeger, jaeger_program

try:
    build_jaeger()
    print(jaeger_program())
except NotInstalled as missing:
    sys.exit(str(missing))
"""
# Stands for a build of minutes. The nth one is held before it writes the program, or after that, while a file says so.
GO = """#!/bin/sh
if [ "$1" = version ]; then echo "go version go{version} linux/amd64"; exit; fi
for argument; do case $argument in -o=*) program=${{argument#-o=}} ;; esac; done
echo "go: downloading something v1.0.0" >&2
printf 'half' > "$program"
echo $$ >> {folder}/builds
turn=$(wc -l < {folder}/builds)
while [ -e {folder}/before-$turn ]; do sleep 0.02; done
if [ -e {folder}/broken ]; then echo "the disk is full" >&2; exit 1; fi
printf 'built by %s' $$ > "$program"
echo $$ >> {folder}/written
while [ -e {folder}/after-$turn ]; do sleep 0.02; done
"""


@dataclass(frozen=True)
class Workshop:
    """A cache of its own, and a Go whose builds are counted and held."""

    folder: Path

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", BUILDS],
            cwd=ROOT,
            env={
                **os.environ,
                "PATH": f"{self.folder}/bin:/usr/bin:/bin",
                "XDG_CACHE_HOME": str(self.folder / "cache"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def has_go(self, version: str) -> None:
        go = self.folder / "bin" / "go"
        go.write_text(GO.format(folder=self.folder, version=version))
        go.chmod(0o755)

    def hold(self, place: str) -> Path:
        """Hold a build until this file is gone."""
        file = self.folder / place
        file.touch()
        return file

    def builds(self, what: str = "builds") -> list[int]:
        """The process ids of all builds that have begun, or have `written` the program."""
        file = self.folder / what
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []

    def waiting(self) -> int:
        """How many processes wait for a lock in the cache."""
        locks = {f":{file.stat().st_ino}" for file in self.folder.glob("cache/microflow/*.lock")}
        lines = Path("/proc/locks").read_text().splitlines()
        return sum(any(lock in line for lock in locks) for line in lines if "->" in line)


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    (tmp_path / "bin").mkdir()
    workshop = Workshop(tmp_path)
    workshop.has_go("1.25.0")
    yield workshop
    for file in (*tmp_path.glob("before-*"), *tmp_path.glob("after-*")):
        file.unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="who waits for a lock is read from /proc")
def test_a_program_that_several_processes_want_at_once_is_built_once(workshop: Workshop) -> None:
    held = workshop.hold("before-1")
    asking = [workshop.start() for _ in range(3)]
    wait_until(
        lambda: len(workshop.builds()) == 1 and workshop.waiting() == 2, seconds=30, what="two wait for the third"
    )

    held.unlink()

    answers = [process.communicate(timeout=30)[0].strip() for process in asking]

    [build] = workshop.builds()
    assert len(set(answers)) == 1
    assert Path(answers[0]).read_text() == f"built by {build}"


def test_a_build_that_is_killed_leaves_nothing_half_made(workshop: Workshop) -> None:
    first, second = workshop.hold("before-1"), workshop.hold("after-2")
    killed = workshop.start()
    wait_until(lambda: bool(workshop.builds()), seconds=30, what="the build has begun")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    again = workshop.start()
    wait_until(lambda: bool(workshop.builds("written")), seconds=30, what="the second build has written its program")
    orphan, build = workshop.builds()

    # What the killed process had started lives on, and writes its program only now.
    assert is_alive(orphan)
    first.unlink()
    wait_until(lambda: not is_alive(orphan), seconds=30, what="the first build has ended")
    second.unlink()

    said, told = again.communicate(timeout=30)
    assert Path(said.strip()).read_text() == f"built by {build}", told
    assert not list((workshop.folder / "cache" / "microflow").glob("*part"))


def test_a_build_that_fails_is_told_by_its_reason_and_tried_again(workshop: Workshop) -> None:
    (workshop.folder / "broken").touch()

    said, told = workshop.start().communicate(timeout=30)

    assert said == ""
    assert told.splitlines()[-1] == "Go could not build Jaeger: the disk is full"
    (workshop.folder / "broken").unlink()
    said, told = workshop.start().communicate(timeout=30)
    assert Path(said.strip()).read_text().startswith("built by"), told


def test_a_go_that_is_too_old_is_told(workshop: Workshop) -> None:
    workshop.has_go("1.19.8")

    _, told = workshop.start().communicate(timeout=30)

    assert told.startswith("Jaeger is built with Go 1.21 or newer, and ")
    assert "go version go1.19.8" in told
    assert workshop.builds() == []
