"""One session on SQS. HTTP has no connection to speak of; a session ends when one of its requests loses its own."""

import logging
from collections.abc import Callable, Sequence

from mqlayer.backends.sqs_consumer import Consumer
from mqlayer.backends.sqs_held import Held, give_back
from mqlayer.backends.sqs_orphans import Orphans
from mqlayer.backends.sqs_queues import Queues
from mqlayer.backends.sqs_requests import Requests
from mqlayer.backends.sqs_returns import Returns
from mqlayer.backends.sqs_sender import Sender
from mqlayer.backends.sqs_service import REQUESTS_MAX, Service
from mqlayer.backends.sqs_wire import DELAY_MAX, LEASE_MAX, RESERVE_BYTES, whole_seconds
from mqlayer.clock import Clock
from mqlayer.driver import (
    Capabilities,
    Counts,
    Declare,
    Failures,
    Incoming,
    Outgoing,
    QueueOptions,
    Stats,
    Support,
    Verdict,
)
from mqlayer.errors import (
    ArgumentError,
    AuthenticationError,
    ConnectFailedError,
    ConnectionLostError,
    MQError,
    NotSentError,
    QueueNotFoundError,
    UnsupportedError,
)

__all__ = ["SQSSession", "capabilities"]

NACK_DELAY_MAX = 11 * 3600.0  #: seconds; what is nacked after an hour has eleven of SQS's twelve left
DEDUP_WINDOW = 300.0
log = logging.getLogger("mqlayer")


def capabilities(*, fifo: bool, size_max: int) -> Capabilities:
    """What queues of that kind keep."""
    native, unsupported = Support.NATIVE, Support.UNSUPPORTED
    only_fifo = native if fifo else unsupported
    return Capabilities(
        durable=True,
        ordered=False,  # a standard queue makes its best effort; a FIFO queue orders groups, not itself
        confirms_acks=True,
        timed_lease=True,
        backpressure=True,  # who is throttled, or gets no answer, waits
        checks_queues=True,
        compares_queues=False,
        counts=Counts.DELIVERIES,
        delay=unsupported if fifo else native,
        priority=unsupported,
        ttl=unsupported,  # retention is the queue's, not the message's
        group_id=only_fifo,
        dedup_id=only_fifo,
        dead_letter=unsupported,  # a redrive policy would count receives, not failures; it is not used
        delivery_count=native,
        topics=unsupported,
        peek=unsupported,
        purge=native,
        stats=native,
        # By visibility a FIFO queue's message keeps its place in its group, and waits; a copy could do neither there. On a
        # standard queue a copy keeps what visibility cannot: that a handler failed.
        nack=only_fifo,
        release=only_fifo,
        forward=unsupported,
        returns_count=fifo,
        delay_max=None if fifo else DELAY_MAX,
        nack_delay_max=NACK_DELAY_MAX if fifo else None,
        lease_max=LEASE_MAX,
        dedup_window=DEDUP_WINDOW if fifo else None,
        body_max_bytes=size_max - RESERVE_BYTES,
    )


