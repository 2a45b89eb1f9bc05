"""Sessions of ``memory://``: URLs, sharing, ends of sessions, threads, faults and the limits of real brokers."""

import gc
import os
import threading
from collections.abc import Callable, Sequence

import pytest

from mqlayer.backends.memory import Faults, MemoryBackend, MemoryFactory, MemoryOptions
from mqlayer.backends.memory_profiles import ProfileName
from mqlayer.clock import Clock, ManualClock, SystemClock
from mqlayer.driver import (
    Ack,
    Backend,
    BackendFactory,
    Capabilities,
    Counts,
    Declare,
    Extend,
    Forward,
    HeaderValue,
    Incoming,
    Nack,
    Outgoing,
    QueueOptions,
    Release,
    Session,
    Stats,
    Support,
)
from mqlayer.errors import (
    ArgumentError,
    ClosedError,
    ConfigError,
    ConnectionLostError,
    Fate,
    ForkedError,
    HeaderError,
    MessageTooLargeError,
    MQError,
    NotSentError,
    OutcomeUnknownError,
    QueueMismatchError,
    QueueNotFoundError,
    RefusedError,
    SendError,
    StaleDeliveryError,
    UnroutableError,
    UnsupportedError,
)
from mqlayer.urls import parse_url, split_options

T = 1.0  # a timeout, of which these sessions never use any
PLAIN = QueueOptions()


def open_backend(text: str = "memory://", *, clock: Clock | None = None, faults: Faults | None = None) -> MemoryBackend:
    url = parse_url(text)
    [options] = split_options(url.query, MemoryFactory.options, scheme=url.scheme)
    return MemoryFactory(url, options, clock=clock or ManualClock(), faults=faults)


def nobody(when: float) -> None:
    """A look_again of which nothing is expected."""


def open_session(
    text: str = "memory://",
    *,
    clock: Clock | None = None,
    faults: Faults | None = None,
    look_again: Callable[[float], None] = nobody,
    queue: str = "q",
) -> Session:
    session = open_backend(text, clock=clock, faults=faults).session(T, look_again)
    session.declare(queue, PLAIN, Declare.ENSURE, T)
    session.subscribe(queue, 100, None, T)
    return session


def messages(*ids: str) -> list[Outgoing]:
    return [Outgoing(id, b"body") for id in ids]


def holds(ready: int, in_flight: int, delayed: int, approximate: bool = False) -> Stats:
    return Stats(ready=ready, in_flight=in_flight, delayed=delayed, approximate=approximate)


def ids(found: Sequence[Incoming]) -> list[str | None]:
    return [incoming.message.id for incoming in found]


# --- URLs and stores -------------------------------------------------------------------------------------------------


def test_the_factory_and_its_makes_are_what_the_driver_asks_for() -> None:
    factory: BackendFactory = MemoryFactory
    backend: Backend = factory(parse_url("memory://"), MemoryOptions(), clock=SystemClock())
    assert backend.inline
    session = backend.session(T, nobody)
    can = session.capabilities
    assert {getattr(can, name) for name in can.__slots__ if isinstance(getattr(can, name), Support)} == {Support.NATIVE}
    assert not can.durable
    assert not can.backpressure
    assert can.ordered
    assert can.confirms_acks
    assert can.timed_lease
    assert can.checks_queues
    assert can.compares_queues
    assert (can.counts, can.dedup_window) == (Counts.DELIVERIES, 300.0)


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("memory://user@name", "user"),
        ("memory://user:secret@name", "user"),
        ("memory://name:5672", "port 5672"),
        ("memory://name/path", "'/path'"),
        ("memory:///path", "'/path'"),
        ("memory://a,b", "several hosts"),
        ("memory://?lease=0", "'lease'"),
        ("memory://?lease=-1", "'lease'"),
        ("memory://?lease=soon", "'lease'"),
        ("memory://?profile=kafka", "'profile'"),
        ("memory://?profile=sqs&lease=43201", "'lease'"),
        ("memory://?prefetch=3", "'prefetch'"),
    ],
)
def test_what_a_url_cannot_mean_is_refused_by_name(url: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong) as caught:
        open_backend(url)
    assert "secret" not in str(caught.value)


