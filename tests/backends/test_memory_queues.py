"""Consumers, queues and topics of the memory broker's store, and who is told when to look."""

import math
from collections.abc import Callable, Sequence

import pytest
from memory_broker import LEASE, WALL, Broker, Reader

from mqlayer.backends.memory_names import group_queue
from mqlayer.driver import (
    Ack,
    Declare,
    Extend,
    Failures,
    Incoming,
    Nack,
    Outgoing,
    QueueOptions,
    Release,
)
from mqlayer.errors import (
    QueueMismatchError,
    QueueNotFoundError,
    StaleDeliveryError,
    UnroutableError,
)


@pytest.fixture
def broker() -> Broker:
    return Broker()


# --- several consumers and queues ---------------------------------------------------------------------------------------


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


# --- queues and topics --------------------------------------------------------------------------------------------------


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
    for _ in range(2):
        with pytest.raises(QueueNotFoundError):
            reader.receive()
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


# --- look_again ---------------------------------------------------------------------------------------------------------


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
