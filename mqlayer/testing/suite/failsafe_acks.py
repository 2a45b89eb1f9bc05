"""What was settled stays settled, and what was not comes back: F1d, F4a, F5, F11."""

import threading
import time
from collections.abc import Mapping
from typing import Any

from mqlayer.api import Delivery
from mqlayer.driver import Support
from mqlayer.testing.checker import Floors
from mqlayer.testing.ledger import EventType, Phase
from mqlayer.testing.outcome import PromiseBroken, ProvedAbsent
from mqlayer.testing.proxy import Direction
from mqlayer.testing.roles.consuming import close_consumer, note_delivery, settle
from mqlayer.testing.roles.work import Work
from mqlayer.testing.sites import Site
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import NotApplicable, Outcome, criterion
from mqlayer.testing.suite.survival import (
    ACK_SETTLE,
    Load,
    Progress,
    await_settled,
    drain_and_judge,
    function,
    hit,
    kill_and_restart,
    lease,
    send_noted,
)

__all__ = [
    "a_consumer_killed_in_mid_batch_returns_just_its_unsettled_ones",
    "acked_messages_stay_away_after_a_kill",
    "killed_amid_an_ack_a_message_is_gone_or_back",
    "send_and_nack",
    "send_and_take_with_dedup_ids",
    "take_some_and_ack_fewer",
    "what_was_held_at_the_kill_is_delivered_again",
]

TRIES = 8  #: kills, until one hits an ack on its way
NACKS = 2
DUPLICATES = 5


@criterion("F11", limit=120)
def a_consumer_killed_in_mid_batch_returns_just_its_unsettled_ones(stage: Stage) -> Outcome:
    """Ten taken, four acked, killed: six come back, and the four do not."""
    number, taken, acked = stage.size(quick=50, full=100), 10, 4
    queue = stage.queue()
    stage.actor("produce", queue=queue, count=number, how="submit").finish()
    job = {"queue": queue, "taken": taken, "acked": acked, "options": lease(stage)}
    victim = stage.actor("call", "victim", function=function(take_some_and_ack_fewer), arguments=job)
    victim.wait_for("holding")
    victim.kill(during="batch")
    floors = Floors(confirmed=number, acked=acked, actor_kills=1, in_flight=taken - acked)
    outcome = drain_and_judge(stage, stage.site, queue, floors=floors, ack_settle=ACK_SETTLE)
    again = outcome.duplicates["extra"]
    assert again == taken - acked, f"{again} messages came again, where {taken - acked} were unsettled"
    return outcome


def take_some_and_ack_fewer(work: Work, queue: str, taken: int, acked: int, options: Mapping[str, Any]) -> None:
    """An actor's part: ack every second of what it took, until *acked* are; then hold the rest."""
    consumer = work.connect().consumer(queue, **options)
    held: list[tuple[str | None, Delivery]] = []
    while len(held) < taken:
        delivery = consumer.receive(timeout=30.0 * work.multiplier)
        assert delivery is not None, f"{len(held)} of {taken} deliveries came"
        held.append((note_delivery(work.ledger, delivery), delivery))
    for id, delivery in held[1::2][:acked]:
        settle(work.ledger, EventType.ACK, id, delivery, delivery.ack)
    work.pause(2 * ACK_SETTLE)  # where acks have no answer, they are on their way now
    work.say("holding")
    work.pause(None)


