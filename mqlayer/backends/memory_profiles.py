"""The limits of real brokers, so that a unit test on ``memory://?profile=sqs`` fails where SQS would.

A profile is a table: the capabilities that the broker's own backend has, and what the broker refuses. What it lacks and
mqlayer supplies is supplied here too, by the same layer. Two things stay the memory broker's: nothing is durable, and
nothing is ever in alarm. Durations and sizes are the brokers' defaults; each names its source.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from mqlayer.driver import Capabilities, Counts, HeaderValue, Outgoing, QueueOptions, Support
from mqlayer.errors import ArgumentError, HeaderError, MessageTooLargeError, MQError, RefusedError, UnsupportedError

__all__ = ["MEMORY", "PROFILES", "Profile", "ProfileName", "check_name", "refusal", "stored_options"]

_NATIVE, _NOT = Support.NATIVE, Support.UNSUPPORTED
MINUTES, HOURS, MIB = 60.0, 3600.0, 1024 * 1024

MEMORY = Capabilities(
    durable=False,
    ordered=True,
    confirms_acks=True,
    timed_lease=True,
    backpressure=False,
    checks_queues=True,
    compares_queues=True,
    counts=Counts.DELIVERIES,
    delay=_NATIVE,
    priority=_NATIVE,
    ttl=_NATIVE,
    group_id=_NATIVE,
    dedup_id=_NATIVE,
    dead_letter=_NATIVE,
    delivery_count=_NATIVE,
    topics=_NATIVE,
    peek=_NATIVE,
    purge=_NATIVE,
    stats=_NATIVE,
    nack=_NATIVE,
    release=_NATIVE,
    forward=_NATIVE,
    dedup_window=300.0,
)


class ProfileName(Enum):
    """The brokers whose limits ``?profile=`` can enforce."""

    RABBITMQ = "rabbitmq"
    RABBITMQ_CLASSIC = "rabbitmq-classic"
    SQS = "sqs"
    SQS_FIFO = "sqs-fifo"
    ACTIVEMQ = "activemq"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one broker can do, and what it refuses.

    Attributes:
        name_max_bytes: Of a queue's name, in UTF-8.
        reserved_names: Queues' names do not begin with these.
        name_breaks: A queue's name may have line breaks.
        text_max_bytes: Of an id, a content type, a correlation id and a reply address.
        header_name_max_bytes: The same of a header's name.
        header_max_bytes: Of a header's name and value together.
        name_chars_max: Of the name by which SQS knows the queue: letters, digits, ``-`` and ``_`` are themselves there, a
            dot is three characters and any other byte four.
        name_suffix: At the end of every such name; a queue's own may not end with ``.fifo``.
        headers_max: How many headers a message may have.
        reserved_headers: Names that the broker writes or acts on; one that ends in ``*`` is a prefix.
        reserved_as_written: Only these spellings; otherwise they stand in small letters for any.
        integers_64_bit: Larger whole numbers cannot travel.
        size_max_bytes: Of body and headers together.
        delays_topics: What is published to a topic can be delayed.
        approximate_stats: Counts are estimates.
        stats: What the broker tells of a queue.
        options: What the broker stores of ``QueueOptions``.
    """

    capabilities: Capabilities
    name_max_bytes: int | None = None
    reserved_names: tuple[str, ...] = ()
    name_breaks: bool = True
    text_max_bytes: int | None = None
    name_chars_max: int | None = None
    name_suffix: str = ""
    header_name_max_bytes: int | None = None
    header_max_bytes: int | None = None
    headers_max: int | None = None
    reserved_headers: tuple[str, ...] = ()
    reserved_as_written: bool = False
    integers_64_bit: bool = True
    size_max_bytes: int | None = None
    delays_topics: bool = True
    approximate_stats: bool = False
    stats: tuple[str, ...] = ("ready", "in_flight", "delayed")
    options: tuple[str, ...] = ("temporary", "ordered")


