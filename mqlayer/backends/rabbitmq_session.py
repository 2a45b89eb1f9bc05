"""One AMQP connection as a session. Asking, publishing and consuming each have a channel and a file of their own."""

import secrets
from collections.abc import Sequence

from mqlayer.backends.rabbitmq_connection import Connection
from mqlayer.backends.rabbitmq_consumer import Consumer
from mqlayer.backends.rabbitmq_publisher import Job, Publisher
from mqlayer.backends.rabbitmq_queues import Queues, unsent
from mqlayer.backends.rabbitmq_wire import DELAY_MAX, check_queue, delay_name, delay_step
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
from mqlayer.errors import MQError, NotSentError, UnroutableError, UnsupportedError

__all__ = ["RabbitSession", "capabilities"]

LOOK = 0.1  #: seconds in which the broker pushes what it has, where the caller only wants to look
CONSUMER_TIMEOUT = (
    1800.0  #: seconds after which RabbitMQ takes a delivery back, unless its configuration says otherwise
)


def capabilities(queue_type: str, server_version: str) -> Capabilities:
    """What queues of that type keep on that server."""
    quorum = queue_type == "quorum"
    native, unsupported = Support.NATIVE, Support.UNSUPPORTED
    major = server_version.partition(".")[0]
    return Capabilities(
        durable=True,
        ordered=True,
        confirms_acks=False,
        timed_lease=False,
        backpressure=True,
        checks_queues=True,
        compares_queues=True,
        # A classic queue flags everything as redelivered after a crash, and never counts.
        counts=Counts.DELIVERIES if quorum else Counts.NOTHING,
        delay=native,
        priority=unsupported if quorum else native,
        ttl=native,
        group_id=unsupported,
        dedup_id=unsupported,
        dead_letter=unsupported,
        delivery_count=native if quorum else unsupported,
        topics=native,
        peek=unsupported,
        purge=native,
        stats=native,
        nack=unsupported,
        release=unsupported if quorum else native,  # a quorum queue counts each return as a delivery
        forward=unsupported,
        delay_max=DELAY_MAX,
        lease_max=CONSUMER_TIMEOUT,
        # The server's max_message_size, which it does not tell: beyond it a publish ends the channel.
        body_max_bytes=(16 if major.isdigit() and int(major) >= 4 else 128) * 1024 * 1024,
    )


class RabbitSession:
    """One AMQP connection. Knows nothing of retries or payloads."""

    def __init__(self, connection: Connection, queue_type: str, *, declare_settle: float, clock: Clock) -> None:
        self._connection = connection
        self._monotonic = clock.monotonic
        self._capabilities = capabilities(queue_type, connection.server_version)
        self._queues = Queues(connection, queue_type, declare_settle=declare_settle, monotonic=clock.monotonic)
        self._publisher = Publisher(
            connection, body_max=self._capabilities.body_max_bytes or 0, time=clock.time, monotonic=clock.monotonic
        )
        self._consumer = Consumer(
            connection,
            epoch=secrets.token_hex(6),
            counts=self._capabilities.counts is Counts.DELIVERIES,
            releases=self._capabilities.release is Support.NATIVE,
            is_single=self._queues.is_single,
        )
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    # --- queues -------------------------------------------------------------------------------------------------------

    def declare(self, queue: str, options: QueueOptions, mode: Declare, timeout: float) -> QueueOptions:
        return self._queues.declare(queue, options, mode, self._monotonic() + timeout)

    def bind(self, topic: str, group: str | None, timeout: float) -> str:
        return self._queues.bind(topic, group, self._monotonic() + timeout)

    def stats(self, queue: str, timeout: float) -> Stats:
        return self._queues.stats(queue, self._monotonic() + timeout)

    def peek(self, queue: str, limit: int, timeout: float) -> Sequence[Incoming]:
        raise UnsupportedError("RabbitMQ cannot show a message without delivering it")

    def purge(self, queue: str, timeout: float) -> int | None:
        return self._queues.purge(queue, self._monotonic() + timeout)

    def delete(self, queue: str, timeout: float) -> None:
        self._queues.delete(queue, self._monotonic() + timeout)

    # --- sending ------------------------------------------------------------------------------------------------------

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        deadline = self._monotonic() + timeout
        check_queue(queue)
        failures = self._queues.prepare(queue, batch, deadline)
        jobs = (
            Job(place, message, delay_name(delay_step(message.delay)) if message.delay else "", queue)
            for place, message in enumerate(batch)
            if place not in failures
        )
        failed = self._publisher.publish(jobs, deadline, topic=False)
        for place, error in failed.items():
            message = batch[place]
            if message.delay:  # another client may have deleted what it was to wait in
                name = delay_name(delay_step(message.delay))
                self._queues.forget(name)
                if isinstance(error, UnroutableError):
                    failed[place] = NotSentError(f"the delay queue {name!r} is gone", message_id=message.id)
        return failures | failed

    def publish(self, topic: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        deadline = self._monotonic() + timeout
        failures: dict[int, MQError] = {
            place: UnsupportedError("RabbitMQ cannot delay what is published to a topic")
            for place, message in enumerate(batch)
            if message.delay
        }
        try:
            exchange = self._queues.topic(topic, deadline)
        except MQError as exc:
            return {place: unsent(message, exc) for place, message in enumerate(batch)} | failures
        jobs = (Job(place, message, exchange, "") for place, message in enumerate(batch) if place not in failures)
        failed = self._publisher.publish(jobs, deadline, topic=True)
        if failed:
            self._queues.forget(exchange)  # another client may have deleted it
        return failures | failed

    # --- receiving ----------------------------------------------------------------------------------------------------

    def subscribe(self, queue: str, window: int, lease: float | None, timeout: float) -> None:
        """As the driver says; *lease* has no meaning here: a delivery is held as long as its connection lives."""
        deadline = self._monotonic() + timeout
        self._queues.await_settled((queue,), deadline)
        if not self._consumer.has(queue):
            self._queues.check(check_queue(queue), deadline)
        self._consumer.subscribe(queue, window, deadline)

    def unsubscribe(self, queue: str, timeout: float) -> None:
        """As the driver says; quorum queues count what goes back unseen as delivered."""
        self._consumer.unsubscribe(queue, self._monotonic() + timeout)

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        """As the driver says. The broker pushes, so asking once means to give it a moment."""
        seconds = max(timeout, LOOK) if limit and self._consumer.active else timeout
        return self._consumer.receive(limit, self._monotonic() + seconds)

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        """Acks are written; AMQP has no answer to them."""
        return self._consumer.settle(verdicts)

    # --- the connection -----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        self._connection.wake()

    def abort(self) -> None:
        self._connection.abort()

    def close(self, timeout: float) -> None:
        if not self._closed:
            self._closed = True
            self._connection.close(timeout)
