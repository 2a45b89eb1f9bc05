"""Receiving: long polls in threads of their own, and the leases of what they brought.

A poll cannot be ended. What one brings after its subscription has ended goes to another consumer of the connection, if there
is one within a moment; else it goes back by visibility: whoever asks next gets it, and SQS has counted one delivery more.
"""

import itertools
import logging
import secrets
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mqlayer.backends.sqs_held import (
    COPY_SIZE_MAX,
    Change,
    Held,
    Token,
    change_visibility,
    delete,
    give_back,
    parts_of,
    put_copies,
)
from mqlayer.backends.sqs_orphans import Orphans
from mqlayer.backends.sqs_requests import Request, Requests, State
from mqlayer.backends.sqs_returns import Returns
from mqlayer.backends.sqs_service import REQUESTS_MAX, Service, translated
from mqlayer.backends.sqs_wire import BATCH_MAX, SIZE_MAX, entry_of, message_of, whole_seconds
from mqlayer.clock import Clock
from mqlayer.driver import Ack, Extend, Failures, Incoming, Nack, Release, Verdict
from mqlayer.errors import (
    ArgumentError,
    BrokerError,
    MQError,
    QueueNotFoundError,
    StaleDeliveryError,
    ThrottledError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from mypy_boto3_sqs.type_defs import MessageTypeDef, ReceiveMessageResultTypeDef

__all__ = ["Consumer"]

LOOK = 0.2  #: seconds for a poll's answer, where the caller only wants to look
FIRST_WAIT = 1  #: seconds of a queue's first long poll; each further one that brings nothing is twice as long
POLLS_MAX = 64  #: of one session at the same time
SYSTEM = ["ApproximateReceiveCount", "MessageGroupId", "MessageDeduplicationId"]


log = logging.getLogger("mqlayer")


@dataclass(slots=True, eq=False)
class _Subscription:
    queue: str
    url: str
    window: int
    lease: int
    active: bool = True
    wait: int = FIRST_WAIT  # of the next long poll
    busy: bool = False  # the last poll brought all that it asked for
    asked: dict[Request[Any], int] = field(default_factory=dict)  # polls that are out → how many they ask for
    has_long: bool = False  # one of them waits for messages


class Consumer:
    """One session's.

    Args:
        wait: Seconds of a long poll at the most.
        fifo: Deliveries go back by visibility, in their groups' order.
        lost: Told of the error when a connection failed.
        left_over: Takes deliveries that could not be given back.
        orphans: Finds another consumer for what comes too late for this one.
        returns: Remembers what was given back.
    """

    def __init__(
        self,
        service: Service,
        requests: Requests,
        *,
        wait: int,
        fifo: bool,
        clock: Clock,
        lost: Callable[[MQError], None],
        left_over: Callable[[list[Held]], None],
        orphans: "Orphans[Consumer]",
        returns: Returns,
    ) -> None:
        self._service = service
        self._orphans = orphans
        self._returns = returns
        self._requests = requests
        self._polls = Requests(POLLS_MAX, clock)
        self._changed = self._polls.changed
        self._wait = wait
        self._fifo = fifo
        self._clock = clock
        self._lost = lost
        self._left_over = left_over
        self._epoch = secrets.token_hex(6)
        self._numbers = itertools.count(1)
        self._subscriptions: dict[str, _Subscription] = {}
        self._buffer: list[Incoming] = []
        self._held: dict[Token, Held] = {}
        self._error: MQError | None = None
        self._defect: BaseException | None = None
        self._woken = False
        self._ended = False

    # --- subscriptions -----------------------------------------------------------------------------------------------

    def subscribe(self, queue: str, url: str, window: int, lease: int) -> None:
        """As the driver says."""
        with self._changed:
            known = self._subscriptions.get(queue)
            if known is None:
                self._subscriptions[queue] = _Subscription(queue, url, window, lease)
                self._orphans.join(url, self)
            else:
                known.window, known.lease = window, lease
            self._changed.notify_all()

    def unsubscribe(self, queue: str) -> None:
        """As the driver says. A poll that is out may still bring something."""
        with self._changed:
            known = self._subscriptions.pop(queue, None)
            if known is not None:
                known.active = False
                self._orphans.leave(known.url, self)

    # --- receiving ---------------------------------------------------------------------------------------------------

    def receive(self, limit: int, timeout: float, is_lost: Callable[[], None]) -> Sequence[Incoming]:
        """All that has come. *limit* 0 asks for nothing more; what was asked for before may come nevertheless."""
        with self._changed:
            asks = limit > 0 and bool(self._subscriptions)
            now = self._clock.monotonic()
            end = now + (max(timeout, LOOK) if asks else timeout)
            while not self._buffer and not self._woken and self._error is None and not self._ended:
                is_lost()
                if self._defect is not None:
                    raise self._defect
                if asks:
                    self._poll()
                left = end - self._clock.monotonic()
                if left <= 0:
                    break
                self._clock.wait(self._changed, left)
            self._woken = False
            is_lost()
            if self._buffer:
                found, self._buffer = self._buffer, []
                if asks:
                    self._poll()
                return found
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            return ()

    def _poll(self) -> None:
        """Ask for what there is room for. An empty queue is asked once at a time; a full one, as often as it pays."""
        for subscription in self._subscriptions.values():
            while True:
                most = REQUESTS_MAX if subscription.busy else 1
                if len(subscription.asked) >= most:
                    break
                room = subscription.window - self._unsettled(subscription.queue) - sum(subscription.asked.values())
                if room <= 0:
                    break
                self._start(subscription, min(room, BATCH_MAX))

    def _unsettled(self, queue: str) -> int:
        return sum(held.queue == queue for held in self._held.values())

    def _start(self, subscription: _Subscription, number: int) -> None:
        is_long = not subscription.has_long
        wait = min(subscription.wait, self._wait) if is_long else 0
        request: Request[None]

        def call() -> None:
            try:
                self._ask(subscription, request, number, wait)
            except BaseException as defect:  # ours: whoever receives hears of it
                with self._changed:
                    self._defect = defect
                    self._changed.notify_all()

        request = self._polls.start(call)
        subscription.asked[request] = number
        subscription.has_long = subscription.has_long or is_long
        self._orphans.began(request, self._clock.monotonic() + wait)

    def _ask(self, subscription: _Subscription, request: "Request[None]", number: int, wait: int) -> None:
        """One poll, in a thread of its own."""
        began = self._clock.monotonic()
        error: MQError | None = None
        came: list[MessageTypeDef] = []
        names: Any = SYSTEM

        def ask() -> "ReceiveMessageResultTypeDef":
            return self._service.poller.receive_message(
                QueueUrl=subscription.url,
                MaxNumberOfMessages=number,
                WaitTimeSeconds=wait,
                VisibilityTimeout=subscription.lease,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=names,
            )

        try:
            came = translated(f"receiving from {subscription.queue!r}", ask).get("Messages", [])
        except MQError as failure:
            error = failure
        # When it was handed over nobody says: in the poll's time, and not after it, however long the answer took.
        given_at = min(self._clock.monotonic(), began + wait)
        until = given_at + subscription.lease
        helds = [
            Held(subscription.queue, subscription.url, one["MessageId"], one["ReceiptHandle"], given_at, until)
            for one in came
        ]
        with self._changed:
            if wait or error is not None:
                subscription.has_long = False
            subscription.busy = len(came) == number
            subscription.wait = FIRST_WAIT if came else min(max(subscription.wait, wait * 2), self._wait)
            subscription.asked.pop(request, None)
            taken = not came or (subscription.active and self._add(came, helds))
            if error is not None and subscription.active:
                self._failed(error)
            self._changed.notify_all()
        if not taken:
            taker = self._orphans.taker(subscription.url)
            if taker is None or not taker.adopt(came, helds):
                self._give_back(came, helds)
        self._orphans.ended(request)

    def _give_back(self, came: "Sequence[MessageTypeDef]", helds: Sequence[Held]) -> None:
        """What nobody saw goes back, in the thread of the poll that brought it."""
        now = self._clock.monotonic
        copies: list[tuple[Change, dict[str, Any]]] = []
        for place, (one, held) in enumerate(zip(came, helds, strict=True)):
            copy = self._copy_of(place, self._incoming(one, held, Token(self._epoch, next(self._numbers))), held)
            if copy is not None:
                copies.append((Change(place, held, 0), copy))
        kept = set(range(len(came)))
        if copies:
            part = [change for change, _ in copies]
            try:
                failed = put_copies(self._service, part, [copy for _, copy in copies])
                kept -= {change.place for change in part} - failed.keys()
            except MQError as error:
                log.debug("deliveries of %r go back by visibility: %s", helds[0].queue, error)
        rest = [helds[place] for place in sorted(kept)]
        give_back(self._service, rest, now, self._left_over, self._returns if self._fifo else None)

    def _copy_of(self, place: int, incoming: Incoming, held: Held) -> dict[str, Any] | None:
        """What goes back in its place, and counts neither a failure nor a delivery; ``None``: it has a place to keep, in its
        group, or there is no time."""
        message = incoming.message
        if (self._fifo and message.group_id is not None) or not held.is_copyable(self._clock.monotonic()):
            return None
        crashes = message.trail.crashes + max((incoming.broker_count or 1) - 1, 0)
        trail = message.trail._replace(crashes=crashes, copied_from=f"{held.queue}:{incoming.token}")
        copy = message._replace(trail=trail, dedup_id=None)
        entry = entry_of(place, copy, fifo=self._fifo, size_max=SIZE_MAX)
        return entry.request if entry.size <= COPY_SIZE_MAX else None

    def adopt(self, came: "Sequence[MessageTypeDef]", helds: Sequence[Held]) -> bool:
        """Take over what another's poll brought too late; ``False``: this consumer has ended, too."""
        with self._changed:
            self._changed.notify_all()
            return self._add(came, helds)

    def _add(self, came: "Sequence[MessageTypeDef]", helds: Sequence[Held]) -> bool:
        if self._ended:
            return False
        for one, held in zip(came, helds, strict=True):
            token = Token(self._epoch, next(self._numbers))
            self._held[token] = held
            self._buffer.append(self._incoming(one, held, token))
        return True

    def _incoming(self, one: "MessageTypeDef", held: Held, token: Token) -> Incoming:
        message, count = message_of(one), _count(one)
        failures, releases = self._returns.of(held.url, held.message_id)
        if failures:
            trail = message.trail
            message = message._replace(trail=trail._replace(failures=trail.failures + failures))
        if count is not None:
            count = max(count - failures - releases, 1)
        return Incoming(message, held.queue, token, held.until, count, (count or 1) > 1, one)

    def _failed(self, error: MQError) -> None:
        self._lost(error)
        if type(error) is BrokerError:  # the service's own trouble; another poll is all that can be done about it
            error = ThrottledError(str(error))
        self._error = error

    def _missing(self, error: QueueNotFoundError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    # --- settling ----------------------------------------------------------------------------------------------------

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        """As the driver says. Nothing is asked about a delivery whose lease may be over."""
        deadline = self._clock.monotonic() + timeout
        failures: dict[int, MQError] = {}
        deletes: list[Change] = []
        changes: list[Change] = []
        copies: list[tuple[Change, dict[str, Any]]] = []
        now = self._clock.monotonic()
        for place, verdict in enumerate(verdicts):
            held = self._held.get(verdict.of.token)  # type: ignore[call-overload]
            if held is None or not held.is_ours(now):
                failures[place] = _stale(verdict)
                self._held.pop(verdict.of.token, None)  # type: ignore[call-overload]
                continue
            kind = type(verdict)
            if kind is Ack:
                deletes.append(Change(place, held, 0))
                continue
            if kind is Release and self._fifo:
                copy = self._copy_of(place, verdict.of, held)
                if copy is not None:
                    copies.append((Change(place, held, 0), copy))
                    continue
            seconds = whole_seconds(verdict.seconds if isinstance(verdict, Extend) else getattr(verdict, "delay", 0.0))
            if kind is not Extend and not (self._fifo and kind in (Nack, Release)):
                failures[place] = UnsupportedError(f"SQS cannot {kind.__name__}")
            elif not held.may_last(now, seconds):
                failures[place] = ArgumentError(
                    f"SQS lets a delivery be held, or put off, for 12 hours in all, not {seconds} s"
                )
            else:
                changes.append(Change(place, held, seconds))
        if deletes or changes or copies:
            failures.update(self._carry_out(deletes, changes, copies, deadline))
        done = [
            place for place in range(len(verdicts)) if type(failures.get(place)) in (type(None), StaleDeliveryError)
        ]
        copied = {change.place for change, _ in copies}
        with self._changed:
            for place in done:
                verdict = verdicts[place]
                if type(verdict) is not Extend or place in failures:
                    held = self._held.pop(verdict.of.token, None)  # type: ignore[call-overload]
                    if held is not None and place not in failures:
                        self._note(place, verdict, held, copied)
            extended = [change for change in changes if type(verdicts[change.place]) is Extend]
            for change in extended:
                if change.place not in failures:
                    change.held.until = now + change.seconds
        return failures

    def _note(self, place: int, verdict: Verdict, held: Held, copied: Container[int]) -> None:
        if type(verdict) is Ack or place in copied:
            self._returns.forget(held.url, held.message_id)
        else:
            self._returns.note(held.url, held.message_id, failed=type(verdict) is Nack)

    def _carry_out(
        self,
        deletes: list[Change],
        changes: list[Change],
        copies: list[tuple[Change, dict[str, Any]]],
        deadline: float,
    ) -> dict[int, MQError]:
        def begin(call: Callable[[Service, Sequence[Change]], Failures], part: list[Change]) -> Request[Failures]:
            return self._requests.start(lambda: call(self._service, part))

        jobs = [(part, begin(delete, part)) for part in parts_of(deletes)]
        jobs += [(part, begin(change_visibility, part)) for part in parts_of(changes)]
        by_place = {change.place: copy for change, copy in copies}
        for part in parts_of(change for change, _ in copies):
            jobs.append(
                (part, begin(lambda service, part: put_copies(service, part, [by_place[c.place] for c in part]), part))
            )
        self._requests.wait([request for _, request in jobs], deadline)
        failures: dict[int, MQError] = {}
        for part, request in jobs:
            try:
                failures.update(request.outcome(f"settling deliveries of {part[0].held.queue!r}"))
            except MQError as error:
                if request.state is State.DONE:
                    self._lost(error)
                if isinstance(error, QueueNotFoundError):  # a poll that waits in it may be silent for long
                    self._missing(error)
                failures.update({change.place: _copy(error) for change in part})
        return failures

    # --- the end -----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """From any thread."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Whoever waits here waits no longer."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()
        self._polls.end()

    def close(self) -> tuple[list[Held], list[Held]]:
        """Nothing is asked for any more; polls that are out give back what they bring.

        Returns what is to be given back: what was received, and what nobody has seen.
        """
        with self._changed:
            self._ended = True
            for queue in list(self._subscriptions):
                self.unsubscribe(queue)
            unseen = [self._held.pop(incoming.token) for incoming in self._buffer]  # type: ignore[call-overload]
            held = list(self._held.values())
            self._held.clear()
            self._buffer.clear()
        self._polls.end()
        return held, unseen


def _count(one: "MessageTypeDef") -> int | None:
    text = one.get("Attributes", {}).get("ApproximateReceiveCount", "")
    return int(text) if text.isdigit() else None


def _stale(verdict: Verdict) -> StaleDeliveryError:
    of = verdict.of
    return StaleDeliveryError(
        f"the delivery of {of.message.id!r} from queue {of.queue!r} is not this session's any more: its lease ended, it "
        "was settled, or its connection is gone"
    )


def _copy(error: MQError) -> MQError:
    """One error for each message."""
    one = type(error)(*error.args)
    one.__cause__ = error
    return one
