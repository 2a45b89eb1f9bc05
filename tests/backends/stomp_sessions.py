"""Sessions on an ActiveMQ of the test's own, a raw stomp.py client beside them, and a server that answers as it is told."""

import contextlib
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import stomp

from mqlayer.backends.stomp import StompFactory
from mqlayer.backends.stomp_session import StompSession
from mqlayer.backends.stomp_wire import Frame, FrameReader, encode
from mqlayer.clock import SystemClock
from mqlayer.driver import Incoming, Outgoing
from mqlayer.testing.brokers.activemq import activemq_server
from mqlayer.testing.certificates import make_certificates
from mqlayer.testing.ports import LOOPBACK, free_port
from mqlayer.urls import parse_url, split_options

T = 20.0  # a timeout that is only used up if something is wrong
MOMENT = 0.3  # in which a server pushes what it has


class ActiveMQ:
    """The one broker of a module, and the sessions of the test that runs."""

    def __init__(self, folder: Path) -> None:
        self.port, self.tls_port = free_port(), free_port()
        self.certificates = make_certificates(folder / "certificates")
        self.server = activemq_server(folder / "data", self.port, tls=(self.tls_port, self.certificates))
        self._sessions: list[StompSession] = []

    @property
    def url(self) -> str:
        return f"stomp://{LOOPBACK}:{self.port}"

    def session(self, url: str = "") -> StompSession:
        session = open_session(url or self.url)
        self._sessions.append(session)
        return session

    @staticmethod
    def queue() -> str:
        return f"q-{uuid.uuid4().hex[:8]}"

    @contextmanager
    def raw(self) -> "Iterator[Raw]":
        raw = Raw(self.port)
        try:
            yield raw
        finally:
            raw.connection.disconnect()

    def close_sessions(self) -> None:
        while self._sessions:
            self._sessions.pop().close(2.0)


class Raw(stomp.ConnectionListener):
    """stomp.py as its users use it, with bodies left as bytes."""

    def __init__(self, port: int) -> None:
        self.messages: queue.Queue[stomp.utils.Frame] = queue.Queue()
        self.connection = stomp.Connection12([(LOOPBACK, port)], auto_decode=False)
        self.connection.set_listener("raw", self)
        self.connection.connect(wait=True)

    def on_message(self, frame: stomp.utils.Frame) -> None:
        self.messages.put(frame)


def open_session(text: str, timeout: float = T) -> StompSession:
    url = parse_url(text)
    [options] = split_options(url.query, StompFactory.options, scheme=url.scheme)
    session = StompFactory(url, options, clock=SystemClock()).session(timeout, lambda when: None)
    assert isinstance(session, StompSession)
    return session


def messages(*ids: str, **fields: object) -> list[Outgoing]:
    return [Outgoing(id, b"body", **fields) for id in ids]  # type: ignore[arg-type]


def receive(session: StompSession, count: int, timeout: float = T) -> list[Incoming]:
    """That many deliveries; the session is subscribed."""
    came: list[Incoming] = []
    end = time.monotonic() + timeout
    while len(came) < count:
        assert time.monotonic() < end, f"{len(came)} of {count} deliveries came"
        came += session.receive(count - len(came), 1.0)
    return came


class Server:
    """A STOMP server of one connection at a time, which answers each frame as *script* says.

    ``script(frame)`` returns what is written back: bytes; ``None`` ends the connection.
    """

    CONNECTED = b"CONNECTED\nversion:1.2\nserver:ActiveMQ/5.17.2\nheart-beat:0,0\n\n\0"

    def __init__(self, script: Callable[[Frame], bytes | None], connected: bytes = CONNECTED) -> None:
        self.frames: list[Frame] = []
        self.beats = 0
        self._script = script
        self._connected = connected
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port = self._listener.getsockname()[1]
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, self._connection):
            with contextlib.suppress(OSError):  # closed already
                if sock is not None:
                    sock.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(T)

    def open(self, options: str = "") -> StompSession:
        return open_session(f"stomp://{LOOPBACK}:{self.port}{options}", 5.0)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed: the test is over
                return
            self._connection = connection
            with connection:
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        reader = FrameReader()
        try:
            while data := connection.recv(65536):
                self.beats += data == b"\n"
                for frame in reader.feed(data):
                    self.frames.append(frame)
                    answer = self._connected if frame.command == "CONNECT" else self.answer(frame)
                    if answer is None:
                        return
                    connection.sendall(answer)
        except ConnectionError:  # the client went first
            return

    def answer(self, frame: Frame) -> bytes | None:
        """Also a scheduler's answer to the question whether there is one."""
        if frame.headers.get("destination", "").startswith("/temp-queue/mq-barrier") and frame.command == "SEND":
            if "AMQ_SCHEDULED_DELAY" in frame.headers:
                return b""
            return encode("MESSAGE", [("subscription", "barrier"), ("mq_mark", frame.headers["mq_mark"])])
        if frame.headers.get("id") == "barrier":
            return receipt(frame)
        return self._script(frame)


def receipt(frame: Frame) -> bytes:
    """The receipt that a frame asks for."""
    asked = frame.headers.get("receipt")
    return b"" if asked is None else encode("RECEIPT", [("receipt-id", asked)])


def error(frame: Frame, text: str, *, named: bool = True) -> bytes:
    """An ERROR frame, which names the frame at fault by its receipt, or does not."""
    headers = [("message", text)]
    if named and "receipt" in frame.headers:
        headers.append(("receipt-id", frame.headers["receipt"]))
    return encode("ERROR", headers)
