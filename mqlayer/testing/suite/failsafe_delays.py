"""Delayed, dead-lettered and leased messages: F4b, F4c."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from mqlayer.driver import Support
from mqlayer.testing.checker import Floors
from mqlayer.testing.ledger import Event, EventType, Fault, Phase
from mqlayer.testing.roles.consuming import close_consumer, note_delivery, settle
from mqlayer.testing.roles.work import Work
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, PromiseBroken, criterion
from mqlayer.testing.suite.survival import (
    Load,
    Progress,
    drain_and_judge,
    function,
    goes_on,
    kill_and_restart,
    lease,
    send_noted,
)

__all__ = [
    "await_some",
    "delayed_dead_and_held_messages_outlive_a_kill",
    "nothing_delayed_is_lost_while_it_falls_due",
    "send_and_reject",
    "send_delayed",
    "send_delayed_and_stay",
]

EACH = 6
DELAY_SERVER, DELAY_STORE = 12.0, 4.0  #: seconds: longer than a kill and a restart
STARTS = 4  #: starts of the server that fit into the delay
EARLY_MAX = 0.05
MOVING_MIN = 500
DUE_AFTER = 4.0


@criterion("F4b", limit=240)
def delayed_dead_and_held_messages_outlive_a_kill(stage: Stage) -> Outcome:
    """What was to come later comes later, what was dead stays dead, what was held comes back; all over a kill. The sender
    of what is delayed is killed as well, as soon as it was told that all is stored."""
    began = time.monotonic()
    site = stage.own_server()
    start_seconds = time.monotonic() - began
    plain, dead, later = stage.queue("plain"), stage.queue("dead"), stage.queue("later")
    delays = stage.capabilities.delay is not Support.UNSUPPORTED
    delay = stage.seconds(DELAY_SERVER if stage.has_server else DELAY_STORE)
    delay = max(delay, STARTS * start_seconds)  # on a busy machine a restart takes its time
    rejecter = site.actor(
        "call", "rejecter", function=function(send_and_reject),
        arguments={"queue": plain, "dead": dead, "number": EACH, "seed": stage.seed},
    )  # fmt: skip
    rejecter.finish()
    site.actor("produce", queue=plain, count=EACH).finish()
    holder = site.actor("consume", "holder", queues=[plain], hold=True, limit=EACH, **lease(stage))
    holder.wait_for("holding")
    if delays:
        job = {"queue": later, "number": EACH, "delay": delay, "seed": stage.seed}
        delayer = site.actor("call", "delayer", function=function(send_delayed_and_stay), arguments=job)
        delayer.wait_for("sent")
        delayer.kill()
    site.kill(during="hold")
    if holder.alive:
        holder.kill()
    site.restart()
    back = time.monotonic()
    queues = (plain, dead, later) if delays else (plain, dead)
    floors = Floors(confirmed=EACH * (3 if delays else 2), kills=1, in_flight=EACH)
    outcome = drain_and_judge(stage, site, *queues, floors=floors, deadline=delay + 20.0)
    history = stage.history()
    _nothing_early(history, later, delay)
    in_dead = {event.id for event in history if event.type is EventType.DELIVER and event.queue == dead}
    assert len(in_dead) == EACH, f"{len(in_dead)} of {EACH} dead letters are where they were"
    if delays:
        waiting = [event for event in _sent_to(history, later) if event.at + delay > back]
        stage.floor("messages that were still to wait after the restart", len(waiting), 5)
    return outcome


def _sent_to(history: list[Event], queue: str) -> list[Event]:
    return [
        event
        for event in history
        if event.type is EventType.PUBLISH and event.phase is Phase.INVOKE and event.queue == queue
    ]


def _nothing_early(history: list[Event], queue: str, delay: float) -> None:
    sent = {event.id: event.at for event in _sent_to(history, queue)}
    early = [
        event.id for event in history
        if event.type is EventType.DELIVER and event.queue == queue and event.at < sent[event.id] + delay - EARLY_MAX
    ]  # fmt: skip
    if early:
        raise PromiseBroken(
            f"{len(early)} of {len(sent)} messages came before their time", Outcome(samples={"early": early})
        )


def send_and_reject(work: Work, queue: str, dead: str, number: int, seed: int) -> None:
    """An actor's part: dead letters."""
    mq = work.connect()
    with mq.producer(queue) as producer:
        send_noted(work.ledger, producer, queue, range(number), seed=seed)
    consumer = mq.consumer(queue, dead_letter=dead)
    for place in range(number):
        delivery = consumer.receive(timeout=30.0 * work.multiplier)
        assert delivery is not None, f"{place} of {number} deliveries came"
        id = note_delivery(work.ledger, delivery)
        settle(work.ledger, EventType.REJECT, id, delivery, partial(delivery.reject, "by the suite"))
    close_consumer(work, consumer)


