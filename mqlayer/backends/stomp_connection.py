"""One STOMP connection whose loop runs only while its owner is inside a call. Knows stomp.py; knows no queue and no message.

stomp.py writes the CONNECT frame and the other control frames. Its own I/O is not used: it reads in a thread of its own that
a full socket can block for ever, its heart-beats cut idle links on a busy machine, it connects again only while connecting,
and it does not say why it could not. So this is a transport of ours under its protocol: the owner's thread reads and writes,
and serves heart-beats, until what it waits for has happened or the time is up.
"""

import contextlib
import os
import selectors
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stomp.protocol import Protocol12
from stomp.transport import BaseTransport

from mqlayer.backends.stomp_answers import Answer, Answers, is_denied, text_of
from mqlayer.backends.stomp_dialects import Dialect, dialect_of
from mqlayer.backends.stomp_wire import Frame, FrameReader
from mqlayer.errors import (
    AuthenticationError,
    BrokerError,
    ConnectionLostError,
    RequestTimeoutError,
)

__all__ = ["Answer", "Connection", "Login"]

READ_BYTES = 256 * 1024
READS_MAX = 16  #: of one turn, so that a fast server does not keep its owner from everything else
QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux alone has it
BEAT_SENT = 0.4  #: we beat after that part of the promised time, so that a busy machine may be late
BEAT_MISSED = 3.0  #: a server that is silent for that many of its intervals is given up


@dataclass(frozen=True, slots=True)
class Login:
    """How to enter a broker, wherever it is."""

    scheme: str
    username: str | None
    password: str | None
    vhost: str  #: RabbitMQ's; others do not look at it, and Artemis wants one
    heartbeat: int  #: seconds; 0: none
    tls: ssl.SSLContext | None


