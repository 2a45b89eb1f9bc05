"""One round trip over STOMP, by hand: what answers it is a broker that serves, whichever it is."""

import socket
import time
import uuid
from collections.abc import Mapping

from mqlayer.testing.ports import LOOPBACK
from mqlayer.testing.processes import ServerError

__all__ = ["probe_stomp"]

_TIMEOUT = 5.0


def probe_stomp(port: int, destination: str, *, headers: Mapping[str, str] | None = None, login: str = "") -> None:
    """Connect, send to *destination* with a receipt, receive it, ack it with a receipt.

    Raises whatever went wrong.
    """
    deadline = time.monotonic() + _TIMEOUT
    more = "".join(f"{name}:{value}\n" for name, value in (headers or {}).items())
    body = uuid.uuid4().hex
    with socket.create_connection((LOOPBACK, port), timeout=_TIMEOUT) as sock:
        frames = _Frames(sock, deadline)
        user = f"login:{login}\npasscode:{login}\n" if login else ""
        sock.sendall(f"CONNECT\naccept-version:1.2\nhost:/\n{user}\n\0".encode())
        frames.until("CONNECTED")
        sock.sendall(f"SUBSCRIBE\nid:p\ndestination:{destination}\nack:client-individual\n{more}\n\0".encode())
        sock.sendall(f"SEND\ndestination:{destination}\nreceipt:s\n{more}\n{body}\0".encode())
        while not (message := frames.until("MESSAGE")).endswith(body):
            _ack(sock, message, "")  # left by a probe that was cut short
        _ack(sock, message, "receipt:a\n")
        frames.until("RECEIPT", "receipt-id:a")


def _ack(sock: socket.socket, message: str, more: str) -> None:
    name = next(line for line in message.split("\n") if line.startswith("ack:")).removeprefix("ack:")
    sock.sendall(f"ACK\nid:{name}\n{more}\n\0".encode())


class _Frames:
    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._data = b""

    def until(self, command: str, line: str = "") -> str:
        """The next frame of that command, and with that header; others are dropped."""
        while True:
            while b"\0" not in self._data:
                if time.monotonic() > self._deadline:
                    raise TimeoutError(f"no {command} frame in {_TIMEOUT:g} s")
                data = self._sock.recv(65536)
                if not data:
                    raise ConnectionError(f"closed instead of answering with {command}")
                self._data += data
            frame, _, self._data = self._data.partition(b"\0")
            text = frame.decode("utf-8", "replace").lstrip("\n")
            if text.startswith("ERROR"):
                raise ServerError(f"the broker answered: {text[:500]}")
            if text.startswith(f"{command}\n") and line in text:
                return text
