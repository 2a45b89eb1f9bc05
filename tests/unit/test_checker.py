"""The checker sees each kind of wrong, explains what can be explained, and never judges what did not happen."""

from collections.abc import Callable
from typing import Any

import pytest
from histories import BEGIN, END, FAIL, INFO, OK, Story, many

from mqlayer.testing.checker import SAMPLES_MAX, Expect, Floors, Rate, check
from mqlayer.testing.ledger import EventType, Fault, LedgerError, Phase
from mqlayer.testing.records import Verdict


def verdict_of(story: Story, expect: Expect | None = None) -> Verdict:
    return check(story.events, expect or Expect()).verdict


class TestVerdicts:
    def test_nothing_happened_is_unknown(self) -> None:
        report = check([], Expect())
        assert report.verdict is Verdict.UNKNOWN
        assert report.reason == "nothing was published"

    def test_everything_came_once_is_a_pass(self) -> None:
        report = check(Story().publish("p:1", "p:2").handle("p:1", "p:2").events, Expect(ordered=True))
        assert report.verdict is Verdict.PASS
        assert report.reasons == ()
        assert report.counts["confirmed"] == report.counts["ok"] == report.counts["unique"] == 2
        assert report.duplicates["extra"] == 0

    def test_the_pathological_queue(self) -> None:
        """Jepsen's own example of a queue that does everything wrong at once."""
        story = Story().begin("p:hung").publish("p:enqueued", "p:dup").deliver("p:wtf", "p:dup", "p:dup")
        counts = check(story.events, Expect()).counts
        wanted = {"attempted": 3, "confirmed": 2, "ok": 1, "unexpected": 1, "duplicated": 1, "lost": 1, "recovered": 0}
        assert {name: counts[name] for name in wanted} == wanted

    def test_unsure_messages_may_come_or_not(self) -> None:
        story = Story().publish("p:1").publish("p:2", "p:3", outcome=INFO).begin("p:4").handle("p:1", "p:3")
        report = check(story.events, Expect())
        assert report.verdict is Verdict.PASS
        assert {name: report.counts[name] for name in ("unsure", "unsure_lost", "recovered", "lost")} == {
            "unsure": 3,
            "unsure_lost": 2,
            "recovered": 1,
            "lost": 0,
        }

    @pytest.mark.parametrize("outcome", [OK, INFO, None])
    @pytest.mark.parametrize("queue", ["q", "q.dead"])
    def test_a_rejected_message_is_somewhere(self, outcome: Phase | None, queue: str) -> None:
        story = Story().publish("p:1").deliver("p:1").settle(EventType.REJECT, "p:1", outcome=outcome).killed("c1")
        story.deliver("p:1", to="c2", queue=queue).ack("p:1", by="c2")
        assert check(story.events, Expect()).counts["unreturned"] == 0

    def test_samples_are_bounded_and_counts_are_not(self) -> None:
        report = check(Story().publish(*many("p", 100)).events, Expect())
        assert report.counts["lost"] == 100
        assert len(report.samples["lost"]) == SAMPLES_MAX

    def test_what_is_certain_fails_though_a_floor_is_unmet(self) -> None:
        story = Story().publish("p:1").handle("p:1", "x:1")
        assert verdict_of(story, Expect(floors=Floors(kills=1))) is Verdict.FAIL


def lost() -> Story:
    return Story().publish("p:1", "p:2").handle("p:1")


def unreturned() -> Story:
    return Story().publish("p:1").deliver("p:1").killed("c1")


def unreturned_after_nack() -> Story:
    return Story().publish("p:1").deliver("p:1").settle(EventType.NACK, "p:1")


def unreturned_after_stale_ack() -> Story:
    return Story().publish("p:1").deliver("p:1").ack("p:1", outcome=FAIL)


def unreturned_after_reject() -> Story:
    return Story().publish("p:1").deliver("p:1").settle(EventType.REJECT, "p:1")


def unreturned_after_reject_in_doubt() -> Story:
    return Story().publish("p:1").deliver("p:1").settle(EventType.REJECT, "p:1", outcome=None).killed("c1")


def unreturned_after_refuted_ack() -> Story:
    story = Story().publish("p:1").deliver("p:1").ack("p:1", outcome=None).killed("c1")
    return story.deliver("p:1", to="c2").killed("c2")


def unexpected() -> Story:
    return Story().publish("p:1").handle("p:1", "x:1")


