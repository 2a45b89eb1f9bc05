"""Who holds which message, and what explains that one is delivered again.

A delivery puts a message into its consumer's hands, where it stays until a settlement is *proved*. Whatever breaks a
hold, or hands the message back, entitles the broker to one more delivery. A further delivery uses up one such
entitlement, and that is its cause; one that finds none is unexplained, or, if its ack was proved before a fault, has
risen from the dead.

=====================================  ==================================================
what happened to an earlier delivery   what a further one is then put down to
=====================================  ==================================================
a fault hit it while it was unsettled  the fault's own cause, see ``FAULT_CAUSES``
a fault hit it, its settlement sent    ``ack_in_doubt``: the answer, or the ack, was lost
an ack's outcome was unknown           ``ack_in_doubt``
its consumer nacked or rejected it     ``given_back``, ``rejected``
the publish was tried more than once   ``publish_retried``; of what is only marked as sent again, once for each
                                       number of attempts that it is marked with
one of the two is a copy, and a fault  ``copied``: it was confirmed, and its original's ack did not arrive
came before
it was delayed, and fell due near a    ``moved``: the broker moves such messages from queue to queue at least once,
server kill, where the broker moves    and had not noted yet that this one had arrived
such messages
none of these, but the further one is  the fault's own cause: a copy from before, handed over late
itself made to an actor amid a fault
none of these, its ack proved, then    ``resurrected``
a fault
none of these                          ``unexplained``
=====================================  ==================================================

A nack or reject may be a copy and then an ack, so one that was in doubt at a fault entitles to two deliveries. An ack
that was proved takes a fault's entitlement back: the broker has said that it is gone. A rejected message comes again on
another queue only.
"""

import math
from collections.abc import Iterator, Mapping
from enum import Enum
from types import MappingProxyType

from mqlayer.testing.ledger import Event, EventType, Fault, Phase

__all__ = ["FAULT_CAUSES", "Cause", "Custody", "Hold"]


class Cause(Enum):
    """Why a message was delivered once more."""

    CONSUMER_CRASH = "consumer_crash"
    SERVER_KILL = "server_kill"
    SERVER_STOP = "server_stop"
    CONNECTION_LOST = "connection_lost"
    LEASE_EXPIRED = "lease_expired"
    ACK_IN_DOUBT = "ack_in_doubt"
    PUBLISH_RETRIED = "publish_retried"
    COPIED = "copied"
    MOVED = "moved"
    GIVEN_BACK = "given_back"
    REJECTED = "rejected"
    RESURRECTED = "resurrected"
    UNEXPLAINED = "unexplained"


FAULT_CAUSES: Mapping[Fault, Cause | None] = MappingProxyType(
    {
        Fault.SERVER_KILL: Cause.SERVER_KILL,
        Fault.SERVER_STOP: Cause.SERVER_STOP,
        # A server that does not answer loses its connections to heartbeats, and its leases to the clock.
        Fault.SERVER_PAUSE: Cause.CONNECTION_LOST,
        Fault.ACTOR_KILL: Cause.CONSUMER_CRASH,
        Fault.ACTOR_PAUSE: Cause.CONNECTION_LOST,
        Fault.CONNECTION: Cause.CONNECTION_LOST,
        Fault.LEASE: Cause.LEASE_EXPIRED,
        Fault.CLOSE: Cause.GIVEN_BACK,
        # A server that only makes senders wait gives nothing back.
        Fault.BLOCK: None,
    }
)
"""What a delivery that was unsettled during a fault is put down to when it comes again."""

_ASKED = {EventType.NACK: Cause.GIVEN_BACK, EventType.REJECT: Cause.REJECTED}
MOVING_MAX = (
    5.0  #: seconds that may lie between the time at which a message fell due and a kill that hit it on its move
)
_OF_ONE_ACTOR = (Fault.ACTOR_KILL, Fault.CLOSE)  # over for everybody else as soon as begun; some never end


class Settling(Enum):
    """How far the settlement of a delivery has got."""

    NOT = "not"
    SENT = "sent"
    DONE = "done"


# Looking a member up on its Enum costs more than the rest of a comparison, and a history has millions of events.
_NOT, _SENT, _DONE = Settling
_INVOKE, _NACK, _REJECT = Phase.INVOKE, EventType.NACK, EventType.REJECT


