"""The links of a fault proxy: what one thread does to them, turn by turn. Knows no other thread; :mod:`.proxy` does.

Memory is bounded: a link is read only while little of it waits, so a receiver that does not take holds its sender up.
"""

import contextlib
import errno
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from math import inf

from mqlayer.testing.ports import LOOPBACK

__all__ = ["WAYS", "Direction", "Faults", "Links", "Trigger"]

_CHUNK_BYTES = 64 * 1024
_HELD_MAX_BYTES = 256 * 1024  # for each direction of each link
_TURN_MAX_BYTES = 256 * 1024  # one link does not keep the others waiting for longer than this takes
_DRAIN_ROUNDS_MAX = 64
_BACKLOG = 128
_RATE_TICK = 0.02  # a slow link gets its bytes in pieces of that many seconds' worth
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, for 0 seconds: close() sends RST


class Direction(Enum):
    """Which way bytes go."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"
    BOTH = "both"

    def covers(self, other: "Direction") -> bool:
        return self is other or self is Direction.BOTH


WAYS = (Direction.TO_SERVER, Direction.TO_CLIENT)


@dataclass(frozen=True, slots=True)
class Faults:
    """What is done to the bytes of one direction, on every link. The default is nothing."""

    delay: float = 0.0
    rate: float = inf
    slice_bytes: int = _CHUNK_BYTES
    swallows: bool = False
    stalled: bool = False


@dataclass(slots=True, eq=False)
class Trigger:
    """What to call once *remaining* more bytes have passed."""

    direction: Direction
    remaining: int
    callback: Callable[[], None]


@dataclass(slots=True, eq=False)
class _Pipe:
    """One direction of one link. Empty bytes among what waits stand for the source's end."""

    direction: Direction
    source: socket.socket
    target: socket.socket
    waiting: deque[tuple[float, memoryview]] = field(default_factory=deque)
    held: int = 0
    next_at: float = 0.0  # when the rate lets the next byte go
    ended: bool = False  # nothing more is read: the source has ended or failed
    failed: bool = False  # … it failed, and the target has not been told
    shut: bool = False  # the target has been told that nothing more comes
    blocked: bool = False  # the target does not take
    holed: bool = False  # bytes are missing in the middle

    @property
    def finished(self) -> bool:
        return self.ended and self.shut and not self.waiting


