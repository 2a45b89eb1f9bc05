"""What must not type-check. Each line ends with the code of the error that mypy must find there, and nowhere else."""

from dataclasses import dataclass

import mqlayer
from mqlayer import Message, Needs, Retry, aio
from mqlayer.driver import Capabilities, Outgoing, Session


def use(*values: object) -> None:
    """So that no value goes unused."""


def blocking(mq: mqlayer.Connection) -> None:
    mqlayer.connect()  # expect: call-arg
    mqlayer.connect("memory://", 5.0)  # expect: arg-type, call-arg
    Needs(delays=5.0)  # expect: call-arg
    Retry(5)  # expect: call-arg
    Retry(attempts="5")  # expect: call-arg
    Message()  # expect: call-arg
    Message("x", {"a": 1})  # expect: call-arg
    Message("x", headers={"a": [1]})  # expect: dict-item
    Message("x").delay = 5.0  # expect: misc
    producer = mq.producer("q")
    producer.send("x", 5.0)  # expect: call-arg
    producer.send("x", delay="5")  # expect: arg-type
    producer.send("x", headers={1: "a"})  # expect: dict-item
    producer.send("x", prio=5)  # expect: call-arg
    number: int = producer.send("x")  # expect: assignment
    mq.consumer("q", retries=5)  # expect: call-arg
    mq.consumer("q", dead_letter=False)  # expect: arg-type
    consumer = mq.consumer("q")
    consumer.receive().ack()  # expect: union-attr
    with consumer.receive() as message:  # expect: union-attr
        use(message)
    for delivery in consumer:
        delivery.nack(5.0)  # expect: call-arg
        delivery.reject()  # expect: call-arg
        delivery.delivery_count = 1  # expect: misc
        _ = delivery.payload  # expect: attr-defined
    mqlayer.run(consumer, lambda: None)  # expect: arg-type, misc
    use(number)


async def asynchronous(mq: aio.Connection) -> None:
    producer = await mq.producer("q")
    sent: str = producer.send("x")  # expect: assignment
    producer.send("x")  # expect: unused-coroutine
    consumer = mq.consumer("q")
    await consumer.receive()  # expect: attr-defined
    opened = await consumer
    for delivery in opened:  # expect: attr-defined
        use(delivery, sent)
    await aio.run(opened, sync_handler)  # expect: arg-type


def sync_handler(delivery: aio.Delivery) -> None:
    use(delivery)


@dataclass
class HalfASession:
    capabilities: Capabilities


def takes(session: Session) -> None:
    session.send("q", [Outgoing("m", b"x")], 1.0)


takes(HalfASession)  # expect: arg-type
