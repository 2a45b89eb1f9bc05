"""What a consumer's loop costs, and that it misses nothing for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_store import Store

from mqlayer.driver import Ack


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def test_a_loop_costs_one_commit_for_each_settlement(store: Store) -> None:
    store.send(*"abcdefgh")
    reader = store.reader(window=4)
    held = list(reader.receive())
    order = []
    while held:
        first = held.pop(0)
        order.append(first.message.id)
        assert reader.settle(Ack(first)) == {}
        before = store.sender.session._file.read("PRAGMA data_version")
        held += reader.receive()
        assert store.sender.session._file.read("PRAGMA data_version") == before, "receive had nothing left to claim"
    assert order == list("abcdefgh")


def test_who_asked_for_nothing_is_given_more_once_half_the_window_is_free(store: Store) -> None:
    store.send(*"abcdefgh")
    reader = store.reader(window=4)
    a, b, _, _ = reader.receive()
    assert list(reader.receive(0)) == []
    reader.settle(Ack(a))
    assert store.sender.stats() == (4, 3, 0)
    reader.settle(Ack(b))
    assert store.sender.stats() == (2, 4, 0)
    assert reader.ids() == ["e", "f"]


def test_a_busy_loop_sees_what_falls_due(store: Store) -> None:
    store.send("urgent", priority=9, delay=5.0)
    store.send(*"abcd")
    reader = store.reader(window=1)
    [a] = reader.receive()
    reader.settle(Ack(a))
    store.advance(5.0)
    [b] = reader.receive()
    reader.settle(Ack(b))
    assert reader.ids() == ["urgent"]
