"""The memory broker's store, with the time passed in: one small table or story for each rule."""

import itertools
import math
from collections.abc import Callable, Sequence

import pytest

from mqlayer.backends.memory_names import group_queue
from mqlayer.backends.memory_queue import Client
from mqlayer.backends.memory_store import Store
from mqlayer.driver import (
    Ack,
    Counts,
    Declare,
    Extend,
    Failures,
    Forward,
    Incoming,
    Nack,
    Outgoing,
    QueueOptions,
    Release,
    Stats,
    Trail,
    Verdict,
)
from mqlayer.errors import (
    ArgumentError,
    QueueMismatchError,
    QueueNotFoundError,
    StaleDeliveryError,
    UnroutableError,
)
from mqlayer.policy import delivery_count, failed_trail, is_suspect

WALL = 1_800_000_000.0
LEASE = 30.0


class Reader:
    """A session of the broker under test, and what it was told."""

    def __init__(self, broker: "Broker") -> None:
        self.broker = broker
        self.told: list[float] = []
        self.client = Client(self.told.append)
        broker.do(broker.store.join, self.client)

    def subscribe(self, *queues: str, window: int = 100, lease: float = LEASE) -> "Reader":
        for queue in queues:
            self.broker.do(self.broker.store.subscribe, self.client, queue, window, lease)
        return self

    def unsubscribe(self, queue: str) -> None:
        self.broker.do(self.broker.store.unsubscribe, self.client, queue)

    def receive(self, limit: int = 100) -> list[Incoming]:
        return self.broker.do(self.broker.store.receive, self.client, limit)

    def ids(self, limit: int = 100) -> list[str | None]:
        return [incoming.message.id for incoming in self.receive(limit)]

    def settle(self, *verdicts: Verdict) -> Failures:
        return self.broker.do(self.broker.store.settle, self.client, verdicts)

    def leave(self, *, released: bool) -> None:
        self.broker.do(self.broker.store.leave, self.client, released)


class Broker:
    """A store with a clock that the test moves, and queue ``q``."""

    def __init__(self) -> None:
        self.store = Store()
        self.now = 0.0
        self.numbers = itertools.count(1)
        self.declare("q")

    def do(self, verb: Callable, *args):  # type: ignore[no-untyped-def,type-arg]
        try:
            return verb(self.now, WALL + self.now, *args)
        finally:
            calls, self.store.calls = self.store.calls, []
            for tell, when in calls:
                tell(when)

    def declare(self, name: str, mode: Declare = Declare.ENSURE, **options: object) -> QueueOptions:
        return self.do(self.store.declare, name, QueueOptions(**options), mode)  # type: ignore[arg-type]

    def send(self, *ids: str, queue: str = "q", **fields: object) -> Failures:
        return self.do(self.store.send, queue, [Outgoing(id, b"body", **fields) for id in ids])  # type: ignore[arg-type]

    def reader(self, *queues: str, window: int = 100, lease: float = LEASE) -> Reader:
        return Reader(self).subscribe(*(queues or ("q",)), window=window, lease=lease)

    def stats(self, queue: str = "q") -> tuple[int | None, int | None, int | None]:
        stats: Stats = self.do(self.store.stats, queue)
        assert not stats.approximate
        return stats.ready, stats.in_flight, stats.delayed

    def peek(self, limit: int = 100, queue: str = "q") -> list[str | None]:
        return [incoming.message.id for incoming in self.do(self.store.peek, queue, limit)]


@pytest.fixture
def broker() -> Broker:
    return Broker()


# --- order -----------------------------------------------------------------------------------------------------------


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


# --- delivery count --------------------------------------------------------------------------------------------------


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


# --- leases ----------------------------------------------------------------------------------------------------------


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


# --- stale tokens ----------------------------------------------------------------------------------------------------


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


# --- delay and time to live ------------------------------------------------------------------------------------------


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


# --- groups ----------------------------------------------------------------------------------------------------------


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


# --- deduplication ---------------------------------------------------------------------------------------------------


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


# --- settling by copy ------------------------------------------------------------------------------------------------


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


# --- several consumers and queues ------------------------------------------------------------------------------------


def test_competing_consumers_share_a_queue(broker: Broker) -> None:
    broker.send(*map(str, range(10)))
    readers = [broker.reader(window=3) for _ in range(3)]
    taken = [reader.ids() for reader in readers]
    assert taken == [["0", "1", "2"], ["3", "4", "5"], ["6", "7", "8"]]


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_a_receive_from_several_queues_is_fair(broker: Broker, limit: int) -> None:
    broker.declare("r")
    broker.declare("idle")
    reader = broker.reader("q", "idle", "r", window=1000)
    broker.send(*["q"] * 60)
    broker.send(*["r"] * 60, queue="r")
    seen: list[str | None] = []
    while len(seen) < 60:
        seen += reader.ids(limit)
    assert abs(seen[:60].count("q") - 30) <= 1


