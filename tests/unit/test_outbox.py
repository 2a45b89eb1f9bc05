"""Messages on their way out: what each is told, and when."""

import logging
from typing import Any

import pytest
from fakes import PATIENCE, FakeSession, all_unknown, failing, in_thread, outgoing

from mqlayer.clock import ManualClock, SystemClock
from mqlayer.engine.outbox import BATCH_MAX, SEND_WINDOW, Outbox
from mqlayer.engine.parcel import Parcel, Tally
from mqlayer.errors import (
    ConnectionLostError,
    Fate,
    MQError,
    NotSentError,
    OutcomeUnknownError,
    QueueNotFoundError,
    RefusedError,
    SendError,
    SendTimeoutError,
    UnroutableError,
    UnsupportedError,
)

QUEUE = (False, "q")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def outbox(clock: ManualClock) -> Outbox:
    return Outbox("fake:// sender", clock)


def parcel(
    id: str = "m", *, deadline: float = 30.0, target: tuple[bool, str] = QUEUE, tally: Tally | None = None
) -> Parcel:
    return Parcel(target, outgoing(id), deadline, tally)


def put(outbox: Outbox, *parcels: Parcel) -> None:
    for one in parcels:
        assert outbox.put(one)


def error_of(one: Parcel) -> SendError:
    assert one.future.done()
    error = one.future.exception(0)
    assert isinstance(error, SendError)
    assert error.message_id == one.outgoing.id
    return error


class TestWindow:
    def test_it_holds_so_many_and_no_more(self, outbox: Outbox) -> None:
        assert SEND_WINDOW == 1024
        put(outbox, *(parcel(str(number)) for number in range(SEND_WINDOW)))
        assert not outbox.put(parcel("one too many"))

    def test_room_is_told_when_a_batch_has_been_taken(self, outbox: Outbox) -> None:
        put(outbox, *(parcel(str(number)) for number in range(SEND_WINDOW)))
        version = outbox.room.version
        outbox.hand_over(FakeSession())
        assert outbox.room.version > version
        assert outbox.put(parcel("room again"))

    def test_a_batch_is_bounded(self, outbox: Outbox) -> None:
        session = FakeSession()
        put(outbox, *(parcel(str(number)) for number in range(SEND_WINDOW)))
        outbox.hand_over(session)
        assert max(len(call[1]) for call in session.named("send")) <= BATCH_MAX


