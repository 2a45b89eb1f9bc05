"""Verdicts on their way to the broker."""

from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from fakes import NATIVE, FakeSession, failing, incoming

from mqlayer.clock import ManualClock
from mqlayer.driver import Ack, Counts, Extend, Forward, Nack, Release, Verdict
from mqlayer.engine.held import Held
from mqlayer.engine.intake import Intake
from mqlayer.engine.settlements import GIVE_BACK_AGAIN, Settlement, Settlements
from mqlayer.errors import QueueNotFoundError, RefusedError, RequestTimeoutError, StaleDeliveryError
from mqlayer.policy import DEAD_LETTER_AGAIN


class Fixture:
    def __init__(self, *, creates: bool = True, timed: bool = False) -> None:
        self.clock = ManualClock()
        self.intake = Intake(
            replace(NATIVE, timed_lease=timed), clock=self.clock, prefetch=4, lease=7.0, hold_max=3600.0
        )
        self.intake.add_queue("q")
        self.session = FakeSession()
        self.settlements = Settlements(self.intake, timeout=30.0, creates=creates)

    def put(self, verdict: Verdict, *, give_back: bool = False) -> "Future[None]":
        future: Future[None] = Future()
        self.settlements.put(Settlement(None, verdict, future, give_back))
        return future

    def carry_out(self) -> None:
        self.settlements.carry_out(self.session, self.clock.monotonic())


@pytest.fixture
def one() -> Fixture:
    return Fixture()


OF = incoming("m1")
DEAD = Forward(OF, "q.dead", OF.message)


def test_all_that_is_queued_goes_at_once(one: Fixture) -> None:
    futures = [one.put(Ack(incoming(str(number)))) for number in range(50)]
    one.carry_out()
    assert len(one.session.named("settle")) == 1
    assert all(future.done() and future.exception() is None for future in futures)


def test_nothing_queued_is_no_call(one: Fixture) -> None:
    one.carry_out()
    assert one.session.calls == []


def test_each_hears_of_its_own_failure(one: Fixture) -> None:
    stale = StaleDeliveryError("gone")
    one.session.on("settle", failing({1: stale}))
    fine, gone = one.put(Ack(incoming("a"))), one.put(Ack(incoming("b")))
    one.carry_out()
    assert fine.exception() is None
    assert gone.exception() is stale


def test_who_waits_no_longer_does_not_end_the_owner(one: Fixture) -> None:
    future = one.put(Ack(OF))
    assert not future.cancel()
    one.carry_out()
    assert one.session.settled == [Ack(OF)]


def test_a_dead_letter_that_fails_gives_the_delivery_back_after_a_pause(one: Fixture) -> None:
    full = RefusedError("full")
    one.session.on("settle", failing({0: full}))
    future = one.put(DEAD, give_back=True)
    one.carry_out()
    assert future.exception() is full
    one.carry_out()
    assert one.session.settled == [Nack(OF, DEAD_LETTER_AGAIN)]
    assert not one.settlements


def test_where_that_fails_as_well_it_goes_back_at_once(one: Fixture) -> None:
    one.session.on("settle", *[failing({0: RefusedError("full")})] * 2)
    one.put(DEAD, give_back=True)
    for _ in range(3):
        one.carry_out()
    assert one.session.settled == [Release(OF)]


def test_what_is_stale_is_not_given_back(one: Fixture) -> None:
    one.session.on("settle", failing({0: StaleDeliveryError("gone")}))
    one.put(Nack(OF), give_back=True)
    one.carry_out()
    assert not one.settlements


