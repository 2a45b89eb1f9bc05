"""A file of ``sqlite://`` with a clock that the test moves, and sessions on it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mqlayer.backends.sqlite import SQLiteFactory, SQLiteSession
from mqlayer.clock import Clock, ManualClock, SystemClock
from mqlayer.driver import Declare, Failures, Incoming, Outgoing, QueueOptions, Session, Stats, Verdict
from mqlayer.urls import parse_url, split_options

T = 5.0  # a timeout, of which these sessions use next to nothing
LEASE = 60.0
LIMIT = 30.0  # seconds for what another process or thread does
PLAIN = QueueOptions()


def open_session(path: Path, clock: Clock | None = None, options: str = "") -> Session:
    url = parse_url(f"sqlite:///{path}{options}")
    [parsed] = split_options(url.query, SQLiteFactory.options, scheme=url.scheme)
    return SQLiteFactory(url, parsed, clock=clock or SystemClock()).session(T, nobody)


def nobody(when: float) -> None:
    """A look_again that nobody needs."""


class Client:
    """A session, with the words that tests use."""

    def __init__(self, session: Session) -> None:
        assert isinstance(session, SQLiteSession)
        self.session: SQLiteSession = session

    def declare(self, queue: str, mode: Declare = Declare.ENSURE, **options: object) -> QueueOptions:
        return self.session.declare(queue, QueueOptions(**options), mode, T)  # type: ignore[arg-type]

    def send(self, *ids: str, queue: str = "q", **fields: object) -> Failures:
        return self.session.send(queue, [Outgoing(id, b"body", **fields) for id in ids], T)  # type: ignore[arg-type]

    def subscribe(self, *queues: str, window: int = 100, lease: float | None = None) -> "Client":
        for queue in queues or ("q",):
            self.session.subscribe(queue, window, lease, T)
        return self

    def receive(self, limit: int = 100) -> Sequence[Incoming]:
        return self.session.receive(limit, 0.0)

    def ids(self, limit: int = 100) -> list[str | None]:
        return ids(self.receive(limit))

    def settle(self, *verdicts: Verdict) -> Failures:
        return self.session.settle(verdicts, T)

    def stats(self, queue: str = "q") -> tuple[int | None, int | None, int | None]:
        stats: Stats = self.session.stats(queue, T)
        assert not stats.approximate
        return stats.ready, stats.in_flight, stats.delayed

    def peek(self, queue: str = "q", limit: int = 100) -> list[str | None]:
        return ids(self.session.peek(queue, limit, T))


class Store:
    """One file with queue ``q``."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "queues.db"
        self.clock = ManualClock()
        self._sessions: list[Session] = []
        self.sender = self.client()
        self.sender.declare("q")

    def client(self, options: str = "") -> Client:
        """One more session."""
        session = open_session(self.path, self.clock, options)
        self._sessions.append(session)
        return Client(session)

    def reader(self, *queues: str, window: int = 100, lease: float | None = None) -> Client:
        """One more session, which consumes."""
        return self.client().subscribe(*queues, window=window, lease=lease)

    def send(self, *ids: str, queue: str = "q", **fields: object) -> None:
        """Send, and see it confirmed."""
        assert self.sender.send(*ids, queue=queue, **fields) == {}

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def close(self) -> None:
        for session in self._sessions:
            session.close(T)


def ids(found: Sequence[Incoming]) -> list[str | None]:
    return [incoming.message.id for incoming in found]


def failed_with(failures: Failures) -> dict[int, type]:
    return {index: type(error) for index, error in failures.items()}


def python(script: str, *arguments: object) -> "subprocess.Popen[str]":
    """A Python process that knows this folder's helpers."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
