"""What was confirmed is on the broker's disk: F1a, F3a, F3b."""

from mqlayer.testing.checker import Floors
from mqlayer.testing.sites import Site
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.survival import drain_and_judge, kill_and_restart

__all__ = [
    "confirmed_messages_survive_a_graceful_stop",
    "confirmed_messages_survive_a_kill_while_idle",
    "confirmed_messages_survive_sigkill",
]

LARGE = 262_144
SIZES = (64, 5_000, LARGE)


@criterion("F1a", limit=240)
def confirmed_messages_survive_a_kill_while_idle(stage: Stage) -> Outcome:
    """Everybody has sent, been confirmed and gone; then it is killed. A process that was not there before finds all."""
    number, kills = stage.size(quick=300, full=1000), stage.size(quick=1, full=3)
    site = stage.own_server()
    queue = stage.queue()
    for place in range(kills):
        share = number * (place + 1) // kills - number * place // kills
        site.actor("produce", queue=queue, count=share, how="submit").finish()
        kill_and_restart(site, during="idle")
    floors = Floors(confirmed=number, deliveries=1, kills=kills)
    return drain_and_judge(stage, site, queue, nobody_held=True, floors=floors)


@criterion("F3a", limit=240)
def confirmed_messages_survive_a_graceful_stop(stage: Stage) -> Outcome:
    """Small and large bodies are the same, to the byte, after a stop in good order."""
    number, stops = stage.size(quick=300, full=1000), stage.size(quick=1, full=2)
    site = stage.own_server()
    queue = stage.queue()
    for place in range(stops):
        _send_all_sizes(stage, site, queue, number // stops)
        ended = site.stop(during="idle")
        site.restart()
        stage.floor(f"exit by itself, stop {place + 1}", ended.exit, 0)
    floors = Floors(confirmed=number, deliveries=1, stops=stops)
    return drain_and_judge(stage, site, queue, nobody_held=True, floors=floors)


@criterion("F3b", limit=240)
def confirmed_messages_survive_sigkill(stage: Stage) -> Outcome:
    """Small and large bodies are the same, to the byte, after SIGKILL."""
    number, kills = stage.size(quick=300, full=1000), stage.size(quick=1, full=2)
    site = stage.own_server()
    queue = stage.queue()
    for _ in range(kills):
        _send_all_sizes(stage, site, queue, number // kills)
        kill_and_restart(site, during="idle")
    floors = Floors(confirmed=number, deliveries=1, kills=kills)
    return drain_and_judge(stage, site, queue, nobody_held=True, floors=floors)


def _send_all_sizes(stage: Stage, site: Site, queue: str, number: int) -> None:
    """From three producers at once, who are gone when this returns."""
    large = max(2, number // 50)
    counts = {LARGE: large, 5_000: number // 3, 64: number - large - number // 3}
    producers = [
        site.actor("produce", queue=queue, count=counts[size], size=size, seed=stage.seed, how="submit", window=50)
        for size in SIZES
    ]
    for producer in producers:
        producer.finish()
