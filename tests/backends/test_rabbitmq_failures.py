"""RabbitMQ in alarm, unreachable, killed or refusing, and beside other clients: what is then known of each message."""

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

if not os.environ.get("CI"):
    pytest.importorskip("pika")

import pika
from rabbit_sessions import (
    MOMENT,
    PLAIN,
    Rabbit,
    T,
    drain,
    failed_with,
    ids,
    messages,
    open_session,
    receive,
    until,
)

import mqlayer
from mqlayer.driver import Ack, Declare, Failures, Outgoing
from mqlayer.errors import (
    AuthenticationError,
    BrokerError,
    ConfigError,
    ConnectFailedError,
    ConnectionLostError,
    MessageTooLargeError,
    MQError,
    NotSentError,
    OutcomeUnknownError,
    RefusedError,
    SendTimeoutError,
)
from mqlayer.testing.brokers.rabbitmq import find_rabbitmq, rabbitmqctl
from mqlayer.testing.ports import LOOPBACK, free_port

if find_rabbitmq() is None and not os.environ.get("CI"):
    pytest.skip("RabbitMQ is not installed: apt-get install rabbitmq-server", allow_module_level=True)

SETTLE = 2.5  # a queue that is killed within about a second of its first declare may come back dead


@pytest.fixture(scope="module")
def the_rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbit]:
    rabbit = Rabbit(tmp_path_factory.mktemp("rabbitmq"))
    with rabbit.server:
        yield rabbit


@pytest.fixture
def rabbit(the_rabbit: Rabbit) -> Iterator[Rabbit]:
    if not the_rabbit.server.alive:
        the_rabbit.server.restart()
    yield the_rabbit
    the_rabbit.close_sessions()


# --- other clients ------------------------------------------------------------------------------------------------------


def test_any_client_reads_what_we_send(rabbit: Rabbit) -> None:
    with mqlayer.connect(f"amqp://{LOOPBACK}:{rabbit.port}/?declare_settle=0&queue_type=classic") as mq:
        mq.declare("shop")
        with mq.producer("shop") as producer:
            id = producer.send(
                {"n": 1, "ü": None},
                headers={"tenant": "pbs", "try": 2},
                correlation_id="c",
                reply_to="r",
                priority=5,
                ttl=60.0,
            )
    with rabbit.raw() as channel:
        _, properties, body = channel.basic_get("shop", auto_ack=True)
    assert json.loads(body or b"") == {"n": 1, "ü": None}
    assert properties is not None
    assert (properties.message_id, properties.content_type, properties.delivery_mode) == (id, "application/json", 2)
    assert (properties.correlation_id, properties.reply_to, properties.priority) == ("c", "r", 5)
    assert abs((properties.timestamp or 0) - time.time()) < 60
    assert 0 < int(properties.expiration or 0) <= 60_000
    headers = {name: value for name, value in (properties.headers or {}).items() if not name.startswith("mq-")}
    assert headers == {"tenant": "pbs", "try": 2}


def test_we_deliver_what_any_client_sends(rabbit: Rabbit) -> None:
    session = rabbit.session()
    queue = rabbit.queue(session)
    when = datetime(2026, 1, 2, tzinfo=UTC)
    headers = {"deep": {"list": [1, {"x": "y"}]}, "when": when, "x-death": [{"count": 1}], "n": -5}
    everything = pika.BasicProperties(
        "text/x", "gzip", headers, 1, 3, "c", "r", None, "m", 1_700_000_000, "kind", "guest"
    )
    with rabbit.raw() as channel:
        channel.basic_publish("", queue, b"", None)
        channel.basic_publish("", queue, b"\xff\x00", everything)
    session.subscribe(queue, 10, None, T)
    bare, full = receive(session, 2)
    assert bare.message == Outgoing(None, b"")
    message = full.message
    assert message.body == b"\xff\x00"
    assert (message.id, message.content_type, message.correlation_id, message.reply_to) == ("m", "text/x", "c", "r")
    assert (message.priority, message.sent_at) == (3, 1_700_000_000.0)
    assert message.headers["deep"] == '{"list": [1, {"x": "y"}]}'
    assert str(message.headers["when"]).startswith("2026-01-02")
    assert message.headers["n"] == -5
    assert set(message.headers) == {"deep", "when", "n"}
    assert session.settle([Ack(bare), Ack(full)], T) == {}


class _Written(bytes):
    """A header's value as it stands on the wire."""


def _nested(depth: int) -> bytes:
    written = b"t\x01"
    for _ in range(depth):
        written = b"A" + len(written).to_bytes(4, "big") + written
    return written


