"""Every saboteur is caught by the criteria named for it, and by no others."""

import pytest

from mqlayer.testing.catalogue import CATALOGUE
from mqlayer.testing.runner import in_ci
from mqlayer.testing.sabotage.mutation import run_saboteur
from mqlayer.testing.sabotage.table import NOT_YET, SABOTEURS, Saboteur


@pytest.mark.suite
@pytest.mark.parametrize("saboteur", SABOTEURS, ids=lambda each: f"{each.id}-{each.name}")
def test_each_saboteur_is_caught(saboteur: Saboteur) -> None:
    # Every criterion that is to flag it is run with the full matrix; losses take their time to be certain of.
    mutation = run_saboteur(saboteur, briefly=True)
    if mutation.not_run:
        if in_ci():
            pytest.fail(mutation.not_run)
        pytest.skip(mutation.not_run)
    assert mutation.flagged_by == saboteur.expected[:1], f"{saboteur.name} escaped: {mutation}"
    assert not mutation.wrongly_red, f"{saboteur.name} alarmed criteria that it does not touch: {mutation}"


def test_saboteurs_name_criteria_that_there_are() -> None:
    known = {each.id for each in CATALOGUE}
    for saboteur in SABOTEURS:
        assert saboteur.expected, f"nothing is to flag {saboteur.name}"
        assert known >= {*saboteur.expected, *saboteur.innocent}
        assert not set(saboteur.expected) & set(saboteur.innocent)


def test_every_saboteur_has_a_number_of_its_own() -> None:
    ids = [each.id for each in SABOTEURS]
    assert len(set(ids)) == len(ids)
    assert not set(ids) & set(NOT_YET)
