"""A consumer but for the waiting: who gets a delivery, and what becomes of it."""

import enum
import logging
import random
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Final

from mqlayer.codec import decode
from mqlayer.core.connecting import ConnectionCore, check_queue, check_seconds
from mqlayer.core.flow import Flow, drive
from mqlayer.driver import Ack, Extend, Forward, Nack, Outgoing, QueueOptions, Release, Trail, Verdict
from mqlayer.engine import CLOSE_MIN, HOLDERS_TIMEOUT, PROCESS, Held, Holder, Line
from mqlayer.errors import (
    AlreadySettledError,
    ArgumentError,
    BrokerError,
    ClosedError,
    ForkedError,
    MQError,
    RequestTimeoutError,
    SendError,
    StaleDeliveryError,
)
from mqlayer.message import ReceivedMessage
from mqlayer.policy import DeadLetter, GiveBack, Retry, exhausted_reason, next_step, one_line, released_trail

__all__ = ["AUTO", "ConsumerCore", "DeadLetterChoice", "DeliveryView", "begin_acks"]

HOLD_MAX = 3600.0  #: seconds for which a lease is renewed, where the consumer does not say
LIMIT_MAX = 10_000  #: deliveries that one ``receive_many`` returns at the most
log = logging.getLogger("mqlayer")


class DeadLetterChoice(enum.Enum):
    """Where exhausted messages go, if the consumer does not say."""

    AUTO = "what the broker stores for the queue, else <queue>.dead"


AUTO: Final = DeadLetterChoice.AUTO


