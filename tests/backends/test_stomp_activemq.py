"""A real ActiveMQ: what it does that the backend rests on, and raw stomp.py clients on the other side."""

import os
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("stomp")

from stomp_sessions import MOMENT, ActiveMQ, T, messages, receive

import mqlayer
from mqlayer.driver import Ack, Counts, Forward, Outgoing, QueueOptions, Release, Support
from mqlayer.errors import (
    AuthenticationError,
    ConnectFailedError,
    HeaderError,
    MQError,
    UnsupportedError,
)
from mqlayer.message import Message
from mqlayer.policy import DEAD_LETTER_AGAIN
from mqlayer.testing.brokers.activemq import activemq_server, find_activemq
from mqlayer.testing.brokers.stomp_probe import probe_stomp
from mqlayer.testing.ports import LOOPBACK, free_port

if find_activemq() is None and not os.environ.get("CI"):
    pytest.skip("ActiveMQ is not installed: apt-get install activemq", allow_module_level=True)

IDLE = float(os.environ.get("MQLAYER_IDLE_SECONDS", "4"))  # 130: longer than any of the server's default limits


@pytest.fixture(scope="module")
def the_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActiveMQ]:
    broker = ActiveMQ(tmp_path_factory.mktemp("activemq"))
    with broker.server:
        yield broker


@pytest.fixture
def broker(the_broker: ActiveMQ) -> Iterator[ActiveMQ]:
    yield the_broker
    the_broker.close_sessions()


class TestRawClients:
    BODIES = (
        ("text äöü €", "text äöü €".encode(), None),
        ("\U0001f600 and more", "\U0001f600 and more".encode(), None),
        ({"n": 1}, b'{"n":1}', "application/json"),
        (b"\0\xff\n\0", b"\0\xff\n\0", None),
        (b"", b"", None),
        ("", b"", None),
        ("nul \0 in text", b"nul \0 in text", None),
    )

    @pytest.mark.parametrize(("payload", "body", "content_type"), BODIES)
    def test_stomp_py_reads_what_mqlayer_sends(
        self, broker: ActiveMQ, payload: object, body: bytes, content_type: str | None
    ) -> None:
        queue = broker.queue()
        with mqlayer.connect(broker.url) as mq, broker.raw() as raw:
            id = mq.producer(queue).send(
                Message(
                    payload, headers={"tenant": "pbs", "n": 7}, correlation_id="c-1", reply_to="answers", priority=3
                )
            )
            raw.connection.subscribe(f"/queue/{queue}", "1", ack="auto")
            frame = raw.messages.get(timeout=T)
        assert frame.body == body
        wanted = {"tenant": "pbs", "n": "7", "correlation-id": "c-1", "reply-to": "/queue/answers", "priority": "3"}
        assert wanted.items() <= frame.headers.items()
        assert frame.headers["mq-id"] == id
        assert frame.headers["persistent"] == "true"
        if content_type is not None:
            assert frame.headers["content-type"] == content_type

    def test_mqlayer_reads_what_stomp_py_sends(self, broker: ActiveMQ) -> None:
        queue = broker.queue()
        headers = {"tenant": "a:b\\c\nd", "correlation-id": "c-1", "persistent": "true", "priority": "6", "empty": ""}
        with mqlayer.connect(broker.url) as mq, broker.raw() as raw, mq.consumer(queue) as consumer:
            raw.connection.send(f"/queue/{queue}", b"\0\xff", headers=dict(headers))
            raw.connection.send(f"/queue/{queue}", "text", content_type="text/plain", headers={"priority": "5"})
            first, second = consumer.receive(timeout=T), consumer.receive(timeout=T)
            assert first is not None
            assert second is not None
            for delivery in (first, second):
                delivery.ack()
        message = first.message
        assert (message.id, message.body, message.priority, message.correlation_id) == (None, b"\0\xff", 6, "c-1")
        assert message.headers == {"tenant": "a:b\\c\nd", "empty": ""}
        assert second.message.payload == "text"

    def test_a_message_of_somebody_elses_can_be_retried_and_dead_lettered(self, broker: ActiveMQ) -> None:
        queue = broker.queue()
        retry = mqlayer.Retry(attempts_max=2, delay=0.05)
        with mqlayer.connect(broker.url) as mq, broker.raw() as raw, mq.consumer(queue, retry=retry) as consumer:
            raw.connection.send(f"/queue/{queue}", "x", headers={"persistent": "true", "own": "1"})
            for _ in range(2):
                with pytest.raises(ValueError, match="no"), consumer.receive(timeout=T):
                    raise ValueError("no")
            with mq.consumer(f"{queue}.dead") as dead, dead.receive(timeout=T) as message:
                assert (message.body, message.headers, message.dead_letter_origin) == (b"x", {"own": "1"}, queue)


