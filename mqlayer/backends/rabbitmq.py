"""RabbitMQ over AMQP 0-9-1: ``amqp://`` and ``amqps://``. One session is one connection.

Publishing, consuming and asking each have a channel of their own: an error closes a channel and nothing else. Nothing is
tried twice here. Messages that wait are on the broker, in quorum queues (``mq.delay.<ms>``, at most 168 of them) that hand
over at least once; those need RabbitMQ 3.10 with its feature flag ``stream_queue``, which is on unless an upgrade left it off.
"""

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mqlayer.backends.rabbitmq_connection import Login, connect
from mqlayer.backends.rabbitmq_session import RabbitSession
from mqlayer.clock import Clock
from mqlayer.driver import Backend, Session
from mqlayer.errors import ConfigError
from mqlayer.urls import BrokerURL

__all__ = ["RabbitBackend", "RabbitFactory", "RabbitOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitOptions:
    """The options of an ``amqp://`` URL.

    Attributes:
        queue_type: What is declared. ``quorum`` counts deliveries; ``classic`` has priorities.
        prefetch: Deliveries that a consumer may hold unsettled, for each of its queues.
        heartbeat: Seconds; a silent connection is given up after about two of them. 0: never.
        declare_settle: Seconds that the creation of a durable queue takes; a server killed within about one second of it
            can bring the queue back dead. 0: do not wait.
        cafile, certfile, keyfile: ``amqps://``: who is trusted (default: the system's), and what we show of ourselves.
    """

    queue_type: Literal["quorum", "classic"] = "quorum"
    prefetch: int = 100
    heartbeat: int = 60
    declare_settle: float = 2.5
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.prefetch <= 65_535:
            raise ValueError(f"option 'prefetch' is from 1 to 65535, not {self.prefetch}")
        if not 0 <= self.heartbeat <= 65_535:
            raise ValueError(f"option 'heartbeat' is from 0 to 65535 seconds, not {self.heartbeat}")
        if self.declare_settle < 0:
            raise ValueError(f"option 'declare_settle' is seconds from 0, not {self.declare_settle}")


class RabbitBackend:
    """A broker, at one or several addresses."""

    inline = False

    def __init__(self, login: Login, hosts: Sequence[tuple[str, int]], options: RabbitOptions, clock: Clock) -> None:
        self._login = login
        self._hosts = tuple(hosts)
        self._options = options
        self._clock = clock

    def session(self, timeout: float, look_again: Callable[[float], None]) -> Session:
        """Connect to the first host that takes us.

        Raises:
            ConnectFailedError: none did. AuthenticationError: one refused the credentials or the virtual host.
        """
        connection = connect(self._hosts, self._login, timeout, self._clock.monotonic)
        return RabbitSession(
            connection, self._options.queue_type, declare_settle=self._options.declare_settle, clock=self._clock
        )

    def close(self) -> None:
        """Nothing: each session has its own connection."""


class RabbitFactory:
    """What the entry points of both schemes name."""

    options = RabbitOptions

    def __new__(cls, url: BrokerURL, options: object, *, clock: Clock) -> "Backend":  # type: ignore[misc]
        if not isinstance(options, RabbitOptions):
            raise ConfigError(f"{url.scheme}:// needs its own options")
        secure = url.scheme == "amqps"
        port = 5671 if secure else 5672
        hosts = [(host or "localhost", given or port) for host, given in url.hosts] or [("localhost", port)]
        login = Login(
            scheme=url.scheme,
            username="guest" if url.username is None else url.username,
            password="guest" if url.password is None and url.username is None else url.password or "",
            vhost=url.path[1:] or "/",
            heartbeat=options.heartbeat,
            tls=_tls(options) if secure else None,
        )
        if not secure and (options.cafile or options.certfile or options.keyfile):
            raise ConfigError("cafile, certfile and keyfile are options of amqps://; amqp:// does not encrypt")
        return RabbitBackend(login, hosts, options, clock)


def _tls(options: RabbitOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.cafile)
        if options.certfile is not None:
            context.load_cert_chain(options.certfile, options.keyfile)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"amqps:// cannot use its certificate files: {exc}") from exc
    return context
