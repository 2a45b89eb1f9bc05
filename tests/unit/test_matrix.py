"""The matrix says what the records say: every cell with its evidence or its reason, nothing hidden, nothing edited."""

from dataclasses import replace
from typing import Any

import pytest

from mqlayer.testing.catalogue import CATALOGUE, SEEDS, Criterion, by_id
from mqlayer.testing.matrix import check_drift, merge, render
from mqlayer.testing.records import Column, Document, Mutation, Record, Verdict

PASS, FAIL, UNSUPPORTED = Verdict.PASS, Verdict.FAIL, Verdict.UNSUPPORTED
NOT_RUN, UNKNOWN, ERROR, NOT_APPLICABLE = Verdict.NOT_RUN, Verdict.UNKNOWN, Verdict.ERROR, Verdict.NOT_APPLICABLE


def record(criterion: str, verdict: Verdict = PASS, backend: str = "sqlite", **fields: Any) -> Record:
    reason = "" if verdict is PASS else f"why {criterion} is {verdict.value}"
    given = {"reason": reason, "started": "2026-11-23T22:01:02Z", "server": "SQLite 3.40.1", "mqlayer": "0.1.0+gabc"}
    return Record(backend=backend, criterion=criterion, verdict=verdict, **(given | fields))


def document(*records: Record, **fields: Any) -> Document:
    return Document(records=records, **fields)


def row(text: str, head: str) -> list[str]:
    """The cells of the only row that begins so."""
    found = [line for line in text.splitlines() if line.startswith(f"| {head}")]
    assert len(found) == 1, found
    return [cell.strip() for cell in found[0].strip("|").split(" | ")][1:]


def footnote(text: str, cell: str) -> str:
    """The text of the last footnote of a cell."""
    mark = cell[cell.rindex("[^") : cell.rindex("]") + 1]
    return next(line for line in text.splitlines() if line.startswith(f"{mark}: ")).removeprefix(f"{mark}: ")


class TestCells:
    @pytest.mark.parametrize(
        ("verdict", "words"),
        [
            (PASS, "✔ pass"),
            (FAIL, "✘ fail"),
            (UNSUPPORTED, "— unsupported"),
            (NOT_RUN, "○ not run"),
            (UNKNOWN, "? unknown"),
            (ERROR, "! error"),
            (NOT_APPLICABLE, "— n/a"),
        ],
    )
    def test_every_verdict_has_a_symbol_and_a_word(self, verdict: Verdict, words: str) -> None:
        text = render(document(record("C23", verdict)))
        cell = row(text, "C23")[0]
        assert cell.split("[")[0] == words
        if verdict is not PASS:
            assert footnote(text, cell) == f"why C23 is {verdict.value}"

    def test_a_pass_says_how_much_it_rests_on(self) -> None:
        kills = {"kills": 20, "actor_kills": 1}
        f10 = record("F10", evidence=kills, counts={"confirmed": 19874, "attempted": 20000, "lost": 0})
        text = render(document(f10, record("C01", counts={"checked": 100})))
        assert row(text, "F10") == ["✔ pass, 20 kills, 1 actor kill, 0/19,874 lost"]
        assert row(text, "C01") == ["✔ pass, n=100"]

    def test_a_failure_says_what_was_lost_and_names_some(self) -> None:
        lost = record("F4a", FAIL, counts={"confirmed": 50, "lost": 3}, samples={"lost": [f"p:{n}" for n in range(9)]})
        text = render(document(lost))
        cell = row(text, "F4a")[0]
        assert cell.startswith("✘ fail 3/50 lost[^")
        assert footnote(text, cell) == "why F4a is fail (lost: p:0, p:1, p:2, p:3, p:4)"

    def test_a_missing_record_is_not_run(self) -> None:
        text = render(document(record("C01")))
        cell = row(text, "C02")[0]
        assert cell.startswith("○ not run[^")
        assert footnote(text, cell) == "no record of it"

    def test_equal_reasons_share_a_footnote(self) -> None:
        text = render(document(record("C23", UNSUPPORTED, reason="no"), record("C24", UNSUPPORTED, reason="no")))
        assert row(text, "C23") == row(text, "C24")

    def test_a_reason_cannot_break_the_table(self) -> None:
        text = render(document(record("C23", FAIL, reason="a | b\nc")))
        assert footnote(text, row(text, "C23")[0]) == "a \\| b c"

    def test_every_row_has_every_column(self) -> None:
        text = render(document(record("C01"), record("C01", backend="memory")))
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert {line.count(" | ") for line in lines if not line.startswith("|---")} == {2}


