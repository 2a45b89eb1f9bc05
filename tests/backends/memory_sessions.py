"""How the tests of ``memory://`` open sessions."""

from collections.abc import Callable, Sequence

from mqlayer.backends.memory import Faults, MemoryBackend, MemoryFactory
from mqlayer.clock import Clock, ManualClock
from mqlayer.driver import (
    Declare,
    Incoming,
    Outgoing,
    QueueOptions,
    Session,
    Stats,
)
from mqlayer.urls import parse_url, split_options

T = 1.0  # a timeout, of which these sessions never use any
PLAIN = QueueOptions()


def open_backend(text: str = "memory://", *, clock: Clock | None = None, faults: Faults | None = None) -> MemoryBackend:
    url = parse_url(text)
    [options] = split_options(url.query, MemoryFactory.options, scheme=url.scheme)
    return MemoryFactory(url, options, clock=clock or ManualClock(), faults=faults)


def nobody(when: float) -> None:
    """A look_again of which nothing is expected."""


def open_session(
    text: str = "memory://",
    *,
    clock: Clock | None = None,
    faults: Faults | None = None,
    look_again: Callable[[float], None] = nobody,
    queue: str = "q",
) -> Session:
    session = open_backend(text, clock=clock, faults=faults).session(T, look_again)
    session.declare(queue, PLAIN, Declare.ENSURE, T)
    session.subscribe(queue, 100, None, T)
    return session


def messages(*ids: str) -> list[Outgoing]:
    return [Outgoing(id, b"body") for id in ids]


def holds(ready: int, in_flight: int, delayed: int, approximate: bool = False) -> Stats:
    return Stats(ready=ready, in_flight=in_flight, delayed=delayed, approximate=approximate)


def ids(found: Sequence[Incoming]) -> list[str | None]:
    return [incoming.message.id for incoming in found]
