"""A session and a backend that do what a test tells them, and write down what they were asked to do."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from mqlayer.backends.memory import MemoryBackend, MemoryOptions
from mqlayer.backends.memory_profiles import MEMORY
from mqlayer.clock import Clock, SystemClock
from mqlayer.driver import (
    Capabilities,
    Counts,
    Declare,
    Extend,
    Failures,
    Incoming,
    Outgoing,
    QueueOptions,
    Release,
    Session,
    Stats,
    Support,
    Trail,
    Verdict,
)
from mqlayer.errors import ConnectionLostError, NotSentError, OutcomeUnknownError, StaleDeliveryError
from mqlayer.urls import BrokerURL

NATIVE = MEMORY
BARE = replace(  # counts by a flag, copies for everything
    MEMORY,
    nack=Support.UNSUPPORTED,
    release=Support.UNSUPPORTED,
    forward=Support.UNSUPPORTED,
    dead_letter=Support.UNSUPPORTED,
    ttl=Support.UNSUPPORTED,
    delivery_count=Support.UNSUPPORTED,
    counts=Counts.FLAG,
    timed_lease=False,
)
PATIENCE = 10.0  #: seconds after which a test that waits for something gives up


def outgoing(id: str = "m1", body: bytes = b"x", **fields: Any) -> Outgoing:
    return Outgoing(id, body)._replace(**fields)


def incoming(
    id: str = "m1",
    queue: str = "q",
    *,
    count: int | None = 1,
    redelivered: bool = False,
    lease_until: float | None = None,
    trail: Trail | None = None,
    **fields: Any,
) -> Incoming:
    message = outgoing(id, **fields)
    if trail is not None:
        message = message._replace(trail=trail)
    return Incoming(message, queue, f"token of {id}", lease_until, count, redelivered)


class Gate:
    """Holds a call up until the test opens it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def wait_entered(self) -> None:
        assert self.entered.wait(PATIENCE), "nobody came to the gate"

    def pass_through(self) -> None:
        self.entered.set()
        assert self._open.wait(PATIENCE), "the gate was never opened"


