"""Queues are there again, as they were declared, and serve: F2, F2b."""

import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mqlayer.driver import Support
from mqlayer.testing.checker import Floors
from mqlayer.testing.roles.work import Work
from mqlayer.testing.sites import Site
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.deliveries import in_threads
from mqlayer.testing.suite.survival import drain_and_judge, function, hit, kill_and_restart, send_noted

__all__ = [
    "a_queue_killed_right_after_its_declare_serves",
    "declare_side_by_side",
    "look_at_sizes",
    "make_queues",
    "queues_come_back_with_their_options_and_serve",
]

NEVER = {"declare": "never"}
SERVE_MAX = 30.0  #: seconds in which a queue has to take, hand over and forget a message
THREADS = 8


@criterion("F2", limit=400)
def queues_come_back_with_their_options_and_serve(stage: Stage) -> Outcome:
    """Killed and started again; then processes that never make a queue find all of them, alike, and full as before."""
    count, each = stage.size(quick=8, full=20), stage.size(quick=3, full=10)
    site = stage.own_server()
    plan = _plan(stage, count)
    topics = (
        [stage.queue(f"topic-{n}") for n in range(2)] if stage.capabilities.topics is not Support.UNSUPPORTED else []
    )
    job = {"plan": plan, "topics": topics, "each": each, "seed": stage.seed}
    maker = site.actor("call", "maker", function=function(make_queues), arguments=job)
    groups: dict[str, str] = maker.finish(180)["returned"]
    kill_and_restart(site, during="idle")
    everything: dict[str, dict[str, Any]] = {group: {} for group in groups.values()} | plan
    _check(site, everything, serve=False)
    if stage.capabilities.stats is not Support.UNSUPPORTED:
        looker = site.actor("call", function=function(look_at_sizes), arguments={"queues": list(everything)})
        sizes = looker.finish()["returned"]
        wrong = {queue: size for queue, size in sizes.items() if size not in (None, each)}
        assert not wrong, f"{len(wrong)} of {len(everything)} queues do not hold the {each} messages they held: {wrong}"
    _check(site, everything, serve=True)
    if stage.capabilities.compares_queues:
        _check(site, plan, serve=False, compare=True)
    for topic in topics:  # the groups are still bound
        site.actor("produce", topic=topic, count=each, query=NEVER).finish()
    floors = Floors(confirmed=each * (count + 2 * len(topics)), deliveries=1, kills=1)
    return drain_and_judge(
        stage,
        site,
        *everything,
        nobody_held=True,
        floors=floors,
        query=NEVER,
        queues=len(everything),
        topics=len(topics),
    )


def _plan(stage: Stage, count: int) -> dict[str, dict[str, Any]]:
    kinds: list[dict[str, Any]] = [{}, {"dead_letter": stage.queue("dead")}, {"ordered": True}]
    kinds.append({"dead_letter": stage.queue("dead-2"), "ordered": True})
    return {stage.queue(f"{place}"): kinds[place % len(kinds)] for place in range(count)}


def _check(site: Site, queues: Mapping[str, Mapping[str, Any]], *, serve: bool, compare: bool = False) -> None:
    """By a process of its own, that never makes a queue.

    Raises:
        AssertionError: some are missing, or differ, or are dead.
    """
    checker = site.actor("declare-check", queues=queues, serve=serve, compare=compare, timeout=SERVE_MAX)
    said = checker.finish(SERVE_MAX * (1 + len(queues)))
    missing, differing, dead = said["missing"], said["mismatched"], said["unserved"]
    assert not missing, f"{len(missing)} of {len(queues)} queues are missing, such as {missing[0]}"
    assert not differing, f"{len(differing)} of {len(queues)} queues differ: {differing}"
    assert not dead, f"{len(dead)} of {len(queues)} queues are there and do not serve: {dead}"


def make_queues(
    work: Work, plan: Mapping[str, Mapping[str, Any]], topics: Sequence[str], each: int, seed: int
) -> dict[str, str]:
    """An actor's part: declare and bind, and put *each* messages everywhere. Returns topic → the queue of its group."""
    groups: dict[str, str] = {}

    def declare(names: Sequence[str], number: int) -> None:
        mq = work.connect()
        for name in names:
            mq.declare(name, **plan[name])
            with mq.producer(name) as producer:
                counters = range(number * 1000, number * 1000 + each)
                send_noted(work.ledger, producer, name, counters, name=f"{work.name}-{name}", seed=seed)

    def bind(topic: str) -> None:
        mq = work.connect()
        with mq.consumer(topic=topic, group="group") as consumer, mq.producer(topic=topic) as producer:
            producer.send("which queue?")
            delivery = consumer.receive(timeout=30.0)
            assert delivery is not None, f"the group of {topic} did not get its first message"
            groups[topic] = delivery.queue
            delivery.ack()
        with mq.producer(topic=topic) as producer:
            send_noted(work.ledger, producer, topic, range(each), name=f"{work.name}-{topic}", seed=seed)

    names = list(plan)
    shares = [names[place::THREADS] for place in range(min(THREADS, len(names)))]
    jobs = [partial(declare, share, number) for number, share in enumerate(shares)]
    jobs += [partial(bind, topic) for topic in topics]
    in_threads(jobs, timeout=150.0)
    return groups


def look_at_sizes(work: Work, queues: Sequence[str]) -> dict[str, int | None]:
    """An actor's part: how many messages wait in each."""
    mq = work.connect(**NEVER)
    return {queue: mq.stats(queue).ready for queue in queues}


@criterion("F2b", limit=600)
def a_queue_killed_right_after_its_declare_serves(stage: Stage) -> Outcome:
    """What ``declare`` has returned for is there to be used, however soon it is killed. That it is found is not enough."""
    waits = (0.0, 0.1, 0.0, 0.5, 0.1)[: stage.size(quick=1, full=5)]
    each = 5
    site = stage.own_server()
    declared: dict[str, dict[str, Any]] = {}
    ages: list[float] = []
    for wait in waits:
        names = [stage.queue() for _ in range(each)]
        maker = site.actor("call", function=function(declare_side_by_side), arguments={"queues": names})
        times = maker.wait_for("declared")["at"]
        threading.Event().wait(wait)
        killed = time.monotonic()
        kill_and_restart(site, during="declare")
        ages += [killed - at for at in times]
        declared |= {name: {} for name in names}  # the earlier ones were declared long before this kill
        _check(site, declared, serve=True)
    stage.floor("kills", hit(stage, "kills"), len(waits))
    stage.floor("queues killed within a second of their declare", sum(age <= 1.0 for age in ages), min(5, len(ages)))
    evidence = site.evidence() | {"seconds_from_declare_to_kill": [round(age, 3) for age in ages]}
    return Outcome(counts={"checked": len(declared)}, evidence=evidence)


def declare_side_by_side(work: Work, queues: Sequence[str]) -> None:
    """An actor's part: declare each on a connection of its own, say when each call returned, and wait for the end."""
    connections = [work.connect() for _ in queues]
    returned: list[float] = []

    def declare(place: int) -> None:
        connections[place].declare(queues[place])
        returned.append(time.monotonic())

    in_threads([partial(declare, place) for place in range(len(queues))], timeout=60.0)
    work.say("declared", at=returned)
    work.pause(None)
