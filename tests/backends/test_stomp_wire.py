"""Frames as bytes, messages as frames, and both back. No I/O."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("stomp")

from mqlayer.backends.stomp_dialects import ACTIVEMQ, ARTEMIS, DIALECTS, PLAIN, RABBITMQ, Dialect, dialect_of
from mqlayer.backends.stomp_wire import (
    Frame,
    FrameReader,
    destination,
    encode,
    from_wire,
    is_reserved,
    queue_of,
    to_wire,
)
from mqlayer.driver import Outgoing, Trail
from mqlayer.errors import ArgumentError, ConnectionLostError, HeaderError, MessageTooLargeError, RefusedError

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
NAME = TEXT.filter(lambda name: name and name[:3].lower() != "mq-")
VALUE = (
    TEXT | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.booleans() | st.none() | st.binary(max_size=9)
)


def read(data: bytes, *, step: int = 0) -> list[Frame]:
    reader = FrameReader()
    parts = [data[start : start + step] for start in range(0, len(data), step)] if step else [data]
    return [frame for part in parts for frame in reader.feed(part)]


def arrived(sent: bytes) -> Frame:
    """A SEND frame as the MESSAGE that a server makes of it."""
    [frame] = read(sent)
    assert frame.command == "SEND"
    more = {"message-id": "m-1", "subscription": "f1", "ack": "a-1", "timestamp": "1", "redelivered": "false"}
    return Frame("MESSAGE", {**frame.headers, **more}, frame.body)


class TestFrames:
    @given(st.lists(st.tuples(TEXT.filter(bool), TEXT), max_size=8), st.binary(max_size=200), st.integers(1, 50))
    @settings(max_examples=150, deadline=None)
    def test_whatever_is_written_is_read(self, headers: list[tuple[str, str]], body: bytes, step: int) -> None:
        headers = [(name, value) for name, value in headers if name != "content-length"]
        first: dict[str, str] = {}
        for name, value in headers:
            first.setdefault(name, value)
        data = encode("MESSAGE", [*headers, ("content-length", str(len(body)))], body)
        frames = read(data * 2, step=step)
        expected = {**first, "content-length": str(len(body))}
        assert [(frame.command, frame.headers, frame.body) for frame in frames] == [("MESSAGE", expected, body)] * 2

    @pytest.mark.parametrize(
        ("data", "headers", "body"),
        [
            (b"MESSAGE\na:1\na:2\n\nx\0", {"a": "1"}, b"x"),  # the first counts
            (b"MESSAGE\r\na:1\r\n\r\nx\0", {"a": "1"}, b"x"),
            (b"\n\n\r\nMESSAGE\na:\n\n\0\n\n", {"a": ""}, b""),
            (b"MESSAGE\nk\\cey:v\\n\\r\\\\\\c\n\n\0", {"k:ey": "v\n\r\\:"}, b""),
            (b"MESSAGE\ncontent-length:3\n\n\0\0\0\0", {"content-length": "3"}, b"\0\0\0"),
            (b"MESSAGE\na: b \n\n\0", {"a": " b "}, b""),  # spaces belong to the value since 1.1
            (b"MESSAGE\na:b:c\n\n\0", {"a": "b:c"}, b""),
            (b"MESSAGE\na:\\x\n\n\0", {"a": "\\x"}, b""),
        ],
    )
    def test_what_servers_send(self, data: bytes, headers: dict[str, str], body: bytes) -> None:
        for step in (0, 1):
            [frame] = read(data, step=step)
            assert (frame.headers, frame.body) == (headers, body)

    def test_connected_is_not_unescaped(self) -> None:
        [frame] = read(b"CONNECTED\nserver:a\\nb\n\n\0")
        assert frame.headers["server"] == "a\\nb"

    @pytest.mark.parametrize(
        "data",
        [b"MESSAGE\ncontent-length:x\n\n\0", b"MESSAGE\ncontent-length:1\n\nxyz\0", b"HTTP/1.1 400\r" + b"x" * 2**21],
    )
    def test_what_is_no_stomp_ends_the_connection(self, data: bytes) -> None:
        with pytest.raises(ConnectionLostError):
            read(data)

    def test_a_large_body_in_small_pieces_is_no_slower_than_it_has_to_be(self) -> None:
        data = encode("MESSAGE", [("content-length", str(2**22))], bytes(2**22))
        [frame] = read(data, step=16_384)
        assert len(frame.body) == 2**22


class TestNames:
    @given(TEXT.filter(bool), TEXT.filter(bool), st.sampled_from(DIALECTS))
    @settings(max_examples=200, deadline=None)
    def test_two_names_are_two_queues_and_come_back(self, one: str, other: str, dialect: Dialect) -> None:
        target = destination(one, dialect)
        assert queue_of(target, dialect) == one
        assert (target == destination(other, dialect)) is (one == other)
        assert not any(mark in target[len(dialect.queue_prefix) :] for mark in ",*>? \n")

    @pytest.mark.parametrize(
        ("name", "dialect", "target"),
        [
            ("orders", ACTIVEMQ, "/queue/orders"),
            ("orders.new", ACTIVEMQ, "/queue/orders.new"),
            ("a,b", ACTIVEMQ, "/queue/a%2Cb"),
            ("a>", ACTIVEMQ, "/queue/a%3E"),
            ("a?consumer.prefetchSize=1", ACTIVEMQ, "/queue/a%3Fconsumer.prefetchSize=1"),
            ("ä", ACTIVEMQ, "/queue/ä"),
            ("a::b", ARTEMIS, "a%3A%3Ab"),
            ("a/b", RABBITMQ, "/queue/a%2Fb"),
            ("ä", RABBITMQ, "/queue/%C3%A4"),
        ],
    )
    def test_what_means_something_to_the_server_is_quoted(self, name: str, dialect: Dialect, target: str) -> None:
        assert destination(name, dialect) == target

    @pytest.mark.parametrize("name", ["", "n" * 1025, "\ud800", "," * 400])
    def test_what_no_queue_can_be_called(self, name: str) -> None:
        with pytest.raises(ArgumentError):
            destination(name, ACTIVEMQ)


class TestMessages:
    @given(
        headers=st.dictionaries(NAME, VALUE, max_size=5),
        body=st.binary(max_size=100),
        content_type=st.none() | st.just("text/plain; charset=utf-8") | st.just("application/json"),
        correlation_id=st.none() | TEXT.filter(bool),
        reply_to=st.none() | TEXT.filter(bool),
        priority=st.none() | st.integers(0, 9),
        group_id=st.none() | TEXT.filter(bool),
        trail=st.builds(
            lambda failures, reason: Trail(failures=failures, reason=reason),
            st.integers(0, 9),
            st.none() | TEXT.filter(bool),
        ),
    )
    @settings(max_examples=200, deadline=None)
    def test_a_message_comes_back_as_it_was_sent(self, **fields: object) -> None:
        message = Outgoing("id-1", sent_at=1.5, expires_at=2e9, **fields)  # type: ignore[arg-type]
        for dialect in (ACTIVEMQ, ARTEMIS, RABBITMQ, PLAIN):
            own = [name for name in message.headers if is_reserved(name, dialect)]
            expected = message._replace(headers={k: v for k, v in message.headers.items() if k not in own})
            assert from_wire(arrived(to_wire(expected, "/queue/q", dialect)), dialect) == expected

    def test_the_servers_own_headers_are_where_its_users_look(self) -> None:
        message = Outgoing(
            "id-1", b"{}", {"n": 1}, "application/json", "c-1", "answers", priority=7, group_id="g", expires_at=2e9
        )
        [frame] = read(to_wire(message, "/queue/q", ACTIVEMQ))
        wanted = {
            "destination": "/queue/q",
            "content-length": "2",
            "persistent": "true",
            "priority": "7",
            "content-type": "application/json",
            "correlation-id": "c-1",
            "reply-to": "/queue/answers",
            "JMSXGroupID": "g",
            "expires": "2000000000000",
            "amq-msg-type": "text",
            "n": "1",
        }
        assert wanted.items() <= frame.headers.items()

    def test_without_a_priority_it_is_the_lowest_and_not_that_of_jms(self) -> None:
        [frame] = read(to_wire(Outgoing("a", b""), "/queue/q", ACTIVEMQ))
        assert frame.headers["priority"] == "0"
        assert from_wire(arrived(to_wire(Outgoing("a", b""), "/queue/q", ACTIVEMQ)), ACTIVEMQ).priority is None

    def test_what_waits_is_not_told_when_it_expires(self) -> None:
        [frame] = read(to_wire(Outgoing("a", b"", expires_at=2e9, delay=1.5), "/queue/q", ACTIVEMQ))
        assert frame.headers["AMQ_SCHEDULED_DELAY"] == "1500"
        assert "expires" not in frame.headers

    @pytest.mark.parametrize(
        ("body", "kind", "text"),
        [
            (b"plain", "text/plain", True),
            ("ä€".encode(), "text/plain", True),
            ("\U0001f600".encode(), "text/plain", False),  # Java's UTF-8 has another form of it
            (b"a\0b", "text/plain", False),
            (b"\xff", "text/plain", False),
            (b"{}", "application/json", True),
            (b"plain", None, False),
            (b"plain", "application/octet-stream", False),
        ],
    )
    def test_jms_clients_get_text_where_it_is_text(self, body: bytes, kind: str | None, text: bool) -> None:
        [frame] = read(to_wire(Outgoing("a", body, content_type=kind), "/queue/q", ACTIVEMQ))
        assert ("amq-msg-type" in frame.headers) is text

    @pytest.mark.parametrize(
        ("headers", "dialect"),
        [
            ({"destination": "x"}, PLAIN),
            ({"receipt": "x"}, ACTIVEMQ),
            ({"AMQ_SCHEDULED_CRON": "x"}, ACTIVEMQ),
            ({"JMSXGroupSeq": "x"}, ACTIVEMQ),
            ({"transformation": "jms-xml"}, ACTIVEMQ),
            ({"_AMQ_SCHED_DELIVERY": "x"}, ARTEMIS),
            ({"x-death": "x"}, RABBITMQ),
            ({"long": "x" * 10_240}, ACTIVEMQ),
            ({"long": ":" * 6_000}, ACTIVEMQ),  # doubled by the escapes
            ({f"h{n}": "" for n in range(901)}, ACTIVEMQ),
            ({"n" * 256: ""}, RABBITMQ),
        ],
    )
    def test_headers_that_the_server_acts_on_or_does_not_take(self, headers: dict[str, str], dialect: Dialect) -> None:
        with pytest.raises(HeaderError):
            to_wire(Outgoing("a", b"", headers), "/queue/q", dialect)

    def test_bodies_beyond_the_servers_frame(self) -> None:
        most = ACTIVEMQ.capabilities.body_max_bytes
        assert most is not None
        with pytest.raises(MessageTooLargeError):
            to_wire(Outgoing("a", bytes(most + 1)), "/queue/q", ACTIVEMQ)

    def test_half_a_surrogate_pair_is_refused(self) -> None:
        with pytest.raises(RefusedError):
            to_wire(Outgoing("a", b"", correlation_id="\ud800"), "/queue/q", ACTIVEMQ)

    def test_a_foreign_message(self) -> None:
        headers = {
            "destination": "/queue/q",
            "message-id": "m",
            "subscription": "s",
            "ack": "a",
            "expires": "2000000000000",
            "priority": "4",
            "reply-to": "/queue/an%2Cswer",
            "JMSXGroupID": "g",
            "JMSXGroupSeq": "1",
            "own": "x",
            "timestamp": "1",
            "persistent": "true",
            "redelivered": "true",
            "content-type": "text/plain",
        }
        message = from_wire(Frame("MESSAGE", headers, b"x"), ACTIVEMQ)
        assert message == Outgoing(
            *(None, b"x", {"own": "x"}, "text/plain"), reply_to="an,swer", priority=4, group_id="g", expires_at=2e9
        )

    def test_what_the_scheduler_and_the_dead_letter_queue_add_does_not_travel_on(self) -> None:
        added = {"scheduledJobId": "1", "originalExpiration": "2", "dlqDeliveryFailureCause": "x", "JMSXGroupSeq": "1"}
        assert from_wire(Frame("MESSAGE", added, b""), ACTIVEMQ).headers == {}


@pytest.mark.parametrize(
    ("server", "dialect"),
    [
        ("ActiveMQ/5.17.2", ACTIVEMQ),
        ("ActiveMQ/6.1.0", ACTIVEMQ),
        ("ActiveMQ-Artemis/2.56.0 ActiveMQ Artemis Messaging Engine", ARTEMIS),
        ("RabbitMQ/3.10.8", RABBITMQ),
        ("apache-apollo/1.7", PLAIN),
        ("", PLAIN),
    ],
)
def test_the_dialect_is_the_servers(server: str, dialect: Dialect) -> None:
    assert dialect_of(server) is dialect