def test_a_store_without_a_name_is_private_to_its_backend() -> None:
    backend = open_backend()
    backend.session(T, nobody).declare("q", PLAIN, Declare.ENSURE, T)
    assert backend.session(T, nobody).stats("q", T) == holds(0, 0, 0)
    with pytest.raises(QueueNotFoundError):
        open_backend().session(T, nobody).stats("q", T)


def test_a_named_store_is_shared_until_the_last_backend_closes() -> None:
    clock = ManualClock()
    first, second = open_backend("memory://shop", clock=clock), open_backend("memory://shop", clock=clock)
    other = open_backend("memory://other", clock=clock).session(T, nobody)
    session = first.session(T, nobody)
    session.declare("q", PLAIN, Declare.ENSURE, T)
    session.send("q", messages("a"), T)
    session.close(T)
    first.close()
    first.close()
    with pytest.raises(QueueNotFoundError):
        other.stats("q", T)
    assert second.session(T, nobody).stats("q", T) == holds(1, 0, 0)
    second.close()
    with pytest.raises(QueueNotFoundError):
        open_backend("memory://shop", clock=ManualClock()).session(T, nobody).stats("q", T)


def test_a_named_store_whose_backends_were_forgotten_is_gone() -> None:
    open_session("memory://forgotten").send("q", messages("a"), T)
    gc.collect()
    with pytest.raises(QueueNotFoundError):
        open_backend("memory://forgotten").session(T, nobody).stats("q", T)


def test_one_store_has_one_clock() -> None:
    system = open_backend("memory://clocks", clock=SystemClock())
    open_backend("memory://clocks", clock=SystemClock()).close()
    with pytest.raises(ConfigError, match="another clock"):
        open_backend("memory://clocks", clock=ManualClock())
    system.close()


def test_a_closed_backend_makes_no_sessions() -> None:
    backend = open_backend()
    backend.close()
    with pytest.raises(ClosedError):
        backend.session(T, nobody)


def test_a_store_does_not_follow_into_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_backend()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(ForkedError):
        backend.session(T, nobody)


@pytest.mark.parametrize("name", ["", "\ud800", 3, None])
def test_a_name_that_is_none_is_refused(name: object) -> None:
    session = open_session()
    with pytest.raises(ArgumentError):
        session.declare(name, PLAIN, Declare.ENSURE, T)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError):
        session.bind(name, "group", T)  # type: ignore[arg-type]


@pytest.mark.parametrize(("window", "lease"), [(-1, None), (1, 0.0), (1, -3.0), (1, float("nan"))])
def test_a_subscription_without_sense_is_refused(window: int, lease: float | None) -> None:
    with pytest.raises(ArgumentError):
        open_session().subscribe("q", window, lease, T)


def test_the_option_lease_is_the_default() -> None:
    session = open_session("memory://?lease=7.5")
    session.send("q", messages("a", "b"), T)
    assert [incoming.lease_until for incoming in session.receive(1, 0.0)] == [7.5]
    session.subscribe("q", 100, 3.0, T)
    assert [incoming.lease_until for incoming in session.receive(1, 0.0)] == [3.0]


# --- ends of sessions ------------------------------------------------------------------------------------------------


def two_sessions(clock: Clock | None = None, told: list[float] | None = None) -> tuple[Session, Session]:
    """Two sessions of one private store, subscribed to ``q``; the second notes what it is told."""
    backend = open_backend(clock=clock)
    first = backend.session(T, nobody)
    first.declare("q", PLAIN, Declare.ENSURE, T)
    second = backend.session(T, told.append if told is not None else nobody)
    for session in (first, second):
        session.subscribe("q", 100, None, T)
    return first, second


def test_close_gives_back_as_if_never_delivered_and_abort_does_not() -> None:
    for end, count in ((lambda session: session.close(T), 1), (lambda session: session.abort(), 2)):
        first, second = two_sessions()
        first.send("q", messages("a"), T)
        [held] = first.receive(1, 0.0)
        end(first)
        end(first)
        [again] = second.receive(1, 0.0)
        assert again.broker_count == count
        assert isinstance(first.settle([Ack(held)], T)[0], StaleDeliveryError)
        assert second.settle([Ack(again)], T) == {}