_QUORUM = replace(
    MEMORY,
    # AMQP 0-9-1 has no answer to basic.ack: https://www.rabbitmq.com/docs/confirms
    confirms_acks=False,
    timed_lease=False,
    # connection.blocked: https://www.rabbitmq.com/docs/alarms
    backpressure=True,
    # "Priority: no" in 3.x: https://www.rabbitmq.com/docs/3.13/quorum-queues#feature-matrix
    priority=_NOT,
    group_id=_NOT,
    dedup_id=_NOT,
    dedup_window=None,
    # The queue's own dead-lettering is not used: it would count each return. Only the name is stored.
    dead_letter=_NOT,
    # basic.get changes the redelivered flag, so there is no look without a trace
    peek=_NOT,
    # A requeued message keeps neither failure nor delay, and a quorum queue counts it: all three go by copy
    nack=_NOT,
    release=_NOT,
    forward=_NOT,
    delay_max=24 * HOURS,  # the longest of the delay queues
    # consumer_timeout, 30 minutes by default since 3.8.17: https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
    lease_max=30 * MINUTES,
    # max_message_size, 128 MiB by default from 3.8 to 3.13 (16 MiB in 4.0): rabbitmq.conf.example
    body_max_bytes=128 * MIB,
)

_RABBITMQ = Profile(
    capabilities=_QUORUM,
    # "up to 255 bytes of UTF-8 characters": https://www.rabbitmq.com/docs/queues#names
    name_max_bytes=255,
    reserved_names=("amq.",),
    name_breaks=False,  # the broker takes them out of names, and not of routing keys
    text_max_bytes=255,  # the properties are short strings, too
    # field names are short strings: https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf 4.2.5.5
    header_name_max_bytes=255,
    # https://www.rabbitmq.com/docs/dlx#effects , /sender-selected ; the broker and its plugins read or write these
    reserved_headers=(
        *("x-death", "x-first-death-*", "x-last-death-*", "x-delivery-count", "x-acquired-count", "x-stream-offset"),
        *("x-received-from", "x-mqtt-publish-qos", "x-amqp-1.0-*", "CC", "BCC"),
    ),
    reserved_as_written=True,
    # What waits is in the delay's queue, which knows no topics
    delays_topics=False,
    # AMQP's queue.declare-ok counts what is ready, and nothing else
    stats=("ready",),
    options=("dead_letter", "temporary", "ordered"),
)

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html and quotas-queues
_SQS = Profile(
    capabilities=replace(
        MEMORY,
        ordered=False,  # a standard queue makes its best effort; a FIFO queue orders groups, not itself
        backpressure=True,  # who is throttled waits
        compares_queues=False,
        priority=_NOT,
        ttl=_NOT,  # retention is the queue's, not the message's
        group_id=_NOT,
        dedup_id=_NOT,
        dedup_window=None,
        dead_letter=_NOT,  # a redrive policy would count receives, not failures; it is not used
        topics=_NOT,
        peek=_NOT,
        nack=_NOT,  # a changed visibility records no failure
        release=_NOT,  # … and each receive counts
        forward=_NOT,
        delay_max=15 * MINUTES,  # "Message timer … The maximum is 15 minutes"
        lease_max=12 * HOURS,
        body_max_bytes=MIB - 16 * 1024,  # 16 KiB of a message are kept for headers and mqlayer's own fields
    ),
    name_chars_max=80,
    # Whatever has no attribute of its own (there are ten, with names and values of few kinds) travels in a common one
    integers_64_bit=False,
    size_max_bytes=MIB,  # 1,048,576 bytes since 2025-08 (256 KiB before), attributes included
    approximate_stats=True,
    options=("temporary",),
)

