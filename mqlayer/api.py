"""What users call, blocking: ``connect``, ``Connection``, ``Producer``, ``Consumer``, ``Delivery``.

Everything here only waits; ``core`` and the engine do the work. All objects may be shared by threads. After a fork a
connection opens anew for the child.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from threading import current_thread
from types import TracebackType
from typing import Any, Self

from mqlayer.clock import Clock, SystemClock
from mqlayer.core.connecting import TIMEOUT, ConnectionCore, Health, check_limit, check_seconds
from mqlayer.core.consuming import AUTO, HOLD_MAX, LIMIT_MAX, ConsumerCore, DeadLetterChoice, begin_acks
from mqlayer.core.flow import drive, wait
from mqlayer.core.sending import ProducerCore, SendReport
from mqlayer.delivery import Delivery
from mqlayer.driver import Capabilities, HeaderValue, Stats
from mqlayer.engine import Parcel
from mqlayer.errors import (
    ArgumentError,
    ClosedError,
    MQError,
    RequestTimeoutError,
    SendError,
    UsageError,
)
from mqlayer.message import ReceivedMessage
from mqlayer.needs import Needs
from mqlayer.policy import Retry
from mqlayer.registry import Target, open_backend

__all__ = ["Connection", "Consumer", "Delivery", "Producer", "connect"]


def connect(url: str, *, needs: Needs | None = None, timeout: float = TIMEOUT) -> "Connection":
    """Connect to the broker that *url* names, trying each of its hosts once.

    Args:
        needs: What the program cannot go without; refused here instead of failing later.
        timeout: Seconds that this and each later call may take as a whole, unless the call says otherwise.

    Raises:
        ConfigError: the URL, an option or the installation is wrong, or a need is not met.
        ConnectFailedError: no host answered. AuthenticationError: one refused the credentials.
    """
    clock = SystemClock()
    return Connection(open_backend(url, clock=clock), needs=needs, timeout=timeout, clock=clock)


class Connection:
    """A connection to one broker. Made by ``connect``; close it, or use it in a ``with`` block."""

    def __init__(self, target: Target, *, needs: Needs | None, timeout: float, clock: Clock) -> None:
        check_seconds("timeout", timeout)
        if not timeout:
            raise ArgumentError("timeout is a positive number of seconds, not 0")
        self._core = ConnectionCore(target, needs=needs, timeout=timeout, clock=clock)

    @property
    def core(self) -> ConnectionCore:
        """For the asyncio API, which shares everything but the waiting."""
        return self._core

    def producer(
        self, queue: str | None = None, *, topic: str | None = None, timeout: float | None = None
    ) -> "Producer":
        """A producer for a queue, which is made if it is missing, or for a topic.

        Raises:
            QueueNotFoundError: it is missing and the URL says ``declare=never``.
        """
        core = self._core
        return Producer(drive(ProducerCore.open(core, queue, topic, timeout), core.seconds(timeout)))

    def consumer(
        self,
        *queues: str,
        topic: str | None = None,
        group: str | None = None,
        retry: Retry | None = None,
        prefetch: int | None = None,
        lease: float | None = None,
        hold_max: float = HOLD_MAX,
        dead_letter: str | DeadLetterChoice | None = AUTO,
        timeout: float | None = None,
    ) -> "Consumer":
        """A consumer of one or several queues, or of a topic.

        Args:
            topic: Each *group* of a topic gets a copy of every message. A group is durable: it gets what is sent while
                nobody consumes. Without a group the subscription is temporary: it begins now and goes with the consumer.
            retry: What happens to deliveries whose handler fails. Default: ``Retry()``.
            prefetch: How many deliveries of each queue may wait here. It never limits what callers ask for.
            lease: Seconds after which the broker hands an unsettled delivery to somebody else, where it has such a time.
            hold_max: Leases are renewed by themselves until a delivery has been held that many seconds; 0: never.
            dead_letter: Where exhausted and rejected messages go. Default: what the broker stores for the queue, else
                ``<queue>.dead``. ``None``: nowhere; they are handed over again at most once per ``Retry.delay_max``.

        Raises:
            QueueNotFoundError: a queue is missing and the URL says ``declare=never``.
            UnsupportedError: a topic, where the backend has none.
        """
        core = ConsumerCore(
            self._core,
            queues,
            topic,
            group,
            retry=Retry() if retry is None else retry,
            prefetch=prefetch,
            lease=lease,
            hold_max=hold_max,
            dead_letter=dead_letter,
        )
        drive(core.open(timeout), self._core.seconds(timeout))
        return Consumer(core)

    def declare(
        self,
        queue: str,
        *,
        dead_letter: str | None = None,
        temporary: bool = False,
        ordered: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Make a queue, or make sure that it is the one that is meant, as far as the broker stores its options.

        Args:
            dead_letter: Where its exhausted messages go by default.
            temporary: It may go when it has been idle for 60 s, and goes when this connection closes.
            ordered: One active consumer at a time.

        Raises:
            QueueMismatchError: it exists with other options.
        """
        drive(self._core.declare(queue, dead_letter, temporary, ordered, timeout), self._core.seconds(timeout))

    def stats(self, queue: str, *, timeout: float | None = None) -> Stats:
        """How many messages the queue holds. Raises ``QueueNotFoundError``, ``UnsupportedError``."""
        return wait(self._core.stats(queue, timeout), self._core.seconds(timeout))

    def peek(self, queue: str, limit: int = 10, *, timeout: float | None = None) -> list[ReceivedMessage]:
        """The first messages that a consumer would get; changes no count, flag or order, or is unsupported."""
        return drive(self._core.peek(queue, limit, timeout), self._core.seconds(timeout))

    def purge(self, queue: str, *, timeout: float | None = None) -> int | None:
        """Drop what is ready; what is in flight stays. Returns how many, ``None`` if the broker does not tell."""
        return wait(self._core.purge(queue, timeout), self._core.seconds(timeout))

    def delete(self, queue: str, *, timeout: float | None = None) -> None:
        """Drop the queue with all it holds. A missing queue is no error."""
        drive(self._core.delete(queue, timeout), self._core.seconds(timeout))

    @property
    def capabilities(self) -> Capabilities:
        """What the backend does natively, by emulation, or not at all."""
        return self._core.capabilities

    def health(self) -> Health:
        """What the connection and its consumers have seen. Asks nobody; returns at once."""
        return self._core.health()

    def close(self, *, timeout: float | None = None) -> None:
        """Send what is queued, settle, give back what is not settled, end. Again: nothing more happens.

        A ``receive`` that waits in another thread ends within a second. Messages that do not get through in *timeout*
        seconds fail with their fate.
        """
        self._core.close(timeout, current_thread())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<mqlayer connection to {self._core.url}>"


