"""Consuming with acks: subscriptions on one channel, each with its own window, and verdicts gathered into few acks.

AMQP cannot change the prefetch of a live consumer. A window that grows is met by one more consumer beside those that
there are, one that shrinks by cancelling and consuming anew; what is held stays held and counts.
"""

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pika import frame, spec

from mqlayer.backends.rabbitmq_connection import Connection, Lane, translated
from mqlayer.backends.rabbitmq_wire import AckWatermark, Token, broker_count, from_wire
from mqlayer.driver import Ack, Incoming, Release, Verdict
from mqlayer.errors import (
    ConnectionLostError,
    MQError,
    QueueNotFoundError,
    RequestTimeoutError,
    StaleDeliveryError,
    UnsupportedError,
)

__all__ = ["Consumer"]

PREFETCH_MAX = 65_535  #: what the protocol has room for; 0 would mean no limit
FEEDS_MAX = 8  #: consumers of one queue before they are made into one again


class Feed:
    """One AMQP consumer: what it may hold unsettled, and what it does."""

    __slots__ = ("begun", "live", "prefetch", "subscription", "tag", "unsettled")

    def __init__(self, subscription: "Subscription", tag: str, prefetch: int) -> None:
        self.subscription = subscription
        self.tag = tag
        self.prefetch = prefetch
        self.unsettled = 0
        self.begun = False  #: the broker has said so
        self.live = True

    def on_begun(self, _answer: object) -> None:
        self.begun = True


class Subscription:
    """What a queue's consumers may hold together, and what came and was not asked for yet."""

    __slots__ = ("buffer", "feeds", "gone", "queue", "single", "window")

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.window = 0
        self.feeds: list[Feed] = []
        self.buffer: deque[Incoming] = deque()
        self.gone = False  #: the broker ended its consumers: the queue may not exist any more
        self.single: bool | None = None  #: only one consumer of the queue may ever be active; None: not asked yet

    def room(self) -> int:
        """How many more it may be given, beyond what its live consumers may hold already."""
        return self.window - sum(feed.prefetch if feed.live else feed.unsettled for feed in self.feeds)

    def is_starved(self) -> bool:
        """Nothing more can come unless a consumer is added: all that there are, are full or cancelled."""
        return all(feed.unsettled >= feed.prefetch for feed in self.feeds if feed.live)

    def forget_idle(self) -> None:
        """A cancelled consumer of which nothing is held is of no more interest."""
        self.feeds = [feed for feed in self.feeds if feed.live or feed.unsettled]

    def is_begun(self) -> bool:
        return all(feed.begun for feed in self.feeds if feed.live)

    def is_clean(self) -> bool:
        """Nothing is held that came from a cancelled consumer."""
        return all(feed.live for feed in self.feeds)


