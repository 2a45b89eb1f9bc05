"""What a consumer has fetched and what its callers hold: windows, surplus, leases."""

import threading
from dataclasses import replace
from typing import Any

import pytest
from fakes import NATIVE, incoming

from mqlayer.clock import ManualClock
from mqlayer.driver import Counts, Incoming, Release
from mqlayer.engine.held import Held, Holders
from mqlayer.engine.intake import UNASKED_KEPT, Intake
from mqlayer.engine.waiting import Signal
from mqlayer.errors import ClosedError, QueueNotFoundError, StaleDeliveryError

UNTIMED = replace(NATIVE, timed_lease=False)
ME = threading.current_thread()


class Fixture:
    """An intake, its clock, and short names for what a test does with it."""

    def __init__(
        self, *queues: str, prefetch: int = 4, hold_max: float = 3600.0, timed: bool = False, ordered: bool = False
    ) -> None:
        self.clock = ManualClock()
        capabilities = NATIVE if timed else UNTIMED
        self.intake = Intake(capabilities, clock=self.clock, prefetch=prefetch, lease=None, hold_max=hold_max)
        for queue in queues or ("q",):
            self.intake.add_queue(queue, ordered=ordered)

    def arrive(self, *items: Incoming) -> list[Held]:
        got = [Held(item, Counts.DELIVERIES, self.clock.monotonic(), self.intake.epoch) for item in items]
        self.intake.add(got)
        return got

    def take(self, limit: int = 1) -> list[Held]:
        return self.intake.take(limit, ME)

    def prove(self) -> None:
        """A first ordinary delivery is received and settled, as ``receive`` would."""
        self.intake.ask(1)
        self.intake.windows()
        self.arrive(incoming("first"))
        (held,) = self.take()
        self.intake.ask(-1)
        self.intake.settled(held)


def names(held: list[Held]) -> list[Any]:
    return [one.incoming.message.id for one in held]


def released(fixture: Fixture) -> list[Any]:
    verdicts = fixture.intake.surplus()
    assert all(isinstance(verdict, Release) for verdict in verdicts)
    return [verdict.of.message.id for verdict in verdicts]


