"""What a queue store does, each verb inside a transaction of its caller's. No locks, no clock, no connection of its own.

``now`` is the store's clock. A *token* is ``(queue's number, message's row, claim)``; each claim is a number used once, so
a statement that names both row and claim never touches a copy that somebody else got later.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mqlayer.backends import sqlite_schema as sql
from mqlayer.backends.sqlite_schema import outgoing_of, row_of
from mqlayer.driver import Capabilities, Counts, Declare, Incoming, Outgoing, QueueOptions, Stats, Support
from mqlayer.errors import QueueMismatchError, QueueNotFoundError

__all__ = ["Queue", "Read", "Token"]

BODY_MAX_BYTES = 64 * 1024 * 1024  #: SQLite takes 1 GB; but while a body is written, nobody else can write
DEDUP_WINDOW = 300.0  #: seconds in which a second message of one dedup_id is dropped
TEMPORARY_IDLE = 60.0  #: seconds after which an unused temporary queue is gone
SWEEP_MAX = 1000  #: messages that fall due, or expire, in one transaction
CLAIM_ROUNDS = 10  #: attempts of one claim to find messages that have not expired

Read = Callable[[str, Sequence[Any]], list[Any]]
"""Runs one SELECT."""
CAPABILITIES = Capabilities(
    durable=True,
    ordered=True,
    confirms_acks=True,
    timed_lease=True,
    backpressure=False,
    checks_queues=True,
    compares_queues=True,
    counts=Counts.DELIVERIES,
    delay=Support.NATIVE,
    priority=Support.NATIVE,
    ttl=Support.NATIVE,
    group_id=Support.NATIVE,
    dedup_id=Support.NATIVE,
    dead_letter=Support.NATIVE,
    delivery_count=Support.NATIVE,
    topics=Support.NATIVE,
    peek=Support.NATIVE,
    purge=Support.NATIVE,
    stats=Support.NATIVE,
    nack=Support.NATIVE,
    release=Support.NATIVE,
    forward=Support.NATIVE,
    dedup_window=DEDUP_WINDOW,
    body_max_bytes=BODY_MAX_BYTES,
)

Token = tuple[int, int, int]
Row = tuple[Any, ...]


class Queue(NamedTuple):
    """A queue's row."""

    id: int
    options: QueueOptions


# --- queues ---------------------------------------------------------------------------------------------------------------


def find(connection: sqlite3.Connection, name: str, now: float) -> Queue | None:
    return queue_of(connection.execute(sql.QUEUE, (name, now)).fetchall())


def queue_of(rows: Sequence[Row]) -> Queue | None:
    """The queue of QUEUE's rows."""
    if not rows:
        return None
    number, dead_letter, temporary, ordered = rows[0]
    return Queue(number, QueueOptions(dead_letter=dead_letter, temporary=bool(temporary), ordered=bool(ordered)))


def bound(rows: Sequence[Row]) -> list[Queue]:
    """The queues of BOUND's rows."""
    return [Queue(number, QueueOptions(temporary=bool(temporary))) for number, temporary in rows]


def declare(connection: sqlite3.Connection, name: str, options: QueueOptions, mode: Declare, now: float) -> Queue:
    """Also removes the temporary queues that have been idle too long."""
    for (idle,) in connection.execute(sql.IDLE_QUEUES, (now,)).fetchall():
        drop(connection, idle)
    queue = find(connection, name, now)
    if queue is None:
        idle_until = now + TEMPORARY_IDLE if options.temporary else None
        values = (name, options.dead_letter, options.temporary, options.ordered, idle_until)
        return Queue(connection.execute(sql.ADD_QUEUE, values).lastrowid or 0, options)
    compare(name, queue, options, mode)
    connection.execute(sql.KEEP_QUEUE, (now + TEMPORARY_IDLE, queue.id))
    return queue


def compare(name: str, queue: Queue, options: QueueOptions, mode: Declare) -> None:
    if mode is Declare.COMPARE and queue.options != options:
        raise QueueMismatchError(
            f"queue {name!r} exists with {_shown(queue.options)}, not {_shown(options)}: declare it so, or delete it first"
        )


def drop(connection: sqlite3.Connection, queue: int) -> None:
    """A queue, what it holds and what leads to it."""
    for statement in (*sql.DROP_MESSAGES, *sql.DROP_QUEUE):
        connection.execute(statement, (queue,))


def missing(name: str) -> QueueNotFoundError:
    return QueueNotFoundError(f"there is no queue {name!r}; declare it first")


def group_queue(topic: str, group: str) -> str:
    """The queue of a topic's group. No two pairs share one: ``%`` is written ``%25`` in both, ``.`` as ``%2E`` in the topic."""
    return f"{_owner(topic)}.{group.replace('%', '%25')}"


def temporary_queue(topic: str, unique: str) -> str:
    """The queue of a subscription without a group: a name that no group can have, for there a 2 follows every ``%``."""
    return f"{_owner(topic)}.%-{unique}"


def _owner(topic: str) -> str:
    return topic.replace("%", "%25").replace(".", "%2E")


def _shown(options: QueueOptions) -> str:
    return f"dead_letter={options.dead_letter!r}, temporary={options.temporary}, ordered={options.ordered}"


# --- in -------------------------------------------------------------------------------------------------------------------


