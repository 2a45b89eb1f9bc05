"""From the engine's threads into an event loop, and back: futures, signals, flows."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from mqlayer.clock import Clock
from mqlayer.core.flow import Flow
from mqlayer.engine import GRACE, Holder, Line, Parcel, Signal, no_word
from mqlayer.errors import MQError, RequestTimeoutError, UsageError

__all__ = ["Bridge", "this_task"]

T = TypeVar("T")


class _Task(NamedTuple):
    """A task as the holder of deliveries."""

    task: "asyncio.Task[Any] | None"

    def is_alive(self) -> bool:
        return self.task is not None and not self.task.done()


def this_task() -> Holder:
    """The running task, as the engine knows it."""
    return _Task(asyncio.current_task())


class Bridge:
    """Belongs to the running loop. Results of many futures enter it with one call."""

    def __init__(self, clock: Clock) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._finished: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def awaitable(self, future: "Future[T]") -> "asyncio.Future[T]":
        """An asyncio future that ends as *future* does."""
        self._check_loop()
        waiter: asyncio.Future[T] = self._loop.create_future()

        def done(finished: "Future[T]") -> None:
            self._post(lambda: _copy(finished, waiter))

        if future.done():
            _copy(future, waiter)
        else:
            future.add_done_callback(done)
        return waiter

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise UsageError("a connection belongs to the event loop in which it was made; connect in this one")

    async def answer(self, future: "Future[T]", timeout: float) -> T:
        """The result of *future*.

        Raises:
            RequestTimeoutError: there was none within *timeout* seconds.
        """
        self._check_loop()
        if future.done():
            return future.result()
        try:
            async with asyncio.timeout(timeout):
                return await self.awaitable(future)
        except TimeoutError:
            future.cancel()
            raise RequestTimeoutError(f"no answer within {timeout:g} s") from None

    async def drive(self, flow: Flow[T], timeout: float) -> T:
        """Take a flow through its steps."""
        try:
            future = next(flow)
            while True:
                try:
                    result = await self.answer(future, timeout)
                except MQError as error:
                    future = flow.throw(error)
                except BaseException:  # cancelled: the flow lets go of what it holds
                    flow.close()
                    raise
                else:
                    future = flow.send(result)
        except StopIteration as end:
            value: T = end.value
            return value

    async def fate(self, line: Line, parcel: Parcel) -> str:
        """The id of a queued message once it is safe.

        Raises:
            SendError: as its ``fate`` says.
        """
        if parcel.future.done():
            return parcel.future.result()
        waiter = self.awaitable(parcel.future)
        left = max(parcel.deadline - self._clock.monotonic(), 0.0)

        def late() -> None:
            line.withdraw(parcel)
            timers.append(self._loop.call_later(GRACE, silent))

        def silent() -> None:
            if not waiter.done():
                waiter.set_exception(no_word(parcel))

        timers = [self._loop.call_later(left, late)]
        try:
            return await waiter
        except asyncio.CancelledError:
            line.withdraw(parcel)
            raise
        finally:
            for timer in timers:
                timer.cancel()

    async def change(self, signal: Signal, version: int, timeout: float | None) -> None:
        """Until *signal* is notified, something is due, the clock jumps, or for *timeout* seconds."""
        self._check_loop()
        waiter: asyncio.Future[None] = self._loop.create_future()

        def wake() -> None:
            self._post(lambda: _end(waiter))

        if not signal.when(version, wake):
            return
        left = signal.until_due(timeout)
        timer = None if left is None else self._loop.call_later(max(left, 0.0), _end, waiter)
        unwatch = self._clock.watch(wake)
        try:
            await waiter
        finally:
            unwatch()
            signal.forget(wake)
            if timer is not None:
                timer.cancel()

    def _post(self, step: Callable[[], None]) -> None:
        self._finished.append(step)
        if not self._scheduled:
            self._scheduled = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                self._loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        self._scheduled = False
        while self._finished:
            self._finished.popleft()()


def _copy(future: "Future[Any]", waiter: "asyncio.Future[Any]") -> None:
    if waiter.done():  # cancelled, or its time was up
        return
    if future.cancelled():
        waiter.cancel()
        return
    error = future.exception()
    if error is None:
        waiter.set_result(future.result())
    else:
        waiter.set_exception(error)


def _end(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
