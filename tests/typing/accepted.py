"""What must type-check, blocking and asyncio: each line is something that users write."""

from concurrent.futures import Future

import mqlayer
from mqlayer import Message, Needs, Retry, Support, aio
from mqlayer.errors import Fate, SendError


def use(*values: object) -> None:
    """So that no value goes unused."""


def blocking() -> None:
    with mqlayer.connect("memory://", needs=Needs(durable=False, delay=5.0), timeout=5.0) as mq:
        mq.declare("q", dead_letter="d", temporary=True, ordered=True)
        with mq.producer("q") as producer:
            sent: str = producer.send(
                {"id": 42}, delay=1.0, ttl=5.0, headers={"a": 1, "b": b"x", "c": None}, priority=5
            )
            future: Future[str] = producer.submit(Message("x", id=sent))
            producer.flush(timeout=1.0)
            report = producer.send_many([1, Message(b"x")])
            ids: list[str] = report.ids
            failures: dict[int, SendError] = report.failures
            fates: list[Fate] = [error.fate for error in failures.values()]
            use(future.result(), ids, fates)
        with mq.consumer("q", "r", retry=Retry(attempts_max=5), prefetch=20, dead_letter=None) as consumer:
            delivery = consumer.receive(timeout=0)
            if delivery is not None:
                with delivery as message:
                    body: bytes = message.body
                    identity: str | None = message.id
                    use(body, identity, message.payload["id"], delivery.delivery_count + 1)
            for each in consumer:
                each.nack(delay=5.0)
                each.reject("why")
                each.extend(30.0)
            for each in consumer.receive_many(5, timeout=1.0):
                each.ack()
        with mq.consumer(topic="news", group="mailer") as mails, mq.producer(topic="news") as news:
            news.send("x")
            mqlayer.run(mails, handle, concurrency=4)
        ready: int | None = mq.stats("q").ready
        peeked: list[mqlayer.ReceivedMessage] = mq.peek("q", 5)
        purged: int | None = mq.purge("q")
        native: bool = mq.capabilities.delay is Support.NATIVE
        use(ready, peeked, purged, native, mq.health().sent)


def handle(delivery: mqlayer.Delivery) -> None:
    delivery.ack()


async def asynchronous() -> None:
    async with aio.connect("memory://") as mq, mq.producer("q") as producer, mq.consumer("q") as consumer:
        sent: str = await producer.send("x", correlation_id="c", reply_to="r", group_id="g", dedup_id="d")
        future = await producer.submit("x")
        again: str = await future
        await producer.flush()
        delivery = await consumer.receive()
        if delivery is not None:
            async with delivery as message:
                use(message.payload, sent, again)
        async for each in consumer:
            await each.ack()
        await aio.run(consumer, handle_async)
        use(await mq.stats("q"))
    opened: aio.Connection = await aio.connect("memory://")
    other: aio.Producer = await opened.producer("q")
    await other.close()
    await opened.close()


async def handle_async(delivery: aio.Delivery) -> None:
    await delivery.ack()
