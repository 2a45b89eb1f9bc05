"""What the faults of a history amount to as evidence: which are proved, what they hit, what went on around them."""

from dataclasses import dataclass
from typing import Any

from mqlayer.testing.ledger import Event, Fault

__all__ = ["Kill", "Kills"]

KILLED = -9  #: the status of a process that SIGKILL ended


@dataclass(slots=True)
class Kill:
    """One fault, from its begin to its end.

    Attributes:
        in_flight: Deliveries it hit unsettled.
        in_doubt: Settlements without an answer when it began.
        traffic_before, traffic_after: Confirmed publishes and deliveries of the whole history so far, at begin and end.
        extra: Further deliveries from its begin to the next kill's.
    """

    kind: Fault
    begin: Event
    in_flight: int
    in_doubt: int
    traffic_before: int
    end: Event | None = None
    traffic_after: int = 0
    extra: int = 0

    @property
    def proved(self) -> bool:
        """The end shows that it really happened.

        A server's kill: the process ended by SIGKILL, the one that serves now has another pid, and nobody listened in
        between. An actor's: it ended by SIGKILL, or, being a thread, was abandoned. A stop: it ended by itself.
        """
        if self.end is None:
            return False
        status = self.end.detail.get("exit")
        if self.kind is Fault.SERVER_STOP:
            return isinstance(status, int) and status >= 0
        if self.kind is Fault.SERVER_KILL:
            old, new = self.begin.detail.get("pid"), self.end.detail.get("pid")
            replaced = old is None or new is None or old != new
            return status == KILLED and replaced and self.end.detail.get("refused", True) is True
        if self.kind is Fault.ACTOR_KILL:
            return status == KILLED or self.end.detail.get("abandoned") is True
        return True


class Kills:
    """Gathers the faults while a history is read in the order of time."""

    def __init__(self) -> None:
        self.traffic = 0  #: confirmed publishes and deliveries so far
        self._all: list[Kill] = []
        self._first_publish: float | None = None
        self._last_publish = 0.0

    def published(self, at: float) -> None:
        if self._first_publish is None:
            self._first_publish = at
        self._last_publish = at

    def repeated(self) -> None:
        """A message came once more."""
        kill = next((kill for kill in reversed(self._all) if kill.kind is Fault.SERVER_KILL), None)
        if kill is not None:
            kill.extra += 1

    def begins(self, kind: Fault, event: Event, in_flight: int, in_doubt: int) -> None:
        self._all.append(Kill(kind, event, in_flight, in_doubt, self.traffic))

    def ends(self, kind: Fault, event: Event) -> None:
        target = event.detail.get("target")
        for kill in self._all:
            same = kill.kind is kind and kill.begin.detail.get("target") == target and kill.begin.id == event.id
            if kill.end is None and same:
                kill.end, kill.traffic_after = event, self.traffic

    def evidence(self) -> dict[str, Any]:
        """The figures that floors are compared with, and what a record keeps of each server kill."""
        proved = [kill for kill in self._all if kill.proved]
        kills = [kill for kill in proved if kill.kind is Fault.SERVER_KILL]
        actors = [kill for kill in proved if kill.kind is Fault.ACTOR_KILL]
        figures: dict[str, Any] = {
            "kills": len(kills),
            "kills_with_traffic": self._with_traffic(kills),
            "kills_in_publish": sum(self._in_publish(kill) for kill in kills),
            "kills_in_flight": sum(kill.in_flight > 0 for kill in kills),
            "in_flight": sum(kill.in_flight for kill in kills + actors),
            "acks_in_doubt": sum(kill.in_doubt for kill in proved),
            "stops": sum(kill.kind is Fault.SERVER_STOP for kill in proved),
            "actor_kills": len(actors),
            "connection_faults": sum(kill.kind is Fault.CONNECTION for kill in proved),
            "faults_unproved": len(self._all) - len(proved),
        }
        return figures | _lists(kills)

    def _with_traffic(self, kills: list[Kill]) -> int:
        count = 0
        for index, kill in enumerate(kills):
            since = kills[index - 1].traffic_after if index else 0
            until = kills[index + 1].traffic_before if index + 1 < len(kills) else self.traffic
            count += kill.traffic_before > since and until > kill.traffic_after
        return count

    def _in_publish(self, kill: Kill) -> bool:
        return self._first_publish is not None and self._first_publish < kill.begin.at < self._last_publish


def _lists(kills: list[Kill]) -> dict[str, Any]:
    if not kills:
        return {}
    lists: dict[str, Any] = {
        "signal": "SIGKILL",
        "in_flight_at_kill": [kill.in_flight for kill in kills],
        "extra_after_kill": [kill.extra for kill in kills],
    }
    pids = [kill.begin.detail["pid"] for kill in kills if "pid" in kill.begin.detail]
    phases = [kill.begin.detail["during"] for kill in kills if "during" in kill.begin.detail]
    return lists | ({"pids": pids} if pids else {}) | ({"phase": phases} if phases else {})
