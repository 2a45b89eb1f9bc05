"""Consuming with ``client-individual`` acks: subscriptions, each with its own window.

STOMP cannot change a live subscription, and servers take back all that was delivered on one that ends, what callers hold
included. So a window that grows is met by one more subscription beside those that there are; one that shrinks, by ending
those of which nobody holds anything. One that somebody still holds a delivery of stays until that is settled: what arrives
on it meanwhile is kept here and not handed over.

ActiveMQ flags what it takes back as redelivered, as if a worker had died of it. There the flow is stopped first
(``stomp_flow``), what has arrived is given back by copy, and nothing is left to be flagged.
"""

from collections import deque
from collections.abc import Sequence

from mqlayer.backends.stomp_answers import Answer
from mqlayer.backends.stomp_connection import Connection
from mqlayer.backends.stomp_flow import Flow
from mqlayer.backends.stomp_settler import Settler
from mqlayer.backends.stomp_wire import Frame, Token, from_wire, is_redelivered
from mqlayer.driver import Counts, Incoming
from mqlayer.errors import ConnectionLostError, MQError, RequestTimeoutError

__all__ = ["Consumer"]

FEEDS_MAX = 8  #: subscriptions of one queue before they are made into one again, where one can hold several deliveries
TOPIC_WINDOW = 1000  #: of a subscription that goes with its session: what is beyond that, the server may drop


class Feed:
    """One subscription: what it may hold unsettled, and what it does."""

    __slots__ = ("handed", "id", "prefetch", "unsettled")

    def __init__(self, id: str, prefetch: int) -> None:
        self.id = id
        self.prefetch = prefetch
        self.unsettled = 0  #: arrived
        self.handed = 0  #: … and given to the caller


class Subscribed:
    """What a queue's feeds may hold together, and what came and was not asked for yet."""

    __slots__ = ("buffer", "feeds", "handed", "queue", "target", "temporary", "window")

    def __init__(self, queue: str, target: str) -> None:
        self.queue = queue
        self.target = target
        self.window = 0
        self.feeds: list[Feed] = []
        self.buffer: deque[Incoming] = deque()
        self.handed = 0
        self.temporary = False

    @property
    def capacity(self) -> int:
        return sum(feed.prefetch for feed in self.feeds)

    @property
    def room(self) -> int:
        """How many may be handed over now."""
        return min(self.window - self.handed, len(self.buffer))


