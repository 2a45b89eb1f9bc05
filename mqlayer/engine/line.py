"""A line: one thread that owns one session, and what callers hand to it.

Callers append to queues and wait for futures; the owner takes whatever is queued at each turn and hands it to the session
as one batch. Nothing else touches the session but ``wake`` and ``abort``. An idle owner turns every ``IDLE`` seconds.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

from mqlayer.clock import Clock
from mqlayer.driver import Capabilities, Extend, Incoming, Outgoing, Session, Support, Verdict
from mqlayer.engine.held import Held, Holder
from mqlayer.engine.intake import Intake
from mqlayer.engine.outbox import Outbox
from mqlayer.engine.parcel import GRACE, Parcel, Target, no_room, no_word
from mqlayer.engine.process import PROCESS
from mqlayer.engine.settlements import Settlement, Settlements
from mqlayer.engine.waiting import Signal
from mqlayer.engine.watch import Watch
from mqlayer.errors import (
    ClosedError,
    ConnectionLostError,
    MQError,
    NotSentError,
    RequestTimeoutError,
    StaleDeliveryError,
)
from mqlayer.layers.observed import Observations

__all__ = ["ThreadLine"]

IDLE = 1.0  #: seconds between two turns of an idle line
REST = 0.5  #: seconds without a turn after an error, unless there is something to do
HASTY_MAX = 100  #: times in a row that a session may end its wait for no reason
HASTY_REST = 0.01  #: … and the seconds before each further turn

T = TypeVar("T")
log = logging.getLogger("mqlayer")


class _Call:
    __slots__ = ("call", "deadline", "future")

    def __init__(self, call: Callable[[Session, float], Any], deadline: float) -> None:
        self.call = call
        self.deadline = deadline
        self.future: Future[Any] = Future()


class ThreadLine:
    """A line whose session may block: a daemon thread owns it, started on first use.

    Args:
        make: Makes the session, at once and without connecting. Its argument is called in the owner's thread when a
            connection has ended.
        timeout: Seconds for what has no deadline of its own, such as settlements.
        creates: The line may create a missing dead-letter queue.
    """

    inline = False

    def __init__(
        self,
        name: str,
        make: Callable[[Callable[[], None]], Session],
        capabilities: Capabilities,
        *,
        clock: Clock,
        seen: Observations,
        timeout: float,
        creates: bool = True,
        intake: Intake | None = None,
    ) -> None:
        self.seen = seen
        self._name = name
        self._counts = capabilities.counts
        self._clock = clock
        self._timeout = timeout
        self._consuming = intake
        self._outbox = Outbox(name, clock)
        collect = self._arrived if capabilities.release is Support.UNSUPPORTED else None
        self._settlements = (
            Settlements(intake, timeout=timeout, creates=creates, collect=collect) if intake is not None else None
        )
        self._watch = Watch(name, intake, clock) if intake and capabilities.stats is not Support.UNSUPPORTED else None
        self._calls: deque[_Call] = deque()
        self._session = make(intake.connection_lost if intake else _nothing)
        self._idle = False
        self._hasty = 0
        self._closing = False
        self._abandoned = False
        self._broken: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._start = threading.Lock()
        self.turning = threading.Lock()  # held by the owner during each turn: a fork waits for its end
        self._rest_lock = threading.Lock()
        self._rest = threading.Condition(self._rest_lock)

    # --- callers: sending --------------------------------------------------------------------------------------------

    @property
    def room(self) -> Signal:
        return self._outbox.room

    def submit(self, parcel: Parcel) -> bool:
        """Queue a message; False if there is no room (``room`` tells when there may be).

        Raises:
            ClosedError: the connection is closed.
            NotSentError: the connection ended with a defect.
        """
        with self.room.lock:
            if self._broken is not None:
                text = f"{self._name} ended with the defect {self._broken!r}; connect anew"
                raise NotSentError(text, message_id=parcel.outgoing.id) from self._broken
            self._check_open()
            if not self._outbox.put(parcel):
                return False
        self._poke()
        return True

    def send(self, target: Target, outgoing: Outgoing, deadline: float) -> None:
        """Queue a message, wait for room and for its fate.

        Raises:
            SendError: as its ``fate`` says.
        """
        parcel = Parcel(target, outgoing, deadline, None)
        room = self.room
        while True:
            version = room.version
            if self.submit(parcel):
                break
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise no_room(parcel)
            room.wait(version, left)
        self.await_fate(parcel)

    def await_fate(self, parcel: Parcel) -> None:
        """Wait for the fate of a queued message: until its deadline, and a little longer if it is in flight then.

        Raises:
            SendError: as its ``fate`` says.
        """
        try:
            parcel.future.result(max(parcel.deadline - self._clock.monotonic(), 0.0))
        except FutureTimeoutError:
            self.withdraw(parcel)
            try:
                parcel.future.result(GRACE)
            except FutureTimeoutError:
                raise no_word(parcel) from None

    def withdraw(self, parcel: Parcel) -> None:
        """Give a message that was not handed over yet its fate; one that was gets it from the owner."""
        self._outbox.withdraw(parcel)

    def call(self, call: Callable[[Session, float], T], timeout: float) -> "Future[T]":
        """Have the owner do *call* with the session and the seconds left."""
        item = _Call(call, self._clock.monotonic() + timeout)
        with self.room.lock:
            self._check_open()
            self._calls.append(item)
        self._poke()
        return item.future

    # --- callers: consuming ------------------------------------------------------------------------------------------

    def consume(self, queue: str, *, ordered: bool = False) -> None:
        """Take deliveries from that queue too; *ordered*: it has one active consumer at a time."""
        self._intake.add_queue(queue, ordered=ordered)

    def take(self, limit: int, holder: Holder) -> list[Held]:
        """Up to *limit* deliveries that are here already.

        Raises:
            ClosedError: it is closed. ConnectionLostError: the line ended with a defect.
        """
        if self._broken is not None:
            self._check_open()
        return self._intake.take(limit, holder)

    def look(self) -> "Future[None]":
        """Have the owner ask the broker once for what callers wait for."""

        def look(session: Session, left: float) -> None:
            self._do_settlements()
            self._arrived(session.receive(self._intake.room(), 0.0))

        return self.call(look, self._timeout)

    def ask(self, change: int) -> None:
        """A caller begins, or ceases, to wait for that many deliveries."""
        self._intake.ask(change)
        if change > 0:
            self._poke()

    def check(self, held: Held) -> None:
        """Raises ``StaleDeliveryError`` for a delivery whose lease or connection is gone."""
        self._intake.check(held)

    def settle(self, held: Held, verdict: Verdict, *, give_back: bool = False) -> "Future[None]":
        """Queue a verdict. With *give_back*, a delivery whose copy fails goes back to its queue."""
        future: Future[None] = Future()
        self._put_settlement(Settlement(held, verdict, future, give_back))
        return future

    def settle_later(self, held: Held, verdict: Verdict) -> None:
        """Queue a verdict of which nobody awaits the end."""
        self._put_settlement(Settlement(held, verdict))

    def _put_settlement(self, item: Settlement) -> None:
        if self._settlements is None:
            raise ClosedError(f"{self._name} does not consume")
        with self.room.lock:
            if self._closing:
                raise StaleDeliveryError(f"{self._name} is closed; the broker has the message back")
            self._check_open()
            self._settlements.put(item)
        if item.held is not None and type(item.verdict) is not Extend:
            self._intake.settled(item.held)
        self._poke()

    @property
    def arrivals(self) -> Signal:
        return self._intake.signal

    @property
    def proven(self) -> bool:
        return self._intake.proven

    @property
    def load(self) -> tuple[int, int]:
        return self._consuming.load if self._consuming is not None else (0, 0)

    @property
    def _intake(self) -> Intake:
        if self._consuming is None:
            raise ClosedError(f"{self._name} does not consume")
        return self._consuming

    # --- callers: the end --------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Take nothing more: callers that wait are told, what is buffered goes back. Settlements go on."""
        if self._consuming is not None:
            self._consuming.close()
            if self._thread is not None:  # one that never ran has nothing to give back, and need not connect for it
                self._poke()

    def wait_for_holders(self, closer: Holder, timeout: float) -> None:
        """After ``stop``: let others than *closer* settle what they hold."""
        if self._consuming is not None:
            self._consuming.holders.wait(closer, timeout)

    def close(self, timeout: float) -> None:
        """Hand over what is queued, settle, give back, end. What is left at the deadline gets its fate.

        Again, or from several threads: waits for the same end.
        """
        self.stop()
        with self.room.lock:
            self._closing = True
            self._outbox.ends_at = min(self._outbox.ends_at, self._clock.monotonic() + timeout)
        self.room.notify()  # who waits for room hears that there will be none
        self._poke()
        with self._start:
            thread = self._thread
        if thread is None:
            self._session.close(timeout)
        elif thread is not threading.current_thread():
            thread.join(timeout)
            if thread.is_alive():
                self._session.abort()
                thread.join(GRACE)
        self.room.notify()

    def abandon(self) -> None:
        """As if the process had ended here: nothing is drained, settled or closed in order."""
        self._abandoned = True
        self._session.abort()
        self.wake()
        with self._start:
            thread = self._thread
        if thread is not None:
            thread.join(GRACE)

    def _check_open(self) -> None:
        if self._broken is not None:
            raise ConnectionLostError(
                f"{self._name} ended with the defect {self._broken!r}; connect anew"
            ) from self._broken
        if self._closing:
            raise ClosedError(f"{self._name} is closed")

    def attend(self) -> None:
        """Have an owner from now on, and not only from the first use: a connection that is open has heart-beats to serve."""
        self._poke()

    def _poke(self) -> None:
        if self._thread is None:
            with self._start:
                if self._thread is None and (self._pending() or not self._closing):
                    self._thread = threading.Thread(target=self._run, name=f"mqlayer {self._name}", daemon=True)
                    PROCESS.add(self)
                    self._thread.start()
        elif self._idle:
            self._idle = False
            self.wake()

    def wake(self) -> None:
        """Have the owner end its wait for deliveries."""
        self._session.wake()
        with self._rest_lock:
            self._rest.notify_all()

    def _pending(self) -> bool:
        return bool(self._outbox or self._settlements or self._calls)

    # --- the owner ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException = ClosedError(f"{self._name} is closed")
        try:
            going_on = True
            while going_on:
                PROCESS.let_forks_pass()
                with self.turning:
                    going_on = not self._abandoned and self._turn()
        except BaseException as exc:  # a defect: whoever waits must hear of it, then it goes its way
            log.exception("%s ended", self._name)
            error = self._broken = exc
            raise
        finally:
            if not self._abandoned:
                self._end(error)

    def _turn(self) -> bool:
        """Everything that is queued, then whatever arrives. False when there is nothing more to do for ever."""
        closing = self._closing  # before the settlements, which give back what is buffered
        self._do_calls()
        self._do_settlements()
        if self._outbox:
            self._outbox.hand_over(self._session)
        if closing and (not self._pending() or self._clock.monotonic() >= self._outbox.ends_at):
            return False
        if self._watch is not None:
            self._watch.look(self._session)
        self._receive()
        return True

    def _do_calls(self) -> None:
        while self._calls:
            item = self._calls.popleft()
            if not item.future.set_running_or_notify_cancel():
                continue
            left = item.deadline - self._clock.monotonic()
            try:
                if left <= 0:
                    raise RequestTimeoutError(f"{self._name} was busy until the call's time was up")
                result = item.call(self._session, left)
            except MQError as error:
                item.future.set_exception(error)
            except BaseException as error:  # a defect of the backend ends the line, but whoever asked hears of it
                item.future.set_exception(error)
                raise
            else:
                item.future.set_result(result)

    def _do_settlements(self) -> None:
        if self._settlements is not None:
            self._settlements.carry_out(self._session, self._clock.monotonic())

    def _receive(self) -> None:
        intake = self._consuming
        limit, timeout = 0, IDLE
        if intake is not None:
            limit = intake.room()
            timeout = min(max(intake.renew_at - self._clock.monotonic(), 0.0), IDLE)
        self._idle = True
        if self._pending() or self._closing or (intake is not None and intake.restless):
            self._idle = False
            limit, timeout = 0, 0.0  # serves the connection, asks for nothing
        began = self._clock.monotonic()
        try:
            got = self._session.receive(limit, timeout)
            self._arrived(got)
            if got or not self._idle or self._clock.monotonic() - began >= timeout / 2:
                self._hasty = 0
            else:
                self._mind_haste()
        except MQError as error:
            if intake is not None:
                intake.fail(error)
            else:
                log.warning("%s: %s", self._name, error)
            self._rest_a_while()
        finally:
            self._idle = False

    def _mind_haste(self) -> None:
        """A session came back early with nothing, and nobody had called. One that does so all the time is slowed down."""
        self._hasty += 1
        if self._hasty > HASTY_MAX:
            with self._rest_lock:
                if not self._pending() and not self._closing:
                    self._rest.wait(HASTY_REST)  # not the clock's: a test may have stopped it

    def _rest_a_while(self) -> None:
        """After an error that a session may raise at once each time; until there is something to do, or for a while."""
        with self._rest_lock:
            self._idle = True
            if not self._pending() and not self._closing:
                self._clock.wait(self._rest, REST)

    def _arrived(self, got: Sequence[Incoming]) -> None:
        if got:
            now = self._clock.monotonic()
            intake = self._intake
            intake.add([Held(incoming, self._counts, now, intake.epoch) for incoming in got])

    def _end(self, error: BaseException) -> None:
        """Whoever still waits is told; what is unsettled goes back with the session."""
        with self.room.lock:
            self._closing = True
            calls, self._calls = self._calls, deque()
        self._outbox.fail(self._broken)
        if self._settlements is not None:
            self._settlements.fail(error)
            self._intake.close()
        for item in calls:
            if item.future.set_running_or_notify_cancel():  # else its time was up, and nobody waits any more
                item.future.set_exception(error)
        try:
            left = self._outbox.ends_at - self._clock.monotonic()
            self._session.close(min(max(left, 1.0), self._timeout))
        except MQError as exc:
            log.warning("%s could not be closed in order: %s", self._name, exc)
        finally:
            self.room.notify()


def _nothing() -> None:
    return None