class TestHeaders:
    @pytest.mark.parametrize(
        "headers",
        [
            {"a:b": "c:d", "back\\slash": "\\", "new\nline": "\n", "return\r": "\r", "empty": "", " spaces ": " s "},
            {"ünïcödé": "€", "emoji": "\U0001f600", "tab\t": "\t"},
            {"a.b": "1", "a-b": "2", "a b": "3", "true": "4", "JMS": "5", "1": "6"},
            {"int": 2**70, "float": -0.5, "bool": False, "none": None, "bytes": b"\0\xff", "text": "1"},
        ],
    )
    def test_names_and_values_come_back_exactly(self, broker: ActiveMQ, headers: dict[str, object]) -> None:
        session, queue = broker.session(), broker.queue()
        assert session.send(queue, [Outgoing("a", b"", headers)], T) == {}  # type: ignore[arg-type]
        session.subscribe(queue, 1, None, T)
        [came] = receive(session, 1)
        assert came.message.headers == headers
        session.settle([Ack(came)], T)


class TestCounts:
    """What is flagged, and what is not."""

    def test_what_was_not_taken_goes_back_unflagged_when_a_subscription_ends(self, broker: ActiveMQ) -> None:
        session, other, queue = broker.session(), broker.session(), broker.queue()
        ids = [str(number) for number in range(50)]
        session.send(queue, messages(*ids), T)
        session.subscribe(queue, 20, None, T)
        session.receive(0, MOMENT)  # twenty are here, and nobody has asked for them
        session.unsubscribe(queue, T)
        other.subscribe(queue, 50, None, T)
        came = receive(other, 50)
        assert sorted(incoming.message.id or "" for incoming in came) == sorted(ids)
        assert not any(incoming.redelivered for incoming in came)
        other.settle([Ack(incoming) for incoming in came], T)

    def test_what_is_held_is_flagged_when_its_session_ends_and_its_neighbours_are_not(self, broker: ActiveMQ) -> None:
        session, other, queue = broker.session(), broker.session(), broker.queue()
        session.send(queue, messages(*map(str, range(10))), T)
        session.subscribe(queue, 10, None, T)
        [held] = receive(session, 1)
        session.close(T)
        other.subscribe(queue, 10, None, T)
        flagged = {incoming.message.id for incoming in receive(other, 10) if incoming.redelivered}
        assert flagged == {held.message.id}

    def test_a_window_that_shrinks_beside_a_held_delivery_is_kept(self, broker: ActiveMQ) -> None:
        session, queue = broker.session(), broker.queue()
        session.send(queue, messages(*map(str, range(10))), T)
        session.subscribe(queue, 5, None, T)
        held = receive(session, 2)
        session.subscribe(queue, 2, None, T)
        assert session.receive(10, MOMENT) == [], "two are held, and two may be"
        assert session.settle([Ack(held[0])], T) == {}
        assert len(receive(session, 1)) == 1
        assert session.receive(10, MOMENT) == []
        assert session.settle([Ack(held[1])], T) == {}

    def test_a_release_counts_nothing(self, broker: ActiveMQ) -> None:
        session, queue = broker.session(), broker.queue()
        session.send(queue, messages("a"), T)
        session.subscribe(queue, 1, None, T)
        for _ in range(3):
            [came] = receive(session, 1)
            assert (came.message.id, came.redelivered, came.message.trail.crashes) == ("a", False, 0)
            assert session.settle([Release(came)], T) == {}

    def test_several_queues_in_one_session_keep_their_windows(self, broker: ActiveMQ) -> None:
        session = broker.session()
        queues = [broker.queue() for _ in range(3)]
        for queue in queues:
            session.send(queue, messages(*map(str, range(5))), T)
            session.subscribe(queue, 2, None, T)
        came = receive(session, 6)
        assert sorted(incoming.queue for incoming in came) == sorted(queues * 2)
        assert session.settle([Ack(incoming) for incoming in came], T) == {}


