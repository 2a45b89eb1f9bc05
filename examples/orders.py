"""The same program on every broker: python examples/orders.py URL. Try memory://, sqlite:///orders.db, amqp://localhost/"""

import asyncio
import sys

import mqlayer


def blocking(url: str) -> None:
    with mqlayer.connect(url) as mq, mq.producer("orders") as orders:
        orders.send({"id": 1}, headers={"tenant": "pbs"})
        report = orders.send_many({"id": number} for number in range(2, 11))
        assert not report.failures
        with mq.consumer("orders", retry=mqlayer.Retry(attempts_max=3, delay=0.1)) as consumer:
            for delivery in consumer:
                with delivery as message:
                    print("handled", message.payload, message.headers)
                    if message.payload["id"] == 10:
                        consumer.stop()


async def awaiting(url: str) -> None:
    async with mqlayer.aio.connect(url) as mq, mq.producer("returns") as returns, mq.consumer("returns") as consumer:
        await asyncio.gather(*(returns.send({"id": number}) for number in range(10)))
        for _ in range(10):
            delivery = await consumer.receive(timeout=10)
            assert delivery is not None
            async with delivery as message:
                print("returned", message.payload)


blocking(sys.argv[1])
asyncio.run(awaiting(sys.argv[1]))
