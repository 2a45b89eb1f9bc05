"""A line without a thread: the caller does the work, under a lock. For stores that never block."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from mqlayer.clock import Clock
from mqlayer.driver import (
    Ack,
    Capabilities,
    Declare,
    Extend,
    Forward,
    Outgoing,
    QueueOptions,
    Session,
    Verdict,
)
from mqlayer.engine.held import Held, Holder, Holders
from mqlayer.engine.parcel import Parcel, Target, final, resolve
from mqlayer.engine.waiting import Signal
from mqlayer.errors import ClosedError, MQError, SendError, StaleDeliveryError
from mqlayer.layers.observed import Observations
from mqlayer.policy import given_back

__all__ = ["InlineLine"]

WINDOW = 2**31  #: nothing is fetched ahead, so nothing needs a bound but the caller's demand
T = TypeVar("T")


class InlineLine:
    """A line whose session never blocks.

    Args:
        lease: What is asked of the store. Holder and store live in one process, so a lease needs no renewing: it is
            taken for ``hold_max`` at once, and ends with its session.
    """

    inline = True

    def __init__(
        self,
        name: str,
        make: Callable[[Callable[[], None], Callable[[float], None]], Session],
        capabilities: Capabilities,
        *,
        clock: Clock,
        seen: Observations,
        timeout: float,
        creates: bool = True,
        lease: float | None = None,
    ) -> None:
        self.seen = seen
        self.room = Signal(clock)
        self.arrivals = Signal(clock)
        self._name = name
        self._counts = capabilities.counts
        self._clock = clock
        self._timeout = timeout
        self._creates = creates
        self._lease = lease
        self._lock = threading.Lock()
        self._session = make(self._connection_lost, self.arrivals.look_again)
        self._epoch = 0
        self._holders = Holders(self.arrivals, clock)
        self._stopped = False
        self._closed = False
        self._taken = 0
        self._suspects = 0
        self._proven = False
        self._ensured: set[str] = set()

    # --- sending -----------------------------------------------------------------------------------------------------

    def send(self, target: Target, outgoing: Outgoing, deadline: float) -> None:
        is_topic, name = target
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self._name} is closed")
            send = self._session.publish if is_topic else self._session.send
            failures = send(name, (outgoing,), deadline - self._clock.monotonic())
            if not failures:
                self.seen.sent += 1
                return
            self.seen.send_failures += 1
        raise final(failures[0], Parcel(target, outgoing, deadline, None))

    def submit(self, parcel: Parcel) -> bool:
        try:
            self.send(parcel.target, parcel.outgoing, parcel.deadline)
        except SendError as error:
            resolve([(parcel, error)])
        else:
            resolve([(parcel, None)])
        return True

    def await_fate(self, parcel: Parcel) -> None:
        parcel.future.result()

    def withdraw(self, parcel: Parcel) -> None:
        """What was submitted has its fate already."""

    def call(self, call: Callable[[Session, float], T], timeout: float) -> "Future[T]":
        future: Future[T] = Future()
        try:
            with self._lock:
                if self._closed:
                    raise ClosedError(f"{self._name} is closed")
                future.set_result(call(self._session, timeout))
        except MQError as error:
            future.set_exception(error)
        return future

    # --- consuming ---------------------------------------------------------------------------------------------------

    def consume(self, queue: str, *, ordered: bool = False) -> None:
        """Take deliveries from that queue too. Here nothing is fetched ahead, from ordered queues or others."""
        with self._lock:
            self._session.subscribe(queue, WINDOW, self._lease, self._timeout)

    def take(self, limit: int, holder: Holder) -> list[Held]:
        arrivals = self.arrivals
        if arrivals.due <= self._clock.monotonic():
            arrivals.due = float("inf")  # the store says again what it still waits for
        with self._lock:
            if self._stopped or self._closed:
                raise ClosedError("the consumer is closed")
            got = self._session.receive(limit, 0.0)
            if not got:
                return []
            now = self._clock.monotonic()
            taken = [Held(incoming, self._counts, now, self._epoch) for incoming in got]
            self._taken += len(taken)
            self.seen.received += len(taken)
            for held in taken:
                held.taken = True
                self._holders.add(held, holder)
                if held.suspect:
                    self._suspects += 1
                    self._proven = False
        return taken

    def check(self, held: Held) -> None:
        """Raises ``StaleDeliveryError`` for a delivery whose lease or connection is gone."""
        if held.stale_at > self._clock.monotonic() and held.epoch == self._epoch:
            return
        of = held.incoming
        with self._lock:
            self._let_go(held)
        raise StaleDeliveryError(
            f"the lease or the connection of message {of.message.id} of {of.queue!r} is gone; it is handed over again"
        )

    def _let_go(self, held: Held) -> None:
        if held.taken and held.epoch == self._epoch:
            self._taken -= 1
            self._suspects -= held.suspect
        held.taken = False
        self._holders.remove(held)

    def _connection_lost(self) -> None:
        self._epoch += 1
        self._taken = self._suspects = 0
        self._holders.clear()
        self.arrivals.look_again(self._clock.monotonic())  # whoever waits connects anew

    def look(self) -> "Future[None]":
        """``take`` has looked already."""
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def ask(self, change: int) -> None:
        """Nothing is fetched ahead, so nobody needs to know."""

    def settle(self, held: Held, verdict: Verdict, *, give_back: bool = False) -> "Future[None]":
        future: Future[None] = Future()
        try:
            self.settle_now(held, verdict, give_back=give_back)
        except MQError as error:
            future.set_exception(error)
        else:
            future.set_result(None)
        return future

    def settle_later(self, held: Held, verdict: Verdict) -> None:
        self.settle_now(held, verdict)

    def settle_now(self, held: Held, verdict: Verdict, *, give_back: bool = False) -> None:
        """Carry out a verdict.

        Raises:
            MQError: it failed; with *give_back* the delivery went back to its queue instead.
        """
        with self._lock:
            if self._closed:
                raise StaleDeliveryError("the consumer is closed; the broker has the message back")
            if type(verdict) is Extend:
                self._extend(held, verdict)
                return
            error = self._carry_out(verdict)
            self._let_go(held)
            if not held.suspect:
                self._proven = True
            if error is None:
                self.seen.settled += 1
                return
            self.seen.settle_failures += 1
            if give_back and type(verdict) is not Ack and not isinstance(error, StaleDeliveryError):
                self._session.settle((given_back(verdict),), self._timeout)
            raise error

    def _carry_out(self, verdict: Verdict) -> MQError | None:
        if type(verdict) is Forward and self._creates and verdict.queue not in self._ensured:
            try:
                self._session.declare(verdict.queue, QueueOptions(), Declare.ENSURE, self._timeout)
            except MQError as error:
                return error
            self._ensured.add(verdict.queue)
        failures = self._session.settle((verdict,), self._timeout)
        return failures[0] if failures else None

    def _extend(self, held: Held, verdict: Extend) -> None:
        now = self._clock.monotonic()
        if now + verdict.seconds <= held.stale_at:
            return  # it lasts longer as it is
        failures = self._session.settle((verdict,), self._timeout)
        if failures:
            raise failures[0]
        held.lease_from(now, verdict.seconds)

    @property
    def proven(self) -> bool:
        return self._proven and not self._suspects

    @property
    def load(self) -> tuple[int, int]:
        return 0, self._taken

    def stop(self) -> None:
        self._stopped = True
        self.arrivals.notify()

    def wait_for_holders(self, closer: Holder, timeout: float) -> None:
        """After ``stop``: let others than *closer* settle what they hold."""
        self._holders.wait(closer, timeout)

    def abandon(self) -> None:
        """As if the process had ended here. The session goes with whoever refers to it last."""
        self._closed = True

    def close(self, timeout: float) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._session.close(timeout)
        self.stop()
