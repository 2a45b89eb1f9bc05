"""A message between its caller and the session, and the fates that it can have."""

import copy
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TypeVar

from mqlayer.clock import Clock
from mqlayer.driver import Outgoing
from mqlayer.engine.waiting import Signal
from mqlayer.errors import (
    MQError,
    NotSentError,
    OutcomeUnknownError,
    RefusedError,
    SendError,
    SendTimeoutError,
    UsageError,
)

__all__ = [
    "GRACE",
    "Parcel",
    "Tally",
    "Target",
    "closed_before",
    "final",
    "may_try_again",
    "no_fate",
    "no_room",
    "no_word",
    "once_more",
    "resolve",
    "too_late",
]

NOTED_FAILURES = 1000  #: failures that a flush can report; older ones are forgotten
GRACE = 5.0  #: seconds that a caller waits beyond its deadline for the owner's word on what is in flight

E = TypeVar("E", bound=SendError)
Target = tuple[bool, str]
"""Whether it is a topic, and its name."""


class Tally:
    """What a producer has submitted and what has become of it. For ``flush``."""

    __slots__ = ("done", "failures", "signal", "submitted")

    def __init__(self, clock: Clock) -> None:
        self.signal = Signal(clock)
        self.submitted = 0
        self.done = 0
        self.failures: deque[SendError] = deque(maxlen=NOTED_FAILURES)

    def add(self) -> None:
        with self.signal.lock:
            self.submitted += 1

    def settle(self, count: int, failures: Iterable[SendError]) -> None:
        with self.signal.lock:
            self.done += count
            self.failures.extend(failures)
        self.signal.notify()

    def take_failures(self) -> list[SendError]:
        with self.signal.lock:
            failures = list(self.failures)
            self.failures.clear()
            return failures


class Parcel:
    """One message between the caller and the session."""

    __slots__ = ("deadline", "doubt", "future", "gone", "outgoing", "tally", "target")

    def __init__(self, target: Target, outgoing: Outgoing, deadline: float, tally: Tally | None) -> None:
        self.target = target
        self.outgoing = outgoing
        self.deadline = deadline
        self.tally = tally
        self.future: Future[str] = Future()
        self.future.set_running_or_notify_cancel()  # cancelling could not take back what is on its way
        self.gone = False  # handed over, or withdrawn: no longer the caller's
        self.doubt: OutcomeUnknownError | None = None  # an earlier attempt that may have been stored


def no_room(parcel: Parcel) -> SendTimeoutError:
    """Its time was up while it waited for room in the queue."""
    text = f"no room for the message to {parcel.target[1]!r}: too many others wait before it"
    return SendTimeoutError(text, message_id=parcel.outgoing.id)


def no_word(parcel: Parcel) -> OutcomeUnknownError:
    """It is in flight, and its caller waits no longer."""
    text = f"no word of the message to {parcel.target[1]!r} {GRACE:g} s after its deadline"
    return OutcomeUnknownError(text, message_id=parcel.outgoing.id)


def no_fate(parcel: Parcel, error: BaseException) -> OutcomeUnknownError:
    """The backend failed with a defect while it was in flight."""
    unknown = OutcomeUnknownError(f"the backend failed with {error!r}", message_id=parcel.outgoing.id)
    unknown.__cause__ = error
    return unknown


def too_late(parcel: Parcel) -> SendError:
    """Its time was up before it was handed over."""
    if parcel.doubt is not None:
        return parcel.doubt
    return SendTimeoutError(
        f"the message to {parcel.target[1]!r} waited until its time was up and never left",
        message_id=parcel.outgoing.id,
    )


def closed_before(parcel: Parcel, defect: BaseException | None) -> SendError:
    """The line ended before it was handed over."""
    if parcel.doubt is not None:
        return parcel.doubt
    why = "closed" if defect is None else f"the connection ended with the defect {defect!r}"
    unsent = NotSentError(f"{why} before the message to {parcel.target[1]!r} left", message_id=parcel.outgoing.id)
    unsent.__cause__ = defect
    return unsent


def may_try_again(error: MQError) -> bool:
    """The next attempt may go better, or tell what became of this one."""
    return isinstance(error, (NotSentError, OutcomeUnknownError))


def once_more(parcel: Parcel, error: MQError) -> Parcel:
    """The message as the next attempt sends it: marked, if this one may have stored it."""
    parcel.gone = False
    if isinstance(error, OutcomeUnknownError):
        trail = parcel.outgoing.trail
        parcel.outgoing = parcel.outgoing._replace(trail=trail._replace(resent=trail.resent + 1))
        parcel.doubt = _own(error, parcel)
    return parcel


def _own(error: E, parcel: Parcel) -> E:
    """The error with the message's id; a copy, if it is another message's too."""
    message_id = parcel.outgoing.id
    if error.message_id not in (None, message_id):
        cause = error.__cause__
        error = copy.copy(error)
        error.__cause__ = cause
    error.message_id = message_id
    return error


def final(error: MQError, parcel: Parcel) -> SendError:
    """The error that the caller gets: a SendError with the message's id; unknown once one attempt was."""
    if parcel.doubt is not None and not isinstance(error, OutcomeUnknownError):
        result: SendError = OutcomeUnknownError(f"{parcel.doubt}; then, sent again: {error}")
        result.__cause__ = error
    elif isinstance(error, SendError):
        result = error
    elif isinstance(error, UsageError):  # no later attempt would fare better
        result = RefusedError(f"the message to {parcel.target[1]!r} was refused: {error}")
        result.__cause__ = error
    else:
        result = NotSentError(f"the message to {parcel.target[1]!r} was not sent: {error}")
        result.__cause__ = error
    return _own(result, parcel)


def resolve(fates: Iterable[tuple[Parcel, SendError | None]]) -> None:
    """Tell everybody who waits: each future, then each producer once."""
    failures: dict[Tally, list[SendError]] = {}
    counts: dict[Tally, int] = {}
    for parcel, error in fates:
        if error is None:
            parcel.future.set_result(parcel.outgoing.id or "")
        else:
            parcel.future.set_exception(error)
        tally = parcel.tally
        if tally is not None:
            counts[tally] = counts.get(tally, 0) + 1
            if error is not None:
                failures.setdefault(tally, []).append(error)
    for tally, count in counts.items():
        tally.settle(count, failures.get(tally, ()))
