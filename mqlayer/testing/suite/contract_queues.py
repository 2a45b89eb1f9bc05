"""Queues: made, counted, looked into, emptied, deleted, missed: C25 to C29, C44."""

from collections.abc import Callable
from typing import Any

from mqlayer.api import Connection, Consumer
from mqlayer.driver import Stats, Support
from mqlayer.errors import ArgumentError, MQError, QueueMismatchError, QueueNotFoundError, SendError
from mqlayer.message import Message
from mqlayer.testing.roles.work import Work
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.deliveries import in_threads, receive, receive_all, refusal, silence

__all__ = [
    "a_deleted_queue_is_gone_with_all_it_held",
    "an_unknown_queue_is_never_silent",
    "declare_queues",
    "declaring_again_changes_nothing",
    "peek_changes_nothing",
    "purge_takes_what_is_ready",
    "stats_tell_what_a_queue_holds",
]

NUMBER, HELD = 100, 10


@criterion("C25")
def purge_takes_what_is_ready(stage: Stage) -> Outcome:
    """What is ready is dropped and counted; what somebody holds stays, to be acked or to come back. So does what is delayed."""
    mq, other = stage.connect(), stage.connect()
    queue = stage.queue()
    with mq.producer(queue) as producer, mq.consumer(queue, prefetch=1) as consumer:
        producer.send_many(range(NUMBER))
        held = [receive(stage, consumer, f"message {n}") for n in range(HELD)]
        count = other.purge(queue)
        assert count in (None, NUMBER - HELD), f"purge says {count}, and {NUMBER - HELD} were ready"
        silence(consumer, 0.3, "all that was ready is purged")
        for delivery in held[1:]:
            delivery.ack()
        held[0].nack()
        back = receive(stage, consumer, "what was in flight at the purge, and nacked after it")
        assert back.message.payload == held[0].message.payload, f"{back!r} came back instead"
        back.ack()
        again = other.purge(queue)
        assert again in (None, 0), f"purging an empty queue says {again}"
        producer.send("after")
        delivery = receive(stage, consumer, "what was sent after the purge")
        assert delivery.message.payload == "after", f"{delivery.message.payload!r} outlived the purge"
        delivery.ack()
    stage.assert_empty(mq, queue)
    if stage.capabilities.delay is not Support.UNSUPPORTED:
        _outlives_a_purge(stage, mq)
    if stage.capabilities.group_id is not Support.UNSUPPORTED:
        _purged_with_its_group(stage, mq)
    return Outcome(counts={"checked": NUMBER}, evidence={"purged": count})


def _outlives_a_purge(stage: Stage, mq: Connection) -> None:
    queue = stage.queue("delayed")
    with mq.producer(queue) as producer, mq.consumer(queue) as consumer:
        producer.send("delayed", delay=1.0)
        mq.purge(queue)
        receive(stage, consumer, "what was delayed at the purge").ack()


def _purged_with_its_group(stage: Stage, mq: Connection) -> None:
    """Behind the first of its group a message is as ready as that one."""
    queue = stage.queue("grouped")
    with mq.producer(queue) as producer:
        producer.send_many(Message(n, group_id="g") for n in range(3))
        count = mq.purge(queue)
        assert count in (None, 3), f"purge says {count}, and 3 of one group were ready"
        producer.send("after", group_id="g")
    came = receive_all(stage, mq, queue, 1)[0].message.payload
    assert came == "after", f"{came!r} outlived the purge"


