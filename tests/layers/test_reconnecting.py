"""A session that outlives its connections."""

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fakes import NATIVE, PATIENCE, Connector, FakeSession, all_unknown, failing, in_thread, incoming, outgoing

from mqlayer.clock import ManualClock, SystemClock
from mqlayer.driver import Ack, Declare, Forward, Nack, QueueOptions
from mqlayer.errors import (
    AuthenticationError,
    ClosedError,
    ConnectFailedError,
    ConnectionLostError,
    ForkedError,
    MQError,
    NotSentError,
    OutcomeUnknownError,
    QueueNotFoundError,
    RefusedError,
    SendTimeoutError,
    StaleDeliveryError,
    StoreError,
    ThrottledError,
    UnroutableError,
    UnsupportedError,
)
from mqlayer.layers.reconnecting import Reconnecting

DOWN = ConnectFailedError("nobody listens")
CUT = ConnectionLostError("cut")
OPTIONS = QueueOptions()


def at_once(attempt: int, random: float) -> float:
    return 0.0


def reconnecting(
    *steps: Any, back_off: Callable[[int, float], float] = at_once, **more: Any
) -> tuple[Reconnecting, Connector]:
    connector = Connector(*steps)
    more.setdefault("clock", SystemClock())
    return Reconnecting(connector, NATIVE, back_off=back_off, **more), connector