class ConsumerCore:
    """Everything a consumer does except wait."""

    def __init__(
        self,
        connection: ConnectionCore,
        queues: Sequence[str],
        topic: str | None,
        group: str | None,
        *,
        retry: Retry,
        prefetch: int | None,
        lease: float | None,
        hold_max: float,
        dead_letter: str | DeadLetterChoice | None,
    ) -> None:
        _check(queues, topic, group, prefetch, lease, hold_max)
        if not isinstance(retry, Retry):
            raise ArgumentError(f"retry is a Retry, not {retry!r}")
        if dead_letter is not None and not isinstance(dead_letter, DeadLetterChoice):
            check_queue(dead_letter)
            if dead_letter in queues:
                raise ArgumentError(f"the dead letters of {dead_letter!r} cannot go to itself")
        self.connection = connection
        self.retry = retry
        self.topic = topic
        self._group = group
        self._queues = tuple(queues)
        self._prefetch = prefetch
        self._lease = lease
        self._hold_max = hold_max
        self._dead_letter = dead_letter
        self._dead_letters: dict[str, str | None] = {}
        self._confirms = connection.capabilities.confirms_acks
        self._counts = connection.engine.native.counts
        self._line: Line | None = None
        self._generation = PROCESS.generation
        self._closed = False

    # --- the line ----------------------------------------------------------------------------------------------------

    def open(self, timeout: float | None) -> Flow[None]:
        """Make sure of the queues and begin to consume. In a forked child: once more."""
        connection = self.connection
        engine = connection.open_engine()
        deadline = connection.clock.monotonic() + connection.seconds(timeout)

        def left() -> float:
            return max(deadline - connection.clock.monotonic(), 0.0)

        role = "consumer of " + (", ".join(self._queues) or f"topic {self.topic}")
        line = engine.consumer(role, prefetch=self._prefetch, lease=self._lease, hold_max=self._hold_max)
        try:
            if self.topic is not None:
                connection.require("topics")
                topic, group = self.topic, self._group
                queue: str = yield line.call(lambda session, rest: session.bind(topic, group, rest), left())
                self._dead_letters[queue] = self._target(queue if group is not None else topic, None)
                line.consume(queue)
            for queue in self._queues:
                options: QueueOptions = yield connection.ensure(queue, left())
                self._dead_letters[queue] = self._target(queue, options.dead_letter)
                line.consume(queue, ordered=options.ordered)
        except BaseException:
            line.close(0.0)
            engine.forget(line)
            raise
        self._line = line
        self._generation = PROCESS.generation

    @property
    def _forked(self) -> bool:
        """The line was made in another process: the connection may have been opened anew since."""
        return self._generation != PROCESS.generation

    def _target(self, queue: str, stored: str | None) -> str | None:
        if not isinstance(self._dead_letter, DeadLetterChoice):
            return self._dead_letter
        return stored if stored is not None else f"{queue}.dead"

    @property
    def line(self) -> Line:
        """The line to receive from.

        Raises:
            ClosedError, ForkedError
        """
        line = self._line
        if self._closed or line is None:
            raise ClosedError("the consumer is closed")
        if self._forked:
            return self._reopened()
        return line

    def _reopened(self) -> Line:
        self.connection.open_engine()  # the connection opens anew, or cannot
        self._line = None
        drive(self.open(None), self.connection.timeout)
        return self.line

    @property
    def closed(self) -> bool:
        return self._closed

    def stop(self) -> None:
        """Take nothing more; what callers hold can still be settled."""
        if self._line is not None and not self._forked:
            self._line.stop()

    def close(self, timeout: float | None, closer: Holder) -> None:
        """Let others than *closer* settle what they hold, give back the rest, end. Again: nothing more happens."""
        connection, line = self.connection, self._line
        seconds = connection.seconds(timeout)
        if line is not None and not self._forked and not self._closed:
            deadline = connection.clock.monotonic() + seconds
            line.stop()
            line.wait_for_holders(closer, min(seconds, HOLDERS_TIMEOUT))
            self._closed = True
            line.close(max(deadline - connection.clock.monotonic(), CLOSE_MIN))
            connection.engine.forget(line)
        self._closed = True

    # --- deliveries --------------------------------------------------------------------------------------------------

    def admit(self, line: Line, taken: list[Held]) -> list[Held]:
        """Those that a handler may see. What has been delivered too often without an answer goes its way instead."""
        limit = self.retry.attempts_max
        for held in taken:
            if held.count > limit:
                break
        else:
            return taken
        admitted: list[Held] = []
        for held in taken:
            verdict = self._before_handing_over(held) if held.count > limit else None
            if verdict is None:
                admitted.append(held)
            else:
                held.settle_once()
                line.settle(held, verdict, give_back=True)
        return admitted

    def _before_handing_over(self, held: Held) -> Verdict | None:
        of = held.incoming
        target = self._dead_letters.get(of.queue)
        if target is not None:
            reason = exhausted_reason(held.count, of.message.trail.failures, self.retry)
            log.error("message %s of %r goes to %r: %s", of.message.id, of.queue, target, reason)
            return _dead_letter(held, target, reason, deliveries=held.count - 1)  # nobody sees this one
        if (of.broker_count or 1) <= 1:
            return None  # it has waited, or its handler failed in order: it is handed over once more
        log.error("message %s of %r was delivered %d times without an answer", of.message.id, of.queue, held.count - 1)
        copy = of.message._replace(trail=released_trail(self._counts, of), delay=self.retry.delay_max, dedup_id=None)
        return Forward(of, of.queue, copy)

    def ack(self, line: Line, held: Held) -> "Future[None] | None":
        """Returns the future to wait for, if the broker confirms."""
        self._claim(line, held)
        if self._confirms and not line.inline:
            return line.settle(held, Ack(held.incoming))
        line.settle_later(held, Ack(held.incoming))
        return None

    def nack(self, line: Line, held: Held, delay: float) -> "Future[None]":
        check_seconds("delay", delay)
        self._claim(line, held)
        return line.settle(held, Nack(held.incoming, delay), give_back=True)

    def reject(self, line: Line, held: Held, reason: str) -> "Future[None]":
        if not isinstance(reason, str):
            raise ArgumentError(f"reason is a str, not {reason!r}")
        self._claim(line, held)
        return line.settle(held, self._rejection(held, one_line(reason)), give_back=True)

    def _rejection(self, held: Held, reason: str) -> Verdict:
        target = self._dead_letters.get(held.incoming.queue)
        if target is not None:
            return _dead_letter(held, target, reason)
        log.error(
            "message %s of %r has no dead-letter queue to go to: %s",
            held.incoming.message.id,
            held.incoming.queue,
            reason,
        )
        return Nack(held.incoming, self.retry.delay_max)

    def extend(self, line: Line, held: Held, seconds: float) -> "Future[None] | None":
        """Returns the future to wait for; ``None`` where there is no lease to extend."""
        check_seconds("seconds", seconds)
        if not seconds:
            raise ArgumentError("a lease is extended by a positive number of seconds, not 0")
        self._check(line, held)
        if not held.timed:
            return None
        longest = self.connection.capabilities.lease_max
        return line.settle(held, Extend(held.incoming, seconds if longest is None else min(seconds, longest)))

    def _check(self, line: Line, held: Held) -> None:
        of = held.incoming
        if line is not self._line or self._forked:
            raise ForkedError(f"the delivery of {of.message.id} belongs to the parent process")
        if held.settled:
            raise AlreadySettledError(f"message {of.message.id} of {of.queue!r} was settled before")
        if self._closed:
            raise StaleDeliveryError(f"the consumer is closed; the broker has message {of.message.id} back")
        line.check(held)

    def _claim(self, line: Line, held: Held) -> None:
        """The caller may settle it, and nobody else may any more.

        Raises:
            ForkedError, AlreadySettledError, StaleDeliveryError
        """
        self._check(line, held)
        if not held.settle_once():
            raise AlreadySettledError(
                f"message {held.incoming.message.id} of {held.incoming.queue!r} was settled before"
            )

    # --- the end of ``with delivery`` --------------------------------------------------------------------------------

    def finish(self, line: Line, held: Held, error: BaseException | None) -> "Future[None] | None":
        """Settle a delivery whose block has ended, as its outcome and ``Retry`` say.

        Raises:
            MQError: it cannot be settled; see ``not_settled``.
        """
        if held.settled:
            return None
        try:
            if error is None:
                return self.ack(line, held)
            self._claim(line, held)
        except AlreadySettledError:  # by another thread, just now
            return None
        except StaleDeliveryError:
            self.connection.engine.settle_failed(line)  # the session, which counts the others, never hears of it
            raise
        # KeyboardInterrupt, SystemExit and CancelledError are not the message's fault
        failed = isinstance(error, Exception)
        verdict = self._after_failure(held, error) if failed else Release(held.incoming)
        return line.settle(held, verdict, give_back=True)

    def _after_failure(self, held: Held, error: BaseException) -> Verdict:
        of = held.incoming
        target = self._dead_letters.get(of.queue)
        step = next_step(held.count, error, self.retry, has_dead_letter=target is not None, random=random.random())
        where = f"delivery {held.count} (of {self.retry.attempts_max}) of message {of.message.id} from {of.queue!r}"
        if isinstance(step, DeadLetter) and target is not None:
            log.error("%s failed and goes to %r", where, target, exc_info=error)
            return _dead_letter(held, target, step.reason)
        delay = step.delay if isinstance(step, GiveBack) else self.retry.delay_max
        log.warning("%s failed; again in %.1f s", where, delay, exc_info=error)
        return Nack(of, delay)

    def not_settled(self, line: Line, held: Held, error: MQError) -> None:
        """Note that the broker could not be told: it has the message, or gets it back, and hands it over again.

        Raises:
            MQError: the reason is not a lost lease or connection.
        """
        if not isinstance(error, (StaleDeliveryError, BrokerError, ClosedError, RequestTimeoutError, SendError)):
            raise error
        log.warning("message %s of %r is not settled: %s", held.incoming.message.id, held.incoming.queue, error)