PROFILES: Mapping[ProfileName, Profile] = {
    ProfileName.RABBITMQ: _RABBITMQ,
    ProfileName.RABBITMQ_CLASSIC: replace(
        _RABBITMQ,
        # A classic queue does not count; requeuing needs no copy, because nothing is counted that should not be
        capabilities=replace(
            _QUORUM, counts=Counts.NOTHING, delivery_count=_NOT, priority=_NATIVE, release=_NATIVE, ordered=True
        ),
    ),
    ProfileName.SQS: _SQS,
    ProfileName.SQS_FIFO: replace(
        _SQS,
        capabilities=replace(
            _SQS.capabilities,
            delay=_NOT,  # "FIFO queues don't support per-message delays"
            delay_max=None,
            group_id=_NATIVE,
            dedup_id=_NATIVE,
            dedup_window=5 * MINUTES,  # using-messagededuplicationid-property.html
            nack=_NATIVE,  # by visibility, in the group's order; what visibility does not record is remembered
            release=_NATIVE,
            returns_count=True,
            nack_delay_max=11 * HOURS,  # "Message visibility timeout … The maximum is 12 hours", from the delivery on
        ),
        name_suffix=".fifo",
    ),
    # https://activemq.apache.org/components/classic/documentation/stomp
    ProfileName.ACTIVEMQ: Profile(
        capabilities=replace(
            MEMORY,
            timed_lease=False,
            backpressure=True,  # producer flow control
            checks_queues=False,  # destinations are created on demand
            compares_queues=False,
            counts=Counts.FLAG,  # STOMP carries "redelivered" and no number
            delivery_count=_NOT,
            dedup_id=_NOT,
            dedup_window=None,
            dead_letter=_NOT,
            peek=_NOT,  # a browser ("browser:true") shows what is in flight as well, and 400 messages at the most
            stats=_NOT,  # counts need a plugin
            nack=_NOT,  # NACK dead-letters at once
            # maxFrameSize=104857600 in the activemq.xml that is shipped, and MAX_DATA_LENGTH of its StompWireFormat: of
            # the whole frame
            body_max_bytes=99 * MIB,
        ),
        name_max_bytes=1024,  # mqlayer's own: a destination is one header
        header_max_bytes=9984,  # StompWireFormat.MAX_HEADER_LENGTH: 10 KiB a line, and a longer one ends the connection
        headers_max=900,  # StompWireFormat.MAX_HEADERS: 1000, the frame's own and mqlayer's included
        # the frame's own headers, and those the broker maps to JMS: "Additional Headers" of the page above
        reserved_headers=(
            *("destination", "message-id", "subscription", "ack", "receipt", "receipt-id", "transaction"),
            *("content-length", "content-type", "correlation-id", "reply-to", "persistent", "priority", "expires"),
            *("timestamp", "redelivered", "type", "id", "selector", "browser", "amq-msg-type", "transformation"),
            *("transformation-custom", "transformation-error", "scheduledJobId", "original-destination"),
            *("originalExpiration", "dlqDeliveryFailureCause", "breadcrumbId", "mq_mark"),
            *("AMQ_*", "JMSX*", "activemq.*"),
        ),
        reserved_as_written=True,
        integers_64_bit=False,  # a header is text
        options=(),
    ),
}