def test_a_window_bounds_each_queue_by_itself(broker: Broker) -> None:
    broker.declare("r")
    broker.send("a", "b", "c")
    broker.send("d", "e", "f", queue="r")
    reader = broker.reader("q", "r", window=2)
    assert sorted(map(str, reader.ids())) == ["a", "b", "d", "e"]
    reader.unsubscribe("r")
    broker.now = LEASE - 1
    assert reader.receive() == []


def test_unsubscribing_leaves_what_was_received(broker: Broker) -> None:
    broker.send("a", "b")
    reader, other = broker.reader(), broker.reader()
    [a] = reader.receive(1)
    reader.unsubscribe("q")
    assert reader.receive() == []
    assert reader.settle(Ack(a)) == {}
    assert other.ids() == ["b"]
    assert reader.client.subscriptions == {}


def test_an_ordered_queue_has_one_active_consumer(broker: Broker) -> None:
    broker.declare("o", ordered=True)
    first, second = broker.reader("o"), broker.reader("o")
    broker.send("1", "2", "3", queue="o")
    assert second.receive() == []
    [one] = first.receive(1)
    first.unsubscribe("o")
    assert second.receive() == [], "what the first holds comes before the rest"
    second.told.clear()
    first.settle(Nack(one))
    assert second.told == [0.0]
    assert second.ids() == ["1", "2", "3"]


def test_an_ordered_queues_next_consumer_takes_over_from_a_lost_one(broker: Broker) -> None:
    broker.declare("o", ordered=True)
    first, second = broker.reader("o"), broker.reader("o")
    broker.send("1", "2", queue="o")
    first.receive(1)
    assert second.receive() == []
    first.leave(released=False)
    assert second.ids() == ["1", "2"]


# --- queues and topics -----------------------------------------------------------------------------------------------


def test_declare_modes(broker: Broker) -> None:
    with pytest.raises(QueueNotFoundError, match="'new'"):
        broker.declare("new", Declare.CHECK)
    stored = broker.declare("new", Declare.COMPARE, dead_letter="dead")
    assert stored == QueueOptions(dead_letter="dead")
    assert broker.declare("new", Declare.ENSURE, temporary=True) == stored
    assert broker.declare("new", Declare.CHECK) == stored
    assert broker.declare("new", Declare.COMPARE, dead_letter="dead") == stored
    for options in ({}, {"dead_letter": "dead", "temporary": True}, {"dead_letter": "dead", "ordered": True}):
        with pytest.raises(QueueMismatchError, match="'new'"):
            broker.declare("new", Declare.COMPARE, **options)


def test_a_missing_queue_is_never_silent(broker: Broker) -> None:
    failures = broker.send("a", "b", queue="gone")
    assert {index: (type(error), error.message_id) for index, error in failures.items()} == {  # type: ignore[attr-defined]
        0: (UnroutableError, "a"),
        1: (UnroutableError, "b"),
    }
    store = broker.store
    for verb, args in ((store.stats, ()), (store.purge, ()), (store.peek, (1,))):
        with pytest.raises(QueueNotFoundError, match="'gone'"):
            broker.do(verb, "gone", *args)
    with pytest.raises(QueueNotFoundError):
        broker.reader("gone")
    broker.do(store.delete, "gone")


def test_delete_drops_everything_and_a_subscription_goes_on_with_the_next_queue(broker: Broker) -> None:
    broker.send("held", "ready")
    broker.send("late", delay=5.0)
    reader = broker.reader()
    [held] = reader.receive(1)
    broker.do(broker.store.delete, "q")
    assert isinstance(reader.settle(Ack(held))[0], StaleDeliveryError)
    assert reader.receive() == []
    broker.declare("q")
    broker.now = 60.0
    assert broker.stats() == (0, 0, 0)
    broker.send("new")
    assert 60.0 in reader.told
    assert reader.ids() == ["new"]


def test_purge_drops_what_is_ready(broker: Broker) -> None:
    broker.send("held", "kept head", "tail", group_id="a")
    broker.send("other head", "other tail", group_id="b", priority=3)
    broker.send("late", delay=5.0)
    broker.send("mortal", expires_at=WALL + 5.0)
    reader = broker.reader()
    other, held = reader.receive(2)
    reader.settle(Release(other))
    assert (held.message.id, broker.stats()) == ("held", (5, 1, 1))
    assert broker.do(broker.store.purge, "q") == 5
    assert broker.stats() == (0, 1, 1)
    broker.send("next", group_id="a")
    assert reader.receive() == []
    reader.settle(Ack(held))
    assert reader.ids() == ["next"]
    broker.now = 6.0
    assert (broker.peek(), broker.stats()) == (["late"], (1, 1, 0))


