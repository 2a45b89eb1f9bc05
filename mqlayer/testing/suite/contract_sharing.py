"""Threads, processes and forks at one broker: C32, C33, C36."""

import json
import os
import queue as queues
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn

from mqlayer.api import Connection, Consumer, Delivery, Producer
from mqlayer.errors import ForkedError, MQError
from mqlayer.testing.checker import Expect, Floors
from mqlayer.testing.ledger import EventType
from mqlayer.testing.roles.consuming import note_delivery, settle
from mqlayer.testing.roles.work import Work
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.deliveries import PATIENCE, in_threads, receive

__all__ = [
    "a_fork_leaves_the_parent_alone",
    "many_processes_send_at_once",
    "threads_share_producer_and_consumer",
    "use_across_fork",
]

THREADS = 8
RECEIVERS = 3
CHILD_LIMIT = 30  #: seconds after which a forked child that hangs is ended


@criterion("C32", limit=150)
def threads_share_producer_and_consumer(stage: Stage) -> Outcome:
    """Eight threads send through one producer, three receive from one consumer, and others ack: each message once."""
    each = stage.size(quick=150, full=500)
    total = THREADS * each
    mq = stage.connect()
    queue = stage.queue()
    sent: dict[str, int] = {}
    came: Counter[str | None] = Counter()
    lock = threading.Lock()
    to_ack: queues.SimpleQueue[Delivery | None] = queues.SimpleQueue()

    def send(first: int) -> None:
        ids = _send_every_way(stage, producer, list(range(first, first + each)))
        with lock:
            sent.update(ids)

    end = time.monotonic() + stage.seconds(60)

    def take() -> None:
        while sum(came.values()) < total and time.monotonic() < end:
            for delivery in consumer.receive_many(10, timeout=0.2):
                with lock:
                    came[delivery.message.id] += 1
                to_ack.put(delivery)
        to_ack.put(None)

    def ack() -> None:
        while (delivery := to_ack.get()) is not None:
            delivery.ack()

    with mq.producer(queue) as producer, mq.consumer(queue, prefetch=20) as consumer:
        senders = [lambda first=n * each: send(first) for n in range(THREADS)]
        in_threads([*senders, *[take] * RECEIVERS, *[ack] * RECEIVERS], timeout=stage.seconds(90))
    assert len(sent) == total, f"{total} messages got {len(sent)} different ids"
    twice = [id for id, times in came.items() if times > 1]
    assert not twice, f"{len(twice)} messages came twice: {twice[:3]}"
    assert came.keys() == sent.keys(), f"{len(sent.keys() - came.keys())} of {total} never came"
    stage.assert_empty(mq, queue)
    return Outcome(counts={"checked": total})


def _send_every_way(stage: Stage, producer: Producer, numbers: list[int]) -> dict[str, int]:
    third = len(numbers) // 3
    ids = {producer.send(number): number for number in numbers[:third]}
    futures = {number: producer.submit(number) for number in numbers[third : 2 * third]}
    report = producer.send_many(numbers[2 * third :])
    assert not report.failures, f"sends failed: {report.failures}"
    ids |= {future.result(stage.seconds(30)): number for number, future in futures.items()}
    return ids | dict(zip(report.ids, numbers[2 * third :], strict=True))


@criterion("C36", limit=150)
def many_processes_send_at_once(stage: Stage) -> Outcome:
    """Four processes send, each another way: every message arrives once, under an id of its own."""
    each = stage.size(quick=200, full=1000)
    queue = stage.queue()
    mq = stage.connect()
    mq.declare(queue)
    ways = ("send", "submit", "send_many", "send_many")
    producers = [
        stage.actor("produce", f"producer-{n}", queue=queue, count=each, how=way) for n, way in enumerate(ways)
    ]
    total = each * len(producers)
    ids: set[str | None] = set()
    with stage.ledger("consumer") as ledger, mq.consumer(queue) as consumer:
        for place in range(total):
            delivery = receive(stage, consumer, f"message {place + 1} of {total}", timeout=30.0)
            id = note_delivery(ledger, delivery)
            ids.add(delivery.message.id)
            settle(ledger, EventType.ACK, id, delivery, delivery.ack)
        for actor in producers:
            actor.finish()
        while (delivery_too_many := consumer.receive(timeout=0.5)) is not None:
            note_delivery(ledger, delivery_too_many)
            delivery_too_many.ack()
    stage.assert_empty(mq, queue)
    assert len(ids) == total, f"{total} messages of {len(producers)} processes have {len(ids)} different ids"
    floors = Floors(confirmed=total, deliveries=total)
    expect = Expect(
        drained=None,
        queue_empty=True,
        ack_settle=0.0 if stage.capabilities.confirms_acks else None,
        floors=floors,
    )
    return stage.judge(expect)


