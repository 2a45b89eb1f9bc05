"""Runs the suite over saboteurs, and says which were caught."""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime

from mqlayer.testing.records import Mutation, Record, Verdict
from mqlayer.testing.runner import Column
from mqlayer.testing.sabotage.table import NOT_YET, SABOTEURS, Saboteur
from mqlayer.testing.stage import Profile
from mqlayer.testing.suite import select

__all__ = ["not_run", "run_saboteur", "run_saboteurs"]


def run_saboteur(
    saboteur: Saboteur, *, profile: Profile = Profile.QUICK, seed: int | None = None, briefly: bool = False
) -> Mutation:
    """Run the criteria that must flag it and those that must not; *briefly*: the first of each."""
    if briefly:
        saboteur = replace(saboteur, expected=saboteur.expected[:1], innocent=saboteur.innocent[:1])
    harness = saboteur.harness()
    harness.register()
    started = _now()
    if (missing := harness.available()) is not None:
        return _mutation(saboteur, harness.name, started, not_run=missing)
    with Column(harness, profile=profile, seed=seed) as column:
        records = {check.id: column.run(check) for check in select((*saboteur.expected, *saboteur.innocent))}
    flagged = tuple(id for id in saboteur.expected if records[id].verdict is saboteur.verdict)
    alarmed = tuple(id for id in saboteur.innocent if _is_alarm(records[id]))
    return _mutation(saboteur, harness.name, started, flagged_by=flagged, wrongly_red=alarmed)


def run_saboteurs(
    saboteurs: Iterable[Saboteur] = SABOTEURS,
    *,
    profile: Profile = Profile.QUICK,
    progress: Callable[[Mutation, float], None] = lambda mutation, seconds: None,
) -> list[Mutation]:
    """Run them one after another. *progress* gets each with the seconds it took."""
    mutations = []
    for saboteur in saboteurs:
        begun = time.monotonic()
        mutation = run_saboteur(saboteur, profile=profile)
        mutations.append(mutation)
        progress(mutation, time.monotonic() - begun)
    return mutations


def not_run() -> list[Mutation]:
    """Those whose criterion comes later, for the footer of the matrix."""
    return [
        Mutation(saboteur=id, title=name, backend="none", started=_now(), not_run=why)
        for id, (name, why) in NOT_YET.items()
    ]


def _mutation(
    saboteur: Saboteur,
    backend: str,
    started: str,
    *,
    flagged_by: tuple[str, ...] = (),
    wrongly_red: tuple[str, ...] = (),
    not_run: str = "",
) -> Mutation:
    return Mutation(
        saboteur=saboteur.id,
        title=f"{saboteur.name} ({saboteur.does})",
        backend=backend,
        started=started,
        expected=saboteur.expected,
        flagged_by=flagged_by,
        wrongly_red=wrongly_red,
        not_run=not_run,
    )


def _is_alarm(record: Record) -> bool:
    return record.verdict in (Verdict.FAIL, Verdict.ERROR, Verdict.UNKNOWN)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