class Consumer:
    """The consuming half of a session. A channel that the broker closes takes all that was held on it: the session
    ends with ConnectionLostError, and a new one begins."""

    def __init__(
        self,
        connection: Connection,
        *,
        epoch: str,
        counts: bool,
        releases: bool,
        is_single: Callable[[str, float], bool | None],
    ) -> None:
        self._connection = connection
        self._epoch = epoch
        self._counts = counts
        self._releases = releases
        self._is_single = is_single
        self._lane: Lane | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._held: dict[int, Feed] = {}  #: by delivery tag
        self._acks = AckWatermark()
        self._buffered = 0
        self._cancelled: deque[str] = deque()  #: queues that went away
        self._tags = 0

    # --- subscriptions ------------------------------------------------------------------------------------------------

    def subscribe(self, queue: str, window: int, deadline: float) -> None:
        """Let up to *window* deliveries of *queue* be unsettled. The caller has seen that the queue exists."""
        subscription = self._subscriptions.setdefault(queue, Subscription(queue))
        subscription.window = window
        subscription.gone = False
        if self._lane is None:
            self._lane = self._connection.open_lane(deadline)
            self._lane.channel.add_on_cancel_callback(self._on_cancel)
        self._check()
        if any(feed.live for feed in subscription.feeds):
            if subscription.single is None:
                subscription.single = self._is_single(queue, deadline) is not False
            room = subscription.room()
            if room < 0 or (room > 0 and (subscription.single or len(subscription.feeds) >= FEEDS_MAX)):
                self._cancel(subscription, deadline)
        self._feed(subscription)
        try:
            self._barrier(deadline)
        except RequestTimeoutError as exc:  # one such queue keeps all others of its channel waiting: say which it is
            raise RequestTimeoutError(
                f"RabbitMQ does not let queue {queue!r} be consumed: it may be without a leader, or broken"
            ) from exc

    @property
    def active(self) -> bool:
        """Something may still come."""
        return any(subscription.window for subscription in self._subscriptions.values())

    def has(self, queue: str) -> bool:
        """A consumer of the queue lives, so the queue does."""
        subscription = self._subscriptions.get(queue)
        return subscription is not None and any(feed.live for feed in subscription.feeds)

    def unsubscribe(self, queue: str, deadline: float) -> None:
        """No more deliveries of *queue*; those that nobody asked for go back.

        Where going back counts as a delivery they stay for ``receive`` instead, so that a copy can go back in their place.
        What a quorum queue hands over at the very moment of the cancel never arrives: the broker takes it back, counted.
        """
        subscription = self._subscriptions.get(queue)
        if subscription is None or self._lane is None:
            return
        subscription.window = 0
        self._check()
        self._cancel(subscription, deadline)
        if self._releases:
            for incoming in subscription.buffer:
                self._give_back(incoming)
            self._buffered -= len(subscription.buffer)
            subscription.buffer.clear()
        self._connection.turn()

    def _cancel(self, subscription: Subscription, deadline: float) -> None:
        """End its consumers. What was on its way still arrives, and is kept."""
        if not subscription.is_begun():
            self._barrier(deadline)
        self._write_cancels(subscription)
        self._barrier(deadline)
        subscription.forget_idle()

    def _write_cancels(self, subscription: Subscription) -> None:
        """Only once all of them have begun: RabbitMQ 3.10 ends the connection (541) on a cancel that it reads before it has
        answered the consume, if the queue has another consumer on the channel; basic.cancel in its rabbit_channel.erl."""
        for feed in subscription.feeds:
            if feed.live:
                # Not pika's basic_cancel: it rejects what is still on its way, and a quorum queue counts that.
                self._connection.write_method(self._require(), spec.Basic.Cancel(consumer_tag=feed.tag, nowait=True))
                feed.live = False

    def _feed(self, subscription: Subscription) -> None:
        """Add a consumer for what may still come. Written in order after all before it; an error ends the channel."""
        room = min(subscription.room(), PREFETCH_MAX)
        lane = self._require()
        if room <= 0 or lane.ended is not None:
            return
        self._tags += 1
        feed = Feed(subscription, f"mq.{self._epoch}.{self._tags}", room)
        subscription.feeds.append(feed)
        with translated():
            lane.channel.basic_qos(prefetch_count=room)  # for the consumers that follow; quorum queues know no other
            lane.channel.basic_consume(
                subscription.queue,
                functools.partial(self._on_message, feed),
                consumer_tag=feed.tag,
                callback=feed.on_begun,
            )

    def _refill(self) -> None:
        """Make up for what cancelled consumers have kept others from getting."""
        for subscription in self._subscriptions.values():
            if subscription.room() <= 0 or not (subscription.is_clean() or subscription.is_starved()):
                continue
            if subscription.single and any(feed.live for feed in subscription.feeds):
                if not subscription.is_starved() or not subscription.is_begun():
                    continue
                self._write_cancels(subscription)
                subscription.forget_idle()
            self._feed(subscription)

    def _barrier(self, deadline: float) -> None:
        """All that the broker sent before it read what was written so far has arrived."""
        lane = self._require()
        self._connection.call(lane, lambda done: lane.channel.basic_qos(prefetch_count=1, callback=done), deadline)

    def _require(self) -> Lane:
        if self._lane is None:
            raise ConnectionLostError("nothing is subscribed")
        return self._lane

    def _check(self) -> None:
        self._connection.check_open()
        if self._lane is not None and self._lane.ended is not None:
            reason = self._lane.ended
            raise ConnectionLostError(f"RabbitMQ closed the consuming channel: {reason}") from reason

    # --- deliveries ---------------------------------------------------------------------------------------------------

    def receive(self, limit: int, deadline: float) -> list[Incoming]:
        """Up to *limit*, as soon as one is there; the queues take turns."""
        connection = self._connection
        try:
            if self._buffered < limit or not limit:
                if self._lane is not None and limit:
                    self._refill()
                connection.run_until(lambda: connection.woken or (limit and self._has_news()), deadline)
            self._check()
            if self._cancelled:
                raise QueueNotFoundError(
                    f"RabbitMQ ended the consumer of queue {self._cancelled.popleft()!r}: it is gone"
                )
            return self._take(limit)
        finally:
            # Cleared when it ends, not when it begins: a wake that comes before it is for this one.
            connection.woken = False

    def _has_news(self) -> bool:
        return bool(self._buffered or self._cancelled or (self._lane is not None and self._lane.ended is not None))

    def _take(self, limit: int) -> list[Incoming]:
        busy = [subscription for subscription in self._subscriptions.values() if subscription.buffer]
        taken: list[Incoming] = []
        while busy and len(taken) < limit:
            share = max((limit - len(taken)) // len(busy), 1)
            for subscription in busy:
                buffer = subscription.buffer
                taken += [buffer.popleft() for _ in range(min(share, len(buffer), limit - len(taken)))]
            busy = [subscription for subscription in busy if subscription.buffer]
        self._buffered -= len(taken)
        if len(self._subscriptions) > 1:  # who was first is last the next time
            queue = next(iter(self._subscriptions))
            self._subscriptions[queue] = self._subscriptions.pop(queue)
        return taken

    def _on_message(self, feed: Feed, _channel: object, method: Any, properties: Any, body: bytes) -> None:
        tag = method.delivery_tag
        feed.unsettled += 1
        self._held[tag] = feed
        self._buffered += 1
        subscription = feed.subscription
        if not feed.live and feed not in subscription.feeds:  # it was on its way when its consumer was cancelled
            subscription.feeds.append(feed)
        subscription.buffer.append(
            Incoming(
                from_wire(properties, body),
                subscription.queue,
                Token(self._epoch, tag),
                None,
                broker_count(properties, method.redelivered) if self._counts else None,
                method.redelivered,
                (method, properties),
            )
        )

    def _on_cancel(self, answer: Any) -> None:
        """The queue was deleted, or its node went."""
        tag = answer.method.consumer_tag
        for subscription in self._subscriptions.values():
            for feed in subscription.feeds:
                if feed.tag == tag and feed.live:
                    feed.live = False
                    if not any(other.live for other in subscription.feeds):
                        subscription.window = 0
                        subscription.gone = True
                        self._cancelled.append(subscription.queue)

    # --- verdicts -----------------------------------------------------------------------------------------------------

    def settle(self, verdicts: Sequence[Verdict]) -> dict[int, MQError]:
        """Write the acks, as few as there can be, and let the loop send them. A Release of a quorum queue's is counted."""
        failures: dict[int, MQError] = {}
        acked: list[int] = []
        for place, verdict in enumerate(verdicts):
            kind = type(verdict)
            if kind is not Ack and kind is not Release:
                failures[place] = UnsupportedError(f"RabbitMQ cannot {kind.__name__.lower()} a delivery")
                continue
            tag = self._tag_of(verdict.of)
            if tag is None:
                failures[place] = StaleDeliveryError(
                    f"the delivery from queue {verdict.of.queue!r} is settled, or its connection is gone"
                )
            elif kind is Ack:
                self._forget(tag)
                acked.append(tag)
            else:
                self._give_back(verdict.of)
        if acked:
            lane = self._require()
            number = lane.channel.channel_number
            acks = [
                frame.Method(number, spec.Basic.Ack(tag, multiple)).marshal()
                for tag, multiple in self._acks.acks(acked)
            ]
            self._connection.write(b"".join(acks))
        if self._connection.lost is None:
            self._connection.turn()
        return failures

    def _tag_of(self, incoming: Incoming) -> int | None:
        """The delivery's tag, if it is this session's and not settled yet."""
        token = incoming.token
        lane = self._lane
        if not isinstance(token, Token) or token.epoch != self._epoch or token.tag not in self._held:
            return None
        if lane is None or lane.ended is not None or self._connection.lost is not None or self._connection.aborted:
            return None
        return token.tag

    def _forget(self, tag: int) -> None:
        feed = self._held.pop(tag)
        feed.unsettled -= 1
        if not feed.live:
            feed.subscription.forget_idle()

    def _give_back(self, incoming: Incoming) -> None:
        tag = self._tag_of(incoming)
        if tag is not None:
            self._forget(tag)
            self._acks.settled(tag)
            self._connection.write_method(self._require(), spec.Basic.Nack(tag, multiple=False, requeue=True))