class TestFates:
    def test_confirmed(self, outbox: Outbox) -> None:
        one = parcel("a")
        put(outbox, one)
        outbox.hand_over(FakeSession())
        assert one.future.result(0) == "a"

    def test_a_deadline_in_the_queue_is_not_sent(self, outbox: Outbox, clock: ManualClock) -> None:
        session, late, live = FakeSession(), parcel("late", deadline=1.0), parcel("live")
        put(outbox, late, live)
        clock.advance(2.0)
        outbox.hand_over(session)
        assert isinstance(error_of(late), SendTimeoutError)
        assert error_of(late).fate is Fate.NOT_SENT
        assert session.sent_ids == ["live"]

    def test_a_deadline_in_flight_is_unknown(self, outbox: Outbox, clock: ManualClock) -> None:
        session, one = FakeSession(), parcel("a", deadline=2.0)

        def slow(name: str, batch: Any, timeout: float) -> Any:
            clock.advance(timeout)
            return all_unknown(name, batch, timeout)

        session.on("send", slow)
        put(outbox, one)
        outbox.hand_over(session)
        assert error_of(one).fate is Fate.UNKNOWN

    def test_withdrawn_in_the_queue_is_not_sent_and_never_leaves(self, outbox: Outbox) -> None:
        session, one = FakeSession(), parcel("a")
        put(outbox, one)
        outbox.withdraw(one)
        outbox.hand_over(session)
        assert isinstance(error_of(one), SendTimeoutError)
        assert session.sent == []

    def test_withdrawn_in_flight_gets_its_fate_from_the_broker(self) -> None:
        outbox = Outbox("fake:// sender", SystemClock())
        session, one = FakeSession(), parcel("a", deadline=1e9)
        gate = session.gate("send")
        put(outbox, one)
        with in_thread(lambda: outbox.hand_over(session)):
            gate.wait_entered()
            outbox.withdraw(one)
            assert not one.future.done()
            gate.open()
        assert one.future.result(PATIENCE) == "a"

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (RefusedError("no"), RefusedError),
            (UnroutableError("no queue"), QueueNotFoundError),
            (UnsupportedError("no"), RefusedError),
            (ConnectionLostError("cut"), NotSentError),
        ],
    )
    def test_a_final_error(self, outbox: Outbox, error: MQError, kind: type[Exception]) -> None:
        session, one = FakeSession(), parcel("a")
        session.on("send", failing({0: error}))
        put(outbox, one)
        outbox.hand_over(session)
        assert isinstance(error_of(one), kind)
        assert not outbox

    def test_one_error_object_for_many_messages_names_each(self, outbox: Outbox) -> None:
        session, both = FakeSession(), [parcel("a"), parcel("b")]
        session.on("send", failing(dict.fromkeys(range(2), RefusedError("full"))))
        put(outbox, *both)
        outbox.hand_over(session)
        assert [error_of(one).message_id for one in both] == ["a", "b"]

    @pytest.mark.parametrize("error", [NotSentError("busy"), OutcomeUnknownError("?")])
    def test_what_still_has_time_is_queued_again_at_the_front(self, outbox: Outbox, error: MQError) -> None:
        session, hasty, patient, behind = FakeSession(), parcel("a", deadline=1.0), parcel("b"), parcel("c")
        session.on("send", failing({0: error, 1: error}))
        put(outbox, hasty, patient)
        outbox.hand_over(session)
        put(outbox, behind)
        while outbox:
            outbox.hand_over(session)
        assert session.sent_ids == ["a", "b", "c"]
        unknown = isinstance(error, OutcomeUnknownError)
        assert [message.trail.resent for _, message in session.sent] == [unknown, unknown, 0]

    def test_a_broker_that_is_slow_gets_no_message_at_each_deadline_of_its_neighbours(
        self, outbox: Outbox, clock: ManualClock
    ) -> None:
        attempts: list[tuple[list[str], float]] = []

        def slow(name: str, batch: Any, timeout: float) -> Any:
            attempts.append(([message.id for message in batch], round(timeout, 3)))
            clock.advance(timeout)
            return all_unknown(name, batch, timeout)

        session, many = FakeSession(), [parcel(f"{number:02}", deadline=0.5 + number / 10) for number in range(11)]
        session.on("send", *[slow] * 20)
        put(outbox, *many)
        while outbox:
            outbox.hand_over(session)
        assert attempts[0] == ([one.outgoing.id for one in many], 0.5)
        assert all(error_of(one).fate is Fate.UNKNOWN for one in many)
        again = [id for ids, _ in attempts[1:] for id in ids]
        assert sorted(again) == sorted(set(again)), "once more each, at the most"
        assert session.sent == []

    def test_once_it_answers_everything_goes_together_again(self, outbox: Outbox) -> None:
        session, two = FakeSession(), [parcel("a", deadline=1.0), parcel("b", deadline=9.0)]
        session.on("send", all_unknown)
        put(outbox, *two)
        for _ in range(3):
            outbox.hand_over(session)
        assert all(one.future.done() for one in two)
        put(outbox, parcel("c", deadline=1.0), parcel("d", deadline=9.0))
        outbox.hand_over(session)
        assert [len(call[1]) for call in session.named("send")] == [2, 1, 1, 2]

    @pytest.mark.parametrize("later", [RefusedError("no"), NotSentError("no"), UnroutableError("no")])
    def test_once_unknown_stays_unknown(self, outbox: Outbox, clock: ManualClock, later: MQError) -> None:
        session, one = FakeSession(), parcel("a", deadline=2.0)
        session.on("send", all_unknown, lambda *call: clock.advance(5.0) or {0: later})
        put(outbox, one)
        outbox.hand_over(session)
        outbox.hand_over(session)
        assert error_of(one).fate is Fate.UNKNOWN

    def test_unknown_and_then_late_in_the_queue_stays_unknown(self, outbox: Outbox, clock: ManualClock) -> None:
        session, one = FakeSession(), parcel("a", deadline=2.0)
        session.on("send", all_unknown)
        put(outbox, one)
        outbox.hand_over(session)
        clock.advance(3.0)
        outbox.hand_over(session)
        assert error_of(one).fate is Fate.UNKNOWN

    def test_unknown_and_then_closed_stays_unknown(self, outbox: Outbox) -> None:
        session, one, other = FakeSession(), parcel("a"), parcel("b")
        session.on("send", all_unknown)
        put(outbox, one)
        outbox.hand_over(session)
        put(outbox, other)
        outbox.fail()
        assert error_of(one).fate is Fate.UNKNOWN
        assert error_of(other).fate is Fate.NOT_SENT

    def test_a_batch_fails_in_part(self, outbox: Outbox) -> None:
        session, three = FakeSession(), [parcel(name) for name in "abc"]
        session.on("send", failing({1: RefusedError("no")}))
        put(outbox, *three)
        outbox.hand_over(session)
        assert [one.future.exception(0) is None for one in three] == [True, False, True]


