"""One queue of the memory broker: what waits in it, in which order, and who holds what.

Pure structure. It reads no clock, takes no lock and tells nobody; :mod:`mqlayer.backends.memory_store` does that.

An ``Entry`` is one message in one place, and is handed over at most once: what comes back is a new entry in the old
one's order. So an entry can serve as the token that settles its delivery, and a stale token is one without a holder.
"""

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from mqlayer.driver import Outgoing, QueueOptions, Stats

__all__ = ["BLOCKED", "DELAYED", "GONE", "PAUSED", "READY", "Client", "Entry", "Lane", "Queue", "Subscription"]

READY, BLOCKED, DELAYED, PAUSED, GONE = range(5)
"""Where an entry is: in its lane; behind its group's head; not due since it was sent; not due since it was nacked;
handed over or discarded. Plain ints, since an Enum's members cost several times as much to compare."""

TEMPORARY_IDLE = 60.0  #: seconds after which a temporary queue that nobody subscribes to goes
SWEEP_MIN = 64  #: discarded entries that a lane carries along before it is rebuilt


class Entry:
    """A message in a queue, and the token of its one delivery."""

    __slots__ = ("count", "expires_at", "holder", "leads", "lease_until", "message", "order", "place")

    holder: "Subscription | None"  # set when it is handed over, as is lease_until
    lease_until: float

    def __init__(self, message: Outgoing, order: float) -> None:
        self.message = message
        self.order = order
        self.count = 0  # deliveries of this copy so far
        self.expires_at: float | None = None
        self.leads = False  # it is the first of its group, and the others wait for it
        self.place = READY

    def __lt__(self, other: "Entry") -> bool:
        return self.order < other.order

    def __repr__(self) -> str:
        return f"{self.order}#{self.count}"  # what stands for the delivery where copies name their origin

    def again(self, message: Outgoing, count: int) -> "Entry":
        """The entry that goes back in this one's place."""
        entry = Entry(message, self.order)
        entry.count = count
        entry.expires_at = self.expires_at
        entry.leads = self.leads
        return entry

    def failed(self) -> Outgoing:
        """The message after a handler of it failed: the copy's count starts anew, and its trail keeps the old one."""
        trail = self.message.trail
        crashes = trail.crashes + self.count - 1
        trail = trail._replace(failures=trail.failures + 1, crashes=crashes, not_before=None, copied_from=None)
        return self.message._replace(trail=trail)


class Lane:
    """The ready entries of one priority, first come first served.

    ``ready`` is in order already; ``returned`` is a heap of what came back, mostly older. What is discarded out of
    turn stays in them, marked GONE and counted in ``dead``, until its turn comes or a sweep.
    """

    __slots__ = ("dead", "ready", "returned")

    def __init__(self) -> None:
        self.ready: deque[Entry] = deque()
        self.returned: list[Entry] = []
        self.dead = 0

    def __len__(self) -> int:
        return len(self.ready) + len(self.returned) - self.dead

    def __iter__(self) -> Iterator[Entry]:
        return (entry for entry in heapq.merge(sorted(self.returned), self.ready) if entry.place == READY)

    def take(self) -> Entry | None:
        """The next entry that may be handed over."""
        ready, returned = self.ready, self.returned
        while True:
            if returned and (not ready or returned[0].order < ready[0].order):
                entry = heapq.heappop(returned)
            elif ready:
                entry = ready.popleft()
            else:
                return None
            if entry.place == READY:
                return entry
            self.dead -= 1

    def discarded(self) -> None:
        """One of the entries was marked GONE. Rebuilt when those outweigh the others, so that a queue that nobody
        reads holds no more than what is alive."""
        self.dead += 1
        if self.dead > SWEEP_MIN and self.dead > len(self):
            alive = list(self)
            self.ready.clear()
            self.ready.extend(alive)
            self.returned.clear()
            self.dead = 0