class TestSending:
    def test_the_same_message_is_sent_again_under_its_id_and_marked(self) -> None:
        first, second = FakeSession(), FakeSession()
        first.on("send", CUT)
        session, _ = reconnecting(first, second)
        assert session.send("q", [outgoing("a"), outgoing("b")], 5.0) == {}
        assert second.sent_ids == ["a", "b"]
        assert [message.trail.resent for _, message in second.sent] == [1, 1]
        assert first.aborted
        assert first.closed

    def test_each_unknown_attempt_is_counted(self) -> None:
        live = FakeSession()
        live.on("send", all_unknown, all_unknown)
        session, _ = reconnecting(live)
        assert session.send("q", [outgoing("a")], 5.0) == {}
        assert live.sent[0][1].trail.resent == 2

    def test_only_what_failed_is_sent_again(self) -> None:
        live = FakeSession()
        live.on("send", failing({1: OutcomeUnknownError("?"), 2: NotSentError("no")}))
        session, _ = reconnecting(live)
        assert session.send("q", [outgoing("a"), outgoing("b"), outgoing("c")], 5.0) == {}
        assert live.sent_ids == ["a", "b", "c"]
        assert [message.trail.resent for _, message in live.sent] == [0, 1, 0]

    def test_what_is_confirmed_stays_confirmed_though_the_connection_ends_after(self) -> None:
        first, second = FakeSession(), FakeSession()
        first.on("send", failing({1: OutcomeUnknownError("?")}))
        first.on("receive", CUT)
        session, _ = reconnecting(first, second)
        assert session.send("q", [outgoing("a"), outgoing("b")], 5.0) == {}
        assert (first.sent_ids, second.sent_ids) == (["a"], ["b"])

    @pytest.mark.parametrize("later", [RefusedError("no"), NotSentError("no"), UnroutableError("no queue")])
    def test_once_unknown_stays_unknown(self, later: MQError) -> None:
        live = FakeSession()
        live.on("send", all_unknown)
        live.every("send", failing({0: later}))
        clock = ManualClock()
        session, _ = reconnecting(live, clock=clock, back_off=lambda attempt, random: clock.advance(1.0) or 0.0)
        failures = session.send("q", [outgoing("a")], 2.0)
        assert isinstance(failures[0], OutcomeUnknownError)
        assert failures[0].__cause__ is not None

    def test_a_refusal_after_an_unknown_attempt_stays_unknown_though_others_go_on(self) -> None:
        live = FakeSession()
        live.on("send", all_unknown, failing({0: RefusedError("full"), 1: NotSentError("busy")}))
        session, _ = reconnecting(live)
        failures = session.send("q", [outgoing("a"), outgoing("b")], 5.0)
        assert list(failures) == [0]
        assert isinstance(failures[0], OutcomeUnknownError)

    @pytest.mark.parametrize("error", [RefusedError("no"), UnroutableError("no queue"), UnsupportedError("no")])
    def test_a_refusal_is_final(self, error: MQError) -> None:
        live = FakeSession()
        live.on("send", failing({0: error}))
        session, _ = reconnecting(live)
        assert session.send("q", [outgoing("a"), outgoing("b")], 5.0) == {0: error}
        assert len(live.named("send")) == 1

    def test_a_store_that_is_in_another_process_is_tried_once(self) -> None:
        error = ForkedError("the store is in the parent's memory")
        session, _ = reconnecting(error, FakeSession())
        assert session.send("q", [outgoing("a")], 5.0) == {0: error}

    def test_what_is_refused_by_an_exception_is_final(self) -> None:
        live = FakeSession()
        live.on("send", UnsupportedError("no priority"))
        session, _ = reconnecting(live)
        assert isinstance(session.send("q", [outgoing("a")], 5.0)[0], UnsupportedError)
        assert len(live.named("send")) == 1

    def test_an_exception_that_says_nothing_of_the_messages_leaves_them_unknown(self) -> None:
        live = FakeSession()
        live.every("send", StoreError("disk"))
        clock = ManualClock()
        session, _ = reconnecting(live, clock=clock, back_off=lambda attempt, random: clock.advance(3.0) or 0.0)
        assert isinstance(session.send("q", [outgoing("a")], 2.0)[0], OutcomeUnknownError)

    def test_an_error_found_beside_a_send_is_told_by_the_next_receive_and_changes_no_fate(self) -> None:
        live = FakeSession()
        live.on("send", failing({0: NotSentError("busy")}))
        live.on("receive", QueueNotFoundError("gone"))
        session, _ = reconnecting(live)
        assert session.send("q", [outgoing("a")], 5.0) == {}
        with pytest.raises(QueueNotFoundError):
            session.receive(1, 0.0)
        assert session.receive(1, 0.0) == []

    def test_without_a_broker_nothing_was_sent(self) -> None:
        clock = ManualClock()
        session, _ = reconnecting(*[DOWN] * 50, clock=clock, back_off=lambda attempt, random: clock.advance(0.5) or 0.0)
        failures = session.send("q", [outgoing("a")], 2.0)
        assert isinstance(failures[0], SendTimeoutError)
        assert failures[0].__cause__ is DOWN

    def test_a_throttled_broker_is_asked_again_until_the_time_is_up(self) -> None:
        live = FakeSession()
        live.every("send", failing({0: ThrottledError("slow down")}))
        clock = ManualClock()
        session, _ = reconnecting(live, clock=clock, back_off=lambda attempt, random: clock.advance(0.5) or 0.0)
        assert isinstance(session.send("q", [outgoing("a")], 2.0)[0], SendTimeoutError)
        assert 3 <= len(live.named("send")) <= 5

    def test_the_timeout_bounds_all_attempts_together(self) -> None:
        clock = ManualClock()
        live = FakeSession()

        def slow(name: str, batch: Any, timeout: float) -> dict[int, MQError]:
            clock.advance(timeout)
            return all_unknown(name, batch, timeout)  # type: ignore[return-value]

        live.every("send", slow)
        session, _ = reconnecting(live, clock=clock)
        session.send("q", [outgoing("a")], 1.0)  # connects
        before = clock.monotonic()
        session.send("q", [outgoing("a")], 4.0)
        assert clock.monotonic() - before == 4.0

    def test_a_topic_is_published_to_again(self) -> None:
        first, second = FakeSession(), FakeSession()
        first.on("publish", CUT)
        session, _ = reconnecting(first, second)
        assert session.publish("news", [outgoing("a")], 5.0) == {}
        assert [message.trail.resent for _, message in second.published] == [1]

    @pytest.mark.parametrize("end", ["abort", "close"])
    def test_the_end_stops_the_attempts(self, end: str) -> None:
        session, connector = reconnecting(*[DOWN] * 50, back_off=lambda attempt, random: 3600.0)
        with in_thread(lambda: session.send("q", [outgoing("a")], 60.0)) as sending:
            while not connector.attempts:
                threading.Event().wait(0.001)
            session.abort() if end == "abort" else session.close(0.0)
            assert isinstance(sending.result()[0], NotSentError)


