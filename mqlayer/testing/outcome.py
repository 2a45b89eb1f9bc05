"""What a criterion ends with; :mod:`mqlayer.testing.suite.criterion` says which of these means what."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mqlayer.testing.records import Verdict

if TYPE_CHECKING:
    from mqlayer.testing.checker import Report

__all__ = ["FloorUnmet", "NotApplicable", "NotRun", "Outcome", "PromiseBroken", "ProvedAbsent", "conclude"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a verdict rests on. All of it goes into the record; what JSON has no form for goes as its ``repr``.

    Attributes:
        counts: How much there was: ``confirmed``, ``lost``; ``checked`` where nothing is sent and counted.
        evidence: What shows that the thing that was to be survived did happen: kills, pids, exit statuses.
        duplicates: As the checker reports them.
        samples: Class → some ids of it.
    """

    counts: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    duplicates: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Any] = field(default_factory=dict)


class PromiseBroken(AssertionError):
    """The promise is not kept, and here is the evidence."""

    def __init__(self, reason: str, outcome: Outcome | None = None) -> None:
        super().__init__(reason)
        self.outcome = outcome or Outcome()


class FloorUnmet(Exception):
    """Too little happened for a pass to mean anything."""

    def __init__(self, reason: str, outcome: Outcome | None = None) -> None:
        super().__init__(reason)
        self.outcome = outcome or Outcome()


class NotRun(Exception):
    """It cannot be run here, for the reason given."""


class NotApplicable(Exception):
    """There is nothing here that this could happen to."""


class ProvedAbsent(Exception):
    """What is needed is absent, and that was proved: the call was refused, or the loss was seen."""


def conclude(report: "Report", **evidence: Any) -> Outcome:
    """The outcome of a checker's report; *evidence* is added to its own.

    Raises:
        PromiseBroken: it is a fail. FloorUnmet: it is unknown.
    """
    outcome = Outcome(
        counts=report.counts,
        evidence={**report.evidence, **evidence},
        duplicates=report.duplicates,
        samples=report.samples,
    )
    if report.verdict is Verdict.FAIL:
        raise PromiseBroken(report.reason, outcome)
    if report.verdict is not Verdict.PASS:
        raise FloorUnmet(report.reason, outcome)
    return outcome
