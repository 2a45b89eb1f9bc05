"""Who gets what, and in which order: C08, C09, C10."""

import itertools
import threading
import time
from collections import defaultdict
from typing import Any

from mqlayer.driver import Support
from mqlayer.message import Message
from mqlayer.testing.checker import Expect, Floors
from mqlayer.testing.ledger import make_body
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.deliveries import in_threads, receive

__all__ = ["each_message_goes_to_one_consumer", "groups_keep_their_order", "one_consumer_sees_the_order_sent"]


LEASE = 1.5  #: seconds of the leases that are let run out here


@criterion("C08", limit=120)
def one_consumer_sees_the_order_sent(stage: Stage) -> Outcome:
    """One producer, one consumer: first sent, first received; whichever way it is sent and taken. An ordered queue has one
    consumer at a time."""
    number = stage.size(quick=500, full=2000)
    mq = stage.connect()
    queue = stage.queue()
    came: list[int] = []
    with mq.producer(queue) as producer, mq.consumer(queue) as consumer:
        sent = 0
        while sent < number:
            burst = min(stage.random.choice((1, 7, 100)), number - sent)
            if burst == 1:
                producer.send(sent)
            else:
                report = producer.send_many(range(sent, sent + burst))
                assert not report.failures, f"sends failed: {report.failures}"
            sent += burst
        while len(came) < number:
            taken = consumer.receive_many(stage.random.choice((1, 10, 64)), timeout=stage.seconds(15))
            assert taken, f"{len(came)} of {number} messages came, then none"
            for delivery in taken:
                came.append(delivery.message.payload)
                delivery.ack()
    wrong = [(a, b) for a, b in itertools.pairwise(came) if b <= a]
    assert not wrong, f"out of order {len(wrong)} times; first: {wrong[0]}"
    assert came == list(range(number)), "what came is not what was sent"
    if stage.capabilities.compares_queues:
        _one_active_consumer(stage)
    return Outcome(counts={"checked": number})


def _one_active_consumer(stage: Stage) -> None:
    """The second of an ordered queue's consumers gets nothing before the first is gone, then all the rest."""
    number = 10
    queue = stage.queue("ordered")
    mq, other = stage.connect(), stage.connect()
    mq.declare(queue, ordered=True)
    with mq.producer(queue) as producer, mq.consumer(queue, prefetch=1) as first:
        producer.send("first")
        receive(stage, first).ack()  # this one is the active one
        with other.consumer(queue) as second:
            report = producer.send_many(range(number))
            assert not report.failures, f"sends failed: {report.failures}"
            held = receive(stage, first, "the first message, for the active consumer")
            assert held.message.payload == 0, f"{held.message.payload} came first"
            assert second.receive(timeout=0.3) is None, "an ordered queue has two active consumers"
            held.ack()
            first.close()
            came = []
            for place in range(1, number):
                delivery = receive(stage, second, f"message {place}, once the active consumer is gone")
                came.append(delivery.message.payload)
                delivery.ack()
    assert sorted(came) == list(range(1, number)), f"after the active consumer was gone came {came}"
    _active_until_its_death(stage)


def _active_until_its_death(stage: Stage) -> None:
    """The active consumer dies: within the time of a lease another one is."""
    queue = stage.queue("ordered-too")
    mq = stage.connect()
    mq.declare(queue, ordered=True)
    lease: dict[str, Any] = {"lease": LEASE} if stage.capabilities.timed_lease else {}
    with mq.producer(queue) as producer:
        producer.send_many(range(3))
    holder = stage.actor("consume", "active", queues=[queue], hold=True, limit=1, **lease)
    holder.wait_for("holding")
    holder.kill()
    with mq.consumer(queue, **lease) as consumer:
        came = []
        for place in range(3):
            delivery = receive(stage, consumer, f"message {place + 1} of 3, once the active consumer is dead")
            came.append(delivery.message.payload)
            delivery.ack()
    assert sorted(came) == [0, 1, 2], f"after the death of the active consumer came {came}"


@criterion("C09", limit=120)
def groups_keep_their_order(stage: Stage) -> Outcome:
    """Four consumers, 16 groups: order within each, and while the head of one is unsettled, or nacked, nobody gets its next.
    It comes first again when its holder has gone; and once it is a dead letter, its next comes."""
    each = stage.size(quick=20, full=100)
    groups = 16
    queue = stage.queue()
    mq = stage.connect()
    with mq.producer(queue) as producer:
        report = producer.send_many(
            Message(make_body(f"g{group}", counter, 64, stage.seed), group_id=f"g{group}")
            for counter in range(each)
            for group in range(groups)
        )
        assert not report.failures, f"sends failed: {report.failures}"
    lock = threading.Lock()
    open_groups: set[str] = set()
    came: dict[str, list[str]] = defaultdict(list)
    wrong: list[str] = []
    finished, pause = threading.Event(), threading.Event()

    def consume() -> None:
        own = stage.connect()
        with own.consumer(queue, prefetch=8) as consumer:
            while not finished.is_set():
                delivery = consumer.receive(timeout=0.2)
                if delivery is None:
                    continue
                group = delivery.message.group_id or ""
                with lock:
                    if group in open_groups:
                        wrong.append(f"a second message of {group} was handed over beside an unsettled one")
                    open_groups.add(group)
                    came[group].append(delivery.message.body.decode(errors="replace")[:40])
                pause.wait(0.001)  # where another consumer could be given the next one
                with lock:
                    open_groups.discard(group)
                delivery.ack()
                if sum(map(len, came.values())) >= each * groups:
                    finished.set()

    in_threads([consume] * 4, timeout=stage.seconds(90))
    assert not wrong, wrong[0]
    for group, bodies in came.items():
        expected = [make_body(group, counter, 64, stage.seed).decode(errors="replace")[:40] for counter in range(each)]
        assert bodies == expected, f"{group} came out of order, or not once each"
    _head_blocks_tail(stage)
    _head_returns_first(stage)
    return Outcome(counts={"checked": each * groups})


