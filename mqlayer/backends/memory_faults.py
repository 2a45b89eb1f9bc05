"""Faults that a test can order from the memory broker. Thread-safe; each is used up after the times it was ordered for."""

import threading
from collections.abc import Callable
from typing import Literal, TypeVar

from mqlayer.errors import ArgumentError

__all__ = ["Faults", "Loss"]

Loss = Literal["send", "receive", "settle"]
_Item = TypeVar("_Item")


class Faults:
    """What is to go wrong next.

    ``armed`` is whether anything is; the broker reads it before each operation, without the lock.
    """

    def __init__(self) -> None:
        self.armed = False
        self._lock = threading.Lock()
        self._refusals: list[str | None] = []
        self._losses: list[tuple[Loss, bool]] = []
        self._delays: list[float] = []
        self._duplicates: list[None] = []

    def refuse(self, times: int = 1, queue: str | None = None) -> None:
        """The next messages sent (to *queue*, or to any) fail with ``RefusedError``, each by itself."""
        self._order(self._refusals, queue, times)

    def lose_connection(self, times: int = 1, on: Loss = "send", stored: bool = False) -> None:
        """The connection ends in the next send, receive or settle, and what it holds goes back with its count kept.

        *stored* says whether the broker had done its part before. Whoever sent cannot tell: each message is an
        ``OutcomeUnknownError`` either way.
        """
        if on not in ("send", "receive", "settle"):
            raise ArgumentError(f"a connection is lost on 'send', 'receive' or 'settle', not {on!r}")
        self._order(self._losses, (on, stored), times)

    def delay(self, seconds: float, times: int = 1) -> None:
        """The next messages sent can be received only *seconds* later."""
        if not seconds >= 0:
            raise ArgumentError(f"a delay is a number of seconds from 0, not {seconds!r}")
        self._order(self._delays, seconds, times)

    def duplicate(self, times: int = 1) -> None:
        """The next messages delivered are delivered twice."""
        self._order(self._duplicates, None, times)

    def clear(self) -> None:
        """Nothing more goes wrong."""
        with self._lock:
            for orders in (self._refusals, self._losses, self._delays, self._duplicates):
                orders.clear()
            self.armed = False

    def take_refusal(self, queue: str) -> bool:
        return self._take(self._refusals, lambda of: of is None or of == queue) is not None

    def take_loss(self, on: Loss) -> bool | None:
        """``None``: the connection stays. Else whether the broker does its part first."""
        taken = self._take(self._losses, lambda loss: loss[0] == on)
        return None if taken is None else taken[0][1]

    def take_delay(self) -> float:
        taken = self._take(self._delays, lambda _: True)
        return 0.0 if taken is None else taken[0]

    def take_duplicate(self) -> bool:
        return self._take(self._duplicates, lambda _: True) is not None

    def _order(self, orders: list[_Item], item: _Item, times: int) -> None:
        if times < 1:
            raise ArgumentError(f"a fault is ordered for 1 time or more, not {times!r}")
        with self._lock:
            orders.extend([item] * times)
            self.armed = True

    def _take(self, orders: list[_Item], wanted: Callable[[_Item], bool]) -> tuple[_Item] | None:
        """Use up the first order that is *wanted*; in a tuple, since an order may be ``None``."""
        with self._lock:
            for index, item in enumerate(orders):
                if wanted(item):
                    del orders[index]
                    self.armed = bool(self._refusals or self._losses or self._delays or self._duplicates)
                    return (item,)
        return None
