"""The SQL model of a message store: tables, statements, and messages as rows. Pure: nothing here opens a database.

A message is one row, and its ``state`` says who may have it:

=========  ==============================================  ============================
state      meaning                                         ``due``
=========  ==============================================  ============================
READY      the next claim may take it                      in the past
HELD       one session has it, under ``claim``             the end of its lease
DELAYED    nobody may have it yet                          when it becomes READY
BLOCKED    an older message of its group comes first       in the past
LATER      of a group, sent with a delay                   when it joins its group, as the last
=========  ==============================================  ============================

Of a group all but the oldest are BLOCKED, so that a claim never walks over what it may not take. Each way to
look for messages has a partial index of its own that holds nothing else; the cost of a claim does not grow with the store.

Times are seconds of the store's clock (``docs/decisions/0003-sqlite-leases.md``). ``due`` and ``claim`` always hold eight
bytes: a row that keeps its length is overwritten in place, which for a body of 1 MiB halves the cost of a delivery.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from mqlayer.codec import from_headers, to_headers
from mqlayer.driver import NO_HEADERS, NO_TRAIL, Outgoing

__all__ = ["BLOCKED", "DELAYED", "FREE", "HELD", "LATER", "READY", "outgoing_of", "row_of"]

SCHEMA_VERSION = 1
READY, HELD, DELAYED, BLOCKED, LATER = range(5)
FREE: Final = -(1 << 61)  #: the claim of a message that nobody holds
FIRST_CLAIM: Final = 1 << 61  #: claims are at least this: eight bytes, as FREE

TABLES = (
    "CREATE TABLE IF NOT EXISTS mqlayer_meta (key TEXT PRIMARY KEY, value ANY) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS mqlayer_clocks (id INTEGER PRIMARY KEY, base TEXT NOT NULL UNIQUE, ahead REAL NOT NULL)",
    # AUTOINCREMENT: the number of a deleted queue never means another one.
    """CREATE TABLE IF NOT EXISTS mqlayer_queues (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
        dead_letter TEXT, temporary INTEGER NOT NULL, ordered INTEGER NOT NULL,
        idle_until REAL, active INTEGER, active_until REAL)""",
    """CREATE TABLE IF NOT EXISTS mqlayer_bindings (
        topic TEXT NOT NULL, queue INTEGER NOT NULL, PRIMARY KEY (topic, queue)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS mqlayer_dedup (
        queue INTEGER NOT NULL, dedup_id TEXT NOT NULL, until REAL NOT NULL, PRIMARY KEY (queue, dedup_id)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS mqlayer_dedup_until ON mqlayer_dedup (until)",
    """CREATE TABLE IF NOT EXISTS mqlayer_messages (
        id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, state INTEGER NOT NULL, priority INTEGER NOT NULL,
        due REAL NOT NULL, claim INTEGER NOT NULL, deliveries INTEGER NOT NULL, expires REAL, group_id TEXT,
        message_id TEXT, content_type TEXT, sent_at REAL, expires_at REAL, fields TEXT, body BLOB NOT NULL)""",
    # The row's id ends every index, so equal keys come in the order in which they were stored.
    "CREATE INDEX IF NOT EXISTS mqlayer_ready ON mqlayer_messages (queue, priority DESC) WHERE state = 0",
    "CREATE INDEX IF NOT EXISTS mqlayer_due ON mqlayer_messages (queue, due) WHERE state IN (1, 2, 4)",
    "CREATE INDEX IF NOT EXISTS mqlayer_expires ON mqlayer_messages (queue, expires) WHERE expires IS NOT NULL",
    """CREATE INDEX IF NOT EXISTS mqlayer_groups ON mqlayer_messages (queue, group_id)
        WHERE group_id IS NOT NULL AND state <> 4""",
)
READ_VERSION = "SELECT value FROM mqlayer_meta WHERE key = 'schema'"
WRITE_VERSION = "INSERT OR IGNORE INTO mqlayer_meta VALUES ('schema', ?)"

# --- the store's clock ---------------------------------------------------------------------------------------------------
READ_CLOCK = "SELECT ahead FROM mqlayer_clocks WHERE base = ?"
ADD_CLOCK = "INSERT INTO mqlayer_clocks (base, ahead) VALUES (?, ?)"
FORGET_CLOCKS = "DELETE FROM mqlayer_clocks WHERE id <= (SELECT max(id) FROM mqlayer_clocks) - ?"
SHORTEN_LEASES = """UPDATE mqlayer_messages INDEXED BY mqlayer_due SET due = ?1
    WHERE queue IN (SELECT id FROM mqlayer_queues) AND state IN (1, 2, 4) AND due > ?1 AND state = 1"""
SHORTEN_ACTIVE = "UPDATE mqlayer_queues SET active_until = ?1 WHERE active_until > ?1"
SHORTEN_IDLE = "UPDATE mqlayer_queues SET idle_until = ?1 WHERE idle_until > ?1"

# --- queues --------------------------------------------------------------------------------------------------------------
_ALIVE = "(idle_until IS NULL OR idle_until > ?2)"
QUEUE = f"SELECT id, dead_letter, temporary, ordered FROM mqlayer_queues WHERE name = ?1 AND {_ALIVE}"
ADD_QUEUE = "INSERT INTO mqlayer_queues (name, dead_letter, temporary, ordered, idle_until) VALUES (?, ?, ?, ?, ?)"
KEEP_QUEUE = "UPDATE mqlayer_queues SET idle_until = ? WHERE id = ? AND temporary"
IDLE_QUEUES = "SELECT id FROM mqlayer_queues WHERE idle_until <= ?"
QUEUE_BY_NAME = "SELECT id FROM mqlayer_queues WHERE name = ?"
DROP_QUEUE = (
    "DELETE FROM mqlayer_queues WHERE id = ?",
    "DELETE FROM mqlayer_bindings WHERE queue = ?",
    "DELETE FROM mqlayer_dedup WHERE queue = ?",
)
# One statement for each index that together hold every message of the queue, instead of a walk over all queues'.
DROP_MESSAGES = (
    "DELETE FROM mqlayer_messages INDEXED BY mqlayer_ready WHERE queue = ? AND state = 0",
    "DELETE FROM mqlayer_messages INDEXED BY mqlayer_due WHERE queue = ? AND state IN (1, 2, 4)",
    "DELETE FROM mqlayer_messages INDEXED BY mqlayer_groups WHERE queue = ? AND group_id IS NOT NULL AND state <> 4",
)
BIND = "INSERT OR IGNORE INTO mqlayer_bindings VALUES (?, ?)"
BOUND = f"""SELECT id, temporary FROM mqlayer_bindings JOIN mqlayer_queues ON id = queue
    WHERE topic = ?1 AND {_ALIVE} ORDER BY id"""
ACTIVATE = """UPDATE mqlayer_queues SET active = ?1, active_until = max(?2, iif(active = ?1, active_until, 0))
    WHERE id = ?3 AND (active IS NULL OR active = ?1 OR active_until <= ?4)"""
DEACTIVATE = "UPDATE mqlayer_queues SET active = NULL, active_until = NULL WHERE id = ? AND active = ?"

# --- messages ------------------------------------------------------------------------------------------------------------
INSERT = """INSERT INTO mqlayer_messages (queue, state, priority, due, claim, deliveries, expires, group_id,
        message_id, content_type, sent_at, expires_at, fields, body)
    VALUES (?1, CASE WHEN ?6 IS NOT NULL AND ?2 = 0 AND EXISTS (SELECT 1 FROM mqlayer_messages
            INDEXED BY mqlayer_groups WHERE queue = ?1 AND group_id = ?6 AND state <> 4) THEN 3 ELSE ?2 END,
        ?3, ?4, -2305843009213693952, 0, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"""
DEDUP = """INSERT INTO mqlayer_dedup VALUES (?1, ?2, ?3)
    ON CONFLICT (queue, dedup_id) DO UPDATE SET until = excluded.until WHERE until <= ?4"""
FORGET_DEDUP = """DELETE FROM mqlayer_dedup WHERE (queue, dedup_id) IN
    (SELECT queue, dedup_id FROM mqlayer_dedup INDEXED BY mqlayer_dedup_until WHERE until <= ? LIMIT ?)"""
_COLUMNS = (
    """id, priority, deliveries, expires, group_id, message_id, content_type, sent_at, expires_at, fields, body"""
)
# Two statements, not one with RETURNING: that one's temporary tables cost as much as the rest of a claim.
NEXT = f"""SELECT {_COLUMNS} FROM mqlayer_messages INDEXED BY mqlayer_ready
    WHERE queue = ? AND state = 0 ORDER BY priority DESC, id LIMIT ?"""
HOLD = "UPDATE mqlayer_messages SET state = 1, claim = ?, due = ?, deliveries = deliveries + 1 WHERE id = ?"
PROMOTE = """UPDATE mqlayer_messages SET state = iif(state = 4, 3, 0), claim = -2305843009213693952
    WHERE id IN (SELECT id FROM mqlayer_messages INDEXED BY mqlayer_due
        WHERE queue = ? AND state IN (1, 2, 4) AND due <= ? ORDER BY due LIMIT ?)
    RETURNING id, state, group_id"""
JOIN_GROUP = "UPDATE mqlayer_messages SET id = (SELECT max(id) + 1 FROM mqlayer_messages) WHERE id = ?"
EXPIRE = """DELETE FROM mqlayer_messages WHERE id IN (SELECT id FROM mqlayer_messages INDEXED BY mqlayer_expires
        WHERE queue = ? AND expires IS NOT NULL AND expires <= ? AND state <> 1 LIMIT ?)
    RETURNING group_id"""
UNBLOCK = """UPDATE mqlayer_messages SET state = 0
    WHERE id = (SELECT id FROM mqlayer_messages INDEXED BY mqlayer_groups
        WHERE queue = ?1 AND group_id = ?2 AND state <> 4 ORDER BY id LIMIT 1) AND state = 3"""
DELETE = "DELETE FROM mqlayer_messages WHERE id = ? AND claim = ?"
NACK = """UPDATE mqlayer_messages SET state = ?, due = ?, claim = -2305843009213693952, deliveries = 0, fields = ?
    WHERE id = ? AND claim = ?"""
RELEASE = """UPDATE mqlayer_messages SET state = 0, claim = -2305843009213693952, deliveries = deliveries - 1
    WHERE id = ? AND claim = ?"""
GIVE_BACK = "UPDATE mqlayer_messages SET state = 0, claim = -2305843009213693952 WHERE id = ? AND claim = ?"
EXTEND = "UPDATE mqlayer_messages SET due = ? WHERE id = ? AND claim = ?"
LOOK = f"""SELECT id, temporary, ordered, active, active_until,
        EXISTS (SELECT 1 FROM mqlayer_messages INDEXED BY mqlayer_ready WHERE queue = q.id AND state = 0),
        (SELECT min(due) FROM mqlayer_messages INDEXED BY mqlayer_due WHERE queue = q.id AND state IN (1, 2, 4))
    FROM mqlayer_queues AS q WHERE name = ?1 AND {_ALIVE}"""

# --- looking after a queue -----------------------------------------------------------------------------------------------
COUNTS = """
    SELECT 0, 1, count(*) FROM mqlayer_messages INDEXED BY mqlayer_ready WHERE queue = ?1 AND state = 0
    UNION ALL SELECT state, due <= ?2, count(*) FROM mqlayer_messages INDEXED BY mqlayer_due
        WHERE queue = ?1 AND state IN (1, 2, 4) GROUP BY 1, 2
    UNION ALL SELECT 3, 1, count(*) FROM mqlayer_messages INDEXED BY mqlayer_groups
        WHERE queue = ?1 AND group_id IS NOT NULL AND state <> 4 AND state = 3
    UNION ALL SELECT state, due <= ?2, -count(*) FROM mqlayer_messages INDEXED BY mqlayer_expires
        WHERE queue = ?1 AND expires IS NOT NULL AND expires <= ?2 AND NOT (state = 1 AND due > ?2) GROUP BY 1, 2"""
PEEK = f"""SELECT {_COLUMNS} FROM (
        SELECT * FROM (SELECT {_COLUMNS} FROM mqlayer_messages INDEXED BY mqlayer_ready
            WHERE queue = ?1 AND state = 0 AND (expires IS NULL OR expires > ?2) ORDER BY priority DESC, id LIMIT ?3)
        UNION ALL SELECT * FROM (SELECT {_COLUMNS} FROM mqlayer_messages INDEXED BY mqlayer_due
            WHERE queue = ?1 AND state IN (1, 2, 4) AND due <= ?2 AND (expires IS NULL OR expires > ?2)
            ORDER BY priority DESC, id LIMIT ?3))
    ORDER BY priority DESC, id LIMIT ?3"""
PURGE = (
    "DELETE FROM mqlayer_messages INDEXED BY mqlayer_ready WHERE queue = ? AND state = 0",
    """DELETE FROM mqlayer_messages INDEXED BY mqlayer_groups
        WHERE queue = ? AND group_id IS NOT NULL AND state <> 4 AND state = 3""",
)

_IN_COLUMNS = frozenset({"id", "content_type", "priority", "group_id", "sent_at", "expires_at"})
_ALL_BUT_PRIORITY = _IN_COLUMNS - {"priority"}
_to_json = json.JSONEncoder(separators=(",", ":")).encode  # made once: that costs more than using it


def row_of(outgoing: Outgoing, now: float, behind: float) -> tuple[Any, ...]:
    """A message as the parameters of INSERT, its queue excepted. *behind* is how far the store's clock is behind the epoch's."""
    delay = outgoing.delay
    state = READY if delay <= 0 else DELAYED if outgoing.group_id is None else LATER
    expires_at = outgoing.expires_at
    return (
        state,
        outgoing.priority or 0,
        now + delay,
        None if expires_at is None else expires_at - behind,
        outgoing.group_id,
        outgoing.id,
        outgoing.content_type,
        outgoing.sent_at,
        expires_at,
        fields_of(outgoing),
        outgoing.body,
    )


def fields_of(outgoing: Outgoing) -> str | None:
    """What has no column of its own, as JSON; most messages have none of it."""
    if not (
        outgoing.headers
        or outgoing.correlation_id
        or outgoing.reply_to
        or outgoing.dedup_id
        or outgoing.priority == 0  # its column says 0 for None as well
        or outgoing.trail is not NO_TRAIL
    ):
        return None
    native = _ALL_BUT_PRIORITY if outgoing.priority == 0 else _IN_COLUMNS
    headers = to_headers(outgoing, native=native, text_only=True)
    return _to_json(headers) if headers else None


def outgoing_of(row: Sequence[Any]) -> Outgoing:
    """The message of a row of NEXT or PEEK."""
    _, priority, _, _, group_id, message_id, content_type, sent_at, expires_at, fields, body = row
    message = Outgoing(
        message_id,
        body,
        NO_HEADERS,
        content_type,
        None,
        None,
        priority or None,
        group_id,
        None,
        sent_at,
        expires_at,
    )
    return message if fields is None else from_headers(json.loads(fields), message, text_only=True)
