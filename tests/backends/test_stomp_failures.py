"""What becomes of each message and verdict when the server says no, goes away, or falls silent. A server of the test's own."""

import threading
import time

import pytest

pytest.importorskip("stomp")

from stomp_sessions import Server, T, error, messages, open_session, receipt

from mqlayer.backends.stomp_wire import Frame, encode
from mqlayer.driver import Ack, Support
from mqlayer.errors import (
    AuthenticationError,
    ConfigError,
    ConnectFailedError,
    ConnectionLostError,
    NotSentError,
    OutcomeUnknownError,
    RefusedError,
    SendTimeoutError,
    StaleDeliveryError,
)
from mqlayer.registry import read_url
from mqlayer.testing.ports import LOOPBACK, free_port

CONNECTED = "CONNECTED\nversion:1.2\nserver:{}\nheart-beat:{}\n\n\0"


def connected(server: str = "ActiveMQ/5.17.2", beats: str = "0,0") -> bytes:
    return CONNECTED.format(server, beats).encode()


class TestSending:
    def test_one_message_has_a_receipt_of_its_own_and_a_batch_one_for_all(self) -> None:
        with Server(receipt) as server:
            session = server.open()
            assert session.send("q", messages("a"), T) == {}
            assert session.send("q", messages("a", "b", "c"), T) == {}
            session.close(1.0)
        commands = [frame.command for frame in server.frames if "mq_mark" not in frame.headers]
        assert commands == ["CONNECT", "SUBSCRIBE", "SEND", "BEGIN", "SEND", "SEND", "SEND", "COMMIT", "DISCONNECT"]
        sends = [frame for frame in server.frames if "mq-id" in frame.headers]
        assert ["receipt" in frame.headers for frame in sends] == [True, False, False, False]
        assert len({frame.headers.get("transaction") for frame in sends[1:]}) == 1

    def test_what_waits_is_in_no_transaction(self) -> None:
        """ActiveMQ schedules after the commit: a receipt of the COMMIT would not cover it."""
        with Server(receipt) as server:
            session = server.open()
            assert session.send("q", [*messages("a", "b"), *messages("c", delay=1.0)], T) == {}
            session.close(1.0)
        sends = {frame.headers["mq-id"]: frame.headers for frame in server.frames if "mq-id" in frame.headers}
        assert "transaction" in sends["b"]
        assert "transaction" not in sends["c"]
        assert "receipt" in sends["c"]

    def test_a_refused_transaction_is_sent_one_by_one_and_takes_no_neighbours_with_it(self) -> None:
        def script(frame: Frame) -> bytes:
            if frame.command == "COMMIT" or frame.headers.get("mq-id") == "b":
                return error(frame, "no room") if "receipt" in frame.headers else b""
            return receipt(frame)

        with Server(script) as server:
            session = server.open()
            failures = session.send("q", messages("a", "b", "c"), T)
            session.close(1.0)
        assert {place: type(failure) for place, failure in failures.items()} == {1: RefusedError}
        assert "no room" in str(failures[1])

    @pytest.mark.parametrize(
        ("ends_at", "size", "kind"),
        [
            ("COMMIT", 3, OutcomeUnknownError),
            ("SEND", 1, OutcomeUnknownError),
            ("BEGIN", 3, (OutcomeUnknownError, NotSentError)),
        ],
    )
    def test_a_connection_lost_amid_it_is_an_unknown_outcome(self, ends_at: str, size: int, kind: type) -> None:
        def script(frame: Frame) -> bytes | None:
            return None if frame.command == ends_at and "mq_mark" not in frame.headers else b""

        with Server(script) as server:
            session = server.open()
            failures = session.send("q", messages("a", "b", "c")[:size], T)
            assert set(failures) == set(range(size))
            assert all(isinstance(failure, kind) for failure in failures.values())
            again = session.send("q", messages("d"), T)
            session.close(1.0)
        assert isinstance(again[0], NotSentError), "the session is of no more use, and nothing leaves it"

    def test_an_error_that_names_no_frame_makes_all_on_their_way_unknown(self) -> None:
        def script(frame: Frame) -> bytes:
            return error(frame, "something", named=False) if frame.command == "SEND" else receipt(frame)

        with Server(script) as server:
            session = server.open()
            failures = session.send("q", messages("a"), T)
            with pytest.raises(ConnectionLostError, match="something"):
                session.receive(0, 0.0)
        assert isinstance(failures[0], OutcomeUnknownError)

    def test_where_an_error_ends_the_connection_the_one_it_names_is_still_told(self) -> None:
        def script(frame: Frame) -> bytes | None:
            return error(frame, "no such thing") if frame.command == "SEND" else receipt(frame)

        with Server(script, connected("RabbitMQ/3.10.8")) as server:
            session = server.open()
            failures = session.send("q", messages("a"), T)
        assert isinstance(failures[0], RefusedError)

    def test_no_answer_in_time_is_unknown_and_what_never_left_is_not_sent(self) -> None:
        with Server(lambda frame: b"") as server:
            session = server.open()
            begun = time.monotonic()
            failures = session.send("q", messages(*map(str, range(2000))), 0.3)
            assert time.monotonic() - begun < 2.0
            session.close(0.2)
        kinds = [type(failures[place]) for place in range(2000)]
        assert kinds[0] is OutcomeUnknownError
        assert kinds[-1] is SendTimeoutError, "it waited for room"

    def test_abort_ends_a_send_with_a_fate_for_each(self) -> None:
        with Server(lambda frame: b"") as server:
            session = server.open()
            threading.Timer(0.2, session.abort).start()
            begun = time.monotonic()
            failures = session.send("q", messages("a", "b"), T)
            assert time.monotonic() - begun < 5.0
        assert set(failures) == {0, 1}