class TestWindows:
    def test_nobody_asks_and_nothing_is_fetched(self) -> None:
        assert Fixture().intake.windows() == {}

    def test_until_the_first_settle_only_what_is_asked_for(self) -> None:
        one = Fixture()
        one.intake.ask(2)
        assert one.intake.windows() == {"q": 2}
        assert one.intake.room() == 2
        one.arrive(incoming("a"))
        assert one.intake.windows() == {}, "what is here is part of what was asked for: no subscribing anew"
        one.take()
        one.intake.ask(-2)
        assert one.intake.windows() == {"q": 1}, "what is held"

    def test_the_first_settle_of_an_ordinary_delivery_opens_it(self) -> None:
        one = Fixture(prefetch=4)
        assert not one.intake.proven
        one.prove()
        assert one.intake.proven
        assert one.intake.windows() == {"q": 4}

    def test_a_demand_is_never_limited(self) -> None:
        one = Fixture(prefetch=2)
        one.prove()
        one.intake.ask(10)
        assert one.intake.windows() == {"q": 10}

    def test_a_window_does_not_sway_while_callers_hold_more_than_the_prefetch(self) -> None:
        one = Fixture(prefetch=2)
        one.prove()
        for number in range(6):
            one.intake.ask(1)
            one.intake.windows()
            one.arrive(incoming(str(number)))
            before = one.intake.windows()
            assert before == {}
            one.take()
            one.intake.ask(-1)
        assert one.intake.windows() == {}

    def test_a_suspect_closes_it_and_an_ordinary_settle_opens_it_again(self) -> None:
        one = Fixture(prefetch=4)
        one.prove()
        one.intake.windows()
        one.arrive(incoming("suspect", count=2))
        assert one.intake.windows() == {"q": 0}
        one.intake.ask(1)
        (suspect,) = one.take()
        one.intake.ask(-1)
        assert not one.intake.proven
        assert one.intake.windows() == {"q": 1}
        one.intake.settled(suspect)
        assert one.intake.windows() == {"q": 0}, "a suspect that was settled proves nothing for the next one"
        one.prove()
        assert one.intake.windows() == {"q": 4}

    def test_each_queue_has_its_own_and_an_idle_one_takes_none_of_a_busy_one(self) -> None:
        one = Fixture("busy", "idle", prefetch=3)
        one.intake.ask(1)
        one.intake.windows()
        one.arrive(incoming("a", "busy"))
        (held,) = one.take()
        one.intake.ask(-1)
        one.intake.settled(held)
        assert one.intake.windows() == {"busy": 3, "idle": 3}
        assert one.intake.room() == 6

    def test_closing_ends_all(self) -> None:
        one = Fixture()
        one.prove()
        one.intake.windows()
        one.intake.close()
        assert one.intake.windows() == {"q": 0}
        with pytest.raises(ClosedError):
            one.take()

    def test_a_change_that_failed_is_tried_again_after_a_pause(self) -> None:
        one = Fixture()
        one.intake.ask(1)
        assert one.intake.windows() == {"q": 1}
        one.intake.unset("q")
        assert one.intake.windows() == {}
        assert not one.intake.restless
        assert one.intake.room() == 0
        one.clock.advance(1.5)
        assert one.intake.restless
        assert one.intake.windows() == {"q": 1}

    def test_an_error_is_told_once_and_then_it_goes_on(self) -> None:
        one = Fixture()
        one.intake.ask(1)
        one.intake.windows()
        one.intake.fail(QueueNotFoundError("gone"))
        assert one.intake.windows() == {}
        with pytest.raises(QueueNotFoundError):
            one.take()
        assert one.take() == []
        assert one.intake.windows() == {"q": 1}

    def test_what_is_here_comes_before_an_error(self) -> None:
        one = Fixture()
        one.intake.ask(2)
        one.arrive(incoming("a"))
        one.intake.fail(QueueNotFoundError("gone"))
        assert names(one.take()) == ["a"]
        with pytest.raises(QueueNotFoundError):
            one.take()


class TestSurplus:
    def test_the_neighbours_of_a_suspect_are_released(self) -> None:
        one = Fixture(prefetch=4)
        one.prove()
        one.intake.windows()
        one.arrive(incoming("a"), incoming("suspect", count=2), incoming("b"))
        one.intake.ask(1)
        assert one.intake.restless
        assert released(one) == ["a", "b"]
        assert names(one.take(5)) == ["suspect"]

    def test_beside_a_held_suspect_nothing_stays(self) -> None:
        one = Fixture()
        one.intake.ask(1)
        one.arrive(incoming("suspect", count=2))
        one.take()
        one.intake.ask(-1)
        one.arrive(incoming("a"))
        assert released(one) == ["a"]

    def test_what_is_asked_for_stays(self) -> None:
        one = Fixture()
        one.intake.ask(2)
        one.arrive(incoming("a"), incoming("b"), incoming("c"))
        one.clock.advance(UNASKED_KEPT)
        assert released(one) == ["c"]
        assert released(one) == []

    def test_a_caller_that_waits_no_longer_leaves_it(self) -> None:
        one = Fixture()
        one.intake.ask(1)
        one.arrive(incoming("a"))
        one.intake.ask(-1)
        one.clock.advance(UNASKED_KEPT)
        assert one.intake.restless
        assert released(one) == ["a"]

    def test_what_comes_between_two_callers_waits_for_the_next_one(self) -> None:
        one = Fixture()
        one.intake.ask(1)
        one.intake.windows()
        one.intake.ask(-1)
        one.arrive(incoming("a"))
        assert not one.intake.restless
        assert one.intake.windows() == {}, "nothing is fetched beside it"
        assert released(one) == []
        one.intake.ask(1)
        assert names(one.take()) == ["a"]

    def test_prefetched_stays_where_all_is_well(self) -> None:
        one = Fixture()
        one.prove()
        one.arrive(incoming("a"), incoming("b"))
        assert released(one) == []

    def test_closing_releases_all(self) -> None:
        one = Fixture()
        one.prove()
        one.arrive(incoming("a"), incoming("b"))
        one.intake.close()
        assert one.intake.restless
        assert released(one) == ["a", "b"]