class TestColumns:
    def test_a_column_is_a_configuration_with_its_versions(self) -> None:
        column = Column(backend="sqlite", title="sqlite 3.40.1", configuration="synchronous=FULL")
        text = render(document(record("C01", client="sqlite3"), columns=(column,)))
        assert row(text, "criterion") == ["sqlite 3.40.1 (synchronous=FULL)"]
        assert row(text, "versions") == ["SQLite 3.40.1<br>sqlite3<br>mqlayer 0.1.0+gabc"]

    def test_a_backend_without_a_column_stands_under_its_name(self) -> None:
        assert row(render(document(record("C01"))), "criterion") == ["sqlite"]

    def test_the_totals_show_what_was_left_out(self) -> None:
        total = row(render(document(record("C01"), record("C02", FAIL), record("C23", UNSUPPORTED))), "**total**")[0]
        shown = sum(not criterion.later for criterion in CATALOGUE)
        assert total == f"1 pass, 1 fail, 1 unsupported, {shown - 3} not-run, 0 unknown"

    @pytest.mark.parametrize(
        ("old", "date"),
        [
            ({"started": "2026-10-01T00:00:00Z"}, " (2026-10-01)"),
            ({"started": "2026-11-01T00:00:00Z"}, ""),
            ({"started": "2026-11-20T00:00:00Z", "mqlayer": "0.0.9"}, " (2026-11-20, mqlayer 0.0.9)"),
            ({"started": "2026-11-20T00:00:00Z", "mqlayer": "0.1.7"}, ""),
            ({"started": "2026-11-20T00:00:00Z", "server": "SQLite 3.39.5"}, " (2026-11-20, SQLite 3.39.5)"),
        ],
    )
    def test_a_stale_cell_shows_its_date(self, old: dict[str, str], date: str) -> None:
        text = render(document(record("C01"), record("C02", **old)))
        assert row(text, "C01") == ["✔ pass"]
        assert row(text, "C02") == ["✔ pass" + date]


class TestSeeds:
    SURVIVE = ("F1a", "F1b", "F1c", "F1d", "F4a", "F4b", "F4c", "F8", "F10")

    def test_the_three_questions_come_first(self) -> None:
        lines = [line for line in render(document(record("C01"))).splitlines() if line.startswith("|")]
        assert [line[2:8] for line in lines[3:7]] == ["**(1) ", "**(2) ", "**(3) ", "duplic"]

    def test_one_cell_for_many_criteria_adds_them_up(self) -> None:
        records = [record(id, evidence={"kills": 2}, counts={"confirmed": 1000, "lost": 0}) for id in self.SURVIVE]
        assert row(render(document(*records)), "**(1)") == ["✔ pass, 18 kills, 0/9,000 lost"]

    def test_the_worst_shows_and_says_which(self) -> None:
        records = [record(id) for id in self.SURVIVE if id != "F4a"]
        records.append(record("F4a", FAIL, counts={"confirmed": 50, "lost": 3}))
        text = render(document(*records))
        cell = row(text, "**(1)")[0]
        assert cell.startswith("✘ fail: F4a 3/50 lost[^")
        assert cell.endswith("]; ✔ pass")
        assert footnote(text, cell) == "why F4a is fail"

    def test_a_merged_pass_names_what_it_leaves_out(self) -> None:
        records = [record(id) for id in self.SURVIVE if id != "F8"]
        text = render(document(*records, record("F8", NOT_APPLICABLE)))
        assert row(text, "**(1)")[0].startswith("✔ pass; — n/a: F8[^")

    def test_a_missing_part_is_no_pass(self) -> None:
        text = render(document(*[record(id) for id in self.SURVIVE if id != "F10"]))
        assert row(text, "**(1)")[0].startswith("○ not run: F10[^")

    def test_persistence_is_told_apart_by_how_it_ended(self) -> None:
        text = render(document(record("F3a"), record("F3b", FAIL)))
        assert "**(3) messages persist**: graceful F3a / SIGKILL F3b |" in text
        assert row(text, "**(3)")[0].startswith("✔ pass / ✘ fail[^")

    def test_what_comes_later_is_absent_and_said_to_be(self) -> None:
        text = render(document(record("C01")))
        assert "| F3c" not in text
        assert "Not yet part of the suite, so not shown: F3c (messages outlive a power loss), F13" in text
        assert "SIGKILL F3b / power loss F3c" in render(document(record("F3c")))

    def test_all_seed_criteria_are_in_the_catalogue(self) -> None:
        ids = by_id(CATALOGUE)
        assert all(id in ids for seed in SEEDS for part in seed.parts.values() for id in part)