class FakeSession:
    """A session by script. Without one it confirms every send, settles everything and has no deliveries.

    ``on(verb, step, …)`` says what the next calls of a verb do: an exception is raised, a callable is called with the
    call's arguments, anything else is returned. ``every(verb, step)`` says it for all calls that have no step of their own.
    """

    def __init__(self, capabilities: Capabilities = NATIVE, *, clock: Clock | None = None) -> None:
        self.capabilities = capabilities
        self.calls: list[tuple[Any, ...]] = []
        self.sent: list[tuple[str, Outgoing]] = []
        self.published: list[tuple[str, Outgoing]] = []
        self.settled: list[Verdict] = []
        self.windows: dict[str, int] = {}
        self.closed = False
        self.aborted = False
        self._clock = clock or SystemClock()
        self._steps: dict[str, deque[Any]] = {}
        self._always: dict[str, Any] = {}
        self._inbox: deque[Incoming] = deque()
        self._unsettled: dict[object, Incoming] = {}
        self._changed = threading.Condition()
        self._woken = False
        self._lost: ConnectionLostError | None = None

    # --- for the test ------------------------------------------------------------------------------------------------

    def on(self, verb: str, *steps: Any) -> None:
        self._steps.setdefault(verb, deque()).extend(steps)

    def every(self, verb: str, step: Any) -> None:
        self._always[verb] = step

    def gate(self, verb: str, then: Any = None) -> Gate:
        """The next call of *verb* waits at a gate, then does what it would do, or *then*."""
        gate = Gate()

        def step(*arguments: Any) -> Any:
            gate.pass_through()
            return self._do(then, arguments) if then is not None else self._default(verb, arguments)

        self.on(verb, step)
        return gate

    def deliver(self, *items: Incoming) -> None:
        with self._changed:
            self._inbox.extend(items)
            self._changed.notify_all()

    def lose(self, text: str = "the connection was cut") -> None:
        """The connection ends: what is unsettled is the broker's again."""
        with self._changed:
            self._lost = ConnectionLostError(text)
            self._changed.notify_all()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds; it is looked at after each call."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), f"never came to hold; calls: {self.calls!r}"

    def named(self, verb: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == verb]

    @property
    def sent_ids(self) -> list[str | None]:
        return [message.id for _, message in self.sent]

    # --- the session -------------------------------------------------------------------------------------------------

    def declare(self, queue: str, options: QueueOptions, mode: Declare, timeout: float) -> QueueOptions:
        return self._step("declare", queue, options, mode, timeout) or options

    def bind(self, topic: str, group: str | None, timeout: float) -> str:
        return self._step("bind", topic, group, timeout) or f"{topic}.{group}"

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        failures: Failures = self._step("send", queue, tuple(batch), timeout) or {}
        self.sent.extend((queue, message) for place, message in enumerate(batch) if place not in failures)
        return failures

    def publish(self, topic: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        failures: Failures = self._step("publish", topic, tuple(batch), timeout) or {}
        self.published.extend((topic, message) for place, message in enumerate(batch) if place not in failures)
        return failures

    def subscribe(self, queue: str, window: int, lease: float | None, timeout: float) -> None:
        self._step("subscribe", queue, window, lease, timeout)
        with self._changed:
            self.windows[queue] = window
            self._changed.notify_all()

    def unsubscribe(self, queue: str, timeout: float) -> None:
        self._step("unsubscribe", queue, timeout)
        with self._changed:
            self.windows.pop(queue, None)
            self._changed.notify_all()

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        scripted = self._step("receive", limit, timeout)
        if scripted is not None:
            return scripted  # type: ignore[no-any-return]
        with self._changed:
            got = self._take(limit)
            if not got and timeout > 0 and not self._woken and self._lost is None:
                self._changed.wait(min(timeout, PATIENCE))
                got = self._take(limit)
            self._woken = False
            if self._lost is not None:
                raise self._lost
        return got

    def _take(self, limit: int) -> list[Incoming]:
        got: list[Incoming] = []
        for item in list(self._inbox):
            held = sum(one.queue == item.queue for one in self._unsettled.values())
            if len(got) < limit and held < self.windows.get(item.queue, 0):
                self._inbox.remove(item)
                self._unsettled[item.token] = item
                got.append(item)
        return got

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        failures: Failures = self._step("settle", tuple(verdicts), timeout) or {}
        with self._changed:
            for place, verdict in enumerate(verdicts):
                if place in failures:
                    continue
                self.settled.append(verdict)
                if type(verdict) is not Extend:
                    back = self._unsettled.pop(verdict.of.token, None)
                    if back is not None and type(verdict) is Release:
                        self._inbox.appendleft(back)
            self._changed.notify_all()
        return failures

    def stats(self, queue: str, timeout: float) -> Stats:
        return self._step("stats", queue, timeout) or Stats()

    def peek(self, queue: str, limit: int, timeout: float) -> Sequence[Incoming]:
        return self._step("peek", queue, limit, timeout) or ()

    def purge(self, queue: str, timeout: float) -> int | None:
        return self._step("purge", queue, timeout)  # type: ignore[no-any-return]

    def delete(self, queue: str, timeout: float) -> None:
        self._step("delete", queue, timeout)

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def abort(self) -> None:
        self.aborted = True
        self.lose("aborted")

    def close(self, timeout: float) -> None:
        self._step("close", timeout)
        self.closed = True

    # --- the script --------------------------------------------------------------------------------------------------

    def _step(self, verb: str, *arguments: Any) -> Any:
        with self._changed:
            self.calls.append((verb, *arguments))
            self._changed.notify_all()
            steps = self._steps.get(verb)
            step = steps.popleft() if steps else self._always.get(verb)
        if step is not None:
            return self._do(step, arguments)
        return self._default(verb, arguments)

    def _do(self, step: Any, arguments: tuple[Any, ...]) -> Any:
        if isinstance(step, BaseException):
            raise step
        return step(*arguments) if callable(step) else step

    def _default(self, verb: str, arguments: tuple[Any, ...]) -> Any:
        lost = self._lost
        if lost is None or verb in ("receive", "close"):
            return None
        if verb in ("send", "publish"):
            return dict.fromkeys(range(len(arguments[1])), NotSentError("not connected"))
        if verb == "settle":
            return {place: StaleDeliveryError("not connected") for place in range(len(arguments[0]))}
        raise lost


def all_unknown(name: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
    """A step for ``send``: every message left, and no answer came."""
    return {place: OutcomeUnknownError("no answer") for place in range(len(batch))}


def failing(errors: dict[int, Exception]) -> Callable[..., Any]:
    """A step that returns these failures by place."""
    return lambda *arguments: errors


class Connector:
    """Makes the given sessions one after another; an exception among them is raised instead."""

    def __init__(self, *steps: Any) -> None:
        self._steps: Iterator[Any] = iter(steps)
        self.attempts = 0

    def __call__(self, timeout: float) -> Session:
        self.attempts += 1
        step = next(self._steps)
        if isinstance(step, BaseException):
            raise step
        return step() if callable(step) and not isinstance(step, FakeSession) else step


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeOptions:
    prefetch: int | None = None
    token: str | None = None


class FakeBackend:
    """Hands out the sessions that the test made, then fresh ones; ``inline=False``, so each line has its thread."""

    inline = False

    def __init__(self, *sessions: Any, capabilities: Capabilities = NATIVE) -> None:
        self.sessions: list[FakeSession] = []
        self.closed = False
        self._given = list(sessions)
        self._capabilities = capabilities

    def session(self, timeout: float, look_again: Callable[[float], None]) -> Session:
        step = self._given.pop(0) if self._given else FakeSession(self._capabilities)
        if isinstance(step, BaseException):
            raise step
        self.sessions.append(step)
        return step  # type: ignore[no-any-return]

    def close(self) -> None:
        self.closed = True


class FakeFactory:
    """What ``register_backend`` takes: every URL of its scheme leads to one backend."""

    def __init__(self, backend: Any, options: type = FakeOptions) -> None:
        self.backend = backend
        self.options = options
        self.url: BrokerURL | None = None
        self.given: object = None

    def __call__(self, url: BrokerURL, options: object, *, clock: Clock) -> Any:
        self.url, self.given = url, options
        return self.backend


# --- a whole broker behind threads -----------------------------------------------------------------------------------


class ThreadedBackend:
    """The memory broker as one whose sessions block, so that lines have threads, windows and leases to renew."""

    inline = False

    def __init__(self, *, clock: Clock | None = None, lease: float = 30.0) -> None:
        self._inner = MemoryBackend(MemoryOptions(lease=lease), clock=clock or SystemClock())
        self._clock = clock or SystemClock()

    def session(self, timeout: float, look_again: Callable[[float], None]) -> Session:
        return ThreadedSession(self._inner, self._clock)

    def close(self) -> None:
        self._inner.close()


class ThreadedSession:
    """A memory session whose ``receive`` waits."""

    def __init__(self, backend: MemoryBackend, clock: Clock) -> None:
        self._changed = threading.Condition()
        self._look_at = float("-inf")
        self._woken = False
        self._clock = clock
        self._inner = backend.session(0.0, self._look_again)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _look_again(self, when: float) -> None:
        with self._changed:
            self._look_at = min(self._look_at, when)
            self._changed.notify_all()

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        deadline = self._clock.monotonic() + timeout
        while True:
            with self._changed:
                if self._look_at <= self._clock.monotonic():  # else the store thinks that it is still known
                    self._look_at = float("inf")
            got = self._inner.receive(limit, 0.0)
            with self._changed:
                now = self._clock.monotonic()
                if got or now >= deadline or self._woken:
                    self._woken = False
                    return got
                if self._look_at > now:
                    self._changed.wait(min(deadline, self._look_at) - now)
                    if not self._woken and self._clock.monotonic() >= deadline:
                        return ()

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def abort(self) -> None:
        self._inner.abort()
        self.wake()


@contextmanager
def in_thread(call: Callable[[], Any]) -> "Iterator[Running]":
    """Run *call* in a thread; at the end of the block it has ended."""
    running = Running(call)
    try:
        yield running
    finally:
        running.thread.join(PATIENCE)
        assert not running.thread.is_alive(), "the thread did not end"


class Running:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self.started = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.started.wait(PATIENCE)

    def _run(self) -> None:
        self.started.set()
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def result(self, timeout: float = PATIENCE) -> Any:
        self.thread.join(timeout)
        assert not self.thread.is_alive(), "no result in time"
        if self._error is not None:
            raise self._error
        return self._value


_numbers = itertools.count(1)


def unique(prefix: str = "fake") -> str:
    """A name that no other test uses."""
    return f"{prefix}{next(_numbers)}"


def ids(items: Iterable[Any]) -> list[Any]:
    return [item.id for item in items]