@criterion("F4a", limit=240)
def what_was_held_at_the_kill_is_delivered_again(stage: Stage) -> Outcome:
    """Deliveries in a handler's hands at the kill: each comes again, and counts as delivered before. So does what was
    nacked before the kill."""
    number, held, nacked = 50, 12, 6
    site = stage.own_server()
    queue, failing = stage.queue(), stage.queue("failing")
    site.actor("produce", queue=queue, count=number, how="submit").finish()
    job = {"queue": failing, "number": nacked, "seed": stage.seed}
    site.actor("call", "nacker", function=function(send_and_nack), arguments=job).finish()
    holder = site.actor("consume", "holder", queues=[queue], hold=True, limit=held, **lease(stage))
    holder.wait_for("holding")
    site.kill(during="hold")
    if holder.alive:  # a client of a dead server: it shall not take them once more
        holder.kill()
    site.restart()
    floors = Floors(confirmed=number + nacked, kills=1, in_flight=held)
    outcome = drain_and_judge(stage, site, queue, failing, floors=floors)
    first = {event.id for event in stage.history() if event.type is EventType.DELIVER and event.actor == "holder"}
    again = [
        event for event in stage.history()
        if event.type is EventType.DELIVER and event.actor != "holder" and event.id in first
    ]  # fmt: skip
    counts = sorted(event.count or 0 for event in again)
    counting = stage.capabilities.delivery_count is not Support.UNSUPPORTED
    forgets = counting and not stage.harness.claims.counts
    least = 2 if counting and not forgets else 1
    assert min(counts, default=0) >= least, f"delivered again they count {counts}, where {least} is the least"
    last = {event.id: event.count or 0 for event in stage.history() if event.queue == failing and event.count}
    failures = sorted(last.values())
    wanted = [1 + NACKS] * nacked
    if stage.capabilities.returns_count:  # what was fetched ahead, and given back, counts for others
        assert min(failures, default=0) >= 1 + NACKS, f"nacked {NACKS} times before the kill, they count {failures}"
        wanted = failures
    assert failures == wanted, f"nacked {NACKS} times before the kill, they count {failures} after it"
    if forgets:
        if min(counts) > 1:
            raise PromiseBroken(
                f"unexpected pass: counts are said to be lost with the server, and are {counts}", outcome
            )
        raise ProvedAbsent(
            f"all {held} come again, and the server has forgotten that it delivered them: they count {counts}; "
            f"failed handlers are still counted"
        )
    return outcome


def send_and_nack(work: Work, queue: str, number: int, seed: int) -> None:
    """An actor's part: messages whose handlers have failed, ``NACKS`` times each."""
    mq = work.connect()
    with mq.producer(queue) as producer:
        send_noted(work.ledger, producer, queue, range(number), seed=seed)
    consumer = mq.consumer(queue)
    for _ in range(NACKS):
        held: list[tuple[str | None, Delivery]] = []
        while len(held) < number:
            delivery = consumer.receive(timeout=30.0 * work.multiplier)
            assert delivery is not None, f"{len(held)} of {number} deliveries came"
            held.append((note_delivery(work.ledger, delivery), delivery))
        for id, delivery in held:
            settle(work.ledger, EventType.NACK, id, delivery, delivery.nack)
    close_consumer(work, consumer)


@criterion("F5", limit=300)
def acked_messages_stay_away_after_a_kill(stage: Stage) -> Outcome:
    """All of a queue is acked and settled, then it is killed: nothing of it rises, and what nobody took is still there.
    Nor does it rise by being sent again with the same ``dedup_id``."""
    number, left, kills = stage.size(quick=300, full=1000), 50, stage.size(quick=1, full=3)
    site = stage.own_server()
    queue, other = stage.queue(), stage.queue("other")
    producers = [
        site.actor("produce", queue=queue, count=number, how="submit"),
        site.actor("produce", queue=other, count=left, how="submit"),
    ]
    for producer in producers:
        producer.finish()
    site.actor("consume", queues=[queue], limit=number, **lease(stage)).finish(120.0)
    await_settled(stage, site, queue)
    dedups = stage.capabilities.dedup_id is not Support.UNSUPPORTED
    deduped = stage.queue("deduped")
    came = _take_with_dedup_ids(site, deduped) if dedups else []
    for _ in range(kills):
        kill_and_restart(site, during="idle")
    again = _take_with_dedup_ids(site, deduped) if dedups else []
    floors = Floors(confirmed=number + left, acked=number, barriers=1, kills=kills)
    outcome = drain_and_judge(stage, site, queue, other, floors=floors)
    assert not again, f"sent with the dedup_ids of {came}, which were acked before the kill, {again} came after it"
    return outcome


