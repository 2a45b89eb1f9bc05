"""The memory broker's store: queues, topics, leases and what falls due. Pure apart from the time passed in.

Every verb gets ``now`` (monotonic seconds) and ``wall`` (epoch seconds) and first does what is due by then: messages
past their ``expires_at`` are discarded, expired leases go back, delays end. There is no timer. Whoever could find
something in a receive is noted in ``calls``.

What comes back takes its old place again, whatever brought it back; a message that was sent with a delay queues up when
the delay ends. So order is kept, except around delays and priorities.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

from mqlayer.backends.memory_agenda import Agenda
from mqlayer.backends.memory_names import group_queue, missing, stale
from mqlayer.backends.memory_queue import DELAYED, GONE, PAUSED, Client, Entry, Queue, Subscription
from mqlayer.driver import Ack, Declare, Extend, Forward, Incoming, Nack, Outgoing, QueueOptions, Stats, Verdict
from mqlayer.errors import ArgumentError, MQError, QueueMismatchError, UnroutableError

__all__ = ["DEDUP_WINDOW", "Store"]

DEDUP_WINDOW = 300.0  #: seconds in which a second message of one dedup_id is discarded

_new = tuple.__new__


class Store:
    """A broker's state. One thread at a time; whoever shares it brings the lock.

    Attributes:
        calls: Whom to tell, and from when on a receive of theirs may find something. The caller empties it and tells
            them, when it has let go of the lock.
        has_expiry: Some message has had a time to live; until then ``wall`` is not looked at.
    """

    def __init__(self) -> None:
        self.has_expiry = False
        self.calls: list[tuple[Callable[[float], None], float]] = []
        self._queues: dict[str, Queue] = {}
        self._topics: dict[str, dict[str, Queue]] = {}
        self._clients: dict[Client, None] = {}
        self._order = itertools.count().__next__
        self._agenda = Agenda()

    # What is due

    def _due(self, now: float, wall: float) -> None:
        """Do what is due. Expiry first, so that nothing expired falls due or goes back."""
        agenda = self._agenda
        while wall >= agenda.next_expiry:
            expired = agenda.expired(wall)
            if expired is not None:
                queue, entry = expired
                leads = entry.leads
                queue.discard(entry)
                if leads:  # the next of its group may go
                    self._announce(queue, now)
        while now >= agenda.next_look:
            due = agenda.due_queue(now)
            if due is not None:
                self._look(due, now, wall)

    def _look(self, queue: Queue, now: float, wall: float) -> None:
        if queue.fall_due(now, self._order):
            self._announce(queue, now)
        for subscription in list(queue.subscriptions):
            for entry in subscription.overdue(now):
                self._give_back(subscription, entry, now, wall, entry.message, entry.count)
            self._retire(subscription, now)
        if queue.unused_until() <= now:
            self._drop(queue)
        else:
            self._schedule(queue, queue.next_due())

    def _schedule(self, queue: Queue, when: float) -> None:
        """Look at *queue* at *when*, and let those look who found nothing in it."""
        if self._agenda.look_at(queue, when):
            for subscription in queue.subscriptions:
                self._tell(subscription.client, when)

    def _announce(self, queue: Queue, now: float) -> None:
        for subscription in queue.subscriptions:
            self._tell(subscription.client, now)

    def _tell(self, client: Client, when: float) -> None:
        if when < client.next_look:
            client.next_look = when
            self.calls.append((client.tell, when))

    # Queues

    def declare(self, now: float, wall: float, name: str, options: QueueOptions, mode: Declare) -> QueueOptions:
        self._due(now, wall)
        queue = self._queues.get(name)
        if queue is None:
            if mode is Declare.CHECK:
                raise missing(name)
            queue = self._create(name, options, now)
        elif mode is Declare.COMPARE and queue.options != options:
            raise QueueMismatchError(f"queue {name!r} exists with {queue.options}, not {options}")
        queue.used_at = now
        return queue.options

    def _create(self, name: str, options: QueueOptions, now: float) -> Queue:
        queue = self._queues[name] = Queue(name, options, now)
        for client in self._clients:  # subscriptions outlive their queue
            subscription = client.subscriptions.get(name)
            if subscription is not None:
                subscription.queue = queue
                queue.subscriptions.append(subscription)
        self._schedule(queue, queue.next_due())
        return queue

    def bind(self, now: float, wall: float, client: Client, topic: str, group: str | None) -> str:
        self._due(now, wall)
        groups = self._topics.setdefault(topic, {})
        name = group_queue(topic, group, self._order())
        if name not in groups:
            queue = self._queues.get(name) or self._create(name, QueueOptions(), now)
            queue.topic = topic
            groups[name] = queue
            if group is None:
                client.own_queues.append(name)
        return name

    def delete(self, now: float, wall: float, name: str) -> None:
        self._due(now, wall)
        if (queue := self._queues.get(name)) is not None:
            self._announce(queue, now)
            self._drop(queue)

    def _drop(self, queue: Queue) -> None:
        del self._queues[queue.name]
        if queue.topic is not None:
            del self._topics[queue.topic][queue.name]
            if not self._topics[queue.topic]:
                del self._topics[queue.topic]
        queue.look_at = math.inf
        queue.empty()
        for subscription in queue.subscriptions:
            for entry in subscription.entries():
                subscription.let_go(entry)
            if not subscription.open:
                del subscription.client.subscriptions[queue.name]
        queue.subscriptions = []

    def stats(self, now: float, wall: float, name: str) -> Stats:
        return self._queue(now, wall, name).stats()

    def peek(self, now: float, wall: float, name: str, limit: int) -> list[Incoming]:
        queue = self._queue(now, wall, name)
        first = itertools.islice(queue.first(), max(limit, 0))
        return [Incoming(entry.message, name, None, None, entry.count + 1, entry.count > 0) for entry in first]

    def purge(self, now: float, wall: float, name: str) -> int:
        return self._queue(now, wall, name).purge()

    def _queue(self, now: float, wall: float, name: str) -> Queue:
        self._due(now, wall)
        queue = self._queues.get(name)
        if queue is None:
            raise missing(name)
        return queue

    # Sending

    def send(
        self, now: float, wall: float, name: str, batch: Iterable[Outgoing], expires: bool = True
    ) -> dict[int, MQError]:
        """As the driver's. Without *expires*, ``expires_at`` only travels."""
        if now >= self._agenda.next_look or wall >= self._agenda.next_expiry:
            self._due(now, wall)
        queue = self._queues.get(name)
        if queue is None:
            return {
                index: UnroutableError(f"there is no queue {name!r}; declare it first", message_id=message.id)
                for index, message in enumerate(batch)
            }
        ready, came = queue.ready, False
        for message in batch:
            if (
                message.delay
                or message.priority
                or message.group_id
                or message.dedup_id
                or message.expires_at is not None
            ):
                came = self._put(queue, message, now, expires) or came
            else:
                ready.append(Entry(message, self._order()))
                came = True
        if came:
            for subscription in queue.subscriptions:
                if subscription.client.next_look > now:
                    self._tell(subscription.client, now)
        return {}

    def publish(
        self, now: float, wall: float, topic: str, batch: Sequence[Outgoing], expires: bool = True
    ) -> dict[int, MQError]:
        self._due(now, wall)
        for name in self._topics.get(topic, ()):
            self.send(now, wall, name, batch, expires)
        return {}

    def _put(self, queue: Queue, message: Outgoing, now: float, expires: bool, *, copy: bool = False) -> bool:
        """Whether it came in now; else it comes later, or is a duplicate."""
        # A copy that a Forward makes keeps its message's dedup_id, and must not be taken for the duplicate.
        if message.dedup_id and not copy and queue.seen_before(message.dedup_id, now, DEDUP_WINDOW):
            return False
        delay = message.delay
        entry = Entry(message._replace(delay=0.0) if delay else message, self._order())
        if expires and message.expires_at is not None:
            self.has_expiry = True
            entry.expires_at = message.expires_at
            self._agenda.watch(queue, entry)
        if delay > 0:
            queue.put_off(entry, now + delay, DELAYED)
            self._schedule(queue, now + delay)
            return False
        queue.add(entry)
        return True

    # Receiving

    def join(self, now: float, wall: float, client: Client) -> None:
        """A session begins."""
        self._due(now, wall)
        self._clients[client] = None

    def subscribe(self, now: float, wall: float, client: Client, name: str, window: int, lease: float) -> None:
        queue = self._queue(now, wall, name)
        subscription = client.subscriptions.get(name)
        if subscription is None:
            subscription = client.subscriptions[name] = Subscription(client, queue, window, lease)
            queue.subscriptions.append(subscription)
            client.turn.append(subscription)
        else:
            subscription.change(window, lease)
            if not subscription.open:
                subscription.open = True
                client.turn.append(subscription)
        self._tell(client, now)

    def unsubscribe(self, now: float, wall: float, client: Client, name: str) -> None:
        self._due(now, wall)
        subscription = client.subscriptions.get(name)
        if subscription is not None and subscription.open:
            subscription.open = False
            client.turn.remove(subscription)
            self._retire(subscription, now)

    def _retire(self, subscription: Subscription, now: float) -> None:
        """Forget a closed subscription that holds nothing any more."""
        queue = subscription.queue
        if not subscription.open and not len(subscription):
            subscription.client.subscriptions.pop(queue.name, None)
            if subscription in queue.subscriptions:
                queue.subscriptions.remove(subscription)
            queue.used_at = now
            if queue.options.ordered:  # the next one's turn
                self._announce(queue, now)
            if queue.options.temporary:
                self._schedule(queue, queue.next_due())

    def receive(self, now: float, wall: float, client: Client, limit: int) -> list[Incoming]:
        """Up to *limit* deliveries, by turns of the subscribed queues. Never waits. Raises QueueNotFoundError."""
        if now >= self._agenda.next_look or wall >= self._agenda.next_expiry:
            self._due(now, wall)
        found: list[Incoming] = []
        turn = client.turn
        if len(turn) == 1:
            self._hand_over(turn[0], limit, now, found)
        elif turn and limit > 0:
            self._take_turns(client, limit, now, found)
        if len(found) >= limit:
            if limit > 0:
                client.next_look = -math.inf
            return found
        if client.next_look <= now:  # else it was told of a later time, and still knows it
            client.next_look = math.inf
        if turn:
            if not found and (gone := [one.queue.name for one in turn if one.queue.name not in self._queues]):
                raise missing(gone[0])
            self._tell(client, min([subscription.queue.look_at for subscription in turn]))
        return found

    def _take_turns(self, client: Client, limit: int, now: float, found: list[Incoming]) -> None:
        busy = list(client.turn)
        while busy:
            still = []
            for subscription in busy:
                if self._hand_over(subscription, 1, now, found):
                    still.append(subscription)
                    if len(found) == limit:  # the next receive begins behind this one
                        at = client.turn.index(subscription) + 1
                        client.turn = client.turn[at:] + client.turn[:at]
                        return
            busy = still

    def _hand_over(self, subscription: Subscription, limit: int, now: float, found: list[Incoming]) -> bool:
        queue, held = subscription.queue, subscription.held
        if queue.ordered and queue.subscriptions[0] is not subscription:
            return False
        room = subscription.window - len(held)
        if subscription.extended:
            room -= len(subscription.extended)
        if room > limit:
            room = limit
        name, until = queue.name, now + subscription.lease
        before = room
        for lane in queue.lanes:
            ready, returned = lane.ready, lane.returned
            while room > 0 and (ready or returned):
                entry = lane.take() if returned else ready.popleft()
                if entry is None:
                    break
                if entry.place == GONE:
                    lane.dead -= 1
                    continue
                room -= 1
                entry.place = GONE
                entry.holder = subscription
                entry.lease_until = until
                entry.count = count = entry.count + 1
                held[entry] = None
                # Incoming(…), at two thirds of its price: one is made for every message
                found.append(_new(Incoming, (entry.message, name, entry, until, count, count > 1, None)))
        if room == before:
            return False
        if until < queue.look_at:
            self._schedule(queue, until)
        return True

    def duplicate(self, now: float, wall: float, incoming: Incoming) -> None:
        """Let the message of a delivery be delivered a second time, as brokers do."""
        self._due(now, wall)
        entry = incoming.token
        if isinstance(entry, Entry) and entry.holder is not None:
            queue = entry.holder.queue
            self._agenda.watch(queue, queue.put_twin(entry))
            self._announce(queue, now)

    # Settling

    def settle(self, now: float, wall: float, client: Client, verdicts: Iterable[Verdict]) -> dict[int, MQError]:
        if now >= self._agenda.next_look or wall >= self._agenda.next_expiry:
            self._due(now, wall)
        failures: dict[int, MQError] = {}
        for index, verdict in enumerate(verdicts):
            entry = verdict.of.token
            if type(entry) is not Entry or (holder := entry.holder) is None or holder.client is not client:
                failures[index] = stale(verdict)
            elif type(verdict) is Ack:
                entry.holder = None
                try:
                    del holder.held[entry]
                except KeyError:  # its lease was changed
                    del holder.extended[entry]
                if entry.leads or not holder.open:
                    self._finish(holder, entry, now)
            else:
                error = self._carry_out(holder, entry, verdict, now, wall)
                if error is not None:
                    failures[index] = error
        if client.next_look > now:  # its window may have kept it from what is there
            for subscription in client.turn:
                if subscription.queue.waiting():
                    self._tell(client, now)
        return failures

    def _carry_out(
        self, holder: Subscription, entry: Entry, verdict: Verdict, now: float, wall: float
    ) -> MQError | None:
        if isinstance(verdict, Extend):
            if not verdict.seconds > 0:
                return ArgumentError(f"a lease is extended by a positive number of seconds, not {verdict.seconds!r}")
            holder.extend(entry, now + verdict.seconds)
            self._schedule(holder.queue, now + verdict.seconds)
            return None
        if isinstance(verdict, Forward):
            target = self._queues.get(verdict.queue)
            if target is None:
                text = f"there is no queue {verdict.queue!r} to forward to; the message stays where it is"
                return UnroutableError(text, message_id=verdict.copy.id)
            if self._put(target, verdict.copy, now, True, copy=True):
                self._announce(target, now)
            holder.let_go(entry)
            self._finish(holder, entry, now)
            return None
        if isinstance(verdict, Nack):
            self._give_back(holder, entry, now, wall, entry.failed(), 0, verdict.delay)
        else:  # Release
            self._give_back(holder, entry, now, wall, entry.message, entry.count - 1)
        self._retire(holder, now)
        return None

    def _finish(self, holder: Subscription, entry: Entry, now: float) -> None:
        """A message was settled for good: the next of its group may go, or the next consumer."""
        if entry.leads:
            holder.queue.advance(entry)
            self._announce(holder.queue, now)
        self._retire(holder, now)

    def _give_back(
        self,
        holder: Subscription,
        entry: Entry,
        now: float,
        wall: float,
        message: Outgoing,
        count: int,
        delay: float = 0.0,
    ) -> None:
        queue = holder.queue
        holder.let_go(entry)
        expires_at = entry.expires_at
        if expires_at is not None and expires_at <= wall:
            if entry.leads:
                queue.advance(entry)
                self._announce(queue, now)
            return
        again = entry.again(message, count)
        self._agenda.watch(queue, again)
        if delay > 0:
            queue.put_off(again, now + delay, PAUSED)
            # When the first of a group expires in its pause, the next one may go then.
            early = now + expires_at - wall if expires_at is not None and entry.leads else math.inf
            self._schedule(queue, min(now + delay, early))
        else:
            queue.put_back(again)
            self._announce(queue, now)

    def leave(self, now: float, wall: float, client: Client, released: bool) -> None:
        """A session ends. What it holds goes back: *released*, as if never delivered, or else with its count kept."""
        self._due(now, wall)
        self._clients.pop(client, None)
        client.turn = []
        for subscription in list(client.subscriptions.values()):
            subscription.open = False
            for entry in subscription.entries():
                count = entry.count - 1 if released else entry.count
                self._give_back(subscription, entry, now, wall, entry.message, count)
            self._retire(subscription, now)
        for name in client.own_queues:
            queue = self._queues.get(name)
            if queue is not None:
                self._drop(queue)
        client.own_queues = []
