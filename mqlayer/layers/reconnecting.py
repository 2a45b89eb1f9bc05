"""A session that outlives its connections: it connects, declares, binds, subscribes and sends again by itself.

What it repeats it says: a message that may have been stored already is sent again under the same id with ``resent`` in
its trail. Deliveries of an ended connection cannot be settled any more (their tokens carry the connection's epoch); the
broker hands them over again.
"""

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from mqlayer.clock import Clock
from mqlayer.driver import (
    Capabilities,
    Declare,
    Failures,
    Forward,
    Incoming,
    Outgoing,
    QueueOptions,
    Session,
    Stats,
    Verdict,
)
from mqlayer.errors import (
    BrokerError,
    ClosedError,
    ConnectionLostError,
    ForkedError,
    MQError,
    OutcomeUnknownError,
    QueueNotFoundError,
    RequestTimeoutError,
    StaleDeliveryError,
    ThrottledError,
    UsageError,
)
from mqlayer.layers.attempts import Attempts, in_parts, not_sent
from mqlayer.policy import reconnect_delay

__all__ = ["Reconnecting"]

CONNECT_MIN = 5.0  #: seconds for an attempt to connect that a receive makes, however short its own timeout
ABORT_TIMEOUT = 1.0  #: seconds given to an ended session to let go of its socket
T = TypeVar("T")
_Send = Callable[[Session, Sequence[Outgoing], float], Failures]
log = logging.getLogger("mqlayer")


