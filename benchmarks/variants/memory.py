"""M1: put, get and ack in memory, one message after another, with content type, id and a header."""

from importlib import import_module
from typing import Any

from benchmarks.meter import BODY_BYTE, HEADER_NAME, HEADER_VALUE, KIND, Meter, Result
from benchmarks.model import Job, check_count

WARM_UP = 1000


def mqlayer_memory(job: Job) -> Result:
    """``send``, ``receive``, ``with delivery`` on ``memory://``."""
    import mqlayer

    meter, handled = Meter(), 0
    body = BODY_BYTE * int(job.settings["body_bytes"])
    headers = {HEADER_NAME: HEADER_VALUE}
    with mqlayer.connect("memory://") as mq, mq.producer("bench") as producer, mq.consumer("bench") as consumer:

        def turn(count: int) -> int:
            size = 0
            for _ in range(count):
                producer.send(body, headers=headers)
                delivery = consumer.receive(0)
                assert delivery is not None
                with delivery as message:
                    size += len(message.body)
            return size // len(body)

        turn(WARM_UP)
        meter.start()
        handled = turn(job.count)
        meter.stop()
        stats = mq.stats("bench")
        check_count("left in memory", (stats.ready or 0) + (stats.in_flight or 0), 0)
    return meter.result(handled)


def kombu_memory(job: Job) -> Result:
    """kombu's memory transport: Producer and Consumer on one connection, ``drain_events`` for each message."""
    kombu: Any = import_module("kombu")  # not typed

    meter = Meter()
    body = BODY_BYTE * int(job.settings["body_bytes"])
    headers = {HEADER_NAME: HEADER_VALUE}
    size = 0

    def handle(message: Any) -> None:
        nonlocal size
        size += len(message.body)
        message.ack()

    with kombu.Connection("memory://") as connection:
        channel = connection.channel()
        queue = kombu.Queue("bench", channel=channel)
        queue.declare()
        producer = kombu.Producer(channel)
        consumer = kombu.Consumer(channel, [queue], on_message=handle)
        consumer.consume()

        def turn(count: int) -> None:
            for number in range(count):
                producer.publish(
                    body,
                    routing_key="bench",
                    content_type=KIND,
                    content_encoding="binary",
                    message_id=f"bench-{number}",
                    headers=headers,
                )
                connection.drain_events(timeout=1)

        turn(WARM_UP)
        size = 0
        meter.start()
        turn(job.count)
        meter.stop()
        check_count("left in memory", queue.queue_declare(passive=True).message_count, 0)
    return meter.result(size // len(body))


def kombu_simple(job: Job) -> Result:
    """kombu's SimpleQueue over its memory transport."""
    kombu: Any = import_module("kombu")  # not typed

    meter, size = Meter(), 0
    body = BODY_BYTE * int(job.settings["body_bytes"])
    headers = {HEADER_NAME: HEADER_VALUE}
    with kombu.Connection("memory://") as connection:
        queue = connection.SimpleQueue("bench")

        def turn(count: int) -> int:
            size = 0
            for number in range(count):
                queue.put(
                    body,
                    content_type=KIND,
                    content_encoding="binary",
                    message_id=f"bench-{number}",
                    headers=headers,
                )
                message = queue.get(timeout=1)
                size += len(message.body)
                message.ack()
            return size

        turn(WARM_UP)
        meter.start()
        size = turn(job.count)
        meter.stop()
        check_count("left in memory", queue.qsize(), 0)
        queue.close()
    return meter.result(size // len(body))
