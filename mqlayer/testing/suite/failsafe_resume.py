"""Consumers go on by themselves: F8."""

import time

from mqlayer.testing.checker import Floors
from mqlayer.testing.ledger import EventType
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.survival import Load, Progress, drain_and_judge

__all__ = ["a_consumer_goes_on_by_itself_over_kills"]

RESUME_MAX = 15.0  #: seconds from a server that serves again to the next delivery: the longest back-off, and some


@criterion("F8", limit=400)
def a_consumer_goes_on_by_itself_over_kills(stage: Stage) -> Outcome:
    """One ``for delivery in consumer``, over two queues, runs from beginning to end, while the server is killed again and
    again; and goes on with both."""
    number, kills = stage.size(quick=60, full=300), stage.size(quick=1, full=3)
    site = stage.own_server()
    queues = [stage.queue(), stage.queue("other")]
    consumer = site.actor("consume", "survivor", queues=queues, ack_after=0.002)
    consumer.ready()
    pid = consumer.pid
    load = Load(site, [("produce", {"queue": queue, "rate": 50, "how": "submit"}) for queue in queues])
    progress = Progress(stage.ledgers)
    load.revive()
    pauses: list[float] = []
    for place in range(kills):
        goal = progress.delivered + number // (kills + 1)
        stage.wait_until(lambda goal=goal: progress.delivered >= goal, f"{goal} messages are delivered")  # type: ignore[misc]
        site.kill(during="consume")
        before = progress.delivered
        site.restart()
        serves = time.monotonic()
        stage.wait_until(
            lambda before=before: progress.delivered > before,  # type: ignore[misc]
            f"after kill {place + 1} the consumer receives again",
            timeout=RESUME_MAX,
        )
        stage.wait_until(
            lambda serves=serves: _heard_of(stage, serves) >= set(queues),  # type: ignore[misc]
            f"after kill {place + 1} the consumer receives again from both of its queues",
            timeout=RESUME_MAX,
        )
        pauses.append(round(time.monotonic() - serves, 3))
        assert (consumer.alive, consumer.pid) == (True, pid), "it is not the same consumer any more"
    stage.wait_until(lambda: progress.delivered >= number, f"{number} messages are delivered")
    load.stop()
    consumer.stop()
    floors = Floors(confirmed=number, deliveries=number, kills=kills, kills_with_traffic=kills)
    return drain_and_judge(stage, site, *queues, floors=floors, seconds_to_resume=pauses)


def _heard_of(stage: Stage, since: float) -> set[str | None]:
    """The queues from which something was delivered."""
    return {event.queue for event in stage.history() if event.type is EventType.DELIVER and event.at > since}
