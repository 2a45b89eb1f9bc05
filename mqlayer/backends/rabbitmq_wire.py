"""What a message, a queue and a delay look like to RabbitMQ, as plain functions. No I/O, no clock.

Fields that AMQP has a property for travel there, so that any client finds them where its users look; the rest travels in
headers. pika cannot write a float into a header table and cuts one that it reads to a whole number, so floats travel as
text beside ``mq-types``.
"""

import hashlib
import math
from bisect import bisect_left
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from pika import BasicProperties

from mqlayer.codec import as_header_value, from_headers, to_headers
from mqlayer.driver import HeaderValue, Outgoing, QueueOptions
from mqlayer.errors import ArgumentError, HeaderError, RefusedError

__all__ = [
    "DELAY_MAX",
    "DELAY_STEPS",
    "AckWatermark",
    "Token",
    "broker_count",
    "check_queue",
    "delay_arguments",
    "delay_name",
    "delay_step",
    "from_wire",
    "group_queue",
    "memory_exchange",
    "queue_arguments",
    "remembered_dead_letter",
    "to_properties",
    "topic_exchange",
]

INT_BITS = 63  #: of a whole number in a header, its sign beside them
TIMESTAMP_MAX = 2**64 - 1
NAME_MAX_BYTES = 255  #: an AMQP short string: names, ids and the other properties
PLAIN_MEMORY_BYTES = 20  #: of a queue's name that stands in its memory_exchange's; a longer one fills the complaint
EXPIRATION_MAX_MS = 2**32 - 1  #: the longest expiration; what lives longer expires by its mq-expires-at alone
# The timestamp has whole seconds, and sent_at loses its fraction: a header for that would cost the broker a quarter of its
# throughput.
NATIVE = frozenset({"id", "content_type", "correlation_id", "reply_to", "priority", "sent_at"})

# Written or interpreted by RabbitMQ and its plugins. A user may not set them, and a copy of what was received must not
# carry them: one that keeps x-death is dropped silently on its second way round, one that keeps CC is routed again.
RESERVED = frozenset(
    {
        "x-death",
        "x-delivery-count",
        "x-acquired-count",
        "x-stream-offset",
        "x-received-from",
        "x-mqtt-publish-qos",
        "CC",
        "BCC",
    }
)
RESERVED_PREFIXES = ("x-first-death-", "x-last-death-", "x-amqp-1.0-")


class Token(NamedTuple):
    """Settles a delivery: the session that it came on, and its number there."""

    epoch: str
    tag: int


# --- messages ---------------------------------------------------------------------------------------------------------


def to_properties(message: Outgoing, now: float) -> BasicProperties:
    """The properties under which *message* is published at epoch second *now*.

    Raises:
        HeaderError: a header's name is reserved or too long, or its value does not fit the protocol.
        RefusedError: an id or another property is longer than 255 bytes.
    """
    sent_at = None if message.sent_at is None else min(int(message.sent_at), TIMESTAMP_MAX)
    headers: dict[str, Any] = dict(to_headers(_text_floats(message), native=NATIVE, text_only=True))
    for name, value in message.headers.items():
        checked = _checked(name, value)
        if type(value) is not float:
            headers[name] = checked
    for field in ("id", "content_type", "correlation_id", "reply_to"):
        text = getattr(message, field)
        if text is not None and _is_long(text):
            raise RefusedError(f"{field} is longer than {NAME_MAX_BYTES} bytes", message_id=message.id)
    expiration = None
    # In a delay queue an expiration would end the wait early; there mq-expires-at alone tells.
    if message.expires_at is not None and not message.delay:
        remaining = max(int((message.expires_at - now) * 1000), 0)
        expiration = str(remaining) if remaining <= EXPIRATION_MAX_MS else None
    return BasicProperties(
        content_type=message.content_type,
        headers=headers or None,
        delivery_mode=2,
        priority=message.priority,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        expiration=expiration,
        message_id=message.id,
        timestamp=sent_at,
    )


def from_wire(properties: BasicProperties, body: bytes) -> Outgoing:
    """The message as it was sent, without what the broker added on the way; such that a copy of it can be sent."""
    headers: dict[str, HeaderValue] = {}
    if properties.headers:
        headers = {_text(name): _value(value) for name, value in properties.headers.items() if not _is_reserved(name)}
    message = Outgoing(
        _maybe_text(properties.message_id),
        body,
        content_type=_maybe_text(properties.content_type),
        correlation_id=_maybe_text(properties.correlation_id),
        reply_to=_maybe_text(properties.reply_to),
        priority=properties.priority,
        sent_at=None if properties.timestamp is None else float(properties.timestamp),
    )
    return from_headers(headers, message, native=NATIVE, text_only=True, int_bits=INT_BITS) if headers else message


