"""The way to the broker breaks, and mends: C34, C35."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from mqlayer.api import Consumer, Delivery, Producer
from mqlayer.errors import MQError, StaleDeliveryError
from mqlayer.testing.checker import Expect, Floors
from mqlayer.testing.ledger import EventType, Fault, Phase
from mqlayer.testing.proxy import Direction, FaultProxy
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.deliveries import in_threads, refusal
from mqlayer.testing.suite.survival import lease

__all__ = ["a_lost_connection_surfaces", "the_same_objects_work_after_an_outage"]

PATIENCE = 30.0
HASTY = 1.0  #: the timeout of the producer that gives up during an outage
OUTAGE = 2.0  #: seconds, longer than that
BACK_AGAIN = 10.0  #: seconds from the end of an outage until all works again, at the most


@criterion("C34", limit=150)
def a_lost_connection_surfaces(stage: Stage) -> Outcome:
    """Connections are reset while sends wait for their answer: each is sent again, or fails; none is a false success."""
    site = stage.proxied()
    proxy = site.proxy
    assert proxy is not None
    queue = stage.queue()
    stage.connect().declare(queue)
    producers = {
        "patient": site.actor("produce", "patient", queue=queue, rate=50, how="submit", window=20),
        "hasty": site.actor("produce", "hasty", queue=queue, rate=50, timeout=HASTY),
    }
    for actor in producers.values():
        actor.ready()
    faults: tuple[Callable[[], None], ...] = (
        lambda: proxy.stall(Direction.TO_CLIENT),  # stored, and nobody is told
        lambda: proxy.blackhole(Direction.TO_SERVER),  # not stored, and nobody is told
        lambda: _refuse(proxy),  # not sent
    )
    for fault in faults * stage.size(quick=1, full=3):
        _await_confirms(stage, producers.values())
        stage.controller.fault(Fault.CONNECTION, Phase.BEGIN)
        fault()
        threading.Event().wait(HASTY + 0.5)
        proxy.reset()
        proxy.restore()
        _await_confirms(stage, producers.values())
        stage.controller.fault(Fault.CONNECTION, Phase.END)
    for actor in producers.values():
        actor.stop()
    drained = stage.drain(stage.site, queue)
    floors = Floors(confirmed=50, connection_faults=len(faults), unsure=1)
    expect = Expect(
        drained=drained.drained,
        queue_empty=drained.queue_empty,
        ack_settle=0.0 if stage.capabilities.confirms_acks else None,
        floors=floors,
    )
    return stage.judge(expect)


def _refuse(proxy: FaultProxy) -> None:
    proxy.refuse()
    proxy.reset()


def _await_confirms(stage: Stage, producers: Any) -> None:
    """Each producer has had sends confirmed since now."""
    since = time.monotonic()

    def all_did() -> bool:
        confirmed = {
            event.actor
            for event in stage.history()
            if event.at > since and event.type is EventType.PUBLISH and event.phase is Phase.OK
        }
        return all(actor.name in confirmed for actor in producers)

    names = ", ".join(actor.name for actor in producers)
    stage.wait_until(all_did, f"sends of {names} are confirmed", timeout=PATIENCE)


@criterion("C35", limit=180)
def the_same_objects_work_after_an_outage(stage: Stage) -> Outcome:
    """Cut off for 2 s, then over and over: connection, producer and consumer go on by themselves, and leave nothing behind."""
    site = stage.proxied()
    assert site.proxy is not None
    mq = site.connect()
    queue = stage.queue()
    # What a broker that leases handed to a connection that was gone comes again when its lease ends, and not before.
    line = _Line(stage, site.proxy, mq.producer(queue), mq.consumer(queue, **lease(stage)))
    line.round_trip()
    slowest = line.survive(OUTAGE)
    stage.wait_until(lambda: mq.health().connected, "health() says that it is connected")
    before = _footprint()
    rounds = stage.size(quick=6, full=20)
    for _ in range(rounds):
        slowest = max(slowest, line.survive(0.0))
    # What has just been closed may take a moment to go.
    leaked: list[tuple[int, int]] = []

    def is_as_before() -> bool:
        leaked.append(_footprint())
        return leaked[-1][0] <= before[0] and leaked[-1][1] <= before[1]

    try:
        stage.wait_until(is_as_before, "as many threads and open files as before", timeout=5.0)
    except AssertionError:
        text = f"after {rounds} reconnects (threads, open files) are {leaked[-1]}, and were {before}"
        raise AssertionError(text) from None
    lost = mq.health().connections_lost
    stage.floor("connections lost", lost, rounds + 1)
    stage.assert_empty(stage.connect(), line.end(queue))
    evidence = {"rounds": rounds, "slowest": round(slowest, 3), "connections lost": lost, "footprint": before}
    return Outcome(counts={"checked": line.sent}, evidence=evidence)


def _footprint() -> tuple[int, int]:
    """Threads and open files of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@dataclass(slots=True)
