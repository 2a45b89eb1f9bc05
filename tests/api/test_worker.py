"""``run``: handlers side by side, poison alone, an orderly end."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest
from fakes import PATIENCE, in_thread

import mqlayer
from mqlayer import Retry, aio
from mqlayer.errors import ArgumentError

FAST = Retry(attempts_max=2, delay=0.0)


class Runner:
    """Runs a worker of either API in a thread; the handler is a plain function of the delivery."""

    def __init__(self, api: Any) -> None:
        self.api = api

    def __call__(self, consumer: Any, handler: Any, concurrency: int = 1) -> Any:
        if self.api.name == "blocking":
            return mqlayer.run(consumer, handler, concurrency=concurrency)

        async def handle(delivery: Any) -> None:
            await asyncio.to_thread(handler, delivery)

        return self.api.run(lambda: aio.run(consumer.inner, handle, concurrency=concurrency))


@pytest.fixture
def run(api: Any) -> Runner:
    return Runner(api)


def test_each_delivery_is_handled_and_acked(mq: Any, run: Runner) -> None:
    seen: list[int] = []
    with mq.producer("q") as producer:
        producer.send_many(range(50))
    consumer = mq.consumer("q")

    def handle(delivery: Any) -> None:
        seen.append(delivery.message.payload)
        if len(seen) == 50:
            consumer.stop()

    run(consumer, handle)
    consumer.close()
    assert seen == list(range(50))
    assert mq.stats("q").ready == mq.stats("q").in_flight == 0


def test_it_survives_its_handlers(mq: Any, run: Runner) -> None:
    calls: list[str] = []
    with mq.producer("q") as producer:
        producer.send_many(["bad", "good"])
    consumer = mq.consumer("q", retry=FAST)

    def handle(delivery: Any) -> None:
        calls.append(delivery.message.payload)
        if len(calls) == 3:
            consumer.stop()
        if delivery.message.payload == "bad":
            raise ZeroDivisionError

    run(consumer, handle)
    consumer.close()
    assert sorted(calls) == ["bad", "bad", "good"]
    assert mq.stats("q.dead").ready == 1


def test_several_run_side_by_side_once_one_is_settled(mq: Any, run: Runner) -> None:
    together = threading.Barrier(4)
    running: list[int] = []
    most: list[int] = []
    with mq.producer("q") as producer:
        producer.send_many(range(5))
    consumer = mq.consumer("q")
    done: list[int] = []

    def handle(delivery: Any) -> None:
        running.append(1)
        most.append(len(running))
        if delivery.message.payload > 0:
            together.wait(PATIENCE)
        running.pop()
        done.append(delivery.message.payload)
        if len(done) == 5:
            consumer.stop()

    run(consumer, handle, concurrency=4)
    consumer.close()
    assert most[0] == 1
    assert max(most) == 4


def test_a_suspect_runs_alone(api: Any, url: str, run: Runner) -> None:
    mq = api.connect(url)
    with mq.producer("q") as producer:
        producer.send_many(range(3))
    crashing = api.connect(url)
    lost = crashing.consumer("q")
    for _ in range(3):
        assert lost.receive(timeout=PATIENCE)
    getattr(lost, "inner", lost)._core.line._session.abort()  # cut, as when its process dies
    assert mq.stats("q").ready == 3
    crashing.close()
    with mq.producer("q") as producer:
        for number in range(3, 12):  # these come first, and still run when the suspects come
            producer.send(number, priority=5)
    consumer = mq.consumer("q", prefetch=4)
    running, done = [], []
    beside_a_suspect: list[int] = []
    lock = threading.Lock()

    def handle(delivery: Any) -> None:
        with lock:
            running.append(delivery)
            if any(one.suspect for one in running) and len(running) > 1:
                beside_a_suspect.append(delivery.message.payload)
        threading.Event().wait(0.01)
        with lock:
            running.remove(delivery)
            done.append(delivery.suspect)
            if len(done) == 12:
                consumer.stop()

    run(consumer, handle, concurrency=4)
    mq.close()
    assert sum(done) == 3
    assert beside_a_suspect == []


def test_a_handler_may_settle_by_itself(mq: Any, run: Runner, api: Any) -> None:
    with mq.producer("q") as producer:
        producer.send("x")
    consumer = mq.consumer("q")

    if api.name == "blocking":

        def handle(delivery: Any) -> None:
            delivery.reject("by hand")
            consumer.stop()

        mqlayer.run(consumer, handle)
    else:

        async def handle_async(delivery: Any) -> None:
            await delivery.reject("by hand")
            consumer.inner.stop()

        api.run(lambda: aio.run(consumer.inner, handle_async))
    assert mq.stats("q.dead").ready == 1


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, True, 1025])
def test_a_concurrency_that_means_nothing_is_refused(mq: Any, run: Runner, concurrency: Any) -> None:
    with mq.consumer("q") as consumer, pytest.raises(ArgumentError):
        run(consumer, lambda delivery: None, concurrency=concurrency)


def test_what_was_fetched_and_not_begun_goes_back_uncounted(mq: Any, run: Runner) -> None:
    with mq.producer("q") as producer:
        producer.send_many(range(20))
    consumer = mq.consumer("q", prefetch=8)
    seen: list[int] = []

    def handle(delivery: Any) -> None:
        seen.append(delivery.message.payload)
        if len(seen) == 3:
            consumer.stop()

    run(consumer, handle)
    consumer.close()
    assert mq.stats("q").ready == 20 - len(seen)
    with mq.consumer("q") as other:
        delivery = other.receive(timeout=PATIENCE)
        assert (delivery.message.payload, delivery.delivery_count) == (len(seen), 1)
        delivery.ack()


def test_a_consumer_that_is_closed_by_its_handler_ends_the_worker(mq: Any) -> None:
    with mq.producer("q") as producer:
        producer.send_many(range(3))
    if not isinstance(mq, mqlayer.Connection):
        pytest.skip("the handlers of the asyncio API are coroutines, which await close()")
    consumer = mq.consumer("q")
    seen: list[int] = []

    def handle(delivery: Any) -> None:
        seen.append(delivery.message.payload)
        delivery.ack()
        consumer.close()

    with in_thread(lambda: mqlayer.run(consumer, handle)) as running:
        running.result()
    assert seen == [0]
    assert mq.stats("q").ready == 2


def test_a_handler_that_wants_the_process_to_end_ends_the_worker(mq: Any) -> None:
    with mq.producer("q") as producer:
        producer.send_many(range(5))
    if not isinstance(mq, mqlayer.Connection):
        pytest.skip("an event loop hands SystemExit to whoever runs it")
    consumer = mq.consumer("q")
    seen: list[int] = []

    def handle(delivery: Any) -> None:
        seen.append(delivery.message.payload)
        raise SystemExit

    with in_thread(lambda: mqlayer.run(consumer, handle)) as running:
        running.result()
    consumer.close()
    assert len(seen) < 5
    assert mq.stats("q").ready == 5


class NotAnExceptionError(BaseException):
    pass


def test_whatever_a_handler_raises_the_worker_ends_in_order(
    mq: Any, run: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    with mq.producer("q") as producer:
        producer.send_many(range(5))
    consumer = mq.consumer("q")

    def handle(delivery: Any) -> None:
        raise NotAnExceptionError

    with in_thread(lambda: run(consumer, handle)) as running:
        running.result()
    consumer.close()
    assert mq.stats("q").ready == 5
    assert "wants the worker to end" in caplog.text


def test_a_cancelled_future_within_a_handler_is_a_failure(url: str) -> None:
    async def handle(delivery: Any) -> None:
        awaited = asyncio.get_running_loop().create_future()
        awaited.cancel()
        await awaited

    async def main() -> list[Any]:
        async with mqlayer.aio.connect(url) as mq, mq.producer("q") as producer:
            await producer.send("x")
            async with mq.consumer("q", retry=Retry(attempts_max=2, delay=0.0)) as consumer:
                working = asyncio.create_task(mqlayer.aio.run(consumer, handle))
                async with mq.consumer("q.dead") as dead:
                    delivery = await dead.receive(timeout=PATIENCE)
                    consumer.stop()
                    await working
                    assert delivery is not None
                    message = delivery.message
                    return [message.payload, message.dead_letter_reason, message.dead_letter_count]

    assert asyncio.run(main()) == ["x", "RuntimeError: what the handler awaited was cancelled", 2]


PROGRAM = """
import asyncio, os, signal, sys, threading
import mqlayer
from mqlayer import aio

