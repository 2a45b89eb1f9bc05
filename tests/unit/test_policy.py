"""Decisions, as tables."""

import math

import pytest
from fakes import incoming
from hypothesis import given
from hypothesis import strategies as st

from mqlayer.driver import Counts, Trail
from mqlayer.errors import ArgumentError, UndecodableError
from mqlayer.policy import (
    DeadLetter,
    GiveBack,
    Retry,
    delivery_count,
    describe,
    exhausted_reason,
    failed_trail,
    flagged_trail,
    is_suspect,
    lease_margin,
    next_step,
    reconnect_delay,
    released_trail,
    renew_after,
    split_delay,
    window,
)

ERROR = ValueError("bad")


class TestBackoff:
    @pytest.mark.parametrize(
        ("retry", "waits"),
        [
            (Retry(), [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]),
            (Retry(delay=0.5, factor=3, delay_max=10), [0.5, 1.5, 4.5, 10, 10]),
            (Retry(delay=7, factor=1), [7, 7, 7]),
            (Retry(delay=0), [0, 0, 0]),
            (Retry(delay=100, delay_max=30), [30, 30]),
        ],
    )
    def test_each_wait_is_factor_times_the_one_before_up_to_the_longest(self, retry: Retry, waits: list[float]) -> None:
        assert [retry.backoff(count) for count in range(1, len(waits) + 1)] == pytest.approx(waits)

    @pytest.mark.parametrize("count", [5_000, 10**9])
    def test_a_count_of_thousands_does_not_overflow(self, count: int) -> None:
        assert Retry().backoff(count) == 300.0
        assert Retry(delay=0).backoff(count) == 0.0

    def test_a_count_below_one_waits_like_the_first(self) -> None:
        assert Retry().backoff(0) == 1.0

    @given(st.integers(1, 50), st.floats(0, 1), st.floats(0, 1))
    def test_jitter_stretches_or_shrinks_by_its_part_at_most(self, count: int, random: float, jitter: float) -> None:
        retry = Retry(jitter=jitter)
        plain, wait = retry.backoff(count), retry.backoff(count, random)
        assert plain * (1 - jitter) - 1e-9 <= wait <= plain * (1 + jitter) + 1e-9

    def test_jitter_reaches_both_bounds(self) -> None:
        assert Retry(jitter=0.1).backoff(1, 0.0) == pytest.approx(0.9)
        assert Retry(jitter=0.1).backoff(1, 1.0) == pytest.approx(1.1)

    @pytest.mark.parametrize(
        "values",
        [
            {"attempts_max": 0},
            {"attempts_max": 2.5},
            {"attempts_max": "3"},
            {"attempts_max": True},
            {"delay": -1},
            {"delay": math.nan},
            {"delay": math.inf},
            {"delay": "1"},
            {"delay_max": -1},
            {"delay_max": math.inf},
            {"factor": 0.5},
            {"factor": math.nan},
            {"jitter": 1.5},
            {"jitter": -0.1},
        ],
    )
    def test_what_could_not_be_meant_is_refused(self, values: dict[str, float]) -> None:
        with pytest.raises(ArgumentError):
            Retry(**values)  # type: ignore[arg-type]


class TestNextStep:
    @pytest.mark.parametrize(
        ("count", "error", "has_dead_letter", "expected"),
        [
            (1, ERROR, True, GiveBack(1.0)),
            (4, ERROR, True, GiveBack(8.0)),
            (5, ERROR, True, DeadLetter("ValueError: bad")),
            (6, ERROR, True, DeadLetter("ValueError: bad")),
            (1, UndecodableError("no JSON"), True, DeadLetter("UndecodableError: no JSON")),
            (1, UndecodableError("no JSON"), False, GiveBack(300.0)),
            (4, ERROR, False, GiveBack(8.0)),
            (5, ERROR, False, GiveBack(300.0)),
            (500, ERROR, False, GiveBack(300.0)),
        ],
    )
    def test_table(self, count: int, error: Exception, has_dead_letter: bool, expected: object) -> None:
        assert next_step(count, error, Retry(attempts_max=5), has_dead_letter=has_dead_letter) == expected

    def test_a_single_attempt_never_goes_back(self) -> None:
        assert isinstance(next_step(1, ERROR, Retry(attempts_max=1), has_dead_letter=True), DeadLetter)

    def test_without_a_dead_letter_queue_the_wait_is_never_shorter_than_the_longest(self) -> None:
        for random in (0.0, 0.5, 1.0):
            step = next_step(9, ERROR, Retry(attempts_max=5), has_dead_letter=False, random=random)
            assert isinstance(step, GiveBack)
            assert step.delay >= 300.0


class _Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class TestDescribe:
    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (ValueError("bad"), "ValueError: bad"),
            (ValueError(), "ValueError"),
            (ValueError("two\nlines\t here"), "ValueError: two lines here"),
            (ValueError("\ud800"), "ValueError: ?"),
            (_Mute(), "_Mute"),
        ],
    )
    def test_one_short_line(self, error: Exception, text: str) -> None:
        assert describe(error) == text

    def test_a_long_text_is_cut(self) -> None:
        assert len(describe(ValueError("x" * 10_000))) == 500

    def test_an_exhausted_message_names_its_deliveries_and_the_limit(self) -> None:
        assert exhausted_reason(6, 0, Retry(attempts_max=5)) == "delivered 5 times without an answer; attempts_max is 5"

    def test_given_back_is_not_called_unanswered(self) -> None:
        retry = Retry(attempts_max=5)
        assert exhausted_reason(6, 5, retry) == "delivered 5 times and given back each time; attempts_max is 5"
        assert exhausted_reason(6, 2, retry) == "delivered 5 times, 3 of them without an answer; attempts_max is 5"


