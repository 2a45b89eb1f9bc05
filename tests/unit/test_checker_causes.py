"""What explains that a message came again, and how often; and what does not."""

from collections.abc import Callable

import pytest
from histories import BEGIN, END, FAIL, INFO, OK, Story

from mqlayer.testing.checker import Expect, check
from mqlayer.testing.custody import FAULT_CAUSES, Cause
from mqlayer.testing.ledger import EventType, Fault
from mqlayer.testing.records import Verdict

NACK, REJECT = EventType.NACK, EventType.REJECT
UNPROVED = Expect(ack_settle=None)  #: as on a broker that does not answer acks


def verdict_of(story: Story, expect: Expect | None = None) -> Verdict:
    return check(story.events, expect or Expect()).verdict


def causes_of(story: Story, expect: Expect | None = None) -> dict[str, int]:
    by_cause = check(story.events, expect or Expect()).duplicates["by_cause"]
    return {cause: number for cause, number in by_cause.items() if number}


def taken() -> Story:
    return Story().publish("p:1").deliver("p:1")


def nacked() -> Story:
    return taken().settle(NACK, "p:1")


EXPLAINED: list[tuple[str, Callable[[], Story], set[EventType]]] = [
    ("consumer_crash", lambda: taken().killed("c1"), {EventType.FAULT}),
    ("server_kill", lambda: taken().server_killed(), {EventType.FAULT}),
    ("server_stop", lambda: taken().fault(Fault.SERVER_STOP, BEGIN), {EventType.FAULT}),
    ("connection_lost", lambda: taken().fault(Fault.SERVER_PAUSE, BEGIN), {EventType.FAULT}),
    ("connection_lost", lambda: taken().fault(Fault.CONNECTION, BEGIN), {EventType.FAULT}),
    ("connection_lost", lambda: taken().fault(Fault.CONNECTION, BEGIN, target="c1"), {EventType.FAULT}),
    ("connection_lost", lambda: taken().fault(Fault.ACTOR_PAUSE, BEGIN, target="c1"), {EventType.FAULT}),
    ("lease_expired", lambda: taken().fault(Fault.LEASE, BEGIN, id="p:1", target="c1"), {EventType.FAULT}),
    ("given_back", lambda: taken().fault(Fault.CLOSE, BEGIN, target="c1"), {EventType.FAULT}),
    ("given_back", nacked, {NACK}),
    ("ack_in_doubt", lambda: taken().ack("p:1", outcome=None).server_killed(), {EventType.FAULT}),
    ("ack_in_doubt", lambda: taken().ack("p:1", outcome=None).killed("c1"), {EventType.FAULT}),
    ("ack_in_doubt", lambda: taken().ack("p:1", outcome=INFO), {EventType.ACK}),
    ("server_kill", lambda: taken().server_killed().ack("p:1", outcome=FAIL), {EventType.FAULT}),
    (
        "server_kill",
        lambda: Story().publish("p:1").fault(Fault.SERVER_KILL, BEGIN).deliver("p:1").fault(Fault.SERVER_KILL, END),
        {EventType.FAULT},
    ),
]


@pytest.mark.parametrize(("cause", "tell", "needed"), EXPLAINED)
def test_each_cause_explains_one_more_delivery_and_no_second(
    cause: str, tell: Callable[[], Story], needed: set[EventType]
) -> None:
    assert causes_of(tell().handle("p:1", by="c2")) == {cause: 1}
    assert causes_of(tell().handle("p:1", "p:1", by="c2")) == {cause: 1, "unexplained": 1}
    bare = tell().handle("p:1", by="c2").without(needed)
    assert check(bare, Expect()).duplicates["by_cause"] == {"unexplained": 1}


def test_every_fault_has_its_place_in_the_table() -> None:
    assert FAULT_CAUSES.keys() == set(Fault)
    covered = {cause for cause, _, _ in EXPLAINED}
    elsewhere = {
        Cause.PUBLISH_RETRIED, Cause.COPIED, Cause.MOVED, Cause.REJECTED, Cause.RESURRECTED, Cause.UNEXPLAINED,
    }  # fmt: skip
    assert covered | {cause.value for cause in elsewhere} == {cause.value for cause in Cause}


