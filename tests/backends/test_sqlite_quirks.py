"""What SQLite itself does: plans, files it cannot use, locks, and processes that die."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_store import LIMIT, PLAIN, Client, Store, T, failed_with, nobody, open_session, python

import mqlayer
from mqlayer.backends import sqlite_schema as sql
from mqlayer.backends.sqlite import SQLiteFactory, SQLiteOptions
from mqlayer.clock import SystemClock
from mqlayer.driver import Ack, Backend, BackendFactory, Declare, Outgoing
from mqlayer.errors import (
    ConfigError,
    ForkedError,
    MQError,
    NotSentError,
    RequestTimeoutError,
    SendTimeoutError,
    StoreError,
)
from mqlayer.urls import parse_url


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


# --- URLs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("sqlite://", "needs a file"),
        ("sqlite:///", "needs a file"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite://jobs.db", "sqlite:///jobs.db"),
        ("sqlite://user:secret@host/jobs.db", "no host"),
        ("sqlite:///a%00b", "NUL"),
        ("sqlite:///jobs.db?lease=0", "'lease'"),
        ("sqlite:///jobs.db?lease=nan", "'lease'"),
        ("sqlite:///jobs.db?prefetch=3", "'prefetch'"),
    ],
)
def test_what_a_url_cannot_mean_is_refused(
    url: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mqlayer.registry import open_backend

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=wrong) as caught:
        open_backend(url, clock=SystemClock())
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_file_stays_the_same_one_wherever_the_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    factory: BackendFactory = SQLiteFactory
    backend: Backend = factory(parse_url("sqlite:///jobs%20%3F.db"), SQLiteOptions(), clock=SystemClock())
    monkeypatch.chdir("/")
    assert not backend.inline
    backend.session(T, nobody).close(T)
    backend.close()
    assert (tmp_path / "jobs ?.db").exists()


# --- plans --------------------------------------------------------------------------------------------------------------

STATEMENTS = {name: value for name, value in vars(sql).items() if name.isupper() and isinstance(value, str)}
STATEMENTS |= {f"PURGE{number}": text for number, text in enumerate(sql.PURGE)}
STATEMENTS |= {f"DROP_MESSAGES{number}": text for number, text in enumerate(sql.DROP_MESSAGES)}
STATEMENTS = {name: text for name, text in STATEMENTS.items() if not name.startswith("_")}
# Few rows, and not for each message: meta and clocks; queues; COUNTS groups two numbers, PEEK merges two sorted lists
MAY_WALK = {"READ_VERSION", "IDLE_QUEUES", "SHORTEN_ACTIVE", "SHORTEN_IDLE", "FORGET_CLOCKS", "WRITE_VERSION"}
MAY_SORT = {"COUNTS", "PEEK", "BOUND"}


def test_the_statements_of_every_delivery_are_among_them() -> None:
    assert {
        "NEXT",
        "HOLD",
        "PROMOTE",
        "EXPIRE",
        "LOOK",
        "INSERT",
        "DEDUP",
        "UNBLOCK",
        "DELETE",
        "NACK",
    } <= STATEMENTS.keys()


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_no_statement_walks_over_messages_or_sorts_them(store: Store, name: str) -> None:
    text = STATEMENTS[name]
    numbers = re.findall(r"\?(\d*)", text)
    values = [None] * (max(map(int, numbers)) if any(numbers) else len(numbers))
    plan = store.sender.session._file._connection.execute("EXPLAIN QUERY PLAN " + text, values).fetchall()
    steps = [step for *_, step in plan]
    assert steps or text.startswith("INSERT")
    walks = [
        step for step in steps if step.startswith("SCAN") and "CONSTANT ROW" not in step and "(subquery" not in step
    ]
    assert walks == [] or name in MAY_WALK, steps
    assert not [step for step in steps if "mqlayer_messages" in step and step.startswith("SCAN")], steps
    assert name in MAY_SORT or not [step for step in steps if "TEMP B-TREE" in step], steps


def test_a_claim_costs_the_same_in_a_large_store(store: Store) -> None:
    """Counted in SQLite's own steps, not in time."""

    def steps() -> int:
        reader, count = store.reader(window=1), 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        connection = reader.session._file._connection
        connection.set_progress_handler(step, 1)
        [held] = reader.receive()
        reader.settle(Ack(held))
        connection.set_progress_handler(None, 1)
        reader.session.close(T)
        return count

    store.send("0", "1", "2", "3", "4")
    steps()
    few = steps()
    store.send(*["x"] * 2000)
    store.send(*["later"] * 2000, delay=1000.0)
    store.send(*["blocked"] * 2000, group_id="g")
    store.sender.declare("other")
    store.send(*["x"] * 2000, queue="other", priority=9)
    assert steps() <= few * 1.2