class TestMoves:
    @pytest.mark.parametrize("delay", [0.0, 0.2])
    def test_a_copy_and_the_ack_of_its_original(self, broker: ActiveMQ, delay: float) -> None:
        session, source, target = broker.session(), broker.queue(), broker.queue()
        session.send(source, messages(*map(str, range(5))), T)
        session.subscribe(source, 5, None, T)
        came = receive(session, 5)
        begun = time.monotonic()
        verdicts = [Forward(incoming, target, incoming.message._replace(delay=delay)) for incoming in came]
        assert session.settle(verdicts, T) == {}
        session.subscribe(target, 5, None, T)
        moved = receive(session, 5)
        assert time.monotonic() - begun >= delay
        assert {incoming.message.id for incoming in moved} == {incoming.message.id for incoming in came}
        session.settle([Ack(incoming) for incoming in moved], T)
        assert session.receive(10, MOMENT) == []

    def test_one_that_cannot_be_copied_takes_no_neighbours_with_it(self, broker: ActiveMQ) -> None:
        session, source, target = broker.session(), broker.queue(), broker.queue()
        session.send(source, messages("a", "b", "c"), T)
        session.subscribe(source, 3, None, T)
        came = receive(session, 3)
        copies = [came[0].message, came[1].message._replace(headers={"receipt": "x"}), came[2].message]
        verdicts = [Forward(incoming, target, copy) for incoming, copy in zip(came, copies, strict=True)]
        failures = session.settle(verdicts, T)
        assert {place: type(error) for place, error in failures.items()} == {1: HeaderError}
        assert session.settle([Ack(came[1])], T) == {}, "it is still held"

    def test_a_transaction_without_its_commit_leaves_nothing(self, broker: ActiveMQ) -> None:
        queue = broker.queue()
        session = broker.session()
        with broker.raw() as raw:
            transaction = raw.connection.begin()
            raw.connection.send(f"/queue/{queue}", "x", headers={"persistent": "true", "transaction": transaction})
        session.subscribe(queue, 1, None, T)
        assert session.receive(1, MOMENT) == []


class TestQueues:
    def test_purge_drops_what_is_ready_and_counts_it(self, broker: ActiveMQ) -> None:
        session, other, queue = broker.session(), broker.session(), broker.queue()
        session.send(
            queue, [*messages(*map(str, range(1000))), *messages("low", priority=0), *messages("high", priority=9)], T
        )
        other.subscribe(queue, 1, None, T)
        [held] = receive(other, 1)
        assert session.purge(queue, T) == 1001
        assert session.purge(queue, T) == 0
        assert other.settle([Ack(held)], T) == {}
        assert other.receive(1, MOMENT) == []

    def test_a_group_that_nobody_consumes_outlives_a_kill(self, tmp_path: Path) -> None:
        port = free_port()
        with activemq_server(tmp_path, port) as server:
            url = f"stomp://{LOOPBACK}:{port}"
            with mqlayer.connect(url) as mq:
                mq.consumer(topic="news", group="mailer").close()
            server.kill()
            server.start()
            with mqlayer.connect(url) as mq:
                mq.producer(topic="news").send("after the kill")
                with mq.consumer(topic="news", group="mailer") as consumer, consumer.receive(timeout=T) as message:
                    assert message.payload == "after the kill"

    def test_what_is_unsupported_is_refused(self, broker: ActiveMQ) -> None:
        session, queue = broker.session(), broker.queue()
        for call in (lambda: session.stats(queue, T), lambda: session.peek(queue, 1, T)):
            with pytest.raises(UnsupportedError):
                call()
        assert isinstance(session.send(queue, messages("a", dedup_id="d"), T)[0], UnsupportedError)


