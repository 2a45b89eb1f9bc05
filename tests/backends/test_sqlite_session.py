"""What the driver asks of a session, kept by two and more sessions on one file."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_store import LEASE, PLAIN, Client, Store, T, failed_with

from mqlayer.driver import (
    Ack,
    Declare,
    Extend,
    Forward,
    Incoming,
    Nack,
    Outgoing,
    QueueOptions,
    Release,
    Trail,
)
from mqlayer.errors import (
    ClosedError,
    ConnectionLostError,
    MessageTooLargeError,
    NotSentError,
    QueueMismatchError,
    QueueNotFoundError,
    StaleDeliveryError,
    UnroutableError,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def heard(found: Incoming) -> tuple[int | None, bool, int, int]:
    """What is known of earlier deliveries."""
    return found.broker_count, found.redelivered, found.message.trail.failures, found.message.trail.crashes


def claim_ahead(store: Store, reader: Client, *names: str) -> None:
    """Let *reader* claim messages that it has not asked for: its settlement does."""
    store.send("first", *names)
    [first] = reader.receive(1)
    assert first.message.id == "first"
    reader.settle(Ack(first))


# --- what travels -------------------------------------------------------------------------------------------------------


def test_every_field_comes_as_it_went(store: Store) -> None:
    full = Outgoing(
        "id-1",
        bytes(range(256)),
        {"text": "ü", "int": -(2**70), "float": 0.1, "yes": True, "nothing": None, "bytes": b"\x00\xff"},
        content_type="application/x",
        correlation_id="c",
        reply_to="r",
        priority=7,
        group_id="g",
        dedup_id="d",
        sent_at=store.clock.time(),
        expires_at=store.clock.time() + 100.25,
        trail=Trail(failures=2, crashes=1, resent=3, origin="o", reason="why", copied_from="x", deliveries=4),
    )
    bare = Outgoing(None, b"", priority=0)
    assert store.sender.session.send("q", [full, bare], T) == {}
    first, second = store.reader().receive()
    assert first.message == full
    assert second.message == bare
    assert (first.queue, first.broker_count, first.redelivered) == ("q", 1, False)
    assert first.lease_until == store.clock.monotonic() + LEASE


def test_a_batch_is_stored_but_for_what_is_too_large(store: Store) -> None:
    too_large = Outgoing("large", bytes(64 * 1024 * 1024 + 1))
    failures = store.sender.session.send("q", [Outgoing("a", b""), too_large, Outgoing("b", b"")], T)
    assert failed_with(failures) == {1: MessageTooLargeError}
    assert store.sender.peek() == ["a", "b"]


def test_a_missing_queue_is_named_for_each_message(store: Store) -> None:
    failures = store.sender.send("a", "b", queue="gone")
    assert failed_with(failures) == {0: UnroutableError, 1: UnroutableError}
    assert [error.message_id for error in failures.values()] == ["a", "b"]  # type: ignore[attr-defined]
    assert "'gone'" in str(failures[0])
    session = store.sender.session
    for look in (session.stats, session.purge):
        with pytest.raises(QueueNotFoundError, match="'gone'"):
            look("gone", T)
    with pytest.raises(QueueNotFoundError, match="'gone'"):
        session.peek("gone", 1, T)
    with pytest.raises(QueueNotFoundError, match="'gone'"):
        store.reader("gone")
    session.delete("gone", T)


# --- claims and windows -------------------------------------------------------------------------------------------------


def test_two_sessions_never_have_the_same_message(store: Store) -> None:
    store.send(*map(str, range(10)))
    first, second = store.reader(window=4), store.reader(window=4)
    assert (first.ids(), second.ids()) == (["0", "1", "2", "3"], ["4", "5", "6", "7"])
    assert first.ids() == [], "its window is full"
    assert store.sender.stats() == (2, 8, 0)


def test_a_window_is_for_each_queue_and_can_change(store: Store) -> None:
    store.sender.declare("r")
    store.send("a", "b", "c")
    store.send("d", "e", "f", queue="r")
    reader = store.reader("q", "r", window=1)
    held = list(reader.receive())
    assert sorted(str(one.message.id) for one in held) == ["a", "d"]
    reader.subscribe("q", window=3)
    assert reader.ids() == ["b", "c"]
    reader.subscribe("q", window=1)
    assert reader.settle(*map(Ack, held)) == {}
    assert reader.ids() == ["e"], "b and c fill q's window, and what is held stays held"


def test_a_smaller_window_gives_back_what_nobody_saw_uncounted(store: Store) -> None:
    reader, other = store.reader(window=4), store.reader()
    claim_ahead(store, reader, "a", "b", "c", "d")
    assert reader.ids(1) == ["a"]
    assert other.receive() == []
    reader.subscribe(window=2)
    assert [(one.message.id, *heard(one)[:2]) for one in other.receive()] == [("c", 1, False), ("d", 1, False)]
    assert reader.ids() == ["b"]


def test_what_is_acked_makes_room_in_the_same_transaction(store: Store) -> None:
    store.send("a", "b", "c", "d")
    reader, other = store.reader(window=2), store.reader()
    a, _ = reader.receive()
    reader.settle(Ack(a))
    assert store.sender.stats() == (1, 2, 0), "c was claimed by the settlement itself"
    assert other.ids() == ["d"]
    assert reader.ids() == ["c"]


def test_a_released_message_is_not_claimed_again_at_once(store: Store) -> None:
    store.send("a", "b")
    reader, other = store.reader(window=2), store.reader()
    a, b = reader.receive()
    assert reader.settle(Ack(a), Release(b)) == {}
    assert other.ids() == ["b"]


def test_several_queues_take_turns(store: Store) -> None:
    for queue in ("r", "idle"):
        store.sender.declare(queue)
    store.send(*["q"] * 20)
    store.send(*["r"] * 20, queue="r")
    reader = store.reader("q", "idle", "r", window=50)
    seen = [reader.ids(1)[0] for _ in range(10)]
    assert {"q", "r"} <= set(seen)


def test_unsubscribing_gives_back_what_nobody_saw_uncounted(store: Store) -> None:
    reader, other = store.reader(), store.reader()
    claim_ahead(store, reader, "a", "b", "c")
    [a] = reader.receive(1)
    assert other.receive() == []
    reader.session.unsubscribe("q", T)
    reader.session.unsubscribe("q", T)
    assert reader.receive() == []
    assert [heard(one)[:2] for one in other.receive()] == [(1, False), (1, False)]
    assert reader.settle(Ack(a)) == {}
    assert store.sender.stats() == (0, 2, 0)


def test_close_gives_back_and_counts_what_was_seen_alone(store: Store) -> None:
    reader = store.reader()
    claim_ahead(store, reader, "seen", "unseen")
    assert reader.ids(1) == ["seen"]
    assert store.sender.stats() == (0, 2, 0)
    reader.session.close(T)
    reader.session.close(T)
    assert [(one.message.id, *heard(one)[:2]) for one in store.reader().receive()] == [
        ("seen", 2, True),
        ("unseen", 1, False),
    ]
    with pytest.raises(ClosedError):
        reader.receive()
    assert failed_with(reader.send("x")) == {0: NotSentError}


def test_abort_ends_every_later_call_and_the_lease_brings_back_what_is_held(store: Store) -> None:
    store.send("a")
    reader = store.reader()
    [a] = reader.receive()
    reader.session.abort()
    with pytest.raises(ConnectionLostError):
        reader.receive()
    assert failed_with(reader.settle(Ack(a))) == {0: ConnectionLostError}
    assert failed_with(reader.send("b")) == {0: NotSentError}
    reader.session.close(T)
    other = store.reader()
    assert other.receive() == []
    store.advance(LEASE)
    assert other.ids() == ["a"]


# --- leases -------------------------------------------------------------------------------------------------------------


def test_a_lease_ends_at_its_very_end(store: Store) -> None:
    store.send("a")
    first, second = store.reader(lease=10.0), store.reader()
    [held] = first.receive()
    assert held.lease_until == store.clock.monotonic() + 10.0
    store.advance(9.5)
    assert second.receive() == []
    assert store.sender.stats() == (0, 1, 0)
    store.advance(0.5)
    assert store.sender.stats() == (1, 0, 0)
    [again] = second.receive()
    assert heard(again) == (2, True, 0, 0)


def test_an_extended_lease_ends_that_long_from_now(store: Store) -> None:
    store.send("a")
    first, second = store.reader(lease=10.0), store.reader()
    [held] = first.receive()
    store.advance(9.0)
    assert first.settle(Extend(held, 5.0)) == {}
    store.advance(4.5)
    assert second.receive() == []
    assert first.settle(Extend(held, 0.25)) == {}, "shorter, too"
    store.advance(0.25)
    assert second.ids() == ["a"]


@pytest.mark.parametrize(
    "late",
    [
        Ack,
        Nack,
        Release,
        lambda of: Extend(of, 10.0),
        lambda of: Forward(of, "dead", of.message),
    ],
)
@pytest.mark.parametrize("taken", [True, False])
def test_a_stale_token_touches_nobody_elses_copy(store: Store, late: type, taken: bool) -> None:
    store.sender.declare("dead")
    store.send("a")
    first, second = store.reader(lease=10.0), store.reader()
    [held] = first.receive()
    store.advance(10.0)
    theirs = second.receive() if taken else []
    first.session.unsubscribe("q", T)  # it is not to claim the message again
    before = store.sender.stats()
    assert failed_with(first.settle(late(held))) == {0: StaleDeliveryError}
    assert store.sender.stats() == before
    assert store.sender.stats("dead") == (0, 0, 0)
    assert second.settle(*map(Ack, theirs)) == {}


def test_only_its_own_session_settles_a_delivery_and_only_once(store: Store) -> None:
    store.send("a", "b")
    first, second = store.reader(), store.reader()
    a, b = first.receive()
    assert failed_with(second.settle(Ack(a))) == {0: StaleDeliveryError}
    assert failed_with(first.settle(Ack(a), Nack(a), Ack(b))) == {1: StaleDeliveryError}
    assert failed_with(first.settle(Ack(a))) == {0: StaleDeliveryError}
    assert failed_with(first.settle(Ack(a._replace(token=object())))) == {0: StaleDeliveryError}
    assert store.sender.stats() == (0, 0, 0)


def test_what_was_claimed_and_never_asked_for_in_time_is_not_handed_over(store: Store) -> None:
    reader = store.reader(lease=10.0)
    claim_ahead(store, reader, "a")
    store.advance(10.0)
    [again] = reader.receive()
    assert again.lease_until == store.clock.monotonic() + 10.0, "claimed anew"


def test_a_window_is_not_held_by_what_came_back(store: Store) -> None:
    store.send("a", "b")
    reader = store.reader(window=1, lease=10.0)
    assert reader.ids() == ["a"]
    store.advance(10.0)
    assert reader.ids() == ["a"]


# --- counts -------------------------------------------------------------------------------------------------------------


def test_a_crash_counts_and_a_nack_moves_the_count_to_the_trail(store: Store) -> None:
    store.send("a")
    reader = store.reader(lease=10.0)
    assert [heard(one) for one in reader.receive()] == [(1, False, 0, 0)]
    store.advance(10.0)
    [crashed] = reader.receive()
    assert heard(crashed) == (2, True, 0, 0)
    reader.settle(Nack(crashed))
    [nacked] = reader.receive()
    assert heard(nacked) == (1, False, 1, 1), "one failed, one was never heard of"
    reader.settle(Release(nacked))
    [released] = reader.receive()
    assert heard(released) == (1, False, 1, 1)


def test_a_nack_with_a_delay_waits_and_keeps_everything_else(store: Store) -> None:
    sent = Outgoing("a", b"x", {"h": 1}, content_type="t", priority=3, trail=Trail(resent=1, not_before=5.0))
    store.sender.session.send("q", [sent], T)
    reader = store.reader()
    [held] = reader.receive()
    assert reader.settle(Nack(held, 5.0)) == {}
    assert store.sender.stats() == (0, 0, 1)
    store.advance(4.5)
    assert reader.receive() == []
    store.advance(0.5)
    [again] = reader.receive()
    assert again.message == sent._replace(trail=Trail(failures=1, resent=1))


def test_forward_is_one_step(store: Store) -> None:
    store.sender.declare("dead")
    store.send("a", "b", dedup_id="d")
    store.send("c")
    reader = store.reader()
    a, c = reader.receive()
    copy = a.message._replace(trail=Trail(origin="q", reason="why", deliveries=1))
    failures = reader.settle(Forward(a, "dead", copy), Forward(c, "missing", c.message))
    assert failed_with(failures) == {1: UnroutableError}
    assert "'missing'" in str(failures[1])
    assert store.sender.stats() == (0, 1, 0), "c is still held"
    assert reader.settle(Ack(c)) == {}
    [dead] = store.reader("dead").receive()
    assert dead.message == copy
    assert heard(dead)[:2] == (1, False)


def test_a_copy_to_its_own_queue_is_no_duplicate_and_may_wait(store: Store) -> None:
    store.send("a", dedup_id="d")
    reader = store.reader()
    [a] = reader.receive()
    assert reader.settle(Forward(a, "q", a.message._replace(delay=5.0))) == {}
    assert store.sender.stats() == (0, 0, 1)
    store.advance(5.0)
    assert reader.ids() == ["a"]


# --- queues -------------------------------------------------------------------------------------------------------------


def test_declare_modes(store: Store) -> None:
    client = store.client()
    with pytest.raises(QueueNotFoundError, match="'new'"):
        client.declare("new", Declare.CHECK)
    stored = QueueOptions(dead_letter="dead", ordered=True)
    assert client.declare("new", Declare.COMPARE, dead_letter="dead", ordered=True) == stored
    assert client.declare("new", Declare.ENSURE) == stored
    assert client.declare("new", Declare.CHECK) == stored
    for other in ({}, {"dead_letter": "dead"}, {"dead_letter": "x", "ordered": True}):
        with pytest.raises(QueueMismatchError, match="'new'"):
            store.sender.declare("new", Declare.COMPARE, **other)


def test_delete_drops_everything_and_a_subscription_goes_on_with_the_next_queue(store: Store) -> None:
    store.send("held", "ready", dedup_id=None)
    store.send("grouped", "blocked", group_id="g")
    store.send("late", delay=5.0)
    store.send("later", delay=5.0, group_id="g")
    reader = store.reader(window=1)
    [held] = reader.receive()
    store.sender.session.delete("q", T)
    with pytest.raises(QueueNotFoundError, match="'q'"):
        reader.receive()
    assert failed_with(reader.settle(Ack(held))) == {0: StaleDeliveryError}
    store.sender.declare("q")
    assert store.sender.stats() == (0, 0, 0)
    store.send("new")
    assert reader.ids() == ["new"]


def test_purge_drops_what_is_ready(store: Store) -> None:
    store.send("held", "x")
    reader = store.reader(window=1)
    assert reader.ids() == ["held"]
    store.send("y", "z", group_id="g")
    store.send("late", delay=5.0)
    store.send("over", expires_at=store.clock.time() - 1)
    assert store.sender.session.purge("q", T) == 3
    assert store.sender.stats() == (0, 1, 1)
    store.advance(5.0)
    assert store.reader().ids() == ["late"]


def test_stats_and_peek_see_what_a_consumer_would_and_change_nothing(store: Store) -> None:
    store.send("low", priority=1)
    store.send("high", priority=9)
    store.send("first", "second", group_id="g")
    store.send("late", delay=5.0)
    store.send("gone", expires_at=store.clock.time() + 1)
    store.advance(1)
    for _ in range(2):
        assert store.sender.peek() == ["high", "low", "first"]
        assert store.sender.peek(limit=1) == ["high"]
        assert store.sender.stats() == (4, 0, 1)
    store.advance(4)
    assert store.sender.peek() == ["high", "low", "first", "late"]
    assert store.sender.stats() == (5, 0, 0)
    [seen, *_] = store.sender.session.peek("q", 1, T)
    assert (seen.broker_count, seen.redelivered) == (1, False)
    reader = store.reader()
    assert failed_with(reader.settle(Ack(seen))) == {0: StaleDeliveryError}
    assert heard(reader.receive(1)[0])[:2] == (1, False)


def test_a_session_without_queues_waits_for_nothing(store: Store) -> None:
    assert store.client().session.receive(1, 0.0) == []
    assert store.client().session.receive(0, 0.0) == []
    store.sender.session.declare("q", PLAIN, Declare.CHECK, T)
