"""Random uses of a broker that keeps its promises pass; one broken promise put in anywhere is found."""

from collections.abc import Callable

import pytest
from histories import FAIL, INFO, OK, Story
from hypothesis import given, settings
from hypothesis import strategies as st

from mqlayer.testing.checker import Expect, check
from mqlayer.testing.ledger import Event, EventType, Phase
from mqlayer.testing.records import Verdict

NACK = EventType.NACK
STEPS = st.sampled_from(["publish", "unsure", "refused", "take", "ack", "nack", "crash", "kill", "settle"])


class Broker:
    """A broker that keeps every promise, and writes the history of a random use of it."""

    def __init__(self) -> None:
        self.story = Story()
        self.ready: list[str] = []
        self.held: list[tuple[str, str]] = []
        self.consumer = 1
        self.published = 0
        self.kills = 0

    def step(self, what: str) -> None:
        getattr(self, f"do_{what}")()

    def _new_id(self) -> str:
        self.published += 1
        return f"p:{self.published}"

    def do_publish(self) -> None:
        id = self._new_id()
        self.story.publish(id)
        self.ready.append(id)

    def do_unsure(self) -> None:
        id = self._new_id()
        self.story.publish(id, outcome=INFO)
        if self.published % 2:
            self.ready.append(id)

    def do_refused(self) -> None:
        self.story.publish(self._new_id(), outcome=FAIL)

    def do_take(self) -> None:
        if self.ready:
            id, actor = self.ready.pop(0), f"c{self.consumer}"
            self.story.deliver(id, to=actor)
            self.held.append((id, actor))

    def do_ack(self) -> None:
        if self.held:
            id, actor = self.held.pop()
            self.story.ack(id, by=actor)

    def do_nack(self) -> None:
        if self.held:
            id, actor = self.held.pop(0)
            self.story.settle(NACK, id, by=actor)
            self.ready.append(id)

    def do_crash(self) -> None:
        actor = f"c{self.consumer}"
        self.story.killed(actor)
        self.consumer += 1
        self.ready = [id for id, holder in self.held if holder == actor] + self.ready
        self.held = [(id, holder) for id, holder in self.held if holder != actor]

    def do_kill(self) -> None:
        self.kills += 1
        self.story.server_killed(self.kills)
        self.ready = [id for id, _ in self.held] + self.ready
        self.held = []

    def do_settle(self) -> None:
        if not self.ready and not self.held:
            self.story.settled()

    def drain(self) -> list[Event]:
        while self.held:
            self.do_ack()
        while self.ready:
            self.do_take()
            self.do_ack()
        return self.story.events


@st.composite
def honest_histories(draw: st.DrawFn) -> list[Event]:
    broker = Broker()
    broker.do_publish()
    for what in draw(st.lists(STEPS, max_size=60)):
        broker.step(what)
    return broker.drain()


def deliveries(history: list[Event]) -> list[int]:
    return [index for index, event in enumerate(history) if event.type is EventType.DELIVER]


def append(history: list[Event], event: Event) -> list[Event]:
    return [*history, event._replace(at=history[-1].at + 1)]


def forget_a_message(history: list[Event], index: int) -> list[Event]:
    gone = history[index].id
    kept = (EventType.PUBLISH, EventType.FAULT, EventType.PROBE)
    return [event for event in history if event.id != gone or event.type in kept]


def add_a_foreign_message(history: list[Event], index: int) -> list[Event]:
    return append(history, history[index]._replace(id="stranger:1"))


def repeat_a_delivery(history: list[Event], index: int) -> list[Event]:
    """After a barrier nothing of the past explains it."""
    story = Story().settled()
    return append(append(history, story.events[0]), history[index])


def flip_a_bit(history: list[Event], index: int) -> list[Event]:
    return [*history[:index], history[index]._replace(sha256="flipped"), *history[index + 1 :]]


def lie_about_a_failure(history: list[Event], index: int) -> list[Event]:
    def lied(event: Event) -> Event:
        ended = event.id == history[index].id and event.type is EventType.PUBLISH and event.phase is not Phase.INVOKE
        return event._replace(phase=FAIL) if ended else event

    return [lied(event) for event in history]


def never_bring_back(history: list[Event], index: int) -> list[Event]:
    """Its first consumer died with it, and it did not come again."""
    id, first = history[index].id, next(i for i in deliveries(history) if history[i].id == history[index].id)
    settles = (EventType.ACK, NACK, EventType.DELIVER)
    return [event for i, event in enumerate(history) if i == first or event.id != id or event.type not in settles]


@settings(max_examples=150, deadline=None)
@given(honest_histories(), st.sampled_from([0.0, 2.5, None]))
def test_an_honest_broker_passes(history: list[Event], ack_settle: float | None) -> None:
    report = check(history, Expect(ack_settle=ack_settle, queue_empty=True))
    assert (report.verdict, report.reasons) == (Verdict.PASS, ())
    assert sum(report.duplicates["by_cause"].values()) == report.duplicates["extra"]


@pytest.mark.parametrize(
    ("mutate", "kinds"),
    [
        (forget_a_message, {"lost"}),
        (add_a_foreign_message, {"unexpected"}),
        (repeat_a_delivery, {"unexplained", "resurrected"}),
        (flip_a_bit, {"corrupt"}),
        (lie_about_a_failure, {"phantom"}),
        (never_bring_back, {"unreturned"}),
    ],
)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_dishonest_one_is_caught(
    data: st.DataObject, mutate: Callable[[list[Event], int], list[Event]], kinds: set[str]
) -> None:
    history = data.draw(honest_histories())
    confirmed = {event.id for event in history if event.type is EventType.PUBLISH and event.phase is OK}
    index = data.draw(st.sampled_from([index for index in deliveries(history) if history[index].id in confirmed]))
    report = check(mutate(history, index), Expect(queue_empty=True))
    assert report.verdict is Verdict.FAIL
    assert {name for name in kinds if report.counts[name]}
    others = {"lost", "unexpected", "phantom", "resurrected", "corrupt", "unreturned", "unexplained"} - kinds
    assert not {name for name in others if report.counts[name]}