@pytest.mark.parametrize(
    "written",
    [b"T" + (1_700_000_000_000).to_bytes(8, "big"), _nested(2000)],
    ids=["a timestamp in milliseconds", "two thousand nested arrays"],
)
def test_a_foreign_message_that_pika_cannot_read_ends_no_connection(
    rabbit: Rabbit, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = rabbit.session()
    queue = rabbit.queue(session)

    def encode(pieces: list[bytes], value: Any) -> int:
        if isinstance(value, _Written):
            pieces.append(bytes(value))
            return len(value)
        return plain(pieces, value)

    plain = pika.data.encode_value
    with rabbit.raw() as channel, monkeypatch.context() as patched:
        patched.setattr(pika.data, "encode_value", encode)
        channel.basic_publish("", queue, b"foreign", pika.BasicProperties(headers={"h": _Written(written)}))
    session.send(queue, messages("ours"), T)
    session.subscribe(queue, 10, None, T)
    foreign, ours = receive(session, 2)
    assert (foreign.message.body, ours.message.id) == (b"foreign", "ours")
    assert foreign.message.headers["h"]
    assert session.settle([Ack(foreign), Ack(ours)], T) == {}


def test_a_message_too_large_for_the_server_alone_is_refused(rabbit: Rabbit) -> None:
    session = rabbit.session()
    queue = rabbit.queue(session)
    set_max = "application:set_env(rabbit, max_message_size, {})."
    rabbitmqctl(rabbit.datadir, "eval", set_max.format(1_000_000))
    try:
        batch = [Outgoing("a", b""), Outgoing("large", bytes(2_000_000)), Outgoing("b", b"")]
        first = session.send(queue, batch, T)
        assert failed_with(first)[1] is MessageTooLargeError
        assert "1000000" in str(first[1])
        assert failed_with(session.send(queue, batch, T)) == {1: MessageTooLargeError}, "the limit is known now"
    finally:
        rabbitmqctl(rabbit.datadir, "eval", set_max.format(134_217_728))
    assert "large" not in drain(rabbit.session(), queue)


def test_who_may_only_write_publishes_and_delays(rabbit: Rabbit) -> None:
    session = rabbit.session()
    queue, topic = rabbit.queue(session), "of-others"
    group = session.bind(topic, "group", T)
    session.send(queue, messages("first", delay=0.05), T)  # makes what it waits in
    rabbitmqctl(rabbit.datadir, "add_user", "writer", "secret")
    rabbitmqctl(rabbit.datadir, "set_permissions", "writer", "^$", ".*", "^$")
    writer = rabbit.session(url=f"amqp://writer:secret@{LOOPBACK}:{rabbit.port}/?declare_settle=0")
    assert writer.publish(topic, messages("a"), T) == {}
    assert writer.send(queue, messages("second", delay=0.05), T) == {}
    assert drain(session, group) == ["a"]
    session.subscribe(queue, 2, None, T)
    assert ids(receive(session, 2)) == ["first", "second"]


def test_who_may_only_read_is_refused(rabbit: Rabbit) -> None:
    session = rabbit.session()
    queue = rabbit.queue(session)
    rabbitmqctl(rabbit.datadir, "add_user", "reader", "secret")
    rabbitmqctl(rabbit.datadir, "set_permissions", "reader", "^$", "^$", ".*")
    reader = rabbit.session(url=f"amqp://reader:secret@{LOOPBACK}:{rabbit.port}/?declare_settle=0")
    assert failed_with(reader.send(queue, messages("one"), T)) == {0: RefusedError}
    # Of several on one channel nobody says which was refused, and whether those before it are stored.
    assert failed_with(reader.send(queue, messages("two", "three"), T)) == dict.fromkeys((0, 1), OutcomeUnknownError)
    assert drain(session, queue) == []


# --- who may connect ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "kind", "named"),
    [
        ("amqp://guest:s3cret@{host}:{port}/", AuthenticationError, "'guest'"),
        ("amqp://nobody:s3cret@{host}:{port}/", AuthenticationError, "'nobody'"),
        ("amqp://guest:guest@{host}:{port}/s3cretless", AuthenticationError, "'s3cretless'"),
        ("amqp://guest:s3cret@{host}:{other}/", ConnectFailedError, "{other}"),
        ("amqp://guest:s3cret@nowhere.invalid:{port}/", ConnectFailedError, "nowhere.invalid"),
        ("amqps://guest:s3cret@{host}:{port}/", ConnectFailedError, "{port}"),
    ],
)
def test_who_is_not_let_in_is_told_without_the_password(
    rabbit: Rabbit, url: str, kind: type[MQError], named: str
) -> None:
    places = {"host": LOOPBACK, "port": rabbit.port, "other": free_port()}
    with pytest.raises(kind) as caught:
        open_session(url.format(**places))
    assert type(caught.value) is kind
    assert named.format(**places) in str(caught.value)
    assert "s3cret" not in str(caught.value).replace("s3cretless", "")


