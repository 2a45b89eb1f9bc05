"""What users of RabbitMQ are promised as a whole: long handlers, and programs that go on through kills."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import mqlayer
from mqlayer.errors import SendError
from mqlayer.testing.brokers.rabbitmq import find_rabbitmq, rabbitmq_server
from mqlayer.testing.ports import free_port
from mqlayer.testing.processes import ProcessServer

pytestmark = pytest.mark.suite
if find_rabbitmq() is None and not os.environ.get("CI"):
    pytest.skip("RabbitMQ is not installed: apt-get install rabbitmq-server", allow_module_level=True)

HEARTBEAT = 1
LIMIT = 120.0


class Rabbit:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.server: ProcessServer = rabbitmq_server(folder, self.port)

    def url(self, **options: object) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"amqp://127.0.0.1:{self.port}/?{query}"

    def kill_and_restart(self) -> None:
        self.server.kill(signal.SIGKILL)
        self.server.start()


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbit]:
    one = Rabbit(tmp_path_factory.mktemp("rabbitmq"))
    with one.server:
        yield one


def test_handlers_that_block_for_three_heartbeats_lose_nothing_and_keep_the_connection(rabbit: Rabbit) -> None:
    handled: Counter[int] = Counter()
    counts: list[int] = []
    lock = threading.Lock()
    with mqlayer.connect(rabbit.url(heartbeat=HEARTBEAT)) as mq, mq.producer("slow") as producer:
        assert not producer.send_many(range(40)).failures
        with mq.consumer("slow") as consumer:

            def handle(delivery: mqlayer.Delivery) -> None:
                threading.Event().wait(3 * HEARTBEAT)
                with lock:
                    handled[delivery.message.payload] += 1
                    counts.append(delivery.delivery_count)
                    if len(handled) == 40:
                        consumer.stop()

            mqlayer.run(consumer, handle, concurrency=8)
        health = mq.health()
        assert health.connections_lost == 0, f"the connection did not last: {health}"
        assert mq.stats("slow").ready == 0
    assert handled == Counter(range(40)), "a message was lost, or handled twice"
    assert set(counts) == {1}, "a message was delivered again"


def test_loops_go_on_by_themselves_through_three_kills(rabbit: Rabbit) -> None:
    """No code of the user's notices: the consumer's loop goes on; of each send the producer knows the fate."""
    with mqlayer.connect(rabbit.url()) as setup:
        setup.declare("loop")
    safe: set[int] = set()
    not_safe: dict[int, SendError] = {}
    seen: Counter[int] = Counter()
    stop = threading.Event()
    trouble: list[BaseException] = []

    def produce() -> None:
        with mqlayer.connect(rabbit.url()) as mq, mq.producer("loop") as producer:
            number = 0
            while not stop.is_set():
                try:
                    producer.send(number, timeout=3.0)
                except SendError as error:
                    not_safe[number] = error
                else:
                    safe.add(number)
                number += 1

    def consume() -> None:
        with mqlayer.connect(rabbit.url(prefetch=20)) as mq, mq.consumer("loop") as consumer:
            stoppers.append(consumer.stop)
            for delivery in consumer:
                with delivery as message:
                    seen[message.payload] += 1

    def guarded(function: object) -> None:
        try:
            function()  # type: ignore[operator]
        except BaseException as error:
            trouble.append(error)

    stoppers: list[object] = []
    threads = [threading.Thread(target=guarded, args=(one,), daemon=True) for one in (produce, consume)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        before = len(safe)
        _wait_until(lambda before=before: len(safe) > before + 50, "messages flow")
        rabbit.kill_and_restart()
    before, received = len(safe), sum(seen.values())
    _wait_until(lambda: len(safe) > before + 50 and sum(seen.values()) > received, "both go on after the last kill")
    stop.set()
    threads[0].join(LIMIT)
    _wait_until(lambda: safe <= set(seen), "all that was said to be safe has arrived")
    stoppers[0]()  # type: ignore[operator]
    threads[1].join(LIMIT)
    assert not trouble, f"a loop ended: {trouble!r}"
    for number, error in not_safe.items():
        assert error.fate in mqlayer.errors.Fate
        assert error.message_id
        if error.fate is not mqlayer.errors.Fate.UNKNOWN:
            assert number not in seen, f"{number} arrived, and was said to be {error.fate.value}"


def _wait_until(condition: object, what: str) -> None:
    end = time.monotonic() + LIMIT
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, f"not within {LIMIT:g} s: {what}"
        threading.Event().wait(0.05)
