"""Counts what passes, for ``health()`` and for whoever watches. Changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from mqlayer.driver import Capabilities, Declare, Failures, Incoming, Outgoing, QueueOptions, Session, Stats, Verdict
from mqlayer.errors import MQError

__all__ = ["Observations", "Observed"]


@dataclass(slots=True)
class Observations:
    """What a connection has seen so far. Each field is written by one thread at a time and read by any."""

    sent: int = 0
    send_failures: int = 0
    received: int = 0
    settled: int = 0
    settle_failures: int = 0
    connections: int = 0
    connections_lost: int = 0
    connected: bool = False
    last_error: str | None = None

    def add(self, other: "Observations") -> None:
        """Keep what a line that has ended has seen."""
        self.sent += other.sent
        self.send_failures += other.send_failures
        self.received += other.received
        self.settled += other.settled
        self.settle_failures += other.settle_failures
        self.connections += other.connections
        self.connections_lost += other.connections_lost
        self.last_error = other.last_error or self.last_error

    def connection_changed(self, error: MQError | None) -> None:
        """A connection was made (``None``), or ended or could not be made (why)."""
        if error is None:
            self.connections += 1
            self.connected = True
        else:
            self.connections_lost += self.connected
            self.connected = False
            self.last_error = f"{type(error).__name__}: {error}"


class Observed:
    """A session that counts."""

    def __init__(self, inner: Session, seen: Observations) -> None:
        self._inner = inner
        self._seen = seen

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        failures = self._inner.send(queue, batch, timeout)
        self._count(len(batch), failures)
        return failures

    def publish(self, topic: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        failures = self._inner.publish(topic, batch, timeout)
        self._count(len(batch), failures)
        return failures

    def _count(self, size: int, failures: Failures) -> None:
        seen = self._seen
        seen.sent += size - len(failures)
        if failures:
            seen.send_failures += len(failures)
            error = next(iter(failures.values()))
            seen.last_error = f"{type(error).__name__}: {error}"

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        got = self._inner.receive(limit, timeout)
        self._seen.received += len(got)
        return got

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        failures = self._inner.settle(verdicts, timeout)
        self._seen.settled += len(verdicts) - len(failures)
        self._seen.settle_failures += len(failures)
        return failures

    def declare(self, queue: str, options: QueueOptions, mode: Declare, timeout: float) -> QueueOptions:
        return self._inner.declare(queue, options, mode, timeout)

    def bind(self, topic: str, group: str | None, timeout: float) -> str:
        return self._inner.bind(topic, group, timeout)

    def subscribe(self, queue: str, window: int, lease: float | None, timeout: float) -> None:
        self._inner.subscribe(queue, window, lease, timeout)

    def unsubscribe(self, queue: str, timeout: float) -> None:
        self._inner.unsubscribe(queue, timeout)

    def stats(self, queue: str, timeout: float) -> Stats:
        return self._inner.stats(queue, timeout)

    def peek(self, queue: str, limit: int, timeout: float) -> Sequence[Incoming]:
        return self._inner.peek(queue, limit, timeout)

    def purge(self, queue: str, timeout: float) -> int | None:
        return self._inner.purge(queue, timeout)

    def delete(self, queue: str, timeout: float) -> None:
        self._inner.delete(queue, timeout)

    def wake(self) -> None:
        self._inner.wake()

    def abort(self) -> None:
        self._inner.abort()

    def close(self, timeout: float) -> None:
        self._inner.close(timeout)
