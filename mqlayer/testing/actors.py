"""Actors as a criterion sees them: started, listened to, stopped, killed. Where they run makes no difference to it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from mqlayer.testing.actor import HOST, Order, abandon, start_thread
from mqlayer.testing.harness import HarnessError
from mqlayer.testing.ledger import Fault, Ledger, Phase
from mqlayer.testing.outcome import PromiseBroken

__all__ = ["Actor", "ActorProcess", "HostedActor", "ProcessActor", "ThreadActor", "host_process"]

READY, LAST = "ready", ("finished", "failed", "abandoned")
PATIENCE = 60.0
DEATH_PATIENCE = 15.0

Facts = Mapping[str, Any]


class Statuses:
    """What one actor has said so far."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._said: list[tuple[str, Facts]] = []
        self._silent = False

    def add(self, status: str, facts: Facts) -> None:
        with self._changed:
            self._said.append((status, facts))
            self._changed.notify_all()

    def silence(self) -> None:
        """It will say nothing more."""
        with self._changed:
            self._silent = True
            self._changed.notify_all()

    def find(self, wanted: Iterable[str]) -> tuple[str, Facts] | None:
        return next(((status, facts) for status, facts in self._said if status in wanted), None)

    def await_one(self, wanted: Iterable[str], timeout: float) -> tuple[str, Facts] | None:
        """The first status of *wanted*; ``None``: there was none in time, and none will come if it is silent."""
        with self._changed:
            self._changed.wait_for(lambda: self.find(wanted) is not None or self._silent, timeout)
            return self.find(wanted)


class Actor:
    """One actor. What it saw is in its ledger; what it says of itself, here.

    An actor that failed raises wherever it is asked for something, and at the end of the criterion if it never was.
    """

    def __init__(self, order: Order, controller: Ledger) -> None:
        self.name = order.name
        self.role = order.role
        self.statuses = Statuses()
        self._controller = controller
        self._multiplier = order.multiplier
        self._dead = False  # as it should be
        self._looked_at = False

    # ---- for criteria ----

    @property
    def pid(self) -> int | None:
        """``None``: it is a thread."""
        return None

    @property
    def alive(self) -> bool:
        return not self._dead and self.statuses.find(LAST) is None

    def ready(self, timeout: float = PATIENCE) -> Facts:
        """Wait until it has its connection, its consumer, its producer, and begins."""
        return self.wait_for(READY, timeout)

    def wait_for(self, status: str, timeout: float = PATIENCE) -> Facts:
        """Wait until it has said *status*, and return what it said with it."""
        found = self.statuses.await_one((status, *LAST), timeout * self._multiplier)
        if found is None:
            self._no_answer(f"is not {status} after {timeout:g} s")
        if found[0] != status:
            self._check(found)
            self._no_answer(f"was {found[0]} before it was {status}")
        return found[1]

    def finish(self, timeout: float = PATIENCE) -> Facts:
        """Wait until it has done its job, and return what it says of it."""
        found = self.statuses.await_one(LAST, timeout * self._multiplier)
        if found is None:
            self._no_answer(f"has not finished after {timeout:g} s")
        self._check(found)
        return found[1]

    def stop(self, timeout: float = PATIENCE) -> Facts:
        """Ask it to end in good order, wait until it has, and return what it says of its job."""
        if self.alive:
            self._ask_to_stop()
        return self.finish(timeout)

    def kill(self, *, during: str | None = None) -> None:
        """End it as SIGKILL does, and write that down."""
        self._controller.fault(Fault.ACTOR_KILL, Phase.BEGIN, target=self.name, pid=self.pid, during=during)
        self._write_end(self._kill())

    def died(self, timeout: float = PATIENCE) -> None:
        """Wait until it has crashed by itself, as its job said; its ledger has the beginning, this writes the end.

        Raises:
            HarnessError: it did not.
        """
        self._write_end(self._await_death(timeout * self._multiplier))

    # ---- for the site ----

    def dismiss(self) -> None:
        """End it in any way, and write nothing; then raise what it had to say and nobody has heard."""
        if self.alive:
            self._kill()
        self._dead = True
        found = self.statuses.find(("failed",))
        if found is not None and not self._looked_at:
            self._check(found)

    def mark_dead(self) -> None:
        """It died with the process that it was in."""
        self._dead = True

    def _check(self, found: tuple[str, Facts]) -> None:
        status, facts = found
        self._looked_at = True
        if status != "failed":
            return
        text = f"{self.name}: {facts['error']}: {facts['text']}"
        if facts["defect"]:
            raise PromiseBroken(text)
        raise HarnessError(f"{text}\n{facts['traceback']}")

    def _no_answer(self, text: str) -> NoReturn:
        raise HarnessError(f"actor {self.name} {text}{self._last_words()}")

    def _last_words(self) -> str:
        return ""

    def _write_end(self, facts: Mapping[str, Any]) -> None:
        self._dead = True
        self._controller.fault(Fault.ACTOR_KILL, Phase.END, target=self.name, **facts)

    def _ask_to_stop(self) -> None:
        raise NotImplementedError

    def _kill(self) -> dict[str, Any]:
        """The proof that it is dead, for the ledger."""
        raise NotImplementedError

    def _await_death(self, timeout: float) -> dict[str, Any]:
        raise NotImplementedError