@pytest.mark.parametrize(("end", "error"), [("close", ClosedError), ("abort", ConnectionLostError)])
def test_every_call_on_an_ended_session_says_so(end: str, error: type[MQError]) -> None:
    session = open_session()
    if end == "close":
        session.close(T)
    else:
        session.abort()
    calls: list[Callable[[], object]] = [
        lambda: session.declare("q", PLAIN, Declare.CHECK, T),
        lambda: session.bind("t", "g", T),
        lambda: session.subscribe("q", 1, None, T),
        lambda: session.unsubscribe("q", T),
        lambda: session.receive(1, 0.0),
        lambda: session.stats("q", T),
        lambda: session.peek("q", 1, T),
        lambda: session.purge("q", T),
        lambda: session.delete("q", T),
    ]
    for call in calls:
        with pytest.raises(error):
            call()
    for failures in (session.send("q", messages("a", "b"), T), session.publish("t", messages("a", "b"), T)):
        assert [type(failures[index]) for index in (0, 1)] == [NotSentError, NotSentError]
    session.wake()


def test_a_forgotten_session_gives_back_with_its_count_kept() -> None:
    told: list[float] = []
    first, second = two_sessions(told=told)
    first.send("q", messages("a"), T)
    first.receive(1, 0.0)
    assert second.receive(1, 0.0) == []
    del first
    [again] = second.receive(1, 0.0)
    assert again.broker_count == 2


def test_a_forgotten_session_wakes_who_waits() -> None:
    woken = threading.Event()
    backend = open_backend()
    first = backend.session(T, nobody)
    first.declare("q", PLAIN, Declare.ENSURE, T)
    first.subscribe("q", 100, None, T)
    first.send("q", messages("a"), T)
    first.receive(1, 0.0)
    second = backend.session(T, lambda when: woken.set() if when == 0.0 else None)
    second.subscribe("q", 100, None, T)
    assert second.receive(1, 0.0) == []
    woken.clear()
    del first
    assert woken.wait(10.0)
    assert ids(second.receive(1, 0.0)) == ["a"]


def test_a_session_that_is_only_part_of_a_cycle_is_forgotten_too() -> None:
    class Engine:
        def __init__(self, backend: MemoryBackend) -> None:
            self.session = backend.session(T, self.look_again)

        def look_again(self, when: float) -> None:
            """The engine keeps its session, and the session its engine's method."""

    backend = open_backend()
    engine = Engine(backend)
    engine.session.declare("q", PLAIN, Declare.ENSURE, T)
    engine.session.subscribe("q", 1, None, T)
    engine.session.send("q", messages("a"), T)
    engine.session.receive(1, 0.0)
    other = backend.session(T, nobody)
    assert other.stats("q", T) == holds(0, 1, 0)
    del engine
    gc.collect()
    assert other.stats("q", T) == holds(1, 0, 0)


def test_look_again_may_use_the_store() -> None:
    seen: list[Stats] = []
    sessions: list[Session] = []
    session = open_session(look_again=lambda when: seen.extend(each.stats("q", T) for each in sessions))
    session.receive(1, 0.0)
    sessions.append(session)
    session.send("q", messages("a"), T)
    assert seen[-1] == holds(1, 0, 0), "it is called after the store's lock was let go"


def test_threads_share_a_named_store() -> None:
    count, name = 400, "memory://threads"
    keep = open_backend(name, clock=SystemClock())
    keep.session(T, nobody).declare("q", PLAIN, Declare.ENSURE, T)
    taken: list[list[str | None]] = [[] for _ in range(3)]
    failed: list[object] = []
    all_sent = threading.Event()

    def produce(number: int) -> None:
        session = open_backend(name, clock=SystemClock()).session(T, nobody)
        for index in range(count):
            failed.extend(session.send("q", messages(f"{number}.{index}"), T).values())

    def consume(mine: list[str | None]) -> None:
        session = open_backend(name, clock=SystemClock()).session(T, nobody)
        session.subscribe("q", 50, None, T)
        while True:
            last = all_sent.is_set()
            found = session.receive(7, 0.0)
            failed.extend(session.settle([Ack(incoming) for incoming in found], T).values())
            mine.extend(ids(found))
            if last and not found:
                return

    producers = [threading.Thread(target=produce, args=(number,)) for number in range(2)]
    consumers = [threading.Thread(target=consume, args=(mine,)) for mine in taken]
    for thread in (*producers, *consumers):
        thread.start()
    for thread in producers:
        thread.join(60.0)
    all_sent.set()
    for thread in consumers:
        thread.join(60.0)
    assert failed == []
    everything = [id for mine in taken for id in mine]
    assert sorted(map(str, everything)) == sorted(f"{n}.{index}" for n in range(2) for index in range(count))
    keep.close()


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def faults() -> Faults:
    return Faults()