def send_delayed(work: Work, queue: str, number: int, delay: float, seed: int) -> None:
    """An actor's part: messages for later."""
    with work.connect().producer(queue) as producer:
        send_noted(work.ledger, producer, queue, range(number), seed=seed, fields={"delay": delay})


def send_delayed_and_stay(work: Work, queue: str, number: int, delay: float, seed: int) -> None:
    """An actor's part: the same, and then hold the connection open."""
    with work.connect().producer(queue) as producer:
        send_noted(work.ledger, producer, queue, range(number), seed=seed, fields={"delay": delay})
        work.say("sent")
        work.pause(None)


@criterion("F4c", limit=300)
def nothing_delayed_is_lost_while_it_falls_due(stage: Stage) -> Outcome:
    """Killed in the moment in which many delayed messages become ready."""
    number = stage.size(quick=800, full=2000)
    site = stage.own_server()
    queue = stage.queue()
    # What the broker needs for delays of this length is there when it counts.
    warm_up: dict[str, Any] = {"queue": queue, "number": 1, "delay": DUE_AFTER, "seed": stage.seed}
    site.actor("call", "first", function=function(send_delayed), arguments=warm_up).finish()
    consumers = Load(site, [("consume", {"queues": [queue]} | lease(stage))] * 2)
    job: Mapping[str, Any] = warm_up | {"number": number}
    site.actor("call", "many", function=function(send_delayed), arguments=job).finish()
    if (
        goes_on(site) or stage.capabilities.stats is Support.UNSUPPORTED
    ):  # nothing moves, or is seen to, but to consumers
        consumers.revive()
        progress = Progress(stage.ledgers)
        stage.wait_until(lambda: progress.delivered > number // 10, "delayed messages come")
    else:
        watcher = site.actor("call", function=function(await_some), arguments={"queue": queue, "some": number // 20})
        watcher.finish()
    kill_and_restart(site, during="falling due")
    consumers.stop()
    due = _due_around_the_kill(stage.history(), DUE_AFTER)
    floors = Floors(confirmed=number, kills=1)
    outcome = drain_and_judge(
        stage, site, queue, floors=floors, moves=stage.has_server, deadline=60 + number / 50, due_around_the_kill=due
    )
    stage.floor("messages that fell due around the kill", due, MOVING_MIN)
    return outcome


def await_some(work: Work, queue: str, some: int) -> int:
    """An actor's part: wait until that many are ready. Returns how many there were when they were seen."""
    mq = work.connect()
    for _ in range(10_000):
        ready = mq.stats(queue).ready or 0
        if ready >= some:
            return ready
        work.pause(0.002)
    raise AssertionError(f"{ready} of {some} delayed messages became ready")


def _due_around_the_kill(history: list[Event], delay: float) -> int:
    killed = next(
        event.at for event in history
        if event.type is EventType.FAULT and event.detail["fault"] == Fault.SERVER_KILL.value
    )  # fmt: skip
    return sum(
        event.type is EventType.PUBLISH and event.phase is Phase.INVOKE and abs(event.at + delay - killed) < 1.0
        for event in history
    )
