"""What the memory broker's store does with messages, with the time passed in: one small story for each rule."""

from collections.abc import Callable

import pytest
from memory_broker import LEASE, WALL, Broker

from mqlayer.driver import (
    Ack,
    Counts,
    Extend,
    Forward,
    Incoming,
    Nack,
    Release,
    Trail,
    Verdict,
)
from mqlayer.errors import (
    ArgumentError,
    StaleDeliveryError,
    UnroutableError,
)
from mqlayer.policy import delivery_count, failed_trail, is_suspect


@pytest.fixture
def broker() -> Broker:
    return Broker()


# --- order --------------------------------------------------------------------------------------------------------------


def test_messages_come_in_the_order_sent(broker: Broker) -> None:
    broker.send("a", "b")
    broker.send("c")
    assert broker.reader().ids() == ["a", "b", "c"]


def test_higher_priority_comes_first_and_equals_in_order(broker: Broker) -> None:
    for number, priority in enumerate([0, 9, None, 5, 9, 0]):
        broker.send(f"{number}", priority=priority)
    assert broker.peek() == ["1", "4", "3", "0", "2", "5"]
    assert broker.reader().ids() == ["1", "4", "3", "0", "2", "5"]


@pytest.mark.parametrize("verdict", [Nack, Release])
def test_what_comes_back_takes_its_old_place(broker: Broker, verdict: type) -> None:
    broker.send("a", "b", "c", "d")
    reader = broker.reader()
    a, b, c = reader.receive(3)
    reader.settle(verdict(b))
    reader.settle(verdict(c), verdict(a))
    assert reader.ids() == ["a", "b", "c", "d"]


# --- delivery count -----------------------------------------------------------------------------------------------------


def test_each_end_of_a_delivery_counts_as_it_should(broker: Broker) -> None:
    broker.send("a")
    first, second = broker.reader(), broker.reader()

    def counts(incoming: Incoming) -> tuple[int | None, bool, int, int]:
        trail = incoming.message.trail
        return incoming.broker_count, incoming.redelivered, trail.failures, trail.crashes

    [delivery] = first.receive()
    assert counts(delivery) == (1, False, 0, 0)
    first.settle(Release(delivery))
    [delivery] = first.receive()
    assert counts(delivery) == (1, False, 0, 0), "a release takes the delivery back"
    broker.now += LEASE
    [delivery] = second.receive()
    assert counts(delivery) == (2, True, 0, 0), "an expired lease leaves the count raised"
    second.leave(released=False)
    [delivery] = first.receive()
    assert counts(delivery) == (3, True, 0, 0), "so does a lost session"
    expected = failed_trail(Counts.DELIVERIES, delivery)
    first.settle(Nack(delivery))
    [delivery] = first.receive()
    assert delivery.message.trail == expected
    assert counts(delivery) == (1, False, 1, 2), "a nack starts a new copy, and the trail keeps the old one's facts"
    assert delivery_count(Counts.DELIVERIES, delivery) == 4
    first.leave(released=True)
    [delivery] = broker.reader().receive()
    assert counts(delivery) == (1, False, 1, 2), "a session that closes releases"


def test_native_nack_forgets_where_an_earlier_copy_came_from(broker: Broker) -> None:
    broker.send("a", trail=Trail(copied_from="q:7", not_before=3.0))
    reader = broker.reader()
    reader.settle(Nack(reader.receive()[0]))
    [delivery] = reader.receive()
    assert (delivery.message.trail.copied_from, delivery.message.trail.not_before) == (None, None)
    assert not is_suspect(Counts.DELIVERIES, delivery)


# --- leases -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("after", "is_back"), [(LEASE - 0.001, False), (LEASE, True), (LEASE + 1, True)])
def test_a_lease_ends_at_its_end_and_not_before(broker: Broker, after: float, is_back: bool) -> None:
    broker.send("a")
    holder, other = broker.reader(), broker.reader()
    [delivery] = holder.receive()
    assert delivery.lease_until == LEASE
    broker.now = after
    assert other.ids() == (["a"] if is_back else [])
    failures = holder.settle(Ack(delivery))
    assert isinstance(failures.get(0), StaleDeliveryError) is is_back


