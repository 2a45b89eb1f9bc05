"""Priority, time to live, deduplication, and copies that stay what they were: C23, C24, C37, C42."""

import contextlib
import time

from mqlayer.api import Connection, Delivery
from mqlayer.driver import Counts, HeaderValue, Support
from mqlayer.errors import ArgumentError
from mqlayer.message import Message
from mqlayer.policy import Retry
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.deliveries import receive, receive_all, refusal, silence

__all__ = [
    "delayed_nacks_leave_the_message_intact",
    "duplicates_within_the_window_are_dropped",
    "expired_messages_are_never_seen",
    "high_priorities_come_first",
]


WEEKS = 2**32 / 1000 + 0.5  #: seconds; as milliseconds in 32 bits, or 31, it is half a second


@criterion("C23")
def high_priorities_come_first(stage: Stage) -> Outcome:
    """A backlog of priorities 0 to 9, and without one: higher first, and equal ones in the order they were sent. What
    comes back or was delayed keeps its rank."""
    number = 100
    mq = stage.connect()
    queue = stage.queue()
    priorities: list[int | None] = [None, *range(10)] * (number // 11 + 1)
    stage.random.shuffle(priorities)
    sent = list(enumerate(priorities[:number]))
    with mq.producer(queue) as producer:
        for n, priority in sent[: number // 2]:
            producer.send(n, priority=priority)
        report = producer.send_many(Message(n, priority=priority) for n, priority in sent[number // 2 :])
        assert not report.failures, f"sends failed: {report.failures}"
        for wrong in (-1, 10):
            refusal(ArgumentError, lambda: producer.send(b"", priority=wrong), f"priority={wrong}")  # noqa: B023
    deliveries = receive_all(stage, mq, queue, number)
    came = [delivery.message.payload for delivery in deliveries]
    by_priority = sorted(
        sent, key=lambda one: -(one[1] or 0)
    )  # none is as low as 0; the sort keeps equal ones in order
    expected = [n for n, _ in by_priority]
    order = [priorities[n] or 0 for n in came]
    assert order == sorted(order, reverse=True), f"the priorities came as {order}"
    assert sorted(came) == sorted(expected), "what came is not what was sent"
    in_order = came == expected or not stage.capabilities.ordered
    assert in_order, "messages of one priority did not come in the order they were sent"
    for delivery in deliveries:
        told = delivery.message.priority
        assert told == priorities[delivery.message.payload], f"sent with {priorities[delivery.message.payload]}: {told}"
    _keeps_its_rank(stage, mq)
    return Outcome(counts={"checked": number + 6})


def _keeps_its_rank(stage: Stage, mq: Connection) -> None:
    queue = stage.queue("again")
    delays = stage.capabilities.delay is not Support.UNSUPPORTED
    with mq.producer(queue) as producer:
        producer.send_many([Message("nacked", priority=8), Message("held", priority=8)])
        with mq.consumer(queue, prefetch=1) as consumer:
            first, held = receive(stage, consumer), receive(stage, consumer)
            for n, priority in enumerate((None, 3, 7)):
                producer.send(f"waits {n}", priority=priority)
            first.nack()
            again = receive(stage, consumer, "a nacked message of high priority")
            assert again.message.payload == "nacked", f"{again.message.payload} came before what has a higher priority"
            assert held.message.payload == "held", f"{held.message.payload} came out of turn"
        if delays:
            producer.send("delayed", priority=9, delay=0.2)
            begun = time.monotonic()
            stage.wait_until(lambda: time.monotonic() > begun + 1.0, "the delay is over")
    # Where a delivery that comes back is only flagged, it is counted by a copy, which cannot overtake what was fetched with it.
    prefetch = 1 if stage.capabilities.counts is Counts.FLAG else None
    came = [delivery.message.payload for delivery in receive_all(stage, mq, queue, 5 + delays, prefetch=prefetch)]
    expected = [["delayed"] if delays else [], ["held", "nacked"], ["waits 2"], ["waits 1"], ["waits 0"]]
    ranks = [came[: int(delays)], sorted(came[delays : delays + 2]), *([name] for name in came[delays + 2 :])]
    assert ranks == expected, f"given back or delayed, they came as {came}"


@criterion("C24")
def expired_messages_are_never_seen(stage: Stage) -> Outcome:
    """Expired in the queue, in a consumer's buffer, once delayed or given back: never handed over; what lives on is."""
    mq = stage.connect()
    queue, buffered = stage.queue("waiting"), stage.queue("buffered")
    each, ttl = 10, 1.0
    with mq.producer(queue) as producer, mq.producer(buffered) as other, mq.consumer(buffered, prefetch=50) as consumer:
        for wrong in (0.0, -1.0):
            refusal(ArgumentError, lambda: producer.send(b"", ttl=wrong), f"ttl={wrong}")  # noqa: B023
        refusal(ArgumentError, lambda: producer.send(b"", ttl=1.0, delay=1.0), "a ttl that ends before its delay does")
        other.send("opens the window")
        receive(stage, consumer).ack()
        for place in (producer, other):
            for n in range(each):
                place.send(f"mortal {n}", ttl=ttl)
                place.send(f"living {n}", ttl=60.0 if n % 2 else WEEKS)
                place.send(f"plain {n}")
        given_back = _given_back(stage, mq, ttl)
        sent_at = time.monotonic()
        soon = stage.queue("soon")
        with mq.producer(soon) as in_time:  # not dropped before its time, either
            in_time.send("in time", ttl=30.0)
            assert receive_all(stage, mq, soon, 1)[0].message.payload == "in time"
        stage.wait_until(lambda: time.monotonic() > sent_at + ttl + 0.1, "the time to live is over", timeout=ttl + 5.0)
        expected = sorted([f"living {n}" for n in range(each)] + [f"plain {n}" for n in range(each)])
        came = []
        for _ in expected:
            delivery = receive(stage, consumer, "what lives on")
            came.append(delivery.message.payload)
            delivery.ack()
        silence(consumer, 0.3, "all else has expired")
    assert sorted(came) == expected, f"out of a buffer came {sorted(set(came) - set(expected))}"
    came = sorted(delivery.message.payload for delivery in receive_all(stage, mq, queue, len(expected)))
    assert came == expected, f"out of the queue came {sorted(set(came) - set(expected))}"
    with mq.consumer(given_back) as consumer:
        silence(consumer, 0.1, "what was delayed or given back has expired as well")
    if stage.capabilities.group_id is not Support.UNSUPPORTED:
        _expired_and_ahead_of_its_group(stage, mq)
    return Outcome(counts={"checked": 6 * each}, evidence={"expired": 2 * each})


def _given_back(stage: Stage, mq: Connection, ttl: float) -> str:
    """A queue with messages that were delayed, nacked, and held by a consumer that closed; to expire in *ttl* seconds."""
    queue = stage.queue("given-back")
    with mq.producer(queue) as producer, mq.consumer(queue) as consumer:
        if stage.capabilities.delay is not Support.UNSUPPORTED:
            producer.send("mortal delayed", delay=ttl * 0.9, ttl=ttl)  # which is part of its time
        for text in ("nacked", "held"):
            producer.send(f"mortal {text}", ttl=ttl)
            delivery = consumer.receive(timeout=ttl)  # none, if this takes longer than it lives
            if delivery is not None and text == "nacked":
                delivery.nack(delay=0.1)
    return queue


def _expired_and_ahead_of_its_group(stage: Stage, mq: Connection) -> None:
    """The first of a group that expires makes room for the next."""
    queue = stage.queue("grouped")
    with mq.producer(queue) as producer:
        producer.send("mortal", group_id="g", ttl=0.2)
        producer.send("next", group_id="g")
        begun = time.monotonic()
        stage.wait_until(lambda: time.monotonic() > begun + 0.3, "the time to live is over")
    came = receive_all(stage, mq, queue, 1)[0].message.payload
    assert came == "next", f"{came!r} came, of a group whose first has expired"


@criterion("C37")
def duplicates_within_the_window_are_dropped(stage: Stage) -> Outcome:
    """The same ``dedup_id`` again, from whomever, before or after the first was handled: once. Others, and none: each."""
    mq = stage.connect()
    queue, another = stage.queue(), stage.queue("another")
    with mq.producer(queue) as producer:
        ids = [producer.send(n, dedup_id=f"d-{n % 5}") for n in range(10)]
        assert len(set(ids)) == 10, "messages of one dedup_id got one id"
        report = producer.send_many(
            [Message("batch", dedup_id="d-b"), Message("again", dedup_id="d-b"), "none", "none"]
        )
        assert not report.failures, f"a duplicate is no failure: {report.failures}"
        _again(stage.connect(), queue)
        came = [delivery.message for delivery in receive_all(stage, mq, queue, 8)]
        numbers = [message.payload for message in came if isinstance(message.payload, int)]
        if not stage.capabilities.ordered:
            numbers.sort()
        assert numbers == list(range(5)), "of each dedup_id not the first came"
        texts = sorted(message.payload for message in came if isinstance(message.payload, str))
        assert texts == ["batch", "none", "none"], f"{texts} came"
        dedup_id = next(message.dedup_id for message in came if message.payload == 0)
        assert dedup_id in (None, "d-0"), f"the dedup_id came as {dedup_id!r}"
        _again(mq, queue)  # handled by now, and still within the window
        stage.assert_empty(mq, queue)
    with mq.producer(another) as producer:
        producer.send("another queue", dedup_id="d-0")
        receive_all(stage, mq, another, 1)
    _told_apart(stage, mq)
    _redelivered(stage, mq)
    return Outcome(counts={"checked": 20}, evidence={"window": stage.capabilities.dedup_window})


def _again(mq: Connection, queue: str) -> None:
    with mq.producer(queue) as producer:
        for n in range(5):
            producer.send("a duplicate", dedup_id=f"d-{n}")


def _told_apart(stage: Stage, mq: Connection) -> None:
    """Ids that are alike for long, or but for their case, are others: none of their messages may vanish."""
    queue = stage.queue("alike")
    ids = [f"{'d' * 100}{n}" for n in range(3)] + ["Case", "case"]
    with mq.producer(queue) as producer:
        for id in ids:
            producer.send(id, dedup_id=id)
    came = [delivery.message.payload for delivery in receive_all(stage, mq, queue, len(ids))]
    assert sorted(came) == sorted(ids), f"of {ids} came {came}"


def _redelivered(stage: Stage, mq: Connection) -> None:
    """A message that is given back is no duplicate of itself."""
    queue = stage.queue("given-back")
    with mq.producer(queue) as producer, mq.consumer(queue) as consumer:
        producer.send("nacked", dedup_id="d-n")
        receive(stage, consumer).nack()
        receive(stage, consumer, "a nacked message with a dedup_id").nack(delay=0.1)
        receive(stage, consumer, "one that was nacked with a delay").ack()


class _HandlerFailed(Exception):
    pass


def _fail(delivery: Delivery) -> None:
    with contextlib.suppress(_HandlerFailed), delivery:
        raise _HandlerFailed("as the test ordered")


@criterion("C42")
def delayed_nacks_leave_the_message_intact(stage: Stage) -> Outcome:
    """Ten delayed nacks, by hand and by failing: it still comes, each time the same, and nothing of the broker's with it."""
    mq = stage.connect()
    queue = stage.queue()
    times, delay = 10, 0.1
    headers: dict[str, HeaderValue] = {
        "tenant": "pbs", "n": 1, "large": 2**53 + 1, "true": True, "whole float": 3.0, "raw": b"\x00\xff", "none": None,
        "x-request-id": "r-1",
    }  # fmt: skip
    counts: list[int] = []
    names: set[str] = set()
    retry = Retry(attempts_max=20, delay=delay, factor=1.0, jitter=0.0)
    with mq.producer(queue) as producer, mq.consumer(queue, retry=retry) as consumer:
        id = producer.send({"id": 42}, headers=headers, correlation_id="c-1", reply_to="answers")
        for time_ in range(times + 1):
            delivery = receive(stage, consumer, f"the message after {time_} nacks")
            message = delivery.message
            assert message.id == id, f"after {time_} nacks the id is {message.id}"
            assert message.payload == {"id": 42}, f"after {time_} nacks the payload is {message.payload}"
            came = dict(message.headers)
            types = {name: type(value) for name, value in headers.items()}
            same = came == headers and {name: type(value) for name, value in came.items()} == types
            assert same, f"after {time_} nacks the headers are {came}"
            texts = (message.correlation_id, message.reply_to, message.content_type, message.dead_letter_reason)
            assert texts == ("c-1", "answers", "application/json", None), f"after {time_} nacks: {texts}"
            assert message.failures == time_, f"after {time_} nacks it counts {message.failures} failures"
            names |= came.keys()
            counts.append(delivery.delivery_count)
            if time_ == times:
                delivery.ack()
            elif time_ % 2:
                delivery.nack(delay=delay)
            else:
                _fail(delivery)
        silence(consumer, delay * 3, "it was acked")
    assert counts == list(range(1, times + 2)), f"its counts were {counts}"
    stage.assert_empty(mq, queue)
    return Outcome(counts={"checked": times + 1}, evidence={"counts": counts, "headers": sorted(names)})
