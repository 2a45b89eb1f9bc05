"""A TCP proxy that breaks connections in every way that a network can, at an exact byte where asked.

Knows bytes and sockets; knows no protocol. One thread of its own does the work; this file is the thread-safe face of it.
"""

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

from mqlayer.errors import ArgumentError, ClosedError
from mqlayer.testing.ports import LOOPBACK, free_port
from mqlayer.testing.proxy_links import WAYS, Direction, Faults, Links, Trigger

__all__ = ["Direction", "FaultProxy", "ProxyStats"]

_VERB_PATIENCE = 60.0
_EAR_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyStats:
    """What the proxy did since it started: the evidence that a fault was really there.

    Attributes:
        connections: Accepted from clients.
        unreachable: Of those, closed at once because the server did not accept.
        open: Links that are open now.
        bytes_to_server, bytes_to_client: Forwarded.
        dropped_to_server, dropped_to_client: Taken from one side and never given to the other.
        resets: Links ended by RST, by a verb or because one side was reset.
        triggered: Callbacks of ``on_bytes``, and byte counts of ``drop_after``, that were reached.
    """

    connections: int
    unreachable: int
    open: int
    bytes_to_server: int
    bytes_to_client: int
    dropped_to_server: int
    dropped_to_client: int
    resets: int
    triggered: int


