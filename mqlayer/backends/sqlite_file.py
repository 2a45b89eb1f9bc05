"""One connection to an SQLite file: opened and checked, its pragmas set and verified; transactions whose end is known.

Knows nothing of queues. Everybody's time is the *store's clock*: monotonic seconds plus what the file says they are
ahead, one row for each time base, so that all processes read the same time and setting the wall clock moves none of it
(``docs/decisions/0003-sqlite-leases.md``).
"""

import ctypes
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mqlayer.backends import sqlite_schema as sql
from mqlayer.backends.sqlite_machine import file_number, time_base, why_not_opened
from mqlayer.clock import Clock
from mqlayer.errors import (
    ArgumentError,
    ClosedError,
    ConnectionLostError,
    ForkedError,
    MQError,
    RequestTimeoutError,
    StoreError,
)

__all__ = ["StoreFile"]

SQLITE_MIN = (3, 35)  #: the first with RETURNING
PATIENCE = 0.1  #: seconds that one attempt to get a lock lasts; between two, abort is noticed
#: … of all attempts together, even where the caller does not want to wait: another's commit ends soon
PATIENCE_MIN = 0.25
WAL_KEPT_BYTES = 64 * 1024 * 1024  #: what the write-ahead log shrinks to at a checkpoint
CLOCKS_MAX = 16  #: time bases remembered; each boot of the machine makes one
OPEN_ATTEMPTS = 100  #: to turn on WAL while others do the same; each ends with the other's success
OURS = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
FOREIGN = (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError, OverflowError)

# Errors of COMMIT that prove that nothing is stored. A transaction counts when its last frame is whole in the log; SQLite
# writes the frames in order, then syncs, then publishes them. A write that failed is one of a frame at or before the last.
# Any other error (of the sync, of the index in shared memory) may come after it: recovery could still find the frame.
COMMIT_WRITE_FAILED = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE})

_HINTS = {
    sqlite3.SQLITE_NOTADB: "is not an SQLite database; choose another file",
    sqlite3.SQLITE_CORRUPT: "is damaged; restore it, or see https://sqlite.org/recovery.html",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full; free some space",
    sqlite3.SQLITE_READONLY: "is read-only; make the file and its folder writable for this user",
    sqlite3.SQLITE_PERM: "may not be opened by this user",
    sqlite3.SQLITE_IOERR: "could not be read or written: is the disk full, or a limit reached?",
}


class _Process:
    """What all connections of this process share: one write lock for each file; and the connections themselves, so that
    a forked child never closes one of its parent's, which SQLite forbids."""

    def __init__(self) -> None:
        self.locks: dict[tuple[int, str], threading.Lock] = {}
        self.connections: dict[int, sqlite3.Connection] = {}

    def lock(self, path: str) -> threading.Lock:
        return self.locks.setdefault((os.getpid(), path), threading.Lock())


_process = _Process()


