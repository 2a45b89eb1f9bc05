"""An ordered queue has one active consumer at a time, and two that share it keep its order between them."""

import os
import threading
import uuid
from collections.abc import Iterator

import pytest

import mqlayer
from mqlayer.testing.brokers.rabbitmq import find_rabbitmq, rabbitmq_server
from mqlayer.testing.ports import LOOPBACK, free_port

pytestmark = pytest.mark.suite
if find_rabbitmq() is None and not os.environ.get("CI"):
    pytest.skip("RabbitMQ is not installed: apt-get install rabbitmq-server", allow_module_level=True)

COUNT = 300
TIMEOUT = 60.0  # used up only if something is wrong


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    number = free_port()
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq") / "data", number):
        yield number


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_two_consumers_of_an_ordered_queue_never_overlap(port: int, kind: str) -> None:
    url = f"amqp://{LOOPBACK}:{port}/?queue_type={kind}&declare_settle=0"
    queue = f"ordered-{uuid.uuid4().hex[:8]}"
    seen: list[int] = []
    busy = threading.Lock()
    overlaps: list[int] = []
    done = threading.Event()

    def consume() -> None:
        with mqlayer.connect(url) as own, own.consumer(queue) as consumer:
            while not done.is_set():
                delivery = consumer.receive(timeout=0.2)
                if delivery is None:
                    continue
                with delivery as message:
                    if not busy.acquire(blocking=False):
                        overlaps.append(message.payload)
                        continue
                    seen.append(message.payload)
                    if len(seen) == COUNT:
                        done.set()
                    busy.release()

    with mqlayer.connect(url) as mq:
        mq.declare(queue, ordered=True)
        mq.producer(queue).send_many(range(COUNT))
        threads = [threading.Thread(target=consume) for _ in range(2)]
        for thread in threads:
            thread.start()
        done.wait(TIMEOUT)
        done.set()
        for thread in threads:
            thread.join(TIMEOUT)
    assert overlaps == []
    assert seen == list(range(COUNT))


def test_a_session_says_whether_a_queue_is_ordered(port: int) -> None:
    from rabbit_sessions import open_session

    from mqlayer.driver import Declare, QueueOptions

    session = open_session(f"amqp://{LOOPBACK}:{port}/?declare_settle=0")
    for ordered in (True, False):
        queue = f"q-{uuid.uuid4().hex[:8]}"
        session.declare(queue, QueueOptions(ordered=ordered), Declare.COMPARE, TIMEOUT)
        for mode in (Declare.ENSURE, Declare.CHECK):
            assert session.declare(queue, QueueOptions(), mode, TIMEOUT).ordered is ordered
    session.close(TIMEOUT)


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_what_comes_between_two_receives_keeps_its_place(port: int, kind: str) -> None:
    url = f"amqp://{LOOPBACK}:{port}/?queue_type={kind}&declare_settle=0"
    sent = [str(number) for number in range(5)]
    with mqlayer.connect(url) as mq:
        for _ in range(5):
            queue = f"between-{uuid.uuid4().hex[:8]}"
            with mq.producer(queue) as producer, mq.consumer(queue) as consumer:
                assert consumer.receive(timeout=0.1) is None
                producer.send_many(sent)
                threading.Event().wait(0.2)  # for what the consumer gets unasked
                seen = []
                for _ in sent:
                    delivery = consumer.receive(timeout=TIMEOUT)
                    assert delivery is not None
                    with delivery as message:
                        seen.append(message.payload)
                assert seen == sent
