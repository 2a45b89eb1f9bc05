"""What a broker lacks, by copy, confirm, ack: in that order, and nothing lost when a step fails."""

from dataclasses import fields, replace
from typing import Any

import pytest
from fakes import BARE, NATIVE, FakeSession, failing, incoming, outgoing

from mqlayer.clock import ManualClock
from mqlayer.driver import (
    Ack,
    Capabilities,
    Counts,
    Declare,
    Extend,
    Forward,
    Incoming,
    Nack,
    QueueOptions,
    Release,
    Support,
    Trail,
)
from mqlayer.errors import MQError, NotSentError, OutcomeUnknownError, RefusedError, StaleDeliveryError
from mqlayer.layers.emulated import Emulated, emulated_capabilities, native_capabilities

NOT, EMULATED = Support.UNSUPPORTED, Support.EMULATED
NOW = 1_800_000_000.0


def layer(capabilities: Capabilities = BARE, **options: Any) -> tuple[Emulated, FakeSession, ManualClock]:
    clock, inner = ManualClock(NOW), FakeSession(capabilities)
    return Emulated(inner, clock=clock, **options), inner, clock


def verbs(inner: FakeSession) -> list[str]:
    return [call[0] for call in inner.calls]


def delivered(session: Emulated, inner: FakeSession, *items: Incoming) -> list[Incoming]:
    session.subscribe("q", len(items), None, 1.0)
    inner.deliver(*items)
    return list(session.receive(len(items), 0.0))


class TestCapabilities:
    def test_what_is_native_stays_native(self) -> None:
        assert emulated_capabilities(NATIVE) == replace(NATIVE, delay_max=None, nack_delay_max=None)

    def test_what_copies_supply_is_emulated(self) -> None:
        changed = emulated_capabilities(BARE)
        for name in ("nack", "release", "forward", "dead_letter", "ttl", "delivery_count"):
            assert getattr(changed, name) is EMULATED, name
        same = {field.name for field in fields(BARE) if getattr(BARE, field.name) == getattr(changed, field.name)}
        assert {"delay", "priority", "group_id", "dedup_id", "topics", "peek", "purge", "stats", "durable"} <= same

    def test_what_nobody_can_supply_stays_unsupported(self) -> None:
        poor = replace(BARE, delay=NOT, priority=NOT, group_id=NOT, dedup_id=NOT, topics=NOT, peek=NOT, purge=NOT)
        changed = emulated_capabilities(replace(poor, counts=Counts.NOTHING))
        for name in ("delay", "priority", "group_id", "dedup_id", "topics", "peek", "purge", "delivery_count"):
            assert getattr(changed, name) is NOT, name

    def test_only_what_the_broker_has_where_the_url_says_so(self) -> None:
        limited = replace(BARE, delay_max=900.0, nack_delay_max=60.0)
        assert emulated_capabilities(limited).delay_max is None
        native = native_capabilities(limited)
        assert (native.delay_max, native.ttl) == (900.0, NOT)
        for name in ("nack", "release", "forward", "dead_letter", "delivery_count"):
            assert getattr(native, name) is EMULATED, name

    def test_the_layer_says_them(self) -> None:
        assert layer()[0].capabilities == emulated_capabilities(BARE)
        assert layer(native_only=True)[0].capabilities == native_capabilities(BARE)


