"""What was confirmed is on the broker's disk: F1a, F3a, F3b."""

from collections.abc import Mapping
from typing import Any

from mqlayer.driver import HeaderValue, Support
from mqlayer.message import Message
from mqlayer.testing.checker import Floors
from mqlayer.testing.roles.work import Work
from mqlayer.testing.sites import Site
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.survival import drain_and_judge, function, kill_and_restart

__all__ = [
    "confirmed_messages_survive_a_graceful_stop",
    "confirmed_messages_survive_a_kill_while_idle",
    "confirmed_messages_survive_sigkill",
    "send_complete",
    "take_complete",
]

LARGE = 262_144
SIZES = (64, 5_000, LARGE)
COMPLETE = 20  #: messages with headers and all
TTL = 1.0  #: seconds that one lives which nobody is to see: less than it takes until somebody looks


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
    """Small and large bodies are the same, to the byte, after a stop in good order; and so is all that goes with them."""
    number, stops = stage.size(quick=300, full=1000), stage.size(quick=1, full=2)
    site = stage.own_server()
    queue, complete = stage.queue(), stage.queue("complete")
    sent = _send_complete(stage, site, complete)
    for place in range(stops):
        _send_all_sizes(stage, site, queue, number // stops)
        ended = site.stop(during="idle")
        site.restart()
        stage.floor(f"exit by itself, stop {place + 1}", ended.exit, 0)
    floors = Floors(confirmed=number, deliveries=1, stops=stops)
    outcome = drain_and_judge(stage, site, queue, nobody_held=True, floors=floors)
    _came_complete(stage, site, complete, sent)
    return outcome


@criterion("F3b", limit=240)
def confirmed_messages_survive_sigkill(stage: Stage) -> Outcome:
    """Small and large bodies are the same, to the byte, after SIGKILL; and so is all that goes with them."""
    number, kills = stage.size(quick=300, full=1000), stage.size(quick=1, full=2)
    site = stage.own_server()
    queue, complete = stage.queue(), stage.queue("complete")
    sent = _send_complete(stage, site, complete)
    for _ in range(kills):
        _send_all_sizes(stage, site, queue, number // kills)
        kill_and_restart(site, during="idle")
    floors = Floors(confirmed=number, deliveries=1, kills=kills)
    outcome = drain_and_judge(stage, site, queue, nobody_held=True, floors=floors)
    _came_complete(stage, site, complete, sent)
    return outcome


def _send_complete(stage: Stage, site: Site, queue: str) -> dict[str, list[Any]]:
    """Messages with all that a message can have, and one that will have expired. Returns id → what it has."""
    told = stage.capabilities
    arguments = {
        "queue": queue,
        "ranked": told.priority is not Support.UNSUPPORTED,
        "mortal": told.ttl is not Support.UNSUPPORTED,
    }
    sent: dict[str, list[Any]] = site.actor("call", function=function(send_complete), arguments=arguments).finish()[
        "returned"
    ]
    return sent


def send_complete(work: Work, queue: str, ranked: bool, mortal: bool) -> dict[str, list[Any]]:
    """An actor's part."""
    sent: dict[str, list[Any]] = {}
    with work.connect().producer(queue) as producer:
        if mortal:
            producer.send("mortal", ttl=TTL)
        for n in range(COMPLETE):
            headers: dict[str, HeaderValue] = {
                "n": n,
                "text": "gr\u00f6\u00dfe",
                "true": True,
                "bytes": b"\x00\xff",
                "none": None,
            }
            message = Message(
                {"n": n},
                headers=headers,
                correlation_id=f"c-{n}",
                reply_to="answers",
                priority=n % 10 if ranked else None,
            )
            sent[producer.send(message)] = _of(
                {"n": n}, headers, "application/json", f"c-{n}", "answers", message.priority
            )
    return sent


def take_complete(work: Work, queue: str, number: int) -> list[tuple[str | None, list[Any]]]:
    """An actor's part: what is there, in the order in which it comes."""
    came: list[tuple[str | None, list[Any]]] = []
    with work.connect().consumer(queue) as consumer:
        while (
            delivery := consumer.receive(timeout=(30.0 if len(came) < number else 0.3) * work.multiplier)
        ) is not None:
            message = delivery.message
            texts = message.content_type, message.correlation_id, message.reply_to
            came.append((message.id, _of(message.payload, message.headers, *texts, message.priority)))
            delivery.ack()
    return came


def _of(payload: object, headers: Mapping[str, HeaderValue], *others: str | int | None) -> list[Any]:
    """As it travels from process to process: types of header values included."""
    return [payload, {name: repr(value) for name, value in headers.items()}, *others]


def _came_complete(stage: Stage, site: Site, queue: str, sent: Mapping[str, list[Any]]) -> None:
    """A process that was not there before finds each message with all that it had."""
    taker = site.actor("call", function=function(take_complete), arguments={"queue": queue, "number": len(sent)})
    came: list[tuple[str, list[Any]]] = taker.finish(60.0)["returned"]
    found = dict(came)
    alien = [what for id, what in came if id not in sent]
    assert not alien, f"{len(alien)} came that have expired, or were not sent, such as {alien[0]}"
    assert len(came) == len(found) == len(sent), f"of {len(sent)} messages {len(found)} came, {len(came)} times"
    for id, what in sent.items():
        assert found[id] == what, f"sent {what}, came {found[id]}"
    if stage.capabilities.priority is not Support.UNSUPPORTED:
        ranks = [what[-1] for _, what in came]
        assert ranks == sorted(ranks, reverse=True), f"the priorities came as {ranks}"


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
