"""What one session holds: its subscriptions, the deliveries that it has claimed, and those not yet handed over.

What a transaction does here is remembered only when the caller says that it was committed (``remember``, ``add``).
"""

import itertools
import math
import secrets
import sqlite3
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from mqlayer.backends import sqlite_model as model
from mqlayer.backends import sqlite_schema as sql
from mqlayer.backends.sqlite_model import Queue, Row, Token
from mqlayer.driver import Ack, Extend, Forward, Incoming, Nack, Release, Verdict
from mqlayer.errors import MQError, StaleDeliveryError, UnroutableError

__all__ = ["Claims", "Settled", "Subscription", "Taken"]


TIDY_EVERY = (
    0.01  #: seconds by which a delay may end late in a busy loop; a look for what is due costs as much as a claim
)


class Subscription:
    """A queue that the session consumes: at most *window* deliveries at a time, each for *lease* seconds."""

    __slots__ = ("id", "lease", "name", "ordered", "temporary", "tidy_at", "window")

    def __init__(self, name: str, queue: Queue, window: int, lease: float) -> None:
        self.name = name
        self.window = window
        self.lease = lease
        self.tidy_at = 0.0  # beside a settlement, what falls due is looked for no sooner
        self.found(queue.id, queue.options.temporary, queue.options.ordered)

    def found(self, number: int, temporary: bool, ordered: bool) -> None:
        """The queue as it is in the file now: it may have been deleted and declared anew."""
        self.id = number
        self.temporary = temporary
        self.ordered = ordered


class Taken(NamedTuple):
    """A delivery that a transaction claimed."""

    name: str
    token: Token
    row: Row
    until: float


class Settled(NamedTuple):
    """What a transaction did with verdicts."""

    failures: dict[int, MQError]
    gone: set[Token]  #: no longer held, one way or the other
    extended: dict[Token, float]
    queues: set[int]  #: that have more to hand over than before
    asks_for_more: bool