@criterion("C26")
def stats_tell_what_a_queue_holds(stage: Stage) -> Outcome:
    """Ready, in flight, delayed, as far as they are told; after a drain all are 0."""
    mq, other = stage.connect(), stage.connect()
    queue = stage.queue()
    mq.declare(queue)
    assert _told(other.stats(queue)) <= {0}, f"a new queue holds {other.stats(queue)}"
    with mq.producer(queue) as producer:
        producer.send_many(range(NUMBER))
        seen = [_settles_at(stage, other, queue, ready=NUMBER, in_flight=0)]
        with mq.consumer(queue, prefetch=1) as consumer:
            held = [receive(stage, consumer) for _ in range(HELD)]
            seen.append(_settles_at(stage, other, queue, ready=NUMBER - HELD, in_flight=HELD))
            for delivery in held:
                delivery.ack()
            seen.append(_settles_at(stage, other, queue, ready=NUMBER - HELD, in_flight=0, more=1))
        seen.append(_settles_at(stage, other, queue, ready=NUMBER - HELD, in_flight=0))
        if stage.capabilities.delay is not Support.UNSUPPORTED and seen[0].delayed is not None:
            for _ in range(3):
                producer.send("later", delay=60.0)
            seen.append(_settles_at(stage, other, queue, ready=NUMBER - HELD, in_flight=0, delayed=3))
    with mq.consumer(queue) as consumer:
        for _ in range(NUMBER - HELD):
            receive(stage, consumer).ack()
    seen.append(_settles_at(stage, other, queue, ready=0, in_flight=0))
    told = [name for name in ("ready", "in_flight", "delayed") if any(getattr(one, name) is not None for one in seen)]
    stage.floor("figures told", len(told), 1)
    mq.delete(queue)
    return Outcome(counts={"checked": len(seen)}, evidence={"told": told, "approximate": seen[0].approximate})


def _told(stats: Stats) -> set[int]:
    return {figure for figure in (stats.ready, stats.in_flight, stats.delayed) if figure is not None}


def _settles_at(
    stage: Stage, mq: Connection, queue: str, *, ready: int, in_flight: int, delayed: int | None = None, more: int = 0
) -> Stats:
    """The figures become these, where they are told at all; up to *more* may have been fetched ahead."""
    last: list[Stats] = []

    def is_so() -> bool:
        last.append(mq.stats(queue))
        stats = last[-1]
        fetched = ready - stats.ready if stats.ready is not None else 0
        return (
            0 <= fetched <= more
            and (stats.in_flight is None or in_flight <= stats.in_flight <= in_flight + more)
            and (delayed is None or stats.delayed in (None, delayed))
        )

    wanted = f"{ready} ready, {in_flight} in flight" + (f", {delayed} delayed" if delayed is not None else "")
    # Exact figures are exact at once, but for acks of which the broker never says when it has taken them.
    patient = not last or last[-1].approximate or not stage.capabilities.confirms_acks
    try:
        stage.wait_until(is_so, wanted, timeout=10.0 if patient else 0.0)
    except AssertionError as error:
        raise AssertionError(f"{error}; it says {last[-1]}") from None
    return last[-1]


@criterion("C44")
def peek_changes_nothing(stage: Stage) -> Outcome:
    """The first n as a consumer would get them; count, flag and order are as before, and what is held is not shown."""
    number = 20
    ordered = stage.capabilities.ordered
    mq, other = stage.connect(), stage.connect()
    queue = stage.queue()
    with mq.producer(queue) as producer:
        ids = [producer.send(n, headers={"n": n}, correlation_id=f"c-{n}", reply_to="answers") for n in range(number)]
    for limit in (1, 5, 5, number, number + 10):
        shown = other.peek(queue, limit)
        told = [message.id for message in shown]
        right = told == ids[:limit] if ordered else len(set(told)) == min(limit, number) and set(told) <= set(ids)
        assert right, f"peek({limit}) shows {[m.payload for m in shown]}"
        assert all(message.headers == {"n": message.payload} for message in shown), "peek shows other headers"
        texts = [(message.correlation_id, message.reply_to, message.content_type) for message in shown]
        wanted = [(f"c-{message.payload}", "answers", "application/json") for message in shown]
        assert texts == wanted, f"peek shows {texts}"
    with mq.consumer(queue, prefetch=1) as consumer:
        first = receive(stage, consumer)
        assert first.message.payload == 0 or not ordered, f"after the peeks {first.message.payload} comes first"
        rest = set(range(number)) - {first.message.payload}
        shown = other.peek(queue, 3)
        assert first.message.id not in [message.id for message in shown], "peek shows what a consumer holds"
        first.ack()
        while rest:
            delivery = receive(stage, consumer)
            payload = delivery.message.payload
            seen = payload, delivery.delivery_count, delivery.redelivered
            expected = min(rest) if ordered or payload not in rest else payload
            assert seen == (expected, 1, False), f"after the peeks, payload, count and flag are {seen}"
            rest.discard(payload)
            delivery.ack()
    assert other.peek(queue, 5) == [], "peek shows what was acked"
    stage.assert_empty(mq, queue)
    _shown_in_turn(stage, mq)
    return Outcome(counts={"checked": number})


