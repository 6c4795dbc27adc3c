"""A server's leash: runs one command and ends it when the process that asked for it is gone, however that one ended.

    python leash.py PARENT SIGNAL USER COMMAND...

Prints the command's process id, then waits for the command's end, for the end of its own standard input, or for the
end of the parent. In the last two cases the command gets SIGNAL, and five seconds later SIGKILL.
Needs the standard library only, because it starts beside every server.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

PATIENCE = 5.0
LOOK_AT_PARENT = 0.5
PR_SET_PDEATHSIG = 1


def main() -> int:
    parent, number, user, *command = sys.argv[1:]
    # What is meant for the terminal's programs (Ctrl-C, a closed window) reaches the parent, and its end this process.
    os.setsid()
    signal.signal(signal.SIGCHLD, lambda *_: None)
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        preexec_fn=ended_with_this_process(signal.Signals(int(number))),
        user=user or None,
        group=pwd.getpwnam(user).pw_gid if user else None,
        extra_groups=[] if user else None,
    )
    os.write(1, f"{server.pid}\n".encode())
    os.close(1)
    while server.poll() is None:
        readable, _, _ = select.select([0, wake], [], [], LOOK_AT_PARENT)
        if wake in readable:
            os.read(wake, 4096)
        if (0 in readable and not os.read(0, 1)) or os.getppid() != int(parent):
            _end(server, signal.Signals(int(number)))
    # A shell's convention, because a process cannot end itself by the signal that ended another one.
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def ended_with_this_process(number: signal.Signals) -> Callable[[], object]:
    """Where the system can do it: the command ends even if this process is killed."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    prctl: Callable[[int, int], int] = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, number)


def _end(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # A stopped process handles no signal but SIGKILL until it is continued.
    server.send_signal(signal.SIGCONT)
    server.send_signal(number)
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if server.poll() is None:
        server.kill()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
