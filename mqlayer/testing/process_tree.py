"""Find, signal and outlive every process that a server started. Linux only: it reads ``/proc``.

A server's process group is not enough: brokers leave daemons behind that have a session of their own (RabbitMQ's epmd).
So each server carries a marker, the *name* of an environment variable that all its descendants inherit, and a process
belongs to it if it has the marker, is in the group or session of the root, or descends from one that does.

Run as a script, this file is the guardian of one server: it waits until whoever started it is gone, however it went, and
then kills what carries the marker. That is why it imports nothing but the standard library.
"""

import os
import select
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

__all__ = ["GOODBYE", "find_tree", "guard", "kill_tree", "send_signal", "wait_dead"]

GOODBYE = b"."  #: what a guardian is told when there is nothing left to guard

_GUARD_PATIENCE = 10.0
_ROUNDS_MAX = 100


class _Entry(NamedTuple):
    parent: int
    group: int
    session: int


def find_tree(marker: str, root: int | None) -> list[int]:
    """The living processes that belong to the server, the root first. Zombies are dead.

    Args:
        root: The process that was started in a session of its own, or ``None`` once it has been waited for: its number
            may belong to somebody else by then.
    """
    living = {pid: entry for pid in _numbers() if (entry := _entry(pid))}
    needle = f"\0{marker}=".encode()
    found = {
        pid
        for pid, entry in living.items()
        if (root is not None and root in (pid, entry.group, entry.session)) or needle in _environment(pid)
    }
    while descendants := {pid for pid, entry in living.items() if entry.parent in found} - found:
        found |= descendants
    return sorted(found - {os.getpid()}, key=lambda pid: (pid != root, pid))


def send_signal(pids: Collection[int], number: signal.Signals) -> None:
    """Send *number* to each of *pids* that still lives."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it died before the signal, which is what most signals are for


def wait_dead(pids: Collection[int], timeout: float) -> list[int]:
    """Wait until all of *pids* are dead, reaped or not; the ones that still live after *timeout* seconds are returned."""
    deadline = time.monotonic() + timeout
    poll = select.poll()
    waiting: dict[int, int] = {}
    try:
        for pid in pids:
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                continue  # dead already
            waiting[handle] = pid
            poll.register(handle, select.POLLIN)
        while waiting:
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                break
            for handle, _ in ready:
                poll.unregister(handle)
                os.close(handle)
                del waiting[handle]
        return list(waiting.values())
    finally:
        for handle in waiting:
            os.close(handle)


def kill_tree(marker: str, root: int | None, timeout: float) -> list[int]:
    """SIGKILL everything that belongs to the server, until nothing does; returns what still lives after *timeout*.

    A process may fork between being found and being killed, so it is looked for again until nothing is found.
    """
    deadline = time.monotonic() + timeout
    for _ in range(_ROUNDS_MAX):
        pids = find_tree(marker, root)
        if not pids:
            return []
        send_signal(pids, signal.SIGKILL)
        if wait_dead(pids, deadline - time.monotonic()):
            break
    return find_tree(marker, root)


def guard(marker: str) -> None:
    """Wait for the end of standard input. If it came without a goodbye, kill everything that carries *marker*."""
    if GOODBYE not in sys.stdin.buffer.read():
        kill_tree(marker, None, _GUARD_PATIENCE)


def _numbers() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _entry(pid: int) -> _Entry | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None  # it went while the list was read
    state, parent, group, session = text[text.rindex(")") + 2 :].split()[:4]  # the name before it may hold anything
    return None if state in "ZX" else _Entry(int(parent), int(group), int(session))


def _environment(pid: int) -> bytes:
    try:
        return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""  # gone, or another user's: not ours


if __name__ == "__main__":
    guard(sys.argv[1])
