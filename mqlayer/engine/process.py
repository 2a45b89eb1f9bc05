"""Which process this is. Asked for every message, so it is a number that a fork changes and not a system call."""

import os

__all__ = ["PROCESS"]


class _Process:
    """The one piece of state that belongs to the process itself and to nobody in it."""

    __slots__ = ("generation",)

    def __init__(self) -> None:
        self.generation = 0  #: grows by one in each forked child

    def forked(self) -> None:
        self.generation += 1


PROCESS = _Process()
os.register_at_fork(after_in_child=PROCESS.forked)
