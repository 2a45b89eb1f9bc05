"""Decisions, as plain functions of their arguments: no clock is read here, no thread started, nothing sent."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from mqlayer.driver import Counts, Forward, Incoming, Nack, Release, Trail, Verdict
from mqlayer.errors import ArgumentError, UndecodableError

__all__ = [
    "DeadLetter",
    "GiveBack",
    "Retry",
    "Step",
    "delivery_count",
    "describe",
    "exhausted_reason",
    "failed_trail",
    "flagged_trail",
    "given_back",
    "is_suspect",
    "lease_margin",
    "next_step",
    "one_line",
    "reconnect_delay",
    "released_trail",
    "renew_after",
    "split_delay",
    "window",
]

DEAD_LETTER_AGAIN = 5.0  #: seconds before the next attempt, where a dead letter could not be made
REASON_MAX = 500  #: characters of an error's text that travel with a dead letter
RECONNECT_DELAY = 0.1  #: seconds before the first new attempt to connect
RECONNECT_DELAY_MAX = 5.0  #: seconds between attempts at the most
LEASE_MARGIN = 0.05  #: the part of a lease before its end in which an ack is no longer sent
LEASE_MARGIN_MAX = 1.0  #: … in seconds at the most


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """What happens to a delivery whose handler failed.

    Args:
        attempts_max: Deliveries of one message at the most; then it is dead-lettered.
        delay: Seconds before the second delivery.
        factor: Each further wait is that many times the one before.
        delay_max: … but no longer than this, in seconds.
        jitter: Each wait is stretched or shrunk at random by up to this part of it.
    """

    attempts_max: int = 10
    delay: float = 1.0
    factor: float = 2.0
    delay_max: float = 300.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.attempts_max, bool) or not isinstance(self.attempts_max, int) or self.attempts_max < 1:
            raise ArgumentError(f"Retry.attempts_max is a whole number from 1, not {self.attempts_max!r}")
        numbers = (self.delay, self.delay_max, self.factor, self.jitter)
        if not all(isinstance(number, (int, float)) and 0 <= number < math.inf for number in numbers) or (
            self.factor < 1 or self.jitter > 1
        ):
            raise ArgumentError(f"Retry has delays from 0, a factor from 1 and a jitter from 0 to 1, not {self!r}")

    def backoff(self, delivery_count: int, random: float = 0.5) -> float:
        """Seconds to wait after the delivery of that count failed. *random* is from 0 to 1; 0.5 gives no jitter."""
        try:
            wait = min(self.delay * self.factor ** (max(delivery_count, 1) - 1), self.delay_max)
        except OverflowError:  # a count of thousands
            wait = self.delay_max if self.delay else 0.0
        return wait * (1 + self.jitter * (2 * random - 1))


class DeadLetter(NamedTuple):
    """To the dead-letter queue, for this reason."""

    reason: str


class GiveBack(NamedTuple):
    """Back to the queue, no sooner than *delay* seconds."""

    delay: float


Step = DeadLetter | GiveBack


def next_step(count: int, error: BaseException, retry: Retry, *, has_dead_letter: bool, random: float = 0.5) -> Step:
    """Say what happens to the delivery of that *count* whose handler failed with *error*.

    An undecodable body is no better the next time, so it is dead-lettered at once. Without a dead-letter queue nothing
    is ever dropped: what is exhausted comes again once per ``delay_max``.
    """
    if isinstance(error, UndecodableError) or count >= retry.attempts_max:
        if has_dead_letter:
            return DeadLetter(describe(error))
        return GiveBack(retry.delay_max)
    return GiveBack(retry.backoff(count, random))


def given_back(verdict: Verdict) -> Nack | Release:
    """How a delivery goes back that could not be settled as *verdict* says.

    One whose dead letter could not be made, because that queue is full, say, has had its deliveries. Counted, so that no
    handler runs again for it, and after a pause, or it would come again at once, over and over.
    """
    of = verdict.of
    if type(verdict) is Forward and verdict.queue != of.queue:
        return Nack(of, DEAD_LETTER_AGAIN)
    return Release(of)


def exhausted_reason(count: int, failures: int, retry: Retry) -> str:
    """Why a message is not handed over for the *count*-th time: it keeps taking its worker down, or was given back
    *failures* times."""
    seen = count - 1
    if failures <= 0:
        how = f"{seen} times without an answer"
    elif failures >= seen:
        how = f"{seen} times and given back each time"
    else:
        how = f"{seen} times, {seen - failures} of them without an answer"
    return f"delivered {how}; attempts_max is {retry.attempts_max}"


def describe(error: BaseException) -> str:
    """An error in one short line, for the dead letter's reason."""
    try:
        said = str(error)
    except Exception:  # a handler's own class, whose text is broken: its name still says something
        said = ""
    return one_line(f"{type(error).__name__}: {said}" if said else type(error).__name__)