class TestDuplicates:
    def duplicates(self, deliveries: int, extra: int, unexplained: int = 0) -> dict[str, Any]:
        return {
            "fault_free": {"deliveries": 10**6, "extra": 10**6},
            "under_faults": {"deliveries": deliveries, "extra": extra},
            "by_cause": {"unexplained": unexplained},
        }

    def test_the_failsafe_runs_are_added_up(self) -> None:
        records = (
            record("F10", duplicates=self.duplicates(19000, 24)),
            record("F1c", duplicates=self.duplicates(1000, 2, 1)),
            record("C10", duplicates=self.duplicates(1000, 1000)),
        )
        assert row(render(document(*records)), "duplicates") == ["1.3 (n=20,000, 1 unexplained)"]

    def test_none_seen_is_a_bound(self) -> None:
        text = render(document(record("F10", duplicates=self.duplicates(20000, 0))))
        assert row(text, "duplicates") == ["< 0.15 at 95 % (n=20,000, 0 unexplained)"]

    def test_nothing_delivered_under_faults_is_no_rate(self) -> None:
        assert row(render(document(record("C01"))), "duplicates") == ["—"]


class TestAround:
    def test_the_header_says_how_it_was_made(self) -> None:
        column = Column(
            backend="sqlite", title="sqlite", command="mqlayer matrix --profile full", commit="abc", machine="2 cores"
        )
        first = record("C01", seed=7, profile="full")
        second = record("C02", seed=8, profile="quick", started="2026-11-24T00:00:00Z")
        text = render(document(first, second, columns=(column,)))
        for fact in (
            "Generated by `mqlayer matrix --profile full` from `compat_matrix.json`.",
            "- Commit: abc",
            "- Run: 2026-11-23 to 2026-11-24",
            "- Profile: full, quick",
            "- Seeds: 7, 8",
            "- Machine: 2 cores",
        ):
            assert fact in text

    def test_many_seeds_are_cut_short(self) -> None:
        records = [record(f"C{n:02}", seed=n) for n in range(1, 12)]
        assert "- Seeds: 1, 2, 3, 4, 5, 6, 7, 8 and 3 more" in render(document(*records))

    def test_the_mutation_score_names_who_escaped_and_who_was_not_run(self) -> None:
        caught = Mutation(
            saboteur="S1",
            title="AckEarly",
            backend="memory",
            started="2026-11-23T22:01:02Z",
            expected=("C15",),
            flagged_by=("C15",),
        )
        escaped = replace(caught, saboteur="S2", title="Volatile", flagged_by=())
        rude = replace(caught, saboteur="S3", title="FlushOnExit", wrongly_red=("C01",))
        idle = replace(caught, saboteur="S4", title="NoFsync", not_run="F3c comes later")
        text = render(document(record("C01"), sabotage=(caught, escaped, rude, idle)))
        assert "Mutation score: 1/3 saboteurs caught (33 %)." in text
        assert "- ✘ S2 Volatile over memory escaped C15." in text
        assert "- ✘ S3 FlushOnExit over memory also turned C01 red, which have nothing to do with it." in text
        assert "- ○ S4 NoFsync: not run: F3c comes later" in text
        assert "S1" not in text

    def test_no_saboteur_at_all_is_said(self) -> None:
        assert "Mutation score: not run." in render(document(record("C01")))

    def test_a_criterion_that_nobody_knows_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="C99"):
            render(document(record("C99")))

    def test_a_third_party_may_bring_its_own_catalogue(self) -> None:
        text = render(document(record("X1")), [Criterion("X1", "mine", "own")])
        assert row(text, "X1 mine") == ["✔ pass"]


