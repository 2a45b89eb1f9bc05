"""The memory broker's store against a model that keeps one plain list and searches it for everything."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mqlayer.backends.memory_queue import Client
from mqlayer.backends.memory_store import Store
from mqlayer.driver import Ack, Declare, Extend, Incoming, Nack, Outgoing, QueueOptions, Release, Verdict

WALL = 1_800_000_000.0
LEASE = 10.0


@dataclass
class Item:
    """A message as the model sees it. ``where``: waiting, sent late, nacked late, or a reader's number."""

    id: str
    order: int
    priority: int
    group: str | None
    expires: float | None
    where: str | int = "waiting"
    until: float = 0.0  # when a delay or a lease ends
    count: int = 0
    failures: int = 0
    crashes: int = 0
    changed: int = 0  # so that an old token is known


class StoreAgainstModel(RuleBasedStateMachine):
    """Times are whole seconds, so that ends often coincide."""

    @initialize()
    def begin(self) -> None:
        self.store = Store()
        self.now = 0.0
        self.number = 0
        self.items: list[Item] = []
        self.tokens: list[tuple[int, Incoming, Item, int]] = []
        self.clients = [Client(lambda when: None) for _ in range(2)]
        self.store.declare(0.0, WALL, "q", QueueOptions(), Declare.ENSURE)
        for client in self.clients:
            self._join(client)

    def _join(self, client: Client) -> None:
        self.store.join(self.now, WALL + self.now, client)
        self.store.subscribe(self.now, WALL + self.now, client, "q", 5, LEASE)

    def _next(self) -> int:
        self.number += 1
        return self.number

    @rule(
        priority=st.sampled_from([0, 0, 0, 4, 9]),
        group=st.sampled_from([None, None, "g", "h"]),
        delay=st.sampled_from([0, 0, 0, 3, 7]),
        ttl=st.sampled_from([None, None, 8, 15]),
    )
    def send(self, priority: int, group: str | None, delay: int, ttl: int | None) -> None:
        number = self._next()
        expires = None if ttl is None else self.now + ttl
        message = Outgoing(
            str(number),
            b"",
            priority=priority or None,
            group_id=group,
            delay=float(delay),
            expires_at=None if expires is None else WALL + expires,
        )
        assert self.store.send(self.now, WALL + self.now, "q", [message]) == {}
        where, until = ("sent late", self.now + delay) if delay else ("waiting", 0.0)
        self.items.append(Item(str(number), number, priority, group, expires, where, until))

    @rule(seconds=st.integers(1, 12))
    def advance(self, seconds: int) -> None:
        self.now += seconds
        late = [item for item in self.items if item.where == "sent late" and item.until <= self.now]
        late = [item for item in late if item.expires is None or item.expires > self.now]
        for item in sorted(late, key=lambda item: (item.until, item.order)):
            item.order = self._next()
            item.where = "waiting"
        for item in self.items:
            if item.where != "waiting" and item.where != "sent late" and item.until <= self.now:
                item.where = "waiting"
                item.changed += 1
        self._expire()

    def _expire(self) -> None:
        self.items = [
            item
            for item in self.items
            if isinstance(item.where, int) or item.expires is None or item.expires > self.now
        ]

    def _ready(self) -> list[Item]:
        """What may be handed over now, in order."""
        found = []
        for item in self.items:
            if item.where == "waiting":
                rivals = [r for r in self.items if r.group == item.group and r.where != "sent late"]
                if item.group is None or item.order == min(rival.order for rival in rivals):
                    found.append(item)
        return sorted(found, key=lambda item: (-item.priority, item.order))

    @rule(reader=st.integers(0, 1), limit=st.integers(1, 6))
    def receive(self, reader: int, limit: int) -> None:
        room = 5 - sum(item.where == reader for item in self.items)
        expected = self._ready()[: min(limit, room)]
        found = self.store.receive(self.now, WALL + self.now, self.clients[reader], limit)
        assert [incoming.message.id for incoming in found] == [item.id for item in expected]
        for incoming, item in zip(found, expected, strict=True):
            item.where, item.until = reader, self.now + LEASE
            item.count += 1
            item.changed += 1
            trail = incoming.message.trail
            assert (incoming.broker_count, trail.failures, trail.crashes) == (item.count, item.failures, item.crashes)
            assert incoming.lease_until == item.until
            self.tokens.append((reader, incoming, item, item.changed))

    @rule(data=st.data(), by=st.integers(0, 9), kind=st.sampled_from(["ack", "nack", "nack 4", "release", "extend"]))
    def settle(self, data: st.DataObject, by: int, kind: str) -> None:
        if not self.tokens:
            return
        reader, incoming, item, changed = data.draw(st.sampled_from(self.tokens))
        caller = reader if by else 1 - reader  # sometimes the wrong session tries
        verdict: Verdict = {
            "ack": Ack(incoming),
            "nack": Nack(incoming),
            "nack 4": Nack(incoming, 4.0),
            "release": Release(incoming),
            "extend": Extend(incoming, 13.0),
        }[kind]
        failures = self.store.settle(self.now, WALL + self.now, self.clients[caller], [verdict])
        mine = any(item is other for other in self.items) and item.where == caller and item.changed == changed
        assert (failures == {}) is mine
        if not mine:
            return
        if kind == "extend":
            item.until = self.now + 13.0
            return
        item.changed += 1
        if kind == "ack":
            self.items = [other for other in self.items if other is not item]
            return
        if kind == "release":
            item.count -= 1
        else:
            item.failures += 1
            item.crashes += item.count - 1
            item.count = 0
        item.where, item.until = ("nacked late", self.now + 4.0) if kind == "nack 4" else ("waiting", 0.0)
        self._expire()

    @rule(reader=st.integers(0, 1), released=st.booleans())
    def leave(self, reader: int, released: bool) -> None:
        self.store.leave(self.now, WALL + self.now, self.clients[reader], released)
        for item in self.items:
            if item.where == reader:
                item.where = "waiting"
                item.count -= released
                item.changed += 1
        self._expire()
        self._join(self.clients[reader])

    @rule()
    def purge(self) -> None:
        kept = [item for item in self.items if item.where != "waiting"]
        assert self.store.purge(self.now, WALL + self.now, "q") == len(self.items) - len(kept)
        self.items = kept

    @invariant()
    def counts_and_peek_agree(self) -> None:
        stats = self.store.stats(self.now, WALL + self.now, "q")
        places = [item.where for item in self.items]
        in_flight = sum(isinstance(place, int) for place in places)
        assert (stats.ready, stats.in_flight) == (places.count("waiting"), in_flight)
        assert stats.delayed == len(places) - places.count("waiting") - in_flight
        peeked = self.store.peek(self.now, WALL + self.now, "q", 100)
        assert [incoming.message.id for incoming in peeked] == [item.id for item in self._ready()]


TestStoreAgainstModel = StoreAgainstModel.TestCase
TestStoreAgainstModel.settings = settings(
    settings.default, max_examples=100, stateful_step_count=40, deadline=None, derandomize=True
)