def _shown_in_turn(stage: Stage, mq: Connection) -> None:
    """Those of high priority first, as a consumer would get them, and nothing that is still delayed."""
    queue = stage.queue("in-turn")
    with mq.producer(queue) as producer:
        if stage.capabilities.delay is not Support.UNSUPPORTED:
            producer.send("delayed", delay=60.0)
        producer.send("plain")
        ranked = stage.capabilities.priority is not Support.UNSUPPORTED
        if ranked:
            producer.send("high", priority=9)
    shown = [(message.payload, message.priority) for message in mq.peek(queue, 5)]
    expected = [("high", 9), ("plain", None)] if ranked else [("plain", None)]
    assert shown == expected, f"peek shows {shown}"


@criterion("C27", limit=90)
def declaring_again_changes_nothing(stage: Stage) -> Outcome:
    """From two processes at once, and again with messages inside: nothing happens. With other options: a mismatch."""
    queues = [stage.queue(f"both-{n}") for n in range(10)]
    function = f"{__name__}:declare_queues"
    both = [stage.actor("call", f"declarer-{n}", function=function, arguments={"queues": queues}) for n in range(2)]
    for actor in both:
        actor.ready()
    in_threads([actor.stop for actor in both], timeout=stage.seconds(60))  # what they wait for
    declared = [actor.finish()["returned"] for actor in both]
    assert declared == [len(queues)] * 2, f"two processes declared {declared} of {len(queues)} queues"
    mq = stage.connect()
    for queue in queues:
        with mq.producer(queue) as producer, mq.consumer(queue) as consumer:
            producer.send("inside")
            mq.declare(queue)
            receive(stage, consumer, "what was inside when the queue was declared again").ack()
            silence(consumer, 0.1, "there was one message")
    compares = stage.capabilities.compares_queues
    compared = _mismatches(stage, mq) if compares else []
    if not compares:
        _certainly_not_compared(stage, mq)
    if stage.capabilities.checks_queues:
        _gone_with_its_connection(stage)
    return Outcome(counts={"checked": len(queues)}, evidence={"mismatches": compared})


def declare_queues(work: Work, queues: list[str]) -> int:
    """An actor's part: declare them all, twice each, once it is told to."""
    mq = work.connect()
    work.say("ready")
    work.pause(None)
    for queue in queues:
        mq.declare(queue)
        mq.declare(queue)
    return len(queues)


def _certainly_not_compared(stage: Stage, mq: Connection) -> None:
    """It is said not to compare: then a queue declared with other options is no mismatch."""
    queue = stage.queue("not-compared")
    mq.declare(queue)
    try:
        mq.declare(queue, dead_letter=stage.queue("dead"))
    except QueueMismatchError as error:
        raise AssertionError("unexpected pass: compares_queues is said to be absent, and a mismatch is told") from error