class DeliveryView:
    """What a delivery says of itself; the same in both APIs. Settling, which may wait, is theirs."""

    __slots__ = ("_core", "_held", "_line", "_message")

    def __init__(self, core: ConsumerCore, line: Line, held: Held) -> None:
        self._core = core
        self._line = line
        self._held = held
        self._message: ReceivedMessage | None = None

    @property
    def message(self) -> ReceivedMessage:
        if self._message is None:
            self._message = ReceivedMessage(self._held.incoming.message, decode)
        return self._message

    @property
    def delivery_count(self) -> int:
        """Which delivery of the message this is; 1 at first. After crashes it may be too high, never too low."""
        return self._held.count

    @property
    def redelivered(self) -> bool:
        """The broker's own flag, or a count above 1. After a broker's crash it may be set on what nobody saw."""
        return self._held.incoming.redelivered or self._held.count > 1

    @property
    def suspect(self) -> bool:
        """It was delivered before and nothing was heard of it: perhaps it took its worker down."""
        return self._held.suspect

    @property
    def queue(self) -> str:
        """The queue it came from; of a topic, the group's queue."""
        return self._held.incoming.queue

    @property
    def topic(self) -> str | None:
        return self._core.topic

    @property
    def native(self) -> Any:
        """The client library's own object."""
        return self._held.incoming.native

    @property
    def settled(self) -> bool:
        return self._held.settled

    def begin_ack(self) -> "Future[None] | None":
        """Queue the ack; the future to wait for, if the broker confirms. For ``ack`` and ``ack_many``."""
        return self._core.ack(self._line, self._held)

    def __repr__(self) -> str:
        return f"<delivery {self.delivery_count} of message {self._held.incoming.message.id} from {self.queue!r}>"


