"""The benchmarks' own arithmetic: medians, ratios within a round, verdicts, wrong counts, the page. Nothing is timed."""

import itertools
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.catalogue import BENCHMARKS, quick
from benchmarks.model import (
    Benchmark,
    Bound,
    Case,
    Goal,
    Kind,
    Sample,
    Variant,
    WrongCountError,
    WrongResultError,
    check_count,
    judge,
    order,
    per_round,
    scaled,
    summarize,
)
from benchmarks.places import SQLitePlace
from benchmarks.profiling import Profile, fold
from benchmarks.report import render

VARIANTS = (
    Variant(name="peer", title="a peer", run="none:peer", count=2000),
    Variant(name="ours", title="ours", run="none:ours", count=20_000),
)


def samples(rates: Mapping[str, list[float]], figure: str = "rate") -> list[Sample]:
    return [
        Sample(
            benchmark="X1", case="a case", variant=name, round=number, count=10, figures={figure: value, "cpu_us": 5.0}
        )
        for name, values in rates.items()
        for number, value in enumerate(values)
    ]


def goal(limit: float, *, bound: Bound = Bound.AT_LEAST, reference: str | None = "peer", figure: str = "rate") -> Goal:
    return Goal(name="X1", text="a goal", subject="ours", figure=figure, bound=bound, limit=limit, reference=reference)


# --- medians and ratios ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "median", "least", "most"),
    [([3.0], 3, 3, 3), ([9.0, 1.0, 4.0], 4, 1, 9), ([4.0, 1.0, 2.0, 8.0], 3, 1, 8)],
)
def test_median_and_spread(values: list[float], median: float, least: float, most: float) -> None:
    found = summarize(values)
    assert (found.median, found.least, found.most, found.rounds) == (median, least, most, len(values))


@pytest.mark.parametrize("values", [[], [1.0, 0.0], [-1.0], [float("inf")], [float("nan")]])
def test_what_was_not_measured_has_no_median(values: list[float]) -> None:
    with pytest.raises(WrongResultError):
        summarize(values)


def test_a_ratio_is_taken_within_each_round() -> None:
    """The machine is ten times slower in the second round. The ratio of the medians would be 3.33."""
    found = judge(goal(2.0), samples({"peer": [100, 10, 300], "ours": [200, 30, 1000]}))
    assert (found.value.median, found.value.least) == (3.0, 2.0)
    assert found.met


def test_rounds_are_matched_by_number_and_not_by_place() -> None:
    shuffled = list(reversed(samples({"peer": [1, 2, 4], "ours": [10, 20, 40]})))
    assert judge(goal(10), shuffled).value.most == 10


def test_variants_of_different_rounds_are_not_compared() -> None:
    with pytest.raises(WrongResultError, match="same rounds"):
        judge(goal(1), samples({"peer": [1, 2], "ours": [1, 2, 3]}))


def test_two_results_in_one_round_are_refused() -> None:
    with pytest.raises(WrongResultError, match="two results"):
        per_round(samples({"peer": [1]}) * 2, "peer", "rate")


def test_a_variant_that_never_ran_is_no_zero() -> None:
    with pytest.raises(WrongResultError, match="never run"):
        judge(goal(1), samples({"ours": [1]}))


# --- verdicts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "limit", "met", "by"),
    [
        (Bound.AT_LEAST, 8.0, True, 0.0),
        (Bound.AT_LEAST, 10.0, False, -0.2),
        (Bound.AT_LEAST, 4.0, True, 1.0),
        (Bound.AT_MOST, 8.0, True, 0.0),
        (Bound.AT_MOST, 4.0, False, -1.0),
        (Bound.AT_MOST, 16.0, True, 0.5),
    ],
)
def test_met_or_not_and_by_how_much(bound: Bound, limit: float, met: bool, by: float) -> None:
    found = judge(goal(limit, bound=bound, reference=None), samples({"ours": [7, 8, 9]}))
    assert found.met is met
    assert found.by == pytest.approx(by)


