"""The role that receives, and writes down each delivery before anything is done with it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mqlayer.api import Connection, Consumer, Delivery
from mqlayer.errors import ClosedError, MQError, StaleDeliveryError
from mqlayer.policy import Retry
from mqlayer.testing.ledger import EventType, Fault, Ledger, Phase, read_body
from mqlayer.testing.roles.work import Result, Work

__all__ = ["Consume", "close_consumer", "note_delivery", "settle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Consume:
    """Receive, write each delivery down, then settle it; until stopped, or *limit* deliveries.

    Attributes:
        batch: More than 1: by ``receive_many``. At 1 it is one ``for delivery in consumer`` from beginning to end.
        hold: Settle nothing. With *limit* it says ``holding`` when it has that many, and waits for the stop.
        ack_after: Seconds between a delivery and its ack.
        nack_every, reject_every: Each so manieth message is nacked or rejected when it is first delivered here.
        crash_at: Die with that delivery in hand, unsettled.
        crash_on: Die whenever this message (``producer:counter``) is delivered.
    """

    queues: Sequence[str] = ()
    topic: str | None = None
    group: str | None = None
    prefetch: int | None = None
    lease: float | None = None
    hold_max: float | None = None
    dead_letter: str | None = None
    attempts_max: int | None = None
    limit: int | None = None
    batch: int = 1
    hold: bool = False
    ack_after: float = 0.0
    nack_every: int = 0
    nack_delay: float = 0.0
    reject_every: int = 0
    crash_at: int = 0
    crash_on: str | None = None
    query: Mapping[str, Any] = field(default_factory=dict)

    def run(self, work: Work) -> Result:
        consumer = self.open(work.connect(**self.query))
        work.on_stop(consumer.stop)
        work.say("ready")
        hands = _Hands(self, work)
        for deliveries in _batches(consumer, self.batch):
            for delivery in deliveries:
                hands.take(delivery)
            if self.limit is not None and hands.taken >= self.limit:
                break
        if self.hold:
            work.say("holding", held=hands.taken)
            work.pause(None)
        work.check()
        close_consumer(work, consumer)
        return {"received": hands.taken, "acked": hands.acked}

    def open(self, mq: Connection) -> Consumer:
        options: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("topic", "group", "prefetch", "lease", "hold_max", "dead_letter")
            if getattr(self, name) is not None
        }
        if self.attempts_max is not None:
            options["retry"] = Retry(attempts_max=self.attempts_max)
        return mq.consumer(*self.queues, **options)


class _Hands:
    """What one consumer does with each delivery."""

    def __init__(self, job: Consume, work: Work) -> None:
        self._job = job
        self._work = work
        self._seen: set[str | None] = set()
        self.taken = 0
        self.acked = 0

    def take(self, delivery: Delivery) -> None:
        job, work = self._job, self._work
        work.check()
        id = note_delivery(work.ledger, delivery)
        self.taken += 1
        first = id not in self._seen
        self._seen.add(id)
        if self.taken == job.crash_at or (id is not None and id == job.crash_on):
            work.crash()
        if job.hold:
            return
        if job.ack_after:
            work.pause(job.ack_after)
        if first and job.nack_every and len(self._seen) % job.nack_every == 0:
            settle(work.ledger, EventType.NACK, id, delivery, lambda: delivery.nack(delay=job.nack_delay))
        elif first and job.reject_every and len(self._seen) % job.reject_every == 0:
            settle(work.ledger, EventType.REJECT, id, delivery, lambda: delivery.reject("rejected by the suite"))
        else:
            self.acked += settle(work.ledger, EventType.ACK, id, delivery, delivery.ack)


def _batches(consumer: Consumer, size: int) -> Iterator[list[Delivery]]:
    if size == 1:
        for delivery in consumer:
            yield [delivery]
        return
    while True:
        try:
            yield consumer.receive_many(size)
        except ClosedError:
            return


def note_delivery(ledger: Ledger, delivery: Delivery) -> str | None:
    """Write a delivery down, before anything is done with it. Returns the id in its body."""
    message = delivery.message
    id, sha256 = read_body(message.body)
    ledger.write(
        EventType.DELIVER,
        Phase.OK,
        id=id,
        sha256=sha256,
        queue=delivery.queue,
        group=message.group_id,
        count=delivery.delivery_count,
        redelivered=delivery.redelivered,
        resent=message.resent_count,
        detail={"copied_from": message.copied_from} if message.copied_from is not None else {},
    )
    return id


def settle(ledger: Ledger, kind: EventType, id: str | None, delivery: Delivery, verb: Callable[[], None]) -> bool:
    """Settle and write down both ends of it. Returns whether the broker has heard it, as far as it tells."""
    ledger.write(kind, Phase.INVOKE, id=id, queue=delivery.queue)
    try:
        verb()
    except StaleDeliveryError as error:
        phase, detail = Phase.FAIL, {"error": type(error).__name__}  # the broker has it back
    except MQError as error:
        phase, detail = Phase.INFO, {"error": type(error).__name__, "text": str(error)[:300]}
    else:
        phase, detail = Phase.OK, {}
    ledger.write(kind, phase, id=id, queue=delivery.queue, detail=detail)
    return phase is Phase.OK


def close_consumer(work: Work, consumer: Consumer) -> None:
    """Close it, and write down that what it held goes back."""
    work.ledger.fault(Fault.CLOSE, Phase.BEGIN, target=work.name)
    consumer.close()
    work.ledger.fault(Fault.CLOSE, Phase.END, target=work.name)
