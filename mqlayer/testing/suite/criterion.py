"""How a criterion is written.

    @criterion("C01")
    def messages_make_the_round_trip(stage: Stage) -> Outcome:
        queue = stage.queue()
        mq = stage.connect()
        ...
        assert got == sent, f"{len(sent - got)} of {len(sent)} messages never came"
        return Outcome(counts={"checked": len(sent)})

It is a plain function in a module that ``suite.MODULES`` lists, named like the promise that it proves. Its id is in
``catalogue.py``, with the title and what it requires; nothing of that is said again. What it ends with:

==================================  ============================================================================
returning                           pass. An ``Outcome`` adds what the verdict rests on to the record
``AssertionError``                  fail, and so is an ``MQError`` that nobody expected: mqlayer's defect.
                                    :func:`conclude` turns a checker's report into the right one of these
``FloorUnmet``                      unknown: too little happened to judge. Never a pass
``NotRun``                          not-run: a tool or the platform is missing
``NotApplicable``                   n/a: there is nothing here that this could happen to
``absence.prove_absent``            the only way to ``unsupported``: it proves that the call is refused
any other exception                 error: the test itself is broken
==================================  ============================================================================

Whether it runs at all, and whether failing is what it should do, is the runner's affair, by the backend's claims.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mqlayer.testing.catalogue import CATALOGUE, Criterion, by_id
from mqlayer.testing.records import Verdict

if TYPE_CHECKING:
    from mqlayer.testing.checker import Report
    from mqlayer.testing.stage import Stage

__all__ = [
    "Check",
    "FloorUnmet",
    "NotApplicable",
    "NotRun",
    "Outcome",
    "PromiseBroken",
    "ProvedAbsent",
    "conclude",
    "criterion",
]

LIMIT = 60.0


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
    """What is needed is absent, and that was proved. Only ``absence`` raises it."""


@dataclass(frozen=True, slots=True)
class Check:
    """A criterion of the catalogue with the function that decides it.

    Attributes:
        limit: Seconds after which it is given up as hanging; times the machine's multiplier.
    """

    criterion: Criterion
    function: "Callable[[Stage], Outcome | None]"
    limit: float

    @property
    def id(self) -> str:
        return self.criterion.id


def criterion(id: str, *, limit: float = LIMIT) -> "Callable[[Callable[[Stage], Outcome | None]], Check]":
    """Make a function the check of the catalogue's criterion *id*."""
    entry = by_id(CATALOGUE).get(id)
    if entry is None:
        raise ValueError(f"no criterion {id} in the catalogue")

    def decorate(function: "Callable[[Stage], Outcome | None]") -> Check:
        return Check(entry, function, limit)

    return decorate


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
