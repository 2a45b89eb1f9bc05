"""Wake-up: who waits for a queue is poked by whoever stores something in it, in this process or another.

For each queue that it waits for, a consumer binds a Unix datagram socket ``<queue number>.<random>`` in the folder
``<file>-wake/``; after its commit a sender lists the folder and pokes the queue's sockets. A poke carries nothing and
losing it is harmless: who waits also looks by itself, twice a second at the most, and at the time when something falls due.
So everything here may fail (no Unix sockets, a folder that cannot be made) and deliveries are only late by half a second.
"""

import errno
import os
import secrets
import selectors
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress

__all__ = ["Waker"]

PATH_MAX_BYTES = 100  #: of a socket's address; Linux takes 107, others 103
BIND_ATTEMPTS = 3  #: another consumer's close may remove the empty folder between its making and the bind
DRAIN_BYTES = 4096
DRAIN_MAX = 1000


class Waker:
    """One session's waiting. One thread waits; any thread may call ``wake``, ``nudge`` and ``poke``."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._closed = False
        self.woken = False  #: somebody wants the call in progress, or the next one, to end
        self._bell, self._clapper = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[int, tuple[str, socket.socket]] = {}
        self._poker: socket.socket | None = None
        for end in (self._bell, self._clapper):
            end.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)

    # --- waiting -----------------------------------------------------------------------------------------------------

    def watch(self, queue: int) -> None:
        """Be poked for *queue*. Again: nothing. Where that cannot be had, nothing either: see above."""
        if queue in self._waiting or not hasattr(socket, "AF_UNIX"):
            return
        name = f"{queue}.{secrets.token_hex(8)}"
        for _ in range(BIND_ATTEMPTS):
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                os.makedirs(self._directory, mode=0o700, exist_ok=True)
                with self._addresses() as address:
                    listener.bind(address + name)
            except OSError as exc:
                listener.close()
                if exc.errno != errno.ENOENT:
                    return  # no pokes then; the looks go on
            else:
                listener.setblocking(False)
                self._selector.register(listener, selectors.EVENT_READ)
                self._waiting[queue] = name, listener
                return

    def unwatch(self, queue: int) -> None:
        name, listener = self._waiting.pop(queue, ("", None))
        if listener is None:
            return
        self._selector.unregister(listener)
        listener.close()
        # Both only tidy up: a stale socket is removed by the next sender, a folder in use by another consumer stays.
        with suppress(OSError):
            os.unlink(os.path.join(self._directory, name))
        with suppress(OSError):
            os.rmdir(self._directory)

    def wait(self, seconds: float) -> bool:
        """Until poked, woken or nudged (True), at most *seconds*."""
        ready = self._selector.select(max(seconds, 0.0))
        for key, _ in ready:
            _drain(key.fileobj)  # type: ignore[arg-type]
        return bool(ready)

    def wake(self) -> None:
        """End the wait in progress, or the next one; ``woken`` says so until it is cleared."""
        self.woken = True
        self.nudge()

    def nudge(self) -> None:
        """Let who waits look again."""
        with self._lock:
            if not self._closed:
                with suppress(BlockingIOError):  # it is full of nudges: one is enough
                    self._clapper.send(b"!")

    # --- poking ------------------------------------------------------------------------------------------------------

    def poke(self, queues: Iterable[int]) -> None:
        """Poke everybody else who waits for one of *queues*."""
        wanted = {str(queue) for queue in queues}
        if not wanted:
            return
        try:
            names = [name for name in os.listdir(self._directory) if name.partition(".")[0] in wanted]
        except OSError:  # there is no folder, so nobody waits there; or it is another user's, who then looks by himself
            return
        own = {name for name, _ in self._waiting.values()}
        others = [name for name in names if name not in own]
        if not others:
            return
        with suppress(OSError), self._addresses() as address:  # the folder went meanwhile: nobody waits there
            for name in others:
                self._poke_one(address + name, name)

    def _poke_one(self, address: str, name: str) -> None:
        if self._poker is None:
            self._poker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._poker.setblocking(False)
        try:
            self._poker.sendto(b"!", address)
        except ConnectionRefusedError:  # its process is dead
            with suppress(OSError):  # somebody else has removed it
                os.unlink(os.path.join(self._directory, name))
        except OSError:  # full: it was poked before; gone: it waits no more
            return

    @contextmanager
    def _addresses(self) -> Iterator[str]:
        """What stands before a socket's name. A path too long for an address is reached through the open folder."""
        direct = self._directory + "/"
        if len(os.fsencode(direct)) + 40 <= PATH_MAX_BYTES or not os.path.isdir("/proc/self/fd"):
            yield direct
            return
        folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{folder}/"
        finally:
            os.close(folder)

    def close(self) -> None:
        """Again: nothing. ``wake`` and ``nudge`` after it do nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for queue in list(self._waiting):
            self.unwatch(queue)
        with closing(self._selector), closing(self._bell), closing(self._clapper):
            if self._poker is not None:
                self._poker.close()


def _drain(waiting: socket.socket) -> None:
    try:
        for _ in range(DRAIN_MAX):  # what a busy sender adds meanwhile ends the next wait
            waiting.recv(DRAIN_BYTES)
    except BlockingIOError:  # empty: what we came for
        return