def _gone_with_its_connection(stage: Stage) -> None:
    """A temporary queue goes when the connection closes that declared it."""
    queue = stage.queue("temporary-too")
    with stage.connect() as mq:
        mq.declare(queue, temporary=True)
        mq.producer(queue).send("inside")
    mq = stage.connect(declare="never")

    def is_missing() -> bool:
        try:
            mq.consumer(queue).close()
        except QueueNotFoundError:
            return True
        return False

    stage.wait_until(is_missing, "a temporary queue, whose connection is closed, is gone", timeout=10.0)


def _mismatches(stage: Stage, mq: Connection) -> list[str]:
    plain, dead = stage.queue("plain"), stage.queue("dead")
    with_dead, temporary = stage.queue("with-dead"), stage.queue("temporary")
    kinds: dict[str, dict[str, Any]] = {plain: {}, with_dead: {"dead_letter": dead}, temporary: {"temporary": True}}
    for queue, options in kinds.items():
        mq.declare(queue, **options)
        mq.declare(queue, **options)
        mq.producer(queue).send("inside")
    wrong: list[tuple[str, dict[str, Any]]] = [
        (plain, {"temporary": True}),
        (plain, {"dead_letter": dead}),
        (with_dead, {}),
        (with_dead, {"dead_letter": f"{dead}-other"}),
        (temporary, {}),
    ]
    for queue, options in wrong:
        what = f"a queue with {kinds[queue]} declared with {options}"
        error = refusal(QueueMismatchError, lambda: mq.declare(queue, **options), what)  # noqa: B023
        assert queue in str(error), f"the mismatch does not name the queue: {error}"
    for queue, options in kinds.items():
        mq.declare(queue, **options)
        with mq.consumer(queue) as consumer:
            receive(stage, consumer, f"what was inside a queue with {options}").ack()
            silence(consumer, 0.1, "there was one message")
    mq.delete(temporary)
    return [f"{kinds[queue]} is not {options}" for queue, options in wrong]


@criterion("C28")
def a_deleted_queue_is_gone_with_all_it_held(stage: Stage) -> Outcome:
    """Deleted: sends and receives say that there is no queue. Made anew, it is empty, and serves."""
    mq, other = stage.connect(), stage.connect(declare="never")
    queue = stage.queue()
    mq.delete(stage.queue("never-there"))
    producer, consumer = mq.producer(queue), mq.consumer(queue, prefetch=3)
    producer.send_many(range(10))
    receive(stage, consumer).ack()
    receive(stage, consumer)  # one is held, some may be fetched ahead, the others wait
    other.delete(queue)
    _not_found(stage, "send", lambda: producer.send("into nothing"))
    _not_found(stage, "receive", lambda: _receive_until_error(stage, consumer))
    _not_found(stage, "producer", lambda: other.producer(queue))
    consumer.close()
    other.delete(queue)
    mq.declare(queue)
    stage.assert_empty(mq, queue)
    producer.send("anew")
    came = receive_all(stage, mq, queue, 1)[0]
    assert came.message.payload == "anew", f"{came.message.payload!r} came out of a queue that was deleted"
    if stage.capabilities.dedup_id is not Support.UNSUPPORTED:
        for _ in range(2):  # what the deleted queue had seen is nothing to the new one
            producer.send("once", dedup_id="once")
            receive_all(stage, mq, queue, 1)
            mq.delete(queue)
            mq.declare(queue)
    return Outcome(counts={"checked": 10})


def _receive_until_error(stage: Stage, consumer: Consumer) -> None:
    """What had been fetched before may still come; then the error has to."""
    for _ in range(20):
        if (delivery := consumer.receive(timeout=stage.seconds(5))) is None:
            return
        try:
            delivery.ack()
        except MQError:  # it went with its queue
            continue


