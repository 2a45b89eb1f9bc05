"""A memory store with a clock that the test moves, and readers that note what they are told."""

import itertools
from collections.abc import Callable

from mqlayer.backends.memory_queue import Client
from mqlayer.backends.memory_store import Store
from mqlayer.driver import (
    Declare,
    Failures,
    Incoming,
    Outgoing,
    QueueOptions,
    Stats,
    Verdict,
)

WALL = 1_800_000_000.0
LEASE = 30.0


class Reader:
    """A session of the broker under test, and what it was told."""

    def __init__(self, broker: "Broker") -> None:
        self.broker = broker
        self.told: list[float] = []
        self.client = Client(self.told.append)
        broker.do(broker.store.join, self.client)

    def subscribe(self, *queues: str, window: int = 100, lease: float = LEASE) -> "Reader":
        for queue in queues:
            self.broker.do(self.broker.store.subscribe, self.client, queue, window, lease)
        return self

    def unsubscribe(self, queue: str) -> None:
        self.broker.do(self.broker.store.unsubscribe, self.client, queue)

    def receive(self, limit: int = 100) -> list[Incoming]:
        return self.broker.do(self.broker.store.receive, self.client, limit)

    def ids(self, limit: int = 100) -> list[str | None]:
        return [incoming.message.id for incoming in self.receive(limit)]

    def settle(self, *verdicts: Verdict) -> Failures:
        return self.broker.do(self.broker.store.settle, self.client, verdicts)

    def leave(self, *, released: bool) -> None:
        self.broker.do(self.broker.store.leave, self.client, released)


class Broker:
    """A store with a clock that the test moves, and queue ``q``."""

    def __init__(self) -> None:
        self.store = Store()
        self.now = 0.0
        self.numbers = itertools.count(1)
        self.declare("q")

    def do(self, verb: Callable, *args):  # type: ignore[no-untyped-def,type-arg]
        try:
            return verb(self.now, WALL + self.now, *args)
        finally:
            calls, self.store.calls = self.store.calls, []
            for tell, when in calls:
                tell(when)

    def declare(self, name: str, mode: Declare = Declare.ENSURE, **options: object) -> QueueOptions:
        return self.do(self.store.declare, name, QueueOptions(**options), mode)  # type: ignore[arg-type]

    def send(self, *ids: str, queue: str = "q", **fields: object) -> Failures:
        return self.do(self.store.send, queue, [Outgoing(id, b"body", **fields) for id in ids])  # type: ignore[arg-type]

    def reader(self, *queues: str, window: int = 100, lease: float = LEASE) -> Reader:
        return Reader(self).subscribe(*(queues or ("q",)), window=window, lease=lease)

    def stats(self, queue: str = "q") -> tuple[int | None, int | None, int | None]:
        stats: Stats = self.do(self.store.stats, queue)
        assert not stats.approximate
        return stats.ready, stats.in_flight, stats.delayed

    def peek(self, limit: int = 100, queue: str = "q") -> list[str | None]:
        return [incoming.message.id for incoming in self.do(self.store.peek, queue, limit)]
