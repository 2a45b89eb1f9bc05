"""Publishing with confirms: a window of messages on their way, gathered into few writes, and a fate for each.

``Publisher`` is the one place that marshals what is published. ``_marshal`` uses pika's classes; a faster codec goes
there and changes nothing else.
"""

import re
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from pika import exceptions, frame, spec

from mqlayer.backends.rabbitmq_connection import ACCESS_REFUSED, Connection, Lane, describe
from mqlayer.backends.rabbitmq_wire import to_properties
from mqlayer.driver import Outgoing
from mqlayer.errors import (
    HeaderError,
    MessageTooLargeError,
    MQError,
    NotSentError,
    OutcomeUnknownError,
    RefusedError,
    RequestTimeoutError,
    SendError,
    SendTimeoutError,
    UnroutableError,
)

__all__ = ["Job", "Publisher"]

WINDOW = 1024  #: messages on their way without a confirm, at the most
GATHER_BYTES = 64 * 1024  #: frames are joined into one write up to that size …
GATHER_MESSAGES = 64  #: … and up to that many messages
COPY_ROOM = 4096  #: bytes of the header frame that a message leaves to its copies, which say whence they come and why
UNWRITTEN_MAX = 1024 * 1024  #: bytes handed to the transport beyond what the socket takes; more is not sent yet

# "PRECONDITION_FAILED - message size 3000000 is larger than configured max size 2000000", and the channel ends.
_TOO_LARGE = re.compile(r"message size \d+ (?:is )?larger than (?:configured )?max size (\d+)")
_FRAME_HEADER = struct.Struct(">BHI")
_FRAME_END = bytes([spec.FRAME_END])
_FRAME_EXTRA = 8  #: bytes of a frame around its payload


class Job(NamedTuple):
    """One message of a batch, and where it is published to."""

    place: int  #: in the batch
    message: Outgoing
    exchange: str
    routing_key: str


