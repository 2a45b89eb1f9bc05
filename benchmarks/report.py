"""``docs/performance.md``, made from the results. Pure: text from JSON; nobody edits the page by hand."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.model import Benchmark, Bound, Case, Goal, Kind, Sample, Verdict, judge, per_round, summarize

__all__ = ["render"]

HEAD = """# Performance

<!-- Made by `python -m benchmarks` (`nox -s bench`) from benchmarks/results/latest.json. Do not edit. -->

mqlayer beside its peers, on one machine, in one run. Every variant runs in a fresh process of its own, one at a time, and
the variants take turns round by round, so that what slows the machine down slows everybody down. Trust the *ratios* (each
taken within a round; the median of the rounds) and the *CPU per message* rather than the rates. After every run the
messages are counted where they lie, by a plain client; a wrong count, a nack or a returned message ends the run.
How to repeat it: [benchmarks/README.md](../benchmarks/README.md).
"""


def render(results: Mapping[str, Any], benchmarks: Sequence[Benchmark]) -> str:
    """The page. Benchmarks without results are left out."""
    measured = [benchmark for benchmark in benchmarks if benchmark.name in results["benchmarks"]]
    lines = [HEAD, *_machine(results), "## Goals", "", *_goals(results, measured)]
    for benchmark in measured:
        lines += _benchmark(benchmark, results["benchmarks"][benchmark.name])
    return "\n".join(lines).rstrip() + "\n"


def _machine(results: Mapping[str, Any]) -> Iterator[str]:
    names = sorted({(entry["machine"]["date"], name) for name, entry in results["benchmarks"].items()})
    for number, (date, name) in enumerate(names):
        entry = results["benchmarks"][name]
        same = [other for when, other in names if when == date]
        if number and names[number - 1][0] == date:
            continue
        machine = entry["machine"]
        packages = ", ".join(f"{package} {found}" for package, found in machine["packages"].items())
        yield (
            f"{', '.join(same)}: {machine['date']}, {entry['rounds']} rounds"
            f"{' (quick: too short to judge by)' if entry['quick'] else ''}. {machine['processor']}, {machine['cores']} "
            f"cores, {machine['system']}, {machine['python']}, {machine['rabbitmq']}, {machine['file_system']}, load "
            f"{machine['load_before']} when it began. {packages}."
        )
        yield ""


def _goals(results: Mapping[str, Any], benchmarks: Sequence[Benchmark]) -> Iterator[str]:
    """One row a goal of each case; those of a later step come last."""
    yield from ("| | case | goal | measured | |", "|---|---|---|---|---|")
    rows: dict[Kind, list[str]] = {Kind.NOW: [], Kind.LATER: []}
    for benchmark in benchmarks:
        for case in benchmark.cases:
            samples = _samples(results["benchmarks"][benchmark.name], case)
            for goal in case.goals if samples else ():
                verdict = judge(goal, samples)
                later = " (a later step's goal)" if goal.kind is Kind.LATER else ""
                rows[goal.kind].append(
                    f"| {goal.name} | {case.name} | {goal.text}{later} | {_measured(verdict)} | {_outcome(verdict)} |"
                )
    yield from rows[Kind.NOW]
    yield from rows[Kind.LATER]
    yield ""


def _measured(verdict: Verdict) -> str:
    value, unit = verdict.value, _unit(verdict.goal)
    return f"**{_number(value.median)}{unit}** [{_number(value.least)}–{_number(value.most)}]"


def _unit(goal: Goal) -> str:
    if goal.reference is not None:
        return "×"
    return {"ms": " ms", "mib": " MiB", "us": " µs", "cpu_us": " µs"}.get(goal.figure, "")


def _outcome(verdict: Verdict) -> str:
    percent = abs(round(100 * verdict.by))
    if verdict.met:
        return f"met, {percent} % to spare"
    direction = "below" if verdict.goal.bound is Bound.AT_LEAST else "above"
    return f"**not met**, {percent} % {direction}"


def _benchmark(benchmark: Benchmark, entry: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {benchmark.title}"
    yield ""
    if benchmark.notes:
        yield from (benchmark.notes, "")
    for case in benchmark.cases:
        samples = _samples(entry, case)
        if samples:
            yield from _case(case, samples)
        for profile in entry["profiles"]:
            if profile["case"] == case.name:
                yield from _profile(case, profile)


def _case(case: Case, samples: Sequence[Sample]) -> Iterator[str]:
    """Medians and spread of each variant, and its ratio to the first one."""
    first = case.variants[0]
    main = next(iter(case.figures))
    yield from (f"### {case.name}", "")
    yield f"| variant | {' | '.join(case.figures.values())} | × {first.title} | messages a round |"
    yield "|---|" + "---|" * (len(case.figures) + 2)
    base = per_round(samples, first.name, main)
    for variant in case.variants:
        cells = [_figure(samples, variant.name, figure) for figure in case.figures]
        own = per_round(samples, variant.name, main)
        ratio = summarize(own[number] / base[number] for number in own)
        count = next(sample.count for sample in samples if sample.variant == variant.name)
        yield (
            f"| {variant.title} | {' | '.join(cells)} | {_number(ratio.median)} "
            f"[{_number(ratio.least)}–{_number(ratio.most)}] | {_number(count)} |"
        )
    yield ""


def _figure(samples: Sequence[Sample], variant: str, figure: str) -> str:
    values = summarize(per_round(samples, variant, figure).values())
    return f"{_number(values.median)} [{_number(values.least)}–{_number(values.most)}]"


def _profile(case: Case, profile: Mapping[str, Any]) -> Iterator[str]:
    title = next(variant.title for variant in case.variants if variant.name == profile["variant"])
    yield from (f"#### Where the time goes: {title}", "")
    if "problem" in profile:
        yield from (f"Not profiled: {profile['problem']}.", "")
        return
    yield from (f"{profile['what']}.", "")
    yield from ("| function or module, itself | % | part of the program | % |", "|---|---|---|---|")
    own, parts = profile["own"], profile["parts"]
    for place in range(max(len(own), len(parts))):
        left = f"`{own[place]['name']}` | {own[place]['percent']}" if place < len(own) else " | "
        right = f"{parts[place]['name']} | {parts[place]['percent']}" if place < len(parts) else " | "
        yield f"| {left} | {right} |"
    yield ""


def _samples(entry: Mapping[str, Any], case: Case) -> list[Sample]:
    return [Sample(**sample) for sample in entry["samples"] if sample["case"] == case.name]


def _number(value: float) -> str:
    """Three significant digits; thousands apart."""
    if value >= 1000:
        digits = len(str(int(value))) - 3
        return f"{round(value, -digits):,.0f}".replace(",", " ")
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
