"""``memory://?profile=…`` refuses what the real broker refuses."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from memory_sessions import PLAIN, T, ids, messages, nobody, open_backend, open_session

from mqlayer.backends.memory_profiles import ProfileName
from mqlayer.clock import ManualClock
from mqlayer.driver import (
    Ack,
    Capabilities,
    Declare,
    Extend,
    Forward,
    HeaderValue,
    Nack,
    Outgoing,
    QueueOptions,
    Release,
    Stats,
    Support,
)
from mqlayer.errors import (
    ArgumentError,
    HeaderError,
    MessageTooLargeError,
    MQError,
    QueueMismatchError,
    QueueNotFoundError,
    RefusedError,
    StaleDeliveryError,
    UnroutableError,
    UnsupportedError,
)

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
        ("rabbitmq", {"correlation_id": "é" * 127}, None),
        ("rabbitmq", {"correlation_id": "é" * 128}, RefusedError),
        ("rabbitmq", {"content_type": "c" * 256}, RefusedError),
        ("rabbitmq-classic", {"priority": 3}, None),
        ("rabbitmq-classic", {"group_id": "g"}, UnsupportedError),
        ("sqs", {"priority": 3}, UnsupportedError),
        ("sqs", {"group_id": "g"}, UnsupportedError),
        ("sqs", {"dedup_id": "d"}, UnsupportedError),
        ("sqs-fifo", {"group_id": "g", "dedup_id": "d"}, None),
        ("sqs-fifo", {"delay": 1.0}, UnsupportedError),
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
        ("rabbitmq", {"cc": "x"}, False),
        ("rabbitmq", {"x-amqp-1.0-properties": "x"}, True),
        ("rabbitmq", {"x-request-id": "x"}, False),
        ("rabbitmq", {"n" * 255: 1}, False),
        ("rabbitmq", {"é" * 128: 1}, True),
        ("rabbitmq", {"n": 2**63 - 1}, False),
        ("rabbitmq", {"n": 2**63}, True),
        ("rabbitmq", {"n": -(2**63) - 1}, True),
        ("sqs", {"n": 2**63}, False),
        ("sqs", {"AWS.trace": "x"}, False),
        ("sqs", {str(n): 1 for n in range(64)}, False),
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


@pytest.mark.parametrize(("profile", "longest"), [("rabbitmq", 255), ("rabbitmq-classic", 255), ("activemq", 1024)])
def test_a_profile_bounds_names_in_bytes(profile: str, longest: int) -> None:
    session = open_session(f"memory://?profile={profile}")
    session.declare("n" * longest, PLAIN, Declare.ENSURE, T)
    for name in ("n" * (longest + 1), "é" * (longest // 2 + 1)):
        with pytest.raises(ArgumentError, match="bytes"):
            session.declare(name, PLAIN, Declare.ENSURE, T)


@pytest.mark.parametrize("name", ["amq.orders", "a\nb", "a\rb"])
@pytest.mark.parametrize("profile", ["rabbitmq", "rabbitmq-classic"])
def test_rabbitmq_takes_no_name_of_its_own_and_none_of_two_lines(profile: str, name: str) -> None:
    with pytest.raises(ArgumentError):
        open_session(f"memory://?profile={profile}").declare(name, PLAIN, Declare.ENSURE, T)
    open_session("memory://").declare(name, PLAIN, Declare.ENSURE, T)


@pytest.mark.parametrize(
    ("profile", "taken", "refused"),
    [
        ("sqs", ["n" * 80, "a." * 20, "é" * 10], ["n" * 81, "a." * 21, "é" * 11, "_-" * 17, "orders.fifo"]),
        ("sqs-fifo", ["n" * 75], ["n" * 76, "orders.fifo"]),
    ],
)
def test_sqs_bounds_the_names_that_it_knows_queues_by(profile: str, taken: list[str], refused: list[str]) -> None:
    session = open_session(f"memory://?profile={profile}")
    for name in taken:
        session.declare(name, PLAIN, Declare.ENSURE, T)
    for name in refused:
        with pytest.raises(ArgumentError):
            session.declare(name, PLAIN, Declare.ENSURE, T)


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
    assert session.stats("q", T) == Stats(ready=0), "it does not tell what is held"
    clock.advance(1.0)
    assert isinstance(session.settle([Ack(held)], T)[0], StaleDeliveryError)


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ("rabbitmq", (2, True)),
        ("rabbitmq-classic", (None, True)),
        ("sqs", (2, True)),
        ("sqs-fifo", (2, True)),
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
    assert stored.dead_letter == ("dead" if profile.startswith("rabbitmq") else None)
    assert session.declare("r", asked, Declare.COMPARE, T) == stored
    if session.capabilities.compares_queues:
        with pytest.raises(QueueMismatchError):
            session.declare("r", PLAIN, Declare.COMPARE, T)
    else:
        assert session.declare("r", PLAIN, Declare.COMPARE, T) == stored


def test_no_profile_claims_what_memory_cannot_keep(profile: str) -> None:
    assert not open_session(f"memory://?profile={profile}").capabilities.durable


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_the_profile_of_rabbitmq_is_what_its_backend_says_but_for_durability(kind: str) -> None:
    rabbitmq = pytest.importorskip("mqlayer.backends.rabbitmq_session")
    name = "rabbitmq" if kind == "quorum" else "rabbitmq-classic"
    ours = open_session(f"memory://?profile={name}").capabilities
    assert ours == replace(rabbitmq.capabilities(kind, "3.10.8"), durable=False)


@pytest.mark.parametrize("kind", ["standard", "fifo"])
def test_the_profile_of_sqs_is_what_its_backend_says_but_for_durability(kind: str) -> None:
    sqs = pytest.importorskip("mqlayer.backends.sqs_session")
    ours = open_session("memory://?profile=sqs" if kind == "standard" else "memory://?profile=sqs-fifo").capabilities
    assert ours == replace(sqs.capabilities(fifo=kind == "fifo", size_max=MIB), durable=False)


@pytest.mark.parametrize("profile", ["rabbitmq", "rabbitmq-classic"])
def test_rabbitmq_delays_no_topic_and_counts_only_what_is_ready(profile: str) -> None:
    session = open_session(f"memory://?profile={profile}")
    session.bind("news", "readers", T)
    (failure,) = session.publish("news", [Outgoing("late", b"", delay=1.0)], T).values()
    assert isinstance(failure, UnsupportedError)
    session.declare("q", PLAIN, Declare.ENSURE, T)
    assert session.send("q", [Outgoing("late", b"", delay=1.0), Outgoing("now", b"")], T) == {}
    assert session.stats("q", T) == Stats(ready=1)