class _Link:
    """A client's connection and the server's behind it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.up = _Pipe(Direction.TO_SERVER, client, server)
        self.down = _Pipe(Direction.TO_CLIENT, server, client)
        self.pipes = (self.up, self.down)
        self.connecting = True
        self.open = True
        self.interest: dict[socket.socket, int] = {client: 0, server: 0}

    def other(self, pipe: _Pipe) -> _Pipe:
        return self.down if pipe is self.up else self.up


class Links:
    """Listens, connects each client to the target, and forwards as the faults say. One thread at a time."""

    def __init__(self, port: int, target: tuple[str, int], ear: socket.socket, obey: Callable[[], None]) -> None:
        self.faults = {way: Faults() for way in WAYS}
        self.triggers: list[Trigger] = []
        self.passed = dict.fromkeys(WAYS, 0)
        self.dropped = dict.fromkeys(WAYS, 0)
        self.connections = self.unreachable = self.resets = self.triggered = 0
        self.errors: list[Exception] = []  #: what callbacks raised
        self.open: set[_Link] = set()
        self._port, self._target, self._ear, self._obey = port, target, ear, obey
        self._listener: socket.socket | None = None
        self._again_at = inf
        self._selector = selectors.DefaultSelector()
        self._selector.register(ear, selectors.EVENT_READ)

    def turn(self) -> None:
        """Wait until something can be done, and do it. What the ear hears comes first, by way of ``obey``."""
        timeout = None if self._again_at == inf else max(0.0, self._again_at - time.monotonic())
        for key, events in self._selector.select(timeout):
            if key.data is not None:
                self._serve(key.data, key.fileobj, events)
            elif key.fileobj is self._ear:
                self._obey()
            elif self._listener is not None:  # an order of this very turn may have closed it
                self._accept(self._listener)
        self._again_at = inf
        for link in list(self.open):
            for pipe in link.pipes:
                self._again_at = min(self._again_at, self._pump(link, pipe))
            if link.open:
                self._watch(link)

    def listen(self) -> None:
        """Accept connections, if not already."""
        if self._listener is None:
            self._listener = socket.create_server((LOOPBACK, self._port), backlog=_BACKLOG)
            self._listener.setblocking(False)
            self._selector.register(self._listener, selectors.EVENT_READ)

    def unlisten(self) -> None:
        """Refuse connections."""
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def end_all(self, *, reset: bool) -> None:
        for link in list(self.open):
            self._end(link, reset=reset)

    def half_close(self, direction: Direction) -> None:
        for link in list(self.open):
            for pipe in link.pipes:
                if link.open and direction.covers(pipe.direction):
                    self._shut(link, pipe)

    def restore(self) -> None:
        self.faults = {way: Faults() for way in WAYS}
        self.triggers.clear()
        for link in list(self.open):
            if any(pipe.holed or pipe.failed for pipe in link.pipes):
                self._end(link, reset=True)
        self.listen()

    def close(self) -> None:
        self.end_all(reset=False)
        self.unlisten()
        self._selector.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            return  # it gave up while waiting
        self.connections += 1
        server = socket.socket(socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET)
        link = _Link(client, server)
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.open.add(link)
        if server.connect_ex(self._target) not in (0, errno.EINPROGRESS):
            self.unreachable += 1
            self._end(link, reset=False)

    def _serve(self, link: _Link, end: object, events: int) -> None:
        if not link.open:
            return
        if link.connecting:
            link.connecting = False
            if link.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.unreachable += 1
                self._end(link, reset=False)
            return
        reads, writes = (link.up, link.down) if end is link.client else (link.down, link.up)
        if events & selectors.EVENT_WRITE:
            writes.blocked = False
        if events & selectors.EVENT_READ:
            self._read(link, reads)

    def _watch(self, link: _Link) -> None:
        for end, reads, writes in ((link.client, link.up, link.down), (link.server, link.down, link.up)):
            stalled = self.faults[reads.direction].stalled
            wants_read = not (link.connecting or reads.ended or stalled) and reads.held < _HELD_MAX_BYTES
            wants_write = writes.blocked or (link.connecting and end is link.server)
            events = selectors.EVENT_READ * wants_read | selectors.EVENT_WRITE * wants_write
            if events == link.interest[end]:
                continue
            if link.interest[end]:
                self._selector.unregister(end)
            if events:
                self._selector.register(end, events, link)
            link.interest[end] = events

    def _read(self, link: _Link, pipe: _Pipe) -> None:
        try:
            data = pipe.source.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._break(link, pipe)
            return
        pipe.ended = not data
        pipe.held += len(data)
        pipe.waiting.append((time.monotonic() + self.faults[pipe.direction].delay, memoryview(data)))

    def _pump(self, link: _Link, pipe: _Pipe) -> float:
        """Forward what may go now; returns when to come again, ``inf`` if only an event can change anything."""
        sent = 0
        if self.faults[pipe.direction].swallows or pipe.shut:
            pipe.blocked = False  # the target is not asked any more
        while link.open and pipe.waiting and not pipe.blocked:
            faults, now = self.faults[pipe.direction], time.monotonic()
            due, data = pipe.waiting[0]
            if faults.stalled or (faults.swallows and not data):
                return inf
            if max(due, pipe.next_at) > now:
                return max(due, pipe.next_at)
            if sent and (sent >= _TURN_MAX_BYTES or faults.slice_bytes < _CHUNK_BYTES):
                return now
            if not data:
                pipe.waiting.popleft()
                self._shut(link, pipe)
            elif faults.swallows or pipe.shut:
                self._take(pipe, len(data))
                self.dropped[pipe.direction] += len(data)
                pipe.holed = True
            elif not self._fire(pipe.direction):  # else look again: a callback may have changed anything
                sent += self._forward(link, pipe, data, faults, now)
        return inf

    def _forward(self, link: _Link, pipe: _Pipe, data: memoryview, faults: Faults, now: float) -> int:
        way = pipe.direction
        size = min(len(data), faults.slice_bytes)
        if faults.rate < inf:
            size = min(size, max(1, int(faults.rate * _RATE_TICK)))
        size = min([size, *(trigger.remaining for trigger in self.triggers if trigger.direction.covers(way))])
        try:
            count = pipe.target.send(data[:size])
        except BlockingIOError:
            pipe.blocked = True
            return 0
        except OSError:
            self._break(link, link.other(pipe))
            return 0
        self._take(pipe, count)
        self.passed[way] += count
        # The selector wakes up to a tick late; what was missed may be caught up with, but no more than that.
        pipe.next_at = max(pipe.next_at, now - _RATE_TICK) + count / faults.rate
        for trigger in self.triggers:
            if trigger.direction.covers(way):
                trigger.remaining -= count
        self._fire(way)
        return count

    def _fire(self, way: Direction) -> bool:
        reached = [trigger for trigger in self.triggers if trigger.direction.covers(way) and trigger.remaining <= 0]
        for trigger in reached:
            self.triggers.remove(trigger)
            self.triggered += 1
            try:
                trigger.callback()
            except Exception as exc:  # kept for stop(), which raises it
                self.errors.append(exc)
        return bool(reached)

    def _take(self, pipe: _Pipe, count: int) -> None:
        due, data = pipe.waiting.popleft()
        pipe.held -= count
        if count < len(data):
            pipe.waiting.appendleft((due, data[count:]))

    def _shut(self, link: _Link, pipe: _Pipe) -> None:
        if not pipe.shut:
            pipe.shut = True
            try:
                pipe.target.shutdown(socket.SHUT_WR)
            except OSError:
                self._break(link, link.other(pipe))
        if link.open and all(each.finished for each in link.pipes):
            self._end(link, reset=False)

    def _break(self, link: _Link, news: _Pipe) -> None:
        """The source of *news* has failed: tell its target, unless news does not pass there."""
        news.ended = True
        faults = self.faults[news.direction]
        if not (faults.swallows or faults.stalled):
            self._end(link, reset=True)
            return
        news.failed = True
        link.other(news).shut = True  # nobody is there to take

    def _end(self, link: _Link, *, reset: bool) -> None:
        link.open = False
        self.open.discard(link)
        self.resets += reset
        for pipe in link.pipes:
            self.dropped[pipe.direction] += pipe.held
            if link.interest[pipe.source]:
                self._selector.unregister(pipe.source)
            if reset:
                pipe.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            else:
                self._drain(pipe)
        link.client.close()
        link.server.close()

    def _drain(self, pipe: _Pipe) -> None:
        """Read the rest away: closing a socket with unread bytes sends RST instead of FIN."""
        with contextlib.suppress(OSError):  # not connected any more, or nothing to read: both are fine before a close
            pipe.source.shutdown(socket.SHUT_RDWR)
            for _ in range(_DRAIN_ROUNDS_MAX):
                if not (data := pipe.source.recv(_CHUNK_BYTES)):
                    return
                self.dropped[pipe.direction] += len(data)
