"""Sessions of ``memory://``: URLs, sharing, threads, and how sessions end."""

import gc
import os
import threading
from collections.abc import Callable

import pytest
from memory_sessions import PLAIN, T, holds, ids, messages, nobody, open_backend, open_session

from mqlayer.backends.memory import MemoryBackend, MemoryFactory, MemoryOptions
from mqlayer.clock import Clock, ManualClock, SystemClock
from mqlayer.driver import (
    Ack,
    Backend,
    BackendFactory,
    Counts,
    Declare,
    Session,
    Stats,
    Support,
)
from mqlayer.errors import (
    ArgumentError,
    ClosedError,
    ConfigError,
    ConnectionLostError,
    ForkedError,
    MQError,
    NotSentError,
    QueueNotFoundError,
    StaleDeliveryError,
)
from mqlayer.urls import parse_url

# --- URLs and stores ----------------------------------------------------------------------------------------------------


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


def test_a_named_store_is_shared_and_outlives_its_backends() -> None:
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
    again = open_backend("memory://shop", clock=clock)
    assert again.session(T, nobody).stats("q", T) == holds(1, 0, 0)
    again.close()
    with pytest.raises(QueueNotFoundError):  # nobody had it open, and its times mean nothing by another clock
        open_backend("memory://shop", clock=ManualClock()).session(T, nobody).stats("q", T)


def test_a_named_store_can_be_forgotten() -> None:
    clock = ManualClock()
    open_session("memory://forgotten", clock=clock).send("q", messages("a"), T)
    MemoryFactory.forget("forgotten")
    MemoryFactory.forget("never there")
    with pytest.raises(QueueNotFoundError):
        open_backend("memory://forgotten", clock=clock).session(T, nobody).stats("q", T)


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


# --- ends of sessions ---------------------------------------------------------------------------------------------------


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
