"""A message that takes its worker down takes nobody else's messages with it: C41."""

import time
from collections import Counter

from mqlayer.api import Consumer, Delivery
from mqlayer.testing.actors import Actor
from mqlayer.testing.checker import Expect, Floors
from mqlayer.testing.ledger import Event, EventType, Phase
from mqlayer.testing.roles.consuming import note_delivery, settle
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, PromiseBroken, criterion

__all__ = ["a_poison_message_is_dead_lettered_alone"]

NUMBER, PREFETCH, ATTEMPTS = 50, 20, 5
LEASE = 1.0  #: seconds after which a dead consumer's messages come again, where leases are timed
PATIENCE = 20.0


@criterion("C41", limit=120)
def a_poison_message_is_dead_lettered_alone(stage: Stage) -> Outcome:
    """One of 50 kills whoever handles it, with up to 20 prefetched beside it: five deaths, and it alone is dead-lettered."""
    queue = stage.queue()
    dead = f"{queue}.dead"
    mq = stage.connect()
    mq.declare(queue)
    mq.declare(dead)
    # neither among the first, before anything is prefetched, nor among the last, with nothing beside it
    poison = f"producer:{stage.random.randrange(5, NUMBER - PREFETCH)}"
    stage.actor("produce", "producer", queue=queue, count=NUMBER, how="send_many").finish()
    for death in range(ATTEMPTS):
        _worker(stage, queue, poison, death + 1).died(PATIENCE)
    survivor = _worker(stage, queue, poison, ATTEMPTS + 1)
    survivor.ready()
    came = _take_dead_letters(stage, survivor, queue, dead)
    assert came == [poison], f"not {poison} alone went to the dead letters, but {', '.join(came)}"
    stage.wait_until(
        lambda: len(_acked(stage.history(), queue)) >= NUMBER - 1, "all its neighbours are handled", timeout=PATIENCE
    )
    survivor.stop()
    drained = stage.drain(stage.site, queue, dead, quiet=LEASE + 1.0)
    history = stage.history()
    handed_over = Counter(event.id for event in history if event.type is EventType.DELIVER and event.queue == queue)
    evidence = {
        "deaths": ATTEMPTS,
        "deliveries of it": handed_over[poison],
        "most of a neighbour": max((count for id, count in handed_over.items() if id != poison), default=0),
    }
    again = [event.id for event in history if event.type is EventType.DELIVER and event.queue == dead][1:]
    if again:
        text = f"{len(again)} more went to the dead letters, while its neighbours were handled"
        samples = {"dead letters": again[:32]}
        raise PromiseBroken(f"{text}: {again[:5]}", Outcome(evidence=evidence, samples=samples))
    assert handed_over[poison] == ATTEMPTS, f"handlers saw it {handed_over[poison]} times, not {ATTEMPTS}"
    acked = _acked(history, queue) - {poison}
    assert len(acked) == NUMBER - 1, f"{len(acked)} of its {NUMBER - 1} neighbours were handled"
    expect = Expect(
        drained=drained.drained,
        queue_empty=drained.queue_empty,
        ack_settle=0.0 if stage.capabilities.confirms_acks else None,
        floors=Floors(confirmed=NUMBER, actor_kills=ATTEMPTS, in_flight=ATTEMPTS),
    )
    return stage.judge(expect, **evidence)


def _worker(stage: Stage, queue: str, poison: str, number: int) -> Actor:
    lease = {"lease": LEASE} if stage.capabilities.timed_lease else {}
    job = {"queues": [queue], "prefetch": PREFETCH, "attempts_max": ATTEMPTS, "crash_on": poison, **lease}
    return stage.actor("consume", f"worker-{number}", **job)


def _take_dead_letters(stage: Stage, survivor: Actor, queue: str, dead: str) -> list[str]:
    """The ids of all that is in the dead-letter queue.

    Raises:
        AssertionError: there is none; or the survivor was given the message once more, and died as the others did.
    """
    mq = stage.connect()
    ids: list[str] = []
    with stage.ledger("dead letters") as ledger, mq.consumer(dead) as consumer:
        while (delivery := _next(stage, survivor, consumer, 0.5 if ids else PATIENCE)) is not None:
            id = note_delivery(ledger, delivery)
            message = delivery.message
            assert message.dead_letter_origin == queue, f"the origin of {id} is {message.dead_letter_origin!r}"
            assert message.dead_letter_reason, f"{id} does not say why it is here"
            settle(ledger, EventType.ACK, id, delivery, delivery.ack)
            ids.append(id or "")
    assert ids, f"the poison message did not come to the dead letters within {PATIENCE:g} s"
    return ids


def _next(stage: Stage, survivor: Actor, consumer: Consumer, timeout: float) -> Delivery | None:
    end = time.monotonic() + stage.seconds(timeout)
    while (left := end - time.monotonic()) > 0:
        delivery = consumer.receive(timeout=min(left, 0.5))
        if delivery is not None:
            return delivery
        if not survivor.alive:
            survivor.died(PATIENCE)
            raise AssertionError(f"after {ATTEMPTS} deaths, with attempts_max={ATTEMPTS}, it was handed over once more")
    return None


def _acked(history: list[Event], queue: str) -> set[str]:
    return {
        event.id
        for event in history
        if event.type is EventType.ACK and event.phase is Phase.OK and event.queue == queue and event.id is not None
    }