def foreign() -> Story:
    return Story().publish("p:1").handle("p:1").add(EventType.DELIVER, Phase.INVOKE, "c1", sha256="other")


def phantom() -> Story:
    return Story().publish("p:1").publish("p:2", outcome=FAIL).handle("p:1", "p:2")


def resurrected() -> Story:
    return Story().publish("p:1").handle("p:1").server_killed().handle("p:1")


def corrupt() -> Story:
    return Story().publish("p:1").deliver("p:1", sha256="damaged").ack("p:1")


def misrouted() -> Story:
    story = Story().begin("p:1", queue="a").add(EventType.PUBLISH, OK, "p", id="p:1", queue="a").publish("p:2")
    return story.handle("p:1", "p:2")


def early() -> Story:
    return Story().begin("p:1", delay=10.0).add(EventType.PUBLISH, OK, "p", id="p:1", queue="q").handle("p:1")


def resent_too_often() -> Story:
    story = Story().publish("p:1")
    for _ in range(3):  # the original, a copy, and one more
        story.deliver("p:1", resent=1).ack("p:1")
    return story


def unexplained() -> Story:
    return Story().publish("p:1").handle("p:1", "p:1")


def disordered() -> Story:
    return Story().publish("p:1", "p:2").handle("p:2", "p:1")


@pytest.mark.parametrize(
    ("tell", "kind"),
    [
        (lost, "lost"),
        (unreturned, "unreturned"),
        (unreturned_after_nack, "unreturned"),
        (unreturned_after_stale_ack, "unreturned"),
        (unreturned_after_reject, "unreturned"),
        (unreturned_after_reject_in_doubt, "unreturned"),
        (unreturned_after_refuted_ack, "unreturned"),
        (unexpected, "unexpected"),
        (foreign, "unexpected"),
        (phantom, "phantom"),
        (resurrected, "resurrected"),
        (corrupt, "corrupt"),
        (misrouted, "misrouted"),
        (early, "early"),
        (unexplained, "unexplained"),
        (resent_too_often, "unexplained"),
        (disordered, "order_violations"),
    ],
)
def test_each_kind_of_wrong_is_a_failure_of_its_own_kind(tell: Callable[[], Story], kind: str) -> None:
    report = check(tell().events, Expect(ordered=True))
    assert report.verdict is Verdict.FAIL
    assert report.counts[kind] == 1
    assert len(report.reasons) == 1
    assert list(report.samples) == ["order" if kind == "order_violations" else kind]


class TestMildness:
    """What is no failure where the backend does not claim it."""

    @pytest.mark.parametrize("queue", ["q.dead", "topic.group"])
    def test_a_queue_that_nobody_sends_to(self, queue: str) -> None:
        story = Story().publish("p:1").deliver("p:1", queue=queue).ack("p:1")
        assert verdict_of(story) is Verdict.PASS

    def test_a_copy_of_each_attempt(self) -> None:
        story = Story().publish("p:1").server_killed()
        for attempt in (2, 0, 1, 3):
            story.deliver("p:1", resent=attempt).ack("p:1")
        report = check(story.events, Expect())
        assert report.verdict is Verdict.PASS
        assert report.duplicates["by_cause"]["publish_retried"] == 3

    def test_order_where_it_is_not_claimed(self) -> None:
        report = check(disordered().events, Expect(ordered=False))
        assert report.verdict is Verdict.PASS
        assert report.counts["order_violations"] == 1

    def test_duplicates_where_they_are_not_claimed(self) -> None:
        report = check(unexplained().events, Expect(explained=False))
        assert report.verdict is Verdict.PASS
        assert report.duplicates["by_cause"]["unexplained"] == 1

    def test_an_ack_without_an_answer_before_the_crash_settles_or_not(self) -> None:
        story = Story().publish("p:1").deliver("p:1").ack("p:1", outcome=None).killed("c1")
        assert verdict_of(story) is Verdict.PASS

    def test_a_failed_publish_that_was_tried_again(self) -> None:
        story = Story().publish("p:1", outcome=FAIL).publish("p:1", attempt=2).handle("p:1")
        report = check(story.events, Expect())
        assert report.verdict is Verdict.PASS
        assert report.counts["phantom"] == 0


