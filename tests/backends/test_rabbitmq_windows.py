"""A window that grows hands over more, whatever the queue was declared with and by whom.

Growth adds an AMQP consumer; on a queue with a single active consumer the added one would never get anything.
"""

import os
import random
import time
import uuid
from collections.abc import Iterator

import pytest

from mqlayer.backends.rabbitmq import RabbitFactory, RabbitOptions
from mqlayer.backends.rabbitmq_wire import queue_arguments
from mqlayer.clock import SystemClock
from mqlayer.driver import Ack, Incoming, Outgoing, QueueOptions, Session
from mqlayer.errors import QueueNotFoundError
from mqlayer.testing.brokers.rabbitmq import find_rabbitmq, rabbitmq_server
from mqlayer.testing.ports import LOOPBACK, free_port
from mqlayer.urls import parse_url

pytestmark = pytest.mark.suite
if find_rabbitmq() is None and not os.environ.get("CI"):
    pytest.skip("RabbitMQ is not installed: apt-get install rabbitmq-server", allow_module_level=True)

TIMEOUT = 20.0  # used up only if something is wrong
MOMENT = 0.3  # in which a broker pushes what it has


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    number = free_port()
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq") / "data", number):
        yield number


def open_session(port: int, kind: str) -> Session:
    options = RabbitOptions(queue_type=kind, declare_settle=0.0)  # type: ignore[arg-type]
    backend = RabbitFactory(parse_url(f"amqp://{LOOPBACK}:{port}/"), options, clock=SystemClock())
    return backend.session(TIMEOUT, lambda _when: None)


@pytest.fixture
def queue(port: int) -> Iterator[str]:
    name = f"q-{uuid.uuid4().hex[:8]}"
    yield name
    session = open_session(port, "quorum")
    session.delete(name, TIMEOUT)
    session.close(TIMEOUT)


def declare_raw(port: int, queue: str, arguments: dict[str, object]) -> None:
    import pika

    with pika.BlockingConnection(pika.ConnectionParameters(LOOPBACK, port)) as connection:
        connection.channel().queue_declare(queue, durable=True, arguments=arguments)


def take(session: Session, count: int) -> list[str | None]:
    deadline = time.monotonic() + TIMEOUT
    found: list[Incoming] = []
    while len(found) < count and time.monotonic() < deadline:
        found += session.receive(count - len(found), deadline - time.monotonic())
    return [incoming.message.id for incoming in found]


def numbers(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last)]


ORDERED = QueueOptions(ordered=True)
SINGLE = {"x-single-active-consumer": True}


@pytest.mark.parametrize("consumer_kind", ["quorum", "classic"])
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(queue_arguments(kind, QueueOptions(ordered=ordered, temporary=temporary)), id=name)
        for kind in ("quorum", "classic")
        for ordered in (True, False)
        for temporary in (True, False)
        for name in [f"{kind}{'-ordered' * ordered}{'-temporary' * temporary}"]
    ]
    + [
        pytest.param({}, id="foreign"),
        pytest.param(SINGLE, id="foreign-single"),
        pytest.param({"x-queue-type": "quorum"} | SINGLE, id="foreign-quorum-single"),
        pytest.param({"x-max-length": 1000} | SINGLE, id="foreign-single-with-a-limit"),
    ],
)
def test_a_window_that_grows_hands_over_more(
    port: int, queue: str, arguments: dict[str, object], consumer_kind: str
) -> None:
    declare_raw(port, queue, arguments)
    session = open_session(port, consumer_kind)
    assert session.send(queue, [Outgoing(number, b"body") for number in numbers(0, 9)], TIMEOUT) == {}
    session.subscribe(queue, 1, None, TIMEOUT)
    assert take(session, 1) == numbers(0, 1)
    session.subscribe(queue, 2, None, TIMEOUT)
    assert take(session, 1) == numbers(1, 2)
    session.subscribe(queue, 6, None, TIMEOUT)
    assert take(session, 4) == numbers(2, 6)
    session.close(TIMEOUT)


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_a_single_consumer_gets_on_as_what_it_held_before_is_settled(port: int, queue: str, kind: str) -> None:
    declare_raw(port, queue, queue_arguments(kind, ORDERED))
    session = open_session(port, kind)
    assert session.send(queue, [Outgoing(number, b"body") for number in numbers(0, 60)], TIMEOUT) == {}
    session.subscribe(queue, 3, None, TIMEOUT)
    held = list(session.receive(3, TIMEOUT))
    session.subscribe(queue, 5, None, TIMEOUT)
    seen = [incoming.message.id for incoming in held]
    while len(seen) < 60:
        got = session.receive(5, TIMEOUT)
        assert got, f"starved after {len(seen)}"
        seen += [incoming.message.id for incoming in got]
        held += got
        assert len(held) <= 5
        assert session.settle([Ack(held.pop(0))], TIMEOUT) == {}
    assert seen == numbers(0, 60)
    session.close(TIMEOUT)


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_a_subscription_without_a_group_grows_too(port: int, kind: str) -> None:
    session = open_session(port, kind)
    queue = session.bind("news", None, TIMEOUT)
    assert session.publish("news", [Outgoing(number, b"body") for number in numbers(0, 5)], TIMEOUT) == {}
    session.subscribe(queue, 1, None, TIMEOUT)
    assert take(session, 1) == numbers(0, 1)
    session.subscribe(queue, 3, None, TIMEOUT)
    assert take(session, 2) == numbers(1, 3)
    assert session.receive(10, MOMENT) == []
    session.close(TIMEOUT)


def test_a_queue_that_went_and_is_subscribed_again_leaves_the_others_alone(port: int, queue: str) -> None:
    other = f"{queue}-gone"
    declare_raw(port, queue, {})
    declare_raw(port, other, {})
    session, deleting = open_session(port, "classic"), open_session(port, "classic")
    for name in (queue, other):
        session.subscribe(name, 2, None, TIMEOUT)
    deleting.delete(other, TIMEOUT)
    with pytest.raises(QueueNotFoundError, match=other):
        session.receive(1, TIMEOUT)
    with pytest.raises(QueueNotFoundError):
        session.subscribe(other, 2, None, TIMEOUT)
    assert session.send(queue, [Outgoing("0", b"body")], TIMEOUT) == {}
    assert take(session, 1) == ["0"]
    for one in (session, deleting):
        one.close(TIMEOUT)


@pytest.mark.parametrize("kind", ["quorum", "classic"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_windows_that_sway_while_deliveries_come_end_no_connection(port: int, queue: str, kind: str, seed: int) -> None:
    """RabbitMQ 3.10's channel does not survive the cancel of a consumer that it has not yet said to have begun."""
    count = 1500
    chance = random.Random(seed)
    declare_raw(port, queue, queue_arguments(kind, QueueOptions()))
    session = open_session(port, kind)
    assert session.send(queue, [Outgoing(number, b"body") for number in numbers(0, count)], TIMEOUT) == {}
    held: list[Incoming] = []
    seen: set[str | None] = set()
    deadline = time.monotonic() + 3 * TIMEOUT
    while len(seen) < count and time.monotonic() < deadline:
        session.subscribe(queue, chance.choice([1, 2, 3, 5, 20, 100]), None, TIMEOUT)
        for _ in range(chance.randrange(4)):
            got = session.receive(100, 0.0)
            held += got
            seen.update(incoming.message.id for incoming in got)
            chance.shuffle(held)
            share, held = held[: len(held) // 2], held[len(held) // 2 :]
            assert session.settle([Ack(incoming) for incoming in share], TIMEOUT) == {}
    assert seen == set(numbers(0, count))
    session.close(TIMEOUT)
