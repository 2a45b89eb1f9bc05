"""Order, groups, times, duplicates, kinds of queues and topics of a store in a file."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlite_store import LEASE, Client, Store, T, failed_with, open_session

from mqlayer.backends.sqlite_model import group_queue, temporary_queue
from mqlayer.clock import ManualClock
from mqlayer.driver import Ack, Declare, Extend, Forward, Nack, Outgoing, QueueOptions, Release
from mqlayer.errors import QueueNotFoundError, UnroutableError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


# --- order --------------------------------------------------------------------------------------------------------------


def test_first_come_first_served_and_a_message_that_comes_back_keeps_its_place(store: Store) -> None:
    store.send(*map(str, range(5)))
    reader = store.reader()
    held = reader.receive(3)
    reader.settle(Nack(held[2]), Release(held[0]), Nack(held[1]))
    assert reader.ids() == ["0", "1", "2", "3", "4"]


def test_higher_priority_first_and_none_is_zero(store: Store) -> None:
    for number, priority in enumerate([0, 9, None, 5, 9, 0]):
        store.send(str(number), priority=priority)
    reader = store.reader()
    assert [reader.ids(1)[0] for _ in range(3)] == ["1", "4", "3"]
    assert reader.ids() == ["0", "2", "5"]


# --- groups -------------------------------------------------------------------------------------------------------------


def send_groups(store: Store) -> None:
    for name in ("a1", "b1", "a2", "b2", "a3"):
        store.send(name, group_id=name[0])
    store.send("free")


def test_of_a_group_one_at_a_time_and_in_order(store: Store) -> None:
    send_groups(store)
    first, second = store.reader(), store.reader()
    a1, b1, free = first.receive()
    assert [one.message.id for one in (a1, b1, free)] == ["a1", "b1", "free"]
    assert second.receive() == []
    assert store.sender.stats() == (3, 3, 0)
    first.session.unsubscribe("q", T)
    assert first.settle(Ack(a1)) == {}
    assert second.ids() == ["a2"]
    assert first.settle(Ack(b1)) == {}
    assert second.ids() == ["b2"]


@pytest.mark.parametrize("how", ["nack", "nack later", "release", "lease", "close"])
def test_a_head_that_comes_back_still_comes_first(store: Store, how: str) -> None:
    store.send("a1", "a2", group_id="a")
    first, second = store.reader(), store.reader()
    [a1] = first.receive()
    if how == "lease":
        store.advance(LEASE)
    elif how == "close":
        first.session.close(T)
    else:
        first.settle(Release(a1) if how == "release" else Nack(a1, 5.0 if how == "nack later" else 0.0))
    if how == "nack later":
        assert second.receive() == [], "a nacked head holds its group"
        store.advance(5.0)
    [again] = second.receive()
    assert again.message.id == "a1"
    second.settle(Ack(again))
    assert second.ids() == ["a2"]


def test_a_head_that_leaves_its_queue_lets_the_next_one_go(store: Store) -> None:
    store.sender.declare("dead")
    store.send("a1", "a2", "a3", group_id="a")
    reader = store.reader()
    [a1] = reader.receive()
    reader.settle(Forward(a1, "dead", a1.message))
    [a2] = reader.receive()
    reader.settle(Forward(a2, "q", a2.message))
    assert reader.ids() == ["a3"], "a copy comes behind the others"


def test_an_expired_head_lets_the_next_one_go(store: Store) -> None:
    store.send("a1", group_id="a", expires_at=store.clock.time() + 1)
    store.send("a2", group_id="a")
    store.advance(1)
    assert store.reader().ids() == ["a2"]


def test_a_delayed_one_joins_its_group_when_it_is_due(store: Store) -> None:
    store.send("later", group_id="a", delay=5.0)
    store.send("a1", "a2", group_id="a")
    reader = store.reader()
    [a1] = reader.receive()
    store.advance(5.0)
    assert reader.receive() == [], "a1 is still held"
    reader.settle(Ack(a1))
    [a2] = reader.receive()
    assert a2.message.id == "a2"
    reader.settle(Ack(a2))
    assert reader.ids() == ["later"]


# --- times --------------------------------------------------------------------------------------------------------------


def test_a_delay_ends_at_its_very_end(store: Store) -> None:
    store.send("b", delay=2.0)
    store.send("a", delay=1.0)
    reader = store.reader()
    assert store.sender.stats() == (0, 0, 2)
    store.advance(0.75)
    assert reader.receive() == []
    store.advance(0.25)
    assert reader.ids() == ["a"]
    store.advance(1.0)
    assert reader.ids() == ["b"]


def test_an_expired_message_is_never_handed_over(store: Store) -> None:
    now = store.clock.time()
    store.send("short", expires_at=now + 1.0)
    store.send("claimed", expires_at=now + 3.0)
    store.send("waiting", expires_at=now + 3.0, delay=2.0)
    reader = store.reader()
    store.advance(1.0)
    [claimed] = reader.receive()
    assert claimed.message.id == "claimed"
    store.advance(2.0)
    assert reader.settle(Nack(claimed)) == {}
    assert reader.receive() == []
    assert store.sender.stats() == (0, 0, 0)


def test_many_expired_ones_do_not_hide_the_one_behind_them(store: Store) -> None:
    store.send(*["x"] * 3000, expires_at=store.clock.time() + 1.0)
    store.send("alive")
    store.advance(1.0)
    assert store.sender.peek(limit=1) == ["alive"]
    reader = store.reader(window=5)
    assert [found for _ in range(3) for found in reader.ids()] == ["alive"]


def test_what_nobody_claims_does_not_pile_up(store: Store) -> None:
    for _ in range(20):
        store.send(*["x"] * 10, expires_at=store.clock.time() + 1.0)
        store.advance(1.0)
    rows = store.sender.session._file.read("SELECT count(*) FROM mqlayer_messages")
    assert rows[0][0] <= 20


def test_setting_the_wall_clock_moves_no_delay_and_no_lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.send("held")
    store.send("late", delay=10.0)
    first, second = store.reader(lease=10.0), store.reader()
    assert first.ids() == ["held"]
    start = store.clock._start
    for moved in (start + 3600.0, start - 3600.0):
        monkeypatch.setattr(store.clock, "_start", moved)
        assert second.receive() == []
        assert store.sender.stats() == (0, 1, 1)
    store.send("ttl", expires_at=store.clock.time() + 5.0)  # by the sender's wall clock, as it is now
    assert second.ids() == ["ttl"]
    store.advance(10.0)
    assert second.ids() == ["held", "late"]


@pytest.mark.parametrize("moved", [-7200.0, 7200.0])
def test_after_a_boot_what_was_held_comes_back_within_a_lease(store: Store, moved: float) -> None:
    """Another clock object is another boot: its monotonic time has nothing to do with the one before."""
    store.advance(12345.0)
    store.send("held")
    store.send("late", delay=5.0)
    assert store.reader(lease=3600.0).ids() == ["held"]
    booted = ManualClock(store.clock.time() + moved)
    reader = Client(open_session(store.path, booted)).subscribe()
    if moved < 0:
        assert reader.receive() == []
        assert reader.stats() == (0, 1, 1)
        booted.advance(LEASE)
        assert reader.ids() == ["held"]
        booted.advance(-moved + 5.0 - LEASE)
        assert reader.ids() == ["held", "late"]
    else:
        assert reader.ids() == ["held", "late"]
    reader.session.close(T)


# --- duplicates ---------------------------------------------------------------------------------------------------------


def test_a_second_message_of_one_dedup_id_is_confirmed_and_dropped(store: Store) -> None:
    store.sender.declare("r")
    store.send("1", "2", dedup_id="d")
    store.send("3", dedup_id="d", delay=1.0)
    store.send("4", dedup_id="e")
    store.send("5", dedup_id="d", queue="r")
    store.send("6", "7")
    reader = store.reader("q", "r")
    found = reader.receive()
    assert sorted(str(one.message.id) for one in found) == ["1", "4", "5", "6", "7"]
    reader.settle(*map(Ack, found))
    store.advance(299.0)
    store.send("8", dedup_id="d")
    assert reader.receive() == [], "settled or not makes no difference"
    store.advance(1.0)
    store.send("9", dedup_id="d")
    assert reader.ids() == ["9"]


def test_what_was_seen_long_ago_is_forgotten(store: Store) -> None:
    for number in range(5):
        store.send("x", dedup_id=str(number))
        store.advance(300.0)
    assert store.sender.session._file.read("SELECT count(*) FROM mqlayer_dedup")[0][0] <= 2


# --- ordered and temporary queues ---------------------------------------------------------------------------------------


@pytest.fixture
def ordered(store: Store) -> tuple[Client, Client]:
    """Two consumers of an ordered queue of three, and the first is the active one."""
    store.sender.declare("o", ordered=True)
    store.send("1", "2", "3", queue="o")
    return store.reader("o", window=2), store.reader("o")


def test_an_ordered_queue_has_one_active_consumer(store: Store, ordered: tuple[Client, Client]) -> None:
    first, second = ordered
    one, two = first.receive()
    assert second.receive() == []
    first.settle(Nack(one), Ack(two))
    assert second.receive() == []
    assert first.ids() == ["1", "3"]


def test_the_active_consumer_stays_it_as_long_as_it_extends(store: Store, ordered: tuple[Client, Client]) -> None:
    first, second = ordered
    held = first.receive()
    store.advance(LEASE - 1)
    assert first.settle(*(Extend(one, LEASE) for one in held)) == {}
    store.advance(LEASE - 1)
    assert second.receive() == []
    store.advance(1)
    assert second.ids() == ["1", "2", "3"], "nothing was heard of it for a lease"
    assert first.receive() == []


@pytest.mark.parametrize("how", ["close", "unsubscribe", "unsubscribe and settle", "unsubscribe and close"])
def test_the_active_consumer_gives_way(store: Store, ordered: tuple[Client, Client], how: str) -> None:
    first, second = ordered
    [one] = first.receive(1)
    if how == "unsubscribe":
        first.settle(Nack(one))
    if "unsubscribe" in how:
        first.session.unsubscribe("o", T)
    if "and" in how:
        assert second.receive() == [], "what the first holds comes before the rest"
    if how == "unsubscribe and settle":
        first.settle(Nack(one))
    if "close" in how:
        first.session.close(T)
    assert second.ids() == ["1", "2", "3"]


def test_a_temporary_queue_goes_when_it_was_idle_for_a_minute(store: Store) -> None:
    client = store.client()
    client.declare("t", temporary=True)
    client.declare("sent", temporary=True)
    client.declare("declared", temporary=True)
    store.advance(59.0)
    store.send("x", queue="sent")
    client.declare("declared", Declare.CHECK)
    store.advance(1.0)
    with pytest.raises(QueueNotFoundError):
        client.stats("t")
    assert failed_with(client.send("x", queue="t")) == {0: UnroutableError}
    assert client.stats("sent") == (1, 0, 0)
    store.advance(59.0)
    for gone in ("sent", "declared"):
        with pytest.raises(QueueNotFoundError):
            client.declare(gone, Declare.CHECK)
    client.declare("sent", temporary=True)
    assert client.stats("sent") == (0, 0, 0), "what it held went with it"


def test_a_temporary_queue_stays_while_it_is_consumed(store: Store) -> None:
    store.sender.declare("t", temporary=True)
    reader = store.reader("t")
    for _ in range(10):
        store.advance(25.0)
        assert reader.receive() == []
    store.send("x", queue="t")
    assert reader.ids() == ["x"]


# --- topics -------------------------------------------------------------------------------------------------------------


def publish(store: Store, *ids: str, topic: str = "news", **fields: object) -> None:
    batch = [Outgoing(id, b"body", **fields) for id in ids]  # type: ignore[arg-type]
    assert store.sender.session.publish(topic, batch, T) == {}


def test_subscribing_keeps_a_temporary_queue_that_was_about_to_go(store: Store) -> None:
    store.sender.declare("t", temporary=True)
    reader = store.reader()
    store.advance(50.0)
    assert reader.ids() == [], "this kept nothing, and looks again later"
    reader.subscribe("t")
    reader.receive()
    store.advance(15.0)
    store.send("a", queue="t")
    assert reader.ids() == ["a"]


def test_each_group_gets_a_copy_and_its_members_share(store: Store) -> None:
    publish(store, "nobody's")
    session = store.sender.session
    mailer, indexer = session.bind("news", "mailer", T), session.bind("news", "indexer", T)
    assert session.bind("news", "mailer", T) == mailer
    session.bind("other", "mailer", T)
    first, second = store.reader(mailer, window=1), store.reader(mailer)
    third = store.reader(indexer)
    publish(store, "a", "b", dedup_id=None)
    assert (first.ids(), second.ids(), third.ids()) == (["a"], ["b"], ["a", "b"])


def test_a_group_keeps_what_is_published_while_nobody_reads(store: Store) -> None:
    session = store.client().session
    queue = session.bind("news", "mailer", T)
    session.close(T)
    publish(store, "a")
    store.advance(3600.0)
    assert store.reader(queue).ids() == ["a"]


def test_a_temporary_subscription_goes_with_its_session(store: Store) -> None:
    reader = store.client()
    queue = reader.session.bind("news", None, T)
    other = store.client().session.bind("news", None, T)
    assert queue != other
    reader.subscribe(queue)
    publish(store, "a")
    for _ in range(5):
        store.advance(25.0)
        reader.ids()
    publish(store, "b")
    assert reader.ids() == ["b"], "it stays as long as its session is there"
    with pytest.raises(QueueNotFoundError):
        store.sender.stats(other)
    reader.session.close(T)
    with pytest.raises(QueueNotFoundError):
        store.sender.stats(queue)
    publish(store, "c")


def test_deduplication_and_delay_are_each_groups_own(store: Store) -> None:
    session = store.sender.session
    first, second = session.bind("news", "1", T), session.bind("news", "2", T)
    publish(store, "a", "b", dedup_id="d", delay=1.0)
    assert store.sender.stats(first) == store.sender.stats(second) == (0, 0, 1)
    store.advance(1.0)
    assert store.reader(first, second).ids() == ["a", "a"]


NAMES = st.text(st.sampled_from("ab.%2E5"), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(NAMES, NAMES, NAMES, NAMES)
def test_no_two_groups_share_a_queue(topic: str, group: str, other_topic: str, other_group: str) -> None:
    same = (topic, group) == (other_topic, other_group)
    assert (group_queue(topic, group) == group_queue(other_topic, other_group)) is same
    assert temporary_queue(topic, group) != group_queue(other_topic, other_group)


def test_a_queues_options_are_stored(store: Store) -> None:
    options = QueueOptions(dead_letter="d", temporary=True, ordered=True)
    store.client().session.declare("x", options, Declare.ENSURE, T)
    assert store.client().session.declare("x", QueueOptions(), Declare.CHECK, T) == options