class Consumer:
    """The consuming half of a session."""

    def __init__(self, connection: Connection, flow: Flow, settler: Settler, epoch: str) -> None:
        self._connection = connection
        self._dialect = connection.dialect
        self._flow = flow
        self._settler = settler
        self._epoch = epoch
        self._queues: dict[str, Subscribed] = {}
        self._feeds: dict[str, tuple[Subscribed, Feed]] = {}  #: by the subscription's id
        self._held: dict[str, tuple[Subscribed, Feed]] = {}  #: by the id that an ACK names
        self._count = 0
        connection.on_message = self._on_message

    # --- subscriptions ------------------------------------------------------------------------------------------------

    def subscribe(self, queue: str, target: str, window: int, deadline: float) -> None:
        """Let up to *window* deliveries of *queue* be unsettled."""
        self._connection.check_open()
        subscribed = self._queues.setdefault(queue, Subscribed(queue, target))
        subscribed.window = window
        self._fit(subscribed, deadline)

    def unsubscribe(self, queue: str, deadline: float) -> None:
        """No more deliveries of *queue*; what nobody asked for goes back, uncounted."""
        self._connection.check_open()
        subscribed = self._queues.get(queue)
        if subscribed is not None:
            subscribed.window = 0
            self._fit(subscribed, deadline)

    def add_temporary(self, queue: str, targets: Sequence[str], deadline: float) -> None:
        """Hold what comes to *targets* from now on, for *queue*, which goes with the session."""
        subscribed = self._queues[queue] = Subscribed(queue, targets[-1])
        subscribed.temporary = True
        for target in targets:
            self._add_feeds(subscribed, [TOPIC_WINDOW], target, deadline)

    @property
    def active(self) -> bool:
        """Something may still come."""
        return any(subscribed.window for subscribed in self._queues.values())

    def give_all_back(self, deadline: float) -> None:
        """The end: what nobody was given goes back uncounted; what callers hold and never settled, as the server does it."""
        for subscribed in self._queues.values():
            subscribed.window = 0
            if subscribed.feeds and not subscribed.temporary:
                self._end(subscribed, list(subscribed.feeds), deadline)

    def _fit(self, subscribed: Subscribed, deadline: float) -> None:
        """Make the feeds' capacity that of the window, as far as what is held allows."""
        if subscribed.temporary:
            return
        gone = self._surplus(subscribed)
        if gone:
            self._end(subscribed, gone, deadline)
        missing = subscribed.window - subscribed.capacity
        if self._dialect.prefetch_header is None:
            missing = 0 if subscribed.feeds else subscribed.window  # nothing limits it, so one is enough
        if missing > 0:
            one_by_one = self._dialect.one_by_one
            self._add_feeds(subscribed, [1] * missing if one_by_one else [missing], subscribed.target, deadline)

    def _surplus(self, subscribed: Subscribed) -> list[Feed]:
        """Which feeds are too many, or too many small ones, and can end."""
        dialect = self._dialect
        if (
            not dialect.stops_flow
            and not dialect.returns_uncounted
            and any(each.handed for each in self._queues.values())
        ):
            return []  # the connection may have to end with them, and what callers hold would come twice
        surplus = subscribed.capacity - subscribed.window
        count = len(subscribed.feeds)
        gone: list[Feed] = []
        for feed in sorted(subscribed.feeds, key=lambda feed: feed.unsettled):
            scattered = surplus != 0 and count >= FEEDS_MAX and not dialect.one_by_one
            if surplus <= 0 and not scattered:
                break
            if not feed.handed:
                gone.append(feed)
                surplus -= feed.prefetch
                count -= 1
        return gone

    def _add_feeds(self, subscribed: Subscribed, sizes: Sequence[int], target: str, deadline: float) -> None:
        asked: list[tuple[Feed, Answer]] = []
        for prefetch in sizes:
            self._count += 1
            feed = Feed(f"f{self._count}", prefetch)
            self._feeds[feed.id] = (subscribed, feed)
            subscribed.feeds.append(feed)
            headers = dict(self._dialect.subscribe_headers)
            if self._dialect.prefetch_header is not None:
                headers[self._dialect.prefetch_header] = str(prefetch)
            asked.append((feed, self._flow.begin(target, feed.id, headers)))
        refusal: MQError | None = None
        for feed, answer in asked:
            try:
                self._connection.wait_for(answer, f"subscribing to {target!r}", deadline)
            except RequestTimeoutError as exc:
                # Whether it is there, and takes messages that nobody will ever see, is unknown: it goes with the
                # connection.
                raise self._settler.lose(str(exc)) from exc
            except ConnectionLostError:
                raise
            except MQError as exc:
                subscribed.feeds.remove(feed)
                del self._feeds[feed.id]
                refusal = exc
        if refusal is not None:
            raise refusal

    def _end(self, subscribed: Subscribed, feeds: Sequence[Feed], deadline: float) -> None:
        """End *feeds*, of which the caller holds nothing. What they had brought goes back."""
        if self._dialect.stops_flow:
            with self._flow.stopped(subscribed.target, deadline):
                back = self._leave(subscribed, feeds)
                fresh = [incoming for incoming in back if not incoming.redelivered]
                # What cannot be copied goes back flagged, with its subscription: counted once too often, and not lost.
                self._settler.give_back(fresh, subscribed.target, deadline)
                self._flow.unsubscribe([feed.id for feed in feeds], deadline)
            for incoming in back:
                self._forget(incoming)
        else:
            back = self._leave(subscribed, feeds)
            self._flow.unsubscribe([feed.id for feed in feeds], deadline)
            for incoming in back:
                self._forget(incoming)
            if not self._dialect.returns_uncounted and any(feed.unsettled for feed in feeds):
                # The server keeps it for a subscription that is no more, and no frame can give it back.
                raise self._settler.lose(f"{self._dialect.name} gives back what it delivered with the connection alone")

    def _leave(self, subscribed: Subscribed, feeds: Sequence[Feed]) -> list[Incoming]:
        """Hear no more of *feeds*. Returns what they had brought."""
        ids = {feed.id for feed in feeds}
        back = [incoming for incoming in subscribed.buffer if _feed_of(incoming) in ids]
        subscribed.buffer = deque(incoming for incoming in subscribed.buffer if _feed_of(incoming) not in ids)
        subscribed.feeds = [feed for feed in subscribed.feeds if feed.id not in ids]
        for id in ids:
            self._feeds.pop(id, None)
        return back

    def _forget(self, incoming: Incoming) -> None:
        token = incoming.token
        if isinstance(token, Token):
            self._held.pop(token.ack, None)

    # --- deliveries ---------------------------------------------------------------------------------------------------

    def receive(self, limit: int, deadline: float) -> list[Incoming]:
        """Up to *limit*, as soon as one is there; the queues take turns."""
        connection = self._connection
        try:
            if not limit or not self._has_news():
                connection.run_until(lambda: connection.woken or (limit and self._has_news()), deadline)
            return self._take(limit)
        finally:
            # Cleared when it ends, not when it begins: a wake that comes before it is for this one.
            connection.woken = False

    def _has_news(self) -> bool:
        return any(subscribed.room > 0 for subscribed in self._queues.values())

    def _take(self, limit: int) -> list[Incoming]:
        taken: list[Incoming] = []
        busy = [subscribed for subscribed in self._queues.values() if subscribed.room > 0]
        while busy and len(taken) < limit:
            share = max((limit - len(taken)) // len(busy), 1)
            for subscribed in busy:
                for _ in range(min(share, subscribed.room, limit - len(taken))):
                    incoming = subscribed.buffer.popleft()
                    subscribed.handed += 1
                    feed = self._feeds.get(_feed_of(incoming))
                    if feed is not None:
                        feed[1].handed += 1
                    taken.append(incoming)
            busy = [subscribed for subscribed in busy if subscribed.room > 0]
        if len(self._queues) > 1:  # who was first is last the next time
            queue = next(iter(self._queues))
            self._queues[queue] = self._queues.pop(queue)
        return taken

    def _on_message(self, frame: Frame) -> None:
        headers = frame.headers
        id = headers.get("subscription", "")
        found = self._feeds.get(id)
        if found is None or "mq_mark" in headers:
            self._flow.on_message(frame)
            return
        subscribed, feed = found
        token = Token(self._epoch, id, headers.get("ack", ""))
        feed.unsettled += 1
        self._held[token.ack] = found
        redelivered = self._dialect.capabilities.counts is Counts.FLAG and is_redelivered(headers)
        subscribed.buffer.append(
            Incoming(from_wire(frame, self._dialect), subscribed.queue, token, None, None, redelivered, frame)
        )

    # --- settled ------------------------------------------------------------------------------------------------------

    def holds(self, incoming: Incoming) -> bool:
        """The delivery came on this session and is not settled yet."""
        token = incoming.token
        return isinstance(token, Token) and token.epoch == self._epoch and token.ack in self._held

    def settled(self, gone: Sequence[Incoming], deadline: float) -> None:
        """These are settled. What was only kept for them can end now."""
        freed: dict[str, Subscribed] = {}
        for incoming in gone:
            token = incoming.token
            found = self._held.pop(token.ack, None) if isinstance(token, Token) else None
            if found is not None:
                subscribed, feed = found
                feed.unsettled -= 1
                feed.handed -= 1
                subscribed.handed -= 1
                freed[subscribed.queue] = subscribed
        uncounted = self._dialect.stops_flow or self._dialect.returns_uncounted
        for subscribed in (freed if uncounted else self._queues).values():
            if subscribed.capacity > subscribed.window and any(not feed.handed for feed in subscribed.feeds):
                self._fit(subscribed, deadline)

    def release_by_end(self, incomings: Sequence[Incoming], deadline: float) -> None:
        """Give back deliveries that are alone on their feeds, by ending those (one_by_one)."""
        by_queue: dict[str, tuple[Subscribed, list[Feed]]] = {}
        for incoming in incomings:
            token = incoming.token
            if isinstance(token, Token):
                subscribed, feed = self._held[token.ack]
                by_queue.setdefault(subscribed.queue, (subscribed, []))[1].append(feed)
                self._forget(incoming)
                subscribed.handed -= 1
        for subscribed, feeds in by_queue.values():
            self._end(subscribed, feeds, deadline)
            self._fit(subscribed, deadline)


def _feed_of(incoming: Incoming) -> str:
    token = incoming.token
    return token.subscription if isinstance(token, Token) else ""
