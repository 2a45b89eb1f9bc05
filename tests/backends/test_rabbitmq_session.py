"""What the driver asks of a session, kept by a real RabbitMQ: queues, sending, receiving, settling."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

if not os.environ.get("CI"):
    pytest.importorskip("pika")

from rabbit_sessions import (
    MOMENT,
    PLAIN,
    Rabbit,
    T,
    drain,
    failed_with,
    ids,
    messages,
    nothing_more,
    receive,
    until,
)

from mqlayer.driver import Ack, Declare, Nack, Outgoing, QueueOptions, Release
from mqlayer.errors import (
    ArgumentError,
    ConnectionLostError,
    HeaderError,
    MessageTooLargeError,
    NotSentError,
    OutcomeUnknownError,
    QueueMismatchError,
    QueueNotFoundError,
    StaleDeliveryError,
    UnroutableError,
    UnsupportedError,
)
from mqlayer.testing.brokers.rabbitmq import find_rabbitmq

if find_rabbitmq() is None and not os.environ.get("CI"):
    pytest.skip("RabbitMQ is not installed: apt-get install rabbitmq-server", allow_module_level=True)


@pytest.fixture(scope="module")
def the_rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbit]:
    rabbit = Rabbit(tmp_path_factory.mktemp("rabbitmq"))
    with rabbit.server:
        yield rabbit


@pytest.fixture
def rabbit(the_rabbit: Rabbit) -> Iterator[Rabbit]:
    yield the_rabbit
    the_rabbit.close_sessions()


BOTH = pytest.mark.parametrize("kind", ["&queue_type=quorum", "&queue_type=classic"])


# --- sending ------------------------------------------------------------------------------------------------------------


def test_returned_messages_are_named_exactly(rabbit: Rabbit) -> None:
    session = rabbit.session()
    failures = session.send("missing", messages("a", "b", "a"), T)
    assert failed_with(failures) == {0: UnroutableError, 1: UnroutableError, 2: UnroutableError}
    assert [error.message_id for error in failures.values()] == ["a", "b", "a"]  # type: ignore[attr-defined]
    assert "'missing'" in str(failures[0])
    queue = rabbit.queue(session)
    assert session.send(queue, messages("c"), T) == {}
    assert drain(session, queue) == ["c"]


def test_of_a_batch_only_what_does_not_fit_fails(rabbit: Rabbit) -> None:
    session = rabbit.session()
    queue = rabbit.queue(session)
    batch = [
        Outgoing("a", b"x"),
        Outgoing("reserved", b"", {"x-death": "x"}),
        Outgoing("large", bytes(128 * 1024 * 1024 + 1)),
        Outgoing("headers", b"", {"h": "x" * 200_000}),
        Outgoing("b", bytes(1_000_000)),
    ]
    failures = session.send(queue, batch, T)
    assert failed_with(failures) == {1: HeaderError, 2: MessageTooLargeError, 3: HeaderError}
    assert drain(session, queue) == ["a", "b"]


@BOTH
def test_thousands_at_once_come_in_order(rabbit: Rabbit, kind: str) -> None:
    session = rabbit.session(kind)
    queue = rabbit.queue(session)
    names = [str(number) for number in range(5000)]
    assert session.send(queue, messages(*names), T) == {}
    assert drain(session, queue) == names


def test_a_refusal_on_one_channel_leaves_the_others_alone(rabbit: Rabbit) -> None:
    session = rabbit.session()
    queue = rabbit.queue(session)
    session.subscribe(queue, 10, None, T)
    session.send(queue, messages("a", "b"), T)
    a, b = receive(session, 2)
    for _ in range(3):
        with pytest.raises(QueueNotFoundError, match="missing"):
            session.stats("missing", T)
    with pytest.raises(QueueMismatchError):
        session.declare(queue, QueueOptions(ordered=True), Declare.COMPARE, T)
    assert failed_with(session.send("missing", messages("x"), T)) == {0: UnroutableError}
    assert session.settle([Ack(a), Ack(b)], T) == {}
    assert session.send(queue, messages("c"), T) == {}
    assert ids(receive(session, 1)) == ["c"]


def test_a_topic_without_groups_is_no_error_and_each_group_gets_a_copy(rabbit: Rabbit) -> None:
    session, other = rabbit.session(), rabbit.session()
    topic = f"t-{time.time_ns()}"
    assert session.publish(topic, messages("nobody's"), T) == {}
    first, second = session.bind(topic, "first", T), session.bind(topic, "second", T)
    assert session.bind(topic, "first", T) == first
    temporary = other.bind(topic, None, T)
    assert session.publish(topic, messages("a", "b"), T) == {}
    assert failed_with(session.publish(topic, messages("late", delay=1.0), T)) == {0: UnsupportedError}
    assert failed_with(session.publish("two\nlines", messages("a", "b"), T)) == {0: ArgumentError, 1: ArgumentError}
    assert drain(session, first) == drain(session, second) == drain(other, temporary) == ["a", "b"]
    other.close(1.0)

    def gone() -> bool:
        try:
            session.stats(temporary, T)
        except QueueNotFoundError:
            return True
        return False

    until(gone)
    assert session.publish(topic, messages("c"), T) == {}


def test_a_subscription_keeps_what_comes_while_nobody_consumes_it(rabbit: Rabbit) -> None:
    session = rabbit.session()
    topic = f"t-{time.time_ns()}"
    queue = session.bind(topic, None, T)
    for name in ("a", "b"):  # its last consumer is cancelled in between, as a changed window does
        session.publish(topic, messages(name), T)
        assert drain(session, queue) == [name]


# --- delay and ttl ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.3, 1.0])
@BOTH
def test_a_delayed_message_comes_when_it_is_due(rabbit: Rabbit, delay: float, kind: str) -> None:
    session = rabbit.session(kind)
    queue = rabbit.queue(session)
    session.subscribe(queue, 10, None, T)
    began = time.monotonic()
    assert session.send(queue, [Outgoing("late", b"x", {"h": 1.5}, delay=delay), Outgoing("now", b"")], T) == {}
    [now] = receive(session, 1)
    [late] = receive(session, 1)
    assert (now.message.id, late.message.id) == ("now", "late")
    assert time.monotonic() - began >= delay
    assert late.message == Outgoing("late", b"x", {"h": 1.5}), "the broker's own headers of the hop are not the user's"
    assert late.broker_count in (None, 1)


def test_a_delayed_message_to_a_missing_queue_is_refused_before_it_leaves(rabbit: Rabbit) -> None:
    session = rabbit.session()
    failures = session.send("missing", [*messages("a", "b", delay=0.3), *messages("c")], T)
    assert failed_with(failures) == dict.fromkeys(range(3), UnroutableError)
    queue = rabbit.queue(session)
    too_long = messages("x", delay=86_401.0)
    assert failed_with(session.send(queue, [*too_long, *messages("y")], T)) == {0: UnsupportedError}
    assert drain(session, queue) == ["y"]


def test_a_delay_queue_or_a_topic_that_somebody_deletes_is_made_again(rabbit: Rabbit) -> None:
    session = rabbit.session()
    queue, topic = rabbit.queue(session), f"t-{time.time_ns()}"
    delayed = messages("a", delay=0.1)
    assert session.send(queue, delayed, T) == {}
    with rabbit.raw() as channel:
        channel.queue_delete("mq.delay.100")
    assert failed_with(session.send(queue, delayed, T)) == {0: NotSentError}, "the queue itself is there"
    assert session.send(queue, delayed, T) == {}
    with rabbit.raw() as channel:
        channel.exchange_delete("mq.delay.100")
    assert failed_with(session.send(queue, delayed, T)) == {0: OutcomeUnknownError}
    assert session.send(queue, delayed, T) == {}
    assert session.publish(topic, messages("b"), T) == {}
    with rabbit.raw() as channel:
        channel.exchange_delete(f"mq.topic.{topic}")
    assert failed_with(session.publish(topic, messages("b"), T)) == {0: OutcomeUnknownError}
    assert session.publish(topic, messages("b"), T) == {}


@BOTH
def test_what_has_expired_is_not_delivered(rabbit: Rabbit, kind: str) -> None:
    session = rabbit.session(kind)
    queue = rabbit.queue(session)
    session.send(queue, messages("short", expires_at=time.time() + 0.2), T)
    session.send(queue, messages("long", expires_at=time.time() + 3600), T)
    session.send(queue, messages("over", expires_at=time.time() - 1), T)
    until(lambda: session.stats(queue, T).ready == 2)  # the broker looks at the first message alone
    assert drain(session, queue) == ["long"]


def test_a_classic_queue_has_priorities(rabbit: Rabbit) -> None:
    session = rabbit.session("&queue_type=classic")
    queue = rabbit.queue(session)
    for number, priority in enumerate([0, 9, None, 5]):
        session.send(queue, messages(str(number), priority=priority), T)
    assert drain(session, queue) == ["1", "3", "0", "2"]


# --- receiving and settling ---------------------------------------------------------------------------------------------


@BOTH
def test_a_window_bounds_what_is_held_and_changes_keep_it(rabbit: Rabbit, kind: str) -> None:
    session, other = rabbit.session(kind), rabbit.session(kind)
    queue = rabbit.queue(session)
    session.send(queue, messages(*map(str, range(12))), T)
    session.subscribe(queue, 2, None, T)
    held = receive(session, 2)
    assert ids(held) == ["0", "1"]
    assert nothing_more(session)
    session.subscribe(queue, 5, None, T)
    held += receive(session, 3)
    assert nothing_more(session)
    session.subscribe(queue, 3, None, T)
    assert nothing_more(session)
    assert session.settle([Ack(one) for one in held[:2]], T) == {}
    assert nothing_more(session), "three are held still"
    assert session.settle([Ack(one) for one in held[2:4]], T) == {}
    more = receive(session, 2)
    assert len(more) == 2
    assert nothing_more(session)
    assert session.settle([Ack(held[4]), *map(Ack, more)], T) == {}
    rest = receive(session, 3)
    assert session.settle([*map(Ack, rest)], T) == {}
    session.unsubscribe(queue, T)
    everything = ids(held) + ids(more) + ids(rest) + ids(session.receive(100, MOMENT))
    everything += drain(other, queue) if len(everything) < 12 else []
    assert sorted(everything, key=str) == sorted(map(str, range(12)))


def test_several_queues_of_one_session_take_turns_and_have_windows_of_their_own(rabbit: Rabbit) -> None:
    session = rabbit.session()
    busy, quiet, idle = (rabbit.queue(session) for _ in range(3))
    for queue in (busy, quiet, idle):
        session.subscribe(queue, 5, None, T)
    session.send(busy, messages(*["busy"] * 20), T)
    session.send(quiet, messages(*["quiet"] * 3), T)
    found = receive(session, 8)
    assert sorted(map(str, ids(found))) == ["busy"] * 5 + ["quiet"] * 3
    assert {one.queue for one in found} == {busy, quiet}
    assert nothing_more(session)
    session.unsubscribe(busy, T)
    assert session.settle([*map(Ack, found)], T) == {}
    session.send(quiet, messages("more"), T)
    assert ids(receive(session, 1)) == ["more"]


@BOTH
def test_close_and_lost_sessions_give_back(rabbit: Rabbit, kind: str) -> None:
    session, other = rabbit.session(kind), rabbit.session(kind)
    queue = rabbit.queue(session)
    session.send(queue, messages("a", "b"), T)
    session.subscribe(queue, 10, None, T)
    a, b = receive(session, 2)
    session.close(1.0)
    session.close(1.0)
    assert failed_with(session.settle([Ack(a)], T)) == {0: StaleDeliveryError}
    other.subscribe(queue, 10, None, T)
    again = receive(other, 2)
    assert ids(again) == ["a", "b"]
    assert {one.redelivered for one in again} == {True}
    assert [one.broker_count for one in again] == ([2, 2] if "quorum" in kind else [None, None])
    assert failed_with(other.settle([Ack(b), Ack(again[0]), Ack(again[0])], T)) == {
        0: StaleDeliveryError,
        2: StaleDeliveryError,
    }
    assert other.settle([Ack(again[1])], T) == {}
    assert drain(rabbit.session(), queue) == []


def test_verdicts_that_rabbitmq_has_not_are_refused(rabbit: Rabbit) -> None:
    session = rabbit.session()
    queue = rabbit.queue(session)
    session.send(queue, messages("a"), T)
    session.subscribe(queue, 1, None, T)
    [held] = receive(session, 1)
    assert failed_with(session.settle([Nack(held), Ack(held)], T)) == {0: UnsupportedError}
    with pytest.raises(UnsupportedError):
        session.peek(queue, 1, T)


def test_a_quorum_queue_counts_what_is_released_without_a_copy(rabbit: Rabbit) -> None:
    session = rabbit.session()
    queue = rabbit.queue(session)
    session.send(queue, messages("a"), T)
    session.subscribe(queue, 1, None, T)
    [held] = receive(session, 1)
    assert session.settle([Release(held)], T) == {}
    [again] = receive(session, 1)
    assert (again.message.id, again.broker_count) == ("a", 2)


def test_a_classic_queue_releases_uncounted(rabbit: Rabbit) -> None:
    session = rabbit.session("&queue_type=classic")
    queue = rabbit.queue(session)
    session.send(queue, messages("a", "b", "c"), T)
    session.subscribe(queue, 3, None, T)
    held = receive(session, 3)
    assert session.settle([Ack(held[2]), Release(held[0])], T) == {}
    [again] = receive(session, 1)
    assert again.message.id == "a"
    assert session.settle([Ack(held[1]), Ack(again)], T) == {}
    assert drain(rabbit.session(), queue) == []


def test_an_ordered_queue_has_one_active_consumer(rabbit: Rabbit) -> None:
    first, second = rabbit.session(), rabbit.session()
    queue = rabbit.queue(first, ordered=True)
    first.subscribe(queue, 1, None, T)
    second.subscribe(queue, 10, None, T)
    first.send(queue, messages("1", "2", "3"), T)
    [one] = receive(first, 1)
    assert one.message.id == "1"
    assert nothing_more(second)
    first.settle([Ack(one)], T)
    assert ids(receive(first, 1)) == ["2"]
    assert nothing_more(second)
    first.close(1.0)
    assert sorted(map(str, ids(receive(second, 2)))) == ["2", "3"], "what the first held may come behind the rest"


def test_a_queue_that_is_deleted_under_a_consumer_is_named(rabbit: Rabbit) -> None:
    session, other = rabbit.session(), rabbit.session()
    gone, stays = rabbit.queue(session), rabbit.queue(session)
    for queue in (gone, stays):
        session.subscribe(queue, 10, None, T)
    other.delete(gone, T)
    other.delete(gone, T)
    with pytest.raises(QueueNotFoundError, match=gone):
        session.receive(1, T)
    other.send(stays, messages("a"), T)
    assert ids(receive(session, 1)) == ["a"]
    with pytest.raises(QueueNotFoundError, match="missing"):
        session.subscribe("missing", 1, None, T)


def test_to_ask_about_a_queue_that_is_gone_does_not_make_it(rabbit: Rabbit) -> None:
    session = rabbit.session()
    queue = rabbit.queue(session)
    session.subscribe(queue, 1, None, T)
    with rabbit.raw() as channel:
        channel.queue_delete(queue)
    with pytest.raises(QueueNotFoundError, match=queue):  # before the session has read that its consumer has ended
        session.subscribe(queue, 2, None, T)
    with pytest.raises(QueueNotFoundError):
        session.stats(queue, T)


def test_a_queue_that_was_deleted_takes_no_other_queues_deliveries_with_it(rabbit: Rabbit) -> None:
    session, other = rabbit.session(), rabbit.session()
    gone, stays = rabbit.queue(session), rabbit.queue(session)
    session.send(stays, messages("a"), T)
    for queue in (gone, stays):
        session.subscribe(queue, 10, None, T)
    [held] = receive(session, 1)
    other.delete(gone, T)
    with pytest.raises(QueueNotFoundError, match=gone):
        session.receive(1, T)
    with pytest.raises(QueueNotFoundError, match=gone):  # not by the end of the channel, and of all that is held on it
        session.subscribe(gone, 10, None, T)
    assert session.settle([Ack(held)], T) == {}
    other.declare(gone, PLAIN, Declare.ENSURE, T)
    session.subscribe(gone, 10, None, T)
    other.send(gone, messages("b"), T)
    assert ids(receive(session, 1)) == ["b"]


def test_wake_ends_one_receive_and_abort_every_one(rabbit: Rabbit) -> None:
    session = rabbit.session()
    session.subscribe(rabbit.queue(session), 1, None, T)
    session.wake()
    assert session.receive(1, T) == []
    session.wake()
    assert session.receive(0, T) == []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(session.receive, 1, T)
        session.wake()
        assert waiting.result(T) == []
        waiting = pool.submit(session.receive, 1, 10 * T)
        session.abort()
        with pytest.raises(ConnectionLostError, match="aborted"):
            waiting.result(T)
    with pytest.raises(ConnectionLostError):
        session.stats("q", T)
    session.close(1.0)


# --- queues -------------------------------------------------------------------------------------------------------------


def test_declare_modes(rabbit: Rabbit) -> None:
    session = rabbit.session()
    name = f"new-{time.time_ns()}"
    with pytest.raises(QueueNotFoundError, match=name):
        session.declare(name, PLAIN, Declare.CHECK, T)
    assert session.declare(name, PLAIN, Declare.COMPARE, T) == PLAIN
    for mode in Declare:
        assert session.declare(name, PLAIN, mode, T) == PLAIN
    with pytest.raises(QueueMismatchError, match=name):
        session.declare(name, QueueOptions(ordered=True), Declare.COMPARE, T)
    session.declare(name, QueueOptions(ordered=True), Declare.ENSURE, T)


@pytest.mark.parametrize(
    ("queue", "dead_letter"),
    [("plain", "plain.gone"), ("it's", "but current is 'ü'"), ("long" * 40, "dead" * 20)],
)
def test_a_queues_dead_letter_queue_is_remembered_and_compared(rabbit: Rabbit, queue: str, dead_letter: str) -> None:
    session, other = rabbit.session(), rabbit.session()
    options = QueueOptions(dead_letter=dead_letter)
    session.declare(queue, options, Declare.COMPARE, T)
    for mode in (Declare.CHECK, Declare.ENSURE):
        assert other.declare(queue, PLAIN, mode, T).dead_letter == dead_letter
    assert other.declare(queue, options, Declare.COMPARE, T) == options
    assert other.stats(dead_letter, T).ready == 0
    for wrong in (PLAIN, QueueOptions(dead_letter="other")):
        with pytest.raises(QueueMismatchError, match="dead_letter"):
            other.declare(queue, wrong, Declare.COMPARE, T)
    session.delete(queue, T)
    assert other.declare(queue, PLAIN, Declare.COMPARE, T) == PLAIN, "it was forgotten with its queue"
    session.delete(queue, T)


def test_stats_and_purge_see_what_is_ready(rabbit: Rabbit) -> None:
    session = rabbit.session()
    queue = rabbit.queue(session)
    session.send(queue, messages("held", "x", "y"), T)
    session.subscribe(queue, 1, None, T)
    [held] = receive(session, 1)
    until(lambda: session.stats(queue, T).ready == 2)
    assert session.purge(queue, T) == 2
    assert session.settle([Ack(held)], T) == {}
    with pytest.raises(QueueNotFoundError):
        session.purge("missing", T)
