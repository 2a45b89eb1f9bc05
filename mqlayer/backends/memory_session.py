"""A session of the memory broker, and the store that sessions share. Knows locks and threads; the store knows neither."""

import _thread
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from mqlayer.backends.memory_profiles import MEMORY, check_name
from mqlayer.backends.memory_queue import Client
from mqlayer.backends.memory_store import Store
from mqlayer.clock import Clock
from mqlayer.driver import Capabilities, Declare, Failures, Incoming, Outgoing, QueueOptions, Stats, Verdict
from mqlayer.errors import (
    ArgumentError,
    ClosedError,
    ConnectionLostError,
    MQError,
    NotSentError,
    StaleDeliveryError,
)

__all__ = ["MemorySession", "SharedStore"]

P = ParamSpec("P")
T = TypeVar("T")


class SharedStore:
    """A store with its lock and its clock: what the sessions of several threads share."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.monotonic, self.time = clock.monotonic, clock.time
        self.pid = os.getpid()
        self.backends = 0  # how many have it open; under the factory's lock
        self.store = Store()
        self.lock = threading.Lock()
        self.abandoned: deque[Client] = deque()

    def do(self, verb: Callable[Concatenate[float, float, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a verb of the store; then, without the lock, tell whoever may find something in a receive."""
        if self.abandoned:
            self.reap()
        calls: list[tuple[Callable[[float], None], float]] = []
        try:
            with self.lock:
                try:
                    return verb(self.monotonic(), self.time(), *args, **kwargs)
                finally:
                    calls, self.store.calls = self.store.calls, calls
        finally:
            _tell(calls)

    def abandon(self, client: Client) -> None:
        """A session was garbage-collected: what it held goes back before the next operation, or in a moment.

        The collector may run in the middle of an operation on this store, with its lock held, so another thread does it;
        ``_thread`` because ``threading.Thread.start`` takes a lock that the interrupted code may hold, too.
        """
        self.abandoned.append(client)
        _thread.start_new_thread(self.reap, ())

    def reap(self) -> None:
        """Let the abandoned sessions leave."""
        while True:
            try:
                client = self.abandoned.popleft()
            except IndexError:  # all done, perhaps by another thread
                return
            self.do(self.store.leave, client, False)


