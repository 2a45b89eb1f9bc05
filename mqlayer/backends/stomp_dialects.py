"""What each STOMP server can do, and what it calls things. Tables, and one look at the CONNECTED frame.

STOMP says what a frame is, and leaves to each server what a queue, a window, a delay or a priority is.
"""

from dataclasses import dataclass, replace

from mqlayer.driver import Capabilities, Counts, Support

__all__ = ["ACTIVEMQ", "ARTEMIS", "DIALECTS", "PLAIN", "RABBITMQ", "Dialect", "dialect_of", "without_scheduler"]

_NATIVE, _NOT = Support.NATIVE, Support.UNSUPPORTED
KIB, MIB = 1024, 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One server's ways.

    Attributes:
        name: The server's, in errors.
        queue_prefix: What a queue's destination begins with; ``topic_prefix``, ``group_prefix``: the same of topics.
        quoted: Characters that mean something in a destination, and travel as ``%XX``.
        quotes_unicode: … and so does all that is not ASCII.
        send_headers: Headers of every SEND; ``subscribe_headers``: of every SUBSCRIBE.
        prefetch_header: What limits a subscription; ``None``: nothing does.
        one_by_one: The limit is in bytes, so a window of *n* is *n* subscriptions with one delivery each.
        groups_sends: A transaction of several SENDs is one write to the disk, and its COMMIT the confirm of all.
        stops_flow: An exclusive consumer that wants nothing stops the others, so that a subscription can end without
            anything on its way to it.
        returns_uncounted: What UNSUBSCRIBE gives back is not flagged.
        may_lack_scheduler: Delays are a matter of the server's configuration, which is asked for at the first connection.
        ends_on_error: The connection is of no more use after an ERROR frame.
        has_text_type: ``amq-msg-type`` makes a message text to JMS clients.
        reserved, reserved_prefixes: Headers that the server writes or acts on.
        name_max_bytes: Of a header's name, and of the content type and the correlation id.
        header_max_bytes: Of one header's line; ``headers_max``: how many of the user's; ``headers_max_bytes``: of all together.
    """

    name: str
    capabilities: Capabilities
    queue_prefix: str = "/queue/"
    quoted: str = "%"
    quotes_unicode: bool = False
    send_headers: tuple[tuple[str, str], ...] = ()
    subscribe_headers: tuple[tuple[str, str], ...] = ()
    prefetch_header: str | None = None
    one_by_one: bool = False
    groups_sends: bool = False
    stops_flow: bool = False
    returns_uncounted: bool = False
    may_lack_scheduler: bool = False
    ends_on_error: bool = True
    has_reply_to: bool = False
    has_expires: bool = False
    has_text_type: bool = False
    group_header: str = ""
    delay_header: str = ""
    reserved: frozenset[str] = frozenset()
    reserved_prefixes: tuple[str, ...] = ()
    header_max_bytes: int = 8 * KIB
    name_max_bytes: int | None = None
    headers_max: int = 500
    headers_max_bytes: int = 64 * KIB


# What the protocol itself gives: nothing is said of durability, windows, counts or order, so nothing is claimed.
_STOMP = Capabilities(
    durable=False,
    ordered=False,
    confirms_acks=False,
    timed_lease=False,
    backpressure=False,
    checks_queues=False,
    compares_queues=False,
    counts=Counts.NOTHING,
    delay=_NOT,
    priority=_NOT,
    ttl=_NOT,
    group_id=_NOT,
    dedup_id=_NOT,
    dead_letter=_NOT,
    delivery_count=_NOT,
    topics=_NOT,
    peek=_NOT,
    purge=_NOT,
    stats=_NOT,
    nack=_NOT,
    release=_NOT,
    forward=_NOT,
)

PLAIN = Dialect(name="this STOMP server", capabilities=_STOMP, quoted="%,*>?#:", quotes_unicode=True)

ACTIVEMQ = Dialect(
    name="ActiveMQ",
    capabilities=replace(
        _STOMP,
        durable=True,
        ordered=True,
        confirms_acks=True,
        backpressure=True,  # producer flow control
        counts=Counts.FLAG,
        delay=_NATIVE,
        priority=_NATIVE,
        ttl=_NATIVE,
        group_id=_NATIVE,
        topics=_NATIVE,
        purge=_NATIVE,
        release=_NATIVE,
        forward=_NATIVE,
        # maxFrameSize of the transport, and MAX_DATA_LENGTH in StompWireFormat: 100 MiB, headers included
        body_max_bytes=100 * MIB - MIB,
    ),
    # "," makes a composite destination, "*" and ">" are wildcards, "?" begins options, ":" a composite's kind
    quoted="%,*>?:\\",
    prefetch_header="activemq.prefetchSize",
    groups_sends=True,
    stops_flow=True,
    may_lack_scheduler=True,
    ends_on_error=False,
    has_reply_to=True,
    has_expires=True,
    has_text_type=True,
    group_header="JMSXGroupID",
    delay_header="AMQ_SCHEDULED_DELAY",
    reserved=frozenset(
        {
            *("amq-msg-type", "transformation", "transformation-custom", "transformation-error", "scheduledJobId"),
            *("original-destination", "originalExpiration", "dlqDeliveryFailureCause", "breadcrumbId", "mq_mark"),
        }
    ),
    reserved_prefixes=("AMQ_", "JMSX", "activemq."),
    header_max_bytes=10 * KIB - 256,  # MAX_HEADER_LENGTH in StompWireFormat: 10 KiB a line, and a longer one ends all
    headers_max=900,  # MAX_HEADERS: 1000, the frame's own and mqlayer's included
    headers_max_bytes=16 * MIB,
)

ARTEMIS = Dialect(
    name="Artemis",
    capabilities=replace(
        _STOMP,
        durable=True,
        ordered=True,
        confirms_acks=True,
        backpressure=True,
        counts=Counts.FLAG,
        delay=_NATIVE,
        priority=_NATIVE,
        ttl=_NATIVE,
        # A group has one consumer, and while that one is full the queue serves no other group either
        group_id=_NOT,
        release=_NATIVE,
        body_max_bytes=100 * MIB,
    ),
    queue_prefix="",
    quoted="%,*>?#:/\\",
    quotes_unicode=True,
    send_headers=(("destination-type", "ANYCAST"),),
    subscribe_headers=(("subscription-type", "ANYCAST"),),
    prefetch_header="consumer-window-size",
    one_by_one=True,
    groups_sends=True,
    returns_uncounted=True,
    has_expires=True,
    group_header="JMSXGroupID",
    delay_header="AMQ_SCHEDULED_DELAY",
    reserved=frozenset({"destination-type", "subscription-type"}),
    reserved_prefixes=("AMQ_", "JMSX", "_AMQ_", "_HQ_", "__AMQ", "__HQ", "_hornetq"),
    header_max_bytes=10 * KIB,
    headers_max_bytes=64 * KIB,  # beyond minLargeMessageSize the server refuses them
)

RABBITMQ = Dialect(
    name="RabbitMQ",
    capabilities=replace(
        _STOMP,
        durable=True,
        ordered=True,
        backpressure=True,
        # After a crash of the server a classic queue flags what nobody has seen, so the flag proves nothing
        counts=Counts.NOTHING,
        ttl=_NOT,
        body_max_bytes=16 * MIB,
    ),
    quoted="%,*>?#:/\\",
    quotes_unicode=True,
    prefetch_header="prefetch-count",
    reserved=frozenset(
        {"amqp-message-id", "app-id", "user-id", "cluster-id", "content-encoding", "expiration", "CC", "BCC"}
    ),
    reserved_prefixes=("x-death", "x-first-death-", "x-last-death-"),
    name_max_bytes=255,  # AMQP's short strings
    header_max_bytes=32 * KIB,
)

DIALECTS = (ACTIVEMQ, ARTEMIS, RABBITMQ, PLAIN)


def without_scheduler(dialect: Dialect) -> Dialect:
    """The same of a server that was configured without delays."""
    return replace(dialect, capabilities=replace(dialect.capabilities, delay=_NOT))


def dialect_of(server: str) -> Dialect:
    """The dialect of the server that calls itself so: ``ActiveMQ/5.17.2``, ``ActiveMQ-Artemis/2.56.0 …``, ``RabbitMQ/3.10.8``."""
    product = server.partition("/")[0].strip().lower()
    if product.startswith(("activemq-artemis", "artemis", "apache activemq artemis")):
        return ARTEMIS
    if product in ("activemq", "apache activemq"):
        return ACTIVEMQ
    if product == "rabbitmq":
        return RABBITMQ
    return PLAIN