class TestConnectionLost:
    def test_what_is_here_is_the_brokers_again(self) -> None:
        one = Fixture()
        one.prove()
        one.intake.windows()
        one.arrive(incoming("held"), incoming("buffered"))
        (held,) = one.take()
        one.intake.connection_lost()
        assert one.take(5) == []
        assert one.intake.load == (0, 0)
        with pytest.raises(StaleDeliveryError, match="connection that has ended"):
            one.intake.check(held)
        assert one.intake.load == (0, 0)

    def test_a_held_suspect_is_no_longer_held(self) -> None:
        one = Fixture()
        one.intake.ask(1)
        one.arrive(incoming("suspect", count=2))
        one.take()
        one.intake.connection_lost()
        one.prove()
        assert one.intake.proven


class TestLeases:
    def timed(self, until: float = 10.0, **options: Any) -> "tuple[Fixture, Held]":
        one = Fixture(timed=True, **options)
        one.intake.ask(1)
        (held,) = one.arrive(incoming("a", lease_until=until))
        return one, held

    def test_renewed_at_half_time_also_while_buffered(self) -> None:
        one, held = self.timed()
        assert one.intake.renew_at == 5.0
        one.clock.advance(4.9)
        assert one.intake.due(one.clock.monotonic()) == []
        one.clock.advance(0.2)
        assert one.intake.due(one.clock.monotonic()) == [held]
        assert one.intake.due(one.clock.monotonic()) == [], "once, until it is known how that went"

    def test_a_renewed_lease_is_renewed_again(self) -> None:
        one, held = self.timed()
        one.take()
        for _ in range(5):
            one.clock.advance(5.0)
            assert one.intake.due(one.clock.monotonic()) == [held]
            one.intake.renewed(held, 10.0)
            one.intake.check(held)
        assert one.intake.renew_at == one.clock.monotonic() + 5.0

    def test_no_longer_than_hold_max(self) -> None:
        one, held = self.timed(hold_max=12.0)
        one.take()
        renewals = 0
        for _ in range(10):
            one.clock.advance(5.0)
            if one.intake.due(one.clock.monotonic()):
                renewals += 1
                one.intake.renewed(held, 10.0)
        assert renewals == 2
        with pytest.raises(StaleDeliveryError, match="lease"):
            one.intake.check(held)

    def test_never_where_hold_max_is_nothing(self) -> None:
        one, held = self.timed(hold_max=0.0)
        one.take()
        one.clock.advance(5.0)
        assert one.intake.due(one.clock.monotonic()) == []
        one.intake.renewed(held, 100.0)  # extended by hand
        one.intake.check(held)
        one.clock.advance(60.0)
        assert one.intake.due(one.clock.monotonic()) == []

    def test_an_ack_a_little_before_the_end_is_too_late(self) -> None:
        one, held = self.timed(until=10.0)
        one.take()
        one.clock.advance(9.4)
        one.intake.check(held)
        one.clock.advance(0.2)
        with pytest.raises(StaleDeliveryError):
            one.intake.check(held)
        assert one.intake.load == (0, 0)

    def test_what_lay_too_long_is_not_handed_over(self) -> None:
        one, _ = self.timed(hold_max=0.0)
        one.clock.advance(11.0)
        assert one.take(5) == []

    def test_what_the_broker_says_is_gone_is_not_handed_over(self) -> None:
        one, held = self.timed()
        one.intake.gone(held)
        assert one.take(5) == []
        assert one.intake.due(6.0) == []

    def test_what_is_settled_is_not_renewed(self) -> None:
        one, _ = self.timed()
        (held,) = one.take()
        one.intake.settled(held)
        one.clock.advance(6.0)
        assert one.intake.due(one.clock.monotonic()) == []
        assert one.intake.renew_at == float("inf")

    def test_a_renewal_without_an_answer_is_tried_again_soon(self) -> None:
        one, held = self.timed()
        one.clock.advance(5.0)
        one.intake.due(one.clock.monotonic())
        one.intake.renew_soon(held)
        assert 5.0 < one.intake.renew_at < 9.0

    def test_a_delivery_without_a_lease_on_a_leasing_broker_is_held_for_ever(self) -> None:
        one = Fixture(timed=True)
        one.intake.ask(1)
        one.arrive(incoming("a"))
        (held,) = one.take()
        one.clock.advance(1e6)
        one.intake.check(held)
        assert one.intake.due(one.clock.monotonic()) == []