def test_a_release_that_fails_is_tried_again_after_a_pause(one: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    one.session.on("settle", *[failing({0: RefusedError("full")})] * 3)
    one.put(Nack(OF), give_back=True)
    for _ in range(5):
        one.carry_out()
    assert len(one.session.named("settle")) == 2
    for _ in range(3):
        one.clock.advance(GIVE_BACK_AGAIN)
        one.carry_out()
        one.carry_out()
    assert one.session.settled == [Release(OF)]
    assert len(one.session.named("settle")) == 4
    assert len(caplog.messages) == 2, "what fails again is not told again"


def test_what_could_not_be_given_back_is_the_brokers_when_the_connection_has_ended(one: Fixture) -> None:
    one.session.on("settle", failing({0: RefusedError("full")}))
    one.put(Release(OF))
    one.carry_out()
    one.intake.connection_lost()
    one.clock.advance(GIVE_BACK_AGAIN)
    one.carry_out()
    assert len(one.session.named("settle")) == 1


class TestDeadLetterQueue:
    def test_made_sure_of_the_first_time(self, one: Fixture) -> None:
        for _ in range(3):
            one.put(DEAD)
            one.carry_out()
        assert [call[0] for call in one.session.named("declare")] == ["q.dead"]

    def test_not_where_the_url_forbids_it(self) -> None:
        one = Fixture(creates=False)
        one.put(DEAD)
        one.carry_out()
        assert one.session.named("declare") == []

    def test_if_it_cannot_be_made_the_delivery_goes_back(self, one: Fixture) -> None:
        one.session.on("declare", QueueNotFoundError("no"))
        future, other = one.put(DEAD, give_back=True), one.put(Ack(incoming("other")))
        one.carry_out()
        one.carry_out()
        assert isinstance(future.exception(), QueueNotFoundError)
        assert other.exception() is None
        assert one.session.settled == [Ack(incoming("other")), Nack(OF, DEAD_LETTER_AGAIN)]

    def test_if_it_vanished_it_is_made_again(self, one: Fixture) -> None:
        one.session.on("settle", None, failing({0: QueueNotFoundError("gone")}))
        for _ in range(3):
            one.put(DEAD)
            one.carry_out()
        assert len(one.session.named("declare")) == 2


class TestDefects:
    @pytest.mark.parametrize("verb", ["settle", "declare"])
    def test_everybody_hears_of_it(self, one: Fixture, verb: str) -> None:
        one.session.on(verb, ZeroDivisionError("a defect"))
        futures = [one.put(Ack(incoming("a"))), one.put(DEAD), one.put(Ack(incoming("b")))]
        with pytest.raises(ZeroDivisionError):
            one.carry_out()
        assert all(isinstance(future.exception(0), ZeroDivisionError) for future in futures)

    def test_what_is_left_at_the_end_is_told(self, one: Fixture) -> None:
        future = one.put(Ack(OF))
        error = StaleDeliveryError("ended")
        one.settlements.fail(error)
        assert future.exception(0) is error


class TestWindows:
    def test_asked_for_and_let_go(self, one: Fixture) -> None:
        one.intake.ask(1)
        one.carry_out()
        assert [call[:3] for call in one.session.named("subscribe")] == [("q", 1, 7.0)]
        one.intake.ask(-1)
        one.carry_out()
        assert one.session.windows == {}

    def test_a_queue_that_is_not_there_is_told_to_who_receives(self, one: Fixture) -> None:
        one.session.on("subscribe", QueueNotFoundError("no"))
        one.intake.ask(1)
        one.carry_out()
        with pytest.raises(QueueNotFoundError):
            one.intake.take(1, Fixture)  # type: ignore[arg-type]

    def test_a_slow_broker_is_asked_again_later(self, one: Fixture) -> None:
        one.session.on("subscribe", RequestTimeoutError("slow"))
        one.intake.ask(1)
        for _ in range(3):
            one.carry_out()
        assert len(one.session.named("subscribe")) == 1
        one.clock.advance(2.0)
        one.carry_out()
        assert one.session.windows == {"q": 1}


class TestLeases:
    def held(self, one: Fixture) -> Any:
        one.intake.ask(1)
        held = Held(incoming("a", lease_until=10.0), Counts.DELIVERIES, 0.0, one.intake.epoch)
        one.intake.add([held])
        one.carry_out()
        one.clock.advance(5.0)
        return held

    def test_renewed_for_as_long_again(self) -> None:
        one = Fixture(timed=True)
        held = self.held(one)
        one.carry_out()
        assert one.session.settled == [Extend(held.incoming, 10.0)]
        assert held.renew_at == 10.0

    def test_a_lease_that_is_gone_is_let_go(self) -> None:
        one = Fixture(timed=True)
        self.held(one)
        one.session.on("settle", failing({0: StaleDeliveryError("gone")}))
        one.carry_out()
        assert one.intake.load == (0, 0)

    def test_a_failed_renewal_is_tried_again(self) -> None:
        one = Fixture(timed=True)
        held = self.held(one)
        one.session.on("settle", failing({0: RequestTimeoutError("slow")}))
        one.carry_out()
        one.clock.advance(3.0)
        one.carry_out()
        assert one.session.settled == [Extend(held.incoming, 10.0)]


def test_what_a_session_still_has_is_collected_without_a_wait() -> None:
    """Acks are queued behind it, and a broker that pushes would be given a moment."""
    collected: list[object] = []
    one = Fixture()
    one.settlements = Settlements(one.intake, timeout=30.0, creates=True, collect=collected.append)
    one.intake.ask(1)
    one.carry_out()
    one.intake.ask(-1)
    woken: list[bool] = []
    one.session.on("receive", lambda limit, timeout: woken.append(one.session._woken) or (OF,))
    one.carry_out()
    assert woken == [True]
    assert collected == [(OF,)]