class Publisher:
    """Publishes on a channel of its own, in confirm mode. After an unknown outcome it takes a new channel, so that a
    late answer is never taken for another message's."""

    def __init__(
        self, connection: Connection, *, body_max: int, time: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._connection = connection
        self._body_max = body_max
        self._time = time
        self._monotonic = monotonic
        self._lane: Lane | None = None
        self._tag = 0  #: of the last message published on the channel
        self._pending: dict[int, Job] = {}  #: by tag, oldest first
        self._keys: set[tuple[str | None, str]] = set()  #: of the pending ones: what a returned message is known by
        self._returned: dict[tuple[str | None, str], str] = {}
        self._nacked: list[Job] = []
        self._failures: dict[int, MQError] = {}
        self._methods: dict[tuple[str, str, bool], bytes] = {}

    def publish(self, jobs: Iterable[Job], deadline: float, *, topic: bool) -> dict[int, MQError]:
        """Publish *jobs* and wait for their confirms. Returns why each of the others failed; never raises for one.

        Messages to a *topic* may go nowhere. One that a topic refused may be in some of its groups: its fate is unknown.
        """
        waiting = deque(jobs)
        failures: dict[int, MQError] = {}
        self._failures = failures
        cause: BaseException | None = None
        late = False
        try:
            lane = self._open(deadline)
            while waiting or self._pending:
                if waiting and self._has_room(waiting[0]):
                    if late := self._monotonic() >= deadline:
                        break
                    self._write_some(lane, waiting, mandatory=not topic)
                    self._connection.turn()
                    if lane.ended is None:
                        self._connection.check_open()
                elif late := not self._connection.run_until(
                    lambda: lane.ended or (self._has_room(waiting[0]) if waiting else not self._pending), deadline
                ):
                    break
                if lane.ended is not None:
                    cause = lane.ended
                    break
        except MQError as exc:
            cause = exc
        self._settle_nacked(topic)
        self._give_up(waiting, cause, late)
        return failures

    # --- before the answer --------------------------------------------------------------------------------------------

    def _open(self, deadline: float) -> Lane:
        if self._lane is None or self._lane.ended is not None:
            self._lane = lane = self._connection.open_lane(deadline)
            self._tag = 0
            channel = lane.channel
            channel.add_on_return_callback(
                lambda _channel, method, properties, _body: self._on_return(lane, method, properties)
            )
            self._connection.call(
                lane,
                lambda done: channel.confirm_delivery(lambda answer: self._on_confirm(lane, answer), done),
                deadline,
            )
            self._methods.clear()
        return self._lane

    def _has_room(self, job: Job) -> bool:
        """May *job* be written now? One that could not be told from a pending one, were it returned, waits for that."""
        return (
            len(self._pending) <= WINDOW - GATHER_MESSAGES  # so that there is always something to gather
            and not self._connection.blocked
            and (job.message.id, job.exchange) not in self._keys
            and self._connection.unwritten() < UNWRITTEN_MAX
        )

    def _write_some(self, lane: Lane, waiting: deque[Job], *, mandatory: bool) -> None:
        pieces: list[bytes] = []
        size = count = 0
        now = self._time()
        while waiting and count < GATHER_MESSAGES and size < GATHER_BYTES:
            job = waiting[0]
            key = (job.message.id, job.exchange)
            if key in self._keys:
                break
            waiting.popleft()
            try:
                frames = self._marshal(lane.channel.channel_number, job, now, mandatory)
            except SendError as exc:
                exc.message_id = job.message.id
                self._failures[job.place] = exc
                continue
            except (exceptions.AMQPError, struct.error, TypeError, ValueError) as exc:
                refused = RefusedError(f"the message does not fit into AMQP: {exc}", message_id=job.message.id)
                refused.__cause__ = exc
                self._failures[job.place] = refused
                continue
            self._tag += 1
            self._pending[self._tag] = job
            self._keys.add(key)
            pieces += frames
            size += len(job.message.body)
            count += 1
        # A write that the socket takes in parts is copied for each part, so a large body goes frame by frame.
        if size <= 2 * GATHER_BYTES:
            pieces = [b"".join(pieces)] if pieces else pieces
        for piece in pieces:
            self._connection.write(piece)

    def _marshal(self, channel: int, job: Job, now: float, mandatory: bool) -> list[bytes]:
        """The frames of one message: method, header, and the body in as many as it needs."""
        body = job.message.body
        if len(body) > self._body_max:
            raise self._too_large(job)
        target = (job.exchange, job.routing_key, mandatory)
        method = self._methods.get(target)
        if method is None:
            publish = spec.Basic.Publish(exchange=job.exchange, routing_key=job.routing_key, mandatory=mandatory)
            method = self._methods[target] = frame.Method(channel, publish).marshal()
        header = frame.Header(channel, len(body), to_properties(job.message, now)).marshal()
        frame_max = self._connection.frame_max
        header_max = frame_max - (COPY_ROOM if job.message.trail.copied_from is None else 0)
        if len(header) > header_max:
            raise HeaderError(f"the headers have {len(header)} bytes; RabbitMQ takes {header_max} in all")
        frames = [method, header]
        step = frame_max - _FRAME_EXTRA
        for start in range(0, len(body), step):
            part = body if len(body) <= step else body[start : start + step]
            frames.append(b"".join((_FRAME_HEADER.pack(spec.FRAME_BODY, channel, len(part)), part, _FRAME_END)))
        return frames

    # --- the answers --------------------------------------------------------------------------------------------------

    def _on_return(self, lane: Lane, method: Any, properties: Any) -> None:
        if lane is self._lane:
            self._returned[properties.message_id, method.exchange] = method.reply_text

    def _on_confirm(self, lane: Lane, answer: Any) -> None:
        if lane is not self._lane:
            return
        method = answer.method
        tag = method.delivery_tag
        if not method.multiple:
            tags: Sequence[int] = (tag,)
        else:
            tags = []
            for pending in self._pending:
                if pending > tag:
                    break
                tags.append(pending)
        refused = method.NAME == "Basic.Nack"
        for each in tags:
            job = self._pending.pop(each, None)
            if job is not None:
                self._confirmed(job, refused)

    def _confirmed(self, job: Job, refused: bool) -> None:
        key = (job.message.id, job.exchange)
        self._keys.discard(key)
        reason = self._returned.pop(key, None) if self._returned else None
        if reason is not None:
            self._failures[job.place] = UnroutableError(
                f"there is no queue {job.routing_key!r}: {reason}", message_id=job.message.id
            )
        elif refused:
            self._nacked.append(job)

    def _settle_nacked(self, topic: bool) -> None:
        kind: type[SendError] = OutcomeUnknownError if topic else RefusedError
        for job in self._nacked:
            self._failures[job.place] = kind(
                "RabbitMQ refused the message: the queue is full or out of order", message_id=job.message.id
            )
        self._nacked.clear()

    def _too_large(self, job: Job) -> MessageTooLargeError:
        text = f"the body has {len(job.message.body)} bytes; RabbitMQ takes {self._body_max}"
        return MessageTooLargeError(text, message_id=job.message.id)

    def _learn_body_max(self, cause: BaseException | None) -> None:
        """The server's own limit is told only by the end of the channel that a larger message went to."""
        told = _TOO_LARGE.search(cause.reply_text) if isinstance(cause, exceptions.ChannelClosedByBroker) else None
        if told:
            self._body_max = min(self._body_max, int(told[1]))

    def _give_up(self, waiting: Iterable[Job], cause: BaseException | None, late: bool) -> None:
        """A fate for everything without an answer."""
        why = describe(cause) if cause is not None else "the time is up"
        if late and self._connection.blocked:
            why = "RabbitMQ is in alarm and takes no messages"
        self._learn_body_max(cause)
        for job in self._pending.values():
            if len(job.message.body) > self._body_max:  # then it was refused: no other would have told of its size
                self._failures[job.place] = self._too_large(job)
                continue
            if self._pending.keys() == {1} and _is_forbidden(cause):  # the only one that this channel ever carried
                refused = RefusedError(f"RabbitMQ refused the message: {why}", message_id=job.message.id)
                refused.__cause__ = cause
                self._failures[job.place] = refused
                continue
            unknown = OutcomeUnknownError(f"no confirm from RabbitMQ: {why}", message_id=job.message.id)
            unknown.__cause__ = cause
            self._failures[job.place] = unknown
        late = late or isinstance(cause, RequestTimeoutError)
        kind: type[SendError] = SendTimeoutError if late else NotSentError
        for job in waiting:
            unsent = kind(f"not sent to RabbitMQ: {why}", message_id=job.message.id)
            unsent.__cause__ = cause
            self._failures[job.place] = unsent
        if self._pending and self._lane is not None:
            self._connection.drop_lane(self._lane)
            self._lane = None
        self._pending.clear()
        self._keys.clear()
        self._returned.clear()


def _is_forbidden(cause: BaseException | None) -> bool:
    return isinstance(cause, exceptions.ChannelClosedByBroker) and cause.reply_code == ACCESS_REFUSED
