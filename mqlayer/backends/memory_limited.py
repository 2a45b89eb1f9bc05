"""A memory session that refuses what a real broker would, and fails where a test ordered it to."""

import math
from collections.abc import Callable, Mapping, Sequence

from mqlayer.backends.memory_faults import Faults
from mqlayer.backends.memory_profiles import MEMORY, Profile, check_name, refusal, stored_options
from mqlayer.backends.memory_session import MemorySession
from mqlayer.driver import (
    Capabilities,
    Counts,
    Declare,
    Extend,
    Failures,
    Forward,
    Incoming,
    Nack,
    Outgoing,
    QueueOptions,
    Release,
    Stats,
    Support,
    Verdict,
)
from mqlayer.errors import (
    ArgumentError,
    ConnectionLostError,
    MQError,
    OutcomeUnknownError,
    RefusedError,
    UnsupportedError,
)

__all__ = ["LimitedSession"]

_BY_VERDICT: Mapping[type, str] = {Nack: "nack", Release: "release", Forward: "forward"}


class LimitedSession:
    """A ``MemorySession`` behind a profile and a test's faults. Either may be there alone.

    It is an outer session on purpose: a connection without both pays nothing for them.
    """

    def __init__(self, inner: MemorySession, profile: Profile | None, faults: Faults) -> None:
        self._inner = inner
        self._profile = profile
        self._faults = faults
        self._capabilities = profile.capabilities if profile is not None else MEMORY

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    # Sending

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        if not self._capabilities.checks_queues and self._inner.alive:
            self._make_sure(queue, timeout)
        return self._send(queue, queue, batch, lambda rest: self._inner.send(queue, rest, timeout))

    def publish(self, topic: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        self._need("topics")
        return self._send(None, topic, batch, lambda rest: self._inner.publish(topic, rest, timeout))

    def _send(
        self, queue: str | None, name: str, batch: Sequence[Outgoing], send: Callable[[Sequence[Outgoing]], Failures]
    ) -> Failures:
        if not self._inner.alive:
            return send(batch)
        failures: dict[int, MQError] = {}
        rest: list[Outgoing] = []
        places: list[int] = []
        for place, message in enumerate(batch):
            error = self._refusal(queue, name, message, len(batch))
            if error is None:
                rest.append(self._changed(message))
                places.append(place)
            else:
                failures[place] = error
        stored = self._faults.take_loss("send") if rest and self._faults.armed else None
        if stored is None:
            failures.update((places[index], error) for index, error in send(rest).items())
            return failures
        if stored:
            send(rest)
        self._inner.lose()
        for place in places:
            text = f"the connection was lost while a message to {name!r} was on its way; it may be stored"
            failures[place] = OutcomeUnknownError(text, message_id=batch[place].id)
        return failures

    def _refusal(self, queue: str | None, name: str, message: Outgoing, size: int) -> MQError | None:
        if self._faults.armed and self._faults.take_refusal(name):
            return RefusedError(f"{name!r} refused the message, as the test ordered", message_id=message.id)
        if self._profile is None:
            return None
        most = self._capabilities.batch_max
        if most is not None and size > most:
            return RefusedError(f"a batch of {size} messages; the broker takes {most}", message_id=message.id)
        return refusal(self._profile, queue, message)

    def _changed(self, message: Outgoing) -> Outgoing:
        late = self._faults.take_delay() if self._faults.armed else 0.0
        return message._replace(delay=message.delay + late) if late else message

    # Receiving

    def subscribe(self, queue: str, window: int, lease: float | None, timeout: float) -> None:
        """As the driver's. Where there are no timed leases, a delivery stays its session's; for ``lease_max``, if the
        broker has that."""
        longest = self._capabilities.lease_max
        if not self._capabilities.timed_lease:
            lease = longest if longest is not None else math.inf
        elif lease is not None and longest is not None and lease > longest:
            raise ArgumentError(f"a lease of {lease} s; the broker has {longest} s at most")
        self._make_sure(queue, timeout)
        self._inner.subscribe(queue, window, lease, timeout)

    def unsubscribe(self, queue: str, timeout: float) -> None:
        self._inner.unsubscribe(queue, timeout)

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        most = self._capabilities.batch_max
        ask = limit if most is None else min(limit, most)
        armed = self._faults.armed and limit > 0 and self._inner.alive
        stored = self._faults.take_loss("receive") if armed else None
        if stored is not None:
            if stored:
                self._inner.receive(ask, timeout)  # handed over, and lost on the way
            self._inner.lose()
        found = self._inner.receive(ask, timeout)
        if armed:
            for incoming in found:
                if self._faults.take_duplicate():
                    self._inner.duplicate(incoming)
        return found if self._profile is None else [self._as_told(incoming) for incoming in found]

    def _as_told(self, incoming: Incoming) -> Incoming:
        """The delivery with what the broker tells of it."""
        if not self._capabilities.timed_lease:
            incoming = incoming._replace(lease_until=None)
        if self._capabilities.counts is not Counts.DELIVERIES:
            incoming = incoming._replace(broker_count=None)
        return incoming

    # Settling

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        if not self._inner.alive:
            return self._inner.settle(verdicts, timeout)
        stored = self._faults.take_loss("settle") if self._faults.armed else None
        if stored is None:
            return self._settle(verdicts, timeout)
        if stored:
            self._settle(verdicts, timeout)
        self._inner.lose()
        text = "the connection was lost while the verdict was on its way; it may have been carried out"
        return {index: ConnectionLostError(text) for index in range(len(verdicts))}

    def _settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        if self._profile is None:
            return self._inner.settle(verdicts, timeout)
        failures: dict[int, MQError] = {}
        rest: list[Verdict] = []
        places: list[int] = []
        for place, verdict in enumerate(verdicts):
            error = self._refused_verdict(verdict)
            if error is not None:
                failures[place] = error
            elif not isinstance(verdict, Extend) or self._capabilities.timed_lease:  # else there is no lease to extend
                rest.append(verdict)
                places.append(place)
        failures.update((places[index], error) for index, error in self._inner.settle(rest, timeout).items())
        return failures

    def _refused_verdict(self, verdict: Verdict) -> MQError | None:
        name = _BY_VERDICT.get(type(verdict))
        if name is not None and getattr(self._capabilities, name) is Support.UNSUPPORTED:
            return UnsupportedError(f"the broker of queue {verdict.of.queue!r} has no {name}")
        most = self._capabilities.lease_max
        if isinstance(verdict, Extend) and most is not None and verdict.seconds > most:
            return ArgumentError(f"a lease of {verdict.seconds} s; the broker has {most} s at most")
        return None

    # Queues

    def declare(self, queue: str, options: QueueOptions, mode: Declare, timeout: float) -> QueueOptions:
        check_name(self._profile, queue)
        if self._profile is not None:
            options = stored_options(self._profile, options)
        if mode is Declare.COMPARE and not self._capabilities.compares_queues:
            mode = Declare.ENSURE
        if mode is Declare.CHECK and not self._capabilities.checks_queues:
            mode = Declare.ENSURE
        return self._inner.declare(queue, options, mode, timeout)

    def bind(self, topic: str, group: str | None, timeout: float) -> str:
        self._need("topics")
        return self._inner.bind(topic, group, timeout)

    def stats(self, queue: str, timeout: float) -> Stats:
        self._need("stats")
        self._make_sure(queue, timeout)
        stats = self._inner.stats(queue, timeout)
        profile = self._profile
        if profile is None:
            return stats
        told = {name: getattr(stats, name) for name in profile.stats}
        return Stats(approximate=profile.approximate_stats, **told)

    def peek(self, queue: str, limit: int, timeout: float) -> Sequence[Incoming]:
        self._need("peek")
        self._make_sure(queue, timeout)
        return [self._as_told(incoming) for incoming in self._inner.peek(queue, limit, timeout)]

    def purge(self, queue: str, timeout: float) -> int | None:
        self._need("purge")
        self._make_sure(queue, timeout)
        return self._inner.purge(queue, timeout)

    def delete(self, queue: str, timeout: float) -> None:
        self._inner.delete(queue, timeout)

    def _make_sure(self, queue: str, timeout: float) -> None:
        """A broker that does not notice a missing queue makes it."""
        if not self._capabilities.checks_queues:
            self.declare(queue, QueueOptions(), Declare.ENSURE, timeout)

    def _need(self, name: str) -> None:
        if getattr(self._capabilities, name) is Support.UNSUPPORTED:
            raise UnsupportedError(f"this broker has no {name}")

    # The end

    def wake(self) -> None:
        self._inner.wake()

    def abort(self) -> None:
        self._inner.abort()

    def close(self, timeout: float) -> None:
        self._inner.close(timeout)