def test_refuse_refuses_so_many_messages_each_by_itself(faults: Faults) -> None:
    session = open_session(faults=faults)
    session.declare("r", PLAIN, Declare.ENSURE, T)
    faults.refuse(times=2, queue="q")
    assert session.send("r", messages("other"), T) == {}
    failures = session.send("q", messages("a", "b", "c"), T)
    assert [(index, type(error)) for index, error in failures.items()] == [(0, RefusedError), (1, RefusedError)]
    assert [error.message_id for error in failures.values() if isinstance(error, SendError)] == ["a", "b"]
    assert ids(session.receive(9, 0.0)) == ["c"]
    assert not faults.armed


@pytest.mark.parametrize("stored", [False, True])
def test_a_connection_lost_in_a_send_leaves_each_fate_unknown(faults: Faults, stored: bool) -> None:
    backend = open_backend(faults=faults)
    session, other = backend.session(T, nobody), backend.session(T, nobody)
    session.declare("q", PLAIN, Declare.ENSURE, T)
    session.subscribe("q", 100, None, T)
    session.send("q", messages("held"), T)
    session.receive(1, 0.0)
    faults.lose_connection(stored=stored)
    failures = session.send("q", messages("a", "b"), T)
    assert {type(error) for error in failures.values()} == {OutcomeUnknownError}
    assert [error.fate for error in failures.values() if isinstance(error, SendError)] == [Fate.UNKNOWN] * 2
    assert ids(other.peek("q", 9, T)) == (["held", "a", "b"] if stored else ["held"])
    with pytest.raises(ConnectionLostError):
        session.receive(1, 0.0)
    assert isinstance(session.send("q", messages("c"), T)[0], NotSentError)
    assert other.send("q", messages("d"), T) == {}


@pytest.mark.parametrize("stored", [False, True])
def test_a_connection_lost_in_a_receive_counts_what_was_handed_over(faults: Faults, stored: bool) -> None:
    backend = open_backend(faults=faults)
    session = backend.session(T, nobody)
    session.declare("q", PLAIN, Declare.ENSURE, T)
    session.subscribe("q", 100, None, T)
    session.send("q", messages("a"), T)
    faults.lose_connection(on="receive", stored=stored)
    assert session.send("q", messages("b"), T) == {}
    with pytest.raises(ConnectionLostError):
        session.receive(1, 0.0)
    other = backend.session(T, nobody)
    other.subscribe("q", 100, None, T)
    assert [(m.message.id, m.broker_count) for m in other.receive(9, 0.0)] == [("a", 1 + stored), ("b", 1)]


@pytest.mark.parametrize("stored", [False, True])
def test_a_connection_lost_in_a_settle_may_have_settled(faults: Faults, stored: bool) -> None:
    backend = open_backend(faults=faults)
    session = backend.session(T, nobody)
    session.declare("q", PLAIN, Declare.ENSURE, T)
    session.subscribe("q", 100, None, T)
    session.send("q", messages("a"), T)
    [held] = session.receive(1, 0.0)
    faults.lose_connection(on="settle", stored=stored)
    assert isinstance(session.settle([Ack(held)], T)[0], ConnectionLostError)
    assert backend.session(T, nobody).stats("q", T) == holds(0 if stored else 1, 0, 0)