class _Line:
    """A producer and a consumer that are to survive, and what went through them."""

    stage: Stage
    proxy: FaultProxy
    producer: Producer
    consumer: Consumer
    sent: int = 0

    def round_trip(self) -> None:
        number = self._next()
        self.producer.send(number)
        self._receive({number})

    def survive(self, outage: float) -> float:
        """Cut the connection with a message in hand, a receive waiting and sends on their way. Nothing of it is lost.

        Returns how long after the outage all had come.
        """
        held_number = self._next()
        self.producer.send(held_number)
        held = self.consumer.receive(timeout=self.stage.seconds(PATIENCE))
        assert held is not None, "a message did not come before the outage"
        expected = {self._next() for _ in range(4)} | {held_number}
        futures: list[Future[str]] = []
        over: list[float] = []

        def fail_and_mend() -> None:
            threading.Event().wait(0.05)  # the receive waits by now
            self.proxy.blackhole(Direction.TO_SERVER)
            before = self.proxy.stats().dropped_to_server
            futures.extend(self.producer.submit(number) for number in expected - {held_number})
            self.stage.wait_until(
                lambda: self.proxy.stats().dropped_to_server > before, "sends are on their way, and do not arrive"
            )
            if outage:
                self.proxy.refuse()
            self.proxy.reset()
            threading.Event().wait(outage)
            self.proxy.restore()
            over.append(time.monotonic())

        in_threads([fail_and_mend, lambda: self._receive(expected)], timeout=self.stage.seconds(PATIENCE))
        took = time.monotonic() - over[0]
        for future in futures:
            future.result(self.stage.seconds(PATIENCE))
        assert took <= self.stage.seconds(BACK_AGAIN), f"{took:.1f} s after the outage of {outage} s all worked again"
        refusal(StaleDeliveryError, held.ack, "acking what was held before the connection was lost")
        return took

    def _receive(self, expected: set[int]) -> None:
        """Receive and ack until all of these have come; what was sent again may come twice."""
        missing = set(expected)
        end = time.monotonic() + self.stage.seconds(PATIENCE)
        while missing:
            left = end - time.monotonic()
            assert left > 0, f"{sorted(missing)} of {sorted(expected)} did not come within {PATIENCE:g} s"
            delivery = self.consumer.receive(timeout=left)
            if delivery is not None:
                missing.discard(delivery.message.payload)
                _ack(delivery)

    def end(self, queue: str) -> str:
        """Take what came twice, and close."""
        while (delivery := self.consumer.receive(timeout=0.5)) is not None:
            delivery.ack()
        self.consumer.close()
        self.producer.close()
        return queue

    def _next(self) -> int:
        self.sent += 1
        return self.sent


def _ack(delivery: Delivery) -> None:
    try:
        delivery.ack()
    except MQError:  # its connection went meanwhile, and it comes again
        return