def test_the_first_host_that_answers_is_taken(rabbit: Rabbit) -> None:
    session = rabbit.session(url=f"amqp://{LOOPBACK}:{free_port()},{LOOPBACK}:{rabbit.port}/?declare_settle=0")
    assert session.send(rabbit.queue(session), messages("a"), T) == {}


def test_a_server_that_does_not_answer_is_given_up_in_time(rabbit: Rabbit) -> None:
    rabbit.server.pause()
    try:
        with pytest.raises(ConnectFailedError, match=r"in time|Timeout"):
            open_session(f"amqp://{LOOPBACK}:{rabbit.port}/", 0.5)
    finally:
        rabbit.server.resume()


def test_amqps_checks_who_answers(rabbit: Rabbit) -> None:
    url = f"amqps://localhost:{rabbit.tls.port}/?declare_settle=0"
    session = rabbit.session(url=f"{url}&cafile={rabbit.certificates.authority}")
    queue = rabbit.queue(session)
    assert session.send(queue, [Outgoing("large", bytes(3_000_000)), *messages(*"abc")], T) == {}
    assert drain(session, queue) == ["large", "a", "b", "c"]
    with pytest.raises(ConnectFailedError, match=r"(?i)certificate"):
        open_session(url)
    with pytest.raises(ConfigError, match="certificate"):
        open_session(f"{url}&cafile=/nonexistent.pem")
    with pytest.raises(ConfigError, match="amqps"):
        open_session(f"amqp://{LOOPBACK}:{rabbit.port}/?cafile=x.pem")


# --- heartbeats ---------------------------------------------------------------------------------------------------------


def test_a_handler_that_takes_several_heartbeats_loses_nothing(rabbit: Rabbit) -> None:
    """The server gives a silent client up after two heartbeats, and would then deliver again."""
    url = f"amqp://{LOOPBACK}:{rabbit.port}/?declare_settle=0&heartbeat=1"
    with mqlayer.connect(url) as mq:
        mq.declare("slow")
        mq.producer("slow").send("x")
        with rabbit.raw() as channel, mq.consumer("slow") as consumer:
            delivery = consumer.receive(timeout=T)
            assert delivery is not None
            threading.Event().wait(4.0)  # the handler
            assert channel.queue_declare("slow", passive=True).method.message_count == 0, "it was not taken back"
            delivery.ack()
            assert not delivery.redelivered
        assert mq.producer("slow").send("y")
    with rabbit.raw() as channel:
        assert channel.basic_get("slow", auto_ack=True)[2] == b"y"


# --- alarms and deadlines -----------------------------------------------------------------------------------------------


@pytest.fixture
def alarm(rabbit: Rabbit) -> Iterator[None]:
    """The server is in alarm until it is called off."""
    rabbitmqctl(rabbit.datadir, "set_vm_memory_high_watermark", "0")
    yield
    call_off(rabbit)


def call_off(rabbit: Rabbit) -> None:
    rabbitmqctl(rabbit.datadir, "set_vm_memory_high_watermark", "absolute", "512MiB")


def test_in_alarm_what_was_written_is_unknown_and_the_rest_was_not_sent(rabbit: Rabbit) -> None:
    session, looker = rabbit.session(), rabbit.session()
    queue = rabbit.queue(session)
    session.send(queue, messages("before"), T)
    looker.subscribe(queue, 10, None, T)
    [before] = receive(looker, 1)
    rabbitmqctl(rabbit.datadir, "set_vm_memory_high_watermark", "0")
    try:
        # The server tells who publishes; what it told after is written and waits in its socket.
        failures = dict(session.send(queue, [Outgoing(str(n), bytes(1000)) for n in range(3000)], 1.0))
        assert len(failures) == 3000
        kinds = failed_with(failures)
        assert set(kinds.values()) == {OutcomeUnknownError, SendTimeoutError}
        unknown = [n for n, kind in kinds.items() if kind is OutcomeUnknownError]
        assert unknown == list(range(len(unknown))), "what was written comes before what was not"
        assert "alarm" in str(failures[2999])
        assert failed_with(session.send(queue, messages("blocked"), 0.3)) == {0: SendTimeoutError}
        assert looker.settle([Ack(before)], T) == {}, "who only consumes is not blocked"
    finally:
        call_off(rabbit)
    assert session.send(queue, messages("after"), T) == {}
    found = drain(rabbit.session(), queue) + drain(looker, queue)
    assert "after" in found
    not_sent = {str(n) for n, kind in kinds.items() if kind is SendTimeoutError}
    assert not not_sent & set(found)
    assert "blocked" not in found


