"""``sqs://`` on a real ElasticMQ: what a raw client sees, what comes late, what an idle consumer asks for."""

import json
import threading
import time
import uuid
from collections.abc import Iterator

import pytest
from sqs_sessions import (
    PLAIN,
    Counted,
    ElasticMQ,
    T,
    drain,
    ids,
    messages,
    needs_elasticmq,
    new_queue,
    receive,
    running,
)

import mqlayer
from mqlayer.driver import Ack, Declare, Extend, Nack, Outgoing, QueueOptions, Release
from mqlayer.errors import ArgumentError, ConnectionLostError, QueueNotFoundError, StaleDeliveryError, UnroutableError

pytestmark = needs_elasticmq


@pytest.fixture(scope="module")
def the_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ElasticMQ]:
    with running(tmp_path_factory.mktemp("elasticmq")) as broker:
        yield broker


@pytest.fixture
def broker(the_broker: ElasticMQ) -> Iterator[ElasticMQ]:
    yield the_broker
    the_broker.close_sessions()


# --- raw clients -----------------------------------------------------------------------------------------------------


def test_a_raw_client_reads_what_was_sent(broker: ElasticMQ) -> None:
    session = broker.session()
    queue = new_queue(session)
    sent = Outgoing(
        "i-1", b'{"id": 42}', {"tenant": "pbs", "n": 3}, content_type="application/json", correlation_id="c"
    )
    assert session.send(queue, [sent], T) == {}
    raw = broker.raw()
    url = raw.get_queue_url(QueueName=queue)["QueueUrl"]
    [came] = raw.receive_message(QueueUrl=url, MessageAttributeNames=["All"], WaitTimeSeconds=2)["Messages"]
    assert came["Body"] == '{"id": 42}'
    assert came["MessageAttributes"]["tenant"]["StringValue"] == "pbs"
    assert came["MessageAttributes"]["n"] == {"StringValue": "3", "DataType": "Number"}
    more = json.loads(came["MessageAttributes"]["mq-more"]["StringValue"])
    assert more == {"mq-id": "i-1", "mq-content-type": "application/json", "mq-correlation-id": "c"}


def test_what_a_raw_client_sends_is_delivered(broker: ElasticMQ) -> None:
    session = broker.session()
    queue = new_queue(session)
    raw = broker.raw()
    url = raw.get_queue_url(QueueName=queue)["QueueUrl"]
    envelope = json.dumps({"Type": "Notification", "TopicArn": "arn:aws:sns:x:1:t", "Message": "news"})
    attributes = {
        "text": {"DataType": "String", "StringValue": "x"},
        "odd": {"DataType": "Number.custom", "StringValue": "12.5"},
        "raw": {"DataType": "Binary.gzip", "BinaryValue": b"\x1f\x8b"},
        "mq-more": {"DataType": "String", "StringValue": "nonsense"},
    }
    raw.send_message(QueueUrl=url, MessageBody=envelope, MessageAttributes=attributes)
    raw.send_message(QueueUrl=url, MessageBody="plain", MessageGroupId="fair")
    found = {one.message.body: one.message for one in drain(session, queue)}
    assert found[envelope.encode()].id is None
    assert dict(found[envelope.encode()].headers) == {"text": "x", "odd": 12.5, "raw": b"\x1f\x8b"}
    assert found[b"plain"].group_id == "fair"


def test_a_foreign_message_of_a_fair_queue_can_be_nacked(broker: ElasticMQ) -> None:
    with mqlayer.connect(broker.url()) as mq:
        queue = f"q-{uuid.uuid4().hex}"
        mq.declare(queue)
        raw = broker.raw()
        raw.send_message(
            QueueUrl=raw.get_queue_url(QueueName=queue)["QueueUrl"], MessageBody="fair", MessageGroupId="tenant"
        )
        with mq.consumer(queue) as consumer:
            first = consumer.receive(timeout=T)
            assert first is not None
            first.nack()
            again = consumer.receive(timeout=T)
            assert again is not None
            assert (again.delivery_count, again.message.failures, again.message.group_id) == (2, 1, "tenant")
            again.ack()


# --- partial failures ------------------------------------------------------------------------------------------------


def test_a_batch_with_one_oversized_delivers_nine_and_reports_one(broker: ElasticMQ) -> None:
    with mqlayer.connect(broker.url()) as mq:
        queue = f"q-{uuid.uuid4().hex}"
        batch = [b"small"] * 10
        batch[3] = bytes(mq.capabilities.body_max_bytes or 0) + b"x"
        with mq.producer(queue) as producer:
            report = producer.send_many(batch)
        assert {place: type(error).__name__ for place, error in report.failures.items()} == {3: "MessageTooLargeError"}
        with mq.consumer(queue) as consumer:
            came = []
            while (delivery := consumer.receive(timeout=2.0)) is not None:
                came.append(delivery.message.body)
                delivery.ack()
        assert came == [b"small"] * 9