class TestAgain:
    """Declare, bind and questions are simply asked again."""

    def test_a_question_is_asked_again_on_the_next_connection(self) -> None:
        first, second = FakeSession(), FakeSession()
        first.on("purge", CUT)
        second.on("purge", 7)
        session, connector = reconnecting(first, second)
        assert session.purge("q", 5.0) == 7
        assert connector.attempts == 2

    def test_other_errors_are_the_callers(self) -> None:
        live = FakeSession()
        live.on("stats", QueueNotFoundError("no"))
        session, _ = reconnecting(live)
        with pytest.raises(QueueNotFoundError):
            session.stats("q", 5.0)

    def test_refused_credentials_are_tried_until_the_time_is_up(self) -> None:
        clock = ManualClock()
        session, connector = reconnecting(
            *[AuthenticationError("no")] * 9, clock=clock, back_off=lambda attempt, random: clock.advance(1.0) or 0.0
        )
        with pytest.raises((AuthenticationError, ConnectionLostError)):
            session.purge("q", 3.0)
        assert connector.attempts >= 2

    def test_after_the_end_nothing_is_tried(self) -> None:
        session, connector = reconnecting(FakeSession())
        session.close(1.0)
        with pytest.raises(ClosedError):
            session.purge("q", 5.0)
        assert isinstance(session.send("q", [outgoing("a")], 5.0)[0], NotSentError)
        assert connector.attempts == 0


class TestRestoring:
    def test_a_new_connection_is_told_everything(self) -> None:
        first, second = FakeSession(), FakeSession()
        session, _ = reconnecting(first, second)
        session.declare("q", QueueOptions(ordered=True), Declare.COMPARE, 5.0)
        session.declare("checked", OPTIONS, Declare.CHECK, 5.0)
        session.bind("news", "mailer", 5.0)
        session.subscribe("q", 5, 30.0, 5.0)
        session.subscribe("q", 20, 30.0, 5.0)
        session.subscribe("r", 1, None, 5.0)
        session.unsubscribe("r", 5.0)
        first.lose()
        assert session.receive(1, 0.0) == ()
        assert session.receive(1, 0.0) == ()
        told = [call[:-1] for call in second.calls if call[0] in ("declare", "bind", "subscribe")]
        assert told == [
            ("declare", "q", QueueOptions(ordered=True), Declare.ENSURE),
            ("bind", "news", "mailer"),
            ("subscribe", "q", 20, 30.0),
        ]

    def test_a_deleted_queue_is_not_made_again(self) -> None:
        first, second = FakeSession(), FakeSession()
        session, _ = reconnecting(first, second)
        session.declare("q", OPTIONS, Declare.ENSURE, 5.0)
        session.delete("q", 5.0)
        first.lose()
        session.purge("other", 5.0)
        assert second.named("declare") == []

    def test_a_temporary_subscription_keeps_the_name_that_its_owner_knows(self) -> None:
        sessions = [FakeSession() for _ in range(3)]
        for number, one in enumerate(sessions):
            one.every("bind", f"news.temp{number}")
        session, _ = reconnecting(*sessions)
        name = session.bind("news", None, 5.0)
        session.subscribe(name, 5, None, 5.0)
        for number, (old, new) in enumerate(itertools.pairwise(sessions), 1):
            old.lose()
            session.receive(1, 0.0)
            session.receive(1, 0.0)
            here = f"news.temp{number}"
            assert new.windows == {here: 5}
            new.deliver(incoming("m", here))
            (got,) = session.receive(5, 1.0)
            assert got.queue == name == "news.temp0"
            session.settle([Nack(got), Forward(got, name, got.message), Ack(got)], 1.0)
            assert {verdict.of.queue for verdict in new.settled} == {here}
            assert [verdict.queue for verdict in new.settled if isinstance(verdict, Forward)] == [here]
            session.send(name, [outgoing("copy")], 1.0)
            assert new.sent[-1][0] == here
            session.purge(name, 1.0)
            assert new.named("purge")[0][0] == here

    def test_a_name_that_comes_back_is_used_again(self) -> None:
        sessions = [FakeSession() for _ in range(3)]
        for one, name in zip(sessions, ("one", "two", "one"), strict=True):
            one.every("bind", name)
        session, _ = reconnecting(*sessions)
        session.bind("news", None, 5.0)
        for one in sessions[:2]:
            one.lose()
            session.receive(1, 0.0)
            session.receive(1, 0.0)
        session.purge("one", 1.0)
        assert sessions[2].named("purge")[0][0] == "one"

    def test_a_vanished_queue_is_told(self) -> None:
        first, second = FakeSession(), FakeSession()
        second.on("subscribe", QueueNotFoundError("gone"))
        session, _ = reconnecting(first, second, FakeSession())
        session.subscribe("q", 5, None, 5.0)
        first.lose()
        assert session.receive(1, 0.0) == ()
        with pytest.raises(QueueNotFoundError):
            session.receive(1, 1.0)
        assert second.closed

    def test_a_queue_that_never_was_does_not_stand_in_the_way_of_others(self) -> None:
        first, second = FakeSession(), FakeSession()
        session, _ = reconnecting(first, second)
        session.subscribe("q", 1, None, 5.0)
        first.on("subscribe", QueueNotFoundError("no"))
        with pytest.raises(QueueNotFoundError):
            session.subscribe("missing", 1, None, 5.0)
        first.lose()
        session.receive(1, 0.0)
        session.receive(1, 0.0)
        assert set(second.windows) == {"q"}

    def test_a_queue_that_vanished_is_told_once_and_the_others_go_on(self) -> None:
        first, second, third = FakeSession(), FakeSession(), FakeSession()
        session, _ = reconnecting(first, second, third)
        for queue in ("gone", "here"):
            session.subscribe(queue, 1, None, 5.0)
        first.lose()
        second.on("subscribe", QueueNotFoundError("gone"))
        session.receive(1, 0.0)
        with pytest.raises(QueueNotFoundError):
            session.receive(1, 0.0)
        assert session.receive(1, 0.0) == ()
        assert set(third.windows) == {"here"}

    def test_a_connection_that_cannot_be_restored_is_let_go(self) -> None:
        first, second, third = FakeSession(), FakeSession(), FakeSession()
        second.on("subscribe", CUT)
        second.on("close", CUT)
        session, _ = reconnecting(first, second, third)
        session.subscribe("q", 5, None, 5.0)
        first.lose()
        for _ in range(3):
            assert session.receive(1, 0.0) == ()
        assert third.windows == {"q": 5}