class Producer:
    """Sends to one queue or topic. May be shared by threads."""

    def __init__(self, core: ProducerCore) -> None:
        self._core = core

    def send(
        self,
        payload: Any,
        *,
        headers: Mapping[str, HeaderValue] | None = None,
        delay: float = 0.0,
        ttl: float | None = None,
        priority: int | None = None,
        group_id: str | None = None,
        dedup_id: str | None = None,
        content_type: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        id: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """Send a payload, or a ``Message``. Returns its id once the broker has it as safely as the URL asks.

        A lost connection is made again and the message sent again under the same id until *timeout*: the queue may then
        hold it twice, the second copy marked as resent.

        Raises:
            SendError: it is not known to be safe; ``fate`` says whether it was refused, not sent, or is unknown.
            UnsupportedError: the backend lacks what a field asks for; nothing left.
        """
        core = self._core
        outgoing = core.outgoing(
            payload, headers, delay, ttl, priority, group_id, dedup_id, content_type, correlation_id, reply_to, id
        )
        core.line.send(core.target, outgoing, core.deadline(timeout))
        return outgoing.id or ""

    def submit(
        self,
        payload: Any,
        *,
        headers: Mapping[str, HeaderValue] | None = None,
        delay: float = 0.0,
        ttl: float | None = None,
        priority: int | None = None,
        group_id: str | None = None,
        dedup_id: str | None = None,
        content_type: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        id: str | None = None,
        timeout: float | None = None,
    ) -> "Future[str]":
        """Queue a message and return at once; waits only for room. The future has the id, or the ``SendError``.

        Raises:
            SendTimeoutError: there was no room within *timeout*.
            SendError, UnsupportedError: the message itself cannot travel.
        """
        core = self._core
        outgoing = core.outgoing(
            payload, headers, delay, ttl, priority, group_id, dedup_id, content_type, correlation_id, reply_to, id
        )
        return self._put(core.parcel(outgoing, timeout, flushed=True)).future

    def _put(self, parcel: Parcel) -> Parcel:
        core = self._core
        try:
            line = core.line
            room = line.room
            while True:
                version = room.version
                if core.put(line, parcel):
                    return parcel
                room.wait(version, parcel.deadline - core.connection.clock.monotonic())
        except BaseException:
            core.not_put(parcel)
            raise

    def send_many(self, messages: Iterable[Any], *, timeout: float | None = None) -> SendReport:
        """Send payloads or ``Message`` objects, pipelined. Returns when the fate of each is known.

        One that fails does not stop the others: see ``SendReport.failures``. If *messages* itself raises, its error passes
        on; what it gave before is on its way, and there is no report of it.
        """
        core = self._core
        seconds = core.connection.seconds(timeout)
        deadline = core.connection.clock.monotonic() + seconds
        report = SendReport([])
        parcels: list[tuple[int, Parcel]] = []
        for place, item in enumerate(messages):
            try:
                outgoing = core.outgoing(item)
                report.ids.append(outgoing.id or "")
                left = max(deadline - core.connection.clock.monotonic(), 0.0)
                parcels.append((place, self._put(core.parcel(outgoing, left, flushed=False))))
            except ClosedError:
                raise
            except (SendError, UsageError) as error:
                report.add(place, core.id_of(item), error)
        line = core.line
        for place, parcel in parcels:
            try:
                line.await_fate(parcel)
            except SendError as error:
                report.failures[place] = error
        return report

    def flush(self, *, timeout: float | None = None) -> None:
        """Wait until all that was submitted is confirmed.

        Raises:
            ExceptionGroup: of the ``SendError`` of each message that failed since the last flush.
            RequestTimeoutError: some have no fate yet.
        """
        core = self._core
        deadline = core.deadline(timeout)
        tally = core.tally
        goal = tally.submitted
        while True:
            version = tally.signal.version
            if tally.done >= goal:
                break
            left = deadline - core.connection.clock.monotonic()
            if left <= 0:
                raise RequestTimeoutError(f"{goal - tally.done} messages to {core.name!r} are still on their way")
            tally.signal.wait(version, left)
        core.raise_failures()

    def close(self, *, timeout: float | None = None) -> None:
        """Flush, then take nothing more. Again: nothing more happens."""
        if not self._core.closed:
            try:
                self.flush(timeout=timeout)
            finally:
                self._core.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._core.closed = True  # the block's own error matters more; what was submitted goes on its way

    def __repr__(self) -> str:
        return f"<mqlayer producer for {self._core.name!r}>"


class Consumer:
    """Receives from its queues or topic. May be shared by threads; each delivery goes to one of them."""

    def __init__(self, core: ConsumerCore) -> None:
        self._core = core

    def receive(self, timeout: float | None = None) -> Delivery | None:
        """The next delivery; ``None`` if there is none in *timeout* seconds. ``None`` waits, 0 asks once.

        Raises:
            ClosedError: the consumer was closed, also while this waits.
            QueueNotFoundError: the queue was deleted.
        """
        core = self._core
        line = core.line
        taken = line.take(1, current_thread())
        if taken and taken[0].count <= core.retry.attempts_max:
            return Delivery(core, line, taken[0])
        if taken and core.admit(line, taken):
            return Delivery(core, line, taken[0])
        got = self._wait_for_some(1, timeout)
        return got[0] if got else None

    def receive_many(self, limit: int, timeout: float | None = None) -> list[Delivery]:
        """Up to *limit* deliveries, as soon as one is there."""
        check_limit(limit, LIMIT_MAX)
        core = self._core
        line = core.line
        admitted = core.admit(line, line.take(limit, current_thread()))
        if admitted:
            return [Delivery(core, line, held) for held in admitted]
        return self._wait_for_some(limit, timeout)

    def _wait_for_some(self, limit: int, timeout: float | None) -> list[Delivery]:
        core = self._core
        if timeout is not None and timeout != float("inf"):
            timeout = core.connection.seconds(timeout)
        line = core.line
        clock = core.connection.clock
        deadline = float("inf") if timeout is None else clock.monotonic() + timeout
        line.ask(limit)
        try:
            if timeout == 0:
                wait(line.look(), core.connection.timeout)
            while True:
                version = line.arrivals.version
                taken = line.take(limit, current_thread())
                admitted = core.admit(line, taken)
                if admitted:
                    return [Delivery(core, line, held) for held in admitted]
                if taken:  # all of them went their way; what arrived beside them was announced before
                    continue
                left = deadline - clock.monotonic()
                if left <= 0:
                    return []
                line.arrivals.wait(version, None if timeout is None else left)
        finally:
            line.ask(-limit)

    def __iter__(self) -> Iterator[Delivery]:
        """Deliveries until the consumer is closed."""
        while True:
            try:
                delivery = self.receive()
            except ClosedError:
                return
            if delivery is not None:
                yield delivery

    def ack_many(self, deliveries: "Iterable[Delivery]") -> dict[int, MQError]:
        """Ack several at once: one answer of the broker for all of them, where it answers.

        Returns:
            Place in *deliveries* → why it could not be acked, as ``Delivery.ack`` would raise it. Absent: it was.
        """
        waiting, failures = begin_acks(deliveries)
        for place, future in waiting:
            try:
                wait(future, self._core.connection.timeout)
            except MQError as error:
                failures[place] = error
        return failures

    @property
    def proven(self) -> bool:
        """The last deliveries that were settled had not been delivered before: several may run side by side."""
        return self._core.line.proven

    def stop(self) -> None:
        """Take nothing more: waiting calls end, what is buffered goes back. What callers hold can still be settled."""
        self._core.stop()

    def close(self, *, timeout: float | None = None) -> None:
        """Take nothing more, settle what is queued, give the rest back. Again: nothing more happens.

        Deliveries that other threads are still handling may be settled for up to 10 s, or *timeout*; what this thread
        holds goes back at once.
        """
        self._core.close(timeout, current_thread())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
