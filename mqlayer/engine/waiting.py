"""How anybody here waits: a signal with a version, so that no notification between a look and a wait is lost.

Look at ``version``, look at what you wait for, then wait for the version to change. Nobody calls into a session or a
store while holding a signal's lock, and so a signal may be notified from anywhere.
"""

import threading
from collections.abc import Callable

from mqlayer.clock import Clock

__all__ = ["Signal"]


class Signal:
    """Wakes whoever waits: threads on a condition, event loops by a callback that is called once."""

    __slots__ = ("_callbacks", "_clock", "_condition", "due", "lock", "version")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Entered itself, and not by its condition, which is Python: there KeyboardInterrupt could come when it has the lock
        # and nobody knows yet, and all others would wait for ever.
        self.lock = threading.RLock()
        self._condition = threading.Condition(self.lock)
        self.version = 0
        self.due = float("inf")  #: monotonic seconds at which a look is worth it even without a notification
        self._callbacks: list[Callable[[], None]] = []

    def wait(self, version: int, timeout: float | None) -> None:
        """Until notified since *version* was read, until something is due, or for *timeout* seconds."""
        with self.lock:
            if self.version == version:
                self._clock.wait(self._condition, self.until_due(timeout))

    def until_due(self, timeout: float | None) -> float | None:
        """*timeout*, or less if something is due earlier."""
        if self.due == float("inf"):
            return timeout
        left = max(self.due - self._clock.monotonic(), 0.0)
        return left if timeout is None else min(left, timeout)

    def when(self, version: int, callback: Callable[[], None]) -> bool:
        """Have *callback* called once, from any thread, at the next notification; False: there was one already."""
        with self.lock:
            if self.version != version:
                return False
            self._callbacks.append(callback)
            return True

    def forget(self, callback: Callable[[], None]) -> None:
        """Whoever waited waits no longer."""
        with self.lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

    def look_again(self, when: float) -> None:
        """Something may be there at monotonic time *when*, or now."""
        with self.lock:
            if when < self.due or self.due <= self._clock.monotonic():  # a time that has passed keeps no later one out
                self.due = when
        self.notify()

    def notify(self) -> None:
        with self.lock:
            self.version += 1
            self._condition.notify_all()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
