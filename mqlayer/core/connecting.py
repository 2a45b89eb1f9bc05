"""A connection but for the waiting: queues, questions, health, the end."""

import contextlib
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from mqlayer.clock import Clock
from mqlayer.codec import decode
from mqlayer.core.flow import Flow
from mqlayer.driver import Capabilities, Declare, Incoming, QueueOptions, Session, Stats, Support
from mqlayer.engine import Engine, Holder
from mqlayer.errors import ArgumentError, ClosedError, MQError, UnmetNeedError, UnsupportedError
from mqlayer.message import ReceivedMessage, check_text
from mqlayer.needs import Needs, unmet
from mqlayer.registry import Target

__all__ = ["ConnectionCore", "Health"]

TIMEOUT = 30.0  #: seconds that a call may take, where neither the URL nor ``connect`` nor the call says
EXIT_TIMEOUT = 5.0  #: seconds for closing what is still open when the interpreter ends
TIMEOUT_MAX = 1e9  #: seconds, 31 years: who says more means for ever, and Python's own waits take little more
PEEK_MAX = 1000  #: messages that one ``peek`` returns at the most
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a connection has seen so far, all its consumers included.

    Attributes:
        connected: Every connection that is in use stands at this moment.
        connections_lost: How often one ended; each was, or is being, made again.
        sent, send_failures, received, settled, settle_failures: Messages.
        buffered: Deliveries that wait here for a caller. held: … that callers have and have not settled.
        last_error: The newest error, as text; ``None`` if there was none.
    """

    connected: bool
    connections_lost: int
    sent: int
    send_failures: int
    received: int
    settled: int
    settle_failures: int
    buffered: int
    held: int
    last_error: str | None


class ConnectionCore:
    """Everything a connection does except wait."""

    def __init__(self, target: Target, *, needs: Needs | None, timeout: float, clock: Clock) -> None:
        self.clock = clock
        self.timeout = min(target.common.timeout or timeout, TIMEOUT_MAX)
        self.engine = Engine(target, clock=clock, timeout=self.timeout)
        self.url = target.url
        self._temporary: set[str] = set()
        # At the latest when the interpreter ends, or when nobody refers to the connection any more.
        self._finalizer = weakref.finalize(self, _left_open, self.engine, weakref.ref(self))
        missing = unmet(needs, self.capabilities) if needs is not None else []
        if missing:
            self.close(self.timeout)
            raise UnmetNeedError(f"{target.url.scheme}:// does not have what is needed: {', '.join(missing)}")

    @property
    def capabilities(self) -> Capabilities:
        return self.engine.capabilities

    def open_engine(self) -> Engine:
        """The engine, in the process that asks.

        Raises:
            ClosedError: the connection is closed. ForkedError: it cannot follow into this process.
        """
        engine = self.engine
        if engine.forked:
            engine.reopen_in_child()
        if engine.closed:
            raise ClosedError(f"the connection to {self.url} is closed")
        return engine

    def seconds(self, timeout: float | None) -> float:
        """A call's own timeout, or the connection's."""
        if timeout is None:
            return self.timeout
        check_seconds("timeout", timeout)
        return min(timeout, TIMEOUT_MAX)

    # --- queues ------------------------------------------------------------------------------------------------------

    def call(self, call: Callable[[Session, float], T], timeout: float | None) -> "Future[T]":
        """Have the sending line's owner do *call*."""
        return self.open_engine().sender.call(call, self.seconds(timeout))

    def declare(
        self, queue: str, dead_letter: str | None, temporary: bool, ordered: bool, timeout: float | None
    ) -> Flow[None]:
        check_queue(queue)
        if dead_letter is not None:
            check_queue(dead_letter)
            if dead_letter == queue:
                raise ArgumentError(f"the dead letters of {queue!r} cannot go to itself")
        options = QueueOptions(dead_letter=dead_letter, temporary=temporary, ordered=ordered)
        yield self.call(lambda session, left: session.declare(queue, options, Declare.COMPARE, left), timeout)
        if temporary:
            self._temporary.add(queue)
        if dead_letter is not None:
            yield self.ensure(dead_letter, timeout)

    def ensure(self, queue: str, timeout: float | None) -> "Future[QueueOptions]":
        """Make sure that a queue exists, as far as the URL allows; with its stored options."""
        check_queue(queue)
        mode = Declare.ENSURE if self.engine.creates else Declare.CHECK
        return self.call(lambda session, left: session.declare(queue, QueueOptions(), mode, left), timeout)

    def bind(self, topic: str, group: str, timeout: float | None) -> "Future[str]":
        """Make sure of a durable group of a topic."""
        return self.call(lambda session, left: session.bind(topic, group, left), timeout)

    def stats(self, queue: str, timeout: float | None) -> "Future[Stats]":
        self.require("stats")
        check_queue(queue)
        return self.call(lambda session, left: session.stats(queue, left), timeout)

    def peek(self, queue: str, limit: int, timeout: float | None) -> Flow[list[ReceivedMessage]]:
        self.require("peek")
        check_queue(queue)
        check_limit(limit, PEEK_MAX)
        found: Sequence[Incoming] = yield self.call(lambda session, left: session.peek(queue, limit, left), timeout)
        return [ReceivedMessage(incoming.message, decode) for incoming in found]

    def purge(self, queue: str, timeout: float | None) -> "Future[int | None]":
        self.require("purge")
        check_queue(queue)
        return self.call(lambda session, left: session.purge(queue, left), timeout)

    def delete(self, queue: str, timeout: float | None) -> Flow[None]:
        check_queue(queue)
        yield self.call(lambda session, left: session.delete(queue, left), timeout)
        self._temporary.discard(queue)

    def require(self, name: str) -> None:
        """Refuse, before anything leaves, what the backend lacks.

        Raises:
            UnsupportedError
        """
        if getattr(self.capabilities, name) is Support.UNSUPPORTED:
            raise UnsupportedError(f"{self.url.scheme}:// has no {name}; see connection.capabilities")

    # --- state -------------------------------------------------------------------------------------------------------

    def health(self) -> Health:
        engine = self.open_engine()
        lines = engine.lines
        seen = [engine.ended, *(line.seen for line in lines)]
        loads = [line.load for line in lines]
        errors = [one.last_error for one in seen if one.last_error is not None]
        return Health(
            connected=all(one.connected or not (one.connections or one.last_error) for one in seen),
            connections_lost=sum(one.connections_lost for one in seen),
            sent=sum(one.sent for one in seen),
            send_failures=sum(one.send_failures for one in seen),
            received=sum(one.received for one in seen),
            settled=sum(one.settled for one in seen),
            settle_failures=sum(one.settle_failures for one in seen),
            buffered=sum(load[0] for load in loads),
            held=sum(load[1] for load in loads),
            last_error=errors[-1] if errors else None,
        )

    def close(self, timeout: float | None, closer: Holder | None = None) -> None:
        """Delete temporary queues, drain, end. Again: nothing more happens."""
        seconds = self.seconds(timeout)
        engine = self.engine
        if not engine.forked and not engine.closed:
            for queue in self._temporary:
                with contextlib.suppress(MQError):  # the line has ended with a defect; the queue expires by itself
                    engine.sender.call(_deleting(queue), seconds)
            self._temporary.clear()
        self._finalizer.detach()
        engine.close(seconds, closer)

    def abandon(self) -> None:
        """As if the process had ended here, for tests of what a crash leaves behind: nothing is closed in order."""
        self._finalizer.detach()
        self.engine.abandon()


