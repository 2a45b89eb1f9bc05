"""Many at once, how many ahead, and when: C18 to C22."""

import threading
import time
from collections.abc import Sequence

from mqlayer.api import Delivery, Producer
from mqlayer.driver import HeaderValue, Support
from mqlayer.errors import HeaderError, MessageTooLargeError, SendError
from mqlayer.message import Message
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.deliveries import receive, receive_all, silence

__all__ = [
    "a_batch_is_answered_message_by_message",
    "a_part_of_a_batch_is_settled",
    "delayed_messages_come_neither_early_nor_late",
    "one_bad_message_does_not_spoil_a_batch",
    "prefetch_is_a_bound",
]


WEEKS = 2**32 / 1000 + 0.5  #: seconds; as milliseconds in 32 bits, or 31, it is half a second


@criterion("C18", limit=90)
def prefetch_is_a_bound(stage: Stage) -> Outcome:
    """A consumer that has proved itself and settles nothing more holds no more than its prefetch, counted at the broker."""
    number, prefetch = 50, 5
    mq = stage.connect()
    queue = stage.queue()
    with mq.producer(queue) as producer:
        producer.send_many(range(number))
    with mq.consumer(queue, prefetch=prefetch) as consumer:
        receive(stage, consumer).ack()  # opens the window
        held = [receive(stage, consumer)]
        worst = 0
        for _ in range(2):
            threading.Event().wait(0.5)  # in which a greedy consumer would fetch more
            worst = max(worst, _unsettled(stage, queue, number - 1))
        assert worst <= prefetch, f"{worst} deliveries are unsettled, with prefetch={prefetch}"
        for delivery in held:
            delivery.ack()
    stage.floor("unsettled deliveries seen", worst, 1)
    with mq.consumer(queue) as consumer:
        rest = {receive(stage, consumer).message.payload for _ in range(number - 2)}
    assert len(rest) == number - 2, "what had been fetched ahead did not all go back"
    return Outcome(counts={"checked": number}, evidence={"most unsettled": worst, "prefetch": prefetch})


def _unsettled(stage: Stage, queue: str, left: int) -> int:
    """How many deliveries of the queue are in somebody's hands, as the broker sees it."""
    told = stage.harness.unacked(queue)
    if told is not None:
        return told
    if stage.capabilities.stats is Support.UNSUPPORTED:
        return left - _left_for_others(stage, queue)
    stats = stage.connect().stats(queue)
    if stats.in_flight is not None:
        return stats.in_flight
    return left - (stats.ready or 0)


def _left_for_others(stage: Stage, queue: str) -> int:
    """How many another consumer can get, which takes all that it can and gives them back."""
    taken = []
    with stage.connect().consumer(queue, prefetch=1) as other:
        while (delivery := other.receive(timeout=stage.seconds(0.5))) is not None:
            taken.append(delivery)
    return len(taken)


@criterion("C19", limit=90)
def a_batch_is_answered_message_by_message(stage: Stage) -> Outcome:
    """1, 10, 11 and 1000 at once: an id for each, in the order of the input, and each message there with what is its own."""
    mq = stage.connect()
    queue = stage.queue()
    expected: dict[str | None, int] = {}
    with mq.producer(queue) as producer:
        total = 0
        for size in (0, 1, 10, 11, 1000):
            report = producer.send_many(
                Message(n, headers={"n": n} if n % 3 else None, correlation_id=f"c-{n}")
                for n in range(total, total + size)
            )
            assert not report.failures, f"of {size} sends failed: {report.failures}"
            assert len(report.ids) == size, f"{size} messages got {len(report.ids)} ids"
            expected.update(zip(report.ids, range(total, total + size), strict=True))
            total += size
    assert len(expected) == total, "an id was given twice"
    for delivery in receive_all(stage, mq, queue, total):
        message = delivery.message
        assert message.id in expected, f"{message.id} came, which is none of the {total} ids that were told"
        n = expected[message.id]
        assert message.payload == n, f"{message.id} is another message's id"
        own = dict(message.headers), message.correlation_id
        assert own == ({"n": n} if n % 3 else {}, f"c-{n}"), f"message {n} came with what is another's: {own}"
    return Outcome(counts={"checked": total})


