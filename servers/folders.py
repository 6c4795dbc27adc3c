"""Where servers keep their files: what was downloaded in the user's cache, data in a temporary folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache() -> Path:
    """The folder for downloads, outside of any checkout: `$XDG_CACHE_HOME/microflow` or `~/.cache/microflow`."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "microflow"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def temporary() -> Path:
    """This user's folder for servers that run; others may pass through it, as root's PostgreSQL must."""
    folder = Path(tempfile.gettempdir()) / f"microflow-servers-{os.getuid()}"
    folder.mkdir(mode=0o711, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    folder.chmod(0o711)
    return folder


def new_folder(name: str) -> Path:
    """A new, empty folder for one server's files; what was left behind by processes that are gone is deleted first."""
    for left in temporary().glob("*-of-*-*"):
        if not is_alive(int(left.name.split("-")[-2])):
            remove(left)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-of-{os.getpid()}-", dir=temporary()))
    folder.chmod(0o711)
    return folder


def remove(left: Path) -> None:
    """Delete a server's folder or file, as far as it is there."""
    if left.is_mount():
        subprocess.run(["umount", "--lazy", str(left)], check=True, capture_output=True)
    if left.is_dir():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether a process has this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Keep other processes out; the lock is gone with this process, however it ends."""
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_locked(file: Path) -> bool:
    """Whether a process holds the lock now; a file that is being deleted counts as locked."""
    try:
        handle = file.open("a")
    except FileNotFoundError:
        return True
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