def test_an_expired_delivery_is_stale_even_if_nobody_else_has_it(broker: Broker) -> None:
    broker.send("a")
    reader = broker.reader()
    [delivery] = reader.receive()
    broker.now = LEASE
    assert isinstance(reader.settle(Ack(delivery))[0], StaleDeliveryError)
    assert broker.stats() == (1, 0, 0)


def test_extend_moves_the_end_both_ways(broker: Broker) -> None:
    broker.send("long", "short", "same")
    reader = broker.reader()
    long, short, _ = reader.receive()
    assert reader.settle(Extend(long, 100.0), Extend(short, 5.0)) == {}
    broker.now = 5.0
    assert broker.peek() == ["short"]
    broker.now = LEASE
    assert broker.peek() == ["short", "same"]
    broker.now = 99.9
    assert reader.settle(Extend(long, 10.0)) == {}
    broker.now = 109.9
    assert broker.peek() == ["long", "short", "same"]


def test_a_lease_is_not_extended_backwards(broker: Broker) -> None:
    broker.send("a")
    reader = broker.reader()
    [delivery] = reader.receive()
    assert isinstance(reader.settle(Extend(delivery, 0.0))[0], ArgumentError)
    assert reader.settle(Ack(delivery)) == {}


def test_subscribing_again_changes_lease_and_window_of_what_follows(broker: Broker) -> None:
    broker.send("a", "b", "c")
    reader = broker.reader(window=1)
    [a] = reader.receive()
    assert reader.receive() == []
    reader.subscribe("q", window=2, lease=5.0)
    [b] = reader.receive()
    assert (a.lease_until, b.lease_until) == (LEASE, 5.0)
    broker.now = 5.0
    assert broker.peek() == ["b", "c"]
    assert reader.settle(Ack(a)) == {}


# --- stale tokens -------------------------------------------------------------------------------------------------------


def test_a_token_settles_once_and_only_for_its_session(broker: Broker) -> None:
    broker.send("a", "b", "c")
    mine, other = broker.reader(), broker.reader()
    a, b = mine.receive(2)
    assert set(other.settle(Ack(a), Nack(b))) == {0, 1}
    failures = mine.settle(Ack(a), Ack(a), Release(b), Ack(b), Nack(b), Extend(b, 9.0), Forward(b, "q", b.message))
    assert sorted(failures) == [1, 3, 4, 5, 6]
    assert {type(error) for error in failures.values()} == {StaleDeliveryError}
    assert broker.stats() == (2, 0, 0)


@pytest.mark.parametrize("token", [None, 1, "q:1", object()])
def test_a_foreign_token_settles_nothing(broker: Broker, token: object) -> None:
    broker.send("a")
    reader = broker.reader()
    [delivery] = reader.receive()
    assert isinstance(reader.settle(Ack(delivery._replace(token=token)))[0], StaleDeliveryError)
    [peeked] = broker.do(broker.store.peek, "q", 1) or [delivery._replace(token=None)]
    assert isinstance(reader.settle(Ack(peeked))[0], StaleDeliveryError)
    assert broker.stats() == (0, 1, 0)


def test_a_late_ack_never_takes_anothers_copy(broker: Broker) -> None:
    broker.send("a")
    slow, quick = broker.reader(), broker.reader()
    [late] = slow.receive()
    broker.now = LEASE
    [taken] = quick.receive()
    assert isinstance(slow.settle(Ack(late))[0], StaleDeliveryError)
    assert broker.stats() == (0, 1, 0)
    assert quick.settle(Ack(taken)) == {}


# --- delay and time to live ---------------------------------------------------------------------------------------------


def test_a_delayed_message_is_due_at_its_time_and_queues_up_then(broker: Broker) -> None:
    broker.send("late", delay=5.0)
    broker.send("later", delay=6.0)
    broker.send("now")
    assert (broker.stats(), broker.peek()) == ((1, 0, 2), ["now"])
    broker.now = 4.999
    assert broker.stats() == (1, 0, 2)
    broker.now = 5.0
    assert (broker.stats(), broker.peek()) == ((2, 0, 1), ["now", "late"])
    broker.now = 7.0
    [_, late, _] = broker.reader().receive()
    assert (late.message.id, late.message.delay) == ("late", 0.0), "a copy of it must not wait again"