class TestCauses:
    @pytest.mark.parametrize(
        "story",
        [
            Story().publish("p:1", outcome=INFO).publish("p:1", attempt=2).handle("p:1", "p:1"),
            Story().begin("p:1").publish("p:1", attempt=2).handle("p:1", "p:1"),
            Story().publish("p:1").handle("p:1").deliver("p:1", resent=1).ack("p:1"),
            Story().publish("p:1").deliver("p:1", resent=1).ack("p:1").handle("p:1"),
        ],
    )
    def test_a_publish_that_was_repeated_explains_a_second_copy(self, story: Story) -> None:
        assert causes_of(story) == {"publish_retried": 1}

    def test_a_publish_that_failed_for_certain_made_no_copy(self) -> None:
        story = Story().publish("p:1", outcome=FAIL).publish("p:1", attempt=2).handle("p:1", "p:1")
        assert causes_of(story) == {"unexplained": 1}

    def test_a_rejected_message_comes_once_and_on_another_queue(self) -> None:
        assert causes_of(taken().settle(REJECT, "p:1").deliver("p:1", queue="q.dead").ack("p:1")) == {"rejected": 1}
        assert causes_of(taken().settle(REJECT, "p:1").handle("p:1")) == {"unexplained": 1}

    def test_a_nack_in_doubt_at_a_kill_may_have_made_a_copy(self) -> None:
        story = taken().settle(NACK, "p:1", outcome=None).server_killed().handle("p:1", "p:1")
        assert causes_of(story) == {"given_back": 1, "ack_in_doubt": 1}
        assert verdict_of(story) is Verdict.PASS

    def test_a_fault_of_another_consumer_explains_nothing(self) -> None:
        story = taken().killed("c2").handle("p:1", by="c3").ack("p:1")
        assert causes_of(story) == {"unexplained": 1}

    def test_a_lease_of_another_message_explains_nothing(self) -> None:
        story = taken().fault(Fault.LEASE, BEGIN, id="p:2").handle("p:1", by="c2").ack("p:1")
        assert causes_of(story) == {"unexplained": 1}

    def test_a_blocked_server_gives_nothing_back(self) -> None:
        story = taken().fault(Fault.BLOCK, BEGIN).fault(Fault.BLOCK, END).handle("p:1", by="c2").ack("p:1")
        assert causes_of(story) == {"unexplained": 1}

    def test_a_fault_before_the_delivery_explains_nothing(self) -> None:
        story = Story().publish("p:1").server_killed().deliver("p:1").handle("p:1", by="c2").ack("p:1")
        assert causes_of(story) == {"unexplained": 1}

    def test_two_kills_explain_one_delivery_where_there_was_none_between(self) -> None:
        story = taken().server_killed(1).server_killed(2).handle("p:1", "p:1", by="c2")
        assert causes_of(story) == {"server_kill": 1, "unexplained": 1}

    def test_each_delivery_can_be_hit_by_a_kill_of_its_own(self) -> None:
        story = taken().server_killed(1).deliver("p:1").server_killed(2).handle("p:1")
        assert causes_of(story) == {"server_kill": 2}

    def test_an_ack_that_was_answered_after_the_fault_began_takes_the_reason_away(self) -> None:
        story = taken().fault(Fault.SERVER_KILL, BEGIN).ack("p:1").fault(Fault.SERVER_KILL, END).handle("p:1")
        assert causes_of(story) == {"unexplained": 1}

    def test_a_copy_from_before_that_is_handed_over_late_belongs_to_the_fault(self) -> None:
        cut = Story().publish("p:1").fault(Fault.CONNECTION, BEGIN, target="c1").deliver("p:1", to="c2")
        assert causes_of(cut.deliver("p:1", to="c1").ack("p:1", by="c2")) == {"connection_lost": 1}

    def test_what_rises_while_the_fault_still_goes_on_has_risen(self) -> None:
        story = Story().publish("p:1").handle("p:1").fault(Fault.SERVER_KILL, BEGIN).handle("p:1")
        assert causes_of(story) == {"resurrected": 1}

    @pytest.mark.parametrize("kind", [Fault.CLOSE, Fault.LEASE])
    def test_nothing_rises_from_the_dead_without_a_failure(self, kind: Fault) -> None:
        story = Story().publish("p:1").handle("p:1").fault(kind, BEGIN, target="c1").fault(kind, END, target="c1")
        assert causes_of(story.handle("p:1")) == {"unexplained": 1}

    def test_a_nack_proves_nothing_gone(self) -> None:
        story = nacked().server_killed().deliver("p:1", to="c2").handle("p:1", by="c3")
        assert causes_of(story) == {"given_back": 1, "unexplained": 1}

    def test_an_answer_belongs_to_the_verb_it_answers(self) -> None:
        story = taken().settle(NACK, "p:1", outcome=None).deliver("p:1").ack("p:1", outcome=None)
        story.add(NACK, OK, "c1", id="p:1").add(EventType.ACK, FAIL, "c1", id="p:1")
        assert check(story.events, Expect()).counts["unreturned"] == 1

    def test_the_first_delivery_is_never_a_duplicate(self) -> None:
        assert causes_of(Story().publish("p:1").server_killed().deliver("p:1", redelivered=True).ack("p:1")) == {}