def _take_with_dedup_ids(site: Site, queue: str) -> list[int]:
    taker = site.actor("call", function=function(send_and_take_with_dedup_ids), arguments={"queue": queue})
    came: list[int] = taker.finish()["returned"]
    return came


def send_and_take_with_dedup_ids(work: Work, queue: str) -> list[int]:
    """An actor's part: send, and ack all that comes. Returns it."""
    mq = work.connect()
    came: list[int] = []
    with mq.producer(queue) as producer, mq.consumer(queue) as consumer:
        for n in range(DUPLICATES):
            producer.send(n, dedup_id=f"d-{n}")
        while (delivery := consumer.receive(timeout=0.3)) is not None:
            came.append(delivery.message.payload)
            delivery.ack()
    return came


@criterion("F1d", limit=240)
def killed_amid_an_ack_a_message_is_gone_or_back(stage: Stage) -> Outcome:
    """The ack has left and not arrived, or has no answer yet: the message is not both gone and unsettled. Nor is it gone
    between its queue and the dead letters."""
    if stage.in_process:
        raise NotApplicable("there is nothing between an ack and its answer")
    number = stage.size(quick=150, full=400)
    return _acks_stalled(stage, number) if stage.has_server else _acks_in_progress(stage, number)


def _acks_stalled(stage: Stage, number: int) -> Outcome:
    """Acks are held up on their way to the server, which then dies: as nobody has got them, all their messages come back."""
    site = stage.own_server(proxied=True)
    assert site.proxy is not None
    queue = stage.queue()
    site.actor("produce", queue=queue, count=number, how="submit").finish()
    load = Load(site, [("consume", {"queues": [queue], "prefetch": 20, "ack_after": 0.01} | lease(stage))])
    progress = Progress(stage.ledgers)
    load.revive()
    goal = stage.random.randrange(10, number // 2)
    stage.wait_until(lambda: progress.delivered >= goal, f"{goal} messages are delivered")
    site.proxy.stall(Direction.TO_SERVER)
    stalled = time.monotonic()
    threading.Event().wait(0.5)  # in which acks are given, and go nowhere
    killed = time.monotonic()
    site.kill(during="ack")
    site.proxy.restore()
    site.restart()
    before = progress.delivered
    stage.wait_until(lambda: progress.delivered > before, "after the kill the consumer goes on")
    load.stop()
    outcome = drain_and_judge(stage, site, queue, floors=Floors(confirmed=number, kills=1))
    in_window = _acked_between(stage, stalled, killed)
    stage.floor("acks that were stalled", len(in_window), 1)
    back = {event.id for event in stage.history() if event.type is EventType.DELIVER and event.at > killed}
    assert in_window <= back, f"{len(in_window - back)} of {len(in_window)} messages are gone, whose ack never arrived"
    return outcome


def _acked_between(stage: Stage, begin: float, end: float) -> set[str | None]:
    return {
        event.id for event in stage.history()
        if event.type is EventType.ACK and event.phase is Phase.INVOKE and begin < event.at < end
    }  # fmt: skip


def _acks_in_progress(stage: Stage, number: int) -> Outcome:
    """Consumers that do little but ack are killed, until one of them was waiting for the answer."""
    site = stage.own_server()
    queue = stage.queue()
    site.actor("produce", queue=queue, count=number, how="submit").finish()
    for _ in range(TRIES):
        _kill_amid_acks(stage, site, queue)
        if hit(stage, "acks_in_doubt"):
            break
        site.actor("produce", queue=queue, count=number, how="submit").finish()
    floors = Floors(confirmed=number, kills=1, acks_in_doubt=1)
    return drain_and_judge(stage, site, queue, f"{queue}.dead", floors=floors)


def _kill_amid_acks(stage: Stage, site: Site, queue: str) -> None:
    job = {"queues": [queue], "prefetch": 20, "reject_every": 2} | lease(stage)
    load = Load(site, [("consume", job)])
    progress = Progress(stage.ledgers)
    load.revive()
    goal = progress.acked + stage.random.randrange(5, 60)
    stage.wait_until(lambda: progress.acked >= goal, f"{goal} messages are acked")
    kill_and_restart(site, during="ack")
    load.stop()