class Mortal:
    """A holder that lives until it is told to end."""

    def __init__(self) -> None:
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive


class TestHolders:
    def test_others_are_waited_for(self) -> None:
        clock = ManualClock()
        holders, me, other = Holders(Signal(clock), clock), Mortal(), Mortal()
        mine, theirs = (Held(incoming(name), Counts.DELIVERIES, 0.0, 0) for name in ("mine", "theirs"))
        holders.add(mine, me)
        holders.wait(me, 5.0)
        holders.add(theirs, other)
        threading.Timer(0.02, holders.remove, (theirs,)).start()
        holders.wait(me, 5.0)

    def test_the_dead_are_not(self) -> None:
        clock = ManualClock()
        holders, other = Holders(Signal(clock), clock), Mortal()
        holders.add(Held(incoming("theirs"), Counts.DELIVERIES, 0.0, 0), other)
        other.alive = False
        holders.wait(Mortal(), 5.0)

    def test_not_for_ever(self, caplog: pytest.LogCaptureFixture) -> None:
        clock = ManualClock()
        holders = Holders(Signal(clock), clock)
        holders.add(Held(incoming("theirs"), Counts.DELIVERIES, 0.0, 0), Mortal())
        holders.wait(Mortal(), 0.0)
        assert "still being handled" in caplog.text


class TestOrderedQueues:
    def test_the_window_is_what_callers_demanded_at_the_most(self) -> None:
        one = Fixture(ordered=True, prefetch=100)
        assert one.intake.windows() == {}
        one.intake.ask(1)
        assert one.intake.windows() == {"q": 1}
        one.arrive(incoming("a"))
        (held,) = one.take()
        one.intake.ask(-1)
        one.intake.settled(held)
        assert one.intake.windows() == {}, "a change would make another consumer the active one"
        one.intake.ask(3)
        assert one.intake.windows() == {"q": 3}
        one.intake.ask(-3)
        assert one.intake.windows() == {}
        one.intake.close()
        assert one.intake.windows() == {"q": 0}

    @pytest.mark.parametrize("suspect", [0, 1])
    def test_what_nobody_asked_for_stays_and_is_next(self, suspect: int) -> None:
        one = Fixture(ordered=True)
        one.intake.ask(1)
        one.intake.windows()
        one.arrive(incoming("a", count=suspect))
        (held,) = one.take()
        one.intake.ask(-1)
        one.intake.settled(held)
        one.arrive(incoming("b", count=1))
        assert released(one) == []
        assert not one.intake.restless
        assert names(one.take()) == ["b"]

    def test_a_closed_consumer_leaves_it_to_the_connection_to_give_back(self) -> None:
        one = Fixture(ordered=True)
        one.intake.ask(1)
        one.intake.windows()
        one.arrive(incoming("a"))
        one.intake.close()
        one.intake.windows()
        assert released(one) == []
        assert not one.intake.restless

    def test_a_lease_needs_no_such_care(self) -> None:
        one = Fixture(ordered=True, timed=True)
        one.prove()
        assert one.intake.windows() == {"q": 4}
