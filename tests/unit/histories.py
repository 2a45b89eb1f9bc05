"""Hand-made histories, told in order; each step is a second after the last."""

from collections.abc import Iterable
from typing import Any

from mqlayer.testing.ledger import Event, EventType, Fault, Phase, Probe

OK, FAIL, INFO, BEGIN, END = Phase.OK, Phase.FAIL, Phase.INFO, Phase.BEGIN, Phase.END


class Story:
    """Every step returns the story, so that one reads like a sentence."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, kind: EventType, phase: Phase, actor: str, **fields: Any) -> "Story":
        self.events.append(Event(float(len(self.events) + 1), actor, kind, phase, **fields))
        return self

    def begin(
        self, id: str, attempt: int = 1, sha256: str | None = None, queue: str | None = "q", **detail: Any
    ) -> "Story":
        body = sha256 or f"body of {id}"
        return self.add(
            EventType.PUBLISH, Phase.INVOKE, "p", id=id, sha256=body, attempt=attempt, queue=queue, detail=detail
        )

    def publish(self, *ids: str, outcome: Phase = OK, attempt: int = 1) -> "Story":
        for id in ids:
            self.begin(id, attempt).add(EventType.PUBLISH, outcome, "p", id=id, queue="q", attempt=attempt)
        return self

    def deliver(self, *ids: str, to: str = "c1", sha256: str | None = None, queue: str = "q", **fields: Any) -> "Story":
        for id in ids:
            body = sha256 or f"body of {id}"
            self.add(EventType.DELIVER, Phase.INVOKE, to, id=id, sha256=body, queue=queue, **fields)
        return self

    def settle(self, kind: EventType, *ids: str, by: str = "c1", outcome: Phase | None = OK) -> "Story":
        for id in ids:
            self.add(kind, Phase.INVOKE, by, id=id, queue="q")
            if outcome is not None:
                self.add(kind, outcome, by, id=id, queue="q")
        return self

    def ack(self, *ids: str, by: str = "c1", outcome: Phase | None = OK) -> "Story":
        return self.settle(EventType.ACK, *ids, by=by, outcome=outcome)

    def handle(self, *ids: str, by: str = "c1") -> "Story":
        for id in ids:
            self.deliver(id, to=by).ack(id, by=by)
        return self

    def fault(self, kind: Fault, phase: Phase, id: str | None = None, **detail: Any) -> "Story":
        return self.add(EventType.FAULT, phase, "control", id=id, detail={"fault": kind.value, **detail})

    def server_killed(self, pid: int = 1, new_pid: int | None = None, **ends: Any) -> "Story":
        end = {"pid": new_pid or pid + 1, "exit": -9, "refused": True, **ends}
        return self.fault(Fault.SERVER_KILL, BEGIN, pid=pid).fault(Fault.SERVER_KILL, END, **end)

    def killed(self, actor: str) -> "Story":
        return self.fault(Fault.ACTOR_KILL, BEGIN, target=actor).fault(Fault.ACTOR_KILL, END, target=actor, exit=-9)

    def settled(self, queue: str | None = None) -> "Story":
        return self.add(EventType.PROBE, INFO, "control", queue=queue, detail={"probe": Probe.SETTLED.value})

    def drained(self, phase: Phase) -> "Story":
        return self.add(EventType.PROBE, phase, "control", detail={"probe": Probe.DRAIN.value})

    def without(self, unwanted: Iterable[EventType]) -> list[Event]:
        return [event for event in self.events if event.type not in unwanted]


def many(producer: str, count: int) -> list[str]:
    return [f"{producer}:{counter}" for counter in range(count)]
