"""What a consumer has fetched and not handed over yet."""

from fakes import NATIVE, incoming

from mqlayer.clock import ManualClock
from mqlayer.driver import Ack, Counts
from mqlayer.engine.held import Held
from mqlayer.engine.intake import Intake


class Nobody:
    def is_alive(self) -> bool:
        return True


def intake(clock: ManualClock) -> Intake:
    made = Intake(NATIVE, clock=clock, prefetch=10, lease=None, hold_max=0.0)
    made.add_queue("q")
    made.ask(10)
    return made


def test_what_expires_in_the_buffer_is_acked_and_not_handed_over() -> None:
    clock = ManualClock()
    buffer = intake(clock)
    mortal = incoming("mortal", expires_at=clock.time() + 1.0)
    living = incoming("living", expires_at=clock.time() + 60.0)
    plain = incoming("plain")
    buffer.add([Held(one, Counts.DELIVERIES, clock.monotonic(), 0) for one in (mortal, living, plain)])
    buffer.windows()
    assert not buffer.restless
    clock.advance(1.0)
    assert [held.incoming.message.id for held in buffer.take(10, Nobody())] == ["living", "plain"]
    buffer.windows()
    assert buffer.restless, "the owner does not know that there is something to settle"
    assert buffer.load == (0, 2)
    assert (buffer.surplus(), buffer.surplus()) == ([Ack(mortal)], [])
    assert not buffer.proven, "nobody has handled anything yet"


def test_a_lost_connection_takes_back_what_has_expired() -> None:
    clock = ManualClock()
    buffer = intake(clock)
    mortal = incoming("mortal", expires_at=clock.time() + 1.0)
    buffer.add([Held(mortal, Counts.DELIVERIES, clock.monotonic(), 0)])
    clock.advance(2.0)
    assert buffer.take(1, Nobody()) == []
    buffer.connection_lost()
    assert buffer.surplus() == []