@criterion("C29")
def an_unknown_queue_is_never_silent(stage: Stage) -> Outcome:
    """With ``declare=never`` nothing is made; whatever is asked of a queue that is not there says so. Nor are two names
    one queue."""
    mq, maker = stage.connect(declare="never"), stage.connect()
    unknown = stage.queue("unknown")
    checked = 0
    asked: dict[str, Callable[[], object]] = {
        "producer": lambda: mq.producer(unknown),
        "consumer": lambda: mq.consumer(unknown),
    }
    questions: dict[str, Callable[[str], object]] = {"stats": mq.stats, "purge": mq.purge, "peek": mq.peek}
    for name, ask in questions.items():
        if getattr(stage.capabilities, name) is not Support.UNSUPPORTED:
            asked[name] = lambda ask=ask: ask(unknown)  # type: ignore[misc]
    for name, call in asked.items():
        _not_found(stage, name, call)
        checked += 1
    vanished = stage.queue("vanished")
    maker.declare(vanished)
    producer = mq.producer(vanished)
    producer.send("while it is there")
    maker.delete(vanished)
    sends: dict[str, Callable[[], object]] = {
        "send": lambda: producer.send(1),
        "submit": lambda: producer.submit(2).result(stage.seconds(15)),
        "send again": lambda: producer.send(3),
    }
    if stage.capabilities.delay is not Support.UNSUPPORTED:
        sends["delayed send"] = lambda: producer.send(4, delay=0.2)
    for name, call in sends.items():
        _not_found(stage, name, call)
        checked += 1
    if stage.capabilities.checks_queues:
        report = producer.send_many(range(5))
        assert set(report.failures) == set(range(5)), f"of five messages to no queue, {sorted(report.failures)} failed"
        for error in report.failures.values():
            assert isinstance(error, QueueNotFoundError), f"send_many: {error!r}"
    else:
        _certainly_unnoticed(stage, maker)
    maker.declare(vanished)
    stage.assert_empty(maker, vanished)
    producer.send("there again")
    receive_all(stage, maker, vanished, 1)
    return Outcome(counts={"checked": checked + 5 + _similar_names(stage, maker)})


def _certainly_unnoticed(stage: Stage, mq: Connection) -> None:
    """It is said not to notice a missing queue that something is sent to: then nothing is noticed."""
    queue = stage.queue("unnoticed")
    producer = mq.producer(queue)
    mq.delete(queue)
    try:
        producer.send("into nothing, or into a queue made for it")
    except QueueNotFoundError as error:
        raise AssertionError("unexpected pass: checks_queues is said to be absent, and it holds") from error


def _similar_names(stage: Stage, mq: Connection) -> int:
    """Names that a careless mapping makes one. Returns how many were taken; a broker may refuse some."""
    base = stage.queue("\u00e4b")
    names = [base, base.upper(), base.replace("-", "_"), base.replace("-", "."), base.replace("-", "%2D")]
    names += [base.replace("-", "/"), base.replace("-", ":")]
    names += [base.replace("\u00e4", "a\u0308"), f"{base} ", f"{base}/", f"{base}:1"]
    names += [f"{base}{'x' * (220 - len(base))}{n}" for n in range(2)]
    taken: list[str] = []
    for name in names:
        try:
            mq.producer(name).send(name)
        except ArgumentError:
            continue
        taken.append(name)
    for name in taken:
        with mq.consumer(name) as consumer:
            came = [receive(stage, consumer, f"what was sent to {name!r}").message.payload]
            came += [delivery.message.payload for delivery in consumer.receive_many(len(names), timeout=0.02)]
        assert came == [name], f"out of {name!r} came what was sent to {came}"
        mq.delete(name)
    return len(taken)


def _not_found(stage: Stage, name: str, call: Callable[[], object]) -> None:
    """It says so; and a message that it is about was certainly not stored, and has an id."""
    if not stage.capabilities.checks_queues:
        return
    error = refusal(QueueNotFoundError, call, f"{name} of a missing queue")
    if isinstance(error, SendError):
        assert error.message_id, f"{name} to a missing queue does not say which message it is about"