watching = mqlayer.connect("memory://shared")
watching.producer("q").send_many(range(50))

def check():
    stats = watching.stats("q")
    print(stats.ready, stats.in_flight, flush=True)

{body}
"""
BLOCKING = """
mq = mqlayer.connect("memory://shared")
begun = threading.Event()

def handle(delivery):
    begun.set()
    if delivery.message.payload == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(0.2)

with mq.consumer("q") as consumer:
    mqlayer.run(consumer, handle, concurrency=4)
check()
"""
ASYNC = """
async def handle(delivery):
    if delivery.message.payload == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.2)

async def main():
    async with aio.connect("memory://shared") as mq, mq.consumer("q") as consumer:
        await aio.run(consumer, handle, concurrency=4)

asyncio.run(main())
check()
"""


def test_a_handler_that_never_returns_does_not_keep_the_process_from_ending() -> None:
    body = """
    begun = threading.Event()

    def handle(delivery):
        begun.set()
        threading.Event().wait()

    consumer = watching.consumer("q")
    threading.Thread(target=mqlayer.run, args=(consumer, handle), daemon=True).start()
    begun.wait()
    watching.close(timeout=0.1)
    """
    program = textwrap.dedent(PROGRAM).replace("{body}", textwrap.dedent(body))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("body", [BLOCKING, ASYNC], ids=["blocking", "asyncio"])
def test_sigterm_drains(body: str) -> None:
    program = textwrap.dedent(PROGRAM).replace("{body}", body)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    ready, in_flight = map(int, done.stdout.split())
    assert in_flight == 0
    assert ready in range(40, 50), "what ran was finished, and the rest was left"


def test_signals_are_as_they_were_afterwards(api: Any, url: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with mqlayer.connect(url) as mq:
        consumer = mq.consumer("q")
        consumer.stop()
        mqlayer.run(consumer, lambda delivery: None)
    assert signal.getsignal(signal.SIGTERM) is before
    assert os.getpid()