class _Pipe(BaseTransport):  # type: ignore[misc]  # stomp.py has no types
    """What stomp.py's protocol writes into."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        super().__init__(auto_decode=False)
        self._write = write
        self.vhost: str | None = None

    def send(self, encoded_frame: bytes) -> None:
        self._write(encoded_frame)


class Connection:
    """An open connection. One thread at a time; ``wake`` and ``abort`` come from any.

    Attributes:
        lost: Why it ended; None while it is open.
        on_message: Is given each MESSAGE frame.
        written: Bytes that the socket has taken; ``queued``: those and the ones that still wait.
    """

    def __init__(self, sock: socket.socket, monotonic: Callable[[], float]) -> None:
        self.lost: ConnectionLostError | None = None
        self.woken = False
        self.on_message: Callable[[Frame], None] = _nothing
        self.connected: Frame | None = None
        self.dialect: Dialect = dialect_of("")
        self.written = self.queued = 0
        self._aborted = False
        self._monotonic = monotonic
        self._socket = sock
        self._reader = FrameReader()
        self._out: deque[bytes] = deque()
        self._offset = 0  # of the first piece: what the socket has taken of it
        self._answers = Answers()
        self._beat = self._silence = 0.0
        self._sent_at = self._heard_at = monotonic()
        self._wake_out, self._wake_in = os.pipe()
        for end in (self._wake_out, self._wake_in):
            os.set_blocking(end, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._writing = False
        pipe = _Pipe(self.write)
        pipe.set_connected(True)
        self.stomp: Any = Protocol12(pipe)

    def log_in(self, login: Login, host: str, deadline: float) -> None:
        """Say CONNECT, and learn who answers.

        Raises:
            ConnectionLostError: it does not, or not in STOMP 1.2. AuthenticationError: it refuses us.
        """
        beat = login.heartbeat * 1000
        self.stomp.transport.vhost = login.vhost
        self.stomp.transport.current_host_and_port = (host, 0)
        # CONNECT, for STOMP escapes nothing in it, and servers do not agree on the newer STOMP frame's.
        self.stomp.connect(
            login.username, login.password, headers={"heart-beat": f"{beat},{beat}"}, with_connect_command=True
        )
        if not self.run_until(lambda: self.connected, deadline):
            raise ConnectionLostError("it does not answer")
        assert self.connected is not None
        if self.connected.command == "ERROR":
            text = text_of(self.connected)
            if is_denied(text):
                raise AuthenticationError(text)
            raise ConnectionLostError(f"it refused the connection: {text}")
        headers = self.connected.headers
        if headers.get("version") != "1.2":
            raise ConnectionLostError(f"it speaks STOMP {headers.get('version', '1.0')}, and this is 1.2")
        self.dialect = dialect_of(headers.get("server", ""))
        theirs, wanted = _beats(headers.get("heart-beat", "0,0"))
        self._beat = max(wanted, beat) / 1000 * BEAT_SENT if beat and wanted else 0.0
        self._silence = max(theirs, beat) / 1000 * BEAT_MISSED if beat and theirs else 0.0

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run_until(self, done: Callable[[], object], deadline: float) -> bool:
        """Read and write, once at least, until *done* (True) or until *deadline* (False).

        Raises:
            ConnectionLostError: it ended, or was aborted.
        """
        self.turn(0.0)
        while not done():
            left = deadline - self._monotonic()
            if left <= 0:
                return False
            self.turn(left)
        return True

    def turn(self, timeout: float) -> None:
        """Do what can be done, after waiting for it for up to *timeout* seconds.

        Raises:
            ConnectionLostError: it ended, or was aborted.
        """
        self.check_open()
        now = self._monotonic()
        if self._beat and now - self._sent_at >= self._beat and not self._out:
            self.write(b"\n")
        if self._out:
            self._flush()
        if timeout > 0:
            if self._beat:
                timeout = min(timeout, max(self._sent_at + self._beat - now, 0.01))
            if self._silence:
                timeout = min(timeout, max(self._heard_at + self._silence - now, 0.01))
        if bool(self._out) is not self._writing:
            self._writing = not self._writing
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._writing else 0)
            self._selector.modify(self._socket, events)
        for key, events in self._selector.select(timeout):
            if key.fd == self._wake_out:
                with contextlib.suppress(BlockingIOError):  # read by an earlier turn
                    os.read(self._wake_out, 4096)
                continue
            if events & selectors.EVENT_WRITE:
                self._flush()
            if events & selectors.EVENT_READ:
                self._read()
        self.check_open()
        # Judged only after a look at what came, for this thread may have been away for a while.
        if self._silence and self._monotonic() - self._heard_at > self._silence:
            self._lose(f"the server has been silent for {self._silence:g} s")
            self.check_open()

    def check_open(self) -> None:
        """Raise ConnectionLostError if it is not open any more."""
        if self.lost is not None:
            raise ConnectionLostError(str(self.lost)) from self.lost
        if self._aborted:
            raise ConnectionLostError("the connection was aborted")

    def _read(self) -> None:
        for _ in range(READS_MAX):
            try:
                data = self._socket.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as exc:
                self._lose(f"the connection ended: {exc}", exc)
                return
            if not data:
                self._lose("the server closed the connection")
                return
            self._heard_at = self._monotonic()
            if QUICKACK is not None:
                # Java servers leave Nagle's algorithm on: a second small frame waits until we have acknowledged the first,
                # which the kernel puts off by 40 ms unless it is told not to, each time.
                self._socket.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)
            try:
                for frame in self._reader.feed(data):
                    self._take(frame)
            except ConnectionLostError as exc:
                self._lose(str(exc), exc)
                return
            if len(data) < READ_BYTES and not isinstance(self._socket, ssl.SSLSocket):
                return

    def _take(self, frame: Frame) -> None:
        command = frame.command
        if command == "MESSAGE":
            self.on_message(frame)
        elif self.connected is None:
            self.connected = frame
        elif command in ("RECEIPT", "ERROR"):
            why = self._answers.take(frame, ends_on_error=self.dialect.ends_on_error)
            if why is not None:
                self._lose(f"{self.dialect.name} said: {why}")

    def _flush(self) -> None:
        out = self._out
        while out:
            piece = out[0]
            try:
                # TLS must be given the same bytes again if it could not take them
                taken = self._socket.send(memoryview(piece)[self._offset :])
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as exc:
                self._lose(f"the connection ended: {exc}", exc)
                return
            self.written += taken
            self._sent_at = self._monotonic()
            self._offset += taken
            if self._offset == len(piece):
                out.popleft()
                self._offset = 0

    def lose(self, why: str) -> ConnectionLostError:
        """Give the connection up. Returns what every call raises from now on."""
        self._lose(why)
        return ConnectionLostError(why)

    def _lose(self, why: str, cause: BaseException | None = None) -> None:
        if self.lost is None:
            self.lost = ConnectionLostError(why)
            self.lost.__cause__ = cause

    # --- frames -------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Hand over bytes; they leave as the loop turns."""
        if data:
            self._out.append(data)
            self.queued += len(data)

    def now(self) -> float:
        """Monotonic seconds."""
        return self._monotonic()

    @property
    def unwritten(self) -> int:
        """Bytes handed over that the socket has not taken."""
        return self.queued - self.written

    def expect(self, *, covers: int = 0) -> tuple[str, Answer]:
        """A new receipt to ask for, and what the server will have said to it; *covers*: see ``Answer``."""
        return self._answers.expect(self.queued, covers)

    def forget(self, *answers: Answer) -> None:
        """Nobody waits for these any more."""
        self._answers.forget(answers)

    def wait_for(self, answer: Answer, what: str, deadline: float) -> None:
        """Wait for one answer.

        Raises:
            ConnectionLostError. RequestTimeoutError: none came in time. BrokerError: it is no. AuthenticationError: it is
                no, for want of a permission.
        """
        if not self.run_until(lambda: answer, deadline):
            self.forget(answer)
            raise RequestTimeoutError(f"{self.dialect.name} did not answer in time: {what}")
        if answer.refusal is not None:
            kind = AuthenticationError if is_denied(answer.refusal) else BrokerError
            raise kind(f"{self.dialect.name} refused: {what}: {answer.refusal}")

    # --- ending -------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        self.woken = True
        self._poke()

    def abort(self) -> None:
        self._aborted = True
        self._poke()

    def _poke(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):  # full: it is awake anyway; closed: it needs no waking
            os.write(self._wake_in, b"!")

    def close(self, timeout: float) -> None:
        """Say goodbye, wait for the answer, and give the socket back; at the latest after *timeout*."""
        if self.lost is None and not self._aborted and self.connected is not None:
            receipt, answer = self.expect()
            with contextlib.suppress(ConnectionLostError):  # it ended while it was being closed: that was the aim
                self.stomp.send_frame("DISCONNECT", {"receipt": receipt})
                self.run_until(lambda: answer, self._monotonic() + timeout)
        self.give_up()

    def give_up(self) -> None:
        """Close the socket."""
        self._lose("the connection is closed")
        self._selector.close()
        self._socket.close()
        wake_in, self._wake_in = self._wake_in, -1
        if wake_in >= 0:
            os.close(wake_in)
            os.close(self._wake_out)


def _beats(text: str) -> tuple[int, int]:
    """Milliseconds: how often the server sends, and how often it wants to hear."""
    sends, _, wants = text.partition(",")
    return tuple(int(part) if part.strip().isdigit() else 0 for part in (sends, wants))  # type: ignore[return-value]


def _nothing(frame: Frame) -> None:
    return None
