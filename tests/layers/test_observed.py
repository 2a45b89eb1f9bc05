"""The layer that counts."""

import pytest
from fakes import FakeSession, failing, incoming, outgoing

from mqlayer.driver import Ack, Declare, QueueOptions
from mqlayer.errors import ConnectFailedError, ConnectionLostError, RefusedError
from mqlayer.layers.observed import Observations, Observed


@pytest.fixture
def inner() -> FakeSession:
    return FakeSession()


@pytest.fixture
def seen() -> Observations:
    return Observations()


@pytest.fixture
def session(inner: FakeSession, seen: Observations) -> Observed:
    return Observed(inner, seen)


def test_sends_are_counted_by_their_fate(session: Observed, inner: FakeSession, seen: Observations) -> None:
    error = RefusedError("full")
    inner.on("send", failing({1: error}))
    assert session.send("q", [outgoing("a"), outgoing("b"), outgoing("c")], 1.0) == {1: error}
    assert session.publish("t", [outgoing("d")], 1.0) == {}
    assert (seen.sent, seen.send_failures, seen.last_error) == (3, 1, "RefusedError: full")


def test_deliveries_and_settlements_are_counted(session: Observed, inner: FakeSession, seen: Observations) -> None:
    session.subscribe("q", 5, None, 1.0)
    inner.deliver(incoming("a"), incoming("b"))
    got = session.receive(5, 0.0)
    inner.on("settle", failing({0: RefusedError("no")}))
    session.settle([Ack(one) for one in got], 1.0)
    assert (seen.received, seen.settled, seen.settle_failures) == (2, 1, 1)


def test_connections_are_counted() -> None:
    seen = Observations()
    seen.connection_changed(ConnectFailedError("down"))
    assert (seen.connected, seen.connections_lost, seen.last_error) == (False, 0, "ConnectFailedError: down")
    seen.connection_changed(None)
    assert (seen.connected, seen.connections) == (True, 1)
    seen.connection_changed(ConnectionLostError("cut"))
    seen.connection_changed(ConnectFailedError("down"))
    assert (seen.connected, seen.connections_lost) == (False, 1)


def test_what_a_line_has_seen_is_added() -> None:
    total, one = Observations(sent=1, last_error="old"), Observations(sent=2, settled=3, settle_failures=4)
    total.add(one)
    assert (total.sent, total.settled, total.settle_failures, total.last_error) == (3, 3, 4, "old")


def test_everything_else_is_passed_on(session: Observed, inner: FakeSession) -> None:
    session.declare("q", QueueOptions(), Declare.CHECK, 1.0)
    session.bind("t", "g", 1.0)
    session.subscribe("q", 5, 2.0, 1.0)
    session.unsubscribe("q", 1.0)
    session.stats("q", 1.0)
    session.peek("q", 3, 1.0)
    session.purge("q", 1.0)
    session.delete("q", 1.0)
    session.wake()
    session.abort()
    session.close(1.0)
    assert [call[0] for call in inner.calls] == [
        *("declare", "bind", "subscribe", "unsubscribe", "stats", "peek", "purge", "delete", "close")
    ]
    assert inner.aborted
    assert session.capabilities is inner.capabilities
