"""Getting to a STOMP server: hosts in turn, TLS, login."""

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence

from mqlayer.backends.stomp_connection import Connection, Login
from mqlayer.errors import AuthenticationError, ConnectFailedError, ConnectionLostError

__all__ = ["connect"]


def connect(
    hosts: Sequence[tuple[str, int]], login: Login, timeout: float, monotonic: Callable[[], float]
) -> Connection:
    """A connection to the first of *hosts* that takes it; each is tried once and may use an equal part of the time.

    Raises:
        ConnectFailedError: none did; the text names them all.
        AuthenticationError: one refused the credentials.
    """
    deadline = monotonic() + timeout
    reasons: list[str] = []
    cause: BaseException | None = None
    for place, (host, port) in enumerate(hosts):
        now = monotonic()
        share = max((deadline - now) / (len(hosts) - place), 0.001)
        try:
            return _connected(host, port, login, share, monotonic)
        except AuthenticationError as exc:
            text = f"{login.scheme}://{host}:{port} refused user {login.username!r}: {exc}"
            raise AuthenticationError(text) from exc
        except ConnectionLostError as exc:
            reasons.append(f"{host}:{port} ({exc})")
            cause = exc
    raise ConnectFailedError(f"cannot connect to {login.scheme}://{', '.join(reasons)}") from cause


def _connected(host: str, port: int, login: Login, timeout: float, monotonic: Callable[[], float]) -> Connection:
    deadline = monotonic() + timeout
    with _translated():
        sock = socket.create_connection((host, port), timeout)
    try:
        with _translated():
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(max(deadline - monotonic(), 0.001))
            if login.tls is not None:
                sock = login.tls.wrap_socket(sock, server_hostname=host)
            sock.setblocking(False)
        connection = Connection(sock, monotonic)
    except BaseException:
        sock.close()
        raise
    try:
        connection.log_in(login, host, deadline)
    except BaseException:
        connection.give_up()
        raise
    return connection


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """The socket's errors become ours, once."""
    try:
        yield
    except (OSError, UnicodeError) as exc:  # UnicodeError: a host that has no name in DNS's alphabet
        raise ConnectionLostError(f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__) from exc