@criterion("C20")
def one_bad_message_does_not_spoil_a_batch(stage: Stage) -> Outcome:
    """One of ten cannot travel: it alone fails, and the report says which and why. Where only some brokers refuse it, too."""
    mq = stage.connect()
    queue = stage.queue()
    most = mq.capabilities.body_max_bytes
    kinds: list[tuple[Message, type[SendError]]] = [(Message(b"x", headers={"mq-own": 1}), HeaderError)]
    if most is not None and most < 256 * 1024 * 1024:
        kinds.append((Message(bytes(most + 1)), MessageTooLargeError))
    with mq.producer(queue) as producer:
        for bad, kind in kinds:
            batch = [Message(n) for n in range(10)]
            batch[3] = bad
            report = producer.send_many(batch)
            assert set(report.failures) == {3}, f"failures at {sorted(report.failures)}, not at 3"
            assert isinstance(report.failures[3], kind), f"{report.failures[3]!r} instead of {kind.__name__}"
            assert len(report.ids) == 10, f"{len(report.ids)} ids for 10 messages"
            came = sorted(d.message.payload for d in receive_all(stage, mq, queue, 9))
            assert came == [0, 1, 2, 4, 5, 6, 7, 8, 9], f"of the others came {came}"
        refused = 0
        for place, headers in enumerate(_DOUBTFUL):
            batch = [Message(n, headers=headers if n == 3 + place else None) for n in range(10)]
            failures = producer.send_many(batch).failures
            assert set(failures) <= {3 + place}, f"failures at {sorted(failures)}, where only {3 + place} is doubtful"
            came = sorted(d.message.payload for d in receive_all(stage, mq, queue, 10 - len(failures)))
            expected = [n for n in range(10) if n not in failures]
            assert came == expected, f"with failures at {sorted(failures)} came {came}"
            refused += len(failures)
    return Outcome(counts={"checked": 10 * (len(kinds) + len(_DOUBTFUL))}, evidence={"refused by the broker": refused})


# What only some brokers can carry: mqlayer leaves it to the backend to refuse them.
_DOUBTFUL: tuple[dict[str, HeaderValue], ...] = ({"beyond int64": 2**64}, {"n" * 300: 1}, {"nul\x00": "a\x00b"})


@criterion("C21", limit=90)
def a_part_of_a_batch_is_settled(stage: Stage) -> Outcome:
    """Up to n at once, without waiting for more than there is; what is not settled, and only that, comes back as it was."""
    number = 40
    mq = stage.connect()
    queue = stage.queue()
    with mq.producer(queue) as producer:
        report = producer.send_many(
            Message(n, headers={"n": n}, correlation_id=f"c-{n}", reply_to="answers") for n in range(number)
        )
    taken: list[Delivery] = []
    with mq.consumer(queue) as consumer:
        while len(taken) < number:
            some = consumer.receive_many(16, timeout=stage.seconds(15))
            assert 0 < len(some) <= 16, f"{len(some)} came where up to 16 were asked for"
            taken += some
        begun = time.monotonic()
        none = consumer.receive_many(16, timeout=0.3)
        assert not none, f"{len(none)} came twice"
        assert time.monotonic() - begun < stage.seconds(3), "an empty queue kept receive_many far beyond its timeout"
        acked = {delivery.message.payload for delivery in taken[::2]}
        for delivery in taken[::2]:
            delivery.ack()
    rest: set[int] = set()
    with mq.consumer(queue) as consumer:
        for _ in range(number - len(acked)):
            message = receive(stage, consumer, "an unsettled message").message
            n = message.payload
            rest.add(n)
            texts = message.content_type, message.correlation_id, message.reply_to
            assert (message.id, dict(message.headers)) == (report.ids[n], {"n": n}), f"{n} came back as {message!r}"
            assert texts == ("application/json", f"c-{n}", "answers"), f"message {n} came back with {texts}"
        silence(consumer, 0.3, "the others were acked")
    assert rest == set(range(number)) - acked, f"{sorted(rest & acked)} came back although acked"
    with mq.consumer(queue) as consumer:
        for _ in range(number - len(acked)):
            receive(stage, consumer).ack()
    return Outcome(counts={"checked": number})