def test_nack_with_delay_comes_back_no_sooner(broker: Broker) -> None:
    broker.send("a", "b")
    reader = broker.reader()
    a, b = reader.receive()
    assert reader.settle(Nack(a, 5.0), Ack(b)) == {}
    assert broker.stats() == (0, 0, 1)
    broker.now = 4.999
    assert reader.receive() == []
    broker.now = 5.0
    assert reader.ids() == ["a"]


def test_what_has_expired_is_seen_by_nobody(broker: Broker) -> None:
    broker.send("short", expires_at=WALL + 10.0)
    broker.send("waiting", expires_at=WALL + 10.0, delay=9.0)
    broker.send("long", expires_at=WALL + 20.0)
    broker.send("eternal")
    broker.send("stillborn", expires_at=WALL)
    broker.now = 9.999
    assert (broker.stats(), broker.peek()) == ((4, 0, 0), ["short", "long", "eternal", "waiting"])
    broker.now = 10.0
    assert (broker.stats(), broker.peek()) == ((2, 0, 0), ["long", "eternal"])
    assert broker.reader().ids() == ["long", "eternal"]


@pytest.mark.parametrize("back", ["nack", "nack later", "release", "lease", "leave"])
def test_what_expired_in_flight_does_not_come_back(broker: Broker, back: str) -> None:
    broker.send("a", expires_at=WALL + 10.0)
    reader = broker.reader(lease=15.0)
    [delivery] = reader.receive()
    broker.now = 12.0
    assert broker.stats() == (0, 1, 0), "its handler has it, and may finish"
    if back == "nack":
        reader.settle(Nack(delivery))
    elif back == "nack later":
        reader.settle(Nack(delivery, 3.0))
    elif back == "release":
        reader.settle(Release(delivery))
    elif back == "leave":
        reader.leave(released=False)
    broker.now = 15.0
    assert broker.stats() == (0, 0, 0)


def test_a_message_that_expires_while_it_waits_to_be_retried_is_gone(broker: Broker) -> None:
    broker.send("a", expires_at=WALL + 10.0)
    reader = broker.reader()
    reader.settle(Nack(reader.receive()[0], 20.0))
    broker.now = 9.0
    assert broker.stats() == (0, 0, 1)
    broker.now = 10.0
    assert broker.stats() == (0, 0, 0)
    broker.now = 20.0
    assert broker.stats() == (0, 0, 0)


def test_expired_messages_of_a_queue_that_nobody_reads_are_not_kept(broker: Broker) -> None:
    broker.send("eternal", priority=1)
    for round_number in range(50):
        broker.now = float(round_number)
        broker.send(*(f"{round_number}.{n}" for n in range(100)), expires_at=WALL + round_number + 1)
        broker.send("eternal")
    queue = broker.store._queues["q"]
    assert sum(len(lane.ready) + len(lane.returned) for lane in queue.lanes) < 500
    assert broker.stats() == (151, 0, 0)


# --- groups -------------------------------------------------------------------------------------------------------------


def test_a_groups_head_blocks_its_tail_while_in_flight(broker: Broker) -> None:
    for id in ("a1", "a2", "b1", "x"):
        broker.send(id, group_id=id[0] if id != "x" else None)
    broker.send("a3", group_id="a")
    reader, other = broker.reader(), broker.reader()
    a1, b1, x = reader.receive()
    assert [m.message.id for m in (a1, b1, x)] == ["a1", "b1", "x"]
    assert (other.receive(), broker.peek(), broker.stats()) == ([], [], (2, 3, 0))
    reader.settle(Ack(x), Ack(b1))
    assert other.receive() == []
    reader.settle(Ack(a1))
    [a2] = other.receive()
    assert a2.message.id == "a2"
    other.settle(Forward(a2, "q", a2.message._replace(id="copy", group_id=None)))
    assert reader.ids() == ["a3", "copy"]