def check_name(profile: Profile | None, name: str) -> None:
    """Refuse a name that no queue can have.

    Raises:
        ArgumentError: it is empty, not valid Unicode, longer than the broker takes, or one that it does not take at all.
    """
    if not isinstance(name, str) or not name:
        raise ArgumentError(f"a queue's name is a str with at least one character, not {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as exc:
        raise ArgumentError(f"the queue's name {name!r} is not valid Unicode: {exc.reason}") from exc
    if profile is None:
        return
    if profile.name_max_bytes is not None and size > profile.name_max_bytes:
        raise ArgumentError(
            f"queue {name[:20]!r}…: the name has {size} bytes, and the broker takes {profile.name_max_bytes}"
        )
    if name.startswith(profile.reserved_names):
        raise ArgumentError(f"queue {name[:80]!r}: the broker keeps such names for itself")
    if not profile.name_breaks and ("\n" in name or "\r" in name):
        raise ArgumentError(f"queue {name[:80]!r}: a name has no line breaks")
    if profile.name_chars_max is not None:
        if name.endswith(".fifo"):
            raise ArgumentError(
                f"queue {name!r} is a FIFO queue of SQS: leave .fifo out, and take the sqs-fifo profile"
            )
        chars = _escaped_chars(name) + len(profile.name_suffix)
        if chars > profile.name_chars_max:
            raise ArgumentError(f"queue {name[:20]!r}…: SQS's name has {chars} characters of {profile.name_chars_max}")


def _escaped_chars(name: str) -> int:
    """The length of the name by which SQS knows a queue."""
    chars = 0
    for place, char in enumerate(name):
        if char == ".":
            chars += 3
        elif char.isascii() and (char.isalnum() or char in "-_") and name[place : place + 2] != "_-":
            chars += 1
        else:
            chars += 4 * len(char.encode())
    return chars


def stored_options(profile: Profile, options: QueueOptions) -> QueueOptions:
    """What the broker keeps of *options*."""
    return QueueOptions(
        dead_letter=options.dead_letter if "dead_letter" in profile.options else None,
        temporary=options.temporary and "temporary" in profile.options,
        ordered=options.ordered and "ordered" in profile.options,
    )


def refusal(profile: Profile, queue: str | None, message: Outgoing) -> MQError | None:
    """Why the broker would refuse *message*; ``None``: it would not. *queue* is ``None`` for a topic."""
    return (
        _unsupported(profile, queue, message)
        or _long_text(profile, message)
        or _bad_header(profile, message)
        or _too_large(profile, message)
    )


def _unsupported(profile: Profile, queue: str | None, message: Outgoing) -> MQError | None:
    can = profile.capabilities
    asked = {
        "priority": (message.priority is not None, can.priority is _NATIVE),
        "group_id": (message.group_id is not None, can.group_id is _NATIVE),
        "dedup_id": (message.dedup_id is not None, can.dedup_id is _NATIVE),
        "delay": (message.delay > 0, can.delay is _NATIVE),
    }
    if queue is None and message.delay > 0 and not profile.delays_topics:
        return UnsupportedError("the broker cannot delay what is published to a topic")
    for name, (wanted, has) in asked.items():
        if wanted and not has:
            return UnsupportedError(f"{name} is unsupported on {queue!r}")
    if can.delay_max is not None and message.delay > can.delay_max:
        return RefusedError(
            f"delay={message.delay} is longer than the broker's {can.delay_max} s", message_id=message.id
        )
    return None


def _long_text(profile: Profile, message: Outgoing) -> RefusedError | None:
    most = profile.text_max_bytes
    if most is not None:
        for field in ("id", "content_type", "correlation_id", "reply_to"):
            text = getattr(message, field)
            if text is not None and 4 * len(text) > most and len(text.encode()) > most:
                return RefusedError(f"{field} is longer than {most} bytes", message_id=message.id)
    return None


def _bad_header(profile: Profile, message: Outgoing) -> HeaderError | None:
    if profile.headers_max is not None and len(message.headers) > profile.headers_max:
        text = f"{len(message.headers)} headers; the broker takes {profile.headers_max}"
        return HeaderError(text, message_id=message.id)
    for name, value in message.headers.items():
        low = name if profile.reserved_as_written else name.lower()
        if any(low.startswith(kept[:-1]) if kept[-1] == "*" else low == kept for kept in profile.reserved_headers):
            return HeaderError(f"header {name!r} is the broker's own", message_id=message.id)
        most = profile.header_name_max_bytes
        if most is not None and len(name.encode()) > most:
            return HeaderError(f"header {name[:20]!r}…: the name is longer than {most} bytes", message_id=message.id)
        largest = profile.header_max_bytes
        if largest is not None and len(name.encode()) + _size(value) > largest:
            return HeaderError(f"header {name[:20]!r}…: it is longer than {largest} bytes", message_id=message.id)
        if profile.integers_64_bit and type(value) is int and not -(2**63) <= value < 2**63:
            return HeaderError(f"header {name!r}: a whole number has 64 bits at most", message_id=message.id)
    return None


def _too_large(profile: Profile, message: Outgoing) -> MessageTooLargeError | None:
    most = profile.capabilities.body_max_bytes
    size = len(message.body)
    if profile.size_max_bytes is not None:
        most = profile.size_max_bytes
        size += sum(len(name.encode()) + _size(value) for name, value in message.headers.items())
    if most is None or size <= most:
        return None
    return MessageTooLargeError(f"the message has {size} bytes; the broker takes {most}", message_id=message.id)


def _size(value: HeaderValue) -> int:
    return len(value) if isinstance(value, bytes) else len(str(value).encode())
