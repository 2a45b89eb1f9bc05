"""What an actor has to work with, whatever its role, and whether it is a process or a thread."""

import gc
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

from mqlayer.api import Connection, connect
from mqlayer.testing.ledger import Fault, Ledger, Phase
from mqlayer.testing.urls import with_options

__all__ = ["Abandoned", "Result", "Role", "Work"]

Result = dict[str, Any]


class Abandoned(BaseException):
    """This actor is dead: nothing more is done, nothing is closed."""


class Work:
    """What an actor has to work with.

    Args:
        say: Tells the parent how far it has got.
        crash: Ends this actor as SIGKILL does.
    """

    def __init__(
        self,
        name: str,
        url: str,
        ledger: Ledger,
        *,
        ledgers: Path,
        say: Callable[[str, Mapping[str, Any]], None],
        crash: Callable[[], NoReturn],
        multiplier: float = 1.0,
    ) -> None:
        self.name = name
        self.url = url
        self.ledger = ledger
        self.ledgers = ledgers
        self.multiplier = multiplier
        self.stopping = threading.Event()
        self.abandoned = False
        self._say = say
        self._crash = crash
        self._lock = threading.Lock()
        self._on_stop: list[Callable[[], None]] = []
        self._connections: list[Connection] = []

    def connect(self, **query: object) -> Connection:
        """A connection of this actor's, closed when its role ends."""
        self.check()
        connection = connect(with_options(self.url, query))
        self._connections.append(connection)
        return connection

    def say(self, status: str, **facts: Any) -> None:
        self._say(status, facts)

    def stop(self) -> None:
        """From any thread: end the role in good order."""
        with self._lock:
            self.stopping.set()
            callbacks, self._on_stop = self._on_stop, []
        for callback in callbacks:
            callback()

    def abandon(self) -> None:
        """From any thread: be as dead as a thread can be."""
        self.abandoned = True
        self.stop()

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Have *callback* called at the stop; at once, if that was before."""
        with self._lock:
            if not self.stopping.is_set():
                self._on_stop.append(callback)
                return
        callback()

    def check(self) -> None:
        """Between any two steps of a role. Raises: Abandoned."""
        if self.abandoned:
            raise Abandoned

    def pause(self, seconds: float | None) -> None:
        """Wait; the stop ends it. ``None``: until then."""
        self.stopping.wait(seconds)
        self.check()

    def crash(self) -> NoReturn:
        """Die without a word, but for the ledger's."""
        self.ledger.fault(Fault.ACTOR_KILL, Phase.BEGIN, target=self.name)
        self._crash()

    def close(self) -> None:
        """Close in good order, whatever happened; unless abandoned."""
        if not self.abandoned:
            for connection in self._connections:
                connection.close(timeout=10.0 * self.multiplier)

    def bury(self) -> None:
        """Once an abandoned actor's thread has ended: drop what it had, as the end of a process does, closing nothing."""
        while self._connections:
            self._connections.pop().core.abandon()  # a forgotten one is closed in good order, which a crash does not do
        gc.collect()


class Role(Protocol):
    """A frozen dataclass of its job's fields. It knows the public API and its own ledger."""

    def run(self, work: Work) -> Result: ...