def test_every_commit_reaches_the_disk(store: Store) -> None:
    read = store.sender.session._file.read
    assert read("PRAGMA journal_mode") == [("wal",)]
    assert read("PRAGMA synchronous") == [(2,)]
    assert read("PRAGMA foreign_key_list(mqlayer_messages)") == []


# --- files --------------------------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        open_session(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear reader, " * 100)
    assert "choose another file" in refused(tmp_path / "letter.txt")
    assert (tmp_path / "letter.txt").read_text() == "Dear reader, " * 100


def test_a_folder_and_a_missing_folder(tmp_path: Path) -> None:
    assert "is a folder; name a file in it" in refused(tmp_path)
    assert f"there is no folder {tmp_path / 'missing'}; create it" in refused(tmp_path / "missing" / "q.db")


def test_a_newer_schema_is_left_alone(store: Store) -> None:
    store.close()
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE mqlayer_meta SET value = 2 WHERE key = 'schema'")
    connection.close()
    assert "upgrade mqlayer" in refused(store.path)


def test_an_applications_own_database_keeps_what_it_has(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("CREATE TABLE orders (id)")
        connection.execute("INSERT INTO orders VALUES (42)")
    client = Client(open_session(tmp_path / "shop.db"))
    client.declare("q")
    client.send("a")
    client.session.close(T)
    assert connection.execute("SELECT * FROM orders").fetchall() == [(42,)]
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert all(name.startswith(("mqlayer_", "sqlite_")) for name in names - {"orders"})
    connection.close()


def test_a_damaged_file_says_so(store: Store) -> None:
    store.send(*["x"] * 500)
    store.close()
    pages = bytearray(store.path.read_bytes())
    pages[4096 * 2 :] = os.urandom(len(pages) - 4096 * 2)
    store.path.write_bytes(pages)
    with pytest.raises(StoreError, match=r"sqlite\.org/recovery"):
        Client(open_session(store.path)).subscribe().receive()


UNWRITABLE = """
import os, sys
from sqlite_store import *
path = Path(sys.argv[1])
Store(path / "warm")
if os.getuid() == 0:
    os.setuid(65534)
try:
    open_session(path / "q.db")
except Exception as exc:
    print(type(exc).__name__, exc)
"""


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_or_file_that_may_not_be_written(exists: bool) -> None:
    folder = Path(tempfile.mkdtemp())  # one that everybody may enter, as the process changes its user
    try:
        (folder / "warm").mkdir()
        if exists:
            (folder / "q.db").touch(mode=0o444)
        folder.chmod(0o555)
        with python(UNWRITABLE, folder) as process:
            text = process.communicate(timeout=LIMIT)[0]
        assert text.startswith("StoreError")
        assert str(folder / "q.db") in text
        assert "permissions" in text or "writable" in text
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["deleted", "moved", "replaced", "-wal", "-shm"])
def test_nothing_is_confirmed_that_goes_into_a_file_without_its_name(store: Store, tmp_path: Path, what: str) -> None:
    reader = store.reader()
    store.send("a")
    path = Path(store.path)
    if what == "deleted":
        path.unlink()
    elif what == "moved":
        path.rename(tmp_path / "elsewhere.db")
    elif what == "replaced":
        (tmp_path / "other.db").write_bytes(b"")
        (tmp_path / "other.db").replace(path)
    else:
        Path(f"{path}{what}").unlink()
    failures = store.sender.session.send("q", [Outgoing("b", b"")], T)
    assert failed_with(failures) == {0: NotSentError}
    assert "start them again" in str(failures[0])
    with pytest.raises(StoreError, match="while in use"):
        reader.session.receive(1, T)