class Hold:
    """One delivery, for as long as it may still explain another.

    Attributes:
        broken: The fault's cause that entitles to one more delivery, until that came.
        asked: The consumer's own wish that does.
        verb: What it was settled with, or is being settled with.
        open: A fault may still hit it: it is not proved, and none ended it before.
    """

    __slots__ = ("actor", "asked", "broken", "done_at", "id", "open", "queue", "settling", "verb")

    def __init__(self, id: str, actor: str, queue: str | None) -> None:
        self.id = id
        self.actor = actor
        self.queue = queue
        self.settling = _NOT
        self.done_at = math.inf
        self.open = True
        self.broken: Cause | None = None
        self.asked: Cause | None = None
        self.verb: EventType | None = None


class Custody:
    """Follows every delivery of a history. Give it the events in the order of time.

    Args:
        ack_settle: Seconds after which an ack that was sent without error is as good as proved. 0: the broker confirms
            acks. ``None``: only a settle barrier proves it.
        moves: The broker keeps delayed messages in another queue, and moves them at least once.
    """

    def __init__(self, ack_settle: float | None, *, moves: bool = False) -> None:
        self._ack_settle = ack_settle
        self._moves = moves
        self._due: dict[str, float] = {}  # when delayed messages fall due that were not delivered twice for it yet
        self._kills: list[float] = []
        self._holds: dict[str, list[Hold]] = {}
        self._faults: dict[tuple[Fault, str | None, str | None], Cause] = {}  # going on now
        self._spare: dict[str, int] = {}  # further deliveries that publishing more than once entitles to
        self._spare_queues: dict[str, str | None] = {}
        self._copies: dict[str, int] = {}  # … that copies do, made to give a message back, beside which a fault left it
        self._proved: dict[str, float] = {}  # id → when its ack was proved
        self._handled: set[str] = set()
        self._rejected: set[str] = set()  # and not delivered since
        self._delivered: set[str] = set()
        self._fault_at = -math.inf
        self._resent: set[tuple[str, int]] = set()  # attempts to send again of which a copy came
        self.unmatched = 0  #: settlements begun of what the settling actor did not hold

    def published(self, event: Event) -> None:
        """A publish was tried again (``invoke``), or one of the tries certainly failed."""
        assert event.id is not None
        self._add_spare(event.id, 1 if event.phase is _INVOKE else -1, event.queue)

    def delayed(self, id: str, due: float) -> None:
        """A message was published that is to come no sooner than *due*."""
        if self._moves:
            self._due[id] = due

    def _add_spare(self, id: str, number: int, queue: str | None) -> None:
        self._spare[id] = self._spare.get(id, 0) + number
        self._spare_queues[id] = queue

    def delivered(self, id: str, event: Event) -> Cause | None:
        """Note a delivery. Returns the cause of a further one, ``None`` of the first."""
        cause = None
        self._rejected.discard(id)
        if event.resent and (id, event.resent) not in self._resent:
            self._resent.add((id, event.resent))
            self._add_spare(id, 1, event.queue)
        if self._fault_at > -math.inf and "copied_from" in event.detail:
            self._copies[id] = self._copies.get(id, 0) + 1
        amid = self._fault_of(id, event.actor) if self._faults else None
        if id in self._delivered:
            cause = self._explain(id, event.queue, amid)
        else:
            self._delivered.add(id)
        hold = Hold(id, event.actor, event.queue)
        if id in self._holds:
            self._holds[id].append(hold)
        else:
            self._holds[id] = [hold]
        hold.broken = amid
        return cause

    def _fault_of(self, id: str, actor: str) -> Cause | None:
        """What is just happening to the actor, and may happen to what it is given."""
        for (_, target, of), cause in self._faults.items():
            if target in (None, actor) and of in (None, id):
                return cause
        return None

    def _explain(self, id: str, queue: str | None, amid: Cause | None) -> Cause:
        for hold in self._holds.get(id, ()):
            stays = queue is not None and queue == hold.queue
            if hold.asked is not None and not (hold.asked is Cause.REJECTED and stays):
                cause, hold.asked = hold.asked, None
                self._forget_spent(hold)
                return cause
            if hold.broken is not None:
                cause = hold.broken if hold.settling is _NOT else Cause.ACK_IN_DOUBT
                hold.broken = None
                hold.open = False
                if hold.asked is None:  # what was sent of its settlement evidently did not arrive
                    self._drop(hold)
                return cause
        if self._spare.get(id, 0) > 0:
            self._spare[id] -= 1
            return Cause.PUBLISH_RETRIED
        if self._copies.get(id, 0) > 0:
            self._copies[id] -= 1
            return Cause.COPIED
        due = self._due.get(id)
        if due is not None and any(abs(due - killed) <= MOVING_MAX for killed in self._kills):
            del self._due[id]
            return Cause.MOVED
        if id not in self._proved and amid is not None:
            return amid
        if self._proved.get(id, math.inf) <= self._fault_at:
            return Cause.RESURRECTED
        return Cause.UNEXPLAINED

    def settling(self, id: str, event: Event) -> None:
        """Note what is known of an ack, nack or reject."""
        hold = self._held(id, event)
        if hold is None:
            self.unmatched += event.phase is _INVOKE
        elif event.phase is _INVOKE:
            hold.settling, hold.verb = _SENT, event.type
            hold.asked = _ASKED.get(event.type)
            if event.type is _REJECT:
                self._rejected.add(id)
        elif event.phase is Phase.FAIL:  # too late: it was the broker's again before
            hold.settling = _NOT
            self._rejected.discard(id)
        elif event.phase is Phase.INFO:
            hold.broken = hold.broken or Cause.ACK_IN_DOUBT
        else:
            hold.settling, hold.done_at = _DONE, event.at
            if hold.verb is not _NACK:
                self._handled.add(id)
            if self._ack_settle == 0:
                self._prove(hold, event.at)

    def _held(self, id: str, event: Event) -> Hold | None:
        """The delivery that the actor means: one not settled yet, or the last one that it began to settle like that."""
        if event.phase is _INVOKE:
            for hold in self._holds.get(id, ()):
                if hold.settling is _NOT and hold.actor == event.actor:
                    return hold
            return None
        for hold in reversed(self._holds.get(id, ())):
            if hold.settling is _SENT and hold.verb is event.type and hold.actor == event.actor:
                return hold
        return None

    def _prove(self, hold: Hold, at: float) -> None:
        hold.broken = None
        hold.open = False
        if hold.verb is not _NACK:
            self._proved[hold.id] = at
        self._forget_spent(hold)

    def _forget_spent(self, hold: Hold) -> None:
        if hold.asked is None and hold.broken is None and not hold.open and hold.settling is _DONE:
            self._drop(hold)

    def _drop(self, hold: Hold) -> None:
        holds = self._holds[hold.id]
        holds.remove(hold)
        if not holds:
            del self._holds[hold.id]

    def fault_begins(self, kind: Fault, event: Event) -> tuple[int, int]:
        """Note a fault. Returns how many deliveries it hit unsettled, and how many whose settlement had no answer yet."""
        cause, target = FAULT_CAUSES[kind], event.detail.get("target")
        if cause is None:
            return 0, 0
        if kind not in (Fault.CLOSE, Fault.LEASE):
            self._fault_at = event.at
        if kind is Fault.SERVER_KILL:
            self._kills.append(event.at)
        self._faults[kind, target, event.id] = cause
        unsettled = in_doubt = 0
        for hold in [hold for holds in self._holds.values() for hold in holds if hold.open]:
            if target not in (None, hold.actor) or event.id not in (None, hold.id):
                continue
            if self._ack_settle is not None and event.at - hold.done_at > self._ack_settle:
                self._prove(hold, hold.done_at + self._ack_settle)
                continue
            hold.broken = hold.broken or cause
            hold.open = False
            if hold.settling is _NOT:
                unsettled += 1
            elif hold.settling is _SENT:
                in_doubt += 1
        return unsettled, in_doubt

    def fault_ends(self, kind: Fault, event: Event) -> bool:
        """Note the end of a fault. Returns whether that fault was going on."""
        known = self._faults.pop((kind, event.detail.get("target"), event.id), None)
        return known is not None or FAULT_CAUSES[kind] is None

    def settled(self, queue: str | None, at: float) -> None:
        """The queue (``None``: every queue) holds nothing, and nobody has anything of it in hand."""
        for hold in [hold for holds in self._holds.values() for hold in holds if queue in (None, hold.queue)]:
            if hold.settling is not _NOT:
                if hold.verb is not _NACK:
                    self._handled.add(hold.id)
                hold.settling, hold.asked = _DONE, None
                self._prove(hold, at)
        for id in [id for id, its_queue in self._spare_queues.items() if queue in (None, its_queue)]:
            del self._spare[id], self._spare_queues[id]

    def faulty(self) -> bool:
        """A fault is going on that may hit anybody."""
        return any(kind not in _OF_ONE_ACTOR for kind, _, _ in self._faults)

    def unreturned(self) -> Iterator[str]:
        """Ids that were delivered, never settled for good, and then not delivered again; and those that were rejected,
        whether that succeeded or nobody knows, and have come neither as dead letters nor back."""
        answered = {
            id
            for id, holds in self._holds.items()
            if any(hold.settling is not _NOT and hold.verb is not _NACK for hold in holds)
        }
        for id in self._delivered:
            if id in self._rejected or (id not in self._handled and id not in answered):
                yield id
