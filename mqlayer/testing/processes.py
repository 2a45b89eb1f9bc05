"""A broker as a child process: started, killed, stopped, paused and started again on the same data. Linux only.

Knows processes and signals; knows no broker. What the durability suite may conclude from a kill rests on the records made
here: :class:`Ending` says which processes died, of what, and that the port was refused afterwards.
"""

import os
import pwd
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mqlayer.errors import MQError
from mqlayer.testing import process_tree
from mqlayer.testing.ports import answers, assert_refused

__all__ = ["Beginning", "Ending", "ProcessServer", "ServerError"]

_PROBE_INTERVAL = 0.1
_KILL_PATIENCE = 15.0
_GUARDIAN_PATIENCE = 5.0
_PAUSE_ROUNDS = 3
_TAIL_BYTES = 4096


class ServerError(MQError):
    """A server under test did not start, stop or die as it was asked to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """One start of the server. Times are monotonic.

    Attributes:
        ready_at: When the first probe succeeded.
    """

    pid: int
    began_at: float
    ready_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the server ended once: the evidence that it did. Times are monotonic.

    Attributes:
        pids: Every process of the server that lived when it began, the root first.
        signal: What was sent; ``None``: nothing, it had ended by itself.
        exit_status: The root's; ``-9`` is a death by SIGKILL.
        by_itself: The root exited without being killed.
        leftovers: What outlived the root of a graceful stop and was killed afterwards, daemons such as epmd.
        port_refused: The server's port refused connections afterwards; ``None``: the port is not known.
    """

    pids: tuple[int, ...]
    signal: signal.Signals | None
    exit_status: int
    by_itself: bool
    leftovers: tuple[int, ...]
    port_refused: bool | None
    began_at: float
    ended_at: float


