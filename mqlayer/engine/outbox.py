"""Messages on their way out of one line: callers put in, the owner hands over in batches and tells each its fate."""

import logging
from collections import deque

from mqlayer.clock import Clock
from mqlayer.driver import Session
from mqlayer.engine.parcel import (
    Parcel,
    Target,
    closed_before,
    final,
    may_try_again,
    no_fate,
    once_more,
    resolve,
    too_late,
)
from mqlayer.engine.waiting import Signal
from mqlayer.errors import MQError, OutcomeUnknownError, SendError

__all__ = ["Outbox"]

SEND_WINDOW = 1024  #: messages that wait to be handed to the session; a sender beyond it waits
BATCH_MAX = 1024  #: messages handed to the session at once
SPREAD_MAX = 0.25  #: seconds by which deadlines of one batch may differ while the broker does not answer in time
log = logging.getLogger("mqlayer")


class Outbox:
    """Bounded by ``SEND_WINDOW``. One lock, which is the signal's that tells of room.

    An attempt lasts until the batch's earliest deadline, and what has time left then is sent again, marked. So that a broker
    which is slow to answer does not get a message again at each of its neighbours' deadlines, messages whose deadlines lie
    apart are not sent together after an attempt without an answer, and those that lie together share their fate.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self.room = Signal(clock)
        self._name = name
        self._clock = clock
        self._queue: deque[Parcel] = deque()
        self._slow = False  # the last attempt left something without an answer
        self.ends_at = float("inf")  #: monotonic seconds after which nothing is handed over any more

    def __bool__(self) -> bool:
        return bool(self._queue)

    def put(self, parcel: Parcel) -> bool:
        """Queue a message, under the lock; False: no room."""
        if len(self._queue) >= SEND_WINDOW:
            return False
        self._queue.append(parcel)
        return True

    def withdraw(self, parcel: Parcel) -> None:
        """At its deadline: a message that was not handed over yet gets its fate here; any other, from the owner."""
        with self.room.lock:
            if parcel.gone:
                return
            parcel.gone = True
        resolve([(parcel, too_late(parcel))])

    def hand_over(self, session: Session) -> None:
        """Send what is queued, a batch for each target. What fails and still has time is queued again, at the front."""
        by_target: dict[Target, list[Parcel]] = {}
        with self.room.lock:
            for _ in range(min(len(self._queue), BATCH_MAX)):
                parcel = self._queue.popleft()
                by_target.setdefault(parcel.target, []).append(parcel)
        self.room.notify()
        again: list[Parcel] = []
        try:
            while by_target:
                target = next(iter(by_target))
                again.extend(self._hand_over(session, target, by_target.pop(target)))
        finally:  # a defect of the backend leaves the other targets' messages here, to be told that they were not sent
            again.extend(parcel for parcels in by_target.values() for parcel in parcels)
            if again:
                with self.room.lock:
                    self._queue.extendleft(reversed(again))

    def _hand_over(self, session: Session, target: Target, parcels: list[Parcel]) -> list[Parcel]:
        now = self._clock.monotonic()
        parcels, rest = _together(parcels) if self._slow else (parcels, [])
        batch: list[Parcel] = []
        fates: list[tuple[Parcel, SendError | None]] = []
        with self.room.lock:
            for parcel in parcels:
                if parcel.gone:
                    continue  # withdrawn by its caller, who has its error
                parcel.gone = True
                if parcel.deadline <= now or self.ends_at <= now:
                    fates.append((parcel, too_late(parcel)))
                else:
                    batch.append(parcel)
        again: list[Parcel] = []
        if batch:
            is_topic, name = target
            deadline = min(min(parcel.deadline for parcel in batch), self.ends_at)
            send = session.publish if is_topic else session.send
            try:
                failures = send(name, [parcel.outgoing for parcel in batch], deadline - now)
            except BaseException as defect:  # of the backend, ends the line; nobody can say what was stored
                resolve([*fates, *((parcel, no_fate(parcel, defect)) for parcel in batch)])
                raise
            now = self._clock.monotonic()
            self._slow = bool(failures) and (now >= deadline or any(map(_is_unknown, failures.values())))
            for place, parcel in enumerate(batch):
                error = failures.get(place)
                if error is None:
                    fates.append((parcel, None))
                elif may_try_again(error) and min(parcel.deadline, self.ends_at) > _again_after(error, now):
                    again.append(once_more(parcel, error))
                else:
                    fates.append((parcel, final(error, parcel)))
        if self.ends_at != float("inf"):
            self._log_unsettled([error for _, error in fates if error is not None])
        resolve(fates)
        return again + rest

    def _log_unsettled(self, errors: list[SendError]) -> None:
        """While closing, nobody may be left who looks at a future."""
        if errors:
            log.warning("%s closes; %d messages are not known to be safe: %s", self._name, len(errors), errors[0])

    def fail(self, defect: BaseException | None = None) -> None:
        """Nothing is handed over any more: what is queued was not sent. *defect*: what ended the line, if not a close."""
        with self.room.lock:
            waiting = [parcel for parcel in self._queue if not parcel.gone]
            self._queue.clear()
            for parcel in waiting:
                parcel.gone = True
        fates = [(parcel, closed_before(parcel, defect)) for parcel in waiting]
        self._log_unsettled([error for _, error in fates])
        resolve(fates)
        self.room.notify()


def _together(parcels: list[Parcel]) -> tuple[list[Parcel], list[Parcel]]:
    """The first ones, whose deadlines lie together; and the rest."""
    earliest = latest = parcels[0].deadline
    for place, parcel in enumerate(parcels):
        earliest, latest = min(earliest, parcel.deadline), max(latest, parcel.deadline)
        if latest - earliest > SPREAD_MAX:
            return parcels[:place], parcels[place:]
    return parcels, []


def _again_after(error: MQError, now: float) -> float:
    """The deadline beyond which a further attempt is worth it; where there may be a copy already, it makes another."""
    return now + SPREAD_MAX if _is_unknown(error) else now


def _is_unknown(error: MQError) -> bool:
    return isinstance(error, OutcomeUnknownError)