def test_who_lost_the_logs_index_overwrites_nothing_at_its_end(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'q.db'}"
    send = f"import mqlayer, os; mq = mqlayer.connect({url!r}); mq.producer('q').send({{!r}}); "
    # One deletes the index, another makes a new one and is killed, and the first ends in order.
    other = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {send.format('b') + 'os._exit(0)'!r}], check=True)"
    first = send.format("a") + f"os.unlink({str(tmp_path / 'q.db-shm')!r}); {other}"
    subprocess.run([sys.executable, "-c", first], check=True, timeout=60)
    with mqlayer.connect(url) as mq:
        assert [message.payload for message in mq.peek("q")] == ["a", "b"]


# --- locks, processes and forks -----------------------------------------------------------------------------------------


def test_who_finds_the_file_locked_waits_no_longer_than_told_and_goes_on(store: Store) -> None:
    reader = store.reader()
    store.send("a")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    failures = store.sender.session.send("q", [Outgoing("b", b"")], 0.1)
    assert failed_with(failures) == {0: SendTimeoutError}
    assert reader.session.receive(1, 0.0) == []
    with pytest.raises(RequestTimeoutError):
        store.sender.session.declare("new", PLAIN, Declare.ENSURE, 0.1)
    assert store.sender.peek() == ["a"], "reading needs no lock"
    other.execute("ROLLBACK")
    other.close()
    store.send("b")
    assert reader.ids() == ["a", "b"]


def test_opening_waits_for_an_application_that_keeps_readers_out(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    application = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    application.execute("CREATE TABLE things (name)")
    application.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RequestTimeoutError):
        SQLiteFactory(parse_url(f"sqlite:///{path}"), SQLiteOptions(), clock=SystemClock()).session(0.0, nobody)
    let_go = threading.Timer(0.5, lambda: application.execute("COMMIT"))
    let_go.start()
    session = open_session(path)
    let_go.join(LIMIT)
    assert session.declare("q", PLAIN, Declare.ENSURE, T) == PLAIN
    session.close(T)
    application.close()


def test_abort_ends_a_wait_for_the_lock(store: Store) -> None:
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    client, failures = store.client(), list[dict[int, MQError]]()
    waiting = threading.Thread(
        target=lambda: failures.append(dict(client.session.send("q", [Outgoing("a", b"")], 600.0)))
    )
    waiting.start()
    client.session.abort()
    waiting.join(LIMIT)
    other.close()
    assert failed_with(failures[0]) == {0: NotSentError}
    assert store.sender.peek() == []


SENDER = """
import sys
from sqlite_store import *
client = Client(open_session(Path(sys.argv[1])))
client.declare("q")
for number in range(100):
    assert client.send(f"{sys.argv[2]}-{number}") == {}
client.session.close(T)
"""


def test_four_processes_open_and_send_at_the_same_time(tmp_path: Path) -> None:
    senders = [python(SENDER, tmp_path / "q.db", name) for name in "abcd"]
    assert [sender.wait(LIMIT) for sender in senders] == [0] * 4
    for sender in senders:
        sender.communicate()
    client = Client(open_session(tmp_path / "q.db")).subscribe(window=1000)
    found = client.ids(1000)
    assert len(found) == 400
    for name in "abcd":
        assert [one for one in found if str(one)[0] == name] == [f"{name}-{number}" for number in range(100)]
    client.session.close(T)


HOLDER = """
import sys
from sqlite_store import *
client = Client(open_session(Path(sys.argv[1]))).subscribe(lease=1.0)
print(client.ids(), flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_held_comes_back_after_its_lease_and_counted(tmp_path: Path) -> None:
    client = Client(open_session(tmp_path / "q.db"))
    client.declare("q")
    client.send("a", "b")
    holder = python(HOLDER, tmp_path / "q.db")
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "['a', 'b']\n"
        holder.kill()
    found = client.subscribe().session.receive(2, LIMIT)
    assert [(one.message.id, one.broker_count, one.redelivered) for one in found] == [("a", 2, True), ("b", 2, True)]
    client.session.close(T)


def test_a_forked_child_leaves_the_parents_session_alone(store: Store) -> None:
    child = os.fork()
    if child == 0:  # nothing of pytest's may run here
        try:
            store.sender.session.stats("q", T)
        except ForkedError:
            store.sender.session.close(T)
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    store.send("a")
    assert store.sender.peek() == ["a"]


def test_the_log_does_not_grow_for_ever(store: Store) -> None:
    reader = store.reader(window=10)
    for _ in range(60):
        store.send(*["x"] * 50)
        while held := reader.receive():
            reader.settle(*map(Ack, held))
    assert store.path.with_name("queues.db-wal").stat().st_size < 8_000_000