def test_what_is_subtracted_is_subtracted_from_both() -> None:
    """15 ms of bare Python in 45 and 75 ms: half, not three fifths."""
    wanted = Goal(
        name="X1",
        text="import",
        subject="ours",
        figure="ms",
        bound=Bound.AT_MOST,
        limit=0.55,
        reference="peer",
        subtract="bare",
    )
    found = judge(wanted, samples({"bare": [15], "ours": [45], "peer": [75]}, "ms"))
    assert (found.value.median, found.met) == (0.5, True)


def test_a_difference_may_be_less_than_nothing_in_a_disturbed_round() -> None:
    wanted = Goal(
        name="X1", text="import", subject="ours", figure="ms", bound=Bound.AT_MOST, limit=30.0, subtract="bare"
    )
    found = judge(wanted, samples({"bare": [15, 34, 15], "ours": [18, 18, 19]}, "ms"))
    assert (found.value.least, found.value.median, found.met) == (-16, 3, True)


def test_so_may_its_ratio_to_a_peer_but_not_the_peer_itself() -> None:
    wanted = Goal(
        name="X1",
        text="import",
        subject="ours",
        figure="ms",
        bound=Bound.AT_MOST,
        limit=0.75,
        reference="peer",
        subtract="bare",
    )
    found = judge(wanted, samples({"bare": [15, 16, 15], "ours": [16, 15, 16], "peer": [95, 96, 95]}, "ms"))
    assert (found.value.least, found.met) == (-0.0125, True)
    with pytest.raises(WrongResultError, match="not a set of measured values"):
        judge(wanted, samples({"bare": [15, 99, 15], "ours": [16, 99, 16], "peer": [95, 96, 95]}, "ms"))


# --- counts and order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [99, 101, 0])
def test_a_wrong_count_is_refused_and_named(found: int) -> None:
    with pytest.raises(WrongCountError, match=f"in the queue: {found} messages, not 100"):
        check_count("in the queue", found, 100)


def test_a_right_count_is_accepted() -> None:
    check_count("in the queue", 100, 100)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SQLitePlace]:
    monkeypatch.setattr("benchmarks.places.file_system", lambda path: "ext4")  # temporary files may lie in memory here
    with SQLitePlace(tmp_path) as place:
        yield place


def stored(place: SQLitePlace, case: Case, states: Sequence[int]) -> None:
    """What a run of ours would have left: one row for each of *states*, 0 being ready."""
    settings = place.prepare(case, VARIANTS[1], len(states))
    with closing(sqlite3.connect(settings["path"])) as connection, connection:
        connection.execute("CREATE TABLE mqlayer_messages (state INTEGER)")
        connection.executemany("INSERT INTO mqlayer_messages VALUES (?)", [(state,) for state in states])


@pytest.mark.parametrize(("left", "states"), [("all", [0, 0, 0]), ("none", [])])
def test_a_store_that_holds_what_it_should_is_accepted(place: SQLitePlace, left: str, states: list[int]) -> None:
    case = Case(name="a case", variants=VARIANTS, settings={"left": left})
    stored(place, case, states)
    place.check(case, VARIANTS[1], 3)


@pytest.mark.parametrize(
    ("left", "states"),
    [
        ("all", [0, 0]),  # one was lost
        ("all", [0, 0, 0, 0]),  # one was stored twice
        ("all", [0, 0, 1]),  # one is held
        ("none", [0]),  # one was never taken
        ("none", [1]),  # one was never acked
    ],
)
def test_a_store_that_holds_anything_else_is_refused(place: SQLitePlace, left: str, states: list[int]) -> None:
    case = Case(name="a case", variants=VARIANTS, settings={"left": left})
    stored(place, case, states)
    with pytest.raises(WrongCountError):
        place.check(case, VARIANTS[1], 3)


def test_a_disk_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.places.file_system", lambda path: "tmpfs")
    with pytest.raises(WrongResultError, match="tmpfs"):
        SQLitePlace(tmp_path)
    assert not list(tmp_path.iterdir())