def test_what_waits_for_the_end_of_an_alarm_is_confirmed_after_it(rabbit: Rabbit, alarm: None) -> None:
    session = rabbit.session()
    queue = rabbit.queue(session)
    session.send(queue, messages("tells us of the alarm"), 0.5)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(session.send, queue, messages(*map(str, range(2000))), 3 * T)
        call_off(rabbit)
        assert sending.result(3 * T) == {}
    found = drain(rabbit.session(), queue)
    assert {*map(str, range(2000))} <= set(found)


def test_a_server_that_stops_answering_leaves_unknown_outcomes_and_abort_ends_the_wait(rabbit: Rabbit) -> None:
    session, other = rabbit.session(), rabbit.session()
    queue = rabbit.queue(session)
    for one in (session, other):
        assert one.send(queue, messages("before"), T) == {}
    rabbit.server.pause()
    try:
        assert failed_with(session.send(queue, messages("a"), 0.3)) == {0: OutcomeUnknownError}
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(other.send, queue, messages("b"), 10 * T)
            with pytest.raises(TimeoutError):
                sending.result(MOMENT)
            other.abort()
            assert failed_with(sending.result(T)) == {0: OutcomeUnknownError}
        assert failed_with(other.send(queue, messages("c"), T)) == {0: NotSentError}
        began = time.monotonic()
        other.close(0.2)
        assert time.monotonic() - began < T
    finally:
        rabbit.server.resume()
    assert session.send(queue, messages("d"), T) == {}, "a late answer is never taken for another's"
    assert {"before", "d"} <= set(drain(session, queue)) <= {"before", "a", "b", "d"}


# --- kills --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["&queue_type=quorum", "&queue_type=classic"])
def test_confirmed_messages_survive_kill(rabbit: Rabbit, kind: str) -> None:
    session, consumer = rabbit.session(kind), rabbit.session(kind)
    queue = rabbit.queue(session)
    threading.Event().wait(SETTLE)
    consumer.subscribe(queue, 1, None, T)
    enough, confirmed, unclear = threading.Event(), set[str](), set[str]()

    def send() -> Failures:
        number = 0
        while True:
            batch = [str(number + n) for n in range(500)]
            failures = session.send(queue, messages(*batch), T)
            for place, name in enumerate(batch):
                error = failures.get(place)
                if error is None:
                    confirmed.add(name)
                elif isinstance(error, OutcomeUnknownError):
                    unclear.add(name)
                else:
                    assert isinstance(error, NotSentError), error
            number += 500
            if number >= 1500:
                enough.set()
            if failures:
                return failures

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        assert enough.wait(T)
        rabbit.server.kill()
        assert len(sending.result(T)) > 0
    with pytest.raises(ConnectionLostError):
        receive(consumer, 100)
    assert failed_with(session.send(queue, messages("x"), T)) == {0: NotSentError}
    rabbit.server.restart()
    found: set[str] = set()

    def all_there() -> bool:
        try:  # a quorum queue has no leader for a moment
            found.update(map(str, drain(rabbit.session(kind), queue)))
        except BrokerError:
            return False
        return confirmed <= found

    until(all_there, 3 * T)
    assert found <= confirmed | unclear


def test_a_new_queue_is_only_declared_when_it_would_survive(rabbit: Rabbit) -> None:
    session = rabbit.session(url=f"amqp://{LOOPBACK}:{rabbit.port}/?declare_settle=0.5")
    began = time.monotonic()
    session.declare("settles", PLAIN, Declare.ENSURE, T)
    assert time.monotonic() - began >= 0.5
    session.declare("hurried", PLAIN, Declare.ENSURE, 0.1)
    began = time.monotonic()
    assert failed_with(session.send("hurried", messages("early"), 0.1)) == {0: SendTimeoutError}
    assert session.send("hurried", messages("a"), T) == {}
    assert drain(session, "hurried") == ["a"]
    assert ids(session.receive(1, 0.0)) == []
