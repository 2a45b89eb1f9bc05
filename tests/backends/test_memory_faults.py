"""Faults that a test orders from ``memory://``."""

import pytest
from memory_sessions import PLAIN, T, holds, ids, messages, nobody, open_backend, open_session

from mqlayer.backends.memory import Faults
from mqlayer.clock import ManualClock
from mqlayer.driver import (
    Ack,
    Declare,
)
from mqlayer.errors import (
    ArgumentError,
    ConnectionLostError,
    Fate,
    NotSentError,
    OutcomeUnknownError,
    RefusedError,
    SendError,
)


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
