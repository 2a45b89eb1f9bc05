"""What a history proves: lost, phantom, risen, damaged, reordered and repeated messages, and whether enough happened.

A plain function of the events: no clock, no file, no broker. The formulas are Jepsen's total-queue ones over multisets,
with attempts A, confirmed C, failed X and deliveries D:

=============  ==================================================================================
unsure         A - C - X
lost           C - D, once the drain shows that nothing is left
recovered      D of which no publish was confirmed, though one was tried
unexpected     D of ids that nobody published
phantom        D of ids of which every publish certainly failed: the error lied
corrupt        D with another SHA-256 than the one published
misrouted      D that came first from a queue which others were sent to, and they to another one
early          D that came first before its delay was over
resurrected    D after a fault, of what was acked and proved settled before it
unreturned     D that nobody settled, or that was rejected, and that never came again though the drain shows nothing left
=============  ==================================================================================

Why a message came twice is :mod:`mqlayer.testing.custody`'s to say. Nothing is judged by its absence: an empty history,
an unmet floor or a drain that may have left something behind is ``unknown``, never ``pass`` and never ``lost``.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

from mqlayer.testing.custody import Cause, Custody
from mqlayer.testing.kills import Kills
from mqlayer.testing.ledger import Event, EventType, Fault, LedgerError, Phase, Probe
from mqlayer.testing.order import Order, where_lost
from mqlayer.testing.records import Verdict

__all__ = ["SAMPLES_MAX", "Expect", "Floors", "Rate", "Report", "check"]

SAMPLES_MAX = 32  #: ids kept of each class
EARLY_MAX = 0.05  #: seconds by which a delayed message may come before its time


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """How much has to have happened for a pass to mean something. Each is compared with :attr:`Report.evidence`.

    Attributes:
        acked: Acks that returned without error.
        kills: Server kills whose end proves them: see :meth:`Ledger.fault`.
        kills_with_traffic: … with a confirmed publish or a delivery both before and after.
        kills_in_publish: … after the first publish began and before the last one did.
        kills_in_flight: … that hit at least one unsettled delivery.
        in_flight: Unsettled deliveries hit, over all server and actor kills.
        acks_in_doubt: Settlements without an answer when a fault began.
        stops, actor_kills, connection_faults: Other faults, as far as their ends prove them.
        barriers: Settle barriers reached.
        quiet: Seconds that the drain went on after its last delivery.
    """

    attempted: int = 0
    confirmed: int = 0
    failed: int = 0
    unsure: int = 0
    deliveries: int = 0
    acked: int = 0
    kills: int = 0
    kills_with_traffic: int = 0
    kills_in_publish: int = 0
    kills_in_flight: int = 0
    in_flight: int = 0
    acks_in_doubt: int = 0
    stops: int = 0
    actor_kills: int = 0
    connection_faults: int = 0
    barriers: int = 0
    quiet: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """What the test did and what the backend claims.

    Attributes:
        drained: The drain ended by itself: every confirmed id seen, then quiet. False: it hit its deadline or an error.
            ``None``: there was none.
        queue_empty: What the broker said after the drain; ``None``: it does not tell.
        ordered: One producer's messages reach each consumer in the order sent.
        groups_ordered: … and those of one group do so over all consumers together.
        explained: A duplicate without a cause fails.
        ack_settle: Seconds after which an ack sent without error is taken for settled; 0: the broker confirms acks;
            ``None``: only a settle barrier shows it.
        moves: The broker moves delayed messages from queue to queue, at least once: see ``Cause.MOVED``.
    """

    drained: bool | None = True
    queue_empty: bool | None = None
    ordered: bool = False
    groups_ordered: bool = False
    explained: bool = True
    ack_settle: float | None = 0.0
    moves: bool = False
    floors: Floors = Floors()

    @property
    def nothing_left(self) -> bool:
        """What was not delivered by now never will be."""
        return self.queue_empty is True or (self.queue_empty is None and self.drained is True)


@dataclass(slots=True)
class Rate:
    """Further deliveries that nobody asked for, in so many deliveries."""

    deliveries: int = 0
    extra: int = 0

    def __str__(self) -> str:
        if not self.deliveries:
            return "nothing delivered"
        if not self.extra:
            return f"< {1000 * 3 / self.deliveries:.2g} per 1,000 (95 %, none in {self.deliveries:,})"
        return f"{1000 * self.extra / self.deliveries:.2g} per 1,000 ({self.extra:,} in {self.deliveries:,})"

    def as_dict(self) -> dict[str, int]:
        return {"deliveries": self.deliveries, "extra": self.extra}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The verdict and what it rests on. The mappings are the record's, ready for JSON.

    Attributes:
        reasons: Why it is not a pass; empty if it is.
        evidence: What floors are compared with, and what there is to tell of kills. ``lost_where``: producer → how many
            were lost before its first delivered message, amid, and after its last.
        samples: Class → up to 32 ids.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    counts: Mapping[str, int]
    duplicates: Mapping[str, Any]
    evidence: Mapping[str, Any]
    samples: Mapping[str, Sequence[str]]

    @property
    def reason(self) -> str:
        return "; ".join(self.reasons)


def check(history: Iterable[Event], expect: Expect) -> Report:
    """Say what the history proves.

    The history must hold everything that was published to and delivered from the queue, up to a complete drain; where
    the drain was cut short, *expect* says so.

    Raises:
        LedgerError: the history contradicts itself, such as a publish that ended and never began. The harness is
            broken; nothing is known about the broker.
    """
    reading = _Reading(expect)
    for event in sorted(history, key=attrgetter("at")):
        reading.take(event)
    return reading.report()


_MEASURED = ("attempted", "confirmed", "failed", "unsure", "deliveries")
_ASKED_FOR = (Cause.GIVEN_BACK, Cause.REJECTED)
_ALWAYS_WRONG = {
    "unexpected": "delivered that nobody published",
    "phantom": "delivered though their publish had failed for certain",
    "resurrected": "delivered again after their ack was settled",
    "corrupt": "delivered with another body",
    "misrouted": "delivered from another queue than the one that they were sent to",
    "early": "delivered before their delay was over",
}
_WRONG_IF_NOTHING_LEFT = {
    "lost": "confirmed and never delivered",
    "unreturned": "delivered, then neither acked nor delivered again",
}


# Looking a member up on its Enum costs more than the rest of a comparison, and a history has millions of events.
_PUBLISH, _DELIVER, _ACK = EventType.PUBLISH, EventType.DELIVER, EventType.ACK
_INVOKE, _OK = Phase.INVOKE, Phase.OK


@dataclass(slots=True)
class _Reading:
    """The history as far as it was read."""

    expect: Expect
    attempts: Counter[str] = field(default_factory=Counter)
    confirmed: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    deliveries: Counter[str] = field(default_factory=Counter)
    unanswered: dict[str, int] = field(default_factory=dict)
    bodies: dict[str, str | None] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    sent_to: dict[str, str | None] = field(default_factory=dict)
    elsewhere: dict[str, str | None] = field(default_factory=dict)  # id → the other queue that it first came from
    due: dict[str, float] = field(default_factory=dict)
    early: list[str] = field(default_factory=list)
    causes: dict[Cause, list[str]] = field(default_factory=dict)
    acked: int = 0
    barriers: int = 0
    shaken: bool = False  # a fault began, and no settle barrier came since
    rates: tuple[Rate, Rate] = field(default_factory=lambda: (Rate(), Rate()))  # fault-free, under faults
    drain_end: float | None = None
    quiet_from: float = 0.0
    custody: Custody = field(init=False)
    order: Order = field(init=False)
    kills: Kills = field(default_factory=Kills)

    def __post_init__(self) -> None:
        self.custody = Custody(self.expect.ack_settle, moves=self.expect.moves)
        self.order = Order(groups_share=self.expect.groups_ordered)

    def take(self, event: Event) -> None:
        kind = event.type
        if kind is _DELIVER:
            self._deliver(event)
        elif kind is _PUBLISH:
            self._publish(event)
        elif kind is _ACK:
            self.acked += event.phase is _OK
            self.custody.settling(_key(event), event)
        elif kind is EventType.FAULT:
            self._fault(event)
        elif kind is EventType.PROBE:
            self._probe(event)
        else:
            self.custody.settling(_key(event), event)

    def _publish(self, event: Event) -> None:
        id, phase = event.id, event.phase
        if id is None:
            raise LedgerError(f"{event.actor} published without an id")
        if phase is _INVOKE:
            if id in self.attempts:
                self.custody.published(event)
                self.attempts[id] += 1
            else:
                self.bodies[id] = event.sha256
                self.sent_to[id] = event.queue
                self.attempts[id] = 1
            if "delay" in event.detail:
                due = event.at + event.detail["delay"]
                self.due.setdefault(id, due)
                self.custody.delayed(id, due)
            self.unanswered[id] = self.unanswered.get(id, 0) + 1
            self.kills.published(event.at)
            return
        unanswered = self.unanswered.pop(id, 0)
        if not unanswered:
            raise LedgerError(f"{event.actor} ended a publish of {id} ({phase.value}) that it never began")
        if unanswered > 1:
            self.unanswered[id] = unanswered - 1
        if phase is _OK:
            self.confirmed[id] = self.confirmed.get(id, 0) + 1
            self.kills.traffic += 1
        elif phase is Phase.FAIL:
            self.failed[id] += 1
            self.custody.published(event)

    def _deliver(self, event: Event) -> None:
        id = _key(event)
        count = self.deliveries.get(id, 0)
        self.deliveries[id] = count + 1
        self.kills.traffic += 1
        self.quiet_from = event.at
        sha256 = self.bodies.get(id)
        if sha256 is not None and event.sha256 is not None and sha256 != event.sha256:
            self.damaged.append(id)
        if not count:
            if event.queue != self.sent_to.get(id, event.queue):
                self.elsewhere[id] = event.queue
            if event.at < self.due.get(id, event.at) - EARLY_MAX:
                self.early.append(id)
        self.order.delivered(id, event, first=not count)
        cause = self.custody.delivered(id, event)
        rate = self.rates[self.shaken]
        rate.deliveries += 1
        if cause is not None:
            self.causes.setdefault(cause, []).append(id)
            self.kills.repeated()
            rate.extra += cause not in _ASKED_FOR

    def _fault(self, event: Event) -> None:
        try:
            kind = Fault(event.detail["fault"])
        except (KeyError, ValueError):
            raise LedgerError(f"{event.actor} wrote a fault of no known kind: {dict(event.detail)}") from None
        if event.phase is Phase.BEGIN:
            unsettled, in_doubt = self.custody.fault_begins(kind, event)
            self.kills.begins(kind, event, unsettled, in_doubt)
            self.shaken = self.shaken or kind is not Fault.CLOSE
        elif event.phase is Phase.END:
            if not self.custody.fault_ends(kind, event):
                raise LedgerError(f"{event.actor} ended a fault that never began: {dict(event.detail)}")
            self.kills.ends(kind, event)

    def _probe(self, event: Event) -> None:
        probe = event.detail.get("probe")
        if probe == Probe.SETTLED.value:
            self.custody.settled(event.queue, event.at)
            self.barriers += 1
            self.shaken = self.custody.faulty()
        elif probe == Probe.DRAIN.value and event.phase is Phase.BEGIN:
            self.quiet_from = event.at
        elif probe == Probe.DRAIN.value and event.phase is Phase.END:
            self.drain_end = event.at

    def report(self) -> Report:
        found = self._classes()
        missing = len(found["lost"])
        where = where_lost(found["lost"], self.deliveries)
        if not self.expect.nothing_left:
            found["lost"], found["unreturned"] = [], []
            where = {}
        counts = self._counts(found, missing)
        evidence = self._evidence(counts, where)
        verdict, reasons = _judge(counts, evidence, self.expect)
        return Report(
            verdict=verdict,
            reasons=tuple(reasons),
            counts=counts,
            duplicates=self._duplicates(),
            evidence=evidence,
            samples={name: ids[:SAMPLES_MAX] for name, ids in found.items() if ids},
        )

    def _classes(self) -> dict[str, list[str]]:
        attempts, deliveries = self.attempts, self.deliveries
        queues = set(self.sent_to.values()) - {None}  # without those of dead letters, and of a topic's groups
        return {
            "lost": list((self.confirmed - deliveries).elements()),
            "unreturned": [id for id in self.custody.unreturned() if id in attempts],
            "unexpected": [id for id in deliveries if id not in attempts],
            "phantom": [id for id, tries in self.failed.items() if id in deliveries and tries == attempts[id]],
            "resurrected": self.causes.get(Cause.RESURRECTED, []),
            "corrupt": self.damaged,
            "misrouted": [
                id for id, queue in self.elsewhere.items() if queue in queues and self.sent_to[id] is not None
            ],
            "early": self.early,
            "unexplained": self.causes.get(Cause.UNEXPLAINED, []),
            "order": self.order.violations,
        }

    def _counts(self, found: Mapping[str, list[str]], missing: int) -> dict[str, int]:
        delivered = self.deliveries & self.attempts
        unsure = self.attempts - self.confirmed - self.failed
        unexpected = sum(self.deliveries[id] for id in found["unexpected"])
        beyond_attempts = (self.deliveries - self.attempts).total() - unexpected
        return {
            "attempted": self.attempts.total(),
            "confirmed": self.confirmed.total(),
            "failed": self.failed.total(),
            "unsure": unsure.total(),
            "deliveries": self.deliveries.total(),
            "unique": len(self.deliveries),
            "ok": delivered.total(),
            "duplicated": beyond_attempts,
            "recovered": (delivered - self.confirmed).total(),
            "missing": missing,
            "unsure_lost": (unsure - self.deliveries).total(),
            "lost": len(found["lost"]),
            "unreturned": len(found["unreturned"]),
            "unexpected": unexpected,
            "phantom": len(found["phantom"]),
            "resurrected": len(found["resurrected"]),
            "corrupt": len(found["corrupt"]),
            "misrouted": len(found["misrouted"]),
            "early": len(found["early"]),
            "unexplained": len(found["unexplained"]),
            "order_violations": len(found["order"]),
            "regressions": self.order.regressions,
            "settles_unmatched": self.custody.unmatched,
        }

    def _duplicates(self) -> dict[str, Any]:
        deliveries, unique = self.deliveries.total(), len(self.deliveries)
        by_cause = {cause.value: len(self.causes[cause]) for cause in Cause if cause in self.causes}
        fault_free, under_faults = self.rates
        return {
            "extra": deliveries - unique,
            "amplification": round(deliveries / unique, 4) if unique else 0.0,
            "by_cause": by_cause | {Cause.UNEXPLAINED.value: len(self.causes.get(Cause.UNEXPLAINED, ()))},
            "fault_free": fault_free.as_dict(),
            "under_faults": under_faults.as_dict(),
        }

    def _evidence(self, counts: Mapping[str, int], where: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
        quiet = 0.0 if self.drain_end is None else max(self.drain_end - self.quiet_from, 0.0)
        measured: dict[str, Any] = {name: counts[name] for name in _MEASURED}
        measured |= {"acked": self.acked, "barriers": self.barriers}
        measured |= {"quiet": round(quiet, 3)} | self.kills.evidence()
        return measured | ({"lost_where": where} if where else {})


def _key(event: Event) -> str:
    return event.id if event.id is not None else f"sha256:{event.sha256}"


def _judge(counts: Mapping[str, int], evidence: Mapping[str, Any], expect: Expect) -> tuple[Verdict, list[str]]:
    """What is certainly wrong fails, however little else happened; what cannot be judged is unknown."""
    wrong = dict(_ALWAYS_WRONG)
    if expect.nothing_left:
        wrong |= _WRONG_IF_NOTHING_LEFT
    if expect.ordered or expect.groups_ordered:
        wrong["order_violations"] = "delivered out of order"
    if expect.explained:
        wrong["unexplained"] = "delivered again without a cause"
    failures = [f"{counts[name]:,} {text}" for name, text in wrong.items() if counts[name]]
    if failures:
        return Verdict.FAIL, failures
    doubts = _doubts(counts, evidence, expect)
    return (Verdict.UNKNOWN, doubts) if doubts else (Verdict.PASS, [])


def _doubts(counts: Mapping[str, int], evidence: Mapping[str, Any], expect: Expect) -> list[str]:
    if not counts["attempted"]:
        return ["nothing was published"]
    doubts = [
        f"{each.name} {evidence[each.name]:,} of at least {floor:,}"
        for each in fields(Floors)
        if evidence[each.name] < (floor := getattr(expect.floors, each.name))
    ]
    if not expect.nothing_left:
        if expect.drained is not None:
            left = (
                "says that the queue is not empty" if expect.queue_empty is False else "does not say that it is empty"
            )
            doubts.append(f"the drain did not end by itself and the broker {left}")
        if counts["missing"]:
            doubts.append(f"{counts['missing']:,} confirmed not seen, but they may still be there")
    return doubts