def test_delay_makes_a_message_visible_late(faults: Faults) -> None:
    clock = ManualClock()
    session = open_session(clock=clock, faults=faults)
    faults.delay(5.0)
    session.send("q", messages("late", "now"), T)
    assert ids(session.receive(9, 0.0)) == ["now"]
    clock.advance(5.0)
    assert ids(session.receive(9, 0.0)) == ["late"]


def test_duplicate_delivers_twice(faults: Faults) -> None:
    session = open_session(faults=faults)
    session.send("q", messages("a", "b"), T)
    faults.duplicate()
    first = session.receive(1, 0.0)
    assert session.settle([Ack(first[0])], T) == {}
    rest = session.receive(9, 0.0)
    assert (ids(first), ids(rest)) == (["a"], ["a", "b"])
    assert [incoming.broker_count for incoming in rest] == [1, 1]


def test_orders_without_sense_are_refused_and_clear_forgets(faults: Faults) -> None:
    for wrong in (
        lambda: faults.refuse(0),
        lambda: faults.duplicate(-1),
        lambda: faults.delay(-1.0),
        lambda: faults.lose_connection(on="close"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ArgumentError):
            wrong()
    assert not faults.armed
    faults.refuse()
    faults.lose_connection()
    faults.clear()
    assert open_session(faults=faults).send("q", messages("a"), T) == {}


# --- profiles --------------------------------------------------------------------------------------------------------

MIB = 1024 * 1024


@pytest.fixture(params=[name.value for name in ProfileName])
def profile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("profile", "fields", "error"),
    [
        ("rabbitmq", {"priority": 3}, UnsupportedError),
        ("rabbitmq", {"group_id": "g"}, UnsupportedError),
        ("rabbitmq", {"dedup_id": "d"}, UnsupportedError),
        ("rabbitmq", {"body": bytes(128 * MIB + 1)}, MessageTooLargeError),
        ("rabbitmq-classic", {"priority": 3}, None),
        ("rabbitmq-classic", {"group_id": "g"}, UnsupportedError),
        ("sqs", {"priority": 3}, UnsupportedError),
        ("sqs", {"group_id": "g"}, UnsupportedError),
        ("sqs", {"dedup_id": "d"}, UnsupportedError),
        ("sqs", {"body": bytes(MIB)}, None),
        ("sqs", {"body": bytes(MIB + 1)}, MessageTooLargeError),
        ("sqs", {"body": bytes(MIB - 1), "headers": {"a": ""}}, None),
        ("sqs", {"body": bytes(MIB - 1), "headers": {"a": "é"}}, MessageTooLargeError),
        ("sqs", {"delay": 900.0}, None),
        ("sqs", {"delay": 900.1}, RefusedError),
        ("sqs", {"body": b""}, None),
        ("activemq", {"dedup_id": "d"}, UnsupportedError),
        ("activemq", {"priority": 3, "group_id": "g"}, None),
    ],
)
def test_a_profile_refuses_what_the_broker_refuses(
    profile: str, fields: dict[str, object], error: type[MQError] | None
) -> None:
    session = open_session(f"memory://?profile={profile}")
    message = Outgoing("a", b"")._replace(**fields)
    failures = session.send("q", [*messages("before"), message, *messages("after")], T)
    assert {index: type(failure) for index, failure in failures.items()} == ({} if error is None else {1: error})
    stored = 2 if error else 3
    assert len(session.receive(9, 0.0)) == stored - (fields.get("delay") == 900.0)


