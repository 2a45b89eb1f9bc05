"""Q1, Q2: a queue in a file, fully durable: write-ahead log, ``synchronous=FULL``, read back from every connection used.

persist-queue stores one pickled object; it is given the same facts: id, content type, one header, body.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.meter import BODY_BYTE, HEADER_NAME, HEADER_VALUE, KIND, Meter, Result
from benchmarks.model import Job, WrongResultError, check_count

FULL = 2  #: what ``PRAGMA synchronous`` answers
BATCH = 100
FILL_BATCH = 5000
IDLE = 20.0  #: seconds without a message after which a run has failed


@contextmanager
def durable() -> Iterator[Callable[[], None]]:
    """Gives a check that every connection to a database made since then is fully durable."""
    connect = sqlite3.connect
    made: list[sqlite3.Connection] = []

    def remembering(*arguments: Any, **options: Any) -> sqlite3.Connection:
        made.append(connect(*arguments, **options))
        return made[-1]

    def check() -> None:
        if not made:
            raise WrongResultError("no connection to a database was seen")
        for connection in made:
            (level,) = connection.execute("PRAGMA synchronous").fetchone()
            (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
            if level < FULL or journal != "wal":
                raise WrongResultError(f"not fully durable: synchronous={level}, journal_mode={journal}")

    sqlite3.connect = remembering  # type: ignore[assignment]
    try:
        yield check
    finally:
        sqlite3.connect = connect


def _body(job: Job) -> bytes:
    return BODY_BYTE * int(job.settings["body_bytes"])


def _url(job: Job) -> str:
    return f"sqlite:///{job.settings['path']}"


def _fill(producer: Any, body: bytes, count: int) -> None:
    import mqlayer

    headers = {HEADER_NAME: HEADER_VALUE}
    while count > 0:
        size = min(count, FILL_BATCH)
        report = producer.send_many(mqlayer.Message(body, headers=headers) for _ in range(size))
        if report.failures:
            raise WrongResultError(f"not stored: {report.failures}")
        count -= size


# --- mqlayer --------------------------------------------------------------------------------------------------------------


def mqlayer_put_many(job: Job) -> Result:
    """``send_many``, a hundred a call."""
    import mqlayer

    meter, body = Meter(), _body(job)
    headers = {HEADER_NAME: HEADER_VALUE}
    with durable() as check, mqlayer.connect(_url(job)) as mq, mq.producer("bench") as producer:
        meter.start()
        for _ in range(job.count // BATCH):
            report = producer.send_many(mqlayer.Message(body, headers=headers) for _ in range(BATCH))
            if report.failures or len(report.ids) != BATCH:
                raise WrongResultError(f"not stored: {report.failures}")
        meter.stop()
        check()
    return meter.result(job.count // BATCH * BATCH)


def mqlayer_put_one(job: Job) -> Result:
    """``send``, each waiting until it is on the disk."""
    import mqlayer

    meter, body = Meter(), _body(job)
    headers = {HEADER_NAME: HEADER_VALUE}
    with durable() as check, mqlayer.connect(_url(job)) as mq, mq.producer("bench") as producer:
        meter.start()
        for _ in range(job.count):
            producer.send(body, headers=headers)
        meter.stop()
        check()
    return meter.result(job.count)


def mqlayer_get_one(job: Job) -> Result:
    """``for delivery in consumer: with delivery``: each ack waits until it is on the disk."""
    import mqlayer

    meter, body, count, size = Meter(), _body(job), 0, 0
    with durable() as check, mqlayer.connect(_url(job)) as mq:
        with mq.producer("bench") as producer:
            _fill(producer, body, job.count)
        meter.start()
        with mq.consumer("bench", prefetch=BATCH) as consumer:
            for delivery in consumer:
                with delivery as message:
                    size += len(message.body)
                count += 1
                if count == job.count:
                    break
            check()
        meter.stop()
    check_count("bytes of bodies", size, count * len(body))
    return meter.result(count)


def mqlayer_get_many(job: Job) -> Result:
    """``receive_many(100)``, then ``ack_many``: the hundred acks share a commit."""
    import mqlayer

    meter, body, count, size = Meter(), _body(job), 0, 0
    with durable() as check, mqlayer.connect(_url(job)) as mq:
        with mq.producer("bench") as producer:
            _fill(producer, body, job.count)
        meter.start()
        with mq.consumer("bench", prefetch=BATCH) as consumer:
            while count < job.count:
                deliveries = consumer.receive_many(BATCH, IDLE)
                if not deliveries:
                    break
                size += sum(len(delivery.message.body) for delivery in deliveries)
                failures = consumer.ack_many(deliveries)
                if failures:
                    raise WrongResultError(f"not acked: {failures}")
                count += len(deliveries)
            check()
        meter.stop()
    check_count("bytes of bodies", size, count * len(body))
    return meter.result(count)


def mqlayer_claim(job: Job) -> Result:
    """Q2: with *depth* messages ready all the time: take and ack a thousand (timed), put a thousand back (not timed)."""
    import mqlayer

    meter, body, count = Meter(), _body(job), 0
    depth, portion = int(job.settings["depth"]), 1000
    with mqlayer.connect(_url(job)) as mq, mq.producer("bench") as producer:
        _fill(producer, body, depth - (mq.stats("bench").ready or 0))
        os.sync()  # what the filling has left to write is not the claims' to pay for
        while count < job.count:
            meter.start()
            with mq.consumer("bench", prefetch=BATCH) as consumer:
                for _ in range(portion):
                    delivery = consumer.receive(IDLE)
                    if delivery is None:
                        raise WrongResultError(f"nothing to take after {count} messages")
                    delivery.ack()
            meter.stop()
            count += portion
            _fill(producer, body, portion)
    return meter.result(count)


# --- persist-queue --------------------------------------------------------------------------------------------------------


def _item(body: bytes, number: int) -> dict[str, Any]:
    return {"id": f"bench-{number}", "content_type": KIND, "headers": {HEADER_NAME: HEADER_VALUE}, "body": body}


def persist_put(job: Job) -> Result:
    """persist-queue's SQLiteAckQueue: ``put`` commits each; it has no batch (``auto_commit=False`` is refused)."""
    import persistqueue

    meter, body = Meter(), _body(job)
    with durable() as check:
        queue = persistqueue.SQLiteAckQueue(job.settings["path"])
        meter.start()
        for number in range(job.count):
            queue.put(_item(body, number))
        meter.stop()
        check()
        queue.close()
    return meter.result(job.count)


def persist_get(job: Job) -> Result:
    """persist-queue's ``get``, ``ack``."""
    import persistqueue

    meter, body, size = Meter(), _body(job), 0
    with durable() as check:
        queue = persistqueue.SQLiteAckQueue(job.settings["path"])
        for number in range(job.count):
            queue.put(_item(body, number))
        meter.start()
        for _ in range(job.count):
            item = queue.get(timeout=IDLE)
            size += len(item["body"])
            queue.ack(item)
        meter.stop()
        check()
        queue.close()
    check_count("bytes of bodies", size, job.count * len(body))
    return meter.result(job.count)
