"""An actor as a process of its own: ``python -m mqlayer.testing.actor '<order as JSON>'``.

What it does is its role's (:mod:`mqlayer.testing.roles`); what it saw is in its ledger, which survives it. On standard
output it says how far it is, a JSON object a line with ``actor`` and ``status``: ``ready``, whatever else the role says,
then ``finished`` or ``failed``. On standard input it takes ``stop``; the end of standard input means the same, so that it
does not outlive whoever started it. The exit status is 0, or 1 for a defect of what is tested, or 70 for one of the test.

With the role ``host`` it is a process that several actors share as threads, for a store that lives in its memory:
``start <order>``, ``stop <name>`` and ``abandon <name>`` are then its orders.
"""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from mqlayer.errors import MQError
from mqlayer.testing.harness import find_harness
from mqlayer.testing.ledger import SUFFIX, Ledger
from mqlayer.testing.roles import Abandoned, Work, make_role

__all__ = ["EXIT_BROKEN", "EXIT_DEFECT", "EXIT_STUCK", "HOST", "Order", "abandon", "main", "start_thread"]

EXIT_DEFECT, EXIT_BROKEN, EXIT_STUCK = 1, 70, 71
HOST = "host"
STOP_PATIENCE = 30.0  #: seconds for a role to end after its stop; then the process goes without it

Say = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an actor is started with.

    Attributes:
        harness: As ``module:Class``.
        ledgers: The folder in which it keeps its ledger.
        job: The fields of its role.
    """

    harness: str
    name: str
    role: str
    url: str
    ledgers: str
    job: Mapping[str, Any] = field(default_factory=dict)
    multiplier: float = 1.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Order":
        return cls(**json.loads(text))


def _begin(order: Order, say: Say, crash: Callable[[Work], NoReturn]) -> Work:
    """What the actor works with, its ledger open."""
    ledgers = Path(order.ledgers)
    ledger = Ledger(ledgers / (order.name + SUFFIX), order.name)

    def die() -> NoReturn:
        crash(work)

    work = Work(order.name, order.url, ledger, ledgers=ledgers, say=say, crash=die, multiplier=order.multiplier)
    return work


def _perform(order: Order, work: Work) -> int:
    """Play the role to its end, and say how it ended. Returns the exit status."""
    try:
        try:
            result = make_role(order.role, order.job).run(work)
        finally:
            work.close()
    except Abandoned:
        work.say("abandoned")
        return 0
    except Exception as error:
        return _failed(work.say, error)
    work.say("finished", **result)
    work.ledger.close()
    return 0


def _failed(say: Callable[..., None], error: BaseException) -> int:
    defect = isinstance(error, (MQError, AssertionError))
    text = "".join(traceback.format_exception(error))
    say("failed", error=type(error).__name__, text=str(error), defect=defect, traceback=text)
    return EXIT_DEFECT if defect else EXIT_BROKEN


def main(arguments: list[str]) -> int:
    """One actor, or a host of several. Returns the exit status."""
    order = Order.from_json(arguments[0])
    find_harness(order.harness).register()
    voice = _Voice()
    threading.excepthook = lambda caught: voice.thread_failed(order.name, caught.exc_value)
    if order.role == HOST:
        return _Host(voice).serve(order.name)
    work = _begin(order, voice.of(order.name), _kill_myself)
    over = threading.Event()
    threading.Thread(target=_obey_stop, args=(work, over), name="orders", daemon=True).start()
    try:
        return max(_perform(order, work), voice.status)
    finally:
        over.set()


def _obey_stop(work: Work, over: threading.Event) -> None:
    sys.stdin.readline()  # "stop", or the end: nobody is there any more
    work.stop()
    if not over.wait(STOP_PATIENCE * work.multiplier):
        traceback.print_stack(sys._current_frames()[threading.main_thread().ident or 0])
        os._exit(EXIT_STUCK)


def _kill_myself(work: Work) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemError("a process survived its SIGKILL")


class _Voice:
    """Standard output, one JSON line at a time. What anything else prints goes to standard error."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._output = os.dup(1)
        os.dup2(2, 1)
        self.status = 0

    def of(self, actor: str) -> Say:
        def say(status: str, facts: Mapping[str, Any]) -> None:
            line = json.dumps({"actor": actor, "status": status, **facts}, default=repr)
            with self._lock:
                os.write(self._output, line.encode() + b"\n")

        return say

    def thread_failed(self, actor: str, error: BaseException | None) -> None:
        """An error that ended a thread nobody waits for."""
        if error is not None:
            say = self.of(actor)
            status = _failed(lambda status, **facts: say(status, facts), error)
            self.status = max(self.status, status)


class _Host:
    """Actors as threads of this process."""

    def __init__(self, voice: _Voice) -> None:
        self._voice = voice
        self._works: dict[str, Work] = {}
        self._threads: dict[str, threading.Thread] = {}

    def serve(self, name: str) -> int:
        """Take orders until ``stop`` or the end of standard input, then end everybody."""
        self._voice.of(name)("ready", {})
        for line in sys.stdin:
            verb, _, rest = line.strip().partition(" ")
            if verb == "start":
                self._start(Order.from_json(rest))
            elif verb == "stop" and rest in self._works:
                self._works[rest].stop()
            elif verb == "abandon" and rest in self._works:
                abandon(self._works[rest], self._threads[rest])
            elif verb == "stop" and not rest:
                break
        for work in self._works.values():
            work.stop()
        for thread in self._threads.values():
            thread.join(STOP_PATIENCE)
        self._voice.of(name)("finished", {})
        return self._voice.status

    def _start(self, order: Order) -> None:
        self._works[order.name], self._threads[order.name] = start_thread(order, self._voice.of(order.name))


def start_thread(order: Order, say: Say) -> tuple[Work, threading.Thread]:
    """An actor as a thread of this process."""
    work = _begin(order, say, _abandon_myself)
    thread = threading.Thread(target=_perform, args=(order, work), name=order.name, daemon=True)
    thread.start()
    return work, thread


def _abandon_myself(work: Work) -> NoReturn:
    work.abandon()
    raise Abandoned


def abandon(work: Work, thread: threading.Thread) -> None:
    """What the death of a process is to a thread: it does nothing more, and what it had open is dropped as it is."""
    work.abandon()
    thread.join(STOP_PATIENCE * work.multiplier)
    if not thread.is_alive():
        work.bury()
    work.say("dead", hung=thread.is_alive())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
