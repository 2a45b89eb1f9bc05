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

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqlayer.testing.catalogue import CATALOGUE, Criterion, by_id
from mqlayer.testing.outcome import (
    FloorUnmet,
    NotApplicable,
    NotRun,
    Outcome,
    PromiseBroken,
    ProvedAbsent,
    conclude,
)

if TYPE_CHECKING:
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