class Client:
    """What the store knows of a session.

    Attributes:
        tell: Called with the monotonic time from which a receive may find something.
        next_look: The earliest time told since its last receive; ``-inf`` when it knows that it must look anyway.
        subscriptions: By queue name; closed ones too, while they hold something.
        turn: The open ones, the one to ask first at the front.
        own_queues: Temporary subscriptions to topics, which go with the session.
    """

    __slots__ = ("next_look", "own_queues", "subscriptions", "tell", "turn")

    def __init__(self, tell: Callable[[float], None]) -> None:
        self.tell = tell
        self.next_look = math.inf
        self.subscriptions: dict[str, Subscription] = {}
        self.turn: list[Subscription] = []
        self.own_queues: list[str] = []


class Subscription:
    """A session's claim on a queue, and what it holds of it.

    ``held`` is in the order of the leases' ends, because each delivery gets the same lease; a delivery whose lease was
    changed moves to ``extended``, which is searched.
    """

    __slots__ = ("client", "extended", "held", "lease", "open", "queue", "window")

    def __init__(self, client: Client, queue: "Queue", window: int, lease: float) -> None:
        self.client = client
        self.queue = queue
        self.window = window
        self.lease = lease
        self.open = True
        self.held: dict[Entry, None] = {}
        self.extended: dict[Entry, None] = {}

    def __len__(self) -> int:
        return len(self.held) + len(self.extended)

    def entries(self) -> list[Entry]:
        return [*self.held, *self.extended]

    def let_go(self, entry: Entry) -> None:
        """The entry is settled or goes back; its token is stale from now on."""
        entry.holder = None
        try:
            del self.held[entry]
        except KeyError:  # its lease was changed
            del self.extended[entry]

    def extend(self, entry: Entry, until: float) -> None:
        self.held.pop(entry, None)
        self.extended[entry] = None
        entry.lease_until = until

    def change(self, window: int, lease: float) -> None:
        self.window = window
        if lease != self.lease:  # the new leases may end before the old ones do
            self.extended.update(self.held)
            self.held.clear()
            self.lease = lease

    def overdue(self, now: float) -> list[Entry]:
        found = []
        for entry in self.held:
            if entry.lease_until > now:
                break
            found.append(entry)
        found += [entry for entry in self.extended if entry.lease_until <= now]
        return found

    def next_end(self) -> float:
        """When the first of the leases ends."""
        ends = [entry.lease_until for entry in self.extended]
        if self.held:
            ends.append(next(iter(self.held)).lease_until)
        return min(ends, default=math.inf)