@criterion("C33", limit=120)
def a_fork_leaves_the_parent_alone(stage: Stage) -> Outcome:
    """A process forks with everything open: the child connects anew or says ``ForkedError``; the parent notices nothing."""
    each = 10
    queue = stage.queue()
    # A store in memory is forked with its process, so not in the suite's own.
    site = stage.own_server() if stage.in_process else stage.site
    function = f"{__name__}:use_across_fork"
    said = site.actor("call", "parent", function=function, arguments={"queue": queue, "each": each}).finish()[
        "returned"
    ]
    child = said["child"]
    assert child["old delivery"] == "ForkedError", f"the child settled its parent's delivery: {child['old delivery']}"
    forked = child["sent"] == "ForkedError"
    assert forked or child["sent"] == each, f"the child's sends: {child['sent']}"
    if forked:
        assert child["received"] == "ForkedError", f"the child cannot send, and yet received: {child['received']}"
    expected = Counter([f"{who} {n}" for who in ("before", "during", "after") for n in range(each)])
    if not forked:
        expected += Counter([f"child {n}" for n in range(each)])
        assert child["received"] in expected, f"the child received {child['received']!r}"
    came = Counter(said["received"] + ([] if forked else [child["received"]]))
    missing, extra = expected - came, came - expected
    assert not missing, f"{missing.total()} messages never came, such as {min(missing)!r}"
    assert not extra, f"{extra.total()} messages came that were not sent, or twice, such as {min(extra)!r}"
    return Outcome(counts={"checked": expected.total()}, evidence={"child": child})


def use_across_fork(work: Work, queue: str, each: int) -> dict[str, Any]:
    """An actor's part: send, hold a delivery, fork, go on beside the child, then ack what was held, and take all there is."""
    mq = work.connect()
    producer, consumer = mq.producer(queue), mq.consumer(queue, prefetch=1)
    for n in range(each):
        producer.send(f"before {n}")
    held = consumer.receive(timeout=PATIENCE * work.multiplier)
    assert held is not None, "there is nothing to hold across the fork"
    end, begin = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_the_child(begin, lambda: _child(mq, producer, consumer, held, each))
    os.close(begin)
    for n in range(each):
        producer.send(f"during {n}")
    told = _read_all(end, CHILD_LIMIT + 5.0)
    os.waitpid(pid, 0)
    for n in range(each):
        producer.send(f"after {n}")
    received = [held.message.payload]
    held.ack()
    while (delivery := consumer.receive(timeout=1.0)) is not None:
        received.append(delivery.message.payload)
        delivery.ack()
    assert told, "the child ended without a word"
    return {"child": json.loads(told), "received": received}


def _be_the_child(pipe: int, part: Callable[[], dict[str, Any]]) -> NoReturn:
    """Do its part, say what came of it, and end without any of the parent's clean-up."""
    signal.alarm(CHILD_LIMIT)
    status = 1
    try:
        os.write(pipe, json.dumps(part()).encode())
        status = 0
    except BaseException as error:
        os.write(pipe, json.dumps({"old delivery": repr(error), "sent": repr(error), "received": repr(error)}).encode())
    finally:
        os._exit(status)


def _child(mq: Connection, producer: Producer, consumer: Consumer, held: Delivery, each: int) -> dict[str, Any]:
    said: dict[str, Any] = {"old delivery": _outcome(held.ack)}

    def send_all() -> int:
        for n in range(each):
            producer.send(f"child {n}")
        return each

    def receive_one() -> str:
        delivery = consumer.receive(timeout=PATIENCE)
        assert delivery is not None, "nothing came to the child"
        payload: str = delivery.message.payload
        delivery.ack()
        return payload

    said["sent"] = _outcome(send_all)
    said["received"] = _outcome(receive_one)
    said["closed"] = _outcome(mq.close)
    return said


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ForkedError:
        return "ForkedError"
    except (MQError, AssertionError) as error:
        return "ForkedError" if isinstance(error.__cause__, ForkedError) else repr(error)


def _read_all(pipe: int, timeout: float) -> bytes:
    """All that the child says, until it ends."""
    said = b""
    while select.select([pipe], [], [], timeout)[0]:
        piece = os.read(pipe, 65536)
        if not piece:
            break
        said += piece
    os.close(pipe)
    return said