def store(
    connection: sqlite3.Connection, queue: Queue, batch: Sequence[Outgoing], rows: Sequence[Row], now: float
) -> None:
    """Store *rows*, made of *batch*; one whose dedup_id was seen in the last five minutes is dropped."""
    number = queue.id
    if any(outgoing.dedup_id for outgoing in batch):
        rows = _without_duplicates(connection, number, batch, rows, now)
    connection.executemany(sql.INSERT, [(number, *row) for row in rows])
    if any(row[3] is not None for row in rows):
        expire(connection, number, now, 2 * len(rows))  # what nobody claims must not pile up
    if queue.options.temporary:
        connection.execute(sql.KEEP_QUEUE, (now + TEMPORARY_IDLE, number))


def _without_duplicates(
    connection: sqlite3.Connection, queue: int, batch: Sequence[Outgoing], rows: Sequence[Row], now: float
) -> list[Row]:
    kept: list[Row] = []
    for outgoing, row in zip(batch, rows, strict=True):
        if outgoing.dedup_id:
            seen = (queue, outgoing.dedup_id, now + DEDUP_WINDOW, now)
            if connection.execute(sql.DEDUP, seen).rowcount < 1:
                continue
        kept.append(row)
    connection.execute(sql.FORGET_DEDUP, (now, 2 * len(rows)))
    return kept


# --- out ------------------------------------------------------------------------------------------------------------------


def claim(
    connection: sqlite3.Connection, queue: int, number: int, limit: int, now: float, until: float
) -> list[tuple[Token, Row]]:
    """Up to *limit* messages that are ready, in order, now held under claim *number* until *until*; none has expired.

    Their deliveries count this one.
    """
    found: list[tuple[Token, Row]] = []
    for _ in range(CLAIM_ROUNDS):
        rows = connection.execute(sql.NEXT, (queue, limit - len(found))).fetchall()
        connection.executemany(sql.HOLD, [(number, until, row[0]) for row in rows])
        expired = False
        for row in rows:
            token = (queue, row[0], number)
            if row[3] is not None and row[3] <= now:
                expired = True
                delete(connection, token, row[4])
            else:
                found.append((token, (*row[:2], row[2] + 1, *row[3:])))
        if not expired:
            break
    return found


def promote(connection: sqlite3.Connection, queue: int, now: float, limit: int = SWEEP_MAX) -> None:
    """Delays and leases that are over make their messages ready."""
    for row, state, group_id in connection.execute(sql.PROMOTE, (queue, now, limit)).fetchall():
        if state == sql.BLOCKED:  # it was LATER: now it comes behind whatever its group has
            connection.execute(sql.JOIN_GROUP, (row,))
            unblock(connection, queue, group_id)


def expire(connection: sqlite3.Connection, queue: int, now: float, limit: int) -> None:
    """Delete what has expired and nobody holds."""
    for (group_id,) in connection.execute(sql.EXPIRE, (queue, now, limit)).fetchall():
        if group_id is not None:
            unblock(connection, queue, group_id)


def unblock(connection: sqlite3.Connection, queue: int, group_id: str) -> None:
    """Let the oldest of a group be claimed, if it waits for nothing else."""
    connection.execute(sql.UNBLOCK, (queue, group_id))


def delete(connection: sqlite3.Connection, token: Token, group_id: str | None) -> bool:
    """Forget a held message. False: it is not held under this claim any more."""
    queue, row, number = token
    if connection.execute(sql.DELETE, (row, number)).rowcount < 1:
        return False
    if group_id is not None:
        unblock(connection, queue, group_id)
    return True


def nack(connection: sqlite3.Connection, of: Incoming, token: Token, delay: float, now: float) -> bool:
    """Give back with one more failure, and unheard deliveries as crashes; the broker's own count begins anew."""
    trail = of.message.trail
    unheard = max((of.broker_count or 1) - 1, 0)
    trail = trail._replace(failures=trail.failures + 1, crashes=trail.crashes + unheard, not_before=None)
    fields = sql.fields_of(of.message._replace(trail=trail))
    state = sql.DELAYED if delay > 0 else sql.READY
    return connection.execute(sql.NACK, (state, now + delay, fields, *token[1:])).rowcount > 0


def forward(
    connection: sqlite3.Connection, of: Incoming, token: Token, queue: Queue, copy: Outgoing, now: float, behind: float
) -> bool:
    """Copy and delete. A copy is never taken for a duplicate of its original."""
    if not delete(connection, token, of.message.group_id):
        return False
    connection.execute(sql.INSERT, (queue.id, *row_of(copy, now, behind)))
    connection.execute(sql.KEEP_QUEUE, (now + TEMPORARY_IDLE, queue.id))
    return True


def incoming(name: str, token: Token | None, row: Row, lease_until: float | None) -> Incoming:
    deliveries = row[2]
    return Incoming(outgoing_of(row), name, token, lease_until, deliveries, deliveries > 1)


# --- looking after a queue --------------------------------------------------------------------------------------------------


def counts(rows: Sequence[tuple[int, int, int]]) -> Stats:
    ready = in_flight = delayed = 0
    for state, over, count in rows:
        if state == sql.READY or state == sql.BLOCKED or over:
            ready += count
        elif state == sql.HELD:
            in_flight += count
        else:
            delayed += count
    return Stats(ready=ready, in_flight=in_flight, delayed=delayed)


def purge(connection: sqlite3.Connection, queue: int, now: float) -> int:
    """Delete what is ready, also behind the first of a group. What is held or delayed stays."""
    promote(connection, queue, now, -1)
    expire(connection, queue, now, -1)
    return sum(connection.execute(statement, (queue,)).rowcount for statement in sql.PURGE)