def test_peek_changes_nothing(broker: Broker) -> None:
    broker.send("a", "b", "c")
    assert [broker.peek(2), broker.peek(2), broker.peek(0)] == [["a", "b"], ["a", "b"], []]
    [first, *_] = broker.reader().receive()
    assert (first.broker_count, first.redelivered) == (1, False)


def test_each_group_of_a_topic_gets_a_copy(broker: Broker) -> None:
    store = broker.store
    publisher = Reader(broker)

    def publish(id: str) -> Failures:
        return broker.do(store.publish, "news", [Outgoing(id, b"")])

    assert publish("too early") == {}
    mailer = broker.do(store.bind, publisher.client, "news", "mailer")
    assert broker.do(store.bind, publisher.client, "news", "mailer") == mailer == "news.mailer"
    passing = Reader(broker)
    temporary = broker.do(store.bind, passing.client, "news", None)
    assert temporary != broker.do(store.bind, publisher.client, "news", None)
    publish("1")
    assert (broker.peek(queue=mailer), broker.peek(queue=temporary)) == (["1"], ["1"])
    passing.leave(released=True)
    publish("2")
    assert broker.peek(queue=mailer) == ["1", "2"]
    with pytest.raises(QueueNotFoundError):
        broker.stats(temporary)
    broker.do(store.delete, mailer)
    assert publish("3") == {}


def test_names_of_groups_are_injective() -> None:
    parts = ["a", "b", "a.b", "a%2Eb", "%", "%t1", "t1", ".", "%25", "25t1", "a.", ".b"]
    names = [group_queue(topic, group, 1) for topic in parts for group in parts]
    names += [group_queue(topic, None, number) for topic in parts for number in (1, 2)]
    assert len(set(names)) == len(names)


def test_a_temporary_queue_goes_when_unused(broker: Broker) -> None:
    broker.declare("t", temporary=True)
    reader = broker.reader("t")
    broker.now = 500.0
    assert broker.stats("t") == (0, 0, 0)
    reader.unsubscribe("t")
    broker.now = 559.0
    assert broker.send("no use", queue="t") == {}
    broker.now = 559.999
    assert broker.declare("t", Declare.CHECK).temporary
    broker.now = 619.9
    assert broker.stats("t") == (1, 0, 0)
    broker.now = 619.999
    with pytest.raises(QueueNotFoundError):
        broker.stats("t")


# --- look_again ------------------------------------------------------------------------------------------------------


def told(broker: Broker, act: Callable[[Reader, Reader], object]) -> Sequence[float]:
    """What a reader that found nothing is told while *act* happens at 10 s."""
    broker.now = 10.0
    hungry, other = broker.reader(), broker.reader()
    assert hungry.receive() == []
    hungry.told.clear()
    act(hungry, other)
    return hungry.told


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda broker, other: broker.send("a"), [10.0]),
        (lambda broker, other: [broker.send("a"), broker.send("b")], [10.0]),
        (lambda broker, other: broker.send("a", delay=5.0), [15.0]),
        (lambda broker, other: [broker.send("a", delay=5.0), broker.send("b", delay=4.0)], [15.0, 14.0]),
        (lambda broker, other: [broker.send("a", delay=5.0), broker.send("b", delay=6.0)], [15.0]),
        (lambda broker, other: broker.declare("unrelated"), []),
        (lambda broker, other: [broker.declare("r"), broker.send("a", queue="r")], []),
    ],
)
def test_who_found_nothing_is_told_when_to_look(
    broker: Broker, act: Callable[[Broker, Reader], object], expected: list[float]
) -> None:
    assert told(broker, lambda _, other: act(broker, other)) == expected


@pytest.mark.parametrize(
    ("back", "expected"),
    [
        (lambda other, held: other.settle(Nack(held)), [10.0]),
        (lambda other, held: other.settle(Nack(held, 7.0)), [17.0]),
        (lambda other, held: other.settle(Release(held)), [10.0]),
        (lambda other, held: other.settle(Extend(held, 3.0)), [13.0]),
        (lambda other, held: other.leave(released=False), [10.0]),
        (lambda other, held: other.settle(Ack(held)), []),
    ],
)
def test_who_found_nothing_is_told_what_comes_back(
    broker: Broker, back: Callable[[Reader, Incoming], object], expected: list[float]
) -> None:
    broker.now = 10.0
    hungry, other = broker.reader(), broker.reader()
    broker.send("a")
    [held] = other.receive()
    assert hungry.receive() == []
    assert hungry.told[-1] == 10.0 + LEASE, "it is told when the other's lease ends"
    hungry.told.clear()
    back(other, held)
    assert hungry.told == expected


