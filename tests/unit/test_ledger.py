"""What a process wrote is there after its death, and what is no event is never taken for one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mqlayer.clock import ManualClock
from mqlayer.testing.ledger import (
    Event,
    EventType,
    Fault,
    Ledger,
    LedgerError,
    Phase,
    Probe,
    format_event,
    make_body,
    parse_event,
    read_body,
    read_ledgers,
)


def test_every_field_survives_the_way_through_the_file(tmp_path: Path) -> None:
    clock = ManualClock()
    clock.advance(12.5)
    with Ledger(tmp_path / "c1.jsonl", "c1", clock=clock) as ledger:
        written = ledger.write(
            EventType.DELIVER,
            Phase.INVOKE,
            id="p1:7",
            sha256="ab" * 32,
            queue="orders",
            group="g",
            attempt=2,
            count=3,
            redelivered=False,
            resent=1,
            detail={"error": "Ünknown"},
        )
    assert read_ledgers(tmp_path) == [written]
    assert written == Event(
        12.5,
        "c1",
        EventType.DELIVER,
        Phase.INVOKE,
        "p1:7",
        "ab" * 32,
        "orders",
        "g",
        2,
        3,
        False,
        1,
        {"error": "Ünknown"},
    )


def test_ledgers_are_merged_in_the_order_of_time(tmp_path: Path) -> None:
    clock = ManualClock()
    with Ledger(tmp_path / "b.jsonl", "b", clock=clock) as b, Ledger(tmp_path / "a.jsonl", "a", clock=clock) as a:
        for ledger in (b, a, b):
            clock.advance(1.0)
            ledger.probe(Probe.STATS, ready=1)
    assert [(event.at, event.actor) for event in read_ledgers(tmp_path)] == [(1.0, "b"), (2.0, "a"), (3.0, "b")]


def test_a_fault_says_what_the_checker_needs(tmp_path: Path) -> None:
    with Ledger(tmp_path / "control.jsonl", "control", clock=ManualClock()) as ledger:
        ledger.fault(Fault.SERVER_KILL, Phase.BEGIN, pid=10, during="ack")
        ledger.fault(Fault.SERVER_KILL, Phase.END, pid=11, exit=-9, refused=True)
    assert [dict(event.detail) for event in read_ledgers(tmp_path)] == [
        {"fault": "server_kill", "pid": 10, "during": "ack"},
        {"fault": "server_kill", "pid": 11, "exit": -9, "refused": True},
    ]


def test_a_line_of_an_event_has_no_defaults() -> None:
    assert format_event(Event(1.0, "p", EventType.PUBLISH, Phase.OK, "p:1")) == (
        b'{"at":1.0,"actor":"p","type":"publish","phase":"ok","id":"p:1"}\n'
    )


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    whole = Event(1.0, "p", EventType.PUBLISH, Phase.INVOKE, "p:1")
    (tmp_path / "p.jsonl").write_bytes(format_event(whole) + format_event(whole._replace(at=2.0))[:-9])
    assert read_ledgers(tmp_path) == [whole]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b'{"at":1.0,"actor":"p","type":"publ', "Unterminated"),
        (b"[]", "not an object"),
        (b'{"actor":"p","type":"ack","phase":"ok"}', "at: None"),
        (b'{"at":1.0,"type":"ack","phase":"ok"}', "actor: None"),
        (b'{"at":1.0,"actor":"p","type":"eat","phase":"ok"}', "type: 'eat'"),
        (b'{"at":1.0,"actor":"p","type":"ack","phase":"okay"}', "phase: 'okay'"),
        (b'{"at":1.0,"actor":"p","type":"ack","phase":"ok","id":7}', "id: 7"),
        (b'{"at":1.0,"actor":"p","type":"ack","phase":"ok","count":"2"}', "count: '2'"),
        (b'{"at":1.0,"actor":"p","type":"ack","phase":"ok","detail":"x"}', "detail: 'x'"),
        (b'{"at":1.0,"actor":"p","type":"ack","phase":"ok","colour":"red"}', "colour: unknown"),
    ],
)
def test_anything_else_that_is_no_event_is_an_error_with_its_place(tmp_path: Path, line: bytes, field: str) -> None:
    good = format_event(Event(1.0, "p", EventType.PUBLISH, Phase.INVOKE, "p:1"))
    (tmp_path / "p.jsonl").write_bytes(good + line + b"\n" + good)
    with pytest.raises(LedgerError, match=r"p\.jsonl:2: .*" + field):
        read_ledgers(tmp_path)


def test_an_empty_ledger_of_a_process_that_saw_nothing_is_fine(tmp_path: Path) -> None:
    Ledger(tmp_path / "p.jsonl", "p").close()
    assert read_ledgers(tmp_path) == []


def test_a_process_begins_its_own_file(tmp_path: Path) -> None:
    Ledger(tmp_path / "p.jsonl", "p").close()
    with pytest.raises(FileExistsError):
        Ledger(tmp_path / "p.jsonl", "p")


def test_a_closed_ledger_takes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "p.jsonl", "p")
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.probe(Probe.STATS)


def test_what_was_written_survives_sigkill(tmp_path: Path) -> None:
    program = """
import sys
from mqlayer.testing.ledger import EventType, Ledger, Phase
ledger = Ledger(sys.argv[1], "victim")
for counter in range(100):
    ledger.write(EventType.PUBLISH, Phase.INVOKE, id=f"p:{counter}")
print("written", flush=True)
sys.stdin.read()
"""
    path = tmp_path / "victim.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"written\n"
        os.kill(victim.pid, signal.SIGKILL)
    assert victim.returncode == -signal.SIGKILL
    assert [event.id for event in read_ledgers(tmp_path)] == [f"p:{counter}" for counter in range(100)]


@pytest.mark.parametrize("size", [0, 1, 64, 65_536])
def test_a_body_carries_its_id_and_can_be_made_again(size: int) -> None:
    body = make_body("p1", 42, size, seed=7)
    assert len(body) == max(size, len(b"mqlayer-test p1:42\n"))
    assert read_body(body)[0] == "p1:42"
    assert body == make_body("p1", 42, size, seed=7)
    if size > 32:
        assert body != make_body("p1", 42, size, seed=8)


def test_a_damaged_body_keeps_its_id_but_not_its_hash() -> None:
    body = make_body("p1", 42, 100, seed=7)
    id, sha256 = read_body(body)
    assert read_body(body[:-1])[0] == id
    assert read_body(body[:-1])[1] != sha256


@pytest.mark.parametrize("body", [b"", b"hello", b"mqlayer-test p1", b"mqlayer-test p1:x\n", b"mqlayer-test a b:1\n"])
def test_a_foreign_body_has_no_id(body: bytes) -> None:
    assert read_body(body)[0] is None


@pytest.mark.parametrize("producer", ["", "a b", "a:b", "a\n"])
def test_a_producer_that_an_id_cannot_hold_is_refused(producer: str) -> None:
    with pytest.raises(ValueError, match="no blank"):
        make_body(producer, 1, 10, seed=0)


def test_parse_is_the_inverse_of_format() -> None:
    event = Event(3.25, "c", EventType.ACK, Phase.INFO, "p:1", queue="q", detail={"error": "OutcomeUnknownError"})
    assert parse_event(format_event(event)) == event
