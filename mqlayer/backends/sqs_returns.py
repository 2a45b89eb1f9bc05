"""What a connection gave back by visibility. SQS counts each return as a delivery; who made it knows what it was.

So a message that a handler failed, or that never ran, is no suspect when it comes to this connection again. To others it
counts as SQS says: never too low, and too high by what never ran.
"""

import threading
from collections import OrderedDict
from typing import NamedTuple

__all__ = ["Return", "Returns"]

RETURNS_MAX = 10_000  #: messages that are remembered; the oldest ones are forgotten


class Return(NamedTuple):
    """How often a message was given back from here: because a handler failed, and because it never ran."""

    failures: int = 0
    releases: int = 0


class Returns:
    """One connection's. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], Return] = OrderedDict()

    def note(self, url: str, message_id: str, *, failed: bool) -> None:
        """It was given back once more."""
        key = url, message_id
        with self._lock:
            failures, releases = self._known.pop(key, Return())
            self._known[key] = Return(failures + failed, releases + (not failed))
            if len(self._known) > RETURNS_MAX:
                self._known.popitem(last=False)

    def of(self, url: str, message_id: str) -> Return:
        """What is known of a message that came."""
        with self._lock:
            return self._known.get((url, message_id)) or Return()

    def forget(self, url: str, message_id: str) -> None:
        """It is settled for good."""
        with self._lock:
            self._known.pop((url, message_id), None)
