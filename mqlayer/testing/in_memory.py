"""For unit tests: a private broker in memory whose clock and faults the test holds, and which remembers what was sent.

    with memory(clock=ManualClock(), faults=Faults()) as mq: ...

The pytest fixtures ``mq``, ``mq_clock``, ``mq_faults`` and ``mq_sent`` are made of these.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mqlayer.api import Connection
from mqlayer.backends.memory import MemoryBackend, MemoryFactory
from mqlayer.backends.memory_faults import Faults
from mqlayer.clock import Clock, SystemClock
from mqlayer.codec import decode
from mqlayer.core.connecting import TIMEOUT
from mqlayer.driver import Failures, HeaderValue, Outgoing, Session
from mqlayer.errors import ConfigError
from mqlayer.layers.observed import Observations, Observed
from mqlayer.needs import Needs
from mqlayer.registry import read_url

__all__ = ["Sent", "SentMessage", "memory"]


@dataclass(frozen=True, slots=True)
class SentMessage:
    """One message that the broker confirmed."""

    queue: str  #: or the topic
    is_topic: bool
    payload: Any
    id: str
    headers: Mapping[str, HeaderValue] = field(default_factory=dict)
    delay: float = 0.0
    priority: int | None = None
    group_id: str | None = None
    dedup_id: str | None = None
    content_type: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expires_at: float | None = None


class Sent:
    """What a connection has sent, in order: confirmed messages only, without copies made on the way.

    Iterating, ``len`` and ``[n]`` go over ``SentMessage`` objects.
    """

    def __init__(self) -> None:
        self.messages: list[SentMessage] = []
        self._connection: Connection | None = None

    def to(self, queue: str) -> list[Any]:
        """The payloads sent to a queue or topic."""
        return [message.payload for message in self.messages if message.queue == queue]

    def __iter__(self) -> Iterator[SentMessage]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)

    def __getitem__(self, place: int) -> SentMessage:
        return self.messages[place]

    def clear(self) -> None:
        """Forget what was sent so far."""
        self.messages.clear()

    def assert_exactly(self, expected: Mapping[str, Sequence[Any]]) -> None:
        """Exactly these payloads were sent, to these queues, in this order within each queue."""
        found: dict[str, list[Any]] = {}
        for message in self.messages:
            found.setdefault(message.queue, []).append(message.payload)
        wanted = {queue: list(payloads) for queue, payloads in expected.items() if payloads}
        assert found == wanted, f"sent: {found!r}, expected: {wanted!r}"

    def assert_nothing(self) -> None:
        """Nothing was sent at all."""
        assert not self.messages, f"sent: {self.messages!r}, expected nothing"

    def assert_settled(self) -> None:
        """Nothing is left unsettled: no delivery is held by anybody."""
        assert self._connection is not None, "assert_settled needs the connection that memory() made"
        queues = {message.queue for message in self.messages if not message.is_topic}
        held = {queue: self._connection.stats(queue).in_flight for queue in queues}
        left = {queue: count for queue, count in held.items() if count}
        assert not left, f"unsettled deliveries: {left!r}"

    def assert_drained(self) -> None:
        """Whatever was sent has been received and settled: every queue that was sent to is empty."""
        assert self._connection is not None, "assert_drained needs the connection that memory() made"
        queues = {message.queue for message in self.messages if not message.is_topic}
        left = {queue: stats for queue in queues if any(_numbers(stats := self._connection.stats(queue)))}
        assert not left, f"not empty: {left!r}"

    def note(self, queue: str, is_topic: bool, outgoing: Outgoing) -> None:
        self.messages.append(
            SentMessage(
                queue,
                is_topic,
                decode(outgoing.body, outgoing.content_type),
                outgoing.id or "",
                dict(outgoing.headers),
                outgoing.delay,
                outgoing.priority,
                outgoing.group_id,
                outgoing.dedup_id,
                outgoing.content_type,
                outgoing.correlation_id,
                outgoing.reply_to,
                outgoing.expires_at,
            )
        )

    def belongs_to(self, connection: Connection) -> None:
        self._connection = connection


def memory(
    url: str = "memory://",
    *,
    clock: Clock | None = None,
    faults: Faults | None = None,
    sent: Sent | None = None,
    needs: Needs | None = None,
    timeout: float = TIMEOUT,
) -> Connection:
    """Connect to a broker in memory.

    Args:
        url: ``memory://…`` with its options, ``profile`` among them.
        clock: For tests of time, a ``ManualClock``.
        faults: What is to go wrong; the test orders it as it goes.
        sent: Is told what was sent.

    Raises:
        ConfigError: the URL is not a ``memory://`` one.
    """
    reading = read_url(url)
    if reading.factory is not MemoryFactory:
        raise ConfigError(f"memory() makes memory:// connections, not {reading.url.scheme}://")
    used = clock if clock is not None else SystemClock()
    backend = MemoryFactory(reading.url, reading.options, clock=used, faults=faults)
    target = reading.target(backend if sent is None else _RecordingBackend(backend, sent))
    connection = Connection(target, needs=needs, timeout=timeout, clock=used)
    if sent is not None:
        sent.belongs_to(connection)
    return connection


class _RecordingBackend:
    inline = True

    def __init__(self, inner: MemoryBackend, sent: Sent) -> None:
        self._inner = inner
        self._sent = sent

    def session(self, timeout: float, look_again: Callable[[float], None]) -> Session:
        return _Recording(self._inner.session(timeout, look_again), self._sent)

    def close(self) -> None:
        self._inner.close()


class _Recording(Observed):
    """A session that remembers what was sent through it."""

    def __init__(self, inner: Session, sent: Sent) -> None:
        super().__init__(inner, Observations())
        self._sent = sent

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        return self._noted(queue, False, batch, super().send(queue, batch, timeout))

    def publish(self, topic: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        return self._noted(topic, True, batch, super().publish(topic, batch, timeout))

    def _noted(self, name: str, is_topic: bool, batch: Sequence[Outgoing], failures: Failures) -> Failures:
        for place, outgoing in enumerate(batch):
            if place not in failures and outgoing.trail.copied_from is None:
                self._sent.note(name, is_topic, outgoing)
        return failures


def _numbers(stats: Any) -> tuple[int, ...]:
    return (stats.ready or 0, stats.in_flight or 0, stats.delayed or 0)
