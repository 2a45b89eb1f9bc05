"""The ledger: what each process of a test saw, written where its death cannot take it away.

Every actor appends to a file of its own, one line and one ``write`` an event, so what it wrote survives its SIGKILL.
It writes ``deliver`` before the handler runs and ``ack``/``invoke`` before the ack: a crash can hide that something
ended, never that it began. Times are the monotonic clock of one host, so the ledgers of one host can be merged.

A message is known by ``producer:counter`` in its *body* and by the body's SHA-256, since headers may get lost. This
module knows files and events; what the events prove is :mod:`mqlayer.testing.checker`'s.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

from mqlayer.clock import Clock, SystemClock

__all__ = [
    "Event",
    "EventType",
    "Fault",
    "Ledger",
    "LedgerError",
    "Phase",
    "Probe",
    "make_body",
    "read_body",
    "read_ledgers",
]

SUFFIX = ".jsonl"
_MARK = b"mqlayer-test "
_BODY = re.compile(rb"mqlayer-test ([^\s:]+:\d+)\n")


class LedgerError(ValueError):
    """A ledger cannot be written or read: the harness is broken, and nothing is known about the broker."""


class EventType(Enum):
    """What happened."""

    PUBLISH = "publish"
    DELIVER = "deliver"
    ACK = "ack"
    NACK = "nack"
    REJECT = "reject"
    FAULT = "fault"
    PROBE = "probe"


class Phase(Enum):
    """How far it had got. ``invoke`` ends in ``ok``, ``fail`` (certainly not done) or ``info`` (unknown), or in death."""

    INVOKE = "invoke"
    OK = "ok"
    FAIL = "fail"
    INFO = "info"
    BEGIN = "begin"
    END = "end"


class Fault(Enum):
    """What the harness did to the system. The actors it hits are ``detail["target"]``, or all of them."""

    SERVER_KILL = "server_kill"  #: SIGKILL of the server's whole process group, until it serves again
    SERVER_STOP = "server_stop"  #: SIGTERM, until it serves again
    SERVER_PAUSE = "server_pause"  #: SIGSTOP until SIGCONT
    ACTOR_KILL = "actor_kill"  #: SIGKILL of a producer or consumer; where those are threads, its connection abandoned
    ACTOR_PAUSE = "actor_pause"  #: SIGSTOP until SIGCONT
    CONNECTION = "connection"  #: the way between: reset, cut, silent
    LEASE = "lease"  #: a lease was let run out on purpose; with an id, of that message alone
    CLOSE = "close"  #: a consumer closes; what it still holds goes back
    BLOCK = "block"  #: the server makes senders wait; nothing goes back


class Probe(Enum):
    """What the harness looked at."""

    SETTLED = "settled"  #: consumers closed and the queue empty: nothing it held before can rightly come again
    DRAIN = "drain"  #: ``begin`` and ``end`` of receiving all that is left
    STATS = "stats"  #: what the broker said of a queue


NO_DETAIL: Mapping[str, Any] = MappingProxyType({})


class Event(NamedTuple):
    """One line of a ledger.

    Attributes:
        at: Seconds of the host's monotonic clock.
        actor: Who saw it: a producer, a consumer, the controller.
        id: ``producer:counter``; ``None`` in a delivery whose body is not ours.
        attempt: Which try of a publish under this id, from 1.
        count: The delivery count that the consumer was told.
        redelivered: The broker's own flag; no proof of anything.
        resent: The delivery's mark that it was sent again after a lost connection; the number of times, where known.
        detail: The rest, by :meth:`Ledger.fault` and :meth:`Ledger.probe`, or an error's name and text.
    """

    at: float
    actor: str
    type: EventType
    phase: Phase
    id: str | None = None
    sha256: str | None = None
    queue: str | None = None
    group: str | None = None
    attempt: int = 1
    count: int | None = None  # type: ignore[assignment]  # hides tuple.count, of no use here
    redelivered: bool | None = None
    resent: int = 0
    detail: Mapping[str, Any] = NO_DETAIL


_encode = json.JSONEncoder(separators=(",", ":")).encode
_TYPES = {each.value: each for each in EventType}
_PHASES = {each.value: each for each in Phase}
_TEXTS = ("id", "sha256", "queue", "group")
_NUMBERS = ("attempt", "count", "redelivered", "resent")


class Ledger:
    """One actor's file. Threads may share it. What was written stays, however the process ends.

    Raises:
        FileExistsError: the file is there already; each process begins its own.
    """

    def __init__(self, path: str | os.PathLike[str], actor: str, *, clock: Clock | None = None) -> None:
        self.actor = actor
        self._monotonic = (clock or SystemClock()).monotonic
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(
        self,
        type: EventType,
        phase: Phase,
        *,
        id: str | None = None,
        sha256: str | None = None,
        queue: str | None = None,
        group: str | None = None,
        attempt: int = 1,
        count: int | None = None,
        redelivered: bool | None = None,
        resent: int = 0,
        detail: Mapping[str, Any] = NO_DETAIL,
    ) -> Event:
        """Append an event, stamped now. It is in the file when this returns.

        Raises:
            LedgerError: the ledger is closed, or the line did not fit on the disk.
        """
        event = Event(
            self._monotonic(), self.actor, type, phase,
            id, sha256, queue, group, attempt, count, redelivered, resent, detail,
        )  # fmt: skip
        line = format_event(event)
        if self._file is None:
            raise LedgerError(f"the ledger of {self.actor} is closed")
        if os.write(self._file, line) != len(line):
            raise LedgerError(f"the ledger of {self.actor} was cut short: is the disk full?")
        return event

    def fault(
        self,
        kind: Fault,
        phase: Phase,
        *,
        target: str | None = None,
        id: str | None = None,
        pid: int | None = None,
        exit: int | None = None,
        refused: bool | None = None,
        abandoned: bool | None = None,
        during: str | None = None,
    ) -> Event:
        """Write that a fault begins (before it is done) or has ended: all serves again, and the clients have seen to it.

        The checker counts a kill only if its end shows it: *exit* (the status that the harness waited for, -9 for
        SIGKILL), *pid* (of the server: the old one at the begin, the new one at the end), *refused* (nobody listened in
        between); or *abandoned*, of an actor that is a thread. *during* names the load's phase for the report.
        """
        given: dict[str, Any] = {"target": target, "pid": pid, "exit": exit, "refused": refused, "abandoned": abandoned}
        given["during"] = during
        detail = {"fault": kind.value} | {name: value for name, value in given.items() if value is not None}
        return self.write(EventType.FAULT, phase, id=id, detail=detail)

    def probe(
        self,
        kind: Probe,
        phase: Phase = Phase.INFO,
        *,
        queue: str | None = None,
        ready: int | None = None,
        in_flight: int | None = None,
    ) -> Event:
        """Write what a look at the broker showed."""
        given = {"ready": ready, "in_flight": in_flight}
        detail = {"probe": kind.value} | {name: value for name, value in given.items() if value is not None}
        return self.write(EventType.PROBE, phase, queue=queue, detail=detail)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def format_event(event: Event) -> bytes:
    """The event as a line. What has its default is left out."""
    fields: dict[str, Any] = {
        "at": event.at,
        "actor": event.actor,
        "type": event.type.value,
        "phase": event.phase.value,
    }
    for name in ("id", "sha256", "queue", "group", "count", "redelivered"):
        value = getattr(event, name)
        if value is not None:
            fields[name] = value
    if event.attempt != 1:
        fields["attempt"] = event.attempt
    if event.resent:
        fields["resent"] = int(event.resent)
    if event.detail:
        fields["detail"] = dict(event.detail)
    return (_encode(fields) + "\n").encode()


def parse_event(line: bytes) -> Event:
    """The event of a line.

    Raises:
        ValueError: the line is not one that :func:`format_event` writes; the text names the field.
    """
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    if not isinstance(fields.get("at"), float | int):
        raise ValueError(f"at: {fields.get('at')!r} is no time")
    if not isinstance(fields.get("actor"), str):
        raise ValueError(f"actor: {fields.get('actor')!r} is no name")
    kind, phase = _TYPES.get(fields.get("type", "")), _PHASES.get(fields.get("phase", ""))
    if kind is None:
        raise ValueError(f"type: {fields.get('type')!r} is no event")
    if phase is None:
        raise ValueError(f"phase: {fields.get('phase')!r} is no phase")
    for name in _TEXTS:
        if not isinstance(fields.get(name), str | None):
            raise ValueError(f"{name}: {fields[name]!r} is no text")
    for name in _NUMBERS:
        if not isinstance(fields.get(name), int | None):
            raise ValueError(f"{name}: {fields[name]!r} is no whole number")
    if not isinstance(fields.get("detail", {}), dict):
        raise ValueError(f"detail: {fields['detail']!r} is no object")
    unknown = fields.keys() - set(Event._fields)
    if unknown:
        raise ValueError(f"{min(unknown)}: unknown field")
    return Event(**(fields | {"type": kind, "phase": phase}))


def read_ledgers(folder: str | os.PathLike[str]) -> list[Event]:
    """All events of the ledgers in *folder*, in the order of time.

    A last line without its end is what a killed process could not finish, and is left out.

    Raises:
        LedgerError: anything else that is no event, with file and line.
    """
    events: list[Event] = []
    for path in sorted(Path(folder).glob("*" + SUFFIX)):
        events.extend(_read_lines(path))
    events.sort(key=_at)
    return events


def _read_lines(path: Path) -> Iterable[Event]:
    lines = path.read_bytes().split(b"\n")
    lines.pop()  # nothing after the last line's end, or the torn line
    for number, line in enumerate(lines, 1):
        try:
            yield parse_event(line)
        except ValueError as exc:
            raise LedgerError(f"{path.name}:{number}: {exc}") from exc


def _at(event: Event) -> float:
    return event.at


def make_body(producer: str, counter: int, size: int, seed: int) -> bytes:
    """A body of *size* bytes that carries its id; the same arguments give the same bytes.

    Where *size* has no room for the id, the body is as long as the id needs.
    """
    if not producer or re.search(r"[\s:]", producer):
        raise ValueError(f"a producer's name has no blank and no colon: {producer!r}")
    head = _MARK + f"{producer}:{counter}\n".encode()
    return head + hashlib.shake_128(b"%d " % seed + head).digest(max(size - len(head), 0))


def read_body(body: bytes) -> tuple[str | None, str]:
    """The id in a body (``None``: not one of ours) and the SHA-256 of the whole."""
    found = _BODY.match(body)
    return (found[1].decode(errors="replace") if found else None), hashlib.sha256(body).hexdigest()