@pytest.mark.parametrize("verdict", [lambda of: Nack(of), lambda of: Release(of), lambda of: Nack(of, 5.0)])
def test_a_groups_head_that_comes_back_still_leads(broker: Broker, verdict: Callable[[Incoming], Verdict]) -> None:
    broker.send("a1", "a2", group_id="a")
    broker.send("b1", group_id="b")
    reader = broker.reader()
    a1, b1 = reader.receive()
    given = verdict(a1)
    reader.settle(given, Ack(b1))
    if isinstance(given, Nack) and given.delay:
        assert (reader.receive(), broker.stats()) == ([], (1, 0, 1)), "a nacked head holds its group"
        broker.now = 5.0
    [again] = reader.receive()
    assert again.message.id == "a1"
    reader.settle(Ack(again))
    assert reader.ids() == ["a2"]


def test_a_group_moves_on_when_its_head_expires(broker: Broker) -> None:
    broker.send("a1", group_id="a", expires_at=WALL + 5.0)
    broker.send("a2", group_id="a", expires_at=WALL + 6.0)
    broker.send("a3", group_id="a")
    reader = broker.reader()
    reader.settle(Nack(reader.receive()[0], 60.0))
    reader.receive()
    assert reader.told[-1] == 5.0, "the next may go when the nacked head expires"
    broker.now = 6.0
    assert reader.ids() == ["a3"]
    assert broker.stats() == (0, 1, 0)


def test_a_group_whose_head_is_lost_with_its_session_keeps_its_order(broker: Broker) -> None:
    broker.send("a1", "a2", "a3", group_id="a")
    first, second = broker.reader(), broker.reader()
    first.receive()
    first.leave(released=False)
    order = []
    while got := second.receive():
        order += [incoming.message.id for incoming in got]
        second.settle(*map(Ack, got))
    assert order == ["a1", "a2", "a3"]
    assert broker.store._queues["q"].groups == {}


def test_a_delayed_message_joins_its_group_when_due(broker: Broker) -> None:
    broker.send("late", group_id="a", delay=5.0)
    broker.send("early", group_id="a")
    reader = broker.reader()
    [early] = reader.receive()
    broker.now = 5.0
    assert (reader.receive(), broker.stats()) == ([], (1, 1, 0))
    reader.settle(Ack(early))
    assert reader.ids() == ["late"]


# --- deduplication ------------------------------------------------------------------------------------------------------


def test_a_second_message_of_one_dedup_id_is_discarded_within_the_window(broker: Broker) -> None:
    broker.declare("other")
    assert broker.send("first", "second", dedup_id="x") == {}
    broker.send("other", dedup_id="y")
    broker.send("elsewhere", dedup_id="x", queue="other")
    broker.now = 299.9
    broker.send("third", dedup_id="x")
    assert (broker.peek(), broker.peek(queue="other")) == (["first", "other"], ["elsewhere"])
    broker.now = 300.0
    broker.send("fourth", dedup_id="x")
    assert broker.peek() == ["first", "other", "fourth"]


def test_a_copy_that_keeps_its_dedup_id_is_no_duplicate(broker: Broker) -> None:
    broker.send("a", dedup_id="x")
    reader = broker.reader()
    [delivery] = reader.receive()
    assert reader.settle(Forward(delivery, "q", delivery.message)) == {}
    assert reader.ids() == ["a"]


# --- settling by copy ---------------------------------------------------------------------------------------------------


def test_forward_moves_or_leaves_everything(broker: Broker) -> None:
    broker.declare("dead")
    broker.send("a", "b")
    reader = broker.reader()
    a, b = reader.receive()
    failures = reader.settle(Forward(a, "dead", a.message._replace(body=b"copy")), Forward(b, "nowhere", b.message))
    assert isinstance(failures.pop(1), UnroutableError)
    assert failures == {}
    assert (broker.stats(), broker.stats("dead")) == ((0, 1, 0), (1, 0, 0))
    assert reader.settle(Nack(b)) == {}
