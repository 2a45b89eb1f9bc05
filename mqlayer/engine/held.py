"""One delivery on its way through this process, and who holds which: a consumer that closes lets others finish."""

import logging
import threading
from typing import Protocol

from mqlayer.clock import Clock
from mqlayer.driver import NO_TRAIL, Counts, Incoming
from mqlayer.engine.waiting import Signal
from mqlayer.policy import delivery_count, is_suspect, lease_margin, renew_after

__all__ = ["Held", "Holder", "Holders"]

_NEVER = float("inf")
LOOK = 0.2  #: seconds between two looks whether a holder has ended without settling
log = logging.getLogger("mqlayer")


class Holder(Protocol):
    """A thread, or a task of an event loop. Equal holders are the same one."""

    def is_alive(self) -> bool: ...


class Held:
    """One delivery on its way through this process, from the broker's hand to its settlement."""

    __slots__ = (
        "_settling",
        "count",
        "epoch",
        "given_at",
        "holder",
        "incoming",
        "lease",
        "renew_at",
        "stale_at",
        "suspect",
        "taken",
    )

    def __init__(self, incoming: Incoming, counts: Counts, now: float, epoch: int) -> None:
        self.incoming = incoming
        self.epoch = epoch  # which of the line's connections it came on
        if incoming.message.trail is NO_TRAIL and incoming.broker_count in (1, None) and not incoming.redelivered:
            self.count = 1
            self.suspect = False
        else:
            self.count = delivery_count(counts, incoming)
            self.suspect = is_suspect(counts, incoming)
        self.given_at = now
        self.taken = False  # by a caller, who has not settled it yet
        self.holder: Holder | None = None  # the caller's thread or task
        self._settling = threading.Lock()
        until = incoming.lease_until
        if until is None:
            self.lease = 0.0
            self.stale_at = self.renew_at = _NEVER
        else:
            self.lease_from(now, until - now)

    def lease_from(self, now: float, seconds: float) -> None:
        """A lease begins, or is extended: it ends *seconds* from now."""
        self.lease = seconds if seconds > 0 else 0.0
        # A little before its end what is done could already meet another consumer's copy.
        self.stale_at = now + seconds - lease_margin(self.lease)
        self.renew_at = now + renew_after(self.lease)

    @property
    def settled(self) -> bool:
        return self._settling.locked()

    def settle_once(self) -> bool:
        """True for the first caller; of several threads at once, for one."""
        return self._settling.acquire(blocking=False)

    @property
    def timed(self) -> bool:
        return self.incoming.lease_until is not None


class Holders:
    """The deliveries that callers have taken and not settled. Changed under the lock of whoever owns it."""

    def __init__(self, signal: Signal, clock: Clock) -> None:
        self._signal = signal
        self._clock = clock
        self._held: set[Held] = set()
        self._awaited = False

    def add(self, held: Held, holder: Holder) -> None:
        held.holder = holder
        self._held.add(held)

    def remove(self, held: Held) -> None:
        self._held.discard(held)
        if self._awaited:
            self._signal.notify()

    def clear(self) -> None:
        self._held.clear()
        if self._awaited:
            self._signal.notify()

    def wait(self, closer: Holder, timeout: float) -> None:
        """Until nobody else than *closer* holds anything and lives, or for *timeout* seconds; without the lock."""
        self._awaited = True
        deadline = self._clock.monotonic() + timeout
        while True:
            version = self._signal.version
            busy = sum(_in_use(held.holder, closer) for held in tuple(self._held))
            left = deadline - self._clock.monotonic()
            if not busy:
                return
            if left <= 0:
                log.warning("closing although %d deliveries are still being handled: they go back", busy)
                return
            self._signal.wait(version, min(left, LOOK))


def _in_use(holder: Holder | None, closer: Holder) -> bool:
    return holder is not None and holder != closer and holder.is_alive()
