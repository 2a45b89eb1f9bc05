"""Sessions on a RabbitMQ of the test's own, and a raw client beside them."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mqlayer.backends.rabbitmq import RabbitFactory, RabbitSession
from mqlayer.clock import SystemClock
from mqlayer.driver import Ack, Declare, Failures, Incoming, Outgoing, QueueOptions
from mqlayer.errors import MQError
from mqlayer.testing.brokers.rabbitmq import TLSListener, rabbitmq_server
from mqlayer.testing.certificates import make_certificates
from mqlayer.testing.ports import LOOPBACK, free_port
from mqlayer.urls import parse_url, split_options

if TYPE_CHECKING:
    from pika.adapters.blocking_connection import BlockingChannel

T = 20.0  # a timeout that is only used up if something is wrong
MOMENT = 0.3  # in which a broker pushes what it has
PLAIN = QueueOptions()


class Rabbit:
    """The one broker of a module, and the sessions of the test that runs."""

    def __init__(self, folder: Path) -> None:
        self.datadir = folder / "data"
        self.port = free_port()
        self.certificates = make_certificates(folder / "certificates")
        self.tls = TLSListener(port=free_port(), certificates=self.certificates)
        self.server = rabbitmq_server(self.datadir, self.port, tls=self.tls)
        self._sessions: list[RabbitSession] = []

    def session(self, options: str = "", url: str = "") -> RabbitSession:
        session = open_session(url or f"amqp://{LOOPBACK}:{self.port}/?declare_settle=0{options}")
        self._sessions.append(session)
        return session

    def queue(self, session: RabbitSession | None = None, **options: object) -> str:
        """A new queue."""
        name = f"q-{uuid.uuid4().hex[:8]}"
        declared = QueueOptions(**options)  # type: ignore[arg-type]
        (session or self.session()).declare(name, declared, Declare.ENSURE, T)
        return name

    @contextmanager
    def raw(self) -> "Iterator[BlockingChannel]":
        """A channel of pika's own client."""
        import pika

        with pika.BlockingConnection(pika.ConnectionParameters(LOOPBACK, self.port)) as connection:
            yield connection.channel()

    def close_sessions(self) -> None:
        while self._sessions:
            self._sessions.pop().close(1.0)


def open_session(text: str, timeout: float = T) -> RabbitSession:
    url = parse_url(text)
    [options] = split_options(url.query, RabbitFactory.options, scheme=url.scheme)
    session = RabbitFactory(url, options, clock=SystemClock()).session(timeout, nobody)
    assert isinstance(session, RabbitSession)
    return session


def nobody(when: float) -> None:
    """A look_again that nobody needs."""


def messages(*ids: str, **fields: object) -> list[Outgoing]:
    return [Outgoing(id, b"body", **fields) for id in ids]  # type: ignore[arg-type]


def receive(session: RabbitSession, count: int, timeout: float = T) -> list[Incoming]:
    """That many deliveries, or fewer if no more come in time."""
    found: list[Incoming] = []
    deadline = time.monotonic() + timeout
    while len(found) < count and time.monotonic() < deadline:
        found += session.receive(count - len(found), max(deadline - time.monotonic(), 0.0))
    return found


def nothing_more(session: RabbitSession) -> bool:
    return not session.receive(100, MOMENT)


def drain(session: RabbitSession, queue: str) -> list[str | None]:
    """All that a queue has, acked."""
    session.subscribe(queue, 1000, None, T)
    found: list[str | None] = []
    while batch := session.receive(1000, MOMENT):
        assert session.settle([Ack(one) for one in batch], T) == {}
        found += ids(batch)
    session.unsubscribe(queue, T)
    return found


def ids(found: Sequence[Incoming]) -> list[str | None]:
    return [incoming.message.id for incoming in found]


def failed_with(failures: Failures) -> dict[int, type[MQError]]:
    return {index: type(error) for index, error in failures.items()}


def until(what: Callable[[], object], limit: float = T) -> None:
    """Wait for something that the broker does by itself."""
    deadline = time.monotonic() + limit
    pause = threading.Event()
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        pause.wait(0.02)