def broker_count(properties: BasicProperties, redelivered: bool) -> int:
    """Which delivery of this copy a quorum queue says it is. It counts from the second one on, so absent means 1; and what
    the first one has was written by another client, which sent on what it had received."""
    if not redelivered:
        return 1
    count = (properties.headers or {}).get("x-delivery-count", 0)
    return count + 1 if isinstance(count, int) else 1


def _text_floats(message: Outgoing) -> Outgoing:
    """*message* with those headers alone that have to travel as text."""
    if not message.headers:
        return message
    return message._replace(headers={name: value for name, value in message.headers.items() if type(value) is float})


def _checked(name: str, value: HeaderValue) -> HeaderValue:
    if _is_reserved(name):
        raise HeaderError(f"header {name!r} is RabbitMQ's own")
    if _is_long(name):
        raise HeaderError(f"the header name {name[:40]!r}… is longer than {NAME_MAX_BYTES} bytes")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise HeaderError(f"header {name!r}: an int of RabbitMQ has 64 bits")
    if isinstance(value, float) and type(value) is not float:  # a subclass: as text it would come back as a plain float
        raise HeaderError(f"header {name!r}: a value is a plain float, not {type(value).__name__}")
    return value


def _is_text(name: str) -> bool:
    """Without half a surrogate pair, which has no UTF-8."""
    return name.isascii() or name.encode(errors="replace").decode() == name


def _is_long(text: str) -> bool:
    return len(text) * 4 > NAME_MAX_BYTES and len(text.encode()) > NAME_MAX_BYTES


def _is_reserved(name: object) -> bool:
    return isinstance(name, str) and (name in RESERVED or (name[:2] == "x-" and name.startswith(RESERVED_PREFIXES)))


def _text(name: object) -> str:
    """What pika could not decode it leaves as bytes."""
    if isinstance(name, str):
        return name
    if not isinstance(name, bytes):
        return str(name)
    text = name.decode("utf-8", "replace")
    return text.replace("\ufffd", "?") if _is_long(text) else text  # the replacement has three bytes


def _maybe_text(value: object) -> str | None:
    """Absent and empty are the same: other clients write the one for the other."""
    return (value if type(value) is str else _text(value)) if value else None


def _value(value: object) -> HeaderValue:
    kind = type(value)
    if kind is str or kind is bool or value is None or kind is bytes:
        return value  # type: ignore[return-value]
    if isinstance(value, int):  # pika's own subclass of int for 64-bit values, and all that it leaves of a float
        return int(value) if -(2**63) <= value < 2**63 else float(value)  # else no copy could carry it
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return as_header_value(value)


# --- names and arguments ----------------------------------------------------------------------------------------------


def check_queue(name: str) -> str:
    """*name*, if a queue can have it.

    Raises:
        ArgumentError: it is empty, longer than 255 bytes, has a line break, or begins with ``amq.``, which the broker
            keeps for itself.
    """
    _refuse_breaks(name, name)
    if not name or name.startswith("amq.") or len(name.encode(errors="replace")) > NAME_MAX_BYTES or not _is_text(name):
        raise ArgumentError(
            f"a RabbitMQ queue has a name of 1 to {NAME_MAX_BYTES} bytes that does not begin with 'amq.', not {name[:80]!r}"
        )
    return name


def queue_arguments(kind: str, options: QueueOptions) -> dict[str, Any]:
    """The arguments with which a work queue is declared. Work queues never dead-letter by themselves."""
    arguments: dict[str, Any] = {}
    if kind == "quorum":
        arguments["x-queue-type"] = "quorum"
        # Our own limit decides. Unset means 20 on 4.x; -1 destroys the message at its first return on 3.10.
        arguments["x-delivery-limit"] = 1_000_000_000
    else:
        arguments["x-max-priority"] = 9
    if options.ordered:
        arguments["x-single-active-consumer"] = True
    if options.temporary:
        arguments["x-expires"] = 60_000
    return arguments


def topic_exchange(topic: str) -> str:
    """The fanout exchange of a topic."""
    return _short(f"mq.topic.{topic}", topic)