class ProcessServer:
    """One server, over all its starts. Everything it starts goes with it, daemons in sessions of their own included.

    Nothing outlives the process that uses this: what still runs is killed when the object or the interpreter goes, and,
    if the interpreter is killed outright, by a guardian. The guardian is a small process that notices the end of a pipe.
    The kernel's parent-death signal would not do: it fires when the *thread* that started the server ends, which would
    kill brokers in the middle of a test, and it does not reach grandchildren.
    (A plain ``fork`` of the using process shares the pipe; the guardian then waits for both.)

    Methods may be called from several threads; ``kill`` also while ``start`` waits.

    Args:
        command: Run without a shell, in a session of its own, with standard input closed.
        log: What the server prints is added here; ``None`` keeps it in a nameless temporary file.
        env: The whole environment; ``None``: the caller's.
        user: Whom to become, if the caller is root. Anybody else runs the server as themselves.
        probe: One functional round trip, bounded in time, that raises until the server serves. A port that accepts is
            not a server that is ready. ``None``: started is ready, and an early exit is not noticed.
        port: Where it listens. It must be refused before a start, so that no older server answers the probe, and
            after an end.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
        probe: Callable[[], None] | None = None,
        port: int | None = None,
        ready_timeout: float = 60.0,
    ) -> None:
        self.command = tuple(str(part) for part in command)
        self.port = port
        self._env, self._cwd, self._user, self._probe = env, cwd, user, probe
        self._ready_timeout = ready_timeout
        self._log = log
        self._output: IO[bytes] | None = None
        # The marker is a name, not a value, so that a server started by a server carries both.
        self._marker = f"MQLAYER_SERVER_{uuid.uuid4().hex}"
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._guardian: subprocess.Popen[bytes] | None = None
        self._reaper: weakref.finalize[[int, str], ProcessServer] | None = None
        self._running = False  # started, and its end not yet recorded
        self._beginnings: list[Beginning] = []
        self._endings: list[Ending] = []
        self._began_at = 0.0

    def __enter__(self) -> "ProcessServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self.kill()

    def __repr__(self) -> str:
        state = (
            f"pid {self.pid}" if self.alive else f"exit status {self.returncode}" if self._process else "not started"
        )
        return f"<ProcessServer {Path(self.command[0]).name}: {state}>"

    # ---- what it is ----

    @property
    def alive(self) -> bool:
        """Whether the root process runs. It may still be paused, or not ready."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The root process of the latest start; ``None`` before the first."""
        return self._process.pid if self._process else None

    @property
    def returncode(self) -> int | None:
        """The root's exit status, negative for a signal; ``None`` while it runs."""
        return self._process.poll() if self._process else None

    @property
    def started_at(self) -> float | None:
        """When the latest start began, on the monotonic clock."""
        return self._began_at if self._process else None

    @property
    def beginnings(self) -> tuple[Beginning, ...]:
        """Every start that became ready."""
        return tuple(self._beginnings)

    @property
    def endings(self) -> tuple[Ending, ...]:
        """Every end."""
        return tuple(self._endings)

    def pids(self) -> tuple[int, ...]:
        """The living processes of the server, the root first."""
        root = self._process.pid if self._process and self._running else None
        return tuple(process_tree.find_tree(self._marker, root))

    def log_tail(self) -> str:
        """The last of what it printed."""
        if self._output is None:
            return ""
        handle = self._output.fileno()
        size = os.fstat(handle).st_size
        return os.pread(handle, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace").strip()

    def probe(self) -> None:
        """Make one round trip, as the start does; raises whatever the probe raises.

        Raises:
            ServerError: the server does not run.
        """
        self._started()
        if not self.alive:
            raise ServerError(f"{self!r} does not run")
        if self._probe:
            self._probe()

    # ---- start ----

    def start(self) -> None:
        """Start the server and return once its probe succeeds. What it keeps on disk is what it finds there.

        Raises:
            ServerError: it runs already, another server holds its port, it exited, or it was not ready in time. The text
                ends with the last of its output; nothing of it is left running.
        """
        with self._lock:
            if self.alive:
                raise ServerError(f"{self!r} runs already")
            if self._running:
                self.kill()  # it ended by itself: clear away what it left
            if self.port is not None and answers(self.port):
                raise ServerError(
                    f"port {self.port} answers before {self.command[0]} was started: whose server is that?"
                )
            process = self._spawn()
        try:
            self._await_ready(process)
        except BaseException:
            with self._lock:
                if self._running and self._process is process:
                    self.kill()
            raise
        began = Beginning(pid=process.pid, began_at=self._began_at, ready_at=time.monotonic())
        self._beginnings.append(began)

    def restart(self) -> None:
        """Start again, after an end: the same command on the same data, as a new process.

        Raises:
            ServerError: as for :meth:`start`, or it was never started.
        """
        self._started()
        self.start()

    def _spawn(self) -> subprocess.Popen[bytes]:
        if self._output is None:
            self._output = open(self._log, "a+b") if self._log else tempfile.TemporaryFile("a+b")  # noqa: SIM115
        guard = [sys.executable, "-I", "-S", process_tree.__file__, self._marker]
        # The guardian first: from the server's first moment on there is somebody to end it.
        self._guardian = subprocess.Popen(guard, stdin=subprocess.PIPE, env={}, start_new_session=True)
        self._reaper = weakref.finalize(self, _reap, os.getpid(), self._marker)
        environment = {**(os.environ if self._env is None else self._env), self._marker: "1"}
        user, group = self._identity()
        self._began_at = time.monotonic()
        try:
            self._process = subprocess.Popen(
                self.command,
                env=environment,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
            )
        except OSError as exc:
            self._dismiss_guardian()
            raise ServerError(f"cannot start {self.command[0]}: {exc}") from exc
        self._running = True
        return self._process

    def _identity(self) -> tuple[int, int] | tuple[None, None]:
        if self._user is None or os.geteuid() != 0:
            return None, None
        entry = pwd.getpwnam(self._user)
        return entry.pw_uid, entry.pw_gid

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        if self._probe is None:
            return
        deadline = time.monotonic() + self._ready_timeout
        failure: Exception | None = None
        while True:
            if process.poll() is not None:
                raise self._not_ready(f"ended with exit status {process.returncode} before it was ready", failure)
            try:
                self._probe()
                failure = None  # its traceback holds this frame, and that would keep a forgotten server alive
                return
            except Exception as exc:  # whatever a client library raises means: not ready yet
                failure = exc
            if time.monotonic() > deadline:
                raise self._not_ready(f"was not ready in {self._ready_timeout:g} s", failure)
            process_tree.wait_dead([process.pid], _PROBE_INTERVAL)

    def _not_ready(self, what: str, cause: Exception | None) -> ServerError:
        error = ServerError(
            f"{self.command[0]} {what}"
            + (f"; the last probe said: {cause!r}" if cause else "")
            + (f"; the end of its output:\n{tail}" if (tail := self.log_tail()) else "; it printed nothing")
        )
        error.__cause__ = cause
        return error

    # ---- end ----

    def kill(self, number: signal.Signals = signal.SIGKILL, *, timeout: float = _KILL_PATIENCE) -> Ending:
        """Send *number* to every process of the server at once, and return when all are dead and the port refuses.

        Raises:
            ServerError: it was never started, its end is recorded already, or something survives.
        """
        with self._lock:
            process = self._unended()
            began_at, pids = time.monotonic(), self.pids()
            exited_before = process.poll() is not None
            if number is signal.SIGKILL:
                survivors = process_tree.kill_tree(self._marker, process.pid, timeout)
            else:
                process_tree.send_signal(pids, number)
                survivors = process_tree.wait_dead(pids, timeout)
            if survivors:
                raise ServerError(f"{survivors} of {self.command[0]} survived {number.name} for {timeout:g} s")
            return self._ended(began_at, pids, None if exited_before else number, by_itself=exited_before)

    def stop(self, *, timeout: float = 60.0) -> Ending:
        """Ask the root to end (SIGTERM) and wait for it. If it does not within *timeout*, everything is killed.

        ``Ending.by_itself`` tells which, ``Ending.exit_status`` how. A paused server is resumed first.
        """
        with self._lock:
            process = self._unended()
            began_at, pids = time.monotonic(), self.pids()
            exited_before = process.poll() is not None
            if not exited_before:
                process_tree.send_signal([process.pid], signal.SIGTERM)
                process_tree.send_signal(pids, signal.SIGCONT)
            by_itself = not process_tree.wait_dead([process.pid], timeout)
            leftovers = tuple(pid for pid in self.pids() if pid != process.pid) if by_itself else ()
            if survivors := process_tree.kill_tree(self._marker, process.pid, _KILL_PATIENCE):
                raise ServerError(f"{survivors} of {self.command[0]} survived SIGKILL")
            sent = None if exited_before else signal.SIGTERM
            return self._ended(began_at, pids, sent, by_itself=by_itself, leftovers=leftovers)

    def wait_dead(self, timeout: float = _KILL_PATIENCE) -> None:
        """Wait until no process of the server lives. Sends nothing; for a server that ends by itself.

        Raises:
            ServerError: something still lives after *timeout* seconds.
        """
        deadline = time.monotonic() + timeout
        while pids := self.pids():
            if survivors := process_tree.wait_dead(pids, max(0.0, deadline - time.monotonic())):
                raise ServerError(f"{survivors} of {self.command[0]} still live after {timeout:g} s")

    def pause(self) -> tuple[int, ...]:
        """Stop all its processes where they are (SIGSTOP): connections stay open and nobody answers. Returns the pids."""
        with self._lock:
            self._unended()
            for _ in range(_PAUSE_ROUNDS):  # a process may fork before the signal reaches it
                pids = self.pids()
                process_tree.send_signal(pids, signal.SIGSTOP)
            return pids

    def resume(self) -> None:
        """Let paused processes go on (SIGCONT)."""
        with self._lock:
            self._unended()
            process_tree.send_signal(self.pids(), signal.SIGCONT)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError(f"{self.command[0]} was never started")
        return self._process

    def _unended(self) -> subprocess.Popen[bytes]:
        process = self._started()
        if not self._running:
            raise ServerError(f"{self!r} has ended already")
        return process

    def _ended(
        self,
        began_at: float,
        pids: tuple[int, ...],
        sent: signal.Signals | None,
        *,
        by_itself: bool,
        leftovers: tuple[int, ...] = (),
    ) -> Ending:
        exit_status = self._started().wait(_KILL_PATIENCE)
        self._running = False
        self._dismiss_guardian()
        if self.port is not None:
            assert_refused(self.port)
        ending = Ending(
            pids=pids,
            signal=sent,
            exit_status=exit_status,
            by_itself=by_itself,
            leftovers=leftovers,
            port_refused=None if self.port is None else True,
            began_at=began_at,
            ended_at=time.monotonic(),
        )
        self._endings.append(ending)
        return ending

    def _dismiss_guardian(self) -> None:
        if self._reaper:
            self._reaper.detach()
        guardian, self._guardian = self._guardian, None
        if guardian is None:
            return
        try:
            guardian.communicate(process_tree.GOODBYE, timeout=_GUARDIAN_PATIENCE)
        except subprocess.TimeoutExpired:
            guardian.kill()  # it has nothing left to guard
            guardian.wait()


def _reap(owner: int, marker: str) -> None:
    """Kill what is left when the object or the interpreter goes. A fork inherits this call, but owns no server."""
    if os.getpid() == owner:
        process_tree.kill_tree(marker, None, _KILL_PATIENCE)
