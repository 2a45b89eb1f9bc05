"""The engine of one connection: its backend, its lines, and the end of both.

One line sends and answers questions; each consumer has a line of its own, because a broker in alarm stops reading a
connection that publishes, acks included. A line's session is the backend's under its layers.
"""

import itertools
import logging
import threading
import uuid
from collections.abc import Callable

from mqlayer.clock import Clock
from mqlayer.driver import Counts, Session
from mqlayer.engine.held import Holder
from mqlayer.engine.inline import InlineLine
from mqlayer.engine.intake import Intake
from mqlayer.engine.line import ThreadLine
from mqlayer.engine.process import PROCESS
from mqlayer.engine.protocol import Line
from mqlayer.errors import ClosedError, ForkedError, MQError
from mqlayer.layers.emulated import Emulated, emulated_capabilities, native_capabilities
from mqlayer.layers.observed import Observations, Observed
from mqlayer.layers.reconnecting import Reconnecting
from mqlayer.policy import reconnect_delay
from mqlayer.registry import Target

__all__ = ["CLOSE_MIN", "HOLDERS_TIMEOUT", "Engine"]

PREFETCH = 32  #: deliveries of a queue that may wait here for a caller, where neither the URL nor the consumer says
HOLDERS_TIMEOUT = 10.0  #: seconds at the most in which other threads may settle what they hold, when a consumer closes
CLOSE_MIN = 0.5  #: seconds for the end of a line, however little time is left
log = logging.getLogger("mqlayer")