class MemorySession:
    """A session that keeps no rule but the store's own. ``LimitedSession`` adds a profile's and a test's.

    Args:
        lease: Seconds for which a delivery is this session's, where ``subscribe`` does not say.
        expires: Discard what has expired; else ``expires_at`` only travels, for a layer above that looks after it.
    """

    capabilities: Capabilities = MEMORY

    def __init__(
        self, shared: SharedStore, lease: float, look_again: Callable[[float], None], *, expires: bool = True
    ) -> None:
        self._expires = expires
        self._look_again = look_again
        self._lease = lease
        self._shared = shared
        self._do = shared.do
        self._store = shared.store
        self._ended: MQError | None = None
        this = weakref.ref(self)  # the store must not keep a session alive that everybody else has forgotten

        def tell(when: float) -> None:
            session = this()
            if session is not None:
                session._look_again(when)

        self._client = Client(tell)
        self._do(self._store.join, self._client)
        self._finalizer = weakref.finalize(self, shared.abandon, self._client)
        self._finalizer.atexit = False

    @property
    def alive(self) -> bool:
        return self._ended is None

    def declare(self, queue: str, options: QueueOptions, mode: Declare, timeout: float) -> QueueOptions:
        self._check()
        check_name(None, queue)
        return self._do(self._store.declare, queue, options, mode)

    def bind(self, topic: str, group: str | None, timeout: float) -> str:
        """As the driver's. The queue is ``topic.group``; in the topic ``%`` is ``%25`` and ``.`` is ``%2E``, in the group
        ``%`` is ``%25``."""
        self._check()
        check_name(None, topic)
        if group is not None:
            check_name(None, group)
        return self._do(self._store.bind, self._client, topic, group)

    # The next three are called for every message. They are ``SharedStore.do`` written out: its general form costs twice
    # the work itself. ``with``, and not ``acquire``: between that and a ``try``, KeyboardInterrupt would keep the lock.

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        if self._ended is not None:
            return self._not_sent(batch)
        shared, store = self._shared, self._store
        if shared.abandoned:
            shared.reap()
        with shared.lock:
            wall = shared.time() if store.has_expiry else 0.0
            failures = store.send(shared.monotonic(), wall, queue, batch, self._expires)
            calls = store.calls
            if calls:
                store.calls = []
        if calls:
            _tell(calls)
        return failures

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        if self._ended is not None:
            raise self._ended
        shared, store = self._shared, self._store
        if shared.abandoned:
            shared.reap()
        with shared.lock:
            wall = shared.time() if store.has_expiry else 0.0
            found = store.receive(shared.monotonic(), wall, self._client, limit)
            calls = store.calls
            if calls:
                store.calls = []
        if calls:
            _tell(calls)
        return found

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        if self._ended is not None:
            text = "the session has ended; the broker has the message back"
            return {index: StaleDeliveryError(text) for index in range(len(verdicts))}
        shared, store = self._shared, self._store
        if shared.abandoned:
            shared.reap()
        with shared.lock:
            wall = shared.time() if store.has_expiry else 0.0
            failures = store.settle(shared.monotonic(), wall, self._client, verdicts)
            calls = store.calls
            if calls:
                store.calls = []
        if calls:
            _tell(calls)
        return failures

    def publish(self, topic: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        if self._ended is not None:
            return self._not_sent(batch)
        return self._do(self._store.publish, topic, batch, self._expires)

    def subscribe(self, queue: str, window: int, lease: float | None, timeout: float) -> None:
        """As the driver's. The subscription outlives its queue, which ``receive`` misses until it is made again."""
        self._check()
        if window < 0 or (lease is not None and not lease > 0):
            raise ArgumentError(
                f"a subscription has a window from 0 and a positive lease, not {window!r} and {lease!r}"
            )
        self._do(self._store.subscribe, self._client, queue, window, self._lease if lease is None else lease)

    def unsubscribe(self, queue: str, timeout: float) -> None:
        self._check()
        self._do(self._store.unsubscribe, self._client, queue)

    def stats(self, queue: str, timeout: float) -> Stats:
        self._check()
        return self._do(self._store.stats, queue)

    def peek(self, queue: str, limit: int, timeout: float) -> Sequence[Incoming]:
        self._check()
        return self._do(self._store.peek, queue, limit)

    def purge(self, queue: str, timeout: float) -> int | None:
        self._check()
        return self._do(self._store.purge, queue)

    def delete(self, queue: str, timeout: float) -> None:
        self._check()
        self._do(self._store.delete, queue)

    def wake(self) -> None:
        """Nothing to do: no call ever waits."""

    def abort(self) -> None:
        self._end(ConnectionLostError("the session was aborted"), released=False)

    def close(self, timeout: float) -> None:
        self._end(ClosedError("the session is closed"), released=True)

    def lose(self) -> None:
        """The connection is lost, as a fault ordered it."""
        self._end(ConnectionLostError("the connection to memory:// was lost, as the test ordered"), released=False)

    def duplicate(self, incoming: Incoming) -> None:
        """Let the message be delivered once more, as a fault ordered it."""
        self._do(self._store.duplicate, incoming)

    def _end(self, error: MQError, *, released: bool) -> None:
        if self._finalizer.detach() is not None:  # once, whichever thread comes first
            self._ended = error
            self._do(self._store.leave, self._client, released)

    def _check(self) -> None:
        if self._ended is not None:
            raise self._ended

    def _not_sent(self, batch: Sequence[Outgoing]) -> Failures:
        text = f"not sent: {self._ended}"
        return {index: NotSentError(text, message_id=message.id) for index, message in enumerate(batch)}


def _tell(calls: list[tuple[Callable[[float], None], float]]) -> None:
    for tell, when in calls:
        tell(when)
