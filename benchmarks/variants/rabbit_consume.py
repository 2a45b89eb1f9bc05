"""R6: take a filled queue from RabbitMQ and ack every message.

The clock runs from the first delivery that the program holds to the end of the consumer, when every ack is written. Each
program adds up the sizes of the bodies it was given.
"""

from importlib import import_module
from typing import Any

from benchmarks.meter import Meter, Result
from benchmarks.model import Job, WrongResultError

IDLE = 20.0  #: seconds without a delivery after which a run has failed


def _url(job: Job) -> str:
    return f"amqp://guest:guest@127.0.0.1:{job.settings['port']}/"


def _result(meter: Meter, job: Job, count: int, size: int) -> Result:
    if size != count * int(job.settings["body_bytes"]):
        raise WrongResultError(f"{count} bodies have {size} bytes")
    return meter.result(count)


def mqlayer_receive_many(job: Job) -> Result:
    """``receive_many(prefetch)``, then ``ack`` for each."""
    import mqlayer

    meter, count, size = Meter(), 0, 0
    prefetch = int(job.settings["prefetch"])
    with mqlayer.connect(_url(job)) as mq:
        with mq.consumer(job.settings["queue"], prefetch=prefetch) as consumer:
            deliveries = consumer.receive_many(prefetch, IDLE)
            meter.start()
            while deliveries:
                for delivery in deliveries:
                    size += len(delivery.message.body)
                    delivery.ack()
                count += len(deliveries)
                deliveries = consumer.receive_many(prefetch, IDLE) if count < job.count else []
        meter.stop()
    return _result(meter, job, count, size)


def mqlayer_with(job: Job) -> Result:
    """``for delivery in consumer: with delivery as message``."""
    import mqlayer

    meter, count, size = Meter(), 0, 0
    with mqlayer.connect(_url(job)) as mq:
        with mq.consumer(job.settings["queue"], prefetch=int(job.settings["prefetch"])) as consumer:
            for delivery in consumer:
                if not count:
                    meter.start()
                with delivery as message:
                    size += len(message.body)
                count += 1
                if count == job.count:
                    break
        meter.stop()
    return _result(meter, job, count, size)


def kombu_consumer(job: Job) -> Result:
    """kombu's Consumer: a callback acks each message."""
    kombu: Any = import_module("kombu")  # not typed

    meter, count, size = Meter(), 0, 0

    def handle(message: Any) -> None:
        nonlocal count, size
        if not count:
            meter.start()
        size += len(message.body)
        message.ack()
        count += 1

    with kombu.Connection(_url(job)) as connection:
        channel = connection.channel()
        queue = kombu.Queue(job.settings["queue"], no_declare=True)
        consumer = kombu.Consumer(
            channel, [queue], on_message=handle, prefetch_count=int(job.settings["prefetch"]), auto_declare=False
        )
        consumer.consume()
        while count < job.count:
            connection.drain_events(timeout=IDLE)
        consumer.cancel()
        channel.close()
        meter.stop()
    return _result(meter, job, count, size)


def pika_blocking(job: Job) -> Result:
    """pika's ``BlockingChannel.consume``, an ack for each."""
    import pika

    meter, count, size = Meter(), 0, 0
    connection = pika.BlockingConnection(pika.URLParameters(_url(job) + "%2F"))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=int(job.settings["prefetch"]))
    for method, _, body in channel.consume(job.settings["queue"], inactivity_timeout=IDLE):
        if method is None or method.delivery_tag is None or body is None:
            break
        if not count:
            meter.start()
        size += len(body)
        channel.basic_ack(method.delivery_tag)
        count += 1
        if count == job.count:
            break
    channel.cancel()
    channel.close()
    meter.stop()
    connection.close()
    return _result(meter, job, count, size)
