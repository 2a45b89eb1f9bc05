"""What failsafe criteria share: a load on a broker, how far it has got, and the accounting afterwards."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mqlayer.api import Connection, Producer
from mqlayer.driver import Support
from mqlayer.errors import MQError, OutcomeUnknownError
from mqlayer.message import Message
from mqlayer.testing.actors import Actor
from mqlayer.testing.checker import Expect, Floors, check
from mqlayer.testing.harness import Reach
from mqlayer.testing.ledger import SUFFIX, Event, EventType, Fault, Ledger, Phase, Probe, make_body, read_body
from mqlayer.testing.outcome import FloorUnmet, Outcome, PromiseBroken
from mqlayer.testing.roles.draining import LOOK_AGAIN, all_look_empty
from mqlayer.testing.roles.producing import fate_of
from mqlayer.testing.roles.work import Work
from mqlayer.testing.sites import Site
from mqlayer.testing.stage import Profile, Stage

__all__ = [
    "ACK_SETTLE",
    "LEASE",
    "Load",
    "Progress",
    "await_settled",
    "drain_and_judge",
    "function",
    "goes_on",
    "hit",
    "kill_and_restart",
    "lease",
    "mq_settled",
    "quiet",
    "send_noted",
    "sends_were_answered",
]

SLOWEST = 40.0  #: messages that a drain takes in a second, at the least
LEASE = 4.0  #: seconds of the leases that end with a kill; a busy machine must not end them earlier
ACK_SETTLE = (
    0.5  #: seconds after which an ack that was written in order counts as arrived, where the broker does not answer
)
AFTERWARDS = 2.0  #: seconds that a drain listens on, once the last could have come
SHORTLY = 1.0  #: … in a quick run, or where nobody had anything in hand


def lease(stage: Stage) -> dict[str, Any]:
    """For a consumer that may be killed: a short lease where there are timed ones; where not, its connection ends."""
    return {"lease": LEASE} if stage.capabilities.timed_lease else {}


def quiet(stage: Stage) -> float:
    """How long a drain has to hear nothing: longer than anything that a killed consumer could still hold."""
    afterwards = SHORTLY if stage.profile is Profile.QUICK else AFTERWARDS
    return stage.seconds(LEASE + afterwards if stage.capabilities.timed_lease else afterwards)


def goes_on(site: Site) -> bool:
    """A kill hits one of those that use the store, and the others go on."""
    return site.broker.reach is Reach.FILES


def kill_and_restart(site: Site, *, during: str) -> None:
    """SIGKILL, and start again on the same data."""
    site.kill(during=during)
    site.restart()


def hit(stage: Stage, what: str) -> int:
    """How many of *what* (``in_flight``, ``acks_in_doubt``) the kills so far hit, by the ledgers."""
    found: int = check(stage.history(), Expect(drained=None)).evidence[what]
    return found


class Progress:
    """How far everybody has got, by what their ledgers hold so far. Cheap enough to be asked all the time."""

    def __init__(self, ledgers: Path) -> None:
        self._ledgers = ledgers
        self._read: dict[Path, int] = {}
        self._counts = dict.fromkeys(_MARKS, 0)

    @property
    def confirmed(self) -> int:
        return self._count("confirmed")

    @property
    def delivered(self) -> int:
        return self._count("delivered")

    @property
    def acked(self) -> int:
        return self._count("acked")

    def _count(self, name: str) -> int:
        for path in self._ledgers.glob("*" + SUFFIX):
            begin = self._read.get(path, 0)
            with open(path, "rb") as ledger:
                ledger.seek(begin)
                new = ledger.read()
            new = new[: new.rfind(b"\n") + 1]
            self._read[path] = begin + len(new)
            for each, mark in _MARKS.items():
                self._counts[each] += new.count(mark)
        return self._counts[name]


_MARKS: Mapping[str, bytes] = {
    "confirmed": b'"type":"publish","phase":"ok"',
    "delivered": b'"type":"deliver","phase":"ok"',
    "acked": b'"type":"ack","phase":"ok"',
}


class Load:
    """Actors that do their jobs until they are stopped, and are replaced when a kill hit them.

    Args:
        jobs: Role and job of each. Producers come first: they are stopped first.
    """

    def __init__(self, site: Site, jobs: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self._site = site
        self._jobs = tuple(jobs)
        self._actors: list[Actor | None] = [None] * len(self._jobs)

    def revive(self) -> None:
        """Start whoever does not run, and return once all have begun."""
        started = []
        for place, (role, job) in enumerate(self._jobs):
            actor = self._actors[place]
            if actor is None or not actor.alive:
                actor = self._actors[place] = self._site.actor(role, **job)
                started.append(actor)
        for actor in started:
            actor.ready()

    def stop(self) -> None:
        """Have all of them end in good order."""
        for actor in self._actors:
            if actor is not None and actor.alive:
                actor.stop()


def drain_and_judge(
    stage: Stage,
    site: Site,
    *queues: str,
    floors: Floors,
    deadline: float = 60.0,
    nobody_held: bool = False,
    ordered: bool = False,
    moves: bool = False,
    ack_settle: float | None = None,
    query: Mapping[str, Any] | None = None,
    **evidence: Any,
) -> Outcome:
    """Receive all that is left in a fresh process, and account for every message of the history.

    Args:
        nobody_held: Nobody has received anything before, so no lease has to end for the last to come.
        ordered: One consumer has to see the order sent, where the backend claims to keep it.
        moves: As for ``Expect``.
        ack_settle: As for ``Expect``, where the broker does not confirm acks.
    """
    silence = SHORTLY if nobody_held else quiet(stage)
    confirmed = sum(event.type is EventType.PUBLISH and event.phase is Phase.OK for event in stage.history())
    deadline = max(deadline, 30.0 + confirmed / SLOWEST)
    drained = stage.drain(site, *queues, quiet=silence, deadline=deadline, **(query or {}))
    expect = Expect(
        drained=drained.drained,
        queue_empty=drained.queue_empty,
        moves=moves,
        ordered=ordered and stage.capabilities.ordered,
        ack_settle=0.0 if stage.capabilities.confirms_acks else ack_settle,
        floors=floors,
    )
    return stage.judge(expect, **evidence)


def sends_were_answered(history: Iterable[Event], dead: Iterable[str] = ()) -> None:
    """Every send ended: confirmed, certainly failed, or unknown and said so. Only a dead producer may owe an answer.

    Raises:
        PromiseBroken: some have none.
    """
    excused = set(dead)
    unanswered: dict[str, str] = {}
    for event in history:
        if event.type is not EventType.PUBLISH:
            if event.type is EventType.FAULT and event.detail.get("fault") in _DEADLY:
                excused.add(event.detail.get("target", ""))
            continue
        if event.phase is Phase.INVOKE:
            unanswered[event.id or ""] = event.actor
        else:
            unanswered.pop(event.id or "", None)
    silent = [id for id, actor in unanswered.items() if actor not in excused]
    if silent:
        raise PromiseBroken(
            f"{len(silent)} sends never ended, such as {silent[0]}", Outcome(samples={"open": silent[:8]})
        )


_DEADLY = (Fault.SERVER_KILL.value, Fault.ACTOR_KILL.value)


def send_noted(
    ledger: Ledger,
    producer: Producer,
    where: str,
    counters: Iterable[int],
    *,
    name: str | None = None,
    seed: int = 0,
    timeout: float | None = None,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, Phase]:
    """Send with ``send_many``, and write down what becomes of each. Returns what did.

    Args:
        name: The producer's in the bodies; the ledger's, if it is left out.
    """
    batch: list[tuple[str, Message]] = []
    for counter in counters:
        body = make_body(name or ledger.actor, counter, 64, seed)
        id, sha256 = read_body(body)
        delay = {"delay": fields["delay"]} if fields and "delay" in fields else {}
        ledger.write(EventType.PUBLISH, Phase.INVOKE, id=id, sha256=sha256, queue=where, detail=delay)
        batch.append((id or "", Message(body, **(fields or {}))))
    try:
        failures: Mapping[int, BaseException] = producer.send_many([m for _, m in batch], timeout=timeout).failures
    except MQError as error:  # which of them had left by then is not told
        failures = dict.fromkeys(range(len(batch)), OutcomeUnknownError(str(error)))
    became: dict[str, Phase] = {}
    for place, (id, _) in enumerate(batch):
        failure = failures.get(place)
        became[id] = fate_of(failure)
        detail = {} if failure is None else {"error": type(failure).__name__, "text": str(failure)[:300]}
        ledger.write(EventType.PUBLISH, became[id], id=id, queue=where, detail=detail)
    return became


def function(call: Any) -> str:
    """The name by which the role ``call`` finds a function."""
    return f"{call.__module__}:{call.__qualname__}"


def await_settled(stage: Stage, site: Site, *queues: str, timeout: float = 20.0) -> None:
    """The barrier behind which nothing acked may come again, looked for by an actor. Consumers have to be closed.

    Raises:
        FloorUnmet: the broker does not say that the queues are empty.
    """
    looker = site.actor("call", function=function(mq_settled), arguments={"queues": queues, "timeout": timeout})
    if not looker.finish(timeout + 30.0)["returned"]:
        raise FloorUnmet(f"the queues are not seen to be empty after {timeout:g} s, so no ack is known to be settled")


def mq_settled(work: Work, queues: Sequence[str], timeout: float) -> bool:
    """An actor's part of :func:`await_settled`."""
    mq = work.connect()
    if mq.capabilities.stats is Support.UNSUPPORTED:
        return _gives_nothing(work, mq, queues)
    for _ in range(max(1, int(timeout / 0.1))):
        if all_look_empty(mq, queues, work.ledger, wait=work.pause):
            for queue in queues:
                work.ledger.probe(Probe.SETTLED, queue=queue)
            return True
        work.pause(0.1)
    return False


def _gives_nothing(work: Work, mq: Connection, queues: Sequence[str]) -> bool:
    """Where the broker does not say what a queue holds: a consumer of it gets nothing."""
    with mq.consumer(*queues) as consumer:
        if consumer.receive(timeout=2 * LOOK_AGAIN * work.multiplier) is not None:
            return False
    for queue in queues:
        work.ledger.probe(Probe.SETTLED, queue=queue)
    return True