class TestReceiving:
    def test_a_lost_connection_is_no_error_of_receive(self) -> None:
        first, second = FakeSession(), FakeSession()
        session, connector = reconnecting(first, second)
        session.subscribe("q", 5, None, 5.0)
        first.lose()
        assert session.receive(5, 0.0) == ()
        assert session.receive(5, 0.0) == ()
        second.deliver(incoming("m1"))
        assert [got.message.id for got in session.receive(5, 1.0)] == ["m1"]
        assert connector.attempts == 2

    def test_while_nobody_listens_it_waits_between_attempts(self) -> None:
        clock = ManualClock()
        session, connector = reconnecting(*[DOWN] * 9, clock=clock, back_off=lambda attempt, random: 2.0**attempt)
        attempts = []
        for _ in range(40):
            assert session.receive(5, 0.0) == ()
            attempts.append(connector.attempts)
            clock.advance(0.25)
        assert attempts[:6] == [1, 1, 1, 1, 2, 2]
        assert attempts[-1] == 4  # at 0, 1, 3 and 7 s

    def test_the_pause_is_ended_by_wake(self) -> None:
        session, connector = reconnecting(DOWN, FakeSession(), back_off=lambda attempt, random: 3600.0)
        assert session.receive(5, 0.0) == ()
        with in_thread(lambda: session.receive(5, 3600.0)) as receiving:
            session.wake()
            assert receiving.result() == ()
        assert connector.attempts == 1

    def test_the_pause_is_ended_by_abort(self) -> None:
        session, connector = reconnecting(DOWN, FakeSession(), back_off=lambda attempt, random: 3600.0)
        assert session.receive(5, 0.0) == ()
        with in_thread(lambda: session.receive(5, 3600.0)) as receiving:
            session.abort()
            assert receiving.result() == ()
        assert connector.attempts == 1

    def test_subscribing_without_a_broker_makes_the_attempt_that_is_due_and_waits_for_none(self) -> None:
        late = FakeSession()
        session, connector = reconnecting(DOWN, late, back_off=lambda attempt, random: 3600.0 * attempt)
        session.subscribe("q", 5, None, 3600.0)
        assert connector.attempts == 1
        session.receive(1, 0.0)
        assert late.windows == {"q": 5}
        session, connector = reconnecting(DOWN, back_off=lambda attempt, random: 3600.0)
        session.receive(1, 0.0)
        session.subscribe("q", 5, None, 3600.0)  # who asks for nothing but a look waits for this too
        assert connector.attempts == 1

    def test_a_session_that_comes_too_late_is_aborted(self) -> None:
        late = FakeSession()
        entered, go = threading.Event(), threading.Event()

        def slowly() -> FakeSession:
            entered.set()
            assert go.wait(PATIENCE)
            return late

        session, _ = reconnecting(slowly)
        with in_thread(lambda: session.receive(1, 5.0)):
            assert entered.wait(PATIENCE)
            session.abort()
            go.set()
        assert late.aborted

    def test_changes_are_told(self) -> None:
        told: list[MQError | None] = []
        first, second = FakeSession(), FakeSession()
        session, _ = reconnecting(DOWN, first, second, on_change=told.append)
        for _ in range(2):
            session.receive(1, 0.0)
        first.lose()
        for _ in range(2):
            session.receive(1, 0.0)
        assert [type(change) for change in told] == [ConnectFailedError, type(None), ConnectionLostError, type(None)]