def begin_acks(
    deliveries: "Iterable[DeliveryView]",
) -> "tuple[list[tuple[int, Future[None]]], dict[int, MQError]]":
    """Queue the acks of several: what to wait for, by place, and what could not even be queued."""
    waiting: list[tuple[int, Future[None]]] = []
    failures: dict[int, MQError] = {}
    for place, delivery in enumerate(deliveries):
        try:
            future = delivery.begin_ack()
        except MQError as error:
            failures[place] = error
        else:
            if future is not None:
                waiting.append((place, future))
    return waiting, failures


def _dead_letter(held: Held, target: str, reason: str, deliveries: int | None = None) -> Forward:
    """Original body, headers and id; why, whence and after how many deliveries; it does not expire there."""
    of = held.incoming
    place = f"{of.queue}:{of.token}"[:200]
    count = held.count if deliveries is None else deliveries
    trail = Trail(origin=of.queue, reason=reason, deliveries=count, copied_from=place)
    copy: Outgoing = of.message._replace(trail=trail, expires_at=None, delay=0.0, dedup_id=None)
    return Forward(of, target, copy)


def _check(
    queues: Sequence[str],
    topic: str | None,
    group: str | None,
    prefetch: int | None,
    lease: float | None,
    hold_max: float,
) -> None:
    if bool(queues) == (topic is not None):
        raise ArgumentError("a consumer takes either queues or topic=")
    if group is not None and topic is None:
        raise ArgumentError("group= goes with topic=")
    for name in (*queues, *(name for name in (topic, group) if name is not None)):
        check_queue(name)
    if len(set(queues)) != len(queues):
        raise ArgumentError("a queue is named twice")
    if prefetch is not None and (isinstance(prefetch, bool) or not isinstance(prefetch, int) or prefetch < 1):
        raise ArgumentError(f"prefetch is a whole number from 1, not {prefetch!r}")
    if lease is not None:
        check_seconds("lease", lease)
        if not lease:
            raise ArgumentError("lease is a positive number of seconds, not 0")
    check_seconds("hold_max", hold_max)
