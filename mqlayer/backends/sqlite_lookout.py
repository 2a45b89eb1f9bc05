"""Is there anything for a session to claim? Looked up without locking the file, and only when it may have changed."""

import math

from mqlayer.backends import sqlite_model as model
from mqlayer.backends import sqlite_schema as sql
from mqlayer.backends.sqlite_claims import Claims
from mqlayer.backends.sqlite_file import StoreFile
from mqlayer.backends.sqlite_wake import Waker
from mqlayer.clock import Clock

__all__ = ["Lookout"]


class Lookout:
    """One session's."""

    def __init__(self, file: StoreFile, claims: Claims, waker: Waker, clock: Clock) -> None:
        self._file = file
        self._claims = claims
        self._waker = waker
        self._clock = clock
        self._version: object = None
        self.next_look = -math.inf  #: monotonic seconds before which a look finds nothing, unless the file changes

    def again(self) -> None:
        """Something may have changed: the next look is a real one."""
        self.next_look = -math.inf

    def anything_there(self) -> bool:
        """Whether a claim would find something; also sets when the next look is worth it.

        Raises:
            QueueNotFoundError: a subscribed queue is gone. StoreError: the file is.
        """
        changed = self._changed()
        if not changed and self._clock.monotonic() < self.next_look:
            return False
        now = self._file.now()
        next_due = math.inf
        there = False
        for name in list(self._claims.subscriptions):
            due = self._due(name, now)
            there = there or due <= now
            next_due = min(next_due, due)
        self.next_look = self._file.monotonic(next_due)
        return there

    def _due(self, name: str, now: float) -> float:
        """When the queue may have something for us: *now* or earlier, later, or never as it stands."""
        subscription = self._claims.subscriptions[name]
        rows = self._file.read(sql.LOOK, (name, now))
        if not rows:
            raise model.missing(name)
        number, temporary, ordered, active, active_until, ready, due = rows[0]
        if number != subscription.id:  # it was deleted and declared anew
            self._waker.unwatch(subscription.id)
            self._waker.watch(number)
        subscription.found(number, bool(temporary), bool(ordered))
        if self._claims.room(subscription, now) <= 0:
            return math.inf
        if ordered and active not in (None, self._claims.number) and active_until > now:
            return float(active_until)
        if ready:
            return now
        return math.inf if due is None else float(due)

    def _changed(self) -> bool:
        """Somebody else has written to the file since the last time."""
        self._file.check_files()
        version = self._file.read("PRAGMA data_version")[0][0]
        before, self._version = self._version, version
        return bool(version != before)