def test_a_receive_in_vain_tells_of_what_was_due_before_it_came(broker: Broker) -> None:
    broker.send("a", delay=5.0)
    reader = broker.reader()
    assert reader.receive() == []
    assert reader.told[-1] == 5.0
    before = list(reader.told)
    assert reader.receive() == []
    assert reader.told == before, "what it was told of still stands; to say it again would keep it from waiting"
    broker.now = 5.0
    [delivery] = reader.receive()
    assert reader.told[-1] == 5.0 + LEASE
    reader.settle(Ack(delivery))
    broker.now = 5.0 + LEASE
    assert reader.receive() == []
    assert reader.told[-1] == 5.0 + LEASE, "nothing is due any more"


def test_an_operation_of_another_session_lets_expired_leases_be_found(broker: Broker) -> None:
    broker.send("a")
    holder, waiting = broker.reader(), broker.reader()
    holder.receive()
    waiting.receive()
    waiting.told.clear()
    broker.now = LEASE + 5
    assert broker.stats() == (1, 0, 0)
    assert waiting.ids() == ["a"]


def test_a_full_window_that_opens_is_told(broker: Broker) -> None:
    broker.send("a", "b")
    reader = broker.reader(window=1)
    [a] = reader.receive()
    assert reader.receive() == []
    reader.told.clear()
    reader.settle(Ack(a))
    assert reader.told == [0.0]


def test_the_next_of_a_group_is_told(broker: Broker) -> None:
    broker.send("a1", "a2", group_id="a")
    holder, waiting = broker.reader(), broker.reader()
    [a1] = holder.receive()
    waiting.receive()
    waiting.told.clear()
    holder.settle(Ack(a1))
    assert waiting.told == [0.0]


def test_twins(broker: Broker) -> None:
    broker.send("a1", "a2", group_id="a")
    broker.send("b")
    reader = broker.reader()
    a1, b = reader.receive()
    for delivery in (a1, b):
        broker.do(broker.store.duplicate, delivery)
    [twin] = reader.receive()
    assert (twin.message.id, twin.broker_count) == ("b", 1)
    reader.settle(Ack(a1), Ack(b))
    [a1_twin] = reader.receive()
    reader.settle(Ack(a1_twin))
    assert (a1_twin.message.id, reader.ids()) == ("a1", ["a2"])


def test_what_is_settled_leaves_nothing_behind(broker: Broker) -> None:
    reader = broker.reader()
    for number in range(5000):
        broker.now = number / 1000
        broker.send(f"{number}", expires_at=WALL + 1e6, group_id=f"{number % 7}")
        reader.settle(*map(Ack, reader.receive()))
    store = broker.store
    queue = store._queues["q"]
    assert (broker.stats(), queue.groups, len(queue.subscriptions[0])) == ((0, 0, 0), {}, 0)
    assert len(store._agenda._expiring) <= 2048
    assert len(store._agenda._looks) <= 2
    assert math.isfinite(store._agenda.next_expiry)


def test_who_was_given_all_it_asked_for_is_not_told(broker: Broker) -> None:
    broker.send("a")
    reader = broker.reader()
    reader.receive(1)
    reader.told.clear()
    broker.send("b")
    assert reader.told == [], "it looks again before it waits, and a call for every message would cost as much as one"


def test_the_next_consumer_of_an_ordered_queue_is_told(broker: Broker) -> None:
    broker.declare("o", ordered=True)
    first, second = broker.reader("o"), broker.reader("o")
    broker.send("1", "2", queue="o")
    [one] = first.receive(1)
    first.unsubscribe("o")
    second.receive()
    second.told.clear()
    first.settle(Ack(one))
    assert second.told == [0.0]
    assert second.ids() == ["2"]


def test_the_next_of_a_group_is_told_when_the_time_of_day_jumps(broker: Broker) -> None:
    broker.send("a1", group_id="a", expires_at=WALL + 100.0)
    broker.send("a2", group_id="a")
    reader = broker.reader()
    reader.settle(Nack(reader.receive()[0], 200.0))
    assert reader.receive() == []
    reader.told.clear()
    broker.store.stats(1.0, WALL + 100.0, "q")
    assert [when for _, when in broker.store.calls] == [1.0]