class FaultProxy:
    """Listens on :attr:`port` of this machine and forwards to a server, until told to do worse.

    Faults apply to all links, present and future, until :meth:`restore`. Each verb may be called from any thread, from a
    callback of :meth:`on_bytes` too, and returns when it is in force. If the server does not accept, the client's
    connection is closed at once. An end or a reset on one side is passed on to the other.

    Args:
        port: Where to listen; ``None`` takes a free one.
    """

    def __init__(self, target_host: str, target_port: int, *, port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        self._bell, ear = socket.socketpair()
        self._ear = ear
        for end in (self._bell, ear):
            end.setblocking(False)
        target = (LOOPBACK if target_host == "localhost" else target_host, target_port)
        self._links = Links(self.port, target, ear, self._obey)
        self._lock = threading.Lock()
        self._actions: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._running = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "FaultProxy":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen. Once only. Raises OSError if the port is taken."""
        self._links.listen()
        self._running = True
        self._thread = threading.Thread(target=self._run, name=f"fault proxy {self.port}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close everything and end the thread. A second call does nothing.

        Raises:
            ExceptionGroup: callbacks failed; nobody else would hear of it.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._lock:
            self._running = False
            self._ring()
        thread.join(_VERB_PATIENCE)
        if errors := list(self._links.errors):
            self._links.errors.clear()
            raise ExceptionGroup(f"in the fault proxy on port {self.port}", errors)

    # ---- verbs ----

    def close(self) -> None:
        """End all links in good order (FIN), now; what was on its way is dropped."""
        self._call(lambda: self._links.end_all(reset=False))

    def reset(self) -> None:
        """End all links with RST, now; what was on its way is dropped."""
        self._call(lambda: self._links.end_all(reset=True))

    def half_close(self, direction: Direction) -> None:
        """Tell the receivers of *direction* that nothing more comes, and drop what does; the other direction goes on."""
        self._call(lambda: self._links.half_close(direction))

    def blackhole(self, direction: Direction = Direction.BOTH) -> None:
        """Swallow all bytes of *direction*, and the news of its end, and keep the sockets open: nobody is told.

        A link that lost bytes cannot be made whole: :meth:`restore` resets it.
        """
        self._change(direction, lambda faults: replace(faults, swallows=True))

    def stall(self, direction: Direction = Direction.BOTH) -> None:
        """Hold the bytes of *direction*, first here, then at their sender. Nothing is lost: after a restore they go on."""
        self._change(direction, lambda faults: replace(faults, stalled=True))

    def delay(self, seconds: float, direction: Direction = Direction.BOTH) -> None:
        """Let every byte that comes from now on wait that long."""
        _check(seconds >= 0, f"a delay is not negative, as {seconds} s is")
        self._change(direction, lambda faults: replace(faults, delay=seconds))

    def rate(self, bytes_per_second: float, direction: Direction = Direction.BOTH) -> None:
        """Forward no faster than that, on each link."""
        _check(
            bytes_per_second > 0, f"a rate is more than 0 bytes a second, not {bytes_per_second}; to hold all, stall"
        )
        self._change(direction, lambda faults: replace(faults, rate=bytes_per_second))

    def slice(self, size: int, direction: Direction = Direction.BOTH) -> None:
        """Forward in pieces of at most *size* bytes. Receivers may still find several together."""
        _check(size > 0, f"a slice has at least 1 byte, not {size}")
        self._change(direction, lambda faults: replace(faults, slice_bytes=size))

    def drop_after(self, count: int, direction: Direction) -> None:
        """Let *count* more bytes of *direction* pass, over all links together; from then on a :meth:`blackhole`.

        To cut the connection there instead: ``on_bytes(count, direction, proxy.reset)``.
        """
        self.on_bytes(count, direction, lambda: self.blackhole(direction))

    def on_bytes(self, count: int, direction: Direction, callback: Callable[[], None]) -> None:
        """Call *callback* once exactly *count* bytes of *direction* have passed from now on, over all links together.

        No byte moves, on any link either way, before it has returned. A *count* of 0 calls it when the next byte of
        *direction* is about to pass. It runs in the proxy's thread: it may use the verbs and kill a server, and must not
        wait for anything that needs the proxy. What it raises is raised by :meth:`stop`.
        """
        self._call(lambda: self._links.triggers.append(Trigger(direction, count, callback)))

    def refuse(self, refused: bool = True) -> None:
        """Stop listening, so that new connections are refused; or listen again. Links are left alone."""
        self._call(self._links.unlisten if refused else self._links.listen)

    def restore(self) -> None:
        """Forward everything again: no fault, no callback armed, listening. Links that lost bytes are reset."""
        self._call(self._links.restore)

    def stats(self) -> ProxyStats:
        """The counts so far; also after the end. Whatever a receiver has by now is counted."""
        counted: list[ProxyStats] = []
        try:
            self._call(lambda: counted.append(self._count()))
        except ClosedError:
            return self._count()  # not started or stopped: they do not change any more
        return counted[0]

    def _count(self) -> ProxyStats:
        links = self._links
        return ProxyStats(
            connections=links.connections,
            unreachable=links.unreachable,
            open=len(links.open),
            bytes_to_server=links.passed[Direction.TO_SERVER],
            bytes_to_client=links.passed[Direction.TO_CLIENT],
            dropped_to_server=links.dropped[Direction.TO_SERVER],
            dropped_to_client=links.dropped[Direction.TO_CLIENT],
            resets=links.resets,
            triggered=links.triggered,
        )

    # ---- between the threads ----

    def _call(self, action: Callable[[], None]) -> None:
        if threading.current_thread() is self._thread:  # a callback
            action()
            return
        future: Future[None] = Future()
        with self._lock:
            if not self._running:
                raise ClosedError(f"the fault proxy on port {self.port} does not run")
            self._actions.append((action, future))
            self._ring()
        future.result(_VERB_PATIENCE)

    def _change(self, direction: Direction, change: Callable[[Faults], Faults]) -> None:
        def action() -> None:
            self._links.faults |= {way: change(self._links.faults[way]) for way in WAYS if direction.covers(way)}

        self._call(action)

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of earlier rings: it will be heard
            self._bell.send(b".")

    def _run(self) -> None:
        try:
            while self._running:
                self._links.turn()
        except Exception as exc:  # kept for stop(), which raises it
            self._links.errors.append(exc)
        with self._lock:
            self._running = False
        for _, future in self._actions:
            future.set_exception(ClosedError(f"the fault proxy on port {self.port} has stopped"))
        self._links.close()
        self._bell.close()
        self._ear.close()

    def _obey(self) -> None:
        with contextlib.suppress(BlockingIOError):  # heard already
            self._ear.recv(_EAR_BYTES)
        while self._actions:
            action, future = self._actions.popleft()
            try:
                action()
            except Exception as exc:  # goes to the thread that called the verb
                future.set_exception(exc)
            else:
                future.set_result(None)


def _check(right: bool, otherwise: str) -> None:
    if not right:
        raise ArgumentError(otherwise)