class TestTargets:
    def test_each_queue_gets_its_own_in_their_order(self, outbox: Outbox) -> None:
        session = FakeSession()
        r, topic = (False, "r"), (True, "q")
        put(outbox, *(parcel(f"{n}", target=target) for n, target in enumerate([QUEUE, r, topic, QUEUE, r, topic])))
        outbox.hand_over(session)
        assert [(queue, message.id) for queue, message in session.sent] == [
            ("q", "0"),
            ("q", "3"),
            ("r", "1"),
            ("r", "4"),
        ]
        assert [(name, message.id) for name, message in session.published] == [("q", "2"), ("q", "5")]

    def test_a_batch_waits_no_longer_than_its_most_hurried_message(self, outbox: Outbox) -> None:
        session = FakeSession()
        put(outbox, parcel("a", deadline=9.0), parcel("b", deadline=4.0))
        outbox.hand_over(session)
        assert session.named("send")[0][2] == 4.0


class TestDefects:
    def test_every_future_is_told(self, outbox: Outbox) -> None:
        session = FakeSession()
        session.on("send", failing({0: NotSentError("busy")}), ZeroDivisionError("a defect"))
        again, struck, behind, queued = (
            parcel("again", target=(False, "first")),
            parcel("struck", target=(False, "second")),
            parcel("behind", target=(False, "third")),
            parcel("queued"),
        )
        put(outbox, again, struck, behind)
        with pytest.raises(ZeroDivisionError):
            outbox.hand_over(session)
        put(outbox, queued)
        outbox.fail()
        assert error_of(struck).fate is Fate.UNKNOWN
        assert "a defect" in str(error_of(struck))
        assert [error_of(one).fate for one in (again, behind, queued)] == [Fate.NOT_SENT] * 3


class TestClosing:
    def test_what_is_not_safe_at_the_end_is_logged(
        self, outbox: Outbox, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        session, flying, queued = FakeSession(), parcel("flying"), parcel("queued")
        session.on("send", lambda *call: clock.advance(9.0) or all_unknown(*call))
        outbox.ends_at = 5.0
        put(outbox, flying)
        with caplog.at_level(logging.WARNING, "mqlayer"):
            outbox.hand_over(session)
            put(outbox, queued)
            outbox.fail()
        assert error_of(flying).fate is Fate.UNKNOWN
        assert error_of(queued).fate is Fate.NOT_SENT
        assert [record.getMessage().split(";")[0] for record in caplog.records] == ["fake:// sender closes"] * 2

    def test_what_is_safe_is_not_logged(self, outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
        outbox.ends_at = 5.0
        put(outbox, parcel("a"))
        outbox.hand_over(FakeSession())
        outbox.fail()
        assert caplog.records == []

    def test_after_the_end_nothing_is_handed_over(self, outbox: Outbox, clock: ManualClock) -> None:
        session, one = FakeSession(), parcel("a")
        outbox.ends_at = 5.0
        put(outbox, one)
        clock.advance(6.0)
        outbox.hand_over(session)
        assert error_of(one).fate is Fate.NOT_SENT
        assert session.sent == []


class TestTally:
    def test_a_producer_hears_of_its_own(self, outbox: Outbox, clock: ManualClock) -> None:
        mine, other = Tally(clock), Tally(clock)
        session = FakeSession()
        session.on("send", failing({1: RefusedError("no")}))
        for tally in (mine, mine, other):
            tally.add()
        put(outbox, parcel("a", tally=mine), parcel("b", tally=mine), parcel("c", tally=other))
        outbox.hand_over(session)
        assert (mine.submitted, mine.done, other.done) == (2, 2, 1)
        assert [error.message_id for error in mine.take_failures()] == ["b"]
        assert mine.take_failures() == []
        assert other.take_failures() == []

    def test_a_future_cannot_be_cancelled(self) -> None:
        assert not parcel().future.cancel()
