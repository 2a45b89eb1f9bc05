"""A worker: hands deliveries to a handler, several at a time, and survives what the handler does."""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from mqlayer.api import Consumer, Delivery
from mqlayer.errors import ArgumentError, ClosedError

__all__ = ["check_concurrency", "run"]

CONCURRENCY_MAX = 1024  #: handlers side by side at the most
log = logging.getLogger("mqlayer")


def run(consumer: Consumer, handler: Callable[[Delivery], object], *, concurrency: int = 1) -> None:
    """Call ``handler(delivery)`` inside ``with delivery`` for each delivery, until the consumer closes or SIGTERM comes.

    A handler that fails is logged; its delivery goes back or to the dead-letter queue as the consumer's ``Retry`` says. A
    handler may settle its delivery itself. The worker begins with one handler; once a delivery has been settled that was
    not delivered before, up to *concurrency* run side by side, in threads. One that may have taken its last worker down
    runs alone. SIGTERM and SIGINT (heeded in the main thread only): nothing more is begun, what runs is finished, what was
    fetched goes back uncounted; then this returns. A second signal is the process's own affair again.

    Raises:
        QueueNotFoundError: the queue was deleted.
    """
    check_concurrency(concurrency)
    gate = _Gate(consumer, concurrency)
    with (
        _stopped_by_signals(gate.stop),
        _Threads(concurrency, lambda delivery: _handle(handler, delivery, gate)) as threads,
    ):
        while True:
            try:
                if not gate.wait_for_turn():
                    break
                delivery = consumer.receive()
            except ClosedError:
                break
            if delivery is None:
                continue
            if gate.begin(delivery):
                threads.begin(delivery)
            else:
                _give_back(delivery)


class _Threads:
    """What runs handlers: as many threads as ran side by side so far.

    Daemons, where a ``ThreadPoolExecutor`` has threads that the interpreter's end waits for: a handler that never returns
    would keep a process whose ``run`` is in a daemon thread itself.
    """

    def __init__(self, most: int, handle: Callable[[Delivery], None]) -> None:
        self._most = most
        self._handle = handle
        self._waiting: SimpleQueue[Delivery | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def begin(self, delivery: Delivery) -> None:
        """Handle it in a thread that is idle, or in a new one."""
        if self._idle.acquire(blocking=False):
            pass
        elif len(self._threads) == self._most:
            self._idle.acquire()  # one of them is through with its handler, and has not said so yet
        else:
            name = f"mqlayer handler {len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._waiting.put(delivery)

    def _work(self) -> None:
        while (delivery := self._waiting.get()) is not None:
            self._handle(delivery)  # raises nothing
            self._idle.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the handlers that run."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()


class _NotBegunError(BaseException):
    """Leaves ``with delivery`` as a shutdown would: the message goes back uncounted."""


def _give_back(delivery: Delivery) -> None:
    """Give back what was fetched and will not be begun."""
    with contextlib.suppress(_NotBegunError), delivery:
        raise _NotBegunError


def check_concurrency(concurrency: int) -> None:
    """Raises ``ArgumentError``."""
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or not 1 <= concurrency <= CONCURRENCY_MAX:
        raise ArgumentError(f"concurrency is a whole number from 1 to {CONCURRENCY_MAX}, not {concurrency!r}")


def _handle(handler: Callable[[Delivery], object], delivery: Delivery, gate: "_Gate") -> None:
    try:
        with delivery:
            handler(delivery)
    except Exception:
        # ``with delivery`` has logged it with its traceback and settled the delivery; a worker survives its handlers.
        log.debug("%r: its handler failed", delivery)
    except BaseException:
        log.exception("%r: its handler wants the worker to end", delivery)
        gate.stop()
    finally:
        gate.end(delivery)


class _Gate:
    """Says when the next delivery may be fetched and begun."""

    def __init__(self, consumer: Consumer, concurrency: int) -> None:
        self._consumer = consumer
        self._concurrency = concurrency
        self._changed = threading.Condition()
        self._running = 0
        self._stopping = False

    def wait_for_turn(self) -> bool:
        """Wait until another handler may run; False when nothing more is to be begun."""
        with self._changed:
            while not self._stopping:
                if self._running < (self._concurrency if self._consumer.proven else 1):
                    return True
                self._changed.wait()
            return False

    def begin(self, delivery: Delivery) -> bool:
        """Count it as running; a suspect waits until nothing else runs. False when nothing more is to be begun."""
        with self._changed:
            while delivery.suspect and self._running and not self._stopping:
                self._changed.wait()
            if not self._stopping:
                self._running += 1
            return not self._stopping

    def end(self, delivery: Delivery) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        # From a signal handler: no lock may be taken that the interrupted thread might hold.
        self._stopping = True
        threading.Thread(target=self._announce, name="mqlayer worker stop", daemon=True).start()

    def _announce(self) -> None:
        self._consumer.stop()
        with self._changed:
            self._changed.notify_all()


@contextlib.contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def heed(number: int, frame: object) -> None:
        log.info("signal %d: the worker finishes what runs", number)
        restore()
        stop()

    for number in before:
        signal.signal(number, heed)
    try:
        yield
    finally:
        restore()
