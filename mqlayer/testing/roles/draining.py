"""The role that takes out whatever is left, and says whether anything may still be there."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mqlayer.api import Connection, Consumer, Delivery
from mqlayer.driver import Support
from mqlayer.errors import ClosedError
from mqlayer.testing.ledger import EventType, Ledger, Phase, Probe, read_ledgers
from mqlayer.testing.roles.consuming import close_consumer, note_delivery, settle
from mqlayer.testing.roles.work import Result, Work

__all__ = ["Drain", "all_look_empty", "looks_empty"]

LOOK_AGAIN = 1.0
ACKS_MAX = 16  #: at the same time: a broker that answers each may take ten milliseconds, and acks that wait go together


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Receive and ack all that is left: until every confirmed id of the ledgers is seen and then nothing comes for *quiet*.

    At the *deadline* it gives up and says whether the broker says that the queues are empty. It gives up earlier where
    the broker counts exactly: nothing came for *quiet*, and nothing is ready, delayed or in flight.

    Attributes:
        quiet: Longer than any lease or redelivery delay of the run, or a late duplicate is missed.
    """

    queues: Sequence[str]
    quiet: float = 2.0
    deadline: float = 30.0
    prefetch: int | None = None
    query: Mapping[str, Any] = field(default_factory=dict)

    def run(self, work: Work) -> Result:
        mq = work.connect(**self.query)
        missing = _confirmed_and_not_seen(work.ledgers)
        work.say("ready", missing=len(missing))
        work.ledger.probe(Probe.DRAIN, Phase.BEGIN)
        received, drained = self._receive_all(work, mq, missing)
        empty = all_look_empty(mq, self.queues, work.ledger, wait=work.pause)
        work.ledger.probe(Probe.DRAIN, Phase.END)
        return {"drained": drained, "queue_empty": empty, "received": received, "missing": sorted(missing)[:32]}

    def _receive_all(self, work: Work, mq: Connection, missing: set[str]) -> tuple[int, bool]:
        """Takes out of *missing* what came. Returns how many came, and whether this ended by itself."""
        consumer = mq.consumer(*self.queues, prefetch=self.prefetch)
        work.on_stop(consumer.stop)
        with ThreadPoolExecutor(ACKS_MAX) as acks:
            found = self._receive_from(consumer, work, mq, missing, acks)
        close_consumer(work, consumer)
        return found

    def _receive_from(
        self, consumer: Consumer, work: Work, mq: Connection, missing: set[str], acks: ThreadPoolExecutor
    ) -> tuple[int, bool]:
        room = threading.Semaphore(ACKS_MAX)  # no more than these are held

        def ack(id: str | None, delivery: Delivery) -> None:
            try:
                settle(work.ledger, EventType.ACK, id, delivery, delivery.ack)
            finally:
                room.release()

        asked: list[Future[None]] = []
        end = time.monotonic() + self.deadline * work.multiplier
        received, drained = 0, False
        while not drained and (left := end - time.monotonic()) > 0:
            try:
                delivery = consumer.receive(timeout=min(self.quiet, left))
            except ClosedError:  # stopped
                break
            work.check()
            if delivery is not None:
                id = note_delivery(work.ledger, delivery)
                room.acquire()
                asked.append(acks.submit(ack, id, delivery))
                missing.discard(id or "")
                received += 1
            elif left < self.quiet:
                break  # it was not quiet for long enough
            elif not missing:
                drained = True
            elif all(_certainly_empty(mq, queue) for queue in self.queues):
                break
            else:
                missing &= _confirmed_and_not_seen(work.ledgers)  # others may have received them since
        for acked in asked:
            acked.result()  # a ledger that could not be written, say, must not vanish
        return received, drained


def _confirmed_and_not_seen(ledgers: Path) -> set[str]:
    confirmed: set[str] = set()
    seen: set[str] = set()
    for event in read_ledgers(ledgers):
        if event.id is None:
            continue
        if event.type is EventType.PUBLISH and event.phase is Phase.OK:
            confirmed.add(event.id)
        elif event.type is EventType.DELIVER:
            seen.add(event.id)
    return confirmed - seen


def _certainly_empty(mq: Connection, queue: str) -> bool:
    if mq.capabilities.stats is Support.UNSUPPORTED:
        return False
    stats = mq.stats(queue)
    return not stats.approximate and stats.ready == stats.in_flight == 0 and not stats.delayed


def looks_empty(mq: Connection, queue: str, ledger: Ledger, *, wait: Callable[[float], object]) -> bool | None:
    """As :func:`all_look_empty`, of one queue."""
    return all_look_empty(mq, [queue], ledger, wait=wait)


def all_look_empty(
    mq: Connection, queues: Sequence[str], ledger: Ledger, *, wait: Callable[[float], object]
) -> bool | None:
    """Whether nothing is ready, delayed or in flight; ``None``: the broker does not tell. Consumers have to be closed.

    Where it does not tell what is in flight, or only about, a queue has to look empty twice, a second apart.
    """
    if mq.capabilities.stats is Support.UNSUPPORTED:
        return None
    doubtful = list(queues)
    for again in (False, True):
        if again and doubtful:
            wait(LOOK_AGAIN)
        looked_at, doubtful = doubtful, []
        for queue in looked_at:
            stats = mq.stats(queue)
            ledger.probe(Probe.STATS, queue=queue, ready=stats.ready, in_flight=stats.in_flight)
            if stats.ready is None:
                return None
            if stats.ready or stats.in_flight or stats.delayed:
                return False
            if stats.in_flight is None or stats.approximate:
                doubtful.append(queue)
    return True
