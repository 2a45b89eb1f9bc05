"""One AMQP connection whose loop runs only while its owner is inside a call. Knows pika; knows no queue and no message.

pika's ``SelectConnection`` does the handshake, TLS, heartbeats and channels; the owner's thread turns its loop until what
it waits for has happened or the time is up. What is published is gathered into few writes: :class:`Services` keeps the
transport that pika writes to, which is also where a codec of our own can be put in front of pika's.
"""

import contextlib
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from socket import socket
from typing import TYPE_CHECKING, Any

import pika
from pika import exceptions, spec
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.adapters.utils.connection_workflow import (
    AMQPConnectionWorkflowFailed,
    AMQPConnectorException,
    AMQPConnectorPhaseErrorBase,
)
from pika.adapters.utils.nbio_interface import AbstractIOReference, AbstractStreamProtocol, AbstractStreamTransport
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
from pika.channel import Channel

from mqlayer.backends.rabbitmq_sieve import Sieve
from mqlayer.errors import (
    AuthenticationError,
    BrokerError,
    ConnectFailedError,
    ConnectionLostError,
    MQError,
    QueueMismatchError,
    QueueNotFoundError,
    RequestTimeoutError,
)

__all__ = ["ACCESS_REFUSED", "Connection", "Lane", "Login", "connect", "translated"]

NOT_FOUND, LOCKED, PRECONDITION_FAILED, ACCESS_REFUSED = 404, 405, 406, 403
CLOSE_MAX = 0.5  #: seconds that a dead connection's transport gets to end


@dataclass(frozen=True, slots=True)
class Login:
    """How to enter a broker, wherever it is."""

    scheme: str
    username: str
    password: str
    vhost: str
    heartbeat: int
    tls: ssl.SSLContext | None

    def parameters(self, host: str, port: int, timeout: float) -> pika.ConnectionParameters:
        return pika.ConnectionParameters(
            host,
            port,
            self.vhost,
            pika.PlainCredentials(self.username, self.password, erase_on_connect=True),
            heartbeat=self.heartbeat,
            ssl_options=None if self.tls is None else pika.SSLOptions(self.tls, server_hostname=host),
            connection_attempts=1,
            socket_timeout=timeout,
            stack_timeout=timeout,
            client_properties={"product": "mqlayer"},
        )


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """pika's errors become ours, once."""
    try:
        yield
    except exceptions.ChannelClosedByBroker as exc:
        kinds: dict[int, type[MQError]] = {
            NOT_FOUND: QueueNotFoundError,
            LOCKED: QueueMismatchError,
            PRECONDITION_FAILED: QueueMismatchError,
            ACCESS_REFUSED: AuthenticationError,
        }
        raise kinds.get(exc.reply_code, BrokerError)(f"RabbitMQ refused: {exc.reply_text}") from exc
    except (exceptions.AMQPError, exceptions.ChannelError, AMQPConnectorException, OSError) as exc:
        raise ConnectionLostError(f"the connection to RabbitMQ ended: {describe(exc)}") from exc


def describe(exc: BaseException) -> str:
    """pika's error in a few words; it nests them."""
    while True:
        if isinstance(exc, AMQPConnectionWorkflowFailed) and exc.exceptions:
            exc = exc.exceptions[-1]
        elif isinstance(exc, AMQPConnectorPhaseErrorBase):
            exc = exc.exception
        elif len(exc.args) == 1 and isinstance(exc.args[0], BaseException):
            exc = exc.args[0]
        else:
            return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


if TYPE_CHECKING:  # generic in the stubs alone
    _ServicesBase = SelectorIOServicesAdapter[Any]
else:
    _ServicesBase = SelectorIOServicesAdapter