class TestReceiving:
    @staticmethod
    def deliver(frame: Frame) -> bytes:
        if frame.command == "SUBSCRIBE" and frame.headers["id"].startswith("f"):
            headers = [("subscription", frame.headers["id"]), ("destination", "/queue/q")]
            sent = [encode("MESSAGE", [*headers, ("ack", f"a{n}"), ("message-id", str(n))], b"x") for n in range(2)]
            return receipt(frame) + b"".join(sent)
        return receipt(frame)

    def test_each_ack_has_a_receipt_of_its_own(self) -> None:
        with Server(self.deliver) as server:
            session = server.open()
            session.subscribe("q", 2, None, T)
            came = session.receive(2, T)
            assert session.settle([Ack(incoming) for incoming in came], T) == {}
            assert {type(each) for each in session.settle([Ack(came[0])], T).values()} == {StaleDeliveryError}
            session.abort()
        acks = [frame for frame in server.frames if frame.command == "ACK"]
        assert [frame.headers["id"] for frame in acks] == ["a0", "a1"]
        assert all("receipt" in frame.headers and "transaction" not in frame.headers for frame in acks)

    def test_an_ack_that_is_refused_is_stale_and_the_others_are_done(self) -> None:
        def script(frame: Frame) -> bytes:
            refused = frame.command == "ACK" and frame.headers["id"] == "a1"
            return error(frame, "unexpected") if refused else self.deliver(frame)

        with Server(script) as server:
            session = server.open()
            session.subscribe("q", 2, None, T)
            failures = session.settle([Ack(incoming) for incoming in session.receive(2, T)], T)
            session.abort()
        assert {place: type(failure) for place, failure in failures.items()} == {1: StaleDeliveryError}

    def test_a_connection_lost_amid_an_ack_is_told(self) -> None:
        def script(frame: Frame) -> bytes | None:
            return None if frame.command == "ACK" else self.deliver(frame)

        with Server(script) as server:
            session = server.open()
            session.subscribe("q", 1, None, T)
            failures = session.settle([Ack(session.receive(1, T)[0])], T)
        assert isinstance(failures[0], ConnectionLostError)

    def test_wake_ends_a_wait_and_the_next_one_if_there_is_none(self) -> None:
        with Server(receipt) as server:
            session = server.open()
            session.subscribe("q", 1, None, T)
            threading.Timer(0.2, session.wake).start()
            for _ in range(2):
                begun = time.monotonic()
                assert session.receive(1, T) == []
                assert time.monotonic() - begun < 5.0
                session.wake()
            session.abort()