def _left_open(engine: Engine, core: "weakref.ref[ConnectionCore]") -> None:
    """Close what nobody closed: at the exit, or because nobody refers to it any more. A delivery refers to it, so then
    there is no handler to wait for either, though the task that had received one may still be running."""
    engine.close(EXIT_TIMEOUT, patient=core() is not None)


def check_queue(name: object) -> None:
    """Refuse what no queue or topic can be called.

    Raises:
        ArgumentError
    """
    if not isinstance(name, str) or not name:
        raise ArgumentError(f"a queue's or topic's name is a str with at least one character, not {name!r}")
    check_text("name", name)


def check_seconds(name: str, seconds: object) -> None:
    """Refuse what is no time to wait.

    Raises:
        ArgumentError
    """
    if not isinstance(seconds, (int, float)) or not 0 <= seconds < float("inf"):
        raise ArgumentError(f"{name} is a number of seconds from 0, not {seconds!r}")


def check_limit(limit: object, most: int) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= most:
        raise ArgumentError(f"limit is a whole number from 1 to {most}, not {limit!r}")


def _deleting(queue: str) -> Callable[[Session, float], Any]:
    def delete(session: Session, left: float) -> None:
        with contextlib.suppress(MQError):  # it expires by itself after 60 idle seconds
            session.delete(queue, left)

    return delete