class Services(_ServicesBase):
    """pika's I/O services, and the transport of the connection that was made through them."""

    def __init__(self, loop: IOLoop) -> None:
        super().__init__(loop)
        self.transport: AbstractStreamTransport | None = None

    def create_streaming_connection(
        self,
        protocol_factory: Callable[[], AbstractStreamProtocol],
        sock: socket,
        on_done: Callable[[tuple[AbstractStreamTransport, AbstractStreamProtocol] | BaseException], None],
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> AbstractIOReference:
        def done(result: tuple[AbstractStreamTransport, AbstractStreamProtocol] | BaseException) -> None:
            if not isinstance(result, BaseException):
                self.transport = result[0]
            on_done(result)

        def sieved() -> AbstractStreamProtocol:
            protocol = protocol_factory()
            sieve = Sieve(protocol.data_received)
            protocol.data_received = sieve.feed  # type: ignore[method-assign]
            return protocol

        return super().create_streaming_connection(sieved, sock, done, ssl_context, server_hostname)


class Lane:
    """One channel, and why it ended. What fails on it leaves the others alone."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.ended: BaseException | None = None
        channel.add_on_close_callback(self._on_close)

    def _on_close(self, _channel: Channel, reason: BaseException) -> None:
        self.ended = reason


class Connection:
    """An open connection. One thread at a time; ``wake`` and ``abort`` come from any.

    Attributes:
        lost: Why it ended; None while it is open.
        blocked: The broker is in alarm and takes no messages from this connection.
    """

    def __init__(self, parameters: pika.ConnectionParameters, monotonic: Callable[[], float]) -> None:
        self.lost: BaseException | None = None
        self.blocked = False
        self.aborted = False
        self.woken = False
        self._opened = False
        self._monotonic = monotonic
        self._loop = IOLoop()
        self._loop.activate_poller()
        self._services = Services(self._loop)
        self._pika = SelectConnection(
            parameters, self._on_open, self._on_close, self._on_close, custom_ioloop=self._services
        )
        self._pika.add_on_connection_blocked_callback(lambda _connection, _method: self._on_blocked(True))
        self._pika.add_on_connection_unblocked_callback(lambda _connection, _method: self._on_blocked(False))

    def wait_open(self, deadline: float) -> None:
        """Finish the handshake, or raise what ended it."""
        try:
            if not self.run_until(lambda: self._opened, deadline):
                raise ConnectionLostError("it did not answer in time")
            if self._services.transport is None:
                raise ConnectionLostError("this pika makes its transport in a way that mqlayer does not know")
        except BaseException:
            self.close(0.0)
            raise

    @property
    def server_version(self) -> str:
        """What the broker says of itself."""
        return str((self._pika.server_properties or {}).get("version", ""))

    @property
    def frame_max(self) -> int:
        """The longest frame that both sides agreed on, in bytes."""
        return self._pika.params.frame_max

    # --- the loop -----------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Do what can be done without waiting: read, write, serve heartbeats."""
        self._loop.call_later(0, _nothing)
        self._loop.poll()
        self._loop.process_timeouts()

    def run_until(self, done: Callable[[], object], deadline: float) -> bool:
        """Turn the loop, once at least, until *done* (True) or until *deadline* (False).

        Raises:
            ConnectionLostError: it ended, or was aborted.
        """
        timer = None
        try:
            while True:
                remaining = deadline - self._monotonic()
                if remaining > 0 and not done():  # a poll would sleep beside what is there already
                    if timer is None:  # without one the poll sleeps for up to five seconds
                        timer = self._loop.call_later(remaining, _nothing)
                    self._loop.poll()
                    self._loop.process_timeouts()
                else:
                    self.turn()
                if self.lost is not None or self.aborted:
                    self.check_open()
                if done():
                    return True
                if remaining <= 0:
                    return False
        finally:
            if timer is not None:
                self._loop.remove_timeout(timer)

    def check_open(self) -> None:
        """Raise ConnectionLostError if it is not open any more."""
        if self.lost is not None:
            with translated():
                raise self.lost
        if self.aborted:
            raise ConnectionLostError("the connection was aborted")

    # --- channels -----------------------------------------------------------------------------------------------------

    def open_lane(self, deadline: float) -> Lane:
        """A new channel."""
        self.check_open()
        opened: list[Channel] = []
        with translated():
            lane = Lane(self._pika.channel(on_open_callback=opened.append))
        self._wait_answer(lane, opened, deadline)
        return lane

    def call(self, lane: Lane, begin: Callable[[Callable[[Any], None]], object], deadline: float) -> Any:
        """One request on a channel, and its answer. *begin* sends it and is given the callback for the answer.

        Raises:
            QueueNotFoundError, QueueMismatchError, BrokerError: the broker refused, and closed the channel.
            RequestTimeoutError: no answer in time; it may still take effect. The channel is of no more use.
        """
        self.check_open()
        answer: list[Any] = []
        with translated():
            begin(answer.append)
        return self._wait_answer(lane, answer, deadline)

    def _wait_answer(self, lane: Lane, answer: list[Any], deadline: float) -> Any:
        try:
            answered = self.run_until(lambda: answer or lane.ended, deadline)
        except ConnectionLostError:
            lane.ended = lane.ended or self.lost
            raise
        if not answered:
            lane.ended = RequestTimeoutError("RabbitMQ did not answer in time")
            raise lane.ended
        if not answer and lane.ended is not None:
            with translated():
                raise lane.ended
        return answer[0]

    def drop_lane(self, lane: Lane) -> None:
        """Let a channel end by itself; nothing that it still answers is heard."""
        lane.ended = lane.ended or exceptions.ChannelClosedByClient(200, "dropped")
        if lane.channel.is_open and self.lost is None:
            lane.channel.close()

    # --- frames -------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Hand marshalled frames to the transport, which writes them as the loop turns."""
        if self.lost is None and self._services.transport is not None:
            self._services.transport.write(data)

    def write_method(self, lane: Lane, method: Any) -> None:
        """Hand over a method that is not to be answered."""
        self.write(pika.frame.Method(lane.channel.channel_number, method).marshal())

    def unwritten(self) -> int:
        """Bytes that the transport still holds."""
        transport = self._services.transport
        return 0 if transport is None or self.lost is not None else transport.get_write_buffer_size()

    # --- ending -------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        self.woken = True
        self._loop.add_callback_threadsafe(_nothing)

    def abort(self) -> None:
        self.aborted = True
        self._loop.add_callback_threadsafe(_nothing)

    def close(self, timeout: float) -> None:
        """Write what is still to be written, say goodbye, and give the socket back; at the latest after *timeout*."""
        if self._pika.is_open and not self.aborted:
            with contextlib.suppress(ConnectionLostError):  # it ended while it was being closed: that was the aim
                self._pika.close()
                self.run_until(lambda: False, self._monotonic() + timeout)
        elif not self._pika.is_closed and not self._pika.is_closing:
            self._pika.close()  # still opening: pika gives up the socket
        if self.lost is None and self._opened:
            self._cut()
        elif self.lost is None:
            # Told to give up amid its handshake, pika 1.4 does so, and then asserts: it hands on the class
            # AMQPConnectionWorkflowAborted where it wants an instance. The socket is gone by then.
            with contextlib.suppress(AssertionError):
                self._cut()
        self._services.close()

    def _cut(self) -> None:
        if self._services.transport is not None:
            self._services.transport.abort()
        limit = self._monotonic() + CLOSE_MAX
        while self.lost is None and self._monotonic() < limit:
            self._loop.call_later(0.01, _nothing)
            self._loop.poll()
            self._loop.process_timeouts()

    # --- what pika calls ----------------------------------------------------------------------------------------------

    def _on_open(self, _connection: object) -> None:
        self._opened = True

    def _on_close(self, _connection: object, reason: BaseException | str | None) -> None:
        self.lost = reason if isinstance(reason, BaseException) else exceptions.AMQPConnectionError(str(reason))

    def _on_blocked(self, blocked: bool) -> None:
        self.blocked = blocked


def connect(
    hosts: Sequence[tuple[str, int]], login: Login, timeout: float, monotonic: Callable[[], float]
) -> Connection:
    """A connection to the first of *hosts* that takes it; each is tried once and may use an equal part of the time.

    Raises:
        ConnectFailedError: none did; the text names them all.
        AuthenticationError: one refused the credentials or the virtual host.
    """
    deadline = monotonic() + timeout
    reasons: list[str] = []
    cause: Exception | None = None
    for place, (host, port) in enumerate(hosts):
        now = monotonic()
        share = max((deadline - now) / (len(hosts) - place), 0.001)
        connection = Connection(login.parameters(host, port, share), monotonic)
        try:
            connection.wait_open(now + share)
        except ConnectionLostError as exc:
            reason = describe(exc.__cause__) if exc.__cause__ is not None else str(exc)
            if refused_login(reason):
                text = (
                    f"{login.scheme}://{host}:{port} refused user {login.username!r} at vhost {login.vhost!r}: {reason}"
                )
                raise AuthenticationError(text) from exc
            reasons.append(f"{host}:{port} ({reason})")
            cause = exc
        else:
            return connection
    raise ConnectFailedError(f"cannot connect to {login.scheme}://{', '.join(reasons)}") from cause


def refused_login(reason: str) -> bool:
    """RabbitMQ said no, rather than going away in mid handshake, which pika takes for a probable refusal too."""
    return any(f"({code})" in reason for code in (ACCESS_REFUSED, spec.NOT_ALLOWED))


def _nothing() -> None:
    return None
