"""What a benchmark is, and what its figures say. Pure: nothing here starts a process, opens a file or reads a clock.

A *case* has several *variants*: the peers and us doing the same job. A run of one variant in one round is a *sample*. A
*goal* compares one figure of one variant with the same figure of another, round by round, or with a fixed number.
"""

import enum
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Benchmark",
    "Bound",
    "Case",
    "Goal",
    "Job",
    "Kind",
    "Sample",
    "Summary",
    "Variant",
    "Verdict",
    "WrongCountError",
    "WrongResultError",
    "check_count",
    "judge",
    "order",
    "per_round",
    "scaled",
    "summarize",
]

COUNT_LEAST = 200  #: messages of the shortest run


class WrongResultError(Exception):
    """A variant did not do what it was timed for: its figures are worth nothing, and the whole run ends."""


class WrongCountError(WrongResultError):
    """A store holds, or a variant handled, another number of messages than it should."""


class Bound(enum.Enum):
    AT_LEAST = "≥"
    AT_MOST = "≤"


class Kind(enum.Enum):
    """Whether anybody expects a goal to be met by now."""

    NOW = "now"
    LATER = "later"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """
    Attributes:
        name: The key in results. title: What a reader is told: the library and how it was used.
        run: ``module:function`` under ``benchmarks.variants``.
        count: Messages of a full run. ``exact``: never scaled down.
        settings: What this variant is told beyond the case's settings.
    """

    name: str
    title: str
    run: str
    count: int
    exact: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """
    Attributes:
        figure: The key in ``Sample.figures``.
        reference: The variant to divide by, in the same round; ``None``: *bound* is an absolute number.
        subtract: A variant whose figure is taken off both first, such as the bare interpreter.
    """

    name: str
    text: str
    subject: str
    figure: str
    bound: Bound
    limit: float
    reference: str | None = None
    subtract: str | None = None
    kind: Kind = Kind.NOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """
    Attributes:
        settings: What each variant is told: body size, prefetch, …
        place: Where it happens: ``rabbitmq``, ``sqlite`` or ``process``.
        figures: figure → its heading; the first is the one that a reader looks for.
    """

    name: str
    variants: Sequence[Variant]
    goals: Sequence[Goal] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    place: str = "process"
    figures: Mapping[str, str] = field(default_factory=lambda: {"rate": "msg/s", "cpu_us": "client CPU µs/msg"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """
    Attributes:
        notes: What a reader has to know in order not to be misled.
    """

    name: str
    title: str
    cases: Sequence[Case]
    notes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a variant is asked to do, and where: a URL, a queue, a folder."""

    count: int
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run of one variant. *count* was checked where the messages lie before the sample was made."""

    benchmark: str
    case: str
    variant: str
    round: int
    count: int
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    median: float
    least: float
    most: float
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """
    Attributes:
        value: The median; of ratios where the goal has a reference.
        by: How far past the bound it is, as a fraction of the bound; negative: not met.
    """

    goal: Goal
    value: Summary
    met: bool
    by: float


def check_count(what: str, found: int, wanted: int) -> None:
    """
    Raises:
        WrongCountError: *found* is not *wanted*, too many as well as too few.
    """
    if found != wanted:
        raise WrongCountError(f"{what}: {found} messages, not {wanted}")


def summarize(values: Iterable[float], *, least: float = 0.0) -> Summary:
    """Median and spread.

    Raises:
        WrongResultError: there is no value, or one is not a finite number above *least*.
    """
    found = list(values)
    if not found or not all(least < value < float("inf") for value in found):
        raise WrongResultError(f"not a set of measured values: {found}")
    return Summary(median=statistics.median(found), least=min(found), most=max(found), rounds=len(found))


def per_round(samples: Iterable[Sample], variant: str, figure: str) -> dict[int, float]:
    """Round → the variant's figure.

    Raises:
        WrongResultError: a round has two, or the variant was never run.
    """
    found: dict[int, float] = {}
    for sample in samples:
        if sample.variant == variant:
            if sample.round in found:
                raise WrongResultError(f"{variant} has two results in round {sample.round}")
            found[sample.round] = sample.figures[figure]
    if not found:
        raise WrongResultError(f"{variant} was never run")
    return found


def judge(goal: Goal, samples: Sequence[Sample]) -> Verdict:
    """Whether a goal is met by the samples of its case: the median over the rounds, of ratios taken within each round."""
    subject = _without(goal, per_round(samples, goal.subject, goal.figure), samples)
    if goal.reference is None:
        values = list(subject.values())
    else:
        reference = _without(goal, per_round(samples, goal.reference, goal.figure), samples)
        if set(subject) != set(reference):
            raise WrongResultError(f"{goal.subject} and {goal.reference} were not run in the same rounds")
        summarize(reference.values())  # a ratio to nothing, or to less, says nothing
        values = [subject[number] / reference[number] for number in sorted(subject)]
    # What one variant takes more than another may be less than nothing in a round that a busy machine disturbed.
    value = summarize(values, least=float("-inf") if goal.subtract is not None else 0.0)
    ahead = value.median - goal.limit if goal.bound is Bound.AT_LEAST else goal.limit - value.median
    return Verdict(goal=goal, value=value, met=ahead >= 0, by=ahead / goal.limit)


def _without(goal: Goal, values: Mapping[int, float], samples: Sequence[Sample]) -> dict[int, float]:
    if goal.subtract is None:
        return dict(values)
    base = per_round(samples, goal.subtract, goal.figure)
    return {number: value - base[number] for number, value in values.items()}


def order(variants: Sequence[Variant], number: int) -> list[Variant]:
    """The variants of one round. Each round begins with the next one, so that none always follows the same other."""
    start = number % len(variants)
    return [*variants[start:], *variants[:start]]


def scaled(variant: Variant, divisor: int) -> int:
    """How many messages in a run that is *divisor* times shorter than the full one."""
    return variant.count if variant.exact else max(variant.count // divisor, min(variant.count, COUNT_LEAST))
