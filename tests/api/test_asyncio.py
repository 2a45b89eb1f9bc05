"""What only the asyncio API has: cancelling, loops, tasks."""

import asyncio
import random
from typing import Any

import pytest
from fakes import PATIENCE, FakeSession

from mqlayer import aio
from mqlayer.errors import AlreadySettledError, ClosedError, SendError, StaleDeliveryError, UsageError


def test_a_cancelled_receive_loses_nothing(url: str) -> None:
    """Cancelled at random points, again and again: every message arrives exactly once."""
    messages = 300
    chance = random.Random(7)

    async def main() -> list[Any]:
        got: list[Any] = []
        async with aio.connect(url) as mq, mq.producer("q") as producer, mq.consumer("q", prefetch=8) as consumer:

            async def consume() -> None:
                while True:
                    deliveries = await consumer.receive_many(chance.randint(1, 4))
                    for delivery in deliveries:
                        got.append(delivery)

            async def produce() -> None:
                for number in range(messages):
                    await producer.send(number)
                    if number % 7 == 0:
                        await asyncio.sleep(0)

            producing = asyncio.create_task(produce())
            async with asyncio.timeout(PATIENCE * 3):
                while len(got) < messages:
                    consuming = [asyncio.create_task(consume()) for _ in range(3)]
                    for _ in range(chance.randint(0, 12)):
                        await asyncio.sleep(0)
                    await asyncio.sleep(chance.choice([0, 0, 0.001]))
                    for task in consuming:
                        task.cancel()
                    await asyncio.gather(*consuming, return_exceptions=True)
            await producing
            for delivery in got:
                await delivery.ack()
            assert await consumer.receive(timeout=0) is None
            stats = await mq.stats("q")
            assert (stats.ready, stats.in_flight) == (0, 0)
        return [(delivery.message.payload, delivery.delivery_count) for delivery in got]

    received = asyncio.run(main())
    assert sorted(received) == [(number, 1) for number in range(messages)]


def test_a_cancelled_receive_leaves_nothing_behind(url: str) -> None:
    async def main() -> None:
        async with aio.connect(url) as mq, mq.consumer("q") as consumer:
            for _ in range(20):
                waiting = asyncio.create_task(consumer.receive())
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            line = consumer._core.line
            assert line.arrivals._callbacks == []
            assert line.load == (0, 0)

    asyncio.run(main())


def test_a_receive_that_times_out_outside_loses_nothing(url: str) -> None:
    async def main() -> None:
        async with aio.connect(url) as mq, mq.producer("q") as producer, mq.consumer("q") as consumer:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await consumer.receive()
            await producer.send("x")
            async with await consumer.receive(timeout=PATIENCE) as message:  # type: ignore[union-attr]
                assert message.payload == "x"

    asyncio.run(main())


def test_a_cancelled_send_that_had_not_left_does_not_leave(fake: Any) -> None:
    session = FakeSession()
    url, _ = fake(session)

    async def main() -> None:
        async with aio.connect(url) as mq:
            producer = await mq.producer("q")
            gate = session.gate("send")
            first = await producer.submit("first")
            await asyncio.to_thread(gate.wait_entered)
            second = asyncio.create_task(producer.send("second"))
            await asyncio.sleep(0.01)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            gate.open()
            assert await first

    asyncio.run(main())
    assert [message.body for _, message in session.sent] == [b"first"]


