"""What settling a delivery does, and what happens to one that nobody settles: C11 to C17."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from mqlayer.api import Connection, Delivery
from mqlayer.driver import HeaderValue
from mqlayer.errors import StaleDeliveryError
from mqlayer.policy import Retry
from mqlayer.testing.checker import Expect, Floors
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import FloorUnmet, Outcome, criterion
from mqlayer.testing.suite.deliveries import PATIENCE, receive, refusal, silence

__all__ = [
    "acked_messages_stay_away",
    "deliveries_are_counted",
    "expired_leases_hand_the_message_on",
    "extended_leases_hold",
    "nacked_messages_come_back_counted",
    "rejected_and_exhausted_messages_are_dead_lettered",
    "unsettled_messages_of_a_dead_consumer_come_back",
]

LEASE = 1.5  #: seconds of the leases that are let run out here
LEASE_LATE_MAX = 1.2  #: seconds by which a lease may end late; one of twice its length is later
LARGE = 300_000  #: characters of a body that is copied to the dead letters
NACKS = 30  #: of one message: more than brokers count to before they give it up of their own accord


@criterion("C11")
def acked_messages_stay_away(stage: Stage) -> Outcome:
    """Acked, then everything closed and opened again: after the lease and a second nothing has come back."""
    number = 50
    queue = stage.queue()
    with stage.connect() as mq:
        with mq.producer(queue) as producer:
            producer.send_many(range(number))
        with mq.consumer(queue, **_lease(mq)) as consumer:
            for place in range(number):
                receive(stage, consumer, f"message {place + 1} of {number}").ack()
    mq = stage.connect()
    with mq.consumer(queue) as consumer:
        silence(consumer, LEASE + 1.0, "everything was acked")
    stage.assert_empty(mq, queue)
    return Outcome(counts={"checked": number})


@criterion("C12")
def nacked_messages_come_back_counted(stage: Stage) -> Outcome:
    """Each third is nacked once: it comes again with count 2, the others do not, and all end acked. One is nacked for long,
    and one goes to another consumer than the one that nacked it."""
    number = 99
    mq = stage.connect()
    queue = stage.queue()
    seen: dict[int, list[int]] = {}
    nacked: set[int] = set()
    with mq.producer(queue) as producer, mq.consumer(queue) as consumer:
        producer.send_many(range(number))
        acked: set[int] = set()
        while len(acked) < number:
            delivery = receive(stage, consumer, f"a message beyond the {len(acked)} of {number} that were acked")
            payload = delivery.message.payload
            seen.setdefault(payload, []).append(delivery.delivery_count)
            if payload % 3 == 0 and payload not in nacked:
                nacked.add(payload)
                delivery.nack()
            else:
                delivery.ack()
                acked.add(payload)
        silence(consumer, 0.3, "all were acked")
    for payload, counts in seen.items():
        expected = [1, 2] if payload in nacked else [1]
        assert counts == expected, f"message {payload} was delivered with counts {counts}, not {expected}"
    _nacked_for_long(stage, mq)
    _nacked_for_others(stage, mq)
    return Outcome(counts={"checked": number, "nacked": len(nacked) + NACKS})


def _nacked_for_long(stage: Stage, mq: Connection) -> None:
    """A nack by hand always goes back, however often: it is the consumer who sets the limit."""
    queue = stage.queue("for-long")
    counts: list[int] = []
    with mq.producer(queue) as producer, mq.consumer(queue, retry=Retry(attempts_max=10 * NACKS)) as consumer:
        producer.send("again and again")
        for nacks in range(NACKS):
            delivery = receive(stage, consumer, f"a message that was nacked {nacks} times")
            counts.append(delivery.delivery_count)
            delivery.nack()
        receive(stage, consumer, f"a message that was nacked {NACKS} times").ack()
    assert counts == list(range(1, NACKS + 1)), f"nacked again and again, its counts were {counts}"


def _nacked_for_others(stage: Stage, mq: Connection) -> None:
    """Who nacked it asks for no more: then it is there for whoever does."""
    queue = stage.queue("for-others")
    with mq.producer(queue) as producer, mq.consumer(queue, prefetch=1) as first:
        producer.send_many(["held", "nacked"])
        held, nacked = receive(stage, first), receive(stage, first)
        nacked.nack()
        with stage.connect().consumer(queue) as second:
            delivery = receive(stage, second, "what another consumer nacked, which has its hands full")
            came = delivery.message.payload, delivery.delivery_count
            assert came == (nacked.message.payload, 2), f"nacked by another consumer, {came} came"
            delivery.ack()
        held.ack()


@criterion("C13")
def rejected_and_exhausted_messages_are_dead_lettered(stage: Stage) -> Outcome:
    """By ``reject`` and by too many failures: in the dead-letter queue with all they had, and why; gone from their own."""
    mq = stage.connect()
    queue, dead = stage.queue(), stage.queue("dead")
    number = 15
    retry = Retry(attempts_max=2, delay=0.0, jitter=0.0)
    ids: dict[str, str] = {}
    with (
        mq.producer(queue) as producer,
        mq.consumer(queue, retry=retry, dead_letter=dead) as consumer,
    ):
        for kind in ("rejected", "exhausted"):
            for n in range(number):
                headers: dict[str, HeaderValue] = {"kind": kind, "n": n, "bytes": b"\x00\xff"}
                payload = {"kind": kind, "n": n, "text": "x" * (0 if n else LARGE)}
                id = producer.send(payload, headers=headers, correlation_id=f"c-{n}", reply_to="answers")
                ids[id] = kind
        left = {id: 1 if kind == "rejected" else 2 for id, kind in ids.items()}
        while any(left.values()):
            delivery = receive(stage, consumer, f"one of {sum(left.values())} deliveries that are to come")
            id = delivery.message.id or ""
            assert left.get(id), f"{delivery!r} came once too often"
            left[id] -= 1
            if ids[id] == "rejected":
                delivery.reject("bad schema: gr\u00f6\u00dfe \u952e")
            else:
                with contextlib.suppress(_HandlerFailed), delivery:
                    raise _HandlerFailed("as the test ordered")
        silence(consumer, 0.3, "all were dead-lettered")
    stage.assert_empty(mq, queue)
    found: set[str] = set()
    with mq.consumer(dead) as consumer:
        while len(found) < len(ids):
            delivery = receive(stage, consumer, f"dead letter {len(found) + 1} of {len(ids)}")
            message = delivery.message
            assert (message.id or "") in ids, f"a message came to the dead letters that was never sent: {message!r}"
            kind = ids[message.id or ""]
            assert message.payload["kind"] == kind, f"the body of {message.id} changed: {message.payload}"
            n = message.payload["n"]
            length = len(message.payload["text"])
            assert length == (0 if n else LARGE), f"the body of {message.id} changed: its text has {length} characters"
            headers = {"kind": kind, "n": n, "bytes": b"\x00\xff"}
            assert dict(message.headers) == headers, f"the headers changed: {dict(message.headers)}"
            texts = message.correlation_id, message.reply_to, message.content_type
            assert texts == (f"c-{n}", "answers", "application/json"), f"{message.id} became a dead letter with {texts}"
            why = "bad schema: gr\u00f6\u00dfe \u952e" if kind == "rejected" else "as the test ordered"
            assert why in (message.dead_letter_reason or ""), f"the reason is {message.dead_letter_reason!r}"
            assert message.dead_letter_origin == queue, f"the origin is {message.dead_letter_origin!r}"
            deliveries = 1 if kind == "rejected" else 2
            assert message.dead_letter_count == deliveries, f"it counts {message.dead_letter_count} deliveries"
            found.add(message.id or "")
            delivery.ack()
    if stage.capabilities.compares_queues:
        _stored_dead_letter(stage, mq)
    return Outcome(counts={"checked": len(ids)})


def _stored_dead_letter(stage: Stage, mq: Connection) -> None:
    """A consumer that names no dead-letter queue uses the one that the queue was declared with, whoever declared it."""
    queue, dead = stage.queue("declared"), stage.queue("declared-dead")
    mq.declare(queue, dead_letter=dead)
    elsewhere = stage.connect()
    with elsewhere.producer(queue) as producer, elsewhere.consumer(queue) as consumer:
        producer.send("rejected")
        receive(stage, consumer).reject("to where it was declared")
    with elsewhere.consumer(dead) as consumer:
        delivery = receive(stage, consumer, "a dead letter, in the queue that was declared for it")
        assert delivery.message.payload == "rejected", f"{delivery.message.payload!r} came instead"
        delivery.ack()


class _HandlerFailed(Exception):
    pass


@criterion("C14")
def deliveries_are_counted(stage: Stage) -> Outcome:
    """1 at first, then one more each time: after a nack, after a consumer's death; monotone throughout. Nothing else of it
    changes."""
    mq = stage.connect()
    queue = stage.queue()
    lease = _lease(mq)
    with mq.producer(queue) as producer:
        id = producer.send("counted", headers={"n": 1}, correlation_id="c-1", reply_to="answers")
    counts: list[int] = []
    for _ in range(3):
        with mq.consumer(queue, **lease) as consumer:
            delivery = receive(stage, consumer, "the message, nacked before")
            counts.append(delivery.delivery_count)
            delivery.nack()
    holder = stage.actor("consume", "holder", queues=[queue], hold=True, limit=1, **lease)
    holder.wait_for("holding")
    holder.kill()
    with mq.consumer(queue, **lease) as consumer:
        delivery = receive(stage, consumer, "the message of the dead consumer", timeout=LEASE + PATIENCE)
        counts.append(delivery.delivery_count)
        message = delivery.message
        delivery.ack()
    came = message.id, message.payload, dict(message.headers), message.correlation_id, message.reply_to
    assert came == (id, "counted", {"n": 1}, "c-1", "answers"), f"after a consumer's death it came as {came}"
    assert counts[:3] == [1, 2, 3], f"nacked twice, it counted {counts[:3]}"
    assert counts[3] >= 5, f"after three nacks and a dead consumer the count is {counts[3]}, not at least 5"
    return Outcome(counts={"checked": len(counts)}, evidence={"counts": counts})


@criterion("C15", limit=90)
def unsettled_messages_of_a_dead_consumer_come_back(stage: Stage) -> Outcome:
    """A consumer is killed with some in hand: another one gets all of them, in the time of a lease."""
    number, held = 20, 8
    mq = stage.connect()
    queue = stage.queue()
    lease = _lease(mq)
    mq.declare(queue)
    stage.actor("produce", "producer", queue=queue, count=number).finish()
    victim = stage.actor("consume", "victim", queues=[queue], hold=True, limit=held, **lease)
    victim.wait_for("holding")
    victim.kill()
    drained = stage.drain(stage.site, queue, quiet=LEASE + 2.0)
    expect = Expect(
        drained=drained.drained,
        queue_empty=drained.queue_empty,
        ack_settle=None if not stage.capabilities.confirms_acks else 0.0,
        floors=Floors(confirmed=number, actor_kills=1, in_flight=held),
    )
    outcome = stage.judge(expect)
    again = outcome.duplicates.get("extra", 0)
    if again < held:
        raise FloorUnmet(f"{again} messages came again, and {held} were in the dead consumer's hands", outcome)
    return outcome


@criterion("C16")
def expired_leases_hand_the_message_on(stage: Stage) -> Outcome:
    """With ``hold_max=0`` a lease ends in time: a second consumer gets the message, and the first one's ack removes nothing.
    Nor does anything else that the first one says."""
    mq = stage.connect()
    queue = stage.queue()
    with mq.producer(queue) as producer:
        producer.send("leased")
    with mq.consumer(queue, lease=LEASE, hold_max=0) as first, mq.consumer(queue, lease=30.0) as second:
        late = receive(stage, first, "the message")
        begun = time.monotonic()
        silence(second, LEASE / 3, "the message is leased to another consumer")
        delivery = receive(stage, second, "the message, once the lease had ended", timeout=LEASE + 4.0)
        lasted = time.monotonic() - begun
        assert lasted >= LEASE * 0.9, f"a lease of {LEASE} s was over after {lasted:.2f} s"
        most = LEASE + stage.seconds(LEASE_LATE_MAX)
        assert lasted <= most, f"a lease of {LEASE} s was over after {lasted:.2f} s, where {most:g} s are the most"
        assert delivery.delivery_count >= 2, f"handed on, its count is {delivery.delivery_count}"
        _late(late)
        third = stage.connect()
        with third.consumer(queue) as onlooker:
            silence(onlooker, 0.3, "the second consumer holds the message")
        delivery.nack()
        again = receive(stage, second, "the message after the late ack: did that remove another's copy?")
        again.ack()
    stage.assert_empty(mq, queue)
    _other_late_verbs(stage, mq)
    return Outcome(counts={"checked": 4}, evidence={"lease": LEASE, "lasted": round(lasted, 3)})


def _other_late_verbs(stage: Stage, mq: Connection) -> None:
    """Nack, reject and extend of what another consumer holds by now."""
    queue, dead = stage.queue("late"), stage.queue("late-dead")
    mq.declare(dead)
    verbs: dict[str, Callable[[Delivery], None]] = {
        "nack": lambda delivery: delivery.nack(),
        "reject": lambda delivery: delivery.reject("too late"),
        "extend": lambda delivery: delivery.extend(30.0),
    }
    with (
        mq.producer(queue) as producer,
        mq.consumer(queue, lease=LEASE, hold_max=0, dead_letter=dead) as first,
        mq.consumer(queue, lease=30.0) as second,
    ):
        producer.send_many(verbs)
        lapsed = [receive(stage, first) for _ in verbs]
        held = [receive(stage, second, "a message, once its lease had ended") for _ in verbs]
        for delivery in lapsed:
            verb = delivery.message.payload
            refusal(StaleDeliveryError, lambda: verbs[verb](delivery), f"{verb} after the end of the lease")  # noqa: B023
        for delivery in held:
            delivery.ack()
        silence(second, 0.3, "all were acked by the one who held them")
    stage.assert_empty(mq, queue)
    stage.assert_empty(mq, dead)


def _late(delivery: Delivery) -> None:
    try:
        delivery.ack()
    except StaleDeliveryError:
        return
    raise AssertionError("an ack after the end of the lease was taken without a word")


@criterion("C17")
def extended_leases_hold(stage: Stage) -> Outcome:
    """Extended by hand, and by itself: a delivery is nobody else's while it is held, and not for longer than was asked."""
    mq = stage.connect()
    by_hand, by_itself, forgotten = stage.queue("by-hand"), stage.queue("by-itself"), stage.queue("forgotten")
    for queue in (by_hand, by_itself, forgotten):
        with mq.producer(queue) as producer:
            producer.send("held")
    with (
        mq.consumer(by_hand, lease=LEASE, hold_max=0) as first,
        mq.consumer(by_hand, lease=LEASE) as second,
        mq.consumer(by_itself, lease=LEASE) as third,
        mq.consumer(by_itself, lease=LEASE) as fourth,
        mq.consumer(forgotten, lease=LEASE, hold_max=0) as fifth,
    ):
        held, renewed, lapsing = receive(stage, first), receive(stage, third), receive(stage, fifth)
        lapsing.extend(LEASE * 1.5)
        for _ in range(3):
            held.extend(LEASE * 1.5)
            silence(second, LEASE, "its lease was extended by hand")
        held.ack()
        silence(fourth, LEASE * 1.5, "its lease is renewed by itself")
        renewed.ack()
        silence(second, 0.3, "it was acked")
        silence(fourth, 0.3, "it was acked")
        if stage.capabilities.timed_lease:  # extended long ago, and for a while only
            with mq.consumer(forgotten) as sixth:
                receive(stage, sixth, "a delivery whose extended lease has ended", timeout=LEASE).ack()
    return Outcome(counts={"checked": 3})


def _lease(mq: Connection) -> dict[str, Any]:
    """A short lease where there are timed ones; where not, a delivery ends with its connection."""
    return {"lease": LEASE} if mq.capabilities.timed_lease else {}