def test_large_messages_are_parted_into_requests(broker: ElasticMQ) -> None:
    backend = broker.backend()
    session = broker.session(backend=backend)
    queue = new_queue(session)
    counted = Counted(backend)
    batch = [Outgoing(str(n), b"x" * 300_000) for n in range(7)]
    assert session.send(queue, batch, T) == {}
    assert counted.requests["SendMessageBatch"] == 3
    assert len(drain(session, queue)) == 7


# --- leases ----------------------------------------------------------------------------------------------------------


def test_a_handler_of_three_leases_finishes_without_a_second_delivery(broker: ElasticMQ) -> None:
    with mqlayer.connect(broker.url()) as mq, mqlayer.connect(broker.url()) as other:
        queue = f"q-{uuid.uuid4().hex}"
        mq.producer(queue).send("long")
        with mq.consumer(queue, lease=2.0) as consumer, other.consumer(queue, lease=2.0) as second:
            delivery = consumer.receive(timeout=T)
            assert delivery is not None
            assert second.receive(timeout=6.5) is None
            delivery.ack()
            assert second.receive(timeout=2.5) is None


def test_a_receipt_whose_lease_is_over_is_not_used(broker: ElasticMQ) -> None:
    backend = broker.backend()
    first, second = broker.session(backend=backend), broker.session()
    queue = new_queue(first)
    first.send(queue, messages("a"), T)
    first.subscribe(queue, 1, 1.0, T)
    [late] = receive(first, 1)
    second.subscribe(queue, 1, 30.0, T)
    [again] = receive(second, 1)
    assert again.broker_count == 2
    counted = Counted(backend)
    for verdict in (Ack(late), Extend(late, 30.0)):
        assert isinstance(first.settle([verdict], T)[0], StaleDeliveryError)
    assert not counted.requests, "nothing was asked of the service"
    assert second.settle([Ack(again)], T) == {}


def test_extensions_end_after_twelve_hours_in_all(broker: ElasticMQ) -> None:
    session = broker.session()
    queue = new_queue(session)
    session.send(queue, messages("a"), T)
    session.subscribe(queue, 1, None, T)
    [held] = receive(session, 1)
    assert session.settle([Extend(held, 43_000.0)], T) == {}
    assert isinstance(session.settle([Extend(held, 43_201.0)], T)[0], ArgumentError)
    assert session.settle([Ack(held)], T) == {}


@pytest.mark.parametrize("lease", [43_201.0])
def test_a_lease_beyond_twelve_hours_is_refused(broker: ElasticMQ, lease: float) -> None:
    session = broker.session()
    with pytest.raises(ArgumentError):
        session.subscribe(new_queue(session), 1, lease, T)


# --- polls -----------------------------------------------------------------------------------------------------------


def test_an_idle_consumer_makes_one_request_for_each_wait(broker: ElasticMQ) -> None:
    backend = broker.backend("&wait=2")
    session = broker.session(backend=backend)
    session.subscribe(new_queue(session), 100, None, T)
    receive(session, 1, timeout=2.0)  # the first polls are shorter
    counted = Counted(backend)
    receive(session, 1, timeout=8.0)
    assert counted.requests["ReceiveMessage"] <= 8 / 2 + 1
    assert sum(counted.requests.values()) == counted.requests["ReceiveMessage"]


def test_what_an_abandoned_poll_brings_goes_to_another_consumer_of_the_connection(broker: ElasticMQ) -> None:
    backend = broker.backend()
    first, second = broker.session(backend=backend), broker.session(backend=backend)
    queue = new_queue(first)
    first.subscribe(queue, 10, None, T)
    receive(first, 1, timeout=0.3)  # a poll is out
    first.unsubscribe(queue, T)
    second.send(queue, messages("a"), T)
    second.subscribe(queue, 10, None, T)
    [came] = receive(second, 1)
    assert (came.message.id, came.broker_count) == ("a", 1)
    assert second.settle([Ack(came)], T) == {}


GROUPED = "&fifo=true "


@pytest.mark.parametrize("fifo", ["", "&fifo=true", GROUPED])
def test_what_an_abandoned_poll_brings_goes_back(broker: ElasticMQ, fifo: str) -> None:
    first, second = broker.session(fifo.strip()), broker.session(fifo.strip())
    queue = new_queue(first)
    first.subscribe(queue, 10, None, T)
    receive(first, 1, timeout=0.3)
    begun = time.monotonic()
    first.close(T)
    assert time.monotonic() - begun < 1.0
    second.send(queue, messages("a", group_id="g" if fifo == GROUPED else None), T)
    second.subscribe(queue, 10, None, T)
    [came] = receive(second, 1)
    assert time.monotonic() - begun < 5.0
    assert (came.message.id, came.broker_count) == ("a", 2 if fifo == GROUPED else 1)
    assert second.settle([Ack(came)], T) == {}
    assert second.receive(10, 1.5) == ()