def test_cancelling_while_waiting_for_room_leaves_nothing_to_flush(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqlayer.engine.outbox.SEND_WINDOW", 1)
    session = FakeSession()
    url, _ = fake(session)

    async def main() -> None:
        async with aio.connect(url) as mq:
            producer = await mq.producer("q")
            gate = session.gate("send")
            await producer.submit("in flight")
            await asyncio.to_thread(gate.wait_entered)
            await producer.submit("queued")
            waiting = asyncio.create_task(producer.submit("no room"))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            gate.open()
            await producer.flush(timeout=PATIENCE)

    asyncio.run(main())
    assert len(session.sent) == 2


def test_cancelling_inside_the_block_gives_back_uncounted(url: str) -> None:
    async def main() -> None:
        async with aio.connect(url) as mq, mq.producer("q") as producer, mq.consumer("q") as consumer:
            await producer.send("x")
            begun = asyncio.Event()

            async def handle() -> None:
                delivery = await consumer.receive(timeout=PATIENCE)
                assert delivery is not None
                async with delivery:
                    begun.set()
                    await asyncio.sleep(PATIENCE)

            task = asyncio.create_task(handle())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            again = await consumer.receive(timeout=PATIENCE)
            assert again is not None
            assert (again.delivery_count, again.message.failures) == (1, 0)
            await again.ack()

    asyncio.run(main())


def test_iteration_and_gathered_sends(url: str) -> None:
    async def main() -> None:
        async with aio.connect(url) as mq, mq.producer("q") as producer:
            sent = await asyncio.gather(*(producer.send(number) for number in range(100)))
            assert len(set(sent)) == 100
            consumer = await mq.consumer("q")
            seen = []
            async for delivery in consumer:
                async with delivery as message:
                    seen.append(message.payload)
                if len(seen) == 100:
                    consumer.stop()
            assert sorted(seen) == list(range(100))
            await consumer.close()
            with pytest.raises(ClosedError):
                await consumer.receive()

    asyncio.run(main())


def test_the_loop_goes_on_while_a_call_waits(url: str) -> None:
    async def main() -> None:
        async with aio.connect(url) as mq, mq.consumer("q") as consumer:
            turns = 0
            waiting = asyncio.create_task(consumer.receive(timeout=0.1))
            while not waiting.done():
                turns += 1
                await asyncio.sleep(0)
            assert turns > 10
            assert await waiting is None

    asyncio.run(main())


@pytest.mark.filterwarnings("error")
def test_a_failed_submit_that_nobody_awaits_makes_no_noise(fake: Any, caplog: pytest.LogCaptureFixture) -> None:
    from fakes import failing

    from mqlayer.errors import RefusedError

    session = FakeSession()
    session.every("send", failing({0: RefusedError("full")}))
    url, _ = fake(session)

    async def main() -> None:
        async with aio.connect(url) as mq:
            producer = await mq.producer("q")
            await producer.submit("x")
            with pytest.raises(ExceptionGroup) as caught:
                await producer.flush()
            assert all(isinstance(error, SendError) for error in caught.value.exceptions)

    asyncio.run(main())
    assert "never retrieved" not in caplog.text


def test_a_connection_belongs_to_its_loop(fake: Any) -> None:
    url, _ = fake(FakeSession())
    mq = asyncio.run(_opened(url))
    with pytest.raises(UsageError, match="event loop"):
        asyncio.run(_stats(mq))
    mq._blocking.close()


async def _opened(url: str) -> aio.Connection:
    return await aio.connect(url)


async def _stats(mq: aio.Connection) -> None:
    await mq.stats("q")


def test_another_task_may_settle_while_a_consumer_closes(url: str) -> None:
    async def main() -> None:
        async with aio.connect(url) as mq, mq.producer("q") as producer:
            await producer.send("x")
            consumer = await mq.consumer("q")
            begun, go_on = asyncio.Event(), asyncio.Event()

            async def handle() -> None:
                delivery = await consumer.receive(timeout=PATIENCE)
                assert delivery is not None
                async with delivery:
                    begun.set()
                    await go_on.wait()

            handling = asyncio.create_task(handle())
            await begun.wait()
            closing = asyncio.create_task(consumer.close())
            await asyncio.sleep(0.02)
            assert not closing.done()
            go_on.set()
            await asyncio.gather(handling, closing)
            stats = await mq.stats("q")
            assert (stats.ready, stats.in_flight) == (0, 0)

    asyncio.run(main())


def test_what_the_closing_task_holds_goes_back_at_once(url: str) -> None:
    async def main() -> None:
        async with aio.connect(url) as mq, mq.producer("q") as producer:
            await producer.send("x")
            async with asyncio.timeout(PATIENCE / 2):
                async with mq.consumer("q") as consumer:
                    delivery = await consumer.receive(timeout=PATIENCE)
                assert delivery is not None
                with pytest.raises((StaleDeliveryError, AlreadySettledError)):
                    await delivery.ack()
            assert (await mq.stats("q")).ready == 1

    asyncio.run(main())


def test_a_worker_that_is_cancelled_finishes_what_runs(url: str) -> None:
    async def main() -> None:
        async with aio.connect(url) as mq, mq.producer("q") as producer:
            await producer.send_many(range(5))
            begun, go_on, done = asyncio.Event(), asyncio.Event(), []

            async def handle(delivery: aio.Delivery) -> None:
                begun.set()
                await go_on.wait()
                done.append(delivery.message.payload)

            async with mq.consumer("q") as consumer:
                worker = asyncio.create_task(aio.run(consumer, handle))
                await begun.wait()
                worker.cancel()
                await asyncio.sleep(0.01)
                go_on.set()
                with pytest.raises(asyncio.CancelledError):
                    await worker
            assert done == [0]
            assert (await mq.stats("q")).ready == 4

    asyncio.run(main())
