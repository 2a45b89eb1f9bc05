"""What a broker lacks, supplied by copies: *copy, confirm, ack*, on the session that holds the delivery.

A copy that failed, or whose fate is unknown, is not acked: twice is allowed, lost is not. Copies carry the trail that the
broker cannot keep. Where the backend does a thing itself, it is asked to; this layer asks capabilities, never names.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mqlayer.clock import Clock
from mqlayer.driver import (
    Ack,
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
    Session,
    Stats,
    Support,
    Trail,
    Verdict,
)
from mqlayer.errors import MQError, OutcomeUnknownError, RefusedError, StaleDeliveryError
from mqlayer.policy import failed_trail, flagged_trail, released_trail, split_delay

__all__ = ["Emulated", "emulated_capabilities", "native_capabilities"]

COPY_LEASE = 10.0  #: seconds of the lease in which a copy is made and its original acked
EARLY = 0.02  #: seconds by which a message that waited on the broker may be early and still be handed over
log = logging.getLogger("mqlayer")

_BY_COPY = ("nack", "release", "forward", "dead_letter")
_REFUSABLE = ("delay", "priority", "ttl", "group_id", "dedup_id", "topics", "peek", "purge", "stats")


def emulated_capabilities(native: Capabilities) -> Capabilities:
    """What users get where this layer stands above a backend with *native* capabilities."""
    changes: dict[str, Support] = {
        name: Support.EMULATED for name in (*_BY_COPY, "ttl") if getattr(native, name) is Support.UNSUPPORTED
    }
    if native.delivery_count is Support.UNSUPPORTED and native.counts is not Counts.NOTHING:
        changes["delivery_count"] = Support.EMULATED
    lifted = replace(native, delay_max=None, nack_delay_max=None)
    return replace(lifted, **changes)  # type: ignore[arg-type]


def native_capabilities(native: Capabilities) -> Capabilities:
    """The same under ``?require=native``: copies stay, for nothing works without them; the rest is what the broker has."""
    allowed = emulated_capabilities(native)
    refused = {name: Support.UNSUPPORTED for name in _REFUSABLE if getattr(allowed, name) is Support.EMULATED}
    return replace(allowed, delay_max=native.delay_max, **refused)  # type: ignore[arg-type]


class Emulated:
    """Adds nack, release, forward, long delays, expiry and a true delivery count to a session that lacks them."""

    def __init__(self, inner: Session, *, clock: Clock, native_only: bool = False) -> None:
        self._inner = inner
        self._native = inner.capabilities
        self._clock = clock
        make = native_capabilities if native_only else emulated_capabilities
        self._capabilities = make(self._native)
        self._owed: list[Verdict] = []  # copies and discards of this layer's own that have not succeeded yet
        self._warned = False

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    # --- out ---------------------------------------------------------------------------------------------------------

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        return self._inner.send(queue, self._bounded(batch), timeout)

    def publish(self, topic: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        return self._inner.publish(topic, self._bounded(batch), timeout)

    def _bounded(self, batch: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """Delays longer than the broker's own: it waits as long as it can, and the message knows the rest."""
        longest = self._native.delay_max
        if longest is None or not any(outgoing.delay > longest for outgoing in batch):
            return batch
        now = self._clock.time()
        return [_delayed(outgoing, outgoing.delay, longest, now) for outgoing in batch]

    # --- in ----------------------------------------------------------------------------------------------------------

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        """As the driver says, without what has expired, is not due, or has to be counted first."""
        got = self._inner.receive(limit, timeout)
        if not got and not self._owed:
            return got
        now = self._clock.time()
        passed: list[Incoming] = []
        for incoming in got:
            verdict = self._before_handing_over(incoming, now)
            if verdict is None:
                passed.append(incoming)
            else:
                self._owed.append(verdict)
        if self._owed:
            self._pay(timeout)
        return passed

    def _before_handing_over(self, incoming: Incoming, now: float) -> Verdict | None:
        message = incoming.message
        if message.expires_at is not None and message.expires_at <= now:
            return Ack(incoming)
        not_before = message.trail.not_before
        if not_before is not None and not_before > now + EARLY:
            trail = released_trail(self._native.counts, incoming, _place(incoming))
            copy = message._replace(trail=trail._replace(not_before=None), dedup_id=None)
            return Forward(incoming, incoming.queue, _delayed(copy, not_before - now, self._native.delay_max, now))
        if self._native.counts is Counts.FLAG and incoming.redelivered:
            copy = message._replace(trail=flagged_trail(incoming, _place(incoming)), dedup_id=None)
            return Forward(incoming, incoming.queue, copy)
        return None

    def _pay(self, timeout: float) -> None:
        """Carry out what this layer owes; what fails is tried again, what is stale is the broker's again."""
        owed, self._owed = self._owed, []
        failures = self.settle(owed, max(timeout, 1.0))
        for index, error in failures.items():
            if not isinstance(error, StaleDeliveryError):
                self._owed.append(owed[index])
                log.warning("a copy within %r failed and is tried again: %s", owed[index].of.queue, error)

    # --- settling ----------------------------------------------------------------------------------------------------

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        native: list[Verdict] = []
        native_places: list[int] = []
        copies: dict[str, list[tuple[int, Forward]]] = {}
        for place, verdict in enumerate(verdicts):
            step = self._translated(verdict)
            if type(step) is Forward and self._native.forward is Support.UNSUPPORTED:
                copies.setdefault(step.queue, []).append((place, step))
            else:
                native.append(step)
                native_places.append(place)
        failures: dict[int, MQError] = {}
        deadline = self._clock.monotonic() + timeout
        if copies and self._native.timed_lease:
            failures.update(self._make_time(copies, timeout))
        for queue, forwards in copies.items():
            forwards = [(place, forward) for place, forward in forwards if place not in failures]
            if not forwards:
                continue
            left = max(deadline - self._clock.monotonic(), 0.0)
            failed = self.send(queue, [forward.copy for _, forward in forwards], left)
            for index, (place, forward) in enumerate(forwards):
                error = failed.get(index)
                if error is None:
                    native.append(Ack(forward.of))
                    native_places.append(place)
                elif type(verdicts[place]) is Release and isinstance(error, (RefusedError, OutcomeUnknownError)):
                    # A full queue takes no copy, and gets no emptier while its consumers hold what does not go back: then
                    # counted as a delivery, by a broker that can. Nor is another copy made where there may be one.
                    native.append(verdicts[place])
                    native_places.append(place)
                else:
                    failures[place] = error
        if native:
            left = max(deadline - self._clock.monotonic(), 0.0)
            for index, error in self._inner.settle(native, left).items():
                failures[native_places[index]] = error
        return failures

    def _make_time(self, copies: Mapping[str, Sequence[tuple[int, Forward]]], timeout: float) -> dict[int, MQError]:
        """Extend the leases of what is to be copied and acked: one that ended in between would leave both there, and the
        copy of one that has ended is a message too many. Returns why, by place, what must not be copied."""
        forwards = [item for of_queue in copies.values() for item in of_queue]
        failed = self._inner.settle([Extend(forward.of, COPY_LEASE) for _, forward in forwards], timeout)
        return {forwards[index][0]: error for index, error in failed.items() if isinstance(error, StaleDeliveryError)}

    def _translated(self, verdict: Verdict) -> Verdict:
        """The verdict as one that the backend, or a copy, can carry out."""
        if type(verdict) is Nack:
            of, delay = verdict
            longest = self._native.nack_delay_max
            if self._native.nack is not Support.UNSUPPORTED and (longest is None or delay <= longest):
                return verdict
            return self._copy(of, failed_trail(self._native.counts, of, _place(of)), delay)
        if type(verdict) is Release and self._native.release is Support.UNSUPPORTED:
            of = verdict.of
            return self._copy(of, released_trail(self._native.counts, of, _place(of)), 0.0)
        if type(verdict) is Forward and verdict.copy.delay:
            return verdict._replace(copy=self._put_off(verdict.of, verdict.copy, verdict.copy.delay))
        return verdict

    def _copy(self, of: Incoming, trail: Trail, delay: float) -> Forward:
        return Forward(of, of.queue, self._put_off(of, of.message._replace(trail=trail, dedup_id=None), delay))

    def _put_off(self, of: Incoming, copy: Outgoing, delay: float) -> Outgoing:
        if delay and self._native.delay is Support.UNSUPPORTED:
            delay = 0.0
            if not self._warned:
                self._warned = True
                log.warning("the broker of %r has no delay: a message that is given back comes again at once", of.queue)
        return _delayed(copy, delay, self._native.delay_max, self._clock.time())

    # --- passed on ---------------------------------------------------------------------------------------------------

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


def _place(incoming: Incoming) -> str:
    """Which delivery a copy was made of, for whoever reads histories."""
    return f"{incoming.queue}:{incoming.token}"[:200]


def _delayed(outgoing: Outgoing, delay: float, longest: float | None, now: float) -> Outgoing:
    broker_delay, not_before = split_delay(delay, longest, now)
    trail = outgoing.trail
    if not_before is not None:  # else the copy may be one hop of a longer delay, and knows its end already
        trail = trail._replace(not_before=not_before)
    return outgoing._replace(delay=broker_delay, trail=trail)