def _head_blocks_tail(stage: Stage) -> None:
    mq = stage.connect()
    queue = stage.queue()
    group, other_group = "g" * 100 + "a", "g" * 100 + "b"  # alike for long, and two all the same
    with mq.producer(queue) as producer:
        for text in ("a1", "a2"):
            producer.send(text, group_id=group)
        producer.send("b1", group_id=other_group)
    with mq.consumer(queue) as first, mq.consumer(queue) as second:
        head = receive(stage, first, "the head of a group")
        assert head.message.payload == "a1", f"{head.message.payload} came first"
        assert head.message.group_id == group, f"the group came as {head.message.group_id!r}"
        other = receive(stage, second, "the head of another group")
        assert other.message.payload == "b1", f"{other.message.payload} came beside the unsettled a1"
        assert second.receive(timeout=0.3) is None, "a2 came while a1 was unsettled"
        # A nack by copy puts it behind the others.
        for delay in (0.0, 0.5) if stage.capabilities.nack is Support.NATIVE else ():
            head.nack(delay=delay)
            # either one may get it: the first may have fetched it ahead
            begun = time.monotonic()
            again = None
            while again is None:
                assert time.monotonic() < begun + stage.seconds(15), f"nacked with delay={delay}, a1 did not come back"
                again = first.receive(timeout=0.05) or second.receive(timeout=0.05)
            assert again.message.payload == "a1", f"a1 was nacked with delay={delay}, and {again.message.payload} came"
            head = again
        head.ack()
        # either one may get it: the first may have fetched it ahead
        tail = second.receive(timeout=0.5) or receive(stage, first, "the tail, once the head is settled")
        assert tail.message.payload == "a2", f"{tail.message.payload} came instead of a2"
        tail.ack()
        other.ack()


def _head_returns_first(stage: Stage) -> None:
    """Its holder closes, or lets its lease end: it comes again, before its next. Rejected, it stands in nobody's way."""
    ways: list[dict[str, Any]] = [{}]
    if stage.capabilities.timed_lease:
        ways.append({"lease": LEASE, "hold_max": 0.0})
    for options in ways:
        queue = stage.queue("returns")
        mq, another = stage.connect(), stage.connect()
        with mq.producer(queue) as producer:
            for text in ("a1", "a2", "a3"):
                producer.send(text, group_id="a")
        with mq.consumer(queue, prefetch=1, **options) as first, another.consumer(queue, prefetch=1) as second:
            held = receive(stage, first, "the head of a group")
            if not options:
                first.close()
            head = receive(stage, second, "the head of a group, whose holder has gone")
            came = held.message.payload, head.message.payload
            assert came == ("a1", "a1"), f"{came[1]} came, when the holder of {came[0]} had gone"
            assert second.receive(timeout=0.3) is None, "a2 came while a1 was unsettled"
            head.reject("to make room")
            tail = receive(stage, second, "the next of a group, whose head was rejected")
            assert tail.message.payload == "a2", f"{tail.message.payload} came instead of a2"
            tail.ack()
            receive(stage, second, "the last of a group").ack()


@criterion("C10", limit=120)
def each_message_goes_to_one_consumer(stage: Stage) -> Outcome:
    """Four competing consumers: each message to exactly one of them, and none of them idle."""
    number = stage.size(quick=600, full=2000)
    queue = stage.queue()
    stage.connect().declare(queue)
    consumers = [stage.actor("consume", f"consumer-{n}", queues=[queue], prefetch=8) for n in range(4)]
    for actor in consumers:
        actor.ready()
    stage.actor("produce", "producer", queue=queue, count=number, how="send_many", batch=50).finish()
    drained = stage.drain(stage.site, queue, quiet=1.0)
    shares = {actor.name: actor.stop()["received"] for actor in consumers}
    idle = [name for name, share in shares.items() if not share]
    assert not idle, f"{', '.join(idle)} got nothing of {number}: {shares}"
    expect = Expect(
        drained=drained.drained,
        queue_empty=drained.queue_empty,
        ack_settle=None if not stage.capabilities.confirms_acks else 0.0,
        floors=Floors(confirmed=number, deliveries=number),
    )
    return stage.judge(expect, shares=shares)
