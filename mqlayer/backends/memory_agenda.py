"""What the memory broker has to do later: which queue to look at when, and whose time to live ends when. Pure.

``next_look`` and ``next_expiry`` are read before each operation of the store, so they are plain attributes.
"""

import heapq
import itertools
import math

from mqlayer.backends.memory_queue import GONE, Entry, Queue

__all__ = ["Agenda"]

EXPIRING_MIN = 1024  #: entries with a time to live that are kept in view before those long gone are looked for


class Agenda:
    """Heaps whose outdated items are passed over when their time comes.

    Attributes:
        next_look: Monotonic seconds at which a queue is to be looked at.
        next_expiry: Epoch seconds at which a waiting message may expire.
    """

    __slots__ = ("_expiring", "_expiring_max", "_looks", "_number", "next_expiry", "next_look")

    def __init__(self) -> None:
        self.next_look = math.inf
        self.next_expiry = math.inf
        self._looks: list[tuple[float, int, Queue]] = []
        self._expiring: list[tuple[float, int, Entry, Queue]] = []
        self._expiring_max = EXPIRING_MIN
        self._number = itertools.count().__next__

    def look_at(self, queue: Queue, when: float) -> bool:
        """Look at *queue* at *when*, if that is earlier than planned. Whether it was."""
        if when >= queue.look_at:
            return False
        queue.look_at = when
        heapq.heappush(self._looks, (when, self._number(), queue))
        self.next_look = self._looks[0][0]
        return True

    def due_queue(self, now: float) -> Queue | None:
        """A queue to look at now; each is named once."""
        found = None
        while found is None and self._looks and self._looks[0][0] <= now:
            when, _, queue = heapq.heappop(self._looks)
            if when == queue.look_at:
                queue.look_at = math.inf
                found = queue
        self.next_look = self._looks[0][0] if self._looks else math.inf
        return found

    def watch(self, queue: Queue, entry: Entry) -> None:
        """Keep the entry's time to live in view, if it has one."""
        if entry.expires_at is None:
            return
        if len(self._expiring) >= self._expiring_max:  # most of them may have been settled
            self._expiring = [item for item in self._expiring if item[2].place != GONE]
            heapq.heapify(self._expiring)
            self._expiring_max = max(2 * len(self._expiring), EXPIRING_MIN)
        heapq.heappush(self._expiring, (entry.expires_at, self._number(), entry, queue))
        self.next_expiry = self._expiring[0][0]

    def expired(self, wall: float) -> tuple[Queue, Entry] | None:
        """A waiting entry whose time is over; each is named once."""
        found = None
        while found is None and self._expiring and self._expiring[0][0] <= wall:
            _, _, entry, queue = heapq.heappop(self._expiring)
            if entry.place != GONE:
                found = queue, entry
        self.next_expiry = self._expiring[0][0] if self._expiring else math.inf
        return found
