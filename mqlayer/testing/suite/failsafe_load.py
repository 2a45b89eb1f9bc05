"""Killed again and again under load: F10."""

import threading

from mqlayer.testing.checker import Floors
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.survival import (
    Load,
    Progress,
    drain_and_judge,
    goes_on,
    kill_and_restart,
    lease,
    sends_were_answered,
)

__all__ = ["every_message_is_accounted_for_over_twenty_kills"]

PHASES = ("publish", "consume", "ack", "any")
UPTIME_MIN = 0.3


@criterion("F10", limit=900)
def every_message_is_accounted_for_over_twenty_kills(stage: Stage) -> Outcome:
    """Two producers, two consumers that ack, nack and reject, killed at random moments: none lost, none invented, none
    twice without a cause."""
    kills, number = stage.size(quick=2, full=20), stage.size(quick=1000, full=20_000)
    site = stage.own_server()
    queue = stage.queue()
    rate = 400
    sending = {"queue": queue, "how": "submit", "rate": rate}
    # Slower than the producers, so that there is always something to lose.
    taking = {"queues": [queue], "prefetch": 50, "ack_after": 0.003, "nack_every": 7, "reject_every": 5} | lease(stage)
    # One producer waits an outage out and sends again, the other one is told that it does not know.
    jobs = [("produce", sending), ("produce", sending | {"timeout": 1.0}), ("consume", taking), ("consume", taking)]
    load = Load(site, jobs)
    progress = Progress(stage.ledgers)
    for _ in range(kills):
        load.revive()
        _work_until_a_random_moment(stage, progress, number // kills, phase := stage.random.choice(PHASES))
        kill_and_restart(site, during=phase)
    load.revive()
    stage.wait_until(lambda: progress.confirmed >= number, f"{number} messages are confirmed", timeout=180.0)
    load.stop()
    sends_were_answered(stage.history(), (actor.name for actor in site.actors if not actor.statuses.find(["finished"])))
    # Where only one process is killed, that is a producer as often as not, and then it holds nothing.
    in_flight = kills // 7 if goes_on(site) else kills * 3 // 4
    floors = Floors(
        confirmed=number, deliveries=number, kills=kills, kills_with_traffic=kills, kills_in_flight=in_flight
    )
    return drain_and_judge(stage, site, queue, f"{queue}.dead", floors=floors, deadline=60 + number / 100)


def _work_until_a_random_moment(stage: Stage, progress: Progress, share: int, phase: str) -> None:
    """Let everybody work for a while, at least one message sent and one received; then return amid *phase*."""
    confirmed, delivered = progress.confirmed, progress.delivered
    amount = max(1, int(share * stage.random.uniform(0.3, 1.0)))

    def at_work() -> bool:
        return progress.confirmed >= confirmed + amount and progress.delivered > delivered

    stage.wait_until(at_work, f"{amount} more messages are confirmed, and one more is delivered", timeout=60.0)
    if phase == "any":
        threading.Event().wait(stage.random.uniform(0.0, UPTIME_MIN))
        return
    name = {"publish": "confirmed", "consume": "delivered", "ack": "acked"}[phase]
    goal = getattr(progress, name) + stage.random.randrange(1, 50)
    stage.wait_until(lambda: getattr(progress, name) >= goal, f"{goal} messages are {name}", timeout=60.0)
