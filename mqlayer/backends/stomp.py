"""ActiveMQ and other servers over STOMP 1.2: ``stomp://`` and ``stomp+ssl://``. One session is one connection.

Which server it is, its CONNECTED frame says; what it can do is in ``stomp_dialects``. Nothing is tried twice here.
"""

import secrets
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mqlayer.backends.stomp_connecting import connect
from mqlayer.backends.stomp_connection import Connection, Login
from mqlayer.backends.stomp_dialects import without_scheduler
from mqlayer.backends.stomp_flow import Flow
from mqlayer.backends.stomp_session import StompSession
from mqlayer.clock import Clock
from mqlayer.driver import Backend, Session
from mqlayer.errors import ConfigError, ConnectFailedError, MQError
from mqlayer.urls import BrokerURL

__all__ = ["StompBackend", "StompFactory", "StompOptions"]

PORT, PORT_TLS = 61613, 61614


@dataclass(frozen=True, slots=True, kw_only=True)
class StompOptions:
    """The options of a ``stomp://`` URL.

    Attributes:
        prefetch: Deliveries that a consumer may hold unsettled, for each of its queues.
        heartbeat: Seconds between two signs of life; a server that is silent for three of them is given up. 0: never.
        cafile, certfile, keyfile: ``stomp+ssl://``: who is trusted (default: the system's), and what we show of ourselves.
    """

    prefetch: int = 100
    heartbeat: int = 10
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.prefetch <= 10_000:
            raise ValueError(f"option 'prefetch' is from 1 to 10000, not {self.prefetch}")
        if not 0 <= self.heartbeat <= 86_400:
            raise ValueError(f"option 'heartbeat' is from 0 to 86400 seconds, not {self.heartbeat}")


class StompBackend:
    """A broker, at one or several addresses."""

    inline = False

    def __init__(self, login: Login, hosts: Sequence[tuple[str, int]], clock: Clock) -> None:
        self._login = login
        self._hosts = tuple(hosts)
        self._clock = clock
        self._delays: bool | None = None  #: whether the broker has a scheduler; None: not asked yet

    def session(self, timeout: float, look_again: Callable[[float], None]) -> Session:
        """Connect to the first host that takes us.

        Raises:
            ConnectFailedError: none did. AuthenticationError: one refused the credentials.
        """
        deadline = self._clock.monotonic() + timeout
        connection = connect(self._hosts, self._login, timeout, self._clock.monotonic)
        if connection.dialect.may_lack_scheduler:
            if self._delays is None:
                self._delays = self._asked_for_scheduler(connection, deadline)
            if not self._delays:
                connection.dialect = without_scheduler(connection.dialect)
        return StompSession(connection, clock=self._clock)

    def _asked_for_scheduler(self, connection: Connection, deadline: float) -> bool:
        flow = Flow(connection, secrets.token_hex(6))
        connection.on_message = flow.on_message
        try:
            return flow.has_scheduler(deadline)
        except MQError as exc:
            connection.give_up()
            raise ConnectFailedError(f"{self._login.scheme}:// is connected, and serves nobody: {exc}") from exc

    def close(self) -> None:
        """Nothing: each session has its own connection."""


class StompFactory:
    """What the entry points of both schemes name."""

    options = StompOptions

    def __new__(cls, url: BrokerURL, options: object, *, clock: Clock) -> "Backend":  # type: ignore[misc]
        if not isinstance(options, StompOptions):
            raise ConfigError(f"{url.scheme}:// needs its own options")
        secure = url.scheme == "stomp+ssl"
        if not secure and (options.cafile or options.certfile or options.keyfile):
            raise ConfigError("cafile, certfile and keyfile are options of stomp+ssl://; stomp:// does not encrypt")
        # STOMP escapes nothing in CONNECT: "to maintain backward compatibility"
        for what, text in (("user name", url.username), ("password", url.password), ("virtual host", url.path)):
            if text is not None and any(mark in text for mark in "\n\r\0"):
                raise ConfigError(f"a STOMP {what} has no line break and no NUL")
        port = PORT_TLS if secure else PORT
        login = Login(
            scheme=url.scheme,
            username=url.username,
            password=url.password,
            vhost=url.path[1:] or "/",
            heartbeat=options.heartbeat,
            tls=_tls(options) if secure else None,
        )
        hosts = [(host or "localhost", given or port) for host, given in url.hosts] or [("localhost", port)]
        return StompBackend(login, hosts, clock)


def _tls(options: StompOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.cafile)
        if options.certfile is not None:
            context.load_cert_chain(options.certfile, options.keyfile)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"stomp+ssl:// cannot use its certificate files: {exc}") from exc
    return context
