"""The interpreter and the packages that are installed in it."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from microflow.cli.probes.findings import Finding, ok, problem
from microflow.version import __version__

OURS = "microworkflow"
NAMESAKE = "microflow"
DRIVERS = ("aiokafka", "asyncpg")


async def look_at_packages() -> Sequence[Finding]:
    """The versions of what we run on, and whether somebody else's package lies in our place."""
    drivers = [f"{name} {installed(name)}" for name in DRIVERS if installed(name)]
    uvloop = "uvloop on" if importlib.util.find_spec("uvloop") else "uvloop off (pip install uvloop)"
    findings = [ok(f"python {platform.python_version()}", f"microflow {__version__}", *drivers, uvloop)]
    if installed(NAMESAKE) is not None:
        findings.append(
            problem(
                f"the package {NAMESAKE} {installed(NAMESAKE)}, which is somebody else's, is installed too: both write "
                f"into {_folder()}",
                f"pip uninstall {NAMESAKE} && pip install --force-reinstall {OURS}",
            )
        )
    return findings


def installed(package: str) -> str | None:
    """The version of a distribution, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _folder() -> str:
    return str(Path(str(distribution(NAMESAKE).locate_file("microflow"))))
