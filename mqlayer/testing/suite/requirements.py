"""What a criterion demands of a backend, given what the backend claims; and what the outcome then means.

Two plain functions. :func:`demand` comes before a run, :func:`verdict` after it; nobody else decides either.
"""

import re
from dataclasses import dataclass, fields
from enum import Enum

from mqlayer.driver import Capabilities, Support
from mqlayer.testing.harness import Claims, Deviation, Reach
from mqlayer.testing.records import Verdict

__all__ = ["REFUSABLE", "Demand", "Kind", "demand", "verdict"]

REFUSABLE = frozenset({"delay", "priority", "ttl", "group_id", "dedup_id", "topics", "peek", "purge", "stats"})
"""Capabilities whose absence is a refused call; that of the others shows in what happens."""

_CLAIMS = frozenset(each.name for each in fields(Claims))
_FIELDS = frozenset(each.name for each in fields(Capabilities))


class Kind(Enum):
    """What to do with a criterion."""

    REQUIRED = "required"  #: claimed: it has to pass
    REFUSED = "refused"  #: claimed absent: the call has to be refused; the criterion itself is not run
    LOST = "lost"  #: claimed absent: the criterion is run, and has to fail
    DEVIATES = "deviates"  #: the server itself is known to break it: the criterion is run, and has to fail in that way
    OPEN = "open"  #: not claimed: run and reported, never red
    NOT_APPLICABLE = "n/a"  #: there is no server that could fail
    NOT_RUN = "not run"  #: there is one, out of our reach


@dataclass(frozen=True, slots=True)
class Demand:
    """The kind, and which of the criterion's requirements made it so."""

    kind: Kind
    names: tuple[str, ...] = ()
    deviation: Deviation | None = None

    @property
    def executes(self) -> bool:
        """Whether there is anything to run."""
        return self.kind not in (Kind.NOT_APPLICABLE, Kind.NOT_RUN)

    @property
    def gates(self) -> bool:
        """Whether a result that is no pass is red."""
        return self.kind is not Kind.OPEN


def demand(requires: str, capabilities: Capabilities, claims: Claims, reach: Reach) -> Demand:
    """What a criterion that *requires* these words demands.

    Raises:
        ValueError: a word is neither a capability nor a claim nor ``server``.
    """
    words = requires.split()
    failing = [word for word in words if word == "server" or word in _CLAIMS]
    if failing and reach is Reach.MANAGED:
        return Demand(Kind.NOT_RUN, tuple(failing))
    if "server" in words and reach is not Reach.SERVER:
        return Demand(Kind.NOT_APPLICABLE, ("server",))
    claimed = {word: _claim(word, capabilities, claims) for word in words if word != "server"}
    absent = tuple(word for word, claim in claimed.items() if claim is False)
    refused = tuple(word for word in absent if word in REFUSABLE)
    if refused:
        return Demand(Kind.REFUSED, refused)
    if absent:
        return Demand(Kind.LOST, absent)
    unclaimed = tuple(word for word, claim in claimed.items() if claim is None)
    return Demand(Kind.OPEN, unclaimed) if unclaimed else Demand(Kind.REQUIRED, tuple(words))


def _claim(word: str, capabilities: Capabilities, claims: Claims) -> bool | None:
    if word in _CLAIMS:
        claim: bool | None = getattr(claims, word)
        return claim
    if word not in _FIELDS:
        raise ValueError(f"a criterion requires {word!r}, which is neither a capability nor a claim")
    value = getattr(capabilities, word)
    return value is not Support.UNSUPPORTED if isinstance(value, Support) else bool(value)


def verdict(demanded: Demand, seen: Verdict, reason: str) -> tuple[Verdict, str]:
    """What *seen*, the outcome of the run by itself, means under the demand. *reason* says why it was no pass.

    For ``REFUSED`` a pass of the proof of absence is what was seen.
    """
    names = ", ".join(demanded.names)
    if demanded.kind is Kind.NOT_APPLICABLE:
        return Verdict.NOT_APPLICABLE, "there is no server that could fail"
    if demanded.kind is Kind.NOT_RUN:
        return Verdict.NOT_RUN, f"the server is not ours to kill or cut off ({names})"
    if demanded.kind is Kind.REFUSED and seen is Verdict.PASS:
        return Verdict.UNSUPPORTED, f"no {names}: {reason or 'refused before anything left'}"
    if demanded.kind is Kind.LOST:
        if seen is Verdict.PASS:
            return Verdict.FAIL, f"unexpected pass: {names} is claimed absent, and it holds"
        if seen is Verdict.FAIL:
            return Verdict.UNSUPPORTED, f"no {names}, as claimed; seen: {reason}"
    if demanded.deviation is not None:
        behaviour, expected = demanded.deviation.behaviour, demanded.deviation.seen
        if seen is Verdict.PASS:
            return Verdict.FAIL, f"unexpected pass, although it is said: {behaviour}"
        if seen is Verdict.FAIL and re.search(expected, reason):
            return Verdict.UNSUPPORTED, f"{behaviour}; seen: {reason}"
    if demanded.kind is Kind.OPEN and seen is not Verdict.PASS:
        return seen, f"{names} is not claimed; seen: {reason}"
    return seen, reason
