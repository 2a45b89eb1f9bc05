"""Verdicts on their way to the broker: the callers' own, the window's surplus, and the renewal of leases."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from mqlayer.driver import Declare, Extend, Forward, Incoming, QueueOptions, Release, Session, Verdict
from mqlayer.engine.held import Held
from mqlayer.engine.intake import Intake
from mqlayer.errors import MQError, StaleDeliveryError
from mqlayer.policy import given_back

__all__ = ["Settlement", "Settlements"]

REST_MAX = 100_000  #: deliveries taken in when a subscription has ended; a window is never so large
SUBSCRIBE_TIMEOUT = 5.0  #: seconds for changing one window
GIVE_BACK_AGAIN = (
    1.0  #: seconds between two attempts to give back what a broker does not take, because its queue is full, say
)
log = logging.getLogger("mqlayer")


class Settlement:
    """One verdict, and who waits for it (``None``: nobody)."""

    __slots__ = ("again", "future", "give_back", "held", "verdict")

    def __init__(
        self,
        held: Held | None,
        verdict: Verdict,
        future: Future[None] | None = None,
        give_back: bool = False,
        *,
        again: bool = False,
    ) -> None:
        self.held = held
        self.verdict = verdict
        self.future = future
        if future is not None:  # who waits no longer does not take a verdict back that is on its way
            future.set_running_or_notify_cancel()
        self.give_back = give_back
        self.again = again  # it failed before, and was logged


class Settlements:
    """Carried out by the owner, all that is queued at once.

    Args:
        timeout: Seconds for one batch.
        creates: A missing dead-letter queue may be created.
        collect: Takes in what a session still hands over when a subscription has ended; ``None`` where the broker itself
            gives it back uncounted.
    """

    def __init__(
        self,
        intake: Intake,
        *,
        timeout: float,
        creates: bool,
        collect: Callable[[Sequence[Incoming]], None] | None = None,
    ) -> None:
        self._collect = collect
        self._intake = intake
        self._timeout = timeout
        self._creates = creates
        self._queue: deque[Settlement] = deque()
        self._ensured: set[str] = set()
        self._unreturned: list[tuple[int, Verdict]] = []  # each with the connection that it came on
        self._again_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._queue)

    def put(self, item: Settlement) -> None:
        self._queue.append(item)

    def carry_out(self, session: Session, now: float) -> None:
        """Adjust the windows, then settle whatever there is to settle."""
        intake = self._intake
        for queue, size in intake.windows().items():
            self._set_window(session, queue, size)
        items = [Settlement(None, verdict) for verdict in intake.surplus()]
        while self._queue:
            items.append(self._queue.popleft())
        if self._unreturned and now >= self._again_at:
            unreturned, self._unreturned = self._unreturned, []
            items += [Settlement(None, of, again=True) for epoch, of in unreturned if epoch == intake.epoch]
        # As long as was asked for: what is left of a lease on arrival is less, by the time that it was on its way.
        least = intake.lease or 0.0
        items.extend(Settlement(held, Extend(held.incoming, max(held.lease, least))) for held in intake.due(now))
        if not items:
            return
        try:
            ready = [item for item in items if self._target_exists(session, item)]
            failures = session.settle([item.verdict for item in ready], self._timeout) if ready else {}
        except BaseException as defect:  # of the backend, ends the line, but whoever waits hears of it
            for item in items:
                if item.future is not None and not item.future.done():
                    item.future.set_exception(defect)
            raise
        for place, item in enumerate(ready):
            error = failures.get(place)
            if error is None:
                self._succeeded(item)
            else:
                self._failed(item, error)
        if self._unreturned:
            self._again_at = now + GIVE_BACK_AGAIN

    def _set_window(self, session: Session, queue: str, size: int) -> None:
        try:
            if size:
                session.subscribe(queue, size, self._intake.lease, SUBSCRIBE_TIMEOUT)
            else:
                session.unsubscribe(queue, SUBSCRIBE_TIMEOUT)
                if self._collect is not None:
                    session.wake()  # take what is there, and give the broker no time for more: acks wait for this
                    self._collect(session.receive(REST_MAX, 0.0))
        except MQError as error:
            if not error.retryable:
                self._intake.fail(error)
            elif not self._intake.closed:
                # Not connected, or slow: the next connection subscribes, a later turn looks again.
                self._intake.unset(queue)

    def _target_exists(self, session: Session, item: Settlement) -> bool:
        """Make sure of the queue that a dead letter goes to, the first time."""
        verdict = item.verdict
        if not self._creates or type(verdict) is not Forward or verdict.queue in self._ensured:
            return True
        try:
            session.declare(verdict.queue, QueueOptions(), Declare.ENSURE, self._timeout)
        except MQError as error:
            self._failed(item, error)
            return False
        self._ensured.add(verdict.queue)
        return True

    def _succeeded(self, item: Settlement) -> None:
        if type(item.verdict) is Extend and item.held is not None:
            self._intake.renewed(item.held, item.verdict.seconds)
        if item.future is not None:
            item.future.set_result(None)

    def _failed(self, item: Settlement, error: MQError) -> None:
        verdict = item.verdict
        if type(verdict) is Extend:
            self._not_extended(item, error)
        elif not isinstance(error, StaleDeliveryError):
            if type(verdict) is Forward:
                self._ensured.discard(verdict.queue)
            if type(verdict) is Release:  # else it would take up room, and nobody would settle it
                self._unreturned.append((self._intake.epoch, verdict))
            elif item.give_back:
                log.warning("a delivery of %r goes back to its queue: %s", verdict.of.queue, error)
                self._queue.append(Settlement(None, given_back(verdict), give_back=True))
        if item.future is not None:
            item.future.set_exception(error)
        elif type(verdict) is not Extend:
            level = logging.DEBUG if item.again else logging.WARNING
            log.log(level, "a delivery of %r could not be settled: %s", verdict.of.queue, error)

    def _not_extended(self, item: Settlement, error: MQError) -> None:
        if item.held is None:
            return
        if isinstance(error, StaleDeliveryError):
            self._intake.gone(item.held)
        else:
            self._intake.renew_soon(item.held)

    def fail(self, error: BaseException) -> None:
        """Nothing is carried out any more."""
        while self._queue:
            item = self._queue.popleft()
            if item.future is not None:
                item.future.set_exception(error)