class TestDrain:
    @pytest.mark.parametrize(
        ("drained", "queue_empty", "verdict"),
        [
            (True, None, Verdict.FAIL),
            (True, True, Verdict.FAIL),
            (False, True, Verdict.FAIL),
            (None, True, Verdict.FAIL),
            (True, False, Verdict.UNKNOWN),
            (False, False, Verdict.UNKNOWN),
            (False, None, Verdict.UNKNOWN),
            (None, None, Verdict.UNKNOWN),
            (None, False, Verdict.UNKNOWN),
        ],
    )
    @pytest.mark.parametrize("tell", [lost, unreturned])
    def test_a_missing_message_is_lost_only_if_nothing_is_left(
        self, tell: Callable[[], Story], drained: bool | None, queue_empty: bool | None, verdict: Verdict
    ) -> None:
        if tell is unreturned and drained is None and queue_empty is not True:
            verdict = Verdict.PASS  # without a drain nobody waited for it
        report = check(tell().events, Expect(drained=drained, queue_empty=queue_empty))
        assert report.verdict is verdict
        if verdict is not Verdict.FAIL:
            assert report.counts["lost"] == report.counts["unreturned"] == 0
            assert not report.samples

    @pytest.mark.parametrize(
        ("drained", "queue_empty", "verdict"),
        [
            (True, None, Verdict.PASS),
            (False, True, Verdict.PASS),
            (None, None, Verdict.PASS),
            (True, False, Verdict.UNKNOWN),
            (False, None, Verdict.UNKNOWN),
        ],
    )
    def test_nothing_missing_is_a_pass_unless_something_is_left(
        self, drained: bool | None, queue_empty: bool | None, verdict: Verdict
    ) -> None:
        story = Story().publish("p:1").handle("p:1")
        assert verdict_of(story, Expect(drained=drained, queue_empty=queue_empty)) is verdict

    def test_a_drain_that_returned_at_once_has_no_quiet(self) -> None:
        story = Story().publish("p:1").drained(BEGIN).handle("p:1").drained(END)
        assert check(story.events, Expect()).evidence["quiet"] == 3.0
        assert verdict_of(story, Expect(floors=Floors(quiet=3.0))) is Verdict.PASS
        assert verdict_of(story, Expect(floors=Floors(quiet=3.5))) is Verdict.UNKNOWN

    def test_lost_messages_are_told_apart_by_their_place(self) -> None:
        story = Story().publish(*many("p", 10), "r:1").handle("p:2", "p:3", "p:7")
        assert check(story.events, Expect()).evidence["lost_where"] == {
            "p": {"prefix": 2, "middle": 3, "postfix": 2},
            "r": {"prefix": 0, "middle": 0, "postfix": 1},
        }


def taken() -> Story:
    return Story().publish("p:1").deliver("p:1")


class TestRates:
    def test_fault_free_and_under_faults_are_counted_apart(self) -> None:
        story = Story().publish("p:1", "p:2", "p:3").handle("p:1").deliver("p:2").server_killed().handle("p:2")
        story.settled().handle("p:3")
        duplicates = check(story.events, Expect()).duplicates
        assert duplicates["fault_free"] == {"deliveries": 3, "extra": 0}
        assert duplicates["under_faults"] == {"deliveries": 1, "extra": 1}
        assert duplicates["extra"] == 1
        assert duplicates["amplification"] == 1.3333

    def test_a_barrier_amid_a_fault_does_not_end_it(self) -> None:
        story = Story().publish("p:1").fault(Fault.CONNECTION, BEGIN).settled().handle("p:1")
        assert check(story.events, Expect()).duplicates["under_faults"]["deliveries"] == 1

    def test_a_consumer_that_closes_is_no_fault(self) -> None:
        story = taken().fault(Fault.CLOSE, BEGIN, target="c1").fault(Fault.CLOSE, END, target="c1").handle("p:1")
        assert check(story.events, Expect()).duplicates["fault_free"] == {"deliveries": 2, "extra": 0}

    def test_what_the_consumer_asked_for_is_in_no_rate(self) -> None:
        assert (
            check(taken().settle(EventType.NACK, "p:1").handle("p:1").events, Expect()).duplicates["fault_free"][
                "extra"
            ]
            == 0
        )

    @pytest.mark.parametrize(
        ("rate", "text"),
        [
            (Rate(0, 0), "nothing delivered"),
            (Rate(3000, 0), "< 1 per 1,000 (95 %, none in 3,000)"),
            (Rate(20000, 26), "1.3 per 1,000 (26 in 20,000)"),
        ],
    )
    def test_none_seen_is_not_none_at_all(self, rate: Rate, text: str) -> None:
        assert str(rate) == text


