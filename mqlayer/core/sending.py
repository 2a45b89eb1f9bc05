"""A producer but for the waiting: from a payload to a parcel."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mqlayer.codec import check_headers, encode
from mqlayer.core.connecting import ConnectionCore, check_queue
from mqlayer.core.flow import Flow
from mqlayer.driver import NO_HEADERS, HeaderValue, Outgoing
from mqlayer.engine import PROCESS, Line, Parcel, Tally, no_room
from mqlayer.errors import (
    ArgumentError,
    ClosedError,
    MessageTooLargeError,
    RefusedError,
    SendError,
    UnsupportedError,
    UsageError,
)
from mqlayer.message import Message, check_fields, check_text

__all__ = ["ProducerCore", "SendReport"]


@dataclass(frozen=True, slots=True)
class SendReport:
    """What became of a batch.

    Attributes:
        ids: One for each input, in its order, whatever became of it.
        failures: Place in the input → why it failed. What is absent is safe.
    """

    ids: list[str]
    failures: dict[int, SendError] = field(default_factory=dict)

    def add(self, place: int, message_id: str | None, error: SendError | UsageError) -> None:
        """Note a message that never came to be queued: one that cannot travel does not stop the others."""
        if not isinstance(error, SendError):
            refused = RefusedError(str(error))
            refused.__cause__ = error
            error = refused
        error.message_id = error.message_id or message_id
        if len(self.ids) == place:
            self.ids.append(error.message_id or "")
        self.failures[place] = error


class ProducerCore:
    """Everything a producer does except wait."""

    def __init__(self, connection: ConnectionCore, queue: str | None, topic: str | None) -> None:
        self.connection = connection
        self.name = queue if queue is not None else topic or ""
        self.target = (topic is not None, self.name)
        self.closed = False
        self._body_max = connection.capabilities.body_max_bytes
        self._delay_max = connection.capabilities.delay_max
        self._generation = PROCESS.generation
        self._tally = Tally(connection.clock)

    @classmethod
    def open(
        cls, connection: ConnectionCore, queue: str | None, topic: str | None, timeout: float | None
    ) -> "Flow[ProducerCore]":
        """Make sure of the queue; a topic needs nothing."""
        if (queue is None) == (topic is None):
            raise ArgumentError("a producer takes either a queue or topic=")
        if queue is not None:
            yield connection.ensure(queue, timeout)
        else:
            check_queue(topic)
            connection.require("topics")
            connection.open_engine()
        return cls(connection, queue, topic)

    @property
    def line(self) -> Line:
        """The line to send on.

        Raises:
            ClosedError, ForkedError
        """
        engine = self.connection.engine
        if self.closed or engine.closed or engine.forked:
            if self.closed:
                raise ClosedError(f"the producer of {self.name!r} is closed")
            self.connection.open_engine()
        return engine.sender

    @property
    def tally(self) -> Tally:
        if self._generation != PROCESS.generation:  # what the parent submitted is the parent's to flush
            self._generation = PROCESS.generation
            self._tally = Tally(self.connection.clock)
        return self._tally

    def deadline(self, timeout: float | None) -> float:
        connection = self.connection
        return connection.clock.monotonic() + (connection.timeout if timeout is None else connection.seconds(timeout))

    def parcel(self, outgoing: Outgoing, timeout: float | None, *, flushed: bool) -> Parcel:
        """A message to queue; *flushed*: ``flush`` waits for it and reports it."""
        tally = self.tally if flushed else None
        if tally is not None:
            tally.add()
        return Parcel(self.target, outgoing, self.deadline(timeout), tally)

    def put(self, line: Line, parcel: Parcel) -> bool:
        """Queue it; False: there is no room now.

        Raises:
            ClosedError
            SendTimeoutError: there is no room, and its time is up.
        """
        if line.submit(parcel):
            return True
        if parcel.deadline <= self.connection.clock.monotonic():
            raise no_room(parcel)
        return False

    def not_put(self, parcel: Parcel) -> None:
        """It was not queued: the caller hears of it there, not in a flush."""
        if parcel.tally is not None:
            parcel.tally.settle(1, ())

    def raise_failures(self) -> None:
        """After a flush.

        Raises:
            ExceptionGroup: of what failed since the last one.
        """
        failures = self.tally.take_failures()
        if failures:
            raise ExceptionGroup(f"{len(failures)} messages to {self.name!r} are not known to be safe", failures)

    def outgoing(
        self,
        payload: Any,
        headers: Mapping[str, HeaderValue] | None = None,
        delay: float = 0.0,
        ttl: float | None = None,
        priority: int | None = None,
        group_id: str | None = None,
        dedup_id: str | None = None,
        content_type: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        id: str | None = None,
    ) -> Outgoing:
        """A payload, or a ``Message``, as it will travel, with its id.

        Raises:
            ArgumentError: a field is out of its range, or stands beside a ``Message``.
            UnsupportedError: the backend lacks what a field asks for.
            EncodeError, HeaderError, MessageTooLargeError: the message cannot travel.
        """
        if type(payload) is Message:
            if (
                delay
                or headers
                or any(
                    field is not None
                    for field in (ttl, priority, group_id, dedup_id, content_type, correlation_id, reply_to, id)
                )
            ):
                raise ArgumentError(
                    "a Message has its fields within: headers=, delay= and the like do not go beside it"
                )
            return self._of_message(payload)
        # A value of another type would end the line's owner, and with it everybody's sends; so would one that counts as false.
        if delay != 0 or ttl is not None or priority is not None:
            check_fields(delay, ttl, priority)
        if not (content_type is correlation_id is reply_to is group_id is dedup_id is id is None):
            texts = {
                "group_id": group_id,
                "dedup_id": dedup_id,
                "content_type": content_type,
                "correlation_id": correlation_id,
                "reply_to": reply_to,
                "id": id,
            }
            for name, value in texts.items():
                check_text(name, value)
        return self._packed(
            payload, headers, delay, ttl, priority, group_id, dedup_id, content_type, correlation_id, reply_to, id
        )

    def id_of(self, item: object) -> str:
        """The id that a message which cannot travel would have had."""
        return (item.id if type(item) is Message else None) or self.connection.engine.next_id()

    def _of_message(self, message: Message) -> Outgoing:
        """The same for a ``Message``, whose fields were checked when it was made."""
        return self._packed(
            message.payload,
            message.headers,
            message.delay,
            message.ttl,
            message.priority,
            message.group_id,
            message.dedup_id,
            message.content_type,
            message.correlation_id,
            message.reply_to,
            message.id,
        )

    def _packed(
        self,
        payload: Any,
        headers: Mapping[str, HeaderValue] | None,
        delay: float,
        ttl: float | None,
        priority: int | None,
        group_id: str | None,
        dedup_id: str | None,
        content_type: str | None,
        correlation_id: str | None,
        reply_to: str | None,
        id: str | None,
    ) -> Outgoing:
        connection = self.connection
        message_id = id or connection.engine.next_id()
        if delay or ttl is not None or priority is not None or group_id is not None or dedup_id is not None:
            self._require(delay, ttl, priority, group_id, dedup_id)
        try:
            body, kind = encode(payload, content_type)
            checked = check_headers(headers) if headers else NO_HEADERS
            if self._body_max is not None and len(body) > self._body_max:
                raise MessageTooLargeError(
                    f"a body of {len(body)} bytes is too large for {connection.url.scheme}://, "
                    f"which takes {self._body_max}; keep large data elsewhere and send a reference"
                )
        except SendError as error:
            error.message_id = message_id
            raise
        now = connection.clock.time()
        return Outgoing(
            message_id,
            body,
            checked,
            kind,
            correlation_id,
            reply_to,
            priority,
            group_id,
            dedup_id,
            now,
            None if ttl is None else now + ttl,
            delay,
        )

    def _require(
        self, delay: float, ttl: float | None, priority: int | None, group_id: str | None, dedup_id: str | None
    ) -> None:
        require = self.connection.require
        if delay:
            require("delay")
            if self._delay_max is not None and delay > self._delay_max:
                scheme = self.connection.url.scheme
                raise UnsupportedError(f"{scheme}:// delays by {self._delay_max:g} s at the most, not by {delay:g} s")
        if ttl is not None:
            require("ttl")
        if priority is not None:
            require("priority")
        if group_id is not None:
            require("group_id")
        if dedup_id is not None:
            require("dedup_id")
