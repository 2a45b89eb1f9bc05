"""Where time comes from. Nothing else in mqlayer reads a clock.

``SystemClock`` is the real one. ``ManualClock`` stands still until a test moves it, and wakes whoever waits.
"""

import threading
import time as _time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """Two readings and one way to wait. Seconds, as float."""

    def time(self) -> float:
        """The time of day, in seconds since the epoch. It may be set back; use it only for what travels."""
        ...

    def monotonic(self) -> float:
        """Seconds since some point; never goes back. Deadlines and leases are reckoned with it."""
        ...

    def wait(self, condition: threading.Condition, timeout: float | None) -> bool:
        """Wait on the held *condition* until notified (True) or for *timeout* seconds of this clock (False).

        May return True without cause; callers look again. ``None`` waits for a notification only.
        """
        ...

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have *callback* called whenever the clock jumps; returns the function that ends it. A real clock never jumps."""
        ...


class SystemClock:
    """The machine's clock."""

    time = staticmethod(_time.time)
    monotonic = staticmethod(_time.monotonic)

    def wait(self, condition: threading.Condition, timeout: float | None) -> bool:
        return condition.wait(None if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX))

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        return _nothing


class ManualClock:
    """A clock that moves only by :meth:`advance`. For tests.

    Args:
        start: What ``time()`` returns at first, in seconds since the epoch.
        patience: A wait that nobody ends and during which nobody advances the clock fails after that many *real*
            seconds, with ``TimeoutError``: a test that forgot to advance says so instead of hanging.
    """

    def __init__(self, start: float = 1_800_000_000.0, *, patience: float = 10.0) -> None:
        self._start = start
        self._elapsed = 0.0
        self._patience = patience
        self._lock = threading.Lock()
        self._waiting: list[threading.Condition] = []
        self._watchers: list[Callable[[], None]] = []

    def time(self) -> float:
        return self._start + self._elapsed

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Move the clock on and wake everybody who waits on it.

        Raises:
            ValueError: *seconds* is negative; a monotonic clock does not go back.
        """
        if seconds < 0:
            raise ValueError(f"a clock cannot be advanced by {seconds} s")
        with self._lock:
            self._elapsed += seconds
            waiting, watchers = list(self._waiting), list(self._watchers)
        for condition in waiting:
            with condition:
                condition.notify_all()
        for callback in watchers:
            callback()

    def wait(self, condition: threading.Condition, timeout: float | None) -> bool:
        if timeout is not None and timeout <= 0:
            return False
        before = self._elapsed
        with self._lock:
            self._waiting.append(condition)
        try:
            if self._elapsed == before and not condition.wait(self._patience):
                raise TimeoutError(
                    f"waited {self._patience} real seconds for a manual clock that nobody advanced (to wait: {timeout} s)"
                )
        finally:
            with self._lock:
                self._waiting.remove(condition)
        return timeout is None or self._elapsed - before < timeout

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        with self._lock:
            self._watchers.append(callback)

        def end() -> None:
            with self._lock:
                self._watchers.remove(callback)

        return end


def _nothing() -> None:
    return None
