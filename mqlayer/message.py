"""What users send and what they get: ``Message`` and ``ReceivedMessage``."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from mqlayer.driver import NO_HEADERS, HeaderValue, Outgoing
from mqlayer.errors import ArgumentError

__all__ = ["Message", "ReceivedMessage", "check_fields"]

PRIORITY_MAX = 9


@dataclass(frozen=True, slots=True)
class Message:
    """A message to send.

    Args:
        payload: bytes and str travel as they are; anything else travels as JSON.
        headers: Names to str, int, float, bool, bytes or ``None``. Names that begin with ``mq-`` are reserved.
        delay: Seconds that the broker waits before it hands the message over.
        ttl: Seconds from the send, delay included, after which the message is discarded unseen.
        priority: 0–9, higher first.
        group_id: Messages of one group are handed over in order, one consumer at a time.
        dedup_id: A second message with the same one, within the broker's window, is discarded.
        content_type: Default: by the payload's type.
        id: Default: made by the client. Two messages with one id are the same message, sent twice.

    Raises:
        ArgumentError: a value is out of its range, or *ttl* ends before *delay* does.
    """

    payload: Any
    _: KW_ONLY
    headers: Mapping[str, HeaderValue] | None = None
    delay: float = 0.0
    ttl: float | None = None
    priority: int | None = None
    group_id: str | None = None
    dedup_id: str | None = None
    content_type: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        check_fields(self.delay, self.ttl, self.priority)
        for name in ("group_id", "dedup_id", "content_type", "correlation_id", "reply_to", "id"):
            check_text(name, getattr(self, name))


def check_text(name: str, value: object) -> None:
    """Refuse a textual field that could not travel."""
    if value is None:
        return
    if not isinstance(value, str) or not value:
        raise ArgumentError(f"{name} is a str with at least one character, not {value!r}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise ArgumentError(f"{name} is not valid Unicode: {exc.reason}") from exc


def check_fields(delay: float, ttl: float | None, priority: int | None) -> None:
    """Refuse what no broker could mean.

    Raises:
        ArgumentError: negative or non-finite times, ``ttl <= delay``, a priority outside 0–9.
    """
    if not isinstance(delay, (int, float)) or not 0.0 <= delay < float("inf"):
        raise ArgumentError(f"delay is a number of seconds from 0, not {delay!r}")
    if ttl is not None:
        if not isinstance(ttl, (int, float)) or not 0.0 < ttl < float("inf"):
            raise ArgumentError(f"ttl is a positive number of seconds, not {ttl!r}")
        if ttl <= delay:
            raise ArgumentError(f"ttl={ttl} ends before delay={delay} does: nobody would ever see the message")
    if priority is not None and (
        isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= PRIORITY_MAX
    ):
        raise ArgumentError(f"priority is a whole number from 0 to {PRIORITY_MAX}, not {priority!r}")


class ReceivedMessage:
    """A message as it arrived. ``id`` is ``None`` where the sender gave none."""

    __slots__ = ("_decode", "_outgoing", "_payload")

    def __init__(self, outgoing: Outgoing, decode: Callable[[bytes, str | None], Any]) -> None:
        self._outgoing = outgoing
        self._decode = decode
        self._payload: Any = _UNREAD

    @property
    def body(self) -> bytes:
        """The bytes that travelled."""
        return self._outgoing.body

    @property
    def payload(self) -> Any:
        """The body, decoded as its content type says, on first use.

        Raises:
            UndecodableError: the body is not what its content type says.
        """
        if self._payload is _UNREAD:
            self._payload = self._decode(self._outgoing.body, self._outgoing.content_type)
        return self._payload

    @property
    def headers(self) -> Mapping[str, HeaderValue]:
        return self._outgoing.headers or NO_HEADERS

    @property
    def id(self) -> str | None:
        return self._outgoing.id

    @property
    def content_type(self) -> str | None:
        return self._outgoing.content_type

    @property
    def correlation_id(self) -> str | None:
        return self._outgoing.correlation_id

    @property
    def reply_to(self) -> str | None:
        return self._outgoing.reply_to

    @property
    def priority(self) -> int | None:
        return self._outgoing.priority

    @property
    def group_id(self) -> str | None:
        return self._outgoing.group_id

    @property
    def dedup_id(self) -> str | None:
        return self._outgoing.dedup_id

    @property
    def sent_at(self) -> float | None:
        """Epoch seconds at which the sender sent it, by the sender's clock."""
        return self._outgoing.sent_at

    @property
    def expires_at(self) -> float | None:
        """Epoch seconds after which nobody is given it, by the sender's clock."""
        return self._outgoing.expires_at

    @property
    def dead_letter_reason(self) -> str | None:
        """Why it was dead-lettered; ``None`` outside a dead-letter queue."""
        return self._outgoing.trail.reason

    @property
    def dead_letter_origin(self) -> str | None:
        """The queue in which it was dead-lettered."""
        return self._outgoing.trail.origin

    @property
    def dead_letter_count(self) -> int:
        """How often it had been delivered when it was dead-lettered; 0 outside a dead-letter queue."""
        return self._outgoing.trail.deliveries

    @property
    def failures(self) -> int:
        """How many of its handlers have failed so far."""
        return self._outgoing.trail.failures

    @property
    def copied_from(self) -> str | None:
        """The delivery of which mqlayer made this copy, to give it back or to dead-letter it; ``None``: it is the original.

        A copy is confirmed before its original is acked, so a crash in between leaves both.
        """
        return self._outgoing.trail.copied_from

    @property
    def resent(self) -> bool:
        """This copy was sent again after a lost connection: an earlier copy with the same id may exist."""
        return self._outgoing.trail.resent > 0

    @property
    def resent_count(self) -> int:
        """How many earlier copies with the same id may exist: each attempt to send it that had no answer left one or none."""
        return self._outgoing.trail.resent

    def __repr__(self) -> str:
        return f"ReceivedMessage(id={self.id!r}, content_type={self.content_type!r}, {len(self.body)} bytes)"


class _Unread:
    pass


_UNREAD = _Unread()
