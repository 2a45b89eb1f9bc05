"""spool:///folder: a queue is a folder, a message is a file. Durable, in order, for the processes of one machine.

<folder>/ready/q-<queue>/<order>.<deliveries>             what a consumer may take
<folder>/held/<session>/q-<queue>/<order>.<deliveries>    what one session has taken
<folder>/held/<session>.lock                              locked by that session for as long as it lives
"""

import fcntl
import itertools
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from mqlayer.clock import Clock
from mqlayer.codec import from_headers, to_headers
from mqlayer.driver import (
    Ack,
    Capabilities,
    Counts,
    Declare,
    Failures,
    Incoming,
    Outgoing,
    QueueOptions,
    Release,
    Session,
    Stats,
    Support,
    Verdict,
)
from mqlayer.errors import (
    ArgumentError,
    ClosedError,
    ConfigError,
    ConnectionLostError,
    MQError,
    NotSentError,
    QueueNotFoundError,
    StaleDeliveryError,
    StoreError,
    UnroutableError,
    UnsupportedError,
)
from mqlayer.urls import BrokerURL

NO = Support.UNSUPPORTED
CAPABILITIES = Capabilities(
    durable=True,
    ordered=True,
    confirms_acks=True,
    timed_lease=False,
    backpressure=False,
    checks_queues=True,
    compares_queues=False,
    counts=Counts.DELIVERIES,
    delay=NO,
    priority=NO,
    ttl=NO,
    group_id=NO,
    dedup_id=NO,
    dead_letter=NO,
    delivery_count=Support.NATIVE,
    topics=NO,
    peek=Support.NATIVE,
    purge=Support.NATIVE,
    stats=Support.NATIVE,
    nack=NO,
    release=Support.NATIVE,
    forward=NO,  # nack and forward by copy: mqlayer does it
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolOptions:
    """
    Attributes:
        look_every: Seconds between two looks of a waiting consumer.
    """

    look_every: float = 0.05


class SpoolFactory:
    """What the entry point names."""

    options = SpoolOptions

    def __new__(cls, url: BrokerURL, options: SpoolOptions, *, clock: Clock) -> "SpoolBackend":
        if url.hosts or not url.path.strip("/"):
            raise ConfigError("a spool is a folder: spool:///var/spool/acme")
        return SpoolBackend(Path(url.path), options, clock)


class SpoolBackend:
    inline = False  # it writes to a disk: it may block

    def __init__(self, root: Path, options: SpoolOptions, clock: Clock) -> None:
        self._root, self._options, self._clock = root, options, clock

    def session(self, timeout: float, look_again: Callable[[float], None]) -> Session:
        with translated():
            return SpoolSession(self._root, self._options, self._clock)

    def close(self) -> None:
        """Nothing: each session has its own files."""


@contextmanager
def translated() -> Iterator[None]:
    """The system's errors become ours, once."""
    try:
        yield
    except OSError as exc:
        raise StoreError(f"the spool cannot be read or written: {exc}") from exc


class Token(NamedTuple):
    session: str
    path: Path


class SpoolSession:
    """One session: its lock, and a folder for what it holds. Knows nothing of retries or payloads."""

    capabilities = CAPABILITIES

    def __init__(self, root: Path, options: SpoolOptions, clock: Clock) -> None:
        self._ready, self._all_held = root / "ready", root / "held"
        self._options, self._clock = options, clock
        self._name = secrets.token_hex(8)
        self._held = self._all_held / self._name
        self._windows: dict[str, int] = {}
        self._unsettled: dict[str, set[Path]] = {}
        self._order = itertools.count()
        self._news = threading.Event()
        self._ended: MQError | None = None
        self._ready.mkdir(parents=True, exist_ok=True)
        self._all_held.mkdir(exist_ok=True)
        self._lock = lock(self._all_held / f"{self._name}.lock")  # before the folder: nobody takes it for a dead one's
        self._held.mkdir()

    # --- queues

    def declare(self, queue: str, options: QueueOptions, mode: Declare, timeout: float) -> QueueOptions:
        if mode is Declare.CHECK:
            self._existing(queue)
        else:
            self._check()
            with translated():
                self._folder(queue).mkdir(exist_ok=True)
                sync(self._ready)
        return QueueOptions()  # nothing of it is stored, and so nothing is compared

    def bind(self, topic: str, group: str | None, timeout: float) -> str:
        raise UnsupportedError("spool:// has no topics")

    def publish(self, topic: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        raise UnsupportedError("spool:// has no topics")

    def stats(self, queue: str, timeout: float) -> Stats:
        held = sum(len(list(each.iterdir())) for each in self._all_held.glob(f"*/{self._existing(queue).name}"))
        return Stats(ready=len(files(self._folder(queue))), in_flight=held, delayed=0)

    def peek(self, queue: str, limit: int, timeout: float) -> Sequence[Incoming]:
        found = files(self._existing(queue))[:limit]
        return [
            Incoming(message, queue, None, None, deliveries_of(path) + 1)
            for path in found
            if (message := read(path)) is not None
        ]

    def purge(self, queue: str, timeout: float) -> int:
        return sum(remove(path) for path in files(self._existing(queue)))

    def delete(self, queue: str, timeout: float) -> None:
        if self._folder(queue).is_dir():
            self.purge(queue, timeout)
            with translated():
                self._folder(queue).rmdir()

    # --- sending

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        """A fate for every message, whatever happens to the others."""
        self._check()
        deadline = self._clock.monotonic() + timeout
        failures: dict[int, MQError] = {}
        for index, message in enumerate(batch):
            if not self._folder(queue).is_dir():
                failures[index] = UnroutableError(f"there is no queue {queue!r}", message_id=message.id)
            elif self._clock.monotonic() > deadline:
                failures[index] = NotSentError("not written in time", message_id=message.id)
            else:
                try:
                    self._write(queue, message)
                except OSError as exc:  # nobody sees a file that was not renamed
                    failures[index] = NotSentError(f"not written: {exc}", message_id=message.id)
        return failures

    def _write(self, queue: str, message: Outgoing) -> None:
        head = json.dumps(to_headers(message, text_only=True)).encode()
        name = f"{time.time_ns():020d}-{next(self._order):06d}-{self._name}.0"
        draft = self._held / name
        with draft.open("wb") as file:
            file.write(head + b"\n" + message.body)
            file.flush()
            os.fsync(file.fileno())  # confirmed means: on the disk …
        draft.rename(self._folder(queue) / name)
        sync(self._folder(queue))  # … and so does its name

    # --- receiving

    def subscribe(self, queue: str, window: int, lease: float | None, timeout: float) -> None:
        self._existing(queue)
        self._windows[queue] = window
        (self._held / self._folder(queue).name).mkdir(exist_ok=True)
        self._unsettled.setdefault(queue, set())

    def unsubscribe(self, queue: str, timeout: float) -> None:
        self._windows.pop(queue, None)

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        deadline = self._clock.monotonic() + timeout
        while True:
            self._check()
            with translated():
                found = self._take(limit)
            left = deadline - self._clock.monotonic()
            if found or left <= 0 or self._news.wait(min(left, self._options.look_every)):
                self._news.clear()
                return found
            self._bring_back_the_dead()

    def _take(self, limit: int) -> list[Incoming]:
        found: list[Incoming] = []
        for queue in sorted(self._windows, key=lambda _: secrets.randbits(8)):  # none of them starves
            room = min(self._windows[queue] - len(self._unsettled[queue]), limit - len(found))
            for path in files(self._existing(queue)) if room > 0 else ():
                taken = self._held / path.parent.name / counted(path, +1)
                if len(found) < limit and room > 0 and rename(path, taken):  # else somebody else was first
                    room -= 1
                    self._unsettled[queue].add(taken)
                    message = read(taken) or Outgoing(None, b"")
                    deliveries = deliveries_of(taken)
                    found.append(Incoming(message, queue, Token(self._name, taken), None, deliveries, deliveries > 1))
        return found

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        self._check()
        failures: dict[int, MQError] = {}
        for index, verdict in enumerate(verdicts):
            token, queue = verdict.of.token, verdict.of.queue
            if not isinstance(token, Token) or token.path not in self._unsettled.get(queue, ()):
                failures[index] = StaleDeliveryError(f"a delivery of {queue!r} is settled, or of another session")
            elif isinstance(verdict, Ack):
                self._unsettled[queue].discard(token.path)
                remove(token.path)
            elif isinstance(verdict, Release):
                self._unsettled[queue].discard(token.path)
                rename(token.path, self._folder(queue) / counted(token.path, -1))  # it never ran: not counted
            else:
                failures[index] = UnsupportedError(f"spool:// cannot {type(verdict).__name__.lower()}")
        return failures

    def _bring_back_the_dead(self) -> None:
        """What sessions held whose process is gone: the system has released their locks."""
        for path in self._all_held.glob("*.lock"):
            freed = lock(path) if path.stem != self._name else None
            if freed is not None:
                give_back(path.with_suffix(""), self._ready)
                path.unlink(missing_ok=True)
                os.close(freed)

    # --- the end

    def wake(self) -> None:
        self._news.set()

    def abort(self) -> None:
        self._ended = ConnectionLostError("the session was aborted")
        self._news.set()

    def close(self, timeout: float) -> None:
        if self._lock is not None:
            self._ended = self._ended or ClosedError("the session is closed")
            with translated():
                give_back(self._held, self._ready)
                (self._all_held / f"{self._name}.lock").unlink(missing_ok=True)
                os.close(self._lock)
            self._lock = None

    def _check(self) -> None:
        if self._ended is not None:
            raise self._ended

    def _folder(self, queue: str) -> Path:
        name = "q-" + quote(queue, safe="")  # injective, and never "." or ".."
        if len(name) > 255:
            raise ArgumentError(f"the queue's name {queue[:40]!r}… is too long for a file system")
        return self._ready / name

    def _existing(self, queue: str) -> Path:
        self._check()
        folder = self._folder(queue)
        if not folder.is_dir():
            raise QueueNotFoundError(f"there is no queue {queue!r}")
        return folder


def lock(path: Path) -> int | None:
    """An open file with the lock of *path*; ``None``: somebody has it."""
    file = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody lives
        os.close(file)
        return None
    return file


def give_back(held: Path, ready: Path) -> None:
    """Everything that a session held; what it had handed over stays counted."""
    for folder in held.glob("q-*"):
        for path in files(folder):
            rename(path, ready / folder.name / path.name)
        folder.rmdir()
    for draft in held.glob("*.0"):
        remove(draft)  # a send that was never confirmed
    if held.is_dir():
        held.rmdir()


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def deliveries_of(path: Path) -> int:
    return int(path.suffix[1:])


def counted(path: Path, change: int) -> str:
    return f"{path.stem}.{deliveries_of(path) + change}"


def rename(old: Path, new: Path) -> bool:
    try:
        old.rename(new)
    except FileNotFoundError:  # somebody else was first, or the queue is gone
        return False
    return True


def remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:  # somebody else was first
        return False
    return True


def read(path: Path) -> Outgoing | None:
    try:
        head, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:  # taken meanwhile
        return None
    return from_headers(json.loads(head), Outgoing(None, body), text_only=True)


def sync(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