class TestCatalogue:
    def test_every_criterion_is_there_once(self) -> None:
        ids = list(by_id(CATALOGUE))
        assert sorted(id for id in ids if id.startswith("C")) == [f"C{n:02}" for n in range(1, 45)]
        wanted = (
            "F1a F1b F1c F1d F2 F2b F3a F3b F3c F4a F4b F4c F5 F6 F7 F8 F9 F10 F11 F12a F12b F12c F12d F13 F14 F14b F15"
        )
        assert [id for id in ids if id.startswith("F")] == [*wanted.split(), "F16", "F17"]

    def test_what_comes_later_is_marked(self) -> None:
        assert [c.id for c in CATALOGUE if c.later] == ["F3c", "F13", "F14", "F14b", "F15", "F16", "F17"]

    def test_two_of_one_id_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="C01 is in the catalogue twice"):
            by_id([Criterion("C01", "a", "b"), Criterion("C01", "c", "d")])


class TestMerge:
    def test_a_partial_run_replaces_its_own_cells_alone(self) -> None:
        old = document(
            record("C01"), record("C02"), record("C01", backend="memory"), columns=(Column(backend="a", title="a"),)
        )
        new = document(record("C02", FAIL), record("C03"), columns=(Column(backend="b", title="b"),))
        merged = merge(old, new)
        assert [(r.backend, r.criterion, r.verdict) for r in merged.records] == [
            ("sqlite", "C01", PASS),
            ("sqlite", "C02", FAIL),
            ("memory", "C01", PASS),
            ("sqlite", "C03", PASS),
        ]
        assert [column.backend for column in merged.columns] == ["a", "b"]

    def test_each_record_keeps_its_own_date_and_versions(self) -> None:
        old = document(record("C01", started="2026-01-01T00:00:00Z", mqlayer="0.0.1"))
        assert merge(old, document(record("C02"))).records[0] == old.records[0]

    def test_saboteurs_are_replaced_by_name_and_backend(self) -> None:
        one = Mutation(saboteur="S1", title="AckEarly", backend="memory", started="2026-11-23T22:01:02Z")
        again, elsewhere = replace(one, flagged_by=("C15",)), replace(one, backend="sqlite")
        merged = merge(document(sabotage=(one,)), document(sabotage=(again, elsewhere)))
        assert merged.sabotage == (again, elsewhere)


class TestDrift:
    COMMITTED = document(record("C01"), record("C02"), record("C23", UNSUPPORTED), record("C01", backend="memory"))

    def drift(self, new: Document | None = None) -> list[str]:
        return check_drift(render(self.COMMITTED), self.COMMITTED.to_json(), new)

    def test_what_was_generated_and_stays_true_has_none(self) -> None:
        assert self.drift() == []
        assert self.drift(self.COMMITTED) == []

    def test_an_edited_text_is_found(self) -> None:
        edited = render(self.COMMITTED).replace("— unsupported[", "✔ pass[", 1)
        findings = check_drift(edited, self.COMMITTED.to_json())
        assert len(findings) == 1
        assert "line" in findings[0]

    def test_a_missing_last_line_end_is_found(self) -> None:
        assert check_drift(render(self.COMMITTED)[:-1], self.COMMITTED.to_json()) != []

    def test_a_broken_file_is_a_finding(self) -> None:
        assert check_drift("", '{"schema": 1}') == ["compat_matrix.json: records: missing"]

    @pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict is not PASS])
    def test_a_lost_pass_is_found(self, verdict: Verdict) -> None:
        new = document(record("C01", verdict), record("C02"), record("C23", UNSUPPORTED))
        assert f"sqlite C01: was a pass, is {verdict.value}: why C01 is {verdict.value}" in self.drift(new)

    def test_a_pass_that_is_gone_is_found(self) -> None:
        new = document(record("C02"), record("C23", UNSUPPORTED))
        assert self.drift(new) == [
            "sqlite C01: was a pass, is gone",
            "sqlite: 2 criteria executed, 3 before",
        ]

    def test_fewer_executed_criteria_are_found_without_a_lost_pass(self) -> None:
        new = document(record("C01"), record("C02"), record("C23", NOT_RUN))
        assert self.drift(new) == ["sqlite: 2 criteria executed, 3 before"]

    def test_a_column_that_was_not_run_again_is_not_compared(self) -> None:
        assert self.drift(document(record("C01", backend="memory"))) == []

    def test_more_is_no_drift(self) -> None:
        assert self.drift(merge(self.COMMITTED, document(record("C03"), record("C23")))) == []
