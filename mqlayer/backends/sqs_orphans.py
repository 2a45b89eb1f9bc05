"""Polls that outlive their subscription, of all sessions of a connection: who takes what they bring, and who waits for them."""

import threading
from typing import Generic, TypeVar

from mqlayer.clock import Clock

__all__ = ["Orphans"]

KEEP = 1.0  #: seconds in which what came too late waits for another subscription of its queue
CLOSE_WAIT = 1.2  #: seconds that the end of a connection waits for polls that are to be back by then
T = TypeVar("T")


class Orphans(Generic[T]):
    """One connection's. A *T* takes deliveries of the queues that it has joined."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._takers: dict[str, list[T]] = {}
        self._out: dict[object, float] = {}  # polls that are out → when they are to be back
        self._closed = False

    def join(self, url: str, taker: T) -> None:
        """A queue is subscribed to."""
        with self._changed:
            self._takers.setdefault(url, []).append(taker)
            self._changed.notify_all()

    def leave(self, url: str, taker: T) -> None:
        """… and no longer."""
        with self._changed:
            takers = self._takers.get(url, [])
            if taker in takers:
                takers.remove(taker)
            if not takers:
                self._takers.pop(url, None)

    def taker(self, url: str) -> T | None:
        """Whoever is subscribed to that queue, now or within a moment; ``None``: nobody."""
        end = self._clock.monotonic() + KEEP
        with self._changed:
            while not self._closed:
                takers = self._takers.get(url)
                if takers:
                    return takers[0]
                left = end - self._clock.monotonic()
                if left <= 0:
                    break
                self._clock.wait(self._changed, left)
            return None

    def began(self, poll: object, back_at: float) -> None:
        """A poll has left, which is to be back at that monotonic time."""
        with self._changed:
            self._out[poll] = back_at

    def ended(self, poll: object) -> None:
        """A poll is back, and what it brought is somewhere."""
        with self._changed:
            self._out.pop(poll, None)
            self._changed.notify_all()

    def close(self) -> None:
        """Wait for polls that are soon to be back: else the end of the process would leave their messages invisible for
        a whole lease. Those that wait longer give back what they bring if the process lives on."""
        end = self._clock.monotonic() + CLOSE_WAIT
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while any(back_at < end for back_at in self._out.values()):
                left = end - self._clock.monotonic()
                if left <= 0:
                    break
                self._clock.wait(self._changed, left)