def test_each_round_begins_with_the_next_variant() -> None:
    three = [*VARIANTS, Variant(name="third", title="", run="", count=1)]
    names = [[variant.name for variant in order(three, number)] for number in range(4)]
    assert names == [["peer", "ours", "third"], ["ours", "third", "peer"], ["third", "peer", "ours"], names[0]]


@pytest.mark.parametrize(
    ("count", "exact", "wanted"), [(20_000, False, 2000), (1000, False, 200), (9, False, 9), (9000, True, 9000)]
)
def test_a_quick_run_has_fewer_messages_but_not_too_few(count: int, exact: bool, wanted: int) -> None:
    assert scaled(Variant(name="v", title="v", run="m:f", count=count, exact=exact), 10) == wanted


# --- the catalogue --------------------------------------------------------------------------------------------------------


def test_goals_name_variants_and_figures_of_their_case() -> None:
    for benchmark in [*BENCHMARKS, *map(quick, BENCHMARKS)]:
        for case in benchmark.cases:
            names = {variant.name for variant in case.variants}
            assert len(names) == len(case.variants)
            for one in case.goals:
                assert {one.subject, one.reference or one.subject, one.subtract or one.subject} <= names
                assert one.figure in case.figures


def test_every_goal_of_this_step_is_there() -> None:
    goals = itertools.chain.from_iterable(case.goals for benchmark in BENCHMARKS for case in benchmark.cases)
    assert {one.name for one in goals if one.kind is Kind.NOW} == {"R1", "R5", "R6", "M1", "Q1", "Q2", "E1", "I1"}


# --- the page -------------------------------------------------------------------------------------------------------------


def results(ours: list[float], profiles: list[dict[str, object]]) -> dict[str, object]:
    machine = {
        "date": "2026-01-01 00:00 UTC",
        "processor": "a processor",
        "cores": 2,
        "system": "a system",
        "python": "a Python",
        "file_system": "ext4",
        "load_before": 0.1,
        "rabbitmq": "a RabbitMQ",
        "packages": {"kombu": "1"},
    }
    kept = [
        {"benchmark": one.benchmark, "case": one.case, "variant": one.variant, "round": one.round, "count": one.count}
        | {"figures": one.figures}
        for one in samples({"peer": [100, 100, 100], "ours": ours})
    ]
    entry = {"machine": machine, "rounds": 3, "quick": False, "samples": kept, "profiles": profiles}
    return {"schema": 1, "benchmarks": {"X1": entry}}


BENCHMARK = Benchmark(name="X1", title="A job", cases=(Case(name="a case", variants=VARIANTS, goals=(goal(8.0),)),))


def test_a_goal_that_is_met_is_on_the_page_with_ratio_and_spread() -> None:
    page = render(results([900, 1000, 800], []), [BENCHMARK])
    assert "| X1 | a case | a goal | **9.00×** [8.00–10.0] | met, 12 % to spare |" in page
    assert "| ours | 900 [800–1 000] | 5.00 [5.00–5.00] | 9.00 [8.00–10.0] | 10.0 |" in page


def test_a_goal_that_is_missed_is_on_the_page_with_its_profile() -> None:
    found = fold(
        ["run (mqlayer/engine/line.py:1);wait (threading.py:2) 3", "run (mqlayer/engine/line.py:1) 1"], "a run"
    )
    assert isinstance(found, Profile)
    page = render(results([400, 400, 400], [{"case": "a case", "variant": "ours"} | found.as_json()]), [BENCHMARK])
    assert "**not met**, 50 % below" in page
    assert "#### Where the time goes: ours" in page
    assert "| `wait (threading.py)` | 75.0 | mqlayer/engine/line | 100.0 |" in page


def test_a_profile_that_could_not_be_made_says_why() -> None:
    page = render(results([4, 4, 4], [{"case": "a case", "variant": "ours", "problem": "no py-spy"}]), [BENCHMARK])
    assert "Not profiled: no py-spy." in page