class StoreFile:
    """Used by one thread at a time; ``abort`` comes from any.

    Raises:
        StoreError: the file cannot be opened, is no database, or was written by a newer mqlayer.
    """

    def __init__(self, path: str, clock: Clock, lease: float, timeout: float) -> None:
        if sqlite3.sqlite_version_info < SQLITE_MIN:
            raise StoreError(
                f"sqlite:// needs SQLite 3.35 or newer, and this Python has {sqlite3.sqlite_version}: install a newer Python"
            )
        self.path = path
        self.in_doubt = False  #: the last transaction may be stored although its commit failed
        self._clock = clock
        self._pid = os.getpid()
        self._closed = False
        self._ended: str | None = None  # why this object is of no more use
        self._numbers: tuple[object, ...] | None = None  # None: still opening, SQLite makes the log
        self._write_lock = _process.lock(path)
        self._connection = self._connect()
        try:
            self._set_pragmas(timeout)
            self._make_tables(timeout)
            self._ahead = self._read_clock(lease, timeout)
            self._numbers = self._look_up()
        except BaseException:
            self.close()
            raise

    # --- opening -----------------------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        try:
            # Autocommit: every BEGIN is ours. The engine may hand the session from thread to thread.
            connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as exc:
            raise StoreError(f"{self.path} {why_not_opened(self.path)}") from exc
        _process.connections[id(connection)] = connection
        return connection

    def _set_pragmas(self, timeout: float) -> None:
        self._turn_on_wal(timeout)
        for name, value in (
            ("synchronous", 2),  # FULL: each commit is on the disk before it is confirmed
            ("fullfsync", 1),  # macOS: through the disk's own cache
            ("wal_autocheckpoint", 1000),
            ("journal_size_limit", WAL_KEPT_BYTES),
        ):
            self.read(f"PRAGMA {name} = {value}")
            got = self.read(f"PRAGMA {name}")[0][0]
            if got != value:
                raise StoreError(f"{self.path}: SQLite keeps {name} at {got!r} and does not take {value}")

    def _turn_on_wal(self, timeout: float) -> None:
        mode = ""
        for _ in range(OPEN_ATTEMPTS):
            # An application that does not use a log itself may keep readers out, too.
            mode = self.read("PRAGMA journal_mode", timeout=timeout)[0][0]
            if mode == "wal":
                return
            try:
                mode = self.read("PRAGMA journal_mode = WAL")[0][0]
                break
            except RequestTimeoutError:  # somebody else opens it too. This waits until he is through
                with self.write(timeout):
                    continue
        if mode != "wal":
            raise StoreError(
                f"{self.path}: SQLite cannot use a write-ahead log there (mode {mode!r}); choose a local disk"
            )

    def _make_tables(self, timeout: float) -> None:
        known = self.read("SELECT 1 FROM sqlite_master WHERE name = 'mqlayer_meta'", timeout=timeout)
        version = self.read(sql.READ_VERSION) if known else []
        if not version:
            with self.write(timeout) as connection:
                for statement in sql.TABLES:
                    connection.execute(statement)
                connection.execute(sql.WRITE_VERSION, (sql.SCHEMA_VERSION,))
            version = self.read(sql.READ_VERSION)
        if version[0][0] != sql.SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} was written by a newer mqlayer (schema {version[0][0]}, this one knows "
                f"{sql.SCHEMA_VERSION}): upgrade mqlayer"
            )

    def _read_clock(self, lease: float, timeout: float) -> float:
        """How far the store's clock is ahead of the monotonic one; fixed by the first who opens the file in a time base."""
        base = time_base(self._clock)
        known = self.read(sql.READ_CLOCK, (base,))
        if known:
            return float(known[0][0])
        with self.write(timeout) as connection:
            known = connection.execute(sql.READ_CLOCK, (base,)).fetchall()
            if known:
                return float(known[0][0])
            now = self._clock.time()
            ahead = now - self._clock.monotonic()
            connection.execute(sql.ADD_CLOCK, (base, ahead))
            connection.execute(sql.FORGET_CLOCKS, (CLOCKS_MAX,))
            # Whose clock was ahead of ours (before the boot, before it was set back) must not keep what it held.
            for statement in (sql.SHORTEN_LEASES, sql.SHORTEN_ACTIVE, sql.SHORTEN_IDLE):
                connection.execute(statement, (now + lease,))
            return ahead

    # --- time --------------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """The store's clock."""
        return self._clock.monotonic() + self._ahead

    @property
    def ahead(self) -> float:
        """How far the store's clock is ahead of the monotonic one."""
        return self._ahead

    def monotonic(self, then: float) -> float:
        """A time of the store's clock by this process's monotonic one."""
        return then - self._ahead

    def behind(self) -> float:
        """How far the store's clock is behind the wall clock: 0 unless that was set since."""
        return self._clock.time() - self.now()

    # --- the files ---------------------------------------------------------------------------------------------------

    def _look_up(self) -> tuple[object, ...]:
        """Which files are there under the names of the store, of its log and of the log's index."""
        return tuple(file_number(self.path + suffix) for suffix in ("", "-wal", "-shm"))

    def check_files(self) -> None:
        """What is written goes into the files that were opened, whatever becomes of their names; nobody else, and no later
        process, would see it. Nor is it opened anew: SQLite would mix the old log with the new file.

        Raises:
            StoreError: somebody has deleted, moved or replaced the file or its log.
        """
        if self._numbers is not None and self._look_up() != self._numbers:
            raise StoreError(
                f"{self.path}, its -wal or its -shm was deleted, moved or replaced while in use: end all programs that use it, put "
                "back what belongs there, and start them again"
            )

    # --- reading and writing -----------------------------------------------------------------------------------------

    def read(self, statement: str, values: Sequence[Any] = (), *, timeout: float = PATIENCE_MIN) -> list[Any]:
        """All rows of one SELECT or PRAGMA: nothing stays open, for a reader that lingers keeps the log from shrinking.

        Readers wait for nobody but who recovers the log after a crash, and at the opening for who sets it up.
        """
        left = timeout
        while True:
            self.check()
            try:
                return self._connection.execute(statement, values).fetchall()
            except FOREIGN as exc:
                error = self._error(exc)
                left -= PATIENCE
                if left <= 0 or not isinstance(error, RequestTimeoutError):
                    raise error from exc

    @contextmanager
    def write(self, timeout: float) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed at the end of the block, rolled back if it raises.

        Raises:
            RequestTimeoutError: others kept the file locked all the time. Nothing was written.
            StoreError: it failed and nothing is stored.
            ConnectionLostError: the commit failed in a way that leaves it open whether it is stored (``in_doubt``); or
                the session had ended before. Either way this object is of no more use.
        """
        self._begin(timeout)
        try:
            yield self._connection
            self._commit()
        except FOREIGN as exc:
            self._roll_back()
            raise self._error(exc) from exc
        except BaseException:
            self._roll_back()
            raise
        finally:
            self._write_lock.release()

    def _begin(self, timeout: float) -> None:
        self.in_doubt = False
        self.check_files()
        left = max(timeout, PATIENCE_MIN)
        while left > 0:
            self.check()
            if self._write_lock.acquire(timeout=PATIENCE):
                try:
                    self._connection.execute("BEGIN IMMEDIATE")  # SQLite itself waits up to PATIENCE for others
                    return
                except sqlite3.Error as exc:
                    self._write_lock.release()
                    error = self._error(exc)
                    if not isinstance(error, RequestTimeoutError):
                        raise error from exc
            left -= PATIENCE
        raise RequestTimeoutError(f"{self.path} was locked by others for {timeout:.3g} s")

    def _commit(self) -> None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as exc:
            code = getattr(exc, "sqlite_errorcode", 0)
            if code & 0xFF not in OURS and code not in COMMIT_WRITE_FAILED:
                # Nor may the sync be tried again: after a failed one the system forgets what it could not write.
                self.in_doubt = True
                self._ended = f"{self.path}: a commit failed, and its outcome is unknown: {exc}"
            raise self._error(exc) from exc

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:  # some errors have rolled it back already
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as exc:
            self._ended = self._ended or f"{self.path}: a transaction could not be rolled back: {exc}"

    def _error(self, exc: Exception) -> MQError:
        """One of FOREIGN as ours."""
        if isinstance(exc, (UnicodeEncodeError, OverflowError)):
            return ArgumentError(f"a name or value cannot be stored: {exc}")
        code = getattr(exc, "sqlite_errorcode", 0)
        if self._ended is not None:
            return ConnectionLostError(self._ended)
        if code & 0xFF in OURS:
            return RequestTimeoutError(f"{self.path} is locked by others")
        if code & 0xFF == sqlite3.SQLITE_CANTOPEN:
            return StoreError(f"{self.path} {why_not_opened(self.path)}")
        hint = _HINTS.get(code & 0xFF)
        return StoreError(f"{self.path} {hint} ({exc})" if hint else f"{self.path}: {exc}")

    # --- the end -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """
        Raises:
            ClosedError, ConnectionLostError: there is no connection any more. ForkedError: it is the parent's.
        """
        if self._ended is not None:
            raise ConnectionLostError(self._ended)
        if self._closed:
            raise ClosedError(f"the session on {self.path} is closed")
        if self._pid != os.getpid():
            raise ForkedError(f"the session on {self.path} belongs to process {self._pid}; a fork opens its own")

    @property
    def usable(self) -> bool:
        """Neither closed nor ended, and this process's own."""
        return not self._closed and self._ended is None and self._pid == os.getpid()

    def abort(self) -> None:
        """From any thread: the call in progress and all later ones end with ConnectionLostError."""
        self._ended = f"the session on {self.path} was aborted"
        try:
            self._connection.interrupt()
        except sqlite3.ProgrammingError:  # closed meanwhile, which is what was wanted
            return

    def close(self) -> None:
        """The last connection to the file also puts the log's content into it and removes the log. Again: nothing.

        Not so where the files are others than those that were opened: what is in them by now is not what this one knows,
        and would be overwritten. Then the connection stays open until the process ends.
        """
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        if self._numbers is not None and self._look_up() != self._numbers:
            # Nor may the interpreter close it when it clears up at its end.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
            return
        _process.connections.pop(id(self._connection), None)
        try:
            self._connection.close()
        except sqlite3.Error as exc:
            raise self._error(exc) from exc
