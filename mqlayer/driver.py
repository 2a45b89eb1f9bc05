"""What a backend implements, and the values that pass between it and the layers above.

A backend is thin: it makes one attempt at what it is told, waits no longer than it is told, keeps no copy of a message,
starts no retry, and raises only :mod:`mqlayer.errors`. Retries, batching, delays, dead letters, encoding and metrics
are written once, above it. ``docs/write-a-backend.md`` shows how to write one and how to prove it.

Values on the hot path are NamedTuples: they are made for every message, and cost a quarter of a frozen dataclass.
Layers and backends exchange fields, never ``mq-*`` header names; those belong to :mod:`mqlayer.codec`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mqlayer.clock import Clock
from mqlayer.errors import MQError

if TYPE_CHECKING:
    from mqlayer.urls import BrokerURL

__all__ = [
    "Ack",
    "Backend",
    "BackendFactory",
    "Capabilities",
    "Counts",
    "Declare",
    "Extend",
    "Failures",
    "Forward",
    "HeaderValue",
    "Incoming",
    "Nack",
    "Outgoing",
    "QueueOptions",
    "Release",
    "Session",
    "Stats",
    "Support",
    "Trail",
    "Verdict",
]


class Support(Enum):
    """How a capability comes about. A backend says NATIVE or UNSUPPORTED; ``Emulated`` adds the third."""

    NATIVE = "native"
    EMULATED = "emulated"
    UNSUPPORTED = "unsupported"


class Declare(Enum):
    """What ``declare`` does with a queue that is missing, or that has other options."""

    CHECK = "check"  #: missing: QueueNotFoundError. Options are not compared
    ENSURE = "ensure"  #: missing: created with the options. Options of an existing queue are not compared
    COMPARE = "compare"  #: missing: created. Existing with other options: QueueMismatchError


class Counts(Enum):
    """What the broker tells about earlier deliveries of the same copy."""

    DELIVERIES = "deliveries"  #: a number
    FLAG = "flag"  #: a flag that, when set, proves an earlier delivery
    NOTHING = "nothing"  #: neither


HeaderValue = str | int | float | bool | bytes | None
Failures = Mapping[int, MQError]
"""Index in the batch → why it failed. An index that is absent succeeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend keeps. Each claim is proved by the suite, and so is each absence.

    In a ``*_max``, ``None`` means no limit. Times are seconds, sizes bytes.
    """

    durable: bool  #: a confirmed message survives the end of the server's process
    ordered: bool  #: one producer's messages reach one consumer in the order sent
    confirms_acks: bool  #: settle returns when the broker has confirmed it
    timed_lease: bool  #: an unsettled delivery goes back by itself after some time
    backpressure: bool  #: a full or alarmed broker makes senders wait
    checks_queues: bool  #: sending to a missing queue is noticed
    compares_queues: bool  #: the broker stores a queue's options and can compare them
    counts: Counts
    delay: Support
    priority: Support
    ttl: Support
    group_id: Support
    dedup_id: Support
    dead_letter: Support
    delivery_count: Support
    topics: Support
    peek: Support
    purge: Support
    stats: Support
    nack: Support  #: may settle() be given Nack?
    release: Support  #: may settle() be given Release?
    forward: Support  #: may settle() be given Forward?
    returns_count: bool = (
        False  #: what the broker itself takes back counts as delivered, when another connection gets it
    )
    delay_max: float | None = None
    nack_delay_max: float | None = None
    lease_max: float | None = None
    dedup_window: float | None = None
    body_max_bytes: int | None = None
    batch_max: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueOptions:
    """What ``declare`` can ask of a queue.

    Attributes:
        dead_letter: Where exhausted messages go by default. Stored with the queue where the broker can.
        temporary: The queue may go when it has been idle for 60 s.
        ordered: One active consumer at a time.
    """

    dead_letter: str | None = None
    temporary: bool = False
    ordered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """How many messages a queue holds. ``None`` where the broker does not tell."""

    ready: int | None = None
    in_flight: int | None = None
    delayed: int | None = None
    approximate: bool = False


class Trail(NamedTuple):
    """Facts of a message's life that only layers and stores write. Most messages have none.

    Attributes:
        failures: Handlers of earlier deliveries that failed.
        crashes: Earlier deliveries of which nothing was heard again.
        resent: How often the send was repeated after a lost connection.
        not_before: Epoch seconds before which no handler may see it: a delay longer than the broker's ``delay_max``.
        copied_from: The token or place of the delivery of which this is a copy, for whoever checks histories.
        origin: The queue in which it was dead-lettered.
        reason: Why it was dead-lettered.
        deliveries: How often it had been delivered when it was dead-lettered; its count begins anew with 1 there.
    """

    failures: int = 0
    crashes: int = 0
    resent: int = 0
    not_before: float | None = None
    copied_from: str | None = None
    origin: str | None = None
    reason: str | None = None
    deliveries: int = 0


NO_TRAIL = Trail()
NO_HEADERS: Mapping[str, HeaderValue] = MappingProxyType({})


class Outgoing(NamedTuple):
    """A message as it is handed to a broker: each field in the broker's own property where it has one.

    Attributes:
        id: Made by the client and fixed before the first byte leaves. ``None`` only in what arrived without one.
        headers: The user's headers alone, never ``mq-*``.
        sent_at, expires_at: Epoch seconds.
        delay: The broker itself waits this long from now; at most ``delay_max``.
    """

    id: str | None
    body: bytes
    headers: Mapping[str, HeaderValue] = NO_HEADERS
    content_type: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    priority: int | None = None
    group_id: str | None = None
    dedup_id: str | None = None
    sent_at: float | None = None
    expires_at: float | None = None
    delay: float = 0.0
    trail: Trail = NO_TRAIL


class Incoming(NamedTuple):
    """A delivery as the broker made it.

    Attributes:
        message: What a copy of it starts from.
        queue: The queue it came from; of a topic, the group's queue.
        token: Settles it. Only the session that made it understands it; it carries that session's epoch.
        lease_until: Monotonic seconds when the lease ends; ``None``: no timed lease.
        broker_count: Deliveries of this copy that the broker counted, this one included. A nack starts anew at 1, with
            the failure in the trail.
        redelivered: The broker's own flag.
        native: The client library's object, for users who need it.
    """

    message: Outgoing
    queue: str
    token: object
    lease_until: float | None = None
    broker_count: int | None = None
    redelivered: bool = False
    native: object = None


class Ack(NamedTuple):
    """Handled: the broker may forget it."""

    of: Incoming


class Nack(NamedTuple):
    """A handler failed: back to the queue, no sooner than *delay*, failures + 1 in its trail."""

    of: Incoming
    delay: float = 0.0


class Release(NamedTuple):
    """It never ran: back to the queue; neither a failure nor a delivery is counted."""

    of: Incoming


class Extend(NamedTuple):
    """The lease ends *seconds* from now."""

    of: Incoming
    seconds: float


class Forward(NamedTuple):
    """Copy to *queue*, confirmed, then ack; in one step, or in this order. Twice is allowed, lost is not."""

    of: Incoming
    queue: str
    copy: Outgoing


Verdict = Ack | Nack | Release | Extend | Forward


class Session(Protocol):
    """One connection to a broker. One thread at a time calls it (``wake`` and ``abort`` come from any thread).

    Timeouts are seconds; no call takes longer than its own by more than the time of one turn. What the session's
    capabilities lack raises ``UnsupportedError`` before anything leaves. A connection that ends raises
    ``ConnectionLostError`` from every call but ``send``, ``publish`` and ``settle``, which give every index its fate;
    a session whose connection ended does not mend itself.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    def declare(self, queue: str, options: QueueOptions, mode: Declare, timeout: float) -> QueueOptions:
        """Make sure of a queue, as *mode* says. Returns the options that the broker stores.

        Raises:
            QueueNotFoundError: CHECK, and it is missing.
            QueueMismatchError: COMPARE, and it exists with other options.
        """
        ...

    def bind(self, topic: str, group: str | None, timeout: float) -> str:
        """Make sure that *group* gets a copy of what is published to *topic* from now on. Returns the group's queue.

        With *group* ``None`` the subscription is temporary: its queue goes with the session.
        """
        ...

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        """Store the batch; return when each message is confirmed or has failed. Pipelined inside.

        A message whose fate is unknown at the deadline is an ``OutcomeUnknownError``; one that provably never left is a
        ``NotSentError``; one that the broker or the protocol refuses is a ``RefusedError``. A missing queue is
        ``UnroutableError`` where the broker notices.
        """
        ...

    def publish(self, topic: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        """As ``send``, to each group of a topic. A topic without groups is no error."""
        ...

    def subscribe(self, queue: str, window: int, lease: float | None, timeout: float) -> None:
        """Let the broker hand over up to *window* unsettled deliveries of *queue*.

        Again: changes window and lease; what is held stays held. *lease* ``None`` is the backend's default.

        Raises:
            QueueNotFoundError: the queue does not exist.
        """
        ...

    def unsubscribe(self, queue: str, timeout: float) -> None:
        """No more deliveries of *queue*. What ``receive`` returned stays the caller's to settle; what it had not yet
        returned goes back, uncounted where the broker allows it. Where every return counts (``release`` unsupported) a
        session may keep it for the next ``receive`` instead, for the layer above to give back by a copy."""
        ...

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        """Up to *limit* deliveries of the subscribed queues: as soon as one is there, else none after *timeout* or
        after ``wake``. *limit* 0 serves the connection, without a subscription too. A broker that was asked before may
        answer now: what comes so is handed over whatever the limit, for its lease runs."""
        ...

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        """Carry out the verdicts. One on a delivery that is no longer this session's is a ``StaleDeliveryError`` and
        never touches another consumer's copy."""
        ...

    def stats(self, queue: str, timeout: float) -> Stats: ...

    def peek(self, queue: str, limit: int, timeout: float) -> Sequence[Incoming]:
        """The first messages that a consumer would get now. Changes no count, flag or order; the tokens settle nothing."""
        ...

    def purge(self, queue: str, timeout: float) -> int | None:
        """Drop what is ready; what is in flight stays. Returns how many, where the broker tells."""
        ...

    def delete(self, queue: str, timeout: float) -> None:
        """Drop the queue with all it holds. A missing queue is no error."""
        ...

    def wake(self) -> None:
        """From any thread: a ``receive`` in progress, or else the next one, returns at once. A send is not disturbed."""
        ...

    def abort(self) -> None:
        """From any thread: calls in progress end now, with a fate for every index. The session is of no more use."""
        ...

    def close(self, timeout: float) -> None:
        """Give unsettled deliveries back and end the connection. Again: nothing."""
        ...


class Backend(Protocol):
    """What a URL leads to: makes sessions."""

    @property
    def inline(self) -> bool:
        """It never blocks (memory): the engine calls its sessions in the caller's thread, under a lock, and starts no
        thread. The store does what is due at the start of each operation, and calls ``look_again``."""
        ...

    def session(self, timeout: float, look_again: Callable[[float], None]) -> Session:
        """Connect, trying each host once.

        *look_again(t)* may be called from any thread to say that a ``receive`` at monotonic time *t* or later may find
        something. Only inline backends need it; the others wait inside ``receive``.

        Raises:
            ConnectFailedError: no host answered in *timeout* seconds. AuthenticationError: one refused the credentials.
        """
        ...

    def close(self) -> None: ...


class BackendFactory(Protocol):
    """What an entry point of the group ``mqlayer.backends`` names: a class, or a module-level object."""

    @property
    def options(self) -> type:
        """A frozen dataclass whose fields are the URL's query options, with their types and defaults."""
        ...

    def __call__(self, url: "BrokerURL", options: object, *, clock: Clock) -> Backend: ...