class TestOrder:
    def test_each_consumer_and_each_producer_has_its_own_order(self) -> None:
        story = (
            Story().publish("p:1", "p:2", "r:1").handle("p:2", by="c1").handle("p:1", by="c2").handle("r:1", by="c1")
        )
        assert verdict_of(story, Expect(ordered=True)) is Verdict.PASS

    def test_a_group_has_one_order_over_all_consumers_where_claimed(self) -> None:
        story = Story().publish("p:1", "p:2").deliver("p:2", to="c1", group="g").deliver("p:1", to="c2", group="g")
        story.ack("p:2", by="c1").ack("p:1", by="c2")
        assert verdict_of(story, Expect(ordered=True)) is Verdict.PASS
        assert verdict_of(story, Expect(groups_ordered=True)) is Verdict.FAIL

    @pytest.mark.parametrize(("later", "earlier"), [({"group": "a"}, {"group": "b"}), ({"queue": "a"}, {"queue": "b"})])
    def test_each_group_and_each_queue_has_its_own_order(self, later: dict[str, Any], earlier: dict[str, Any]) -> None:
        story = Story().publish("p:1", "p:2").deliver("p:2", **later).deliver("p:1", **earlier).ack("p:2", "p:1")
        assert verdict_of(story, Expect(ordered=True, groups_ordered=True)) is Verdict.PASS

    def test_a_further_delivery_sets_no_mark(self) -> None:
        story = Story().publish("p:1", "p:2").deliver("p:2", to="c1").killed("c1").handle("p:2", "p:1", by="c2")
        assert verdict_of(story, Expect(ordered=True)) is Verdict.PASS

    def test_a_further_delivery_behind_a_later_one_is_a_regression(self) -> None:
        story = Story().publish("p:1", "p:2").deliver("p:1", "p:2").ack("p:2").server_killed().handle("p:1")
        report = check(story.events, Expect(ordered=True))
        assert report.verdict is Verdict.PASS
        assert report.counts["regressions"] == 1


