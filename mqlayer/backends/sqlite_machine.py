"""What the machine says: which of its clocks can be compared, which file has a name, why one cannot be opened."""

import os

from mqlayer.clock import Clock, SystemClock

__all__ = ["file_number", "time_base", "why_not_opened"]


def file_number(path: str) -> tuple[int, int] | None:
    """Which file has that name now; ``None``: none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


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
