"""TCP ports for brokers that a test starts. Linux and other Unix only.

Ports come from 20000–29999, below the range that the kernel hands to clients. A port from ``bind(0)`` lies inside that
range: while the broker boots, any client on the machine, the readiness probe too, may be given the very same port as its
own, and the broker then dies with "address in use".
"""

import fcntl
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from random import Random

from mqlayer.errors import MQError

__all__ = ["PORT_FIRST", "PORT_LAST", "PortError", "answers", "assert_refused", "free_port"]

PORT_FIRST, PORT_LAST = 20000, 29999
LOOPBACK = "127.0.0.1"

_TRIES_MAX = 2000
_LOOK_AGAIN = 0.02


class PortError(MQError):
    """No port is free, or a port is not in the state that it should be in."""


def free_port(random: Random | None = None) -> int:
    """Reserve a port of 20000–29999 that nobody listens on.

    No process of this user is given it again while the calling process lives, so it stays good for a broker's restarts.
    Another user's program may still take it; that shows when the broker starts.

    Args:
        random: Where the choice comes from. A seeded one gives the same order of candidates again, not the same ports
            if some of them are taken by then.

    Raises:
        PortError: no free port was found.
    """
    random = random or Random()
    with _Reservations() as taken:
        for _ in range(_TRIES_MAX):
            port = random.randint(PORT_FIRST, PORT_LAST)
            if port not in taken and _can_bind(port):
                taken[port] = os.getpid()
                return port
    raise PortError(f"no free port among {PORT_FIRST}–{PORT_LAST} after {_TRIES_MAX} tries ({len(taken)} are reserved)")


def answers(port: int, *, host: str = LOOPBACK, timeout: float = 1.0) -> bool:
    """Say whether anything accepts connections on *port*. That it accepts does not mean that it is ready."""
    with socket.socket() as probe:
        probe.settimeout(timeout)
        return probe.connect_ex((host, port)) == 0


def assert_refused(port: int, *, host: str = LOOPBACK, timeout: float = 5.0) -> None:
    """Return once connections to *port* are refused: whoever held it is really gone.

    Raises:
        PortError: it still accepts after *timeout* seconds.
    """
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while answers(port, host=host):
        if time.monotonic() > deadline:
            raise PortError(f"port {port} still accepts connections after {timeout} s; it should refuse them")
        pause.wait(_LOOK_AGAIN)


def _can_bind(port: int) -> bool:
    with socket.socket() as candidate:
        try:
            candidate.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


class _Reservations(dict[int, int]):
    """Port → the process that reserved it, from one file of this user; locked against other processes while entered.

    What dead processes had reserved is forgotten at each entry, so the file never holds more than the ports in use.
    """

    def __enter__(self) -> "_Reservations":
        path = Path(tempfile.gettempdir()) / f"mqlayer-ports-{os.getuid()}"
        # Not through a symbolic link: the name can be guessed, and the folder is everybody's.
        self._file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        for line in self._file:
            port, _, pid = line.partition(" ")
            if port.isdigit() and pid.strip().isdigit() and _lives(int(pid)):
                self[int(port)] = int(pid)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.writelines(f"{port} {pid}\n" for port, pid in self.items())
        self._file.close()  # and with it the lock


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, as another user
        return True
    return True