def group_queue(topic: str, group: str) -> str:
    """The queue of one group of a topic; two different pairs never share one."""
    escaped = topic.replace("%", "%25").replace(".", "%2E")
    return _short(f"mq.group.{escaped}.{group}", topic)


def memory_exchange(queue: str) -> str:
    """The exchange that remembers a queue's dead-letter queue: see ``remembered_dead_letter``."""
    if len(queue.encode()) <= PLAIN_MEMORY_BYTES:
        return f"mq.dead-letter.{queue}"
    return f"mq.dead-letter-of.{hashlib.sha256(queue.encode()).hexdigest()[:16]}"


def remembered_dead_letter(complaint: str, asked: str) -> str | None:
    """The dead-letter queue that RabbitMQ's complaint names when *asked* was declared for ``memory_exchange``.

    A queue has no argument for it that would do no harm. An exchange has one, its alternate exchange, which is kept,
    compared and, when it differs from a declared one, told. None: there is none, or its name was cut off; a complaint has
    255 bytes.
    """
    _, _, rest = complaint.partition(asked)
    _, found, value = rest.partition(" but current is ")
    value = value.removeprefix("the value ").rstrip('"').removesuffix(" of type 'longstr'")
    return value[1:-1] if found and len(value) > 2 and value[0] == value[-1] == "'" else None


def _short(name: str, whose: str) -> str:
    if not _is_text(name):
        raise ArgumentError(f"{whose[:80]!r} is not valid Unicode")
    _refuse_breaks(name, whose)
    if len(name.encode()) > NAME_MAX_BYTES:
        raise ArgumentError(f"{whose[:80]!r} is too long a name: RabbitMQ takes {NAME_MAX_BYTES} bytes in all")
    return name


def _refuse_breaks(name: str, whose: str) -> None:
    # RabbitMQ drops them from the names that it declares and binds, not from routing keys: "a\nb" would be made as "ab".
    if "\n" in name or "\r" in name:
        raise ArgumentError(f"{whose[:80]!r} has a line break, which RabbitMQ takes out of names")


# --- delays -----------------------------------------------------------------------------------------------------------


def _steps() -> tuple[int, ...]:
    steps = list(range(50, 1000, 50))
    wait = 1000
    while wait < 86_400_000:
        steps.append(wait)
        wait = wait * 108 // 100
    return (*steps, 86_400_000)


DELAY_STEPS = _steps()  #: milliseconds; at most that many delay queues exist on a broker
DELAY_MAX = DELAY_STEPS[-1] / 1000  #: seconds that the broker itself waits at the most


def delay_step(delay: float) -> int:
    """The milliseconds that a delay is rounded up to: late by at most 50 ms, or 8 % of it."""
    wait = math.ceil(round(delay * 1000, 3))
    return DELAY_STEPS[bisect_left(DELAY_STEPS, wait)]


def delay_name(step: int) -> str:
    """The name of a delay's fanout exchange and of its queue."""
    return f"mq.delay.{step}"


def delay_arguments(step: int) -> dict[str, Any]:
    """The arguments of a delay queue.

    Always quorum, and dead-lettering at least once: the hop of a classic queue loses what is on its way when the server
    is killed. Without a routing key of its own the target queue's name, under which the message came, takes it there.
    """
    return {
        "x-queue-type": "quorum",
        "x-message-ttl": step,
        "x-dead-letter-exchange": "",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


# --- acks -------------------------------------------------------------------------------------------------------------


class AckWatermark:
    """Turns settled deliveries into the fewest acks. Tags count from 1 without a gap, as on a channel."""

    def __init__(self) -> None:
        self._low = 0  #: every tag up to this one is settled
        self._above: set[int] = set()  #: settled ones beyond it

    def settled(self, tag: int) -> None:
        """*tag* was settled otherwise (given back): nothing more is to be sent for it."""
        self._above.add(tag)

    def acks(self, tags: Iterable[int]) -> list[tuple[int, bool]]:
        """``(tag, multiple)`` for each ack to send.

        A multiple ack covers all tags up to its own, so it may only stand inside the run without a gap; and its own tag
        must not have been acked before, or RabbitMQ closes the channel.
        """
        new = set(tags)
        covered, top = 0, 0
        while (tag := self._low + 1) in new or tag in self._above:
            self._low = tag
            self._above.discard(tag)
            if tag in new:
                covered, top = covered + 1, tag
                new.discard(tag)
        self._above |= new
        first = [(top, covered > 1)] if top else []
        return first + [(tag, False) for tag in sorted(new)]