class TestConfigurations:
    def test_without_a_scheduler_delays_are_unsupported(self, tmp_path: Path) -> None:
        port = free_port()
        with activemq_server(tmp_path, port, scheduler=False), mqlayer.connect(f"stomp://{LOOPBACK}:{port}") as mq:
            assert mq.capabilities.delay is Support.UNSUPPORTED
            queue = ActiveMQ.queue()
            with mq.producer(queue) as producer:
                with pytest.raises(UnsupportedError):
                    producer.send(1, delay=5.0)
                producer.send(2)
            with mq.consumer(queue) as consumer, consumer.receive(timeout=T) as message:
                assert message.payload == 2

    def test_logins(self, tmp_path: Path) -> None:
        users = '<authenticationUser username="alice" password="alice" groups="users"/>'
        more = (
            f'<plugins><simpleAuthenticationPlugin anonymousAccessAllowed="false"><users>{users}</users>'
            "</simpleAuthenticationPlugin></plugins>"
        )
        port = free_port()
        with activemq_server(tmp_path, port, more=more, login="alice"):
            with mqlayer.connect(f"stomp://alice:alice@{LOOPBACK}:{port}") as mq:
                mq.producer(ActiveMQ.queue()).send(1)
            with pytest.raises(AuthenticationError) as caught:
                mqlayer.connect(f"stomp://alice:wrong-one@{LOOPBACK}:{port}")
            assert "wrong-one" not in str(caught.value)

    def test_a_queue_that_may_not_be_written_to_refuses_and_its_neighbours_are_sent(self, tmp_path: Path) -> None:
        users = '<authenticationUser username="alice" password="alice" groups="users"/>'
        entry = '<authorizationEntry {} read="users" write="{}" admin="users"/>'
        entries = "".join(
            entry.format(*pair)
            for pair in (('queue="open.&gt;"', "users"), ('topic="&gt;"', "users"), ('queue="closed.&gt;"', "others"))
        )
        temporary = '<tempDestinationAuthorizationEntry read="users" write="users" admin="users"/>'
        more = (
            f"<plugins><simpleAuthenticationPlugin><users>{users}</users></simpleAuthenticationPlugin>"
            f"<authorizationPlugin><map><authorizationMap><authorizationEntries>{entries}</authorizationEntries>"
            f"<tempDestinationAuthorizationEntry>{temporary}</tempDestinationAuthorizationEntry>"
            "</authorizationMap></map></authorizationPlugin></plugins>"
        )
        port = free_port()
        url = f"stomp://alice:alice@{LOOPBACK}:{port}"
        with activemq_server(tmp_path, port, more=more, login="alice"), mqlayer.connect(url, timeout=5.0) as mq:
            report = mq.producer("closed.q").send_many(range(3))
            assert set(report.failures) == {0, 1, 2}
            assert {type(error).__name__ for error in report.failures.values()} == {"RefusedError"}
            mq.producer("open.q").send("the connection serves on")
            assert mq.health().connections_lost == 0
            with mq.consumer("open.q", dead_letter="closed.dead") as consumer:
                delivery = consumer.receive(timeout=T)
                assert delivery is not None
                with pytest.raises(mqlayer.errors.RefusedError):
                    delivery.reject("nowhere to go")
                again = consumer.receive(timeout=T + DEAD_LETTER_AGAIN)
                assert again is not None
                with again as message:
                    assert message.payload == "the connection serves on", "it went back, and comes again after a pause"
            mq.producer("open.q").send("the connection serves on")
            with mq.consumer("open.q") as consumer, consumer.receive(timeout=T) as message:
                assert message.payload == "the connection serves on"

    def test_tls_is_verified(self, broker: ActiveMQ) -> None:
        url = f"stomp+ssl://localhost:{broker.tls_port}/?cafile={broker.certificates.authority}"
        queue = broker.queue()
        with mqlayer.connect(url) as mq, mq.producer(queue) as producer, mq.consumer(queue) as consumer:
            assert not producer.send_many([b"x" * 100_000] * 20).failures
            for _ in range(20):
                delivery = consumer.receive(timeout=T)
                assert delivery is not None
                assert len(delivery.message.body) == 100_000
                delivery.ack()
        with pytest.raises(ConnectFailedError, match="certificate"):
            mqlayer.connect(f"stomp+ssl://localhost:{broker.tls_port}/", timeout=5.0)
        assert ssl.OPENSSL_VERSION


class TestIdleConnections:
    def test_one_that_is_idle_makes_no_reconnect(self, broker: ActiveMQ) -> None:
        """Neither one that was never used, nor one with a producer and a consumer; nor one whose handler blocks."""
        heartbeat = 1 if IDLE < 60 else 10
        queue = broker.queue()
        with mqlayer.connect(f"{broker.url}/?heartbeat={heartbeat}") as unused:
            with (
                mqlayer.connect(f"{broker.url}/?heartbeat={heartbeat}") as mq,
                mq.producer(queue) as producer,
                mq.consumer(queue) as consumer,
            ):
                producer.send("long")
                delivery = consumer.receive(timeout=T)
                assert delivery is not None
                threading.Event().wait(IDLE)
                delivery.ack()
                producer.send("after")
                with consumer.receive(timeout=T) as message:
                    assert message.payload == "after"
                assert mq.health().connections_lost == 0
            unused.producer(queue).send("at last")
            assert unused.health().connections_lost == 0


