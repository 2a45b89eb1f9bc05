"""Killed amid work: F1b, F1c, F6."""

from mqlayer.testing.checker import Floors
from mqlayer.testing.sites import Site
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.survival import (
    Load,
    Progress,
    drain_and_judge,
    hit,
    kill_and_restart,
    lease,
    sends_were_answered,
)

__all__ = ["confirms_are_kept_over_a_kill", "confirms_are_kept_over_ten_kills", "unsettled_messages_come_back"]

PRODUCERS = 4
TRIES = 4  #: kills, until one hits a message in somebody's hands
RESUME_MAX = 10.0  #: seconds
OUTAGE_MAX = 1.0  #: the sends' timeout: shorter than an outage, so that some of them end unknown


@criterion("F1b", limit=300)
def confirms_are_kept_over_a_kill(stage: Stage) -> Outcome:
    """Four producers at work, killed at a random moment: every confirm was true, every other end was told as an error."""
    return _kill_amid_publishing(stage, number=stage.size(quick=1000, full=5000), kills=1)


@criterion("F6", limit=900)
def confirms_are_kept_over_ten_kills(stage: Stage) -> Outcome:
    """The same, again and again: in all, not one confirm was a lie."""
    return _kill_amid_publishing(stage, number=stage.size(quick=1200, full=20_000), kills=stage.size(quick=2, full=10))


def _kill_amid_publishing(stage: Stage, *, number: int, kills: int) -> Outcome:
    site = stage.own_server()
    queue = stage.queue()
    share = number // kills
    rate = stage.size(quick=250, full=500)
    job = {"queue": queue, "how": "submit", "rate": rate, "timeout": OUTAGE_MAX}
    load = Load(site, [("produce", job)] * PRODUCERS)
    progress = Progress(stage.ledgers)
    load.revive()
    for place in range(kills):
        _confirmed(stage, progress, int(share * (place + stage.random.uniform(0.3, 0.7))))
        kill_and_restart(site, during="publish")
        load.revive()
        _confirmed(stage, progress, share * (place + 1))
    load.stop()
    sends_were_answered(stage.history(), _dead(site))
    # Of an embedded store a process is killed at random: it need not be one that publishes.
    unsure = 1 if stage.has_server else 0
    floors = Floors(confirmed=number, deliveries=1, kills=kills, kills_in_publish=kills, unsure=unsure)
    return drain_and_judge(stage, site, queue, nobody_held=True, floors=floors, deadline=30 + number / 50)


def _confirmed(stage: Stage, progress: Progress, goal: int) -> None:
    stage.wait_until(lambda: progress.confirmed >= goal, f"{goal} messages are confirmed", timeout=60.0)


def _dead(site: Site) -> list[str]:
    """Whoever has not lived to see the end."""
    return [actor.name for actor in site.actors if not actor.alive and actor.statuses.find(("finished",)) is None]


@criterion("F1c", limit=300)
def unsettled_messages_come_back(stage: Stage) -> Outcome:
    """Two consumers with messages in hand, killed at a random moment: those come back, the work goes on, nothing is skipped."""
    number = stage.size(quick=400, full=2000)
    site = stage.own_server()
    queue = stage.queue()
    site.actor("produce", queue=queue, count=number, how="submit").finish()
    job = {"queues": [queue], "prefetch": 20, "ack_after": 0.02} | lease(stage)
    load = Load(site, [("consume", job)] * 2)
    progress = Progress(stage.ledgers)
    load.revive()
    for _ in range(TRIES):
        goal = progress.delivered + stage.random.randrange(20, number // 8)
        stage.wait_until(lambda goal=goal: progress.delivered >= goal, f"{goal} messages are delivered")  # type: ignore[misc]
        kill_and_restart(site, during="consume")
        load.revive()
        resumed = _more_come(stage, progress, number // 8)
        if hit(stage, "in_flight") or not resumed:
            break
    load.stop()
    floors = Floors(confirmed=number, kills=1, kills_with_traffic=1, in_flight=1)
    outcome = drain_and_judge(stage, site, queue, floors=floors)
    assert resumed, "after the kill the consumers do not go on, though what they should have received is there"
    return outcome


def _more_come(stage: Stage, progress: Progress, number: int) -> bool:
    goal = progress.delivered + number
    try:
        stage.wait_until(lambda: progress.delivered >= goal, "more come", timeout=RESUME_MAX)
    except AssertionError:
        return False  # either all is lost, or nobody receives: the accounting is to say which
    return True
