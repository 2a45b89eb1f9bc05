"""A line with its thread, over a scripted session."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from fakes import NATIVE, PATIENCE, FakeSession, in_thread, incoming, outgoing

from mqlayer.clock import SystemClock
from mqlayer.driver import Ack, Nack, Release
from mqlayer.engine.held import Held
from mqlayer.engine.intake import Intake
from mqlayer.engine.line import HASTY_MAX, ThreadLine
from mqlayer.engine.parcel import Parcel
from mqlayer.engine.process import PROCESS
from mqlayer.errors import (
    ClosedError,
    ConnectionLostError,
    NotSentError,
    OutcomeUnknownError,
    QueueNotFoundError,
    RequestTimeoutError,
    SendTimeoutError,
    StaleDeliveryError,
    StoreError,
)
from mqlayer.layers.observed import Observations

QUEUE = (False, "q")
ME = threading.current_thread()


class Lines:
    """Makes lines, and closes them at the end of the test."""

    def __init__(self) -> None:
        self.made: list[ThreadLine] = []

    def __call__(self, session: FakeSession, *, prefetch: int = 0, timeout: float = 30.0) -> ThreadLine:
        clock = SystemClock()
        intake = Intake(NATIVE, clock=clock, prefetch=prefetch, lease=None, hold_max=3600.0) if prefetch else None
        line = ThreadLine(
            "fake:// line",
            lambda lost: session,
            NATIVE,
            clock=clock,
            seen=Observations(),
            timeout=timeout,
            intake=intake,
        )
        if prefetch:
            line.consume("q")
        self.made.append(line)
        return line


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    for line in lines.made:
        line.close(5.0)


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


def parcel(id: str = "m", seconds: float = PATIENCE) -> Parcel:
    return Parcel(QUEUE, outgoing(id), time.monotonic() + seconds, None)


def receive(line: ThreadLine) -> Held:
    line.ask(1)
    try:
        while True:
            version = line.arrivals.version
            taken = line.take(1, ME)
            if taken:
                return taken[0]
            line.arrivals.wait(version, PATIENCE)
    finally:
        line.ask(-1)


class TestOwner:
    def test_it_starts_on_first_use_and_ends_with_close(self, lines: Lines, session: FakeSession) -> None:
        before = threading.active_count()
        line = lines(session)
        assert threading.active_count() == before
        line.send(QUEUE, outgoing("a"), time.monotonic() + PATIENCE)
        assert threading.active_count() == before + 1
        line.close(5.0)
        assert threading.active_count() == before
        assert session.closed

    def test_an_unused_line_closes_its_session(self, lines: Lines, session: FakeSession) -> None:
        lines(session).close(5.0)
        assert session.closed

    def test_one_wake_serves_many(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session)
        gate = session.gate("send")
        parcels = [parcel(str(number)) for number in range(200)]
        assert line.submit(parcels[0])
        gate.wait_entered()
        for one in parcels[1:]:
            assert line.submit(one)
        gate.open()
        for one in parcels:
            line.await_fate(one)
        assert [len(call[1]) for call in session.named("send")] == [1, 199]

    def test_an_error_that_comes_at_once_each_time_is_no_hot_loop(self, lines: Lines, session: FakeSession) -> None:
        session.every("receive", StoreError("disk"))
        line = lines(session)
        line.send(QUEUE, outgoing("a"), time.monotonic() + PATIENCE)
        threading.Event().wait(0.1)
        assert len(session.named("receive")) < 5
        line.send(QUEUE, outgoing("b"), time.monotonic() + PATIENCE)
        assert session.sent_ids == ["a", "b"]

    def test_a_session_that_never_waits_is_no_hot_loop(self, lines: Lines, session: FakeSession) -> None:
        session.every("receive", ())
        line = lines(session)
        line.send(QUEUE, outgoing("a"), time.monotonic() + PATIENCE)
        threading.Event().wait(0.2)
        assert len(session.named("receive")) < HASTY_MAX + 50
        line.send(QUEUE, outgoing("b"), time.monotonic() + PATIENCE)
        assert session.sent_ids == ["a", "b"]

    def test_a_consumer_hears_of_it_and_goes_on(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session, prefetch=4)
        session.on("receive", StoreError("disk"))
        with pytest.raises(StoreError):
            receive(line)
        session.deliver(incoming("a"))
        assert receive(line).incoming.message.id == "a"


class TestCalls:
    def test_done_by_the_owner_with_the_time_left(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session)
        where: list[str] = []

        def call(own: Any, left: float) -> float:
            where.append(threading.current_thread().name)
            return left

        assert 0 < line.call(call, 5.0).result(PATIENCE) <= 5.0
        assert where == ["mqlayer fake:// line"]

    def test_its_error_is_the_callers(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session)
        session.on("purge", QueueNotFoundError("no"))
        with pytest.raises(QueueNotFoundError):
            line.call(lambda own, left: own.purge("q", left), 5.0).result(PATIENCE)
        assert line.call(lambda own, left: 7, 5.0).result(PATIENCE) == 7

    def test_a_cancelled_one_is_not_done(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session)
        gate = session.gate("send")
        line.submit(parcel())
        gate.wait_entered()
        done: list[int] = []
        first = line.call(lambda own, left: done.append(1), 5.0)
        assert first.cancel()
        second = line.call(lambda own, left: done.append(2), 5.0)
        gate.open()
        second.result(PATIENCE)
        assert done == [2]

    def test_one_that_waited_too_long_is_not_done(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session)
        gate = session.gate("send")
        line.submit(parcel())
        gate.wait_entered()
        late = line.call(lambda own, left: pytest.fail("too late"), 0.0)
        gate.open()
        with pytest.raises(RequestTimeoutError):
            late.result(PATIENCE)


class TestSending:
    def test_a_deadline_while_the_owner_is_busy(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session)
        gate = session.gate("send")
        line.submit(parcel("first"))
        gate.wait_entered()
        with pytest.raises(SendTimeoutError) as caught:
            line.send(QUEUE, outgoing("mine"), time.monotonic() + 0.05)
        assert caught.value.message_id == "mine"
        gate.open()

    def test_so_many_wait_and_the_next_waits_for_room(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session)
        gate = session.gate("send")
        line.submit(parcel("in flight"))
        gate.wait_entered()
        for number in range(1024):
            assert line.submit(parcel(str(number)))
        assert not line.submit(parcel("one too many"))
        with pytest.raises(SendTimeoutError, match="no room"):
            line.send(QUEUE, outgoing("too late"), time.monotonic() + 0.02)
        with in_thread(lambda: line.send(QUEUE, outgoing("last"), time.monotonic() + PATIENCE)) as sending:
            sending.thread.join(0.05)
            assert sending.thread.is_alive()
            gate.open()
            sending.result()
        assert session.sent_ids[-1] == "last"
        assert len(session.sent_ids) == 1026


class TestConsuming:
    def test_nothing_is_fetched_before_somebody_asks(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session, prefetch=4)
        session.deliver(incoming("a"))
        line.look().result(PATIENCE)
        assert session.named("subscribe") == []

    def test_the_window_opens_with_the_first_settle(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session, prefetch=4)
        session.deliver(*(incoming(str(number)) for number in range(10)))
        first = receive(line)
        assert [call[1] for call in session.named("subscribe")] == [1]
        line.settle(first, Ack(first.incoming)).result(PATIENCE)
        session.until(lambda: session.windows == {"q": 4})
        assert len({call[1] for call in session.named("subscribe")}) == len(session.named("subscribe")) == 2

    def test_a_poison_message_goes_alone(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session, prefetch=4)
        session.deliver(incoming("a"), incoming("b"), incoming("poison", count=2), incoming("c"))
        first = receive(line)
        line.settle(first, Ack(first.incoming)).result(PATIENCE)
        session.until(lambda: {verdict.of.message.id for verdict in session.settled} >= {"a", "b", "c"})
        assert {type(verdict) for verdict in session.settled} == {Ack, Release}
        assert receive(line).incoming.message.id in {"poison", "b", "c"}

    def test_closing_releases_what_is_buffered(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session, prefetch=4)
        session.deliver(*(incoming(str(number)) for number in range(5)))
        first = receive(line)
        line.settle(first, Ack(first.incoming)).result(PATIENCE)
        session.until(lambda: line.load[0] == 4)
        line.close(5.0)
        assert sorted(verdict.of.message.id for verdict in session.settled if type(verdict) is Release) == list("1234")

    def test_settlements_queued_at_the_close_are_carried_out(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session, prefetch=4)
        session.deliver(incoming("a"), incoming("b"))
        one, two = receive(line), receive(line)
        gate = session.gate("settle")
        line.settle_later(one, Ack(one.incoming))
        gate.wait_entered()
        future = line.settle(two, Nack(two.incoming))
        with in_thread(lambda: line.close(5.0)):
            gate.open()
        assert future.exception(0) is None
        assert session.settled == [Ack(one.incoming), Nack(two.incoming)]

    def test_after_the_close_everything_is_stale(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session, prefetch=4)
        session.deliver(incoming("a"))
        held = receive(line)
        line.close(5.0)
        for settle in (line.settle, line.settle_later):
            with pytest.raises(StaleDeliveryError):
                settle(held, Ack(held.incoming))
        assert session.settled == []

    def test_a_line_that_does_not_consume_says_so(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session)
        for call in (lambda: line.take(1, ME), lambda: line.consume("q"), lambda: line.arrivals):
            with pytest.raises(ClosedError):
                call()
        assert line.load == (0, 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
class TestDefects:
    def test_everybody_hears_of_it(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session, prefetch=4)
        session.deliver(incoming("a"))
        held = receive(line)
        gate = session.gate("settle", ZeroDivisionError("a defect"))
        struck = line.settle(held, Nack(held.incoming))
        gate.wait_entered()
        queued = [parcel(str(number)) for number in range(3)]
        for one in queued:
            assert line.submit(one)
        asked = line.call(lambda own, left: 1, 5.0)
        with in_thread(lambda: receive(line)) as receiving:
            gate.open()
            with pytest.raises(ConnectionLostError, match="defect"):
                receiving.result()
        assert isinstance(struck.exception(PATIENCE), ZeroDivisionError)
        assert all(isinstance(one.future.exception(PATIENCE), NotSentError) for one in queued)
        assert isinstance(asked.exception(PATIENCE), ZeroDivisionError)
        with pytest.raises(NotSentError, match="defect"):
            line.submit(parcel())
        with pytest.raises(ConnectionLostError, match="defect"):
            line.call(lambda own, left: 1, 5.0)
        assert session.closed

    def test_a_session_that_cannot_even_close(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session)
        session.on("close", ConnectionLostError("gone"))
        line.send(QUEUE, outgoing("a"), time.monotonic() + PATIENCE)
        line.close(5.0)
        with pytest.raises(ClosedError):
            line.submit(parcel())


def test_a_stuck_owner_is_aborted(lines: Lines, session: FakeSession) -> None:
    line = lines(session)
    entered = threading.Event()

    def stuck(*arguments: Any) -> dict[int, Exception]:
        entered.set()
        session.until(lambda: session.aborted)
        return {0: NotSentError("aborted")}

    session.on("send", stuck)
    one = parcel()
    line.submit(one)
    assert entered.wait(PATIENCE)
    line.close(0.05)
    assert session.aborted
    assert isinstance(one.future.exception(PATIENCE), NotSentError)


def test_the_owner_cannot_wait_for_itself(lines: Lines, session: FakeSession) -> None:
    line = lines(session)
    one = parcel()
    closed: Future[None] = Future()

    def close(done: "Future[str]") -> None:
        line.close(5.0)
        closed.set_result(None)

    one.future.add_done_callback(close)
    line.submit(one)
    closed.result(PATIENCE)


class TestForks:
    def test_a_fork_finds_every_owner_between_two_turns(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session)
        line.send(QUEUE, outgoing("a"), time.monotonic() + PATIENCE)
        session.until(lambda: bool(session.named("receive")))
        PROCESS.before_fork()
        try:
            assert line.turning.locked()
            before = len(session.calls)
            assert line.submit(parcel("meanwhile"))
            threading.Event().wait(0.02)
            assert len(session.calls) == before, "the owner turned while somebody forked"
        finally:
            PROCESS.after_fork_in_parent()
        line.send(QUEUE, outgoing("b"), time.monotonic() + PATIENCE)
        assert session.sent_ids == ["a", "meanwhile", "b"]

    def test_a_fork_does_not_wait_for_ever(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session)
        gate = session.gate("send")
        line.submit(parcel())
        gate.wait_entered()
        PROCESS.before_fork()
        PROCESS.after_fork_in_parent()
        gate.open()
        line.send(QUEUE, outgoing("b"), time.monotonic() + PATIENCE)

    def test_an_idle_owner_is_woken_for_it(self, lines: Lines, session: FakeSession) -> None:
        woken = threading.Event()
        wake = session.wake

        def wake_and_note() -> None:
            woken.set()
            wake()

        session.wake = wake_and_note  # type: ignore[method-assign]
        line = lines(session)
        line.send(QUEUE, outgoing("a"), time.monotonic() + PATIENCE)
        woken.clear()
        PROCESS.before_fork()
        PROCESS.after_fork_in_parent()
        assert woken.is_set()

    def test_two_forks_at_once_leave_no_owner_waiting(self, lines: Lines, session: FakeSession) -> None:
        line = lines(session)
        line.send(QUEUE, outgoing("a"), time.monotonic() + PATIENCE)
        PROCESS.before_fork()

        def fork() -> None:
            PROCESS.before_fork()
            PROCESS.after_fork_in_parent()

        with in_thread(fork) as second:
            time.sleep(0.05)  # it waits for the first one, or has forgotten by now what that one holds
            PROCESS.after_fork_in_parent()
            second.result(PATIENCE)
        line.send(QUEUE, outgoing("b"), time.monotonic() + PATIENCE)


def test_a_call_whose_time_was_up_does_not_keep_a_defect_from_ending_the_line(
    lines: Lines, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    line = lines(session)
    gate = session.gate("send", ZeroDivisionError("a defect"))
    sent = parcel()
    line.submit(sent)
    gate.wait_entered()
    given_up = line.call(lambda session, left: None, PATIENCE)
    assert given_up.cancel()
    gate.open()
    assert isinstance(sent.future.exception(PATIENCE), OutcomeUnknownError)
    session.until(lambda: bool(session.named("close")))