class Queue:
    """One queue. ``ready`` is the lane of priority 0 itself, for the sends that need nothing else."""

    __slots__ = (
        "_by_priority",
        "blocked",
        "dedup",
        "delayed",
        "delayed_dead",
        "groups",
        "lanes",
        "look_at",
        "name",
        "options",
        "ordered",
        "ready",
        "subscriptions",
        "topic",
        "used_at",
    )

    def __init__(self, name: str, options: QueueOptions, now: float) -> None:
        self.name = name
        self.options = options
        self.ordered = options.ordered
        self.used_at = now
        self.topic: str | None = None
        lane = Lane()
        self.ready = lane.ready
        self.lanes = [lane]  # highest priority first
        self._by_priority = {0: lane}
        self.groups: dict[str, deque[Entry]] = {}  # what waits behind the group's first; a key: there is a first
        self.blocked = 0
        self.delayed: list[tuple[float, float, Entry]] = []
        self.delayed_dead = 0
        self.dedup: OrderedDict[str, float] = OrderedDict()  # id → when it came; a plain dict is slow at its front
        self.look_at = math.inf  # when the store looks at it again
        self.subscriptions: list[Subscription] = []  # in the order in which they came; closed ones while they hold

    def lane(self, priority: int | None) -> Lane:
        lane = self._by_priority.get(priority or 0)
        if lane is None:
            lane = self._by_priority[priority or 0] = Lane()
            self.lanes = [self._by_priority[key] for key in sorted(self._by_priority, reverse=True)]
        return lane

    def add(self, entry: Entry) -> None:
        """Behind all others of its priority, or behind its group's."""
        group_id = entry.message.group_id
        if group_id:
            tail = self.groups.get(group_id)
            if tail is not None:
                entry.place = BLOCKED
                tail.append(entry)
                self.blocked += 1
                return
            self.groups[group_id] = deque()
            entry.leads = True
        entry.place = READY
        self.lane(entry.message.priority).ready.append(entry)

    def put_back(self, entry: Entry) -> None:
        """To the place that its order gives it."""
        entry.place = READY
        heapq.heappush(self.lane(entry.message.priority).returned, entry)

    def put_twin(self, entry: Entry) -> Entry:
        """A second copy of *entry*, to be handed over next."""
        twin = entry.again(entry.message, max(entry.count - 1, 0))
        twin.order += 0.5
        if entry.leads:
            twin.leads = False
            twin.place = BLOCKED
            self.groups[entry.message.group_id or ""].appendleft(twin)
            self.blocked += 1
        else:
            self.put_back(twin)
        return twin

    def put_off(self, entry: Entry, until: float, place: int) -> None:
        entry.place = place
        heapq.heappush(self.delayed, (until, entry.order, entry))

    def advance(self, entry: Entry) -> None:
        """*entry*, the first of its group, is gone for good: the next one takes its place."""
        group_id = entry.message.group_id or ""
        tail = self.groups[group_id]
        while tail:
            following = tail.popleft()
            if following.place == BLOCKED:
                self.blocked -= 1
                following.leads = True
                self.put_back(following)
                return
        del self.groups[group_id]

    def discard(self, entry: Entry) -> None:
        """A waiting entry is to be seen by nobody."""
        place, entry.place = entry.place, GONE
        if place == READY:
            self.lane(entry.message.priority).discarded()
        elif place == BLOCKED:
            self.blocked -= 1
        else:
            self.delayed_dead += 1
        if entry.leads:
            self.advance(entry)

    def fall_due(self, now: float, next_order: Callable[[], float]) -> bool:
        """Let in what was put off until *now*. Whether there was anything."""
        found = False
        while self.delayed and self.delayed[0][0] <= now:
            entry = heapq.heappop(self.delayed)[2]
            if entry.place == GONE:
                self.delayed_dead -= 1
                continue
            found = True
            if entry.place == PAUSED:
                self.put_back(entry)
            else:
                entry.order = next_order()  # as if it were sent now
                self.add(entry)
        return found

    def unused_until(self) -> float:
        """When a temporary queue goes, if nobody subscribes to it. Sending to it does not keep it: else a queue for
        replies whose reader is gone would grow for ever."""
        return self.used_at + TEMPORARY_IDLE if self.options.temporary and not self.subscriptions else math.inf

    def next_due(self) -> float:
        """When something is to be done about it."""
        when = min(self.unused_until(), self.delayed[0][0] if self.delayed else math.inf)
        for subscription in self.subscriptions:
            when = min(when, subscription.next_end())
        return when

    def seen_before(self, dedup_id: str, now: float, window: float) -> bool:
        """Whether a message of that id came in the last *window* seconds. If not, one has come now."""
        while self.dedup:
            oldest = next(iter(self.dedup))
            if self.dedup[oldest] + window > now:
                break
            del self.dedup[oldest]
        if dedup_id in self.dedup:
            return True
        self.dedup[dedup_id] = now
        return False

    def waiting(self) -> bool:
        return any(lane.ready or lane.returned for lane in self.lanes)

    def count_ready(self) -> int:
        return sum(map(len, self.lanes)) + self.blocked

    def stats(self) -> Stats:
        in_flight = sum(map(len, self.subscriptions))
        return Stats(ready=self.count_ready(), in_flight=in_flight, delayed=len(self.delayed) - self.delayed_dead)

    def first(self) -> Iterator[Entry]:
        """What may be handed over now, in that order."""
        for lane in self.lanes:
            yield from lane

    def purge(self) -> int:
        """Drop what is ready, also behind the first of a group."""
        count = self.count_ready()
        tails: list[deque[Entry]] = []
        for lane in self.lanes:
            for entry in lane:
                entry.place = GONE
                if entry.leads:
                    tails.append(self.groups.pop(entry.message.group_id or ""))
            lane.ready.clear()
            lane.returned.clear()
            lane.dead = 0
        for tail in (*tails, *self.groups.values()):
            for entry in tail:
                entry.place = GONE
            tail.clear()
        self.blocked = 0
        return count

    def empty(self) -> None:
        """Drop all that waits."""
        self.purge()
        for _, _, entry in self.delayed:
            entry.place = GONE
        self.delayed.clear()
        self.delayed_dead = 0
        self.groups.clear()