@criterion("C22", limit=60)
def delayed_messages_come_neither_early_nor_late(stage: Stage) -> Outcome:
    """Parts of a second, 1 and 3 s, alone and in a batch, and nacks: not before its time, not long after it, with all it had.
    What was nacked waits on the broker, whoever goes meanwhile; and a delay of weeks is no short one."""
    mq = stage.connect()
    queue = stage.queue()
    with mq.producer(queue) as producer, mq.consumer(queue) as consumer:
        for delay in (0.4, 1.0, 3.0):  # whatever the broker needs for the first of its kind is there when it counts
            producer.send("warm-up", delay=delay)
        for _ in range(3):
            receive(stage, consumer, "a delayed message").ack()
        longest = stage.capabilities.delay_max
        producer.send("in weeks", delay=WEEKS if longest is None else min(WEEKS, longest))
        sent: dict[str, tuple[float, float]] = {}
        for n in range(3):
            for delay in (3.0, 0.0, 1.0, 0.4):
                before = time.monotonic()
                producer.send(f"{delay} {n}", delay=delay)
                sent[f"{delay} {n}"] = before, delay
        before = time.monotonic()
        ids = _send_delayed_batch(producer, delays := (0.0, 3.0, 1.0, 0.0, 1.0))
        sent |= {f"batch {n}": (before, delay) for n, delay in enumerate(delays)}
        lateness: list[float] = []
        while sent:
            delivery = receive(stage, consumer, f"one of {len(sent)} delayed messages")
            message = delivery.message
            assert message.payload in sent, f"{message.payload!r} came, for the second time or weeks before its own"
            lateness.append(_lateness(*sent.pop(message.payload)))
            if message.payload in ids:
                own = message.id, dict(message.headers), message.correlation_id
                wanted = ids[message.payload], {"payload": message.payload}, "c-1"
                assert own == wanted, f"delayed, {message.payload} came with {own}"
            delivery.ack()
        for delay in (1.0, 0.4):
            producer.send("nacked")
            begun = time.monotonic()
            receive(stage, consumer).nack(delay=delay)
            receive(stage, consumer, "a message nacked with a delay").ack()
            lateness.append(_lateness(begun, delay))
        lateness.append(_nacked_and_gone(stage, 1.0))
        slack = stage.seconds(1.5)
        assert max(lateness) <= slack, f"{max(lateness):.2f} s late, where {slack:g} s are allowed"
        silence(consumer, 0.2, "all were acked, but for what is to come in weeks")
    return Outcome(counts={"checked": len(lateness)}, evidence={"latest by": round(max(lateness), 3)})


def _nacked_and_gone(stage: Stage, delay: float) -> float:
    """Nack with a delay, and close the connection. Returns how late the message came to another one."""
    queue = stage.queue("nacked")
    with stage.connect() as mq, mq.producer(queue) as producer, mq.consumer(queue) as consumer:
        producer.send("nacked")
        begun = time.monotonic()
        receive(stage, consumer).nack(delay=delay)
    with stage.connect().consumer(queue) as consumer:
        delivery = receive(stage, consumer, "a message nacked with a delay by a consumer that then closed")
        late = _lateness(begun, delay)
        assert delivery.message.failures == 1, f"nacked once, it counts {delivery.message.failures} failures"
        delivery.ack()
    return late


def _send_delayed_batch(producer: Producer, delays: Sequence[float]) -> dict[str, str]:
    """Returns payload → id."""
    payloads = [f"batch {n}" for n in range(len(delays))]
    report = producer.send_many(
        Message(payload, delay=delay, headers={"payload": payload}, correlation_id="c-1")
        for payload, delay in zip(payloads, delays, strict=True)
    )
    assert not report.failures, f"delayed sends failed: {report.failures}"
    return dict(zip(payloads, report.ids, strict=True))


def _lateness(begun: float, delay: float) -> float:
    late = time.monotonic() - begun - delay
    assert late >= -0.05, f"delayed by {delay} s, it came {-late:.3f} s early"
    return late
