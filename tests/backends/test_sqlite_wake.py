"""Who waits is told: at once by a poke, from other processes too; by its own looks where pokes cannot be had."""

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlite_store import LIMIT, PLAIN, Client, Store, T, ids, open_session, python

from mqlayer.backends import sqlite_session
from mqlayer.backends.sqlite_wake import Waker
from mqlayer.driver import Ack, Declare, Nack, Release
from mqlayer.errors import ConnectionLostError

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets: only looks wake anybody")


@pytest.fixture
def only_pokes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by himself, so that only a poke can end a wait in time."""
    monkeypatch.setattr(sqlite_session, "LOOK_EVERY", 1000.0)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


class Opener:
    """Sessions on files, by the real clock; closed at the end."""

    def __init__(self) -> None:
        self.clients: list[Client] = []

    def __call__(self, path: Path, *, consumes: bool = False) -> Client:
        client = Client(open_session(path))
        self.clients.append(client)
        client.declare("q")
        return client.subscribe() if consumes else client


@pytest.fixture
def opened() -> Iterator[Opener]:
    opener = Opener()
    yield opener
    for client in opener.clients:
        client.session.close(T)


def waiting(pool: ThreadPoolExecutor, client: Client, limit: int = 1) -> Future[list[str | None]]:
    """A receive that is in its wait."""
    asleep = threading.Event()
    wait = client.session._waker.wait

    def say_so(seconds: float) -> bool:
        asleep.set()
        return wait(seconds)

    client.session._waker.wait = say_so  # type: ignore[method-assign]
    future = pool.submit(lambda: ids(client.session.receive(limit, LIMIT)))
    assert asleep.wait(LIMIT)
    return future


SEND = """
import sys
from sqlite_store import *
client = Client(open_session(Path(sys.argv[1])))
assert client.send("a") == {}
client.session.close(T)
"""

RECEIVE = """
import sys
from sqlite_store import *
from mqlayer.backends import sqlite_session
sqlite_session.LOOK_EVERY = 1000.0
client = Client(open_session(Path(sys.argv[1]))).subscribe()
print("ready", flush=True)
print(ids(client.session.receive(1, LIMIT)), flush=True)
client.session.close(T)
"""


@pytest.mark.usefixtures("only_pokes")
class TestPokes:
    def test_a_sender_in_another_process_wakes_us(
        self, tmp_path: Path, pool: ThreadPoolExecutor, opened: Opener
    ) -> None:
        future = waiting(pool, opened(tmp_path / "q.db", consumes=True))
        with python(SEND, tmp_path / "q.db") as sender:
            assert future.result(LIMIT) == ["a"]
        assert sender.returncode == 0

    def test_we_wake_a_consumer_in_another_process(self, tmp_path: Path, opened: Opener) -> None:
        sender = opened(tmp_path / "q.db")
        with python(RECEIVE, tmp_path / "q.db") as consumer:
            assert consumer.stdout is not None
            assert consumer.stdout.readline() == "ready\n"
            assert sender.send("a") == {}
            assert consumer.stdout.readline() == "['a']\n"

    def test_in_a_folder_whose_name_is_too_long_for_a_socket(
        self, tmp_path: Path, pool: ThreadPoolExecutor, opened: Opener
    ) -> None:
        folder = tmp_path / ("long" * 30) / "ü" / ("long" * 30)
        folder.mkdir(parents=True)
        future = waiting(pool, opened(folder / "q.db", consumes=True))
        assert len(os.listdir(folder / "q.db-wake")) == 1
        assert opened(folder / "q.db").send("a") == {}
        assert future.result(LIMIT) == ["a"]

    @pytest.mark.parametrize("how", ["close", "nack", "release", "unsubscribe"])
    def test_what_somebody_gives_back(self, tmp_path: Path, pool: ThreadPoolExecutor, opened: Opener, how: str) -> None:
        sender, first, second = (opened(tmp_path / "q.db", consumes=consumes) for consumes in (False, True, True))
        sender.send("0", "a")
        zero, a = first.receive() if how != "unsubscribe" else (first.receive(1)[0], None)
        first.settle(Ack(zero))
        future = waiting(pool, second)
        if how == "close":
            first.session.close(T)
        elif how == "unsubscribe":
            first.session.unsubscribe("q", T)
        else:
            assert a is not None
            first.settle(Nack(a) if how == "nack" else Release(a))
        assert future.result(LIMIT) == ["a"]

    def test_a_delayed_message_wakes_when_it_is_due(
        self, tmp_path: Path, pool: ThreadPoolExecutor, opened: Opener
    ) -> None:
        future = waiting(pool, opened(tmp_path / "q.db", consumes=True))
        assert opened(tmp_path / "q.db").send("a", delay=0.3) == {}
        assert future.result(LIMIT) == ["a"]

    def test_a_lease_that_ends_wakes_who_waits(self, tmp_path: Path, pool: ThreadPoolExecutor, opened: Opener) -> None:
        first = opened(tmp_path / "q.db").subscribe(lease=0.4)
        first.send("a")
        assert first.ids() == ["a"]
        assert waiting(pool, opened(tmp_path / "q.db", consumes=True)).result(LIMIT) == ["a"]

    def test_only_who_waits_for_the_queue_is_poked(self, tmp_path: Path, opened: Opener) -> None:
        sender, reader = opened(tmp_path / "q.db"), opened(tmp_path / "q.db", consumes=True)
        sender.declare("other")
        sender.send("a", queue="other")
        assert not reader.session._waker.wait(0.0)
        sender.send("a")
        assert reader.session._waker.wait(0.0)

    def test_wake_ends_the_receive_in_progress_or_else_the_next(
        self, tmp_path: Path, pool: ThreadPoolExecutor, opened: Opener
    ) -> None:
        reader = opened(tmp_path / "q.db", consumes=True)
        for limit in (1, 0):
            future = waiting(pool, reader, limit)
            reader.session.wake()
            assert future.result(LIMIT) == []
        reader.session.wake()
        assert reader.session.receive(1, LIMIT) == []
        reader.send("a")
        assert reader.session.receive(1, LIMIT) != [], "one wake ends one receive"

    def test_abort_ends_the_receive_in_progress(self, tmp_path: Path, pool: ThreadPoolExecutor, opened: Opener) -> None:
        reader = opened(tmp_path / "q.db", consumes=True)
        future = waiting(pool, reader)
        reader.session.abort()
        with pytest.raises(ConnectionLostError, match="aborted"):
            future.result(LIMIT)

    def test_advancing_a_manual_clock_wakes_who_waits(self, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
        store = Store(tmp_path)
        store.send("a", delay=5.0)
        future = waiting(pool, store.reader())
        store.advance(5.0)
        assert future.result(LIMIT) == ["a"]
        store.close()


def test_without_a_folder_for_sockets_looks_wake_us(tmp_path: Path, pool: ThreadPoolExecutor, opened: Opener) -> None:
    (tmp_path / "q.db-wake").write_text("in the way")
    reader = opened(tmp_path / "q.db", consumes=True)
    future = waiting(pool, reader)
    opened(tmp_path / "q.db").send("a")
    assert future.result(LIMIT) == ["a"]


def test_a_look_at_a_file_that_did_not_change_is_not_a_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    reader = store.reader()
    reader.receive()
    looked: list[str] = []
    read = reader.session._file.read
    monkeypatch.setattr(reader.session._file, "read", lambda text, *rest: (looked.append(text), read(text, *rest))[1])
    assert reader.receive() == []
    assert looked == ["PRAGMA data_version"]
    store.send("a")
    assert reader.ids() == ["a"]
    store.close()


class TestTheFolder:
    def test_it_is_ours_alone_and_goes_with_the_last_consumer(self, tmp_path: Path, opened: Opener) -> None:
        folder = tmp_path / "q.db-wake"
        sender = opened(tmp_path / "q.db")
        assert not folder.exists()
        first, second = (opened(tmp_path / "q.db", consumes=True) for _ in range(2))
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(os.listdir(folder)) == 2
        first.session.close(T)
        assert len(os.listdir(folder)) == 1
        second.session.unsubscribe("q", T)
        assert not folder.exists()
        sender.send("a")

    def test_a_dead_processs_socket_is_removed_by_the_next_sender(
        self, tmp_path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sender, reader = opened(tmp_path / "q.db"), opened(tmp_path / "q.db", consumes=True)
        [name] = os.listdir(tmp_path / "q.db-wake")
        number = name.partition(".")[0]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
            monkeypatch.chdir(tmp_path)  # a short name, whatever the path is
            dead.bind(f"q.db-wake/{number}.dead")
        sender.send("a")
        assert os.listdir(tmp_path / "q.db-wake") == [name]
        assert reader.ids() == ["a"]

    def test_a_consumer_that_never_listens_holds_up_nobody(self, tmp_path: Path) -> None:
        silent, poker = Waker(str(tmp_path / "wake")), Waker(str(tmp_path / "wake"))
        silent.watch(1)
        for _ in range(5000):
            poker.poke([1])
            silent.nudge()
        assert silent.wait(0.0)
        assert not silent.wait(0.0), "all at once"
        silent.close()
        silent.close()
        silent.wake()
        poker.poke([1])
        poker.close()


def test_declaring_wakes_nobody(tmp_path: Path, opened: Opener) -> None:
    reader = opened(tmp_path / "q.db", consumes=True)
    opened(tmp_path / "q.db").session.declare("r", PLAIN, Declare.ENSURE, T)
    assert not reader.session._waker.wait(0.0)