class TestCopies:
    VERDICTS = (
        (lambda of: Nack(of, 5.0), "q", 5.0, Trail(failures=1, copied_from="q:token of m1")),
        (lambda of: Release(of), "q", 0.0, Trail(copied_from="q:token of m1")),
        (lambda of: Forward(of, "q.dead", of.message), "q.dead", 0.0, Trail()),
    )

    @pytest.mark.parametrize(("make", "queue", "delay", "trail"), VERDICTS, ids=["nack", "release", "forward"])
    def test_copied_then_confirmed_then_acked(self, make: Any, queue: str, delay: float, trail: Trail) -> None:
        session, inner, _ = layer()
        of = incoming("m1", headers={"a": 1}, content_type="text/plain", count=None)
        assert session.settle([make(of)], 5.0) == {}
        assert verbs(inner) == ["send", "settle"]
        ((target, copy),) = inner.sent
        assert target == queue
        assert copy == of.message._replace(delay=delay, trail=trail)
        assert inner.settled == [Ack(of)]

    @pytest.mark.parametrize("error", [NotSentError("busy"), OutcomeUnknownError("?"), RefusedError("full")])
    @pytest.mark.parametrize("make", [VERDICTS[0][0], VERDICTS[2][0]], ids=["nack", "forward"])
    def test_a_copy_that_fails_is_not_acked(self, make: Any, error: MQError) -> None:
        session, inner, _ = layer()
        inner.on("send", failing({0: error}))
        assert session.settle([make(incoming("m1"))], 5.0) == {0: error}
        assert inner.settled == []

    def test_a_stale_ack_after_the_copy_is_told(self) -> None:
        session, inner, _ = layer()
        error = StaleDeliveryError("gone")
        inner.on("settle", failing({0: error}))
        assert session.settle([Nack(incoming("m1"))], 5.0) == {0: error}
        assert inner.sent_ids == ["m1"]

    def test_a_lease_is_extended_before_a_copy_is_made_and_nothing_is_copied_of_what_is_gone(self) -> None:
        session, inner, _ = layer(replace(BARE, timed_lease=True))
        held = delivered(session, inner, incoming("a"), incoming("b"))
        inner.on("settle", {0: StaleDeliveryError("its lease is over")})
        failures = session.settle([Nack(one) for one in held], 1.0)
        assert {place: type(error) for place, error in failures.items()} == {0: StaleDeliveryError}
        assert inner.sent_ids == ["b"]
        assert verbs(inner)[-3:] == ["settle", "send", "settle"]

    def test_each_failure_keeps_its_place(self) -> None:
        session, inner, _ = layer()
        a, b, c, d = (incoming(name) for name in "abcd")
        full, gone = RefusedError("full"), StaleDeliveryError("gone")
        inner.on("send", failing({0: full}))
        inner.on("settle", failing({1: gone}))
        failures = session.settle([Ack(a), Nack(b), Ack(c), Nack(d)], 5.0)
        assert failures == {1: full, 2: gone}
        assert [verdict.of for verdict in inner.settled] == [a, d]

    def test_copies_to_one_queue_go_as_one_batch(self) -> None:
        session, inner, _ = layer()
        session.settle([Nack(incoming("a")), Nack(incoming("b")), Forward(incoming("c"), "dead", outgoing("c"))], 5.0)
        assert [(call[0], len(call[1])) for call in inner.named("send")] == [("q", 2), ("dead", 1)]
        assert len(inner.named("settle")) == 1

    def test_the_timeout_bounds_copy_and_ack_together(self) -> None:
        session, inner, clock = layer()
        inner.on("send", lambda *call: clock.advance(3.0))
        session.settle([Nack(incoming("a"))], 5.0)
        assert inner.named("send")[0][2] == 5.0
        assert inner.named("settle")[0][1] == 2.0

    def test_a_deduplicating_broker_must_not_drop_the_copy(self) -> None:
        session, inner, _ = layer()
        session.settle([Nack(incoming("a", dedup_id="once")), Release(incoming("b", dedup_id="once"))], 5.0)
        assert [message.dedup_id for _, message in inner.sent] == [None, None]

    def test_the_count_goes_on(self) -> None:
        session, inner, _ = layer(replace(BARE, counts=Counts.DELIVERIES))
        of = incoming("a", count=3, trail=Trail(failures=1, crashes=1))
        session.settle([Nack(of), Release(of)], 5.0)
        assert [message.trail[:2] for _, message in inner.sent] == [(2, 3), (1, 3)]

    def test_what_may_be_given_back_later_is_not_counted(self) -> None:
        session, inner, _ = layer()
        error = NotSentError("busy")
        inner.on("send", failing({0: error}))
        assert session.settle([Release(incoming("m1"))], 5.0) == {0: error}
        assert inner.settled == []

    def test_what_a_full_queue_takes_no_copy_of_goes_back_all_the_same(self) -> None:
        session, inner, _ = layer()
        inner.on("send", failing({0: RefusedError("full"), 1: RefusedError("full")}))
        nacked, released = incoming("a"), incoming("b")
        failures = session.settle([Nack(nacked), Release(released)], 5.0)
        assert list(failures) == [0]
        assert inner.settled == [Release(released)]

    def test_what_the_broker_can_do_it_does(self) -> None:
        session, inner, _ = layer(NATIVE)
        of = incoming("a")
        verdicts = [Ack(of), Nack(of, 5.0), Release(of), Extend(of, 9.0), Forward(of, "dead", of.message)]
        session.settle(verdicts, 5.0)
        assert inner.settled == verdicts
        assert inner.sent == []

    def test_a_nack_longer_than_the_broker_can_wait_goes_by_copy(self) -> None:
        session, inner, _ = layer(replace(NATIVE, nack_delay_max=60.0))
        short, long = incoming("short"), incoming("long")
        session.settle([Nack(short, 60.0), Nack(long, 61.0)], 5.0)
        assert inner.settled[0] == Nack(short, 60.0)
        copy = inner.settled[1]
        assert isinstance(copy, Forward)
        assert (copy.queue, copy.copy.delay, copy.copy.trail.failures) == ("q", 61.0, 1)

    def test_where_there_is_no_delay_it_comes_again_at_once_with_one_warning(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        session, inner, _ = layer(replace(BARE, delay=NOT))
        of = incoming("a")
        session.settle([Nack(of, 5.0), Nack(of, 5.0), Forward(of, "q", of.message._replace(delay=300.0))], 5.0)
        assert [message.delay for _, message in inner.sent] == [0.0, 0.0, 0.0]
        assert len([record for record in caplog.records if "no delay" in record.getMessage()]) == 1


class TestLongDelays:
    LIMITED = replace(NATIVE, delay_max=900.0)

    def test_the_message_knows_the_rest(self) -> None:
        session, inner, _ = layer(self.LIMITED)
        session.send("q", [outgoing("a", delay=900.0), outgoing("b", delay=3600.0)], 1.0)
        session.publish("t", [outgoing("c", delay=3600.0)], 1.0)
        short, long = (message for _, message in inner.sent)
        assert (short.delay, short.trail.not_before) == (900.0, None)
        assert (long.delay, long.trail.not_before) == (900.0, NOW + 3600.0)
        assert inner.published[0][1].trail.not_before == NOW + 3600.0

    def test_it_hops_until_it_is_due(self) -> None:
        session, inner, clock = layer(self.LIMITED)
        session.send("q", [outgoing("a", delay=2000.0, dedup_id="d")], 1.0)
        hops = []
        (_, message) = inner.sent[0]
        for _ in range(10):
            hops.append(message.delay)
            clock.advance(message.delay)
            got = delivered(session, inner, incoming("a")._replace(message=message._replace(delay=0.0)))
            if got:
                break
            copy = inner.settled[-1]
            assert isinstance(copy, Forward)
            assert copy.copy.dedup_id is None
            message = copy.copy
        assert hops == [900.0, 900.0, 200.0]
        assert got[0].message.id == "a"
        assert message.trail.not_before is None

    def test_a_hop_counts_no_delivery(self) -> None:
        session, inner, _ = layer(self.LIMITED)
        one = incoming("a", count=1, trail=Trail(failures=2, crashes=1, not_before=NOW + 50.0))
        assert delivered(session, inner, one) == []
        copy = inner.settled[0]
        assert isinstance(copy, Forward)
        assert copy.copy.trail[:2] == (2, 1)

    def test_a_little_early_is_not_early(self) -> None:
        session, inner, _ = layer(self.LIMITED)
        assert len(delivered(session, inner, incoming("a", trail=Trail(not_before=NOW + 0.01)))) == 1

    def test_a_nack_longer_than_the_broker_can_wait_hops_too(self) -> None:
        session, inner, _ = layer(replace(BARE, delay_max=900.0))
        session.settle([Nack(incoming("a"), 1000.0)], 5.0)
        ((_, copy),) = inner.sent
        assert (copy.delay, copy.trail.not_before) == (900.0, NOW + 1000.0)


class TestBeforeHandingOver:
    def test_what_has_expired_is_discarded(self) -> None:
        session, inner, _ = layer()
        dead, live = incoming("dead", expires_at=NOW), incoming("live", expires_at=NOW + 1)
        assert [got.message.id for got in delivered(session, inner, dead, live)] == ["live"]
        assert inner.settled == [Ack(dead)]

    def test_a_flag_becomes_a_count_before_a_handler_sees_it(self) -> None:
        session, inner, _ = layer()
        flagged = incoming("a", count=None, redelivered=True, trail=Trail(failures=1, crashes=1), dedup_id="d")
        assert delivered(session, inner, flagged) == []
        ((queue, copy),) = inner.sent
        assert (queue, copy.dedup_id) == ("q", None)
        assert copy.trail == Trail(failures=1, crashes=2, copied_from="q:token of a")
        assert inner.settled == [Ack(flagged)]

    def test_where_the_broker_counts_a_flag_means_nothing(self) -> None:
        session, inner, _ = layer(replace(BARE, counts=Counts.DELIVERIES))
        assert len(delivered(session, inner, incoming("a", count=2, redelivered=True))) == 1

    def test_what_is_owed_is_tried_again_until_it_is_done(self) -> None:
        session, inner, _ = layer()
        inner.on("send", failing({0: NotSentError("busy")}))
        flagged = incoming("a", count=None, redelivered=True)
        assert delivered(session, inner, flagged) == []
        assert inner.settled == []
        assert session.receive(1, 0.0) == []
        assert inner.settled == [Ack(flagged)]
        session.receive(1, 0.0)
        assert len(inner.sent) == 1

    def test_what_is_owed_and_stale_is_the_brokers_again(self) -> None:
        session, inner, _ = layer()
        inner.on("settle", failing({0: StaleDeliveryError("gone")}))
        delivered(session, inner, incoming("dead", expires_at=NOW - 1))
        session.receive(1, 0.0)
        assert len(inner.named("settle")) == 1

    def test_an_ordinary_delivery_passes_untouched(self) -> None:
        session, inner, _ = layer()
        one = incoming("a", count=None)
        assert delivered(session, inner, one) == [one]
        assert "settle" not in verbs(inner)


def test_everything_else_is_passed_on() -> None:
    session, inner, _ = layer()
    session.declare("q", QueueOptions(), Declare.CHECK, 1.0)
    session.bind("t", "g", 1.0)
    session.subscribe("q", 5, 2.0, 1.0)
    session.unsubscribe("q", 1.0)
    session.stats("q", 1.0)
    session.peek("q", 3, 1.0)
    session.purge("q", 1.0)
    session.delete("q", 1.0)
    session.wake()
    session.abort()
    session.close(1.0)
    assert verbs(inner) == ["declare", "bind", "subscribe", "unsubscribe", "stats", "peek", "purge", "delete", "close"]
    assert inner.aborted