class Engine:
    """Connects on construction.

    Raises:
        ConnectFailedError: no host could be connected to in *timeout* seconds.
    """

    def __init__(self, target: Target, *, clock: Clock, timeout: float) -> None:
        self.target = target
        self.clock = clock
        self.timeout = timeout
        self.inline = target.backend.inline
        self.creates = target.common.declare != "never"
        self._native_only = target.common.require == "native"
        self._lock = threading.Lock()
        self.closed = False
        self._consumers: list[Line] = []
        self.ended = Observations()  #: what lines that are closed have seen
        self.ended.connected = True
        self._kept: list[object] = []  # a parent process's lines: touched by nobody, and not finalised in the child
        self._generation = PROCESS.generation
        self._new_ids()
        try:
            first = target.backend.session(timeout, lambda when: None)
        except BaseException:
            target.backend.close()
            raise
        self.native = first.capabilities
        self.capabilities = (native_capabilities if self._native_only else emulated_capabilities)(self.native)
        self.sender = self._line("sender", first=first)
        if isinstance(self.sender, ThreadLine):
            self.sender.attend()

    def next_id(self) -> str:
        """A new message id: a prefix of this process and connection, and a counter."""
        return f"{self._prefix}-{next(self._counter):x}"

    def _new_ids(self) -> None:
        self._prefix = uuid.uuid4().hex[:16]
        self._counter = itertools.count(1)

    # --- lines -------------------------------------------------------------------------------------------------------

    def consumer(self, role: str, *, prefetch: int | None, lease: float | None, hold_max: float) -> Line:
        """A line of its own for a consumer; *role* names it in logs. It connects on first use."""
        if prefetch is None:
            prefetch = self.target.prefetch or PREFETCH
        line = self._line(role, prefetch=prefetch, lease=lease, hold_max=hold_max)
        with self._lock:
            if self.closed:
                raise ClosedError("the connection is closed")
            self._consumers.append(line)
        return line

    def forget(self, line: Line) -> None:
        """A consumer's line has been closed."""
        with self._lock:
            if line in self._consumers:
                self._consumers.remove(line)
                self.ended.add(line.seen)

    def settle_failed(self, line: Line) -> None:
        """Count a settlement that never came to the line's session, also when the line has been closed."""
        with self._lock:
            seen = line.seen if line is self.sender or line in self._consumers else self.ended
            seen.settle_failures += 1

    def _line(
        self,
        role: str,
        *,
        first: Session | None = None,
        prefetch: int = 0,
        lease: float | None = None,
        hold_max: float = 0.0,
    ) -> Line:
        name = f"{self.target.url.scheme}:// {role}"
        seen = Observations()
        seen.connected = first is not None

        def stack(lost: Callable[[], None], look_again: Callable[[float], None]) -> Session:
            def changed(error: MQError | None) -> None:
                seen.connection_changed(error)
                if error is None:
                    log.info("%s: connected", name)
                else:
                    log.warning("%s: %s", name, error)
                    lost()

            session: Session = Reconnecting(
                lambda timeout: self.target.backend.session(timeout, look_again),
                self.native,
                clock=self.clock,
                first=first,
                on_change=changed,
                back_off=_at_once if self.inline else reconnect_delay,
            )
            if self.capabilities != self.native or self.native.counts is Counts.FLAG:
                session = Emulated(session, clock=self.clock, native_only=self._native_only)
            return session if self.inline else Observed(session, seen)  # an inline line counts for itself

        if self.inline:
            if hold_max:
                longest = self.native.lease_max
                lease = max(hold_max if longest is None else min(hold_max, longest), lease or 0.0)
            return InlineLine(
                name,
                stack,
                self.native,
                clock=self.clock,
                seen=seen,
                timeout=self.timeout,
                creates=self.creates,
                lease=lease,
            )
        intake = None
        if prefetch:
            intake = Intake(self.native, clock=self.clock, prefetch=prefetch, lease=lease, hold_max=hold_max)
        return ThreadLine(
            name,
            lambda lost: stack(lost, _no_look),
            self.native,
            clock=self.clock,
            seen=seen,
            timeout=self.timeout,
            creates=self.creates,
            intake=intake,
        )

    # --- the end, and forks ------------------------------------------------------------------------------------------

    @property
    def forked(self) -> bool:
        """The connection was made in another process: this one has neither its threads nor its sockets."""
        return self._generation != PROCESS.generation

    def reopen_in_child(self) -> None:
        """In a forked child: begin anew, with lines of its own. The parent's are left alone.

        Raises:
            ForkedError: the store lives in the parent's memory.
        """
        if self.inline:
            raise ForkedError(
                f"{self.target.url.scheme}:// lives in the memory of the process that made it; connect anew"
            )
        self._generation = PROCESS.generation
        self._lock = threading.Lock()
        self._kept += [self.sender, *self._consumers]
        self._consumers = []
        self._new_ids()
        if not self.closed:
            self.sender = self._line("sender")

    def close(self, timeout: float, closer: Holder | None = None, *, patient: bool = True) -> None:
        """End all lines: consumers first, for they may still send copies. Again: waits for the same end.

        If *patient*, deliveries that others than *closer* hold (default: this thread) may be settled meanwhile.
        """
        if self.forked:
            self.closed = True  # here; the parent's goes on, and this process has nothing open
            return
        with self._lock:
            self.closed = True
            consumers = list(self._consumers)
        deadline = self.clock.monotonic() + timeout
        for line in consumers:
            line.stop()
        for line in consumers if patient else ():
            left = max(deadline - self.clock.monotonic(), 0.0)
            line.wait_for_holders(closer or threading.current_thread(), min(left, HOLDERS_TIMEOUT))
        for line in (*consumers, self.sender):
            line.close(max(deadline - self.clock.monotonic(), CLOSE_MIN))
        self.target.backend.close()

    def abandon(self) -> None:
        """As if the process had ended here, for tests of what a crash leaves behind: nothing is closed in order."""
        self.closed = True
        for line in self.lines:
            line.abandon()

    @property
    def lines(self) -> list[Line]:
        with self._lock:
            return [self.sender, *self._consumers]


def _at_once(attempt: int, random: float) -> float:
    return 0.0  # a store in memory is there again at once, and a test's clock stands still


def _no_look(when: float) -> None:
    return None
