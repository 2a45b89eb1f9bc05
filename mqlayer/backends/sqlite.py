"""``sqlite:///file.db``: a durable broker in one file, shared by any number of processes of one machine.

Every confirmed message is on the disk (write-ahead log, ``synchronous=FULL``). The file may be an application's own
database: all our tables begin with ``mqlayer_``. It must be on a local disk; over a network file system SQLite's locks do
not hold. Only the standard library's ``sqlite3`` is used.

Deliveries have a lease; a consumer that dies loses it when the lease ends, and the message is handed over again with its
count raised. A settlement also claims what its consumer has room for next, so that a loop costs one commit per batch.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

from mqlayer.backends.sqlite_file import StoreFile
from mqlayer.backends.sqlite_session import SQLiteSession
from mqlayer.clock import Clock
from mqlayer.driver import Backend, Session
from mqlayer.errors import ConfigError
from mqlayer.urls import BrokerURL

__all__ = ["SQLiteBackend", "SQLiteFactory", "SQLiteOptions", "SQLiteSession"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SQLiteOptions:
    """
    Attributes:
        lease: Seconds that a consumer has a delivery for, where it does not say itself.
    """

    lease: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.lease < math.inf:
            raise ValueError(f"option 'lease' is a positive number of seconds, not {self.lease!r}")


class SQLiteFactory:
    """What the entry point names."""

    options = SQLiteOptions

    def __new__(cls, url: BrokerURL, options: object, *, clock: Clock) -> "Backend":  # type: ignore[misc]
        if not isinstance(options, SQLiteOptions):
            raise ConfigError("sqlite:// needs its own options")
        return SQLiteBackend(_path(url), options, clock)


def _path(url: BrokerURL) -> str:
    """The file's absolute, real path: the same for everybody, wherever the process goes."""
    if url.hosts or url.username is not None:
        path = "".join(host for host, _ in url.hosts[:1]) + url.path
        raise ConfigError(f"sqlite:// has no host, port or user: write sqlite:///{path.lstrip('/')} (or four slashes)")
    path = url.path[1:]
    if not path or path == ":memory:":
        raise ConfigError("sqlite:// needs a file, as in sqlite:///jobs.db; a broker in memory is memory://")
    if "\0" in path:
        raise ConfigError("the file of a sqlite:// URL has a NUL character in its name")
    return os.path.realpath(path)


class SQLiteBackend:
    """A file."""

    inline = False

    def __init__(self, path: str, options: SQLiteOptions, clock: Clock) -> None:
        self._path = path
        self._options = options
        self._clock = clock

    def session(self, timeout: float, look_again: Callable[[float], None]) -> Session:
        """
        Raises:
            StoreError: the file cannot be opened, is no database, or belongs to a newer mqlayer.
        """
        file = StoreFile(self._path, self._clock, self._options.lease, timeout)
        return SQLiteSession(file, self._clock, self._options.lease)

    def close(self) -> None:
        """Nothing: each session has its own connection."""
