"""What the machine says: which of its clocks can be compared, and why a file cannot be opened."""

import os

from mqlayer.clock import Clock, SystemClock

__all__ = ["time_base", "why_not_opened"]


def why_not_opened(path: str) -> str:
    """Why the file at *path* cannot be opened, and what would mend it."""
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        return "is a folder; name a file in it"
    if not os.path.isdir(folder):
        return f"cannot be opened: there is no folder {folder}; create it"
    if not os.access(path if os.path.exists(path) else folder, os.R_OK | os.W_OK):
        return "cannot be opened: this user may not read and write it; change its permissions or its folder's"
    return "cannot be opened: is the path too long, or the file system read-only?"


def time_base(clock: Clock) -> str:
    """What two processes must have in common for their monotonic clocks to be the same one."""
    if not isinstance(clock, SystemClock):
        return f"process {os.getpid()} clock {id(clock)}"
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"boot {file.read().strip()} {os.readlink('/proc/self/ns/time')}"
    except OSError:  # not Linux: the time of the boot, coarsely, tells boots apart
        return f"boot at {round((clock.time() - clock.monotonic()) / 600)}"
