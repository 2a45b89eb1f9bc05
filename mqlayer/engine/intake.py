"""What a consumer has fetched and what its callers hold: the buffer, the window, the leases. No thread, no socket.

The line that owns the session puts deliveries in and carries out what ``steps`` asks for; callers take them out. All of
it under one lock, so that a caller's view and the owner's are the same.
"""

from collections import Counter, deque
from collections.abc import Sequence

from mqlayer.clock import Clock
from mqlayer.driver import Ack, Capabilities, Release, Verdict
from mqlayer.engine.held import Held, Holder, Holders
from mqlayer.engine.waiting import Signal
from mqlayer.errors import ClosedError, MQError, StaleDeliveryError
from mqlayer.policy import renew_after, window

__all__ = ["Intake"]

_NEVER = float("inf")
WINDOW_AGAIN = 1.0  #: seconds between two attempts to change a window
UNASKED_KEPT = 1.0  #: seconds for which what nobody waits for any more is kept for who asks next
RENEW_AGAIN = 0.2  #: seconds between two attempts to renew a lease that is about to end


class Intake:
    """The consumer's side of one line.

    Args:
        lease: Seconds asked of the broker; ``None``: the broker's default.
        prefetch: How many deliveries of each queue may be here, once the consumer has proved itself.
        hold_max: Leases are renewed until a delivery has been held for that many seconds; 0 never renews.
    """

    def __init__(
        self, capabilities: Capabilities, *, clock: Clock, prefetch: int, lease: float | None, hold_max: float
    ) -> None:
        self.signal = Signal(clock)
        self.lease = lease
        self.closed = False
        self.epoch = 0  #: grows with each connection that ends
        self.arrived_at = clock.monotonic()
        self._clock = clock
        self._prefetch = prefetch
        self._hold_max = hold_max
        self._timed = capabilities.timed_lease
        self._buffer: deque[Held] = deque()
        self._buffered: dict[str, int] = {}
        self.holders = Holders(self.signal, clock)
        self._taken: dict[str, int] = {}
        self._expired: list[Verdict] = []  # the broker is told at the owner's next turn
        self._suspects = 0  # taken and not settled
        self._asked = 0
        self._proven = False
        self._windows: dict[str, int] = {}
        self._steady: set[str] = set()  # queues whose window never shrinks
        self._leased: set[Held] = set()  # buffered or taken, where leases are timed
        self._renew_at = _NEVER  # no lease is due earlier
        self._error: MQError | None = None
        self._pause_until = 0.0

    def add_queue(self, queue: str, *, ordered: bool = False) -> None:
        """Consume from one queue more.

        An ordered queue of a broker that pushes: any change of the window can make another consumer the active one while
        deliveries are still here, and what goes back may go behind the others. So its window is what callers demand at
        the most, never less again, and what arrives stays until it is taken.
        """
        with self.signal.lock:
            if ordered and not self._timed:
                self._steady.add(queue)
            if queue not in self._windows:
                self._taken[queue] = self._buffered[queue] = self._windows[queue] = 0

    # --- the callers' side -------------------------------------------------------------------------------------------

    def take(self, limit: int, holder: Holder) -> list[Held]:
        """Up to *limit* deliveries that are here already, without those that have expired here.

        Raises:
            ClosedError: the consumer is closed. MQError: what ended the consuming, once.
        """
        taken: list[Held] = []
        with self.signal.lock:
            if self.closed:
                raise ClosedError("the consumer is closed")
            buffer = self._buffer
            now = self._clock.monotonic() if self._timed else 0.0
            while buffer and len(taken) < limit:
                held = buffer.popleft()
                self._buffered[held.incoming.queue] -= 1
                if held.stale_at <= now:
                    self._leased.discard(held)  # it lay too long: the broker has it back
                    continue
                expires_at = held.incoming.message.expires_at
                if expires_at is not None and expires_at <= self._clock.time():
                    self._leased.discard(held)
                    self._expired.append(Ack(held.incoming))
                    continue
                held.taken = True
                self.holders.add(held, holder)
                self._taken[held.incoming.queue] += 1
                self._suspects += held.suspect
                taken.append(held)
            if not taken and self._error is not None:
                error, self._error = self._error, None
                raise error
        return taken

    def ask(self, change: int) -> None:
        """A caller waits for that many more deliveries; negative: it waits no longer."""
        with self.signal.lock:
            self._asked += change

    def settled(self, held: Held) -> None:
        """A caller is done with a delivery; the broker is told next. Opens the window if it was no suspect."""
        with self.signal.lock:
            self._let_go(held)
            if not held.suspect:
                self._proven = True

    def check(self, held: Held) -> None:
        """Refuse what is no longer ours to settle.

        Raises:
            StaleDeliveryError
        """
        of = held.incoming
        with self.signal.lock:
            if held.epoch != self.epoch:
                text = f"message {of.message.id} of {of.queue!r} came on a connection that has ended; the broker has it back"
            elif held.stale_at <= self._clock.monotonic():
                text = f"the lease of message {of.message.id} of {of.queue!r} has ended; it is handed over again"
            else:
                return
            self._let_go(held)
        raise StaleDeliveryError(text)

    def _let_go(self, held: Held) -> None:
        if held.taken and held.epoch == self.epoch:
            self._taken[held.incoming.queue] -= 1
            self._suspects -= held.suspect
        held.taken = False
        self.holders.remove(held)
        self._leased.discard(held)

    # --- the owner's side --------------------------------------------------------------------------------------------

    def add(self, got: Sequence[Held]) -> None:
        """Deliveries have arrived."""
        with self.signal.lock:
            self.arrived_at = self._clock.monotonic()
            self._buffer.extend(got)
            for held in got:
                self._buffered[held.incoming.queue] += 1
            if self._timed:
                self._leased.update(got)
                self._renew_at = min(self._renew_at, min(held.renew_at for held in got))
            if any(held.suspect for held in got):
                self._proven = False
        self.signal.notify()

    def fail(self, error: MQError) -> None:
        """Consuming ended for a reason that only the caller can mend; told to the next one who takes."""
        with self.signal.lock:
            self._error = error
            self._windows = dict.fromkeys(self._windows, 0)
        self.signal.notify()

    @property
    def queues(self) -> list[str]:
        return list(self._windows)

    @property
    def waiting(self) -> bool:
        """Somebody waits for a delivery that is not here."""
        return self._asked > len(self._buffer)

    def resubscribe(self, queue: str) -> None:
        """The subscription of a queue is to be made anew at the next turn."""
        with self.signal.lock:
            self._windows[queue] = 0

    def unset(self, queue: str) -> None:
        """The window of a queue could not be changed now; it is tried again after a pause."""
        with self.signal.lock:
            self._windows[queue] = -1
            self._pause_until = self._clock.monotonic() + WINDOW_AGAIN

    def connection_lost(self) -> None:
        """What is buffered and what callers hold is the broker's again."""
        with self.signal.lock:
            self.epoch += 1
            self._buffer.clear()
            self._expired.clear()
            self._leased.clear()
            self._taken = dict.fromkeys(self._taken, 0)
            self._buffered = dict.fromkeys(self._buffered, 0)
            self._suspects = 0
            self.holders.clear()

    def windows(self) -> dict[str, int]:
        """Queues whose window has to change → the new one; 0 ends the subscription."""
        with self.signal.lock:
            changes = self._changes()
            self._windows.update(changes)
            return changes

    def _changes(self) -> dict[str, int]:
        if self._error is not None or self._clock.monotonic() < self._pause_until:
            return {}  # nothing more is tried until a caller has heard of it, or some time has passed
        kept = self._kept() if self._alone else None
        buffered = self._buffered if kept is None else Counter(held.incoming.queue for held in kept)
        asked = max(self._asked - (len(self._buffer) if kept is None else len(kept)), 0)
        changes: dict[str, int] = {}
        for queue, size in self._windows.items():
            target = 0
            if not self.closed:
                here = self._taken[queue] + buffered[queue]
                if queue in self._steady:
                    target = max(size, here + asked, 0)
                else:
                    target = window(self._prefetch, here, asked, proven=self._proven, suspect_held=self._suspects > 0)
            if target != size:
                changes[queue] = target
        return changes

    @property
    def _alone(self) -> bool:
        """Nothing may be here but what callers hold and ask for."""
        return not self._proven or self._suspects > 0

    def _overfull(self) -> bool:
        """Something must leave the buffer."""
        if self._may_wait():
            return False
        keep = 0 if self.closed else self._asked if self._alone else len(self._buffer)
        return len(self._buffer) > keep and any(held.incoming.queue not in self._steady for held in self._buffer)

    def _may_wait(self) -> bool:
        """While callers hold nothing, what has just come may wait for the next one who asks, if it is no suspect: it would
        go to the end of its queue, where going back is done by a copy."""
        return (
            not self.closed
            and self._clock.monotonic() < self.arrived_at + UNASKED_KEPT
            and not any(self._taken.values())
            and not any(held.suspect for held in self._buffer)
        )

    def _kept(self) -> list[Held]:
        """What may stay in the buffer: where it is little, a suspect that somebody waits for goes first."""
        if not self._overfull():
            return list(self._buffer)
        steady = [held for held in self._buffer if held.incoming.queue in self._steady]
        others = [held for held in self._buffer if held.incoming.queue not in self._steady]
        keep = 0 if self.closed else max(self._asked - len(steady), 0)
        return steady + sorted(others, key=lambda held: not held.suspect)[:keep]

    def surplus(self) -> list[Verdict]:
        """Buffered deliveries that have expired, must not stay beside a suspect, or will be taken by nobody any more."""
        with self.signal.lock:
            expired, self._expired = self._expired, []
            if not self._alone and not self.closed:
                return expired
            kept = self._kept()
            if len(kept) == len(self._buffer):
                return expired
            gone = [held for held in self._buffer if held not in kept]
            self._buffer = deque(kept)
            for held in gone:
                self._buffered[held.incoming.queue] -= 1
            self._leased.difference_update(gone)
        return expired + [Release(held.incoming) for held in gone]

    def room(self) -> int:
        """How many deliveries to ask for: what the windows let in together.

        A broker that leases is asked each time, so it is asked for many at once, when half of what was fetched is taken.
        """
        if self._timed and self._proven and not self._suspects and 2 * len(self._buffer) > self._prefetch:
            return 0
        return sum(size for size in self._windows.values() if size > 0)

    def due(self, now: float) -> list[Held]:
        """Deliveries whose lease is to be renewed now."""
        if now < self._renew_at:
            return []
        with self.signal.lock:
            due: list[Held] = []
            for held in self._leased:
                if held.renew_at <= now:
                    if now - held.given_at < self._hold_max:
                        due.append(held)
                    held.renew_at = _NEVER  # until the renewal is confirmed
            self._renew_at = min((held.renew_at for held in self._leased), default=_NEVER)
        return due

    def renewed(self, held: Held, seconds: float) -> None:
        """The broker has extended a lease to *seconds* from now."""
        with self.signal.lock:
            held.lease_from(self._clock.monotonic(), seconds)
            if not self._hold_max:
                held.renew_at = _NEVER
            self._renew_at = min(self._renew_at, held.renew_at)

    def renew_soon(self, held: Held) -> None:
        """A renewal failed without an answer: tried again while the lease lasts."""
        with self.signal.lock:
            now = self._clock.monotonic()
            held.renew_at = now + renew_after(max(held.stale_at - now, RENEW_AGAIN))
            self._renew_at = min(self._renew_at, held.renew_at)

    def gone(self, held: Held) -> None:
        """The broker says that a lease is over."""
        with self.signal.lock:
            held.stale_at = self._clock.monotonic()
            self._leased.discard(held)
            if not held.taken and held in self._buffer:
                self._buffer.remove(held)
                self._buffered[held.incoming.queue] -= 1

    @property
    def restless(self) -> bool:
        """The owner has something to change before it may sleep: a window, or a surplus."""
        with self.signal.lock:
            return bool(self._expired) or self._overfull() or bool(self._changes())

    @property
    def renew_at(self) -> float:
        """Monotonic seconds before which no lease is due; infinite if there is none."""
        return self._renew_at

    @property
    def proven(self) -> bool:
        """Deliveries may run side by side: the last ones that were settled were no suspects, and none is held."""
        return self._proven and not self._suspects

    @property
    def load(self) -> tuple[int, int]:
        """Deliveries buffered, and held by callers."""
        with self.signal.lock:
            return len(self._buffer), sum(self._taken.values())

    def close(self) -> None:
        with self.signal.lock:
            self.closed = True
        self.signal.notify()