class TestTheMemoryProfile:
    """``memory://?profile=activemq`` refuses what the real one refuses, and takes what it takes."""

    def test_it_claims_what_the_backend_claims(self, broker: ActiveMQ) -> None:
        with mqlayer.connect(broker.url) as real, mqlayer.connect("memory://?profile=activemq") as memory:
            ours, theirs = real.capabilities, memory.capabilities
            differing = {name for name in type(ours).__slots__ if getattr(ours, name) != getattr(theirs, name)}
        assert differing == {"durable"}
        assert ours.counts is Counts.FLAG

    CASES = (
        Message(b"x" * (8 * 2**20)),  # the test's server has little memory
        Message(b"x" * (99 * 2**20 + 1)),
        Message(b""),
        Message("x", headers={"long": "x" * 9_970}),
        Message("x", headers={"long": "x" * 10_000}),
        Message("x", headers={f"h{n}": "x" for n in range(900)}),
        Message("x", headers={f"h{n}": "x" for n in range(901)}),
        *(
            Message("x", headers={name: "1"})
            for name in ("receipt", "JMSXGroupID", "AMQ_SCHEDULED_CRON", "type", "Type")
        ),
        *(Message("x", headers={name: "1"}) for name in ("persistent", "mq_mark", "amq-msg-type", "x-death", "host")),
        Message("x", priority=9),
        Message("x", group_id="g"),
        Message("x", dedup_id="d"),
        Message("x", delay=0.2),
        Message("x", ttl=60.0),
        Message("x", headers={"n": 2**80}),
    )

    @pytest.mark.parametrize("message", CASES, ids=range(len(CASES)))
    def test_messages(self, broker: ActiveMQ, message: Message) -> None:
        outcomes = []
        for url in (broker.url, "memory://?profile=activemq"):
            queue = broker.queue()
            with mqlayer.connect(url) as mq, mq.producer(queue) as producer, mq.consumer(queue) as consumer:
                outcomes.append(_outcome(producer, consumer, message))
        assert outcomes[0] == outcomes[1]
        assert "came" in outcomes[0] or issubclass(getattr(mqlayer.errors, outcomes[0][0]), MQError)

    @pytest.mark.parametrize("name", ["n" * 1024, "n" * 1025, "", "a,b", "a>b", "ä"])
    def test_names(self, broker: ActiveMQ, name: str) -> None:
        outcomes = []
        for url in (broker.url, "memory://?profile=activemq"):
            with mqlayer.connect(url) as mq:
                try:
                    mq.declare(name)
                    mq.producer(name).send("x")
                except MQError as error:
                    outcomes.append(type(error).__name__)
                else:
                    outcomes.append("sent")
        assert outcomes[0] == outcomes[1]

    def test_calls(self, broker: ActiveMQ) -> None:
        queue = broker.queue()
        outcomes = []
        for url in (broker.url, "memory://?profile=activemq"):
            with mqlayer.connect(url) as mq:
                mq.producer(queue).send_many(range(3))
                told: list[object] = [mq.purge(queue)]
                for call in (mq.stats, mq.peek):
                    try:
                        call(queue)
                    except MQError as error:
                        told.append(type(error).__name__)
                outcomes.append(told)
        assert outcomes == [[3, "UnsupportedError", "UnsupportedError"]] * 2

    def test_a_missing_queue_is_made(self, broker: ActiveMQ) -> None:
        for url in (broker.url, "memory://?profile=activemq"):
            with mqlayer.connect(f"{url}{'&' if '?' in url else '/?'}declare=never") as mq:
                mq.producer(broker.queue()).send("into a queue made for it")


def _outcome(producer: mqlayer.Producer, consumer: mqlayer.Consumer, message: Message) -> tuple[object, ...]:
    try:
        producer.send(message)
    except MQError as error:
        return (type(error).__name__,)
    delivery = consumer.receive(timeout=T)
    assert delivery is not None
    with delivery as came:
        return ("came", len(came.body), dict(came.headers), came.priority, came.group_id, delivery.delivery_count)


def test_the_probe_is_a_round_trip(broker: ActiveMQ) -> None:
    probe_stomp(broker.port, "/temp-queue/probe")
    with pytest.raises(ConnectionRefusedError):
        probe_stomp(free_port(), "/temp-queue/probe")


def test_declare_keeps_nothing_and_says_so(broker: ActiveMQ) -> None:
    from mqlayer.driver import Declare

    asked = QueueOptions(dead_letter="d", temporary=True, ordered=True)
    assert broker.session().declare(broker.queue(), asked, Declare.COMPARE, T) == QueueOptions()
