"""Requests in threads of their own, because nothing can end a request of boto3 early: whoever waits for one can stop waiting.

Threads are daemons, made when they are needed, at most as many as told; each ends when it is out of work and the owner has
closed. A request that nobody waits for any more ends by itself, at the client's own timeouts.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Generic, TypeVar

from mqlayer.clock import Clock
from mqlayer.errors import ConnectionLostError, MQError, RequestTimeoutError

__all__ = ["Request", "Requests", "State"]

T = TypeVar("T")


class State(Enum):
    """Where a request is."""

    QUEUED = "queued"  #: nothing of it left
    BEGUN = "begun"  #: it may have left, and has no answer
    DONE = "done"
    WITHDRAWN = "withdrawn"  #: it will never leave


class Request(Generic[T]):
    """One call to the service. ``error`` is why it failed, once it is done."""

    __slots__ = ("_call", "defect", "error", "result", "state")

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self.state = State.QUEUED
        self.result: T | None = None
        self.error: MQError | None = None
        self.defect: BaseException | None = None

    def carry_out(self) -> None:
        """In a thread of ``Requests``."""
        try:
            self.result = self._call()
        except MQError as error:
            self.error = error
        except BaseException as defect:  # of ours: whoever waits hears of it
            self.defect = defect

    def outcome(self, what: str) -> T:
        """What came of it, after ``Requests.wait``.

        Raises:
            MQError: why it failed. RequestTimeoutError: no answer has come in time.
        """
        if self.defect is not None:
            raise self.defect
        if self.error is not None:
            raise self.error
        if self.state is not State.DONE:
            raise RequestTimeoutError(f"SQS did not answer in time ({what})")
        return self.result  # type: ignore[return-value]


class Requests:
    """The threads of one session.

    Args:
        most: Requests at the same time; further ones wait for a thread.
    """

    def __init__(self, most: int, clock: Clock) -> None:
        self._most = most
        self._clock = clock
        self.changed = threading.Condition()  #: held while states change; notified when a request is done
        self._queue: deque[Request[object]] = deque()
        self._threads = 0
        self._idle = 0
        self._aborted = False
        self._ended = False

    def start(self, call: Callable[[], T]) -> Request[T]:
        """Have *call* done. It raises nothing but ``MQError``."""
        request = Request(call)
        with self.changed:
            self._queue.append(request)  # type: ignore[arg-type]
            if self._idle < len(self._queue) and self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._work, name="mqlayer sqs:// request", daemon=True).start()
            else:
                self.changed.notify_all()
        return request

    def call(self, call: Callable[[], T], timeout: float, what: str) -> T:
        """Do *call*, and wait for it.

        Raises:
            MQError: what it raised. RequestTimeoutError: no answer in time; it may still take effect.
        """
        request = self.start(call)
        self.wait([request], self._clock.monotonic() + timeout)
        if self._aborted and request.state is not State.DONE:
            raise ConnectionLostError("the session was ended")
        return request.outcome(what)

    def wait(self, requests: Iterable[Request[T]], deadline: float) -> None:
        """Until all are done, the deadline, or ``abort``. What has not begun by then never leaves."""
        with self.changed:
            waiting = list(requests)
            while not self._aborted:
                waiting = [request for request in waiting if request.state is not State.DONE]
                left = deadline - self._clock.monotonic()
                if not waiting or left <= 0:
                    break
                self._clock.wait(self.changed, left)
            for request in waiting:
                if request.state is State.QUEUED:
                    request.state = State.WITHDRAWN

    def abort(self) -> None:
        """Nobody waits any longer."""
        with self.changed:
            self._aborted = True
            self.changed.notify_all()

    def end(self) -> None:
        """No request is started any more."""
        with self.changed:
            self._ended = True
            self.changed.notify_all()

    def _work(self) -> None:
        while True:
            with self.changed:
                while not self._queue:
                    if self._ended:
                        self._threads -= 1
                        return
                    self._idle += 1
                    self._clock.wait(self.changed, None)
                    self._idle -= 1
                request = self._queue.popleft()
                if request.state is State.WITHDRAWN:
                    continue
                request.state = State.BEGUN
            request.carry_out()
            with self.changed:
                request.state = State.DONE
                self.changed.notify_all()