def one_line(text: str) -> str:
    """A text as the reason that travels with a dead letter."""
    return " ".join(text.split()).encode("utf-8", "replace").decode()[:REASON_MAX]


def delivery_count(counts: Counts, incoming: Incoming) -> int:
    """Which delivery of the message this is; 1 at first.

    The trail has what befell earlier copies; the broker, what befell this one. May be too high after crashes, never
    too low, except where the broker says nothing.
    """
    trail = incoming.message.trail
    return trail.failures + trail.crashes + 1 + _unheard(counts, incoming)


def is_suspect(counts: Counts, incoming: Incoming) -> bool:
    """It is known to have been delivered before without a recorded failure: perhaps it took its worker down."""
    return incoming.message.trail.crashes + _unheard(counts, incoming) > 0


def failed_trail(counts: Counts, incoming: Incoming, copied_from: str | None = None) -> Trail:
    """The trail of the copy that goes back because a handler failed."""
    trail = incoming.message.trail
    return trail._replace(
        failures=trail.failures + 1,
        crashes=trail.crashes + _unheard(counts, incoming),
        not_before=None,
        copied_from=copied_from,
    )


def released_trail(counts: Counts, incoming: Incoming, copied_from: str | None = None) -> Trail:
    """The trail of the copy that goes back because nobody ran it: neither a failure nor a delivery is added."""
    trail = incoming.message.trail
    return trail._replace(crashes=trail.crashes + _unheard(counts, incoming), copied_from=copied_from)


def flagged_trail(incoming: Incoming, copied_from: str | None = None) -> Trail:
    """The trail of the copy that turns a broker's flag into a count, before a handler sees it."""
    trail = incoming.message.trail
    return trail._replace(crashes=trail.crashes + 1, copied_from=copied_from)


def _unheard(counts: Counts, incoming: Incoming) -> int:
    """Earlier deliveries of this very copy, of which nothing was heard."""
    if counts is Counts.DELIVERIES:
        return max((incoming.broker_count or 1) - 1, 0)
    if counts is Counts.FLAG:
        return 1 if incoming.redelivered else 0
    return 0


def window(prefetch: int, held: int, asked: int, *, proven: bool, suspect_held: bool) -> int:
    """How many unsettled deliveries the broker may hand over.

    Args:
        held: Deliveries that the caller has and has not settled.
        asked: Deliveries that the caller waits for.
        proven: A delivery that is not a suspect was settled since the consumer began.
        suspect_held: The caller holds a suspect.

    The window limits prefetch, never a demand. Until *proven*, and beside a suspect, nothing is fetched ahead, so that
    a message that takes its worker down takes no neighbours with it.
    """
    demand = held + asked
    return max(prefetch, demand) if proven and not suspect_held else demand


def split_delay(delay: float, delay_max: float | None, now: float) -> tuple[float, float | None]:
    """A delay as one the broker can wait, and the epoch second before which no handler may see it (``None``: needless)."""
    if delay_max is None or delay <= delay_max:
        return delay, None
    return delay_max, now + delay


def reconnect_delay(attempt: int, random: float) -> float:
    """Seconds before attempt number *attempt* (from 0) to connect again; *random* is from 0 to 1."""
    return min(RECONNECT_DELAY * 2.0 ** min(attempt, 20), RECONNECT_DELAY_MAX) * (0.5 + 0.5 * random)


def lease_margin(lease: float) -> float:
    """How long before a lease's end its delivery already counts as stale, in seconds."""
    return min(lease * LEASE_MARGIN, LEASE_MARGIN_MAX)


def renew_after(lease: float) -> float:
    """How long after its begin a lease is renewed, in seconds."""
    return lease / 2