def test_wake_and_abort_end_a_receive_at_once(broker: ElasticMQ) -> None:
    session = broker.session()
    session.subscribe(new_queue(session), 1, None, T)
    begun = time.monotonic()
    threading.Timer(0.3, session.wake).start()
    assert session.receive(1, T) == ()
    threading.Timer(0.3, session.abort).start()
    with pytest.raises(ConnectionLostError):
        session.receive(1, T)
    assert time.monotonic() - begun < 2.0


# --- queues ----------------------------------------------------------------------------------------------------------


def test_a_temporary_queue_goes_with_its_session(broker: ElasticMQ) -> None:
    session, other = broker.session(), broker.session()
    session.declare("reply.1", QueueOptions(temporary=True), Declare.ENSURE, T)
    other.declare("reply.1", PLAIN, Declare.CHECK, T)
    session.close(T)
    with pytest.raises(QueueNotFoundError):
        other.declare("reply.1", PLAIN, Declare.CHECK, T)


def test_a_queue_that_another_program_made_is_used_as_it_is(broker: ElasticMQ) -> None:
    raw = broker.raw()
    name = f"q-{uuid.uuid4().hex}"
    raw.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "7"})
    session = broker.session()
    session.declare(name, PLAIN, Declare.ENSURE, T)
    assert session.send(name, messages("a"), T) == {}
    assert ids(drain(session, name)) == ["a"]


def test_a_queue_that_goes_is_noticed(broker: ElasticMQ) -> None:
    session, other = broker.session(), broker.session()
    queue = new_queue(session)
    assert session.send(queue, messages("a"), T) == {}
    other.delete(queue, T)
    assert isinstance(session.send(queue, messages("b"), T)[0], UnroutableError)
    with pytest.raises(QueueNotFoundError):
        session.subscribe(queue, 1, None, T)


# --- FIFO ------------------------------------------------------------------------------------------------------------


def test_a_nack_keeps_its_place_in_a_fifo_group_and_is_no_suspect(broker: ElasticMQ) -> None:
    session = broker.session("&fifo=true")
    queue = new_queue(session)
    session.send(queue, messages(*"ab", group_id="g"), T)
    session.subscribe(queue, 1, None, T)
    [head] = receive(session, 1)
    assert session.settle([Nack(head, 1.0)], T) == {}
    [again] = receive(session, 1)
    assert (again.message.id, again.broker_count, again.message.trail.failures) == ("a", 1, 1)
    assert session.settle([Release(again)], T) == {}
    [once_more] = receive(session, 1)
    assert (once_more.message.id, once_more.broker_count, once_more.message.trail.failures) == ("a", 1, 1)
    assert session.settle([Ack(once_more)], T) == {}
    [tail] = receive(session, 1)
    assert tail.message.id == "b"
    assert session.settle([Ack(tail)], T) == {}


def test_what_has_no_group_is_released_uncounted_for_everybody(broker: ElasticMQ) -> None:
    first, second = broker.session("&fifo=true"), broker.session("&fifo=true")
    queue = new_queue(first)
    first.send(queue, messages("a"), T)
    first.subscribe(queue, 1, None, T)
    [held] = receive(first, 1)
    assert first.settle([Release(held)], T) == {}
    first.close(T)
    second.subscribe(queue, 1, None, T)
    [came] = receive(second, 1)
    assert (came.message.id, came.broker_count, came.message.trail.crashes) == ("a", 1, 0)
    assert second.settle([Ack(came)], T) == {}


def test_another_connection_counts_what_was_given_back_by_visibility(broker: ElasticMQ) -> None:
    first, second = broker.session("&fifo=true"), broker.session("&fifo=true")
    queue = new_queue(first)
    first.send(queue, messages("a", group_id="g"), T)
    first.subscribe(queue, 1, None, T)
    [held] = receive(first, 1)
    first.settle([Nack(held)], T)
    first.close(T)
    second.subscribe(queue, 1, None, T)
    [came] = receive(second, 1)
    assert came.broker_count in (2, 3), "SQS counts each time that it handed it over"
    assert second.settle([Ack(came)], T) == {}


def test_a_message_that_is_sent_again_is_there_once(broker: ElasticMQ) -> None:
    session = broker.session("&fifo=true")
    queue = new_queue(session)
    one = Outgoing("a", b"x", sent_at=1.0)
    again = one._replace(trail=one.trail._replace(resent=1))
    assert session.send(queue, [one], T) == {}
    assert session.send(queue, [again], T) == {}
    assert ids(drain(session, queue)) == ["a"]


def test_the_programs_of_the_readme_run(broker: ElasticMQ) -> None:
    import subprocess
    import sys
    from pathlib import Path

    program = Path(__file__).parents[2] / "examples" / "orders.py"
    done = subprocess.run(
        [sys.executable, program, broker.url()], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