class Reconnecting:
    """Holds at most one live session and makes another when that one's connection ends.

    Args:
        connect: Makes a session, trying each host once, within the given seconds.
        capabilities: What the backend's sessions can do; read from the first one.
        first: A session that is connected already.
        back_off: Attempt (from 0) and a random number from 0 to 1 → seconds to wait before it.
        on_change: Called with the error when a connection ends or an attempt fails, and with ``None`` when one is made.
    """

    def __init__(
        self,
        connect: Callable[[float], Session],
        capabilities: Capabilities,
        *,
        clock: Clock,
        first: Session | None = None,
        on_change: Callable[[MQError | None], None] = lambda error: None,
        back_off: Callable[[int, float], float] = reconnect_delay,
    ) -> None:
        self._connect = connect
        self._capabilities = capabilities
        self._clock = clock
        self._session = first
        self._on_change = on_change
        self._pause_after = back_off
        self._ended = False  # by abort or close: nothing is tried any more
        self._woken = False
        self._found_out: MQError | None = None  # beside a send, that a queue is gone, say: the next receive tells it
        self._pause_lock = threading.Lock()
        self._pause = threading.Condition(self._pause_lock)
        self._attempts = 0
        self._retry_at = 0.0
        self._quiet_until = 0.0  #: monotonic seconds before which a broker that is too busy is asked for no delivery
        self._early: Sequence[Incoming] = ()  # came with a look at the connection: the next receive hands them over
        # What a new connection has to be told. A queue that was only checked is not created behind the user's back.
        self._declared: dict[str, QueueOptions] = {}
        self._bound: dict[tuple[str, str | None], str] = {}  # → the name that the caller knows
        self._queue_now: dict[str, str] = {}  # the caller's name of a temporary queue → its name on this connection
        self._subscribed: dict[str, tuple[int, float | None]] = {}

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    # --- verbs that may simply be done again -------------------------------------------------------------------------

    def declare(self, queue: str, options: QueueOptions, mode: Declare, timeout: float) -> QueueOptions:
        stored = self._again(timeout, lambda session, left: session.declare(queue, options, mode, left))
        if mode is Declare.COMPARE:
            self._declared[queue] = options
        elif mode is Declare.ENSURE:  # asks for nothing in particular: what was asked for before stands
            self._declared.setdefault(queue, stored)
        return stored

    def bind(self, topic: str, group: str | None, timeout: float) -> str:
        name = self._again(timeout, lambda session, left: session.bind(topic, group, left))
        return self._bound.setdefault((topic, group), name)

    def subscribe(self, queue: str, window: int, lease: float | None, timeout: float) -> None:
        """As the driver says. Without a connection it makes the attempt that is due, if any; whichever comes next, subscribes."""
        self._subscribed[queue] = (window, lease)
        try:
            if self._session is None:
                self._try_to_connect(0.0)  # if an attempt is due: the wait for one is that of ``receive``
            else:
                self._again(timeout, lambda session, left: session.subscribe(self._now(queue), window, lease, left))
        except QueueNotFoundError:
            self._subscribed.pop(queue, None)  # else no connection could be restored any more
            raise

    def unsubscribe(self, queue: str, timeout: float) -> None:
        self._subscribed.pop(queue, None)
        if self._session is not None:  # without a connection there is no subscription to end
            self._again(timeout, lambda session, left: session.unsubscribe(self._now(queue), left))

    def stats(self, queue: str, timeout: float) -> Stats:
        return self._again(timeout, lambda session, left: session.stats(self._now(queue), left))

    def peek(self, queue: str, limit: int, timeout: float) -> Sequence[Incoming]:
        return self._again(timeout, lambda session, left: session.peek(self._now(queue), limit, left))

    def purge(self, queue: str, timeout: float) -> int | None:
        return self._again(timeout, lambda session, left: session.purge(self._now(queue), left))

    def delete(self, queue: str, timeout: float) -> None:
        self._declared.pop(queue, None)
        self._again(timeout, lambda session, left: session.delete(self._now(queue), left))

    # --- deliveries --------------------------------------------------------------------------------------------------

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        """As the driver says; while there is no connection it tries to make one, and returns nothing meanwhile.

        Raises:
            QueueNotFoundError: a subscribed queue is gone.
        """
        if self._found_out is not None:
            error, self._found_out = self._found_out, None
            raise error
        session = self._session
        if session is None:
            try:
                self._try_to_connect(timeout)
            finally:
                self._woken = False
            return ()  # what arrived with the subscription is there at the next call, and the caller's clock moved on
        if self._clock.monotonic() < self._quiet_until:
            return self._rest(timeout)
        try:
            got = self._early or session.receive(limit, timeout)
            self._early = ()
        except ConnectionLostError as lost:
            self._drop(session, lost)
            return ()
        except ThrottledError as busy:
            self._slow_down(busy)
            return self._rest(timeout)
        if got:
            self._attempts = 0
        if self._queue_now and got:
            known = {now: name for name, now in self._queue_now.items()}
            return [incoming._replace(queue=known.get(incoming.queue, incoming.queue)) for incoming in got]
        return got

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        session = self._session
        if session is None:
            return {index: _stale(verdict) for index, verdict in enumerate(verdicts)}
        if self._queue_now:
            verdicts = [self._renamed(verdict) for verdict in verdicts]
        deadline = self._clock.monotonic() + timeout
        failures = self._settle(session, verdicts, timeout)
        # What the broker was too busy for was not carried out: asked again, while there is time.
        while self._session is session and self._clock.monotonic() < deadline:
            busy = [place for place, error in failures.items() if isinstance(error, ThrottledError)]
            if not busy or self._ended:
                break
            self._back_off(deadline)
            left = max(deadline - self._clock.monotonic(), 0.0)
            again = self._settle(session, [verdicts[place] for place in busy], left)
            failures = {place: error for place, error in failures.items() if place not in busy}
            failures |= {busy[index]: error for index, error in again.items()}
        return failures

    def _settle(self, session: Session, verdicts: Sequence[Verdict], timeout: float) -> dict[int, MQError]:
        try:
            failures = session.settle(verdicts, timeout)
        except ConnectionLostError as error:
            self._drop(session, error)
            return {index: _stale(verdict) for index, verdict in enumerate(verdicts)}
        lost = next((error for error in failures.values() if isinstance(error, ConnectionLostError)), None)
        if lost is not None:
            self._drop(session, lost)
        return dict(failures)

    def _renamed(self, verdict: Verdict) -> Verdict:
        """The verdict with the names that temporary queues have on this connection."""
        verdict = verdict._replace(of=verdict.of._replace(queue=self._now(verdict.of.queue)))
        return verdict._replace(queue=self._now(verdict.queue)) if isinstance(verdict, Forward) else verdict

    # --- sends -------------------------------------------------------------------------------------------------------

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        most = self._capabilities.batch_max
        if most is not None and len(batch) > most:
            return in_parts(batch, most, timeout, self._clock, lambda part, left: self.send(queue, part, left))

        def send(session: Session, part: Sequence[Outgoing], left: float) -> Failures:
            return session.send(self._now(queue), part, left)

        return self._deliver(batch, timeout, send)

    def publish(self, topic: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        most = self._capabilities.batch_max
        if most is not None and len(batch) > most:
            return in_parts(batch, most, timeout, self._clock, lambda part, left: self.publish(topic, part, left))
        return self._deliver(batch, timeout, lambda session, part, left: session.publish(topic, part, left))

    def _deliver(self, batch: Sequence[Outgoing], timeout: float, send: _Send) -> Failures:
        """Send until every message is stored or refused, or the time is up."""
        deadline = self._clock.monotonic() + timeout
        session = self._session
        failures = self._attempt(batch, deadline, send) if session is None else self._try(session, batch, timeout, send)
        if not failures:  # nearly always
            return failures
        attempts = Attempts(batch)
        while True:
            attempts.note(failures)
            if attempts.done or self._ended or self._clock.monotonic() >= deadline:
                return attempts.failures()
            self._still_lives()
            self._back_off(deadline)
            failures = self._attempt(attempts.messages, deadline, send)

    def _attempt(self, messages: Sequence[Outgoing], deadline: float, send: _Send) -> Failures:
        try:
            session = self._live(deadline)
        except ForkedError as error:  # the store is in the parent's memory: no attempt is ever better
            return dict.fromkeys(range(len(messages)), error)
        except MQError as error:
            return {place: not_sent(error) for place in range(len(messages))}
        return self._try(session, messages, max(deadline - self._clock.monotonic(), 0.0), send)

    def _try(self, session: Session, messages: Sequence[Outgoing], left: float, send: _Send) -> Failures:
        """One attempt on a live session; with a fate for every message, whatever the session raises."""
        try:
            failures = send(session, messages, left)
        except UsageError as error:  # unsupported, say: raised before anything left, and no better the next time
            return dict.fromkeys(range(len(messages)), error)
        except MQError as error:
            if isinstance(error, ConnectionLostError):
                self._drop(session, error)
            return {place: OutcomeUnknownError(str(error)) for place in range(len(messages))}
        if not failures:
            self._attempts = 0
        return failures

    def _still_lives(self) -> None:
        """A send failed: has the connection ended, or only a channel of it?"""
        session = self._session
        if session is not None:
            try:
                self._early = [*self._early, *session.receive(0, 0.0)]  # what was asked for before may come now
            except ConnectionLostError as error:
                self._drop(session, error)
            except MQError as error:
                self._found_out = error

    # --- the connection ----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        self._woken = True
        session = self._session
        if session is not None:
            session.wake()
        with self._pause_lock:
            self._pause.notify_all()

    def abort(self) -> None:
        self._ended = True
        session = self._session
        if session is not None:
            session.abort()
        with self._pause_lock:
            self._pause.notify_all()

    def close(self, timeout: float) -> None:
        self._ended = True
        session, self._session = self._session, None
        with self._pause_lock:
            self._pause.notify_all()
        if session is not None:
            session.close(timeout)

    def _again(self, timeout: float, call: Callable[[Session, float], T]) -> T:
        """Do *call* on a live session; on another one if the connection ends meanwhile."""
        deadline = self._clock.monotonic() + timeout
        while True:
            session = self._live(deadline)
            try:
                return call(session, max(deadline - self._clock.monotonic(), 0.0))
            except ConnectionLostError as error:
                self._drop(session, error)
                if self._ended or self._clock.monotonic() >= deadline:
                    raise
            except ThrottledError:
                if self._ended or self._clock.monotonic() >= deadline:
                    raise
                self._back_off(deadline)

    def _try_to_connect(self, timeout: float) -> None:
        """When the next attempt is due within *timeout*, make it; ``wake`` ends the wait for it."""
        try:
            self._live(self._clock.monotonic() + timeout, interruptible=True)
        except QueueNotFoundError:
            raise
        except MQError as error:
            # Noted in ``_note``. Even refused credentials pass: a broker that is starting refuses them for a while.
            log.debug("not connected: %s", error)

    def _live(self, deadline: float, *, interruptible: bool = False) -> Session:
        """The session, connected anew if need be.

        Raises:
            BrokerError: the last attempt's error, at the deadline.
        """
        while True:
            if self._ended:
                raise ClosedError("the connection is closed")
            if self._session is not None:
                return self._session
            if not self._wait_until(min(self._retry_at, deadline), interruptible):
                raise ConnectionLostError("not connected, and no longer waited for")
            left = deadline - self._clock.monotonic()
            if self._retry_at > self._clock.monotonic() or (left <= 0 and self._attempts and not interruptible):
                raise ConnectionLostError("not connected; the next attempt is due later")
            try:
                return self._make(max(left, CONNECT_MIN if interruptible else 0.0))
            except MQError as error:
                self._note(error)
                if interruptible or isinstance(error, QueueNotFoundError) or self._clock.monotonic() >= deadline:
                    raise
                if not isinstance(error, (BrokerError, RequestTimeoutError)):
                    raise

    def _make(self, timeout: float) -> Session:
        deadline = self._clock.monotonic() + timeout
        session = self._connect(timeout)
        try:
            self._restore(session, deadline)
        except MQError:
            _let_go(session)
            raise
        self._session = session
        if self._ended:  # aborted while connecting: nobody would end this session otherwise
            session.abort()
        self._attempts = 0
        self._on_change(None)
        return session

    def _restore(self, session: Session, deadline: float) -> None:
        def left() -> float:
            return max(deadline - self._clock.monotonic(), 0.0)

        for queue, options in self._declared.items():
            session.declare(queue, options, Declare.ENSURE, left())
        for (topic, group), name in self._bound.items():
            now = session.bind(topic, group, left())
            self._queue_now.pop(name, None)
            if now != name:
                self._queue_now[name] = now
        for queue, (window, lease) in list(self._subscribed.items()):
            try:
                session.subscribe(self._now(queue), window, lease, left())
            except QueueNotFoundError:
                self._subscribed.pop(queue, None)  # told once; the other queues must not suffer for it
                raise

    def _now(self, queue: str) -> str:
        return self._queue_now.get(queue, queue) if self._queue_now else queue

    def _drop(self, session: Session, error: MQError) -> None:
        """The connection has ended: what it held is the broker's again."""
        self._early = ()
        if self._session is session:
            self._session = None
        self._note(error)
        session.abort()
        _let_go(session)

    def _note(self, error: MQError) -> None:
        self._retry_at = self._clock.monotonic() + self._pause_after(self._attempts, random.random())
        self._attempts += 1
        self._on_change(error)

    def _back_off(self, deadline: float) -> None:
        """Between two attempts on a connection that lives, so that a broker that says no at once is not hammered."""
        if self._session is not None:
            pause = self._pause_after(self._attempts, random.random())
            self._attempts += 1
            self._wait_until(min(self._clock.monotonic() + pause, deadline), interruptible=False)

    def _slow_down(self, busy: ThrottledError) -> None:
        pause = self._pause_after(self._attempts, random.random())
        self._attempts += 1
        self._quiet_until = self._clock.monotonic() + pause
        log.warning("receiving pauses for %.1f s: %s", pause, busy)

    def _rest(self, timeout: float) -> Sequence[Incoming]:
        """Nothing, when the pause or *timeout* is over, or at a ``wake``."""
        self._wait_until(min(self._quiet_until, self._clock.monotonic() + timeout), interruptible=True)
        self._woken = False
        return ()

    def _wait_until(self, when: float, interruptible: bool) -> bool:
        """Wait; False if this has ended, or if woken before, where that counts."""
        with self._pause_lock:
            while not self._ended:
                if interruptible and self._woken:
                    return False
                left = when - self._clock.monotonic()
                if left <= 0:
                    break
                self._clock.wait(self._pause, left)
            return not self._ended


def _stale(verdict: Verdict) -> StaleDeliveryError:
    return StaleDeliveryError(
        f"a delivery of {verdict.of.queue!r} came on a connection that has ended; the broker hands it over again"
    )


def _let_go(session: Session) -> None:
    with contextlib.suppress(MQError):  # what has ended cannot end in order, and another session takes its place
        session.close(ABORT_TIMEOUT)