class TestHeartBeats:
    def test_it_beats_well_before_it_has_to_and_lives(self) -> None:
        with Server(receipt, connected(beats="1000,1000")) as server:
            session = server.open("?heartbeat=1")
            end = time.monotonic() + 2.0
            while time.monotonic() < end:
                session.receive(0, 0.5)
            assert server.beats >= 3
            session.close(1.0)

    def test_a_server_that_falls_silent_is_given_up(self) -> None:
        with Server(receipt, connected(beats="1000,0")) as server:
            session = server.open("?heartbeat=1")
            begun = time.monotonic()
            with pytest.raises(ConnectionLostError, match="silent"):
                session.receive(0, T)
            assert 2.5 < time.monotonic() - begun < 6.0

    def test_a_thread_that_was_away_looks_before_it_judges(self) -> None:
        with Server(receipt, connected(beats="100,0")) as server:
            session = server.open("?heartbeat=1")
            threading.Event().wait(3.5)  # in which nobody read
            session.send("q", messages("a"), T)
            session.close(1.0)


class TestConnecting:
    def test_the_first_host_that_answers_is_taken(self) -> None:
        dead = free_port()
        with Server(receipt) as server:
            session = open_session(f"stomp://{LOOPBACK}:{dead},{LOOPBACK}:{server.port}")
            assert session.send("q", messages("a"), T) == {}
            session.close(1.0)

    def test_when_none_answers_all_are_named(self) -> None:
        first, second = free_port(), free_port()
        with pytest.raises(ConnectFailedError, match=f"{first}.*{second}") as caught:
            open_session(f"stomp://user:secret@{LOOPBACK}:{first},{LOOPBACK}:{second}", 2.0)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("answer", "kind"),
        [
            (b"ERROR\nmessage:User name [u] or password is invalid.\n\n\0", AuthenticationError),
            (b"ERROR\nmessage:Supported protocol versions are 1.0\n\n\0", ConnectFailedError),
            (b"CONNECTED\nversion:1.0\n\n\0", ConnectFailedError),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n\0", ConnectFailedError),
        ],
    )
    def test_a_server_that_does_not_want_us(self, answer: bytes, kind: type) -> None:
        with Server(receipt, answer) as server, pytest.raises(kind) as caught:
            server.open()
        assert type(caught.value) is kind

    def test_login_and_virtual_host_travel_unescaped(self) -> None:
        with Server(receipt) as server:
            open_session(f"stomp://us%3Aer:pa%5Css@{LOOPBACK}:{server.port}/shop").close(1.0)
        headers = server.frames[0].headers
        # The test's reader unescapes, as it would any other frame.
        assert (headers["login"], headers["host"]) == ("us:er", "shop")

    @pytest.mark.parametrize(
        "url",
        [
            "stomp://h/?prefetch=0",
            "stomp://h/?heartbeat=-1",
            "stomp://h/?cafile=x",
            "stomp://u%0A:p@h",
            "stomp+ssl://h/?cafile=/nowhere",
        ],
    )
    def test_a_wrong_url_is_an_error_before_anything_is_tried(self, url: str) -> None:
        with pytest.raises(ConfigError):
            open_session(url)
        assert read_url("stomp://h").options


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("ActiveMQ/5.17.2", {"delay": True, "priority": True, "group_id": True, "topics": True, "purge": True}),
        (
            "ActiveMQ-Artemis/2.56.0",
            {"delay": True, "priority": True, "group_id": False, "topics": False, "purge": False},
        ),
        ("RabbitMQ/3.10.8", {"delay": False, "priority": False, "group_id": False, "topics": False, "purge": False}),
        ("something", {"delay": False, "priority": False, "group_id": False, "topics": False, "purge": False}),
    ],
)
def test_each_dialect_says_what_its_server_can_do(server: str, expected: dict[str, bool]) -> None:
    with Server(receipt, connected(server)) as there:
        session = there.open()
        can = session.capabilities
        session.close(1.0)
    assert {name: getattr(can, name) is Support.NATIVE for name in expected} == expected
    assert can.durable is (server != "something")
