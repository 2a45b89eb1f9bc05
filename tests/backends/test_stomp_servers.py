"""Artemis and RabbitMQ's plugin beside ActiveMQ: each started as the command does, killed, and asked for its quirks."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("stomp")

from stomp_sessions import MOMENT, T, messages, open_session, receive

import mqlayer
from mqlayer.driver import Ack, Counts, Incoming, Release, Support
from mqlayer.errors import UnsupportedError
from mqlayer.testing.brokers.catalogue import find_broker
from mqlayer.testing.ports import free_port
from mqlayer.testing.processes import ProcessServer


@dataclass(frozen=True, slots=True)
class Running:
    name: str
    url: str
    server: ProcessServer


@pytest.fixture(scope="module", params=["artemis", "rabbitmq-stomp"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    broker = find_broker(request.param)
    if broker.find() is None and not os.environ.get("CI"):
        pytest.skip(f"{broker.title} is not installed: mqlayer brokers install {broker.name}")
    port = free_port()
    with broker.start(tmp_path_factory.mktemp(broker.name), port) as server:
        yield Running(broker.name, broker.url(port), server)


def test_what_it_can_do(running: Running) -> None:
    with mqlayer.connect(running.url) as mq:
        can = mq.capabilities
    assert can.durable
    assert can.counts is (Counts.FLAG if running.name == "artemis" else Counts.NOTHING)
    assert can.delay is (Support.NATIVE if running.name == "artemis" else Support.UNSUPPORTED)
    assert can.topics is can.group_id is can.stats is Support.UNSUPPORTED


def test_topics_are_refused(running: Running) -> None:
    with mqlayer.connect(running.url) as mq, pytest.raises(UnsupportedError):
        mq.producer(topic="news").send("x")


def test_a_batch_of_many_kinds_comes_back(running: Running) -> None:
    queue = f"kinds-{os.getpid()}"
    payloads = ["text äöü \U0001f600", {"n": 1}, b"\0\xff\n", "", b"", "nul \0"]
    headers = {"a:b": "c\nd\\", "n": 2**70, "empty": "", "ünï": "€"}
    with mqlayer.connect(running.url) as mq:
        report = mq.producer(queue).send_many(mqlayer.Message(payload, headers=headers) for payload in payloads)
        assert not report.failures
        with mq.consumer(queue) as consumer:
            for payload in payloads:
                with consumer.receive(timeout=T) as message:
                    assert message.payload == payload
                    assert dict(message.headers) == headers


def test_a_window_is_a_bound_and_what_it_brought_goes_back_uncounted(running: Running) -> None:
    session, other, queue = open_session(running.url), open_session(running.url), f"window-{os.getpid()}"
    ids = [str(number) for number in range(20)]
    assert session.send(queue, messages(*ids), T) == {}
    session.subscribe(queue, 5, None, T)
    session.receive(0, MOMENT)
    other.subscribe(queue, 20, None, T)
    came = receive(other, 15)
    assert other.receive(5, MOMENT) == [], "five are on their way to the first"
    session.close(T)
    came += receive(other, 5)
    assert sorted(incoming.message.id or "" for incoming in came) == sorted(ids)
    assert not any(incoming.redelivered for incoming in came)
    assert other.settle([Ack(incoming) for incoming in came], T) == {}
    other.close(T)


def test_a_release(running: Running) -> None:
    session, queue = open_session(running.url), f"release-{os.getpid()}"
    session.send(queue, messages("a", "b"), T)
    session.subscribe(queue, 1, None, T)
    [came] = receive(session, 1)
    failures = session.settle([Release(came)], T)
    if session.capabilities.release is Support.UNSUPPORTED:
        assert isinstance(failures[0], UnsupportedError)
    else:
        assert failures == {}
        [came] = receive(session, 1)
        assert (came.message.id, came.redelivered) == ("a", False), "it is first again, and nothing is counted"
    assert session.settle([Ack(came)], T) == {}
    [last] = receive(session, 1)
    assert session.settle([Ack(last)], T) == {}
    session.close(T)


def test_a_delivery_that_its_connection_lost_comes_again(running: Running) -> None:
    session, queue = open_session(running.url), f"lost-{os.getpid()}"
    session.send(queue, messages("a"), T)
    session.subscribe(queue, 1, None, T)
    receive(session, 1)
    session.abort()
    session.close(0.0)
    other = open_session(running.url)
    other.subscribe(queue, 1, None, T)
    [again] = receive(other, 1)
    assert told(again, other.capabilities.counts)
    other.settle([Ack(again)], T)
    other.close(T)


def told(incoming: Incoming, counts: Counts) -> bool:
    return incoming.redelivered is (counts is Counts.FLAG)


@pytest.mark.parametrize("name", ["activemq", "artemis", "rabbitmq-stomp"])
def test_killed_and_started_again_on_the_same_data(name: str, tmp_path: Path) -> None:
    broker = find_broker(name)
    if broker.find() is None and not os.environ.get("CI"):
        pytest.skip(f"{broker.title} is not installed: mqlayer brokers install {broker.name}")
    port = free_port()
    with broker.start(tmp_path, port) as server:
        with mqlayer.connect(broker.url(port)) as mq:
            mq.producer("before").send("made well before the kill")
            mq.consumer("before").close()
        _rest(broker.url(port))
        ending = server.kill()
        assert ending.exit_status == -9
        assert ending.port_refused
        server.start()
        with mqlayer.connect(broker.url(port)) as mq, mq.consumer("before") as consumer:
            delivery = consumer.receive(timeout=T)
            assert delivery is not None
            assert delivery.message.payload == "made well before the kill"
            delivery.ack()


def _rest(url: str) -> None:
    """RabbitMQ forgets a queue that is killed within about a second of its making."""
    session = open_session(url)
    session.receive(0, 2.5)
    session.close(T)