class TestFloors:
    def loaded(self) -> Story:
        story = Story().publish("p:1").deliver("p:1").ack("p:1", outcome=None)
        story.publish("p:2").deliver("p:2").server_killed(1).publish("p:3").handle("p:1", "p:2", by="c2")
        return story.server_killed(2).publish("p:4", "p:5").handle("p:3", "p:4", "p:5")

    def test_the_evidence_is_measured(self) -> None:
        evidence = check(self.loaded().events, Expect()).evidence
        wanted = {
            "kills": 2,
            "kills_with_traffic": 2,
            "kills_in_publish": 2,
            "kills_in_flight": 1,
            "in_flight": 1,
            "acks_in_doubt": 1,
            "acked": 5,
            "confirmed": 5,
            "deliveries": 7,
            "faults_unproved": 0,
            "in_flight_at_kill": [1, 0],
            "extra_after_kill": [2, 0],
            "pids": [1, 2],
        }
        assert {name: evidence[name] for name in wanted} == wanted

    @pytest.mark.parametrize(
        ("floor", "enough"),
        [
            ("attempted", 5), ("confirmed", 5), ("deliveries", 7), ("acked", 5), ("kills", 2), ("kills_with_traffic", 2),
            ("kills_in_publish", 2), ("kills_in_flight", 1), ("in_flight", 1), ("acks_in_doubt", 1), ("stops", 0),
            ("actor_kills", 0), ("connection_faults", 0), ("barriers", 0), ("unsure", 0), ("failed", 0),
        ],
    )  # fmt: skip
    def test_each_floor_holds_and_its_lack_is_unknown(self, floor: str, enough: int) -> None:
        story = self.loaded()
        assert verdict_of(story, Expect(floors=Floors(**{floor: enough}))) is Verdict.PASS  # type: ignore[arg-type]
        report = check(story.events, Expect(floors=Floors(**{floor: enough + 1})))  # type: ignore[arg-type]
        assert report.verdict is Verdict.UNKNOWN
        assert report.reason == f"{floor} {enough} of at least {enough + 1}"

    @pytest.mark.parametrize(
        "end", [{"exit": None}, {"exit": 0}, {"exit": -15}, {"new_pid": 1}, {"refused": False}, {"refused": None}]
    )
    def test_a_kill_that_its_end_does_not_show_is_none(self, end: dict[str, Any]) -> None:
        story = Story().publish("p:1").server_killed(1, **end).handle("p:1")
        report = check(story.events, Expect(floors=Floors(kills=1)))
        assert report.verdict is Verdict.UNKNOWN
        assert report.evidence["faults_unproved"] == 1

    @pytest.mark.parametrize(
        ("end", "kills"), [({"exit": -9}, 1), ({"abandoned": True}, 1), ({}, 0), ({"exit": 0}, 0), ({"exit": None}, 0)]
    )
    def test_an_actor_is_killed_or_abandoned(self, end: dict[str, Any], kills: int) -> None:
        story = Story().publish("p:1").handle("p:1").fault(Fault.ACTOR_KILL, BEGIN, target="c1")
        story.fault(Fault.ACTOR_KILL, END, target="c1", **end)
        assert check(story.events, Expect()).evidence["actor_kills"] == kills

    def test_a_kill_without_traffic_on_both_sides_does_not_count_as_under_load(self) -> None:
        idle_before = Story().server_killed(1).publish("p:1").handle("p:1")
        idle_after = Story().publish("p:1").handle("p:1").server_killed(1)
        between = Story().publish("p:1").server_killed(1).server_killed(2).handle("p:1")
        for story in (idle_before, idle_after, between):
            assert check(story.events, Expect()).evidence["kills_with_traffic"] == 0

    @pytest.mark.parametrize(("status", "stops"), [(0, 1), (-9, 0), (None, 0)])
    def test_a_graceful_stop_ends_by_itself(self, status: int | None, stops: int) -> None:
        story = Story().publish("p:1").fault(Fault.SERVER_STOP, BEGIN).fault(Fault.SERVER_STOP, END, exit=status)
        assert check(story.handle("p:1").events, Expect()).evidence["stops"] == stops

    def test_a_delivery_is_hit_once(self) -> None:
        story = taken().server_killed(1).server_killed(2).handle("p:1")
        assert check(story.events, Expect()).evidence["in_flight_at_kill"] == [1, 0]

    def test_an_ack_that_was_answered_is_not_counted_as_in_doubt(self) -> None:
        story = Story().publish("p:1").handle("p:1").server_killed()
        assert check(story.events, Expect(ack_settle=None)).evidence["acks_in_doubt"] == 0

    def test_a_kill_before_or_after_publishing_is_not_amid_it(self) -> None:
        story = Story().server_killed(1).publish("p:1", "p:2").server_killed(2).handle("p:1", "p:2")
        assert check(story.events, Expect()).evidence["kills_in_publish"] == 0

    def test_actors_and_connections_are_counted(self) -> None:
        story = Story().publish("p:1").deliver("p:1").killed("c1").fault(Fault.CONNECTION, BEGIN)
        evidence = check(story.fault(Fault.CONNECTION, END).handle("p:1", by="c2").events, Expect()).evidence
        assert (evidence["actor_kills"], evidence["connection_faults"], evidence["in_flight"]) == (1, 1, 1)


class TestBrokenHarness:
    @pytest.mark.parametrize(
        "story",
        [
            Story().add(EventType.PUBLISH, OK, "p", id="p:1"),
            Story().publish("p:1").add(EventType.PUBLISH, OK, "p", id="p:1"),
            Story().add(EventType.PUBLISH, Phase.INVOKE, "p"),
            Story().fault(Fault.SERVER_KILL, END),
            Story().add(EventType.FAULT, BEGIN, "control", detail={"fault": "earthquake"}),
        ],
    )
    def test_a_history_that_contradicts_itself_is_no_verdict(self, story: Story) -> None:
        with pytest.raises(LedgerError):
            check(story.events, Expect())

    def test_a_settlement_of_what_was_not_held_is_counted(self) -> None:
        report = check(Story().publish("p:1").handle("p:1").ack("p:1", by="c9", outcome=FAIL).events, Expect())
        assert report.counts["settles_unmatched"] == 1

    def test_events_may_come_in_any_order(self) -> None:
        story = Story().publish("p:1").deliver("p:1").server_killed().handle("p:1")
        assert check(reversed(story.events), Expect()) == check(story.events, Expect())