@pytest.mark.parametrize(
    ("profile", "headers", "refused"),
    [
        ("rabbitmq", {"x-death": "x"}, True),
        ("rabbitmq", {"x-first-death-queue": "x"}, True),
        ("rabbitmq", {"x-last-death-reason": "x"}, True),
        ("rabbitmq-classic", {"x-delivery-count": 1}, True),
        ("rabbitmq", {"CC": "x"}, True),
        ("rabbitmq", {"BCC": "x"}, True),
        ("rabbitmq", {"x-request-id": "x"}, False),
        ("rabbitmq", {"n" * 255: 1}, False),
        ("rabbitmq", {"é" * 128: 1}, True),
        ("rabbitmq", {"n": 2**63 - 1}, False),
        ("rabbitmq", {"n": 2**63}, True),
        ("rabbitmq", {"n": -(2**63) - 1}, True),
        ("sqs", {"n": 2**63}, False),
        ("sqs", {"AWS.trace": "x"}, True),
        ("sqs", {str(n): 1 for n in range(10)}, False),
        ("sqs", {str(n): 1 for n in range(11)}, True),
        ("activemq", {"destination": "x"}, True),
        ("activemq", {"AMQ_SCHEDULED_CRON": "x"}, True),
        ("activemq", {"JMSXGroupID": "x"}, True),
        ("activemq", {"ack-by": "x"}, False),
    ],
)
def test_a_profile_refuses_headers_that_are_the_brokers(
    profile: str, headers: dict[str, HeaderValue], refused: bool
) -> None:
    failures = open_session(f"memory://?profile={profile}").send("q", [Outgoing("a", b"", headers)], T)
    assert isinstance(failures.get(0), HeaderError) is refused


@pytest.mark.parametrize(("queue", "knows_groups"), [("orders.fifo", True), ("orders", False)])
def test_sqs_knows_groups_only_in_fifo_queues_and_no_delay_there(queue: str, knows_groups: bool) -> None:
    session = open_session("memory://?profile=sqs", queue=queue)
    outcomes = [
        session.send(queue, [message], T).get(0)
        for message in (
            Outgoing("a", b"", group_id="g", dedup_id="d"),
            Outgoing("b", b"", group_id="g", dedup_id="d"),
            Outgoing("c", b"", delay=1.0),
        )
    ]
    assert [isinstance(outcome, UnsupportedError) for outcome in outcomes] == [not knows_groups] * 2 + [knows_groups]
    assert session.stats(queue, T) == holds(*((1, 0, 0) if knows_groups else (0, 0, 1)), approximate=True)


@pytest.mark.parametrize(
    ("profile", "longest"), [("rabbitmq", 255), ("rabbitmq-classic", 255), ("sqs", 80), ("activemq", 100_000)]
)
def test_a_profile_bounds_names_in_bytes(profile: str, longest: int) -> None:
    session = open_session(f"memory://?profile={profile}")
    session.declare("n" * longest, PLAIN, Declare.ENSURE, T)
    if longest < 100_000:
        for name in ("n" * (longest + 1), "é" * (longest // 2 + 1)):
            with pytest.raises(ArgumentError, match="bytes"):
                session.declare(name, PLAIN, Declare.ENSURE, T)


def test_sqs_takes_and_gives_ten_at_once() -> None:
    session = open_session("memory://?profile=sqs")
    assert set(session.send("q", messages(*map(str, range(11))), T)) == set(range(11))
    for _ in range(2):
        assert session.send("q", messages(*map(str, range(10))), T) == {}
    assert len(session.receive(100, 0.0)) == 10


@pytest.mark.parametrize(
    ("lease", "extend", "fails"), [(43_200.0, 43_200.0, False), (43_200.1, None, True), (30.0, 43_200.1, True)]
)
def test_sqs_bounds_leases(lease: float, extend: float | None, fails: bool) -> None:
    session = open_session("memory://?profile=sqs")
    session.send("q", messages("a"), T)
    if extend is None:
        with pytest.raises(ArgumentError):
            session.subscribe("q", 1, lease, T)
        return
    session.subscribe("q", 1, lease, T)
    failures = session.settle([Extend(session.receive(1, 0.0)[0], extend)], T)
    assert isinstance(failures.get(0), ArgumentError) is fails


def test_rabbitmq_has_no_leases_but_a_consumer_timeout() -> None:
    clock = ManualClock()
    session = open_session("memory://?profile=rabbitmq", clock=clock)
    session.send("q", messages("a"), T)
    [held] = session.receive(1, 0.0)
    assert held.lease_until is None
    clock.advance(1799.0)
    assert session.settle([Extend(held, 30.0)], T) == {}
    assert session.stats("q", T) == holds(0, 1, 0)
    clock.advance(1.0)
    assert isinstance(session.settle([Ack(held)], T)[0], StaleDeliveryError)


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ("rabbitmq", (2, True)),
        ("rabbitmq-classic", (None, True)),
        ("sqs", (2, True)),
        ("activemq", (None, True)),
    ],
)
def test_a_profile_tells_what_the_broker_tells_of_earlier_deliveries(
    profile: str, told: tuple[int | None, bool]
) -> None:
    backend = open_backend(f"memory://?profile={profile}")
    first, second = backend.session(T, nobody), backend.session(T, nobody)
    for session in (first, second):
        session.declare("q", PLAIN, Declare.ENSURE, T)
        session.subscribe("q", 100, None, T)
    first.send("q", messages("a"), T)
    [held] = first.receive(1, 0.0)
    assert not held.redelivered
    first.abort()
    [again] = second.receive(1, 0.0)
    assert (again.broker_count, again.redelivered) == told