class ActorProcess:
    """A Python process that one or several actors run in."""

    def __init__(self, order: Order, log: Path) -> None:
        self._log = log
        self._voices: dict[str, Statuses] = {}
        self._lock = threading.Lock()
        self._over = False  # it says nothing more
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mqlayer.testing.actor", order.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name=f"listening to {order.name}", daemon=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def listen(self, name: str, statuses: Statuses) -> None:
        """What the actor *name* says goes to *statuses*."""
        with self._lock:
            self._voices[name] = statuses
            over = self._over
        if over:
            statuses.silence()
        elif self._reader.ident is None:
            self._reader.start()

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # it has ended, which whoever waits for its answer hears of
            return

    def kill(self) -> int:
        """SIGKILL to it and whatever it started. Returns its exit status."""
        with contextlib.suppress(ProcessLookupError):  # gone already; its status tells of what
            os.killpg(self._process.pid, signal.SIGKILL)
        return self.wait(DEATH_PATIENCE)

    def signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def wait(self, timeout: float) -> int:
        """Its exit status.

        Raises:
            HarnessError: it has not ended in time.
        """
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise HarnessError(f"process {self.pid} has not ended after {timeout:g} s") from None
        self._reader.join(DEATH_PATIENCE)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        return status

    def last_words(self) -> str:
        text = self._log.read_text(errors="replace").strip()
        status = self._process.poll()
        return ("" if status is None else f"; exit status {status}") + (f"; it wrote:\n{text[-4000:]}" if text else "")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            facts = json.loads(line)
            with self._lock:
                statuses = self._voices.get(facts.pop("actor"))
            if statuses is not None:
                statuses.add(facts.pop("status"), facts)
        with self._lock:
            self._over = True
            voices = list(self._voices.values())
        for statuses in voices:
            statuses.silence()


class ProcessActor(Actor):
    """An actor with a process of its own."""

    def __init__(self, order: Order, controller: Ledger, log: Path) -> None:
        super().__init__(order, controller)
        self.process = ActorProcess(order, log)
        self.process.listen(order.name, self.statuses)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.alive

    def pause(self) -> None:
        """SIGSTOP, and write it down."""
        self._controller.fault(Fault.ACTOR_PAUSE, Phase.BEGIN, target=self.name, pid=self.pid)
        self.process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT, and write it down."""
        self.process.signal(signal.SIGCONT)
        self._controller.fault(Fault.ACTOR_PAUSE, Phase.END, target=self.name, pid=self.pid)

    def finish(self, timeout: float = PATIENCE) -> Facts:
        facts = super().finish(timeout)
        status = self.process.wait(timeout * self._multiplier)
        if status:
            raise HarnessError(f"actor {self.name} finished{self.process.last_words()}")
        return facts

    def end(self) -> int:
        """SIGKILL, written down by the caller. Returns the exit status."""
        self._dead = True
        return self.process.kill()

    def _ask_to_stop(self) -> None:
        self.process.send("stop")

    def _kill(self) -> dict[str, Any]:
        return {"exit": self.end(), "pid": self.pid}

    def _await_death(self, timeout: float) -> dict[str, Any]:
        return {"exit": self.process.wait(timeout), "pid": self.pid}

    def _last_words(self) -> str:
        return self.process.last_words()

    def dismiss(self) -> None:
        ended = not self.process.alive
        status = self.process.kill()
        unexplained = ended and status != 0 and not self._dead and self.statuses.find(LAST) is None
        super().dismiss()
        if unexplained:
            raise HarnessError(f"actor {self.name} died by itself{self.process.last_words()}")


class HostedActor(Actor):
    """An actor in a process that others share."""

    def __init__(self, order: Order, controller: Ledger, host: ActorProcess) -> None:
        super().__init__(order, controller)
        self._host = host
        host.listen(order.name, self.statuses)
        host.send(f"start {order.to_json()}")

    def _ask_to_stop(self) -> None:
        self._host.send(f"stop {self.name}")

    def _kill(self) -> dict[str, Any]:
        return self._await_death(DEATH_PATIENCE * self._multiplier)

    def _await_death(self, timeout: float) -> dict[str, Any]:
        # Also of one that has crashed by itself: what it left is dropped by this.
        self._host.send(f"abandon {self.name}")
        found = self.statuses.await_one(("dead",), timeout)
        if found is None or found[1]["hung"]:
            self._no_answer("does not end")
        return {"abandoned": True}


class ThreadActor(Actor):
    """An actor as a thread of this process: where the store is in its memory. Its death is that it is abandoned."""

    def __init__(self, order: Order, controller: Ledger) -> None:
        super().__init__(order, controller)
        self._work, self._thread = start_thread(order, self.statuses.add)

    def _ask_to_stop(self) -> None:
        self._work.stop()

    def _kill(self) -> dict[str, Any]:
        abandon(self._work, self._thread)
        if self._thread.is_alive():
            self._no_answer("does not end")
        return {"abandoned": True}

    def _await_death(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive() or self.statuses.find(("abandoned",)) is None:
            self._no_answer("has not crashed, as its job says")
        return self._kill()


def host_process(order: Order, log: Path, timeout: float) -> ActorProcess:
    """A process for hosted actors, ready for the first."""
    process = ActorProcess(order, log)
    statuses = Statuses()
    process.listen(order.name, statuses)
    if order.role != HOST or statuses.await_one((READY,), timeout) is None:
        process.kill()
        raise HarnessError(f"the process of the actors is not ready{process.last_words()}")
    return process
