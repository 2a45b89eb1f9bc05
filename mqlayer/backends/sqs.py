"""Amazon SQS, and servers that speak its protocol: ``sqs://region``. Each request is its own; there is no connection to keep.

A connection is for standard queues, or, with ``fifo=true``, for FIFO queues: what one kind can do the other cannot. Messages
that wait are on the service, delayed; what was delivered is leased by its visibility timeout.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from mqlayer.backends.sqs_consumer import Consumer
from mqlayer.backends.sqs_held import Held, give_back
from mqlayer.backends.sqs_orphans import Orphans
from mqlayer.backends.sqs_requests import Requests
from mqlayer.backends.sqs_returns import Returns
from mqlayer.backends.sqs_service import Service
from mqlayer.backends.sqs_session import SQSSession
from mqlayer.backends.sqs_wire import LEASE_MAX, RESERVE_BYTES, SIZE_MAX
from mqlayer.clock import Clock
from mqlayer.driver import Backend, Session
from mqlayer.errors import ConfigError, ConnectFailedError, MQError, RequestTimeoutError
from mqlayer.urls import BrokerURL

__all__ = ["SQSBackend", "SQSFactory", "SQSOptions"]

WAIT_MAX = 20  #: seconds of a long poll: WaitTimeSeconds


@dataclass(frozen=True, slots=True, kw_only=True)
class SQSOptions:
    """The options of an ``sqs://`` URL.

    Attributes:
        endpoint: Where the service is, if not at Amazon's.
        fifo: All queues are FIFO queues: groups and deduplication, but no delay.
        lease: Seconds of a lease, for consumers that do not set ``lease=``. It is renewed while the consumer lives.
        wait: Seconds of a long poll: an idle consumer makes one request in that time.
        size_max: Bytes of a message with its headers, and of all messages of one request.
    """

    endpoint: str | None = None
    fifo: bool = False
    lease: float = 60.0
    wait: int = WAIT_MAX
    size_max: int = SIZE_MAX

    def __post_init__(self) -> None:
        if self.endpoint is not None and (
            urlsplit(self.endpoint).scheme not in ("http", "https") or not urlsplit(self.endpoint).hostname
        ):
            raise ValueError(f"option 'endpoint' is a URL such as http://127.0.0.1:9324, not {self.endpoint!r}")
        if not 1 <= self.lease <= LEASE_MAX:
            raise ValueError(f"option 'lease' is from 1 to {LEASE_MAX:g} seconds, not {self.lease}")
        if not 1 <= self.wait <= WAIT_MAX:
            raise ValueError(f"option 'wait' is from 1 to {WAIT_MAX} seconds, not {self.wait}")
        if self.size_max <= RESERVE_BYTES:
            raise ValueError(f"option 'size_max' is more than {RESERVE_BYTES} bytes, not {self.size_max}")


class SQSBackend:
    """One region, or one endpoint."""

    inline = False

    def __init__(self, region: str, options: SQSOptions, clock: Clock) -> None:
        self._region = region
        self._options = options
        self._clock = clock
        self._lock = threading.Lock()
        self._process = 0
        self._service: Service | None = None
        self._orphans: Orphans[Consumer] = Orphans(clock)
        self._returns = Returns()
        self._left_over: list[Held] = []

    def session(self, timeout: float, look_again: Callable[[float], None]) -> Session:
        """One round trip, to see that the service is there; what a lost session held is given back.

        Raises:
            ConnectFailedError: it does not answer. AuthenticationError: there are no credentials, or it refuses them.
        """
        service = self._ours()
        with self._lock:
            held, self._left_over = self._left_over, []
        requests = Requests(1, self._clock)

        def begin() -> None:
            service.greet()
            give_back(service, held, self._clock.monotonic, self._keep)

        try:
            requests.call(begin, timeout, "connecting")
        except RequestTimeoutError as error:
            self._keep(held)
            raise ConnectFailedError(str(error)) from error
        except MQError:
            self._keep(held)
            raise
        finally:
            requests.end()
        return SQSSession(
            service,
            fifo=self._options.fifo,
            lease=self._options.lease,
            wait=self._options.wait,
            size_max=self._options.size_max,
            clock=self._clock,
            orphans=self._orphans,
            left_over=self._keep,
            returns=self._returns,
        )

    def _ours(self) -> Service:
        """The clients of this process: a fork's child must not touch its parent's sockets, nor its deliveries."""
        with self._lock:
            if self._service is None or self._process != os.getpid():
                self._process = os.getpid()
                self._orphans = Orphans(self._clock)
                self._returns = Returns()
                self._left_over = []
                self._service = Service(region=self._region, endpoint=self._options.endpoint, wait=self._options.wait)
            return self._service

    def _keep(self, held: list[Held]) -> None:
        with self._lock:
            self._left_over.extend(held)

    def close(self) -> None:
        """Waits a moment for polls that are about to be back."""
        self._orphans.close()
        with self._lock:
            service, self._service = self._service, None
        if service is not None and self._process == os.getpid():
            service.let_go()


class SQSFactory:
    """What the entry point names."""

    options = SQSOptions

    def __new__(cls, url: BrokerURL, options: object, *, clock: Clock) -> "Backend":  # type: ignore[misc]
        if not isinstance(options, SQSOptions):
            raise ConfigError(f"{url.scheme}:// needs its own options")
        if url.username is not None or url.password is not None:
            raise ConfigError(
                "sqs:// has no user or password: credentials are the AWS ones, from the environment or a profile"
            )
        if len(url.hosts) != 1 or not url.hosts[0][0] or url.hosts[0][1] is not None or url.path.strip("/"):
            raise ConfigError(
                "sqs:// is followed by a region alone: sqs://eu-central-1, sqs://elasticmq?endpoint=http://…"
            )
        return SQSBackend(url.hosts[0][0], options, clock)