def test_a_profile_carries_out_only_the_verdicts_it_has(profile: str) -> None:
    session = open_session(f"memory://?profile={profile}")
    session.declare("dead", PLAIN, Declare.ENSURE, T)
    can: Capabilities = session.capabilities
    session.send("q", messages("nack", "release", "forward", "ack"), T)
    nack, release, forward, ack = session.receive(9, 0.0)
    failures = session.settle([Nack(nack), Release(release), Forward(forward, "dead", forward.message), Ack(ack)], T)
    expected = [can.nack, can.release, can.forward]
    assert [isinstance(failures.get(index), UnsupportedError) for index in range(4)] == [
        *(support is Support.UNSUPPORTED for support in expected),
        False,
    ]


def test_a_profile_refuses_the_calls_that_the_broker_lacks(profile: str) -> None:
    session = open_session(f"memory://?profile={profile}")
    can = session.capabilities
    calls: dict[str, Callable[[], object]] = {
        "topics": lambda: session.bind("t", "g", T),
        "peek": lambda: session.peek("q", 1, T),
        "purge": lambda: session.purge("q", T),
        "stats": lambda: session.stats("q", T),
    }
    for name, call in calls.items():
        if getattr(can, name) is Support.UNSUPPORTED:
            with pytest.raises(UnsupportedError, match=name):
                call()
        else:
            call()
    if can.topics is Support.UNSUPPORTED:
        with pytest.raises(UnsupportedError):
            session.publish("t", messages("a"), T)


def test_what_a_broker_does_not_expire_travels_on() -> None:
    clock = ManualClock()
    for profile, seen in (("sqs", ["a"]), ("rabbitmq", [])):
        session = open_session(f"memory://?profile={profile}", clock=clock)
        session.send("q", [Outgoing("a", b"", expires_at=clock.time() + 1.0)], T)
        clock.advance(2.0)
        found = session.receive(9, 0.0)
        assert ids(found) == seen
        assert all(incoming.message.expires_at is not None for incoming in found)


def test_a_profile_notices_a_missing_queue_where_the_broker_does(profile: str) -> None:
    session = open_session(f"memory://?profile={profile}")
    failures = session.send("new", messages("a"), T)
    if session.capabilities.checks_queues:
        assert isinstance(failures[0], UnroutableError)
        with pytest.raises(QueueNotFoundError):
            session.declare("new", PLAIN, Declare.CHECK, T)
        with pytest.raises(QueueNotFoundError):
            session.subscribe("newer", 1, None, T)
    else:
        assert failures == {}
        session.subscribe("newer", 1, None, T)
        session.declare("newest", PLAIN, Declare.CHECK, T)


def test_a_profile_stores_and_compares_the_options_that_the_broker_does(profile: str) -> None:
    session = open_session(f"memory://?profile={profile}")
    asked = QueueOptions(dead_letter="dead", temporary=True, ordered=True)
    stored = session.declare("r", asked, Declare.COMPARE, T)
    assert stored.dead_letter is None
    assert session.declare("r", asked, Declare.COMPARE, T) == stored
    if session.capabilities.compares_queues:
        with pytest.raises(QueueMismatchError):
            session.declare("r", PLAIN, Declare.COMPARE, T)
    else:
        assert session.declare("r", PLAIN, Declare.COMPARE, T) == stored


def test_no_profile_claims_what_memory_cannot_keep(profile: str) -> None:
    assert not open_session(f"memory://?profile={profile}").capabilities.durable