class TestSettling:
    def test_without_a_connection_everything_is_stale(self) -> None:
        session, connector = reconnecting(FakeSession())
        failures = session.settle([Ack(incoming("a")), Ack(incoming("b"))], 5.0)
        assert [type(error) for error in failures.values()] == [StaleDeliveryError] * 2
        assert connector.attempts == 0

    def test_a_connection_that_ends_meanwhile_makes_everything_stale(self) -> None:
        first = FakeSession()
        first.on("settle", CUT)
        session, _ = reconnecting(first, FakeSession())
        session.receive(1, 0.0)
        assert isinstance(session.settle([Ack(incoming("a"))], 5.0)[0], StaleDeliveryError)
        assert first.closed

    def test_a_lost_connection_that_is_told_by_a_failure_is_made_again(self) -> None:
        first, second = FakeSession(), FakeSession()
        first.on("settle", failing({0: CUT}))
        session, connector = reconnecting(first, second)
        session.receive(1, 0.0)
        assert session.settle([Ack(incoming("a"))], 5.0) == {0: CUT}
        assert first.closed
        session.receive(1, 0.0)
        assert connector.attempts == 2

    def test_failures_pass(self) -> None:
        live = FakeSession()
        error = RefusedError("no")
        live.on("settle", failing({1: error}))
        session, _ = reconnecting(live)
        session.receive(1, 0.0)
        assert session.settle([Ack(incoming("a")), Ack(incoming("b"))], 5.0) == {1: error}
        assert not live.closed


class TestTooBusy:
    """A broker that asks to slow down."""

    def test_a_receive_pauses_and_asks_again_later(self) -> None:
        first = FakeSession()
        first.on("receive", ThrottledError("slow down"))
        pauses: list[int] = []

        def back_off(attempt: int, random: float) -> float:
            pauses.append(attempt)
            return 0.2

        session, _ = reconnecting(first, back_off=back_off)
        session.subscribe("q", 1, None, 5.0)
        assert session.receive(1, 0.05) == ()
        assert session.receive(1, 0.05) == ()
        assert len(first.named("receive")) == 1, "it is not asked during the pause"
        first.deliver(incoming("a"))
        begun = time.monotonic()
        found: list[Any] = []
        while not found and time.monotonic() < begun + PATIENCE:
            found += session.receive(1, 0.05)
        assert [one.message.id for one in found] == ["a"]
        assert pauses == [0]

    def test_wake_ends_the_pause_of_one_call(self) -> None:
        first = FakeSession()
        first.on("receive", ThrottledError("slow down"))
        session, _ = reconnecting(first, back_off=lambda attempt, random: PATIENCE)
        session.subscribe("q", 1, None, 5.0)
        session.wake()
        assert session.receive(1, PATIENCE) == ()

    def test_verdicts_that_it_was_too_busy_for_are_given_again(self) -> None:
        first = FakeSession()
        first.on("settle", {1: ThrottledError("slow down")})
        session, _ = reconnecting(first)
        session.subscribe("q", 2, None, 5.0)
        first.deliver(incoming("a"), incoming("b"))
        held: list[Any] = []
        while len(held) < 2:
            held += session.receive(2, 5.0)
        assert session.settle([Ack(one) for one in held], 5.0) == {}
        assert len(first.named("settle")) == 2
        assert [verdict.of.message.id for verdict in first.settled][-1] == "b"

    def test_questions_are_asked_again_until_their_time_is_up(self) -> None:
        first = FakeSession()
        first.on("stats", ThrottledError("slow down"))
        session, _ = reconnecting(first)
        session.stats("q", 5.0)
        first.every("stats", ThrottledError("slow down"))
        with pytest.raises(ThrottledError):
            session.stats("q", 0.05)

    def test_what_comes_with_a_look_at_the_connection_is_handed_over(self) -> None:
        first = FakeSession()
        session, _ = reconnecting(first)
        session.subscribe("q", 1, None, 5.0)
        first.on("send", {0: NotSentError("not now")})
        first.on("receive", [incoming("early")])
        assert session.send("q", [outgoing("x")], 5.0) == {}
        assert [one.message.id for one in session.receive(1, 5.0)] == ["early"]