class Claims:
    """A session's deliveries. ``number`` tells it from all others."""

    def __init__(self) -> None:
        self._numbers = itertools.count(sql.FIRST_CLAIM + secrets.randbits(60))
        self.number = next(self._numbers)
        self.subscriptions: dict[str, Subscription] = {}
        self._held: dict[int, dict[int, tuple[int, float]]] = {}  # queue → row → claim, end of the lease
        self._buffer: deque[Taken] = deque()
        self._leaving: set[int] = set()  # ordered queues not consumed any more, of which something is still held
        self._turn = 0

    # --- claiming ----------------------------------------------------------------------------------------------------

    def take(self, connection: sqlite3.Connection, limit: float, now: float) -> list[Taken]:
        """Claim what the windows have room for, at most *limit*."""
        return self._take(connection, limit, now, (), hungry=True)

    def take_more(self, connection: sqlite3.Connection, now: float, done: "Settled", *, hungry: bool) -> list[Taken]:
        """Beside a settlement: claim what there is room for now, for the next who asks.

        For a caller who has enough (not *hungry*) it is not worth the work before half of the window is free.
        """
        return self._take(connection, math.inf, now, done.gone, hungry=hungry) if done.asks_for_more else []

    def _take(
        self, connection: sqlite3.Connection, limit: float, now: float, gone: Collection[Token], *, hungry: bool
    ) -> list[Taken]:
        taken: list[Taken] = []
        claim = next(self._numbers)
        for subscription in self._in_turn():
            freed = sum(1 for token in gone if token[0] == subscription.id)
            room = int(min(self.room(subscription, now) + freed, limit - len(taken)))
            if room <= 0 or not (hungry or 2 * room >= subscription.window):
                continue
            until = now + subscription.lease
            if subscription.ordered and not self._activate(connection, subscription.id, until, now):
                continue
            if not gone or now >= subscription.tidy_at:
                subscription.tidy_at = now + TIDY_EVERY
                model.promote(connection, subscription.id, now)
                model.expire(connection, subscription.id, now, model.SWEEP_MAX)
            for token, row in model.claim(connection, subscription.id, claim, room, now, until):
                taken.append(Taken(subscription.name, token, row, until))
        return taken

    def add(self, taken: Iterable[Taken]) -> None:
        for one in taken:
            queue, row, claim = one.token
            self._held.setdefault(queue, {})[row] = claim, one.until
            self._buffer.append(one)

    def hand_over(self, limit: int, now: float, ahead: float) -> list[Incoming]:
        """Up to *limit* claimed deliveries, without those whose lease ended before anybody asked for them."""
        found: list[Incoming] = []
        while self._buffer and len(found) < limit:
            name, token, row, until = self._buffer.popleft()
            if until > now and self._is_held(token, now):
                found.append(model.incoming(name, token, row, until - ahead))
        return found

    def room(self, subscription: Subscription, now: float) -> int:
        held = self._held.get(subscription.id)
        if not held:
            return subscription.window
        if len(held) >= subscription.window:  # a delivery that nobody settled in time is not in the window any more
            for row in [row for row, (_, until) in held.items() if until <= now]:
                del held[row]
        return subscription.window - len(held)

    def _in_turn(self) -> list[Subscription]:
        """Another one first each time, so that a busy queue does not starve the others."""
        every = list(self.subscriptions.values())
        if len(every) > 1:
            self._turn = (self._turn + 1) % len(every)
            every = every[self._turn :] + every[: self._turn]
        return every

    def _activate(self, connection: sqlite3.Connection, queue: int, until: float, now: float) -> bool:
        return connection.execute(sql.ACTIVATE, (self.number, until, queue, now)).rowcount > 0

    def leave(self, connection: sqlite3.Connection, queue: int) -> None:
        """Let another consumer of an ordered queue be the active one, as soon as this one holds nothing of it any more:
        what it holds may come back, and then comes first."""
        if self._held.get(queue):
            self._leaving.add(queue)
        else:
            connection.execute(sql.DEACTIVATE, (queue, self.number))

    def _leave_settled(self, connection: sqlite3.Connection, done: "Settled", now: float) -> None:
        for queue in self._leaving - {subscription.id for subscription in self.subscriptions.values()}:
            held = self._held.get(queue, {})
            if all(until <= now or (queue, row, claim) in done.gone for row, (claim, until) in held.items()):
                connection.execute(sql.DEACTIVATE, (queue, self.number))
                done.queues.add(queue)

    # --- settling ----------------------------------------------------------------------------------------------------

    def settle(self, connection: sqlite3.Connection, verdicts: Sequence[Verdict], now: float, behind: float) -> Settled:
        """Carry out the verdicts; those on deliveries that are not this session's any more change nothing."""
        done = Settled({}, set(), {}, set(), any(type(verdict) is Ack for verdict in verdicts))
        found: dict[str, Queue | None] = {}
        for index, verdict in enumerate(verdicts):
            of = verdict.of
            token = of.token
            if not (isinstance(token, tuple) and len(token) == 3 and self._is_held(token, now)):
                done.failures[index] = _stale(of)
                continue
            if type(verdict) is Ack:
                kept = model.delete(connection, token, of.message.group_id)
            elif type(verdict) is Extend:
                kept = self._extend(connection, token, now + verdict.seconds, now, done)
            elif type(verdict) is Forward:
                name = verdict.queue
                if name not in found:
                    found[name] = model.find(connection, name, now)
                target = found[name]
                if target is None:
                    text = f"there is no queue {name!r} to copy to; declare it first"
                    done.failures[index] = UnroutableError(text, message_id=verdict.copy.id)
                    continue
                kept = model.forward(connection, of, token, target, verdict.copy, now, behind)
                done.queues.add(target.id)
            else:
                kept = _give_back(connection, verdict, token, now)
                done.queues.add(token[0])
            if not kept:
                done.failures[index] = _stale(of)
            if type(verdict) is not Extend or not kept:
                done.gone.add(token)
        if self._leaving:
            self._leave_settled(connection, done, now)
        # What has just been released must not be claimed again by the same transaction.
        return done._replace(asks_for_more=done.asks_for_more and not any(type(v) is Release for v in verdicts))

    def remember(self, done: Settled) -> None:
        for queue, row, _ in done.gone:
            self._held[queue].pop(row, None)
        for (queue, row, claim), until in done.extended.items():
            self._held[queue][row] = claim, until
        self._leaving = {queue for queue in self._leaving if self._held.get(queue)}

    def _extend(self, connection: sqlite3.Connection, token: Token, until: float, now: float, done: Settled) -> bool:
        queue, row, claim = token
        if connection.execute(sql.EXTEND, (until, row, claim)).rowcount < 1:
            return False
        done.extended[token] = until
        if any(subscription.id == queue and subscription.ordered for subscription in self.subscriptions.values()):
            self._activate(connection, queue, until, now)
        return True

    def _is_held(self, token: Token, now: float) -> bool:
        queue, row, claim = token
        held = self._held.get(queue, {}).get(row)
        return held is not None and held[0] == claim and held[1] > now

    # --- giving back -------------------------------------------------------------------------------------------------

    def surplus(self, name: str, window: int) -> list[Token]:
        """What was claimed of a queue, not handed over, and does not fit in *window*; the last claimed first."""
        waiting = [one.token for one in self._buffer if one.name == name]
        if not waiting:
            return []
        over = len(self._held.get(waiting[0][0], {})) - window
        return waiting[: -over - 1 : -1] if over > 0 else []

    def release(self, connection: sqlite3.Connection, tokens: Iterable[Token]) -> None:
        """Give back what nobody saw: its delivery is not counted."""
        connection.executemany(sql.RELEASE, [token[1:] for token in tokens])

    def give_back_all(self, connection: sqlite3.Connection) -> set[int]:
        """Give back everything; what was handed over counts as delivered. Returns the queues."""
        waiting = {one.token for one in self._buffer}
        self.release(connection, waiting)
        every = {(queue, row, claim) for queue, held in self._held.items() for row, (claim, _) in held.items()}
        connection.executemany(sql.GIVE_BACK, [token[1:] for token in every - waiting])
        ordered = {subscription.id for subscription in self.subscriptions.values() if subscription.ordered}
        ordered |= self._leaving
        connection.executemany(sql.DEACTIVATE, [(queue, self.number) for queue in ordered])
        return ordered | {token[0] for token in every}

    def forget(self, tokens: Collection[Token]) -> None:
        """They were given back before anybody saw them."""
        self._buffer = deque(one for one in self._buffer if one.token not in tokens)
        for queue, row, _ in tokens:
            self._held[queue].pop(row, None)


def _give_back(connection: sqlite3.Connection, verdict: Verdict, token: Token, now: float) -> bool:
    if isinstance(verdict, Nack):
        return model.nack(connection, verdict.of, token, verdict.delay, now)
    return connection.execute(sql.RELEASE, token[1:]).rowcount > 0


def _stale(of: Incoming) -> StaleDeliveryError:
    return StaleDeliveryError(
        f"the delivery of {of.message.id!r} from queue {of.queue!r} is not this session's any more: its lease ended, it "
        "was settled, or its session is gone"
    )