class TestUnprovedAcks:
    """Where the broker does not answer acks, only a settle barrier or time shows that they arrived."""

    def test_an_ack_since_the_barrier_is_in_doubt_at_a_kill(self) -> None:
        story = Story().publish("p:1").handle("p:1").server_killed().handle("p:1")
        assert causes_of(story, UNPROVED) == {"ack_in_doubt": 1}
        assert causes_of(story) == {"resurrected": 1}

    @pytest.mark.parametrize("queue", [None, "q"])
    def test_what_was_acked_before_the_barrier_must_stay_away(self, queue: str | None) -> None:
        story = Story().publish("p:1").handle("p:1").settled(queue).server_killed().handle("p:1")
        report = check(story.events, UNPROVED)
        assert report.verdict is Verdict.FAIL
        assert report.counts["resurrected"] == 1
        assert report.evidence["barriers"] == 1

    def test_a_barrier_of_another_queue_proves_nothing(self) -> None:
        story = Story().publish("p:1").handle("p:1").settled("other").server_killed().handle("p:1")
        assert causes_of(story, UNPROVED) == {"ack_in_doubt": 1}

    def test_a_barrier_ends_what_a_repeated_publish_explains(self) -> None:
        story = Story().begin("p:1").publish("p:1", attempt=2).handle("p:1").settled("q").handle("p:1")
        assert causes_of(story, UNPROVED) == {"unexplained": 1}

    def test_without_a_fault_an_ack_in_doubt_explains_nothing(self) -> None:
        assert causes_of(Story().publish("p:1").handle("p:1", "p:1"), UNPROVED) == {"unexplained": 1}

    @pytest.mark.parametrize(("ack_settle", "cause"), [(5.0, "ack_in_doubt"), (0.5, "resurrected")])
    def test_an_ack_is_trusted_after_its_time(self, ack_settle: float, cause: str) -> None:
        story = Story().publish("p:1").handle("p:1").server_killed().handle("p:1")
        assert causes_of(story, Expect(ack_settle=ack_settle)) == {cause: 1}

    def test_a_nack_before_the_barrier_is_no_ack(self) -> None:
        report = check(nacked().settled().events, UNPROVED)
        assert report.counts["unreturned"] == 1


def test_a_copy_beside_its_original_is_explained_only_after_a_fault() -> None:
    """A copy is confirmed first and its original acked second: a fault in between leaves both."""
    copy = {"detail": {"copied_from": "q:1"}}
    before = Story().publish("p:1").server_killed()
    assert causes_of(before.deliver("p:1").ack("p:1").deliver("p:1", **copy).ack("p:1")) == {"copied": 1}
    before = Story().publish("p:1").server_killed()
    assert causes_of(before.deliver("p:1", **copy).ack("p:1").deliver("p:1").ack("p:1")) == {"copied": 1}
    without_fault = Story().publish("p:1").deliver("p:1").ack("p:1").deliver("p:1", **copy).ack("p:1")
    assert causes_of(without_fault) == {"unexplained": 1}


class TestAMessageThatTheBrokerWasMoving:
    """A delayed message waits in a queue of its own, and is moved to its target when it falls due."""

    MOVES = Expect(moves=True)

    def story(self, delay: float) -> Story:
        """Sent at 1 s with a delay, the server killed at 5 s."""
        story = Story().begin("p:1", delay=delay).add(EventType.PUBLISH, OK, "p", id="p:1", queue="q")
        return story.handle("p:1").server_killed()

    def test_may_come_once_more(self) -> None:
        assert causes_of(self.story(4.0).handle("p:1"), self.MOVES) == {"moved": 1}

    def test_comes_no_third_time_without_a_cause(self) -> None:
        causes = causes_of(self.story(4.0).handle("p:1", "p:1"), self.MOVES)
        assert causes == {"moved": 1, "unexplained": 1}

    def test_was_moving_only_near_the_kill(self) -> None:
        assert causes_of(self.story(20.0).handle("p:1"), self.MOVES) == {"resurrected": 1}

    def test_moves_only_on_a_broker_that_does_so(self) -> None:
        assert causes_of(self.story(4.0).handle("p:1")) == {"resurrected": 1}
