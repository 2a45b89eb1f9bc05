"""Which process this is, and a moment for forks: between two turns of every line's owner.

A fork in the middle of a turn would give the child a client library whose locks somebody holds who does not exist there.
The generation is asked for with every message, so it is a number that a fork changes and not a system call.
"""

import os
import threading
import weakref
from typing import Protocol

__all__ = ["PROCESS"]

FORK_PATIENCE = 1.0  #: seconds for which a fork waits for an owner in the middle of a turn; then it takes its chance


class _Turning(Protocol):
    """A line with an owner."""

    turning: threading.Lock  # held during each turn

    def wake(self) -> None: ...


class _Process:
    """The one piece of state that belongs to the process itself and to nobody in it."""

    __slots__ = ("_forking", "_held", "_lines", "_may_turn", "generation")

    def __init__(self) -> None:
        self.generation = 0  #: grows by one in each forked child
        self._lines: weakref.WeakSet[_Turning] = weakref.WeakSet()
        self._forking = threading.Lock()  # of two forks at once, one would forget what the other has to let go
        self._held: list[threading.Lock] = []
        self._may_turn = threading.Event()
        self._may_turn.set()

    def add(self, line: _Turning) -> None:
        """Let forks wait for this line's owner."""
        self._lines.add(line)

    def let_forks_pass(self) -> None:
        """Between two turns: wait while somebody forks."""
        if not self._may_turn.is_set():
            self._may_turn.wait(FORK_PATIENCE)

    def before_fork(self) -> None:
        self._forking.acquire()
        self._may_turn.clear()
        lines = list(self._lines)
        for line in lines:
            line.wake()
        self._held = [line.turning for line in lines if line.turning.acquire(timeout=FORK_PATIENCE / len(lines))]

    def after_fork_in_parent(self) -> None:
        held, self._held = self._held, []
        for turning in held:
            turning.release()
        self._may_turn.set()
        self._forking.release()

    def after_fork_in_child(self) -> None:
        self.generation += 1
        self._lines = weakref.WeakSet()  # the parent's owners do not exist here
        self._forking = threading.Lock()
        self._held = []
        self._may_turn = threading.Event()
        self._may_turn.set()


PROCESS = _Process()
os.register_at_fork(
    before=PROCESS.before_fork,
    after_in_parent=PROCESS.after_fork_in_parent,
    after_in_child=PROCESS.after_fork_in_child,
)