N, F, D = Counts.NOTHING, Counts.FLAG, Counts.DELIVERIES


class TestDeliveryCount:
    @pytest.mark.parametrize(
        ("counts", "broker", "flag", "failures", "crashes", "count", "suspect"),
        [
            (D, 1, False, 0, 0, 1, False),
            (D, None, False, 0, 0, 1, False),
            (D, 0, False, 0, 0, 1, False),
            (D, 3, True, 0, 0, 3, True),
            (D, 1, False, 2, 0, 3, False),
            (D, 2, True, 2, 0, 4, True),
            (D, 1, True, 1, 1, 3, True),
            (F, None, False, 0, 0, 1, False),
            (F, None, True, 0, 0, 2, True),
            (F, None, False, 2, 3, 6, True),
            (F, None, False, 2, 0, 3, False),
            (N, None, True, 0, 0, 1, False),
            (N, 7, True, 1, 0, 2, False),
        ],
    )
    def test_table(
        self, counts: Counts, broker: int | None, flag: bool, failures: int, crashes: int, count: int, suspect: bool
    ) -> None:
        one = incoming(count=broker, redelivered=flag, trail=Trail(failures=failures, crashes=crashes))
        assert delivery_count(counts, one) == count
        assert is_suspect(counts, one) is suspect

    @given(st.sampled_from(Counts), st.integers(0, 9), st.booleans(), st.integers(0, 9), st.integers(0, 9))
    def test_copies_carry_the_count_on(
        self, counts: Counts, broker: int, flag: bool, failures: int, crashes: int
    ) -> None:
        one = incoming(count=broker, redelivered=flag, trail=Trail(failures=failures, crashes=crashes))
        before = delivery_count(counts, one)

        def copy(trail: Trail) -> int:
            return delivery_count(counts, incoming(count=1, trail=trail))

        assert copy(failed_trail(counts, one)) == before + 1
        assert copy(released_trail(counts, one)) == before

    def test_a_failed_copy_waits_for_nothing_and_names_its_source(self) -> None:
        trail = failed_trail(D, incoming(count=3, trail=Trail(not_before=5.0, resent=1)), "there")
        assert trail == Trail(failures=1, crashes=2, resent=1, copied_from="there")

    def test_a_flag_becomes_one_more(self) -> None:
        trail = flagged_trail(incoming(redelivered=True, trail=Trail(failures=1, crashes=2)), "there")
        assert trail == Trail(failures=1, crashes=3, copied_from="there")
        assert delivery_count(F, incoming(count=None, trail=trail)) == 5


class TestWindow:
    @pytest.mark.parametrize(
        ("prefetch", "held", "asked", "proven", "suspect_held", "size"),
        [
            (20, 0, 0, False, False, 0),  # nobody asks: nothing is fetched
            (20, 0, 1, False, False, 1),
            (20, 3, 2, False, False, 5),
            (20, 0, 0, True, False, 20),
            (20, 5, 1, True, False, 20),
            (20, 30, 5, True, False, 35),  # a demand is never limited
            (20, 1, 0, True, True, 1),  # beside a suspect nothing is fetched ahead
            (20, 1, 2, True, True, 3),
        ],
    )
    def test_table(self, prefetch: int, held: int, asked: int, proven: bool, suspect_held: bool, size: int) -> None:
        assert window(prefetch, held, asked, proven=proven, suspect_held=suspect_held) == size


class TestTimes:
    @pytest.mark.parametrize(
        ("delay", "longest", "expected"),
        [(5, None, (5, None)), (5, 5, (5, None)), (5.5, 5, (5, 1005.5)), (0, 0, (0, None)), (7, 0, (0, 1007))],
    )
    def test_a_delay_is_split_at_what_the_broker_can_wait(
        self, delay: float, longest: float | None, expected: tuple[float, float | None]
    ) -> None:
        assert split_delay(delay, longest, 1000.0) == expected

    @given(st.integers(0, 10_000), st.floats(0, 1))
    def test_reconnecting_waits_some_time_but_not_long(self, attempt: int, random: float) -> None:
        assert 0.05 <= reconnect_delay(attempt, random) <= 5.0

    def test_reconnecting_waits_longer_each_time(self) -> None:
        waits = [reconnect_delay(attempt, 1.0) for attempt in range(8)]
        assert waits == sorted(waits)
        assert waits[0] < waits[5] < waits[7] == 5.0

    @pytest.mark.parametrize(("lease", "margin"), [(1.0, 0.05), (20.0, 1.0), (3600.0, 1.0)])
    def test_a_lease_is_over_a_little_early(self, lease: float, margin: float) -> None:
        assert lease_margin(lease) == pytest.approx(margin)
        assert renew_after(lease) == lease / 2