class SQSSession:
    """Knows queues, receipts and requests; knows nothing of retries or payloads.

    Args:
        orphans: The connection's, for polls that outlive this session.
        left_over: Takes deliveries that could not be given back.
        returns: The connection's, of what it gave back by visibility.
    """

    def __init__(
        self,
        service: Service,
        *,
        fifo: bool,
        lease: float,
        wait: int,
        size_max: int,
        clock: Clock,
        orphans: Orphans[Consumer],
        left_over: Callable[[list[Held]], None],
        returns: Returns,
    ) -> None:
        self._service = service
        self._returns = returns
        self._clock = clock
        self._left_over = left_over
        self._lease = whole_seconds(lease)
        self._capabilities = capabilities(fifo=fifo, size_max=size_max)
        self._requests = Requests(REQUESTS_MAX, clock)
        self._lost_by: MQError | None = None
        self._closed = False
        lost = self._lose
        self._queues = Queues(service, self._requests, fifo=fifo, lease=self._lease, clock=clock, lost=lost)
        self._sender = Sender(service, self._requests, fifo=fifo, size_max=size_max, clock=clock, lost=lost)
        self._consumer = Consumer(
            service,
            self._requests,
            wait=wait,
            fifo=fifo,
            clock=clock,
            lost=lost,
            left_over=left_over,
            orphans=orphans,
            returns=returns,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    # --- queues -------------------------------------------------------------------------------------------------------

    def declare(self, queue: str, options: QueueOptions, mode: Declare, timeout: float) -> QueueOptions:
        self._check()
        return self._queues.declare(queue, options, mode, timeout)

    def bind(self, topic: str, group: str | None, timeout: float) -> str:
        raise UnsupportedError("SQS has no topics; SNS, which has, is not used here")

    def stats(self, queue: str, timeout: float) -> Stats:
        self._check()
        return self._queues.stats(queue, timeout)

    def peek(self, queue: str, limit: int, timeout: float) -> Sequence[Incoming]:
        raise UnsupportedError("SQS cannot show a message without delivering it")

    def purge(self, queue: str, timeout: float) -> int | None:
        """As the driver says; ten messages at a time."""
        self._check()
        return self._queues.purge(queue, timeout)

    def delete(self, queue: str, timeout: float) -> None:
        self._check()
        self._queues.delete(queue, timeout)

    # --- sending ------------------------------------------------------------------------------------------------------

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        """As the driver says; delays are whole seconds, rounded up."""
        if self._lost_by is not None:
            return {
                place: NotSentError(f"not connected: {self._lost_by}", message_id=message.id)
                for place, message in enumerate(batch)
            }
        return self._sender.send(queue, batch, timeout)

    def publish(self, topic: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        raise UnsupportedError("SQS has no topics; SNS, which has, is not used here")

    # --- receiving ----------------------------------------------------------------------------------------------------

    def subscribe(self, queue: str, window: int, lease: float | None, timeout: float) -> None:
        """As the driver says; a lease is whole seconds, rounded up."""
        self._check()
        seconds = self._lease if lease is None else max(whole_seconds(lease), 1)
        if seconds > LEASE_MAX:
            raise ArgumentError(f"a lease of {lease} s; SQS has {LEASE_MAX:g} s at most")
        self._consumer.subscribe(queue, self._queues.url(queue, timeout), window, seconds)

    def unsubscribe(self, queue: str, timeout: float) -> None:
        """As the driver says. What a poll that is out still brings goes to the next subscription, or back: counted."""
        self._check()
        self._consumer.unsubscribe(queue)

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        """As the driver says. Asking once takes as long as SQS needs to answer, up to a fifth of a second. *limit* bounds
        what is asked for: of what was asked for before, nothing is held back, for its leases run."""
        self._check()
        try:
            return self._consumer.receive(limit, timeout, self._check)
        except QueueNotFoundError as error:
            self._service.forget_all()
            raise error

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        if self._lost_by is not None:
            return {place: ConnectionLostError(str(self._lost_by)) for place in range(len(verdicts))}
        return self._consumer.settle(verdicts, timeout)

    # --- the end ------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        self._consumer.wake()

    def abort(self) -> None:
        self._lose(ConnectionLostError("the session was ended"))
        self._requests.abort()

    def close(self, timeout: float) -> None:
        """As the driver says. What was delivered counts as delivered."""
        if self._closed:
            return
        self._closed = True
        held, unseen = self._consumer.close()
        in_order = self._lost_by is None
        try:
            if not in_order:
                self._left_over([*held, *unseen])  # for the next session, which gives it back when SQS can be reached
            elif held or unseen:
                self._requests.call(lambda: self._give_back(held, unseen), timeout, "giving back")
            if in_order and self._queues.temporary:
                self._queues.delete_temporary(timeout)
        finally:
            self._requests.end()
            self._lose(ConnectionLostError("the session is closed"))

    def _give_back(self, held: list[Held], unseen: list[Held]) -> None:
        now = self._clock.monotonic
        give_back(self._service, held, now, self._left_over)
        give_back(self._service, unseen, now, self._left_over, self._returns)

    def _lose(self, error: MQError) -> None:
        """From any thread: a request lost its connection, so the session has ended."""
        is_loss = isinstance(error, (ConnectFailedError, ConnectionLostError)) and not isinstance(
            error, AuthenticationError
        )
        if is_loss and self._lost_by is None:
            self._lost_by = error
            self._consumer.abort()
            self._service.let_go()

    def _check(self) -> None:
        if self._lost_by is not None:
            raise ConnectionLostError(str(self._lost_by)) from self._lost_by
