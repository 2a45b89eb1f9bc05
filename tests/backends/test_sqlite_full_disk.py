"""A disk without room, and commits that fail: what is confirmed is there, and what is refused is not."""

import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_store import LIMIT, Client, Store, T, failed_with, open_session, python

from mqlayer.driver import Ack
from mqlayer.errors import ConnectionLostError, NotSentError, OutcomeUnknownError, SendTimeoutError, StoreError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


FULL = """
import resource, sys
from sqlite_store import *
from mqlayer.driver import Ack
from mqlayer.errors import NotSentError, StoreError

path, size, ahead = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
client = Client(open_session(path)).subscribe()
assert client.send("0", "1") == {}
held = client.receive(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
confirmed, error = [], None
while error is None:
    name = str(len(confirmed) + 2)
    error = client.session.send("q", [Outgoing(name, bytes(size))], T).get(0)
    confirmed += [name] if error is None else []
assert type(error) is NotSentError, error
assert type(error.__cause__) is StoreError and "disk" in str(error), error
assert error.retryable and error.message_id == name
refused = [client.settle(Ack(held[0])).get(0) for _ in range(30)]
assert all(one is None or type(one) is StoreError for one in refused[:1]), refused
assert confirmed
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if ahead == "kill":
    print(*confirmed, flush=True)
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
assert client.send("after") == {}, "it goes on when there is room"
client.session.close(T)
print(*confirmed, "after", flush=True)
"""


@pytest.mark.parametrize("size", [100, 8000, 300_000])
@pytest.mark.parametrize("ending", ["goes on", "kill"])
def test_a_full_disk_loses_nothing_confirmed_and_takes_nothing_refused(tmp_path: Path, size: int, ending: str) -> None:
    client = Client(open_session(tmp_path / "q.db"))
    client.declare("q")
    client.session.close(T)
    with python(FULL, tmp_path / "q.db", size, ending) as process:
        text = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == (-signal.SIGKILL if ending == "kill" else 0)
    confirmed = text.split()
    assert confirmed
    client = Client(open_session(tmp_path / "q.db"))
    rows = client.session._file.read("SELECT message_id FROM mqlayer_messages")  # whoever holds them
    assert {name for (name,) in rows} - {"0", "1"} == set(confirmed)
    client.session.close(T)


class Failing:
    """A connection whose COMMIT fails, or succeeds and says that it failed."""

    def __init__(self, connection: sqlite3.Connection, code: int, *, commits: bool) -> None:
        self._connection = connection
        self._code = code
        self._commits = commits

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def execute(self, text: str, *rest: object) -> object:
        if text == "COMMIT":
            if self._commits:
                self._connection.execute(text)
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = self._code
            raise error
        return self._connection.execute(text, *rest)  # type: ignore[arg-type]


def fail_commits(client: Client, code: int, *, commits: bool = False) -> None:
    file = client.session._file
    file._connection = Failing(file._connection, code, commits=commits)  # type: ignore[assignment]


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_SHMMAP, sqlite3.SQLITE_INTERRUPT])
def test_a_commit_that_may_have_happened_is_an_unknown_outcome(store: Store, code: int, commits: bool) -> None:
    client = store.client()
    fail_commits(client, code, commits=commits)
    assert failed_with(client.send("a")) == {0: OutcomeUnknownError}
    assert failed_with(client.send("b")) == {0: NotSentError}, "the session is of no more use"
    with pytest.raises(ConnectionLostError, match="unknown"):
        client.receive()
    client.session.close(T)
    assert store.sender.peek() == (["a"] if commits else [])


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_BUSY])
def test_a_commit_that_did_not_happen_is_not_sent(store: Store, code: int) -> None:
    client = store.reader()
    connection = client.session._file._connection
    fail_commits(client, code)
    assert failed_with(client.send("a")) == {0: SendTimeoutError if code == sqlite3.SQLITE_BUSY else NotSentError}
    client.session._file._connection = connection
    assert client.send("b") == {}
    assert client.ids() == ["b"]


def test_a_settlement_that_failed_left_everything_as_it_was(store: Store) -> None:
    store.send("a", "b")
    client = store.reader(window=1)
    [held] = client.receive()
    connection = client.session._file._connection
    fail_commits(client, sqlite3.SQLITE_FULL)
    assert failed_with(client.settle(Ack(held))) == {0: StoreError}
    client.session._file._connection = connection
    assert store.sender.stats() == (1, 1, 0)
    assert client.settle(Ack(held)) == {}
    assert client.ids() == ["b"]
