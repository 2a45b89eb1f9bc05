"""``matrix``: which columns and criteria run, what is written, and when it fails. The suite itself is a few toys here."""

import json
import logging

import pytest

from mqlayer.cli import suite_run
from mqlayer.testing import harnesses, suite
from mqlayer.testing.catalogue import CATALOGUE, by_id
from mqlayer.testing.harness import BackendHarness, Claims
from mqlayer.testing.records import Document, Verdict
from mqlayer.testing.suite.criterion import Check, Outcome


class Toy(BackendHarness):
    """A column that can be run."""

    name = "toy"
    scope = "process"
    claims = Claims(graceful=True, sigkill=True, power_loss=None, queues=True)

    def url(self, datadir, port):
        return f"memory://{datadir.parent.name}-{datadir.name}"


class Absent(Toy):
    """One whose server is missing."""

    name = "absent"

    def available(self):
        return "Absent is not installed"


def keeps(stage):
    return Outcome(counts={"checked": 3})


def survives(stage):
    return Outcome(counts={"confirmed": 1000, "lost": 0}, evidence={"kills": 20})


def breaks(stage):
    raise AssertionError("3 of 50 are lost")


def warns(stage):
    logging.getLogger("mqlayer").warning("the connection is lost, on purpose")


@pytest.fixture
def given(monkeypatch):
    """Set the suite's criteria, as id → function; the columns are Toy and Absent."""
    monkeypatch.setattr(harnesses, "ALL", (Toy, Absent))
    monkeypatch.delenv("CI", raising=False)
    catalogue = by_id(CATALOGUE)

    def set_criteria(**functions):
        checks = [Check(catalogue[id], function, 30.0) for id, function in functions.items()]

        def select(ids=None):
            found = {check.id: check for check in checks}
            if ids and (unknown := set(ids) - found.keys()):
                raise ValueError(f"no criterion {', '.join(unknown)}")
            return [check for check in checks if not ids or check.id in ids]

        monkeypatch.setattr(suite, "select", select)

    return set_criteria


def test_a_green_run_writes_the_matrix_and_ends_with_a_table(mqlayer_command, given, tmp_path):
    given(C01=keeps, F10=survives)
    done = mqlayer_command("matrix", "--output", str(tmp_path), "--seed", "7")
    assert done.exit_code == 0, done.stderr
    assert "left out absent: Absent is not installed" in done.stderr
    assert "toy F10" in done.stderr
    assert "20 kills, 0 of 1,000 lost" in done.stdout
    assert "Nothing is red (toy)" in done.stdout
    assert "\x1b" not in done.output
    document = Document.from_json((tmp_path / "compat_matrix.json").read_text())
    assert [(record.criterion, record.verdict, record.seed) for record in document.records] == [
        ("C01", Verdict.PASS, 7),
        ("F10", Verdict.PASS, 7),
    ]
    assert document.columns[0].command == "mqlayer matrix --profile quick"
    assert "✔ pass, 20 kills, 0/1,000 lost" in (tmp_path / "compat_matrix.md").read_text()


def test_a_red_criterion_is_named_with_its_reason_and_is_a_negative_result(mqlayer_command, given, tmp_path):
    given(C01=keeps, C22=breaks)
    done = mqlayer_command("matrix", "--output", str(tmp_path))
    assert done.exit_code == 1
    assert "toy C22 (delay): fail: 3 of 50 are lost" in done.stdout
    assert "1 of 2 results are red" in done.stdout


def test_one_criterion_run_again_replaces_only_its_own_record(mqlayer_command, given, tmp_path):
    given(C01=keeps, C22=breaks)
    mqlayer_command("matrix", "--output", str(tmp_path), "--seed", "1")
    given(C01=keeps, C22=keeps)
    done = mqlayer_command("matrix", "--output", str(tmp_path), "--criterion", "C22", "--seed", "2")
    assert done.exit_code == 0
    document = Document.from_json((tmp_path / "compat_matrix.json").read_text())
    assert {record.criterion: (record.verdict, record.seed) for record in document.records} == {
        "C01": (Verdict.PASS, 1),
        "C22": (Verdict.PASS, 2),
    }


def test_json_is_the_document_of_this_run(mqlayer_command, given, tmp_path):
    given(C01=keeps)
    done = mqlayer_command("matrix", "--output", str(tmp_path), "--json")
    assert [record["criterion"] for record in json.loads(done.stdout)["records"]] == ["C01"]


def test_check_is_green_when_nothing_has_become_worse_and_writes_nothing(mqlayer_command, given, tmp_path):
    given(C01=keeps, C22=breaks)
    mqlayer_command("matrix", "--output", str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    given(C01=keeps, C22=keeps)
    done = mqlayer_command("matrix", "--output", str(tmp_path), "--check")
    assert done.exit_code == 0, done.output
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_check_fails_on_a_lost_pass(mqlayer_command, given, tmp_path):
    given(C01=keeps)
    mqlayer_command("matrix", "--output", str(tmp_path))
    given(C01=breaks)
    done = mqlayer_command("matrix", "--output", str(tmp_path), "--check")
    assert done.exit_code == 1
    assert "toy C01: was a pass, is fail: 3 of 50 are lost" in done.stdout


def test_check_fails_on_a_matrix_that_was_edited(mqlayer_command, given, tmp_path):
    given(C01=keeps)
    mqlayer_command("matrix", "--output", str(tmp_path))
    text = tmp_path / "compat_matrix.md"
    text.write_text(text.read_text().replace("✔ pass", "✔ passed"))
    done = mqlayer_command("matrix", "--output", str(tmp_path), "--check")
    assert done.exit_code == 1
    assert "is not what compat_matrix.json gives" in done.stdout


def test_check_fails_on_fewer_criteria(mqlayer_command, given, tmp_path):
    given(C01=keeps, C22=keeps)
    mqlayer_command("matrix", "--output", str(tmp_path))
    given(C01=keeps)
    done = mqlayer_command("matrix", "--output", str(tmp_path), "--check")
    assert done.exit_code == 1
    assert "toy C22: was a pass, is gone" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "tyo"], "did you mean 'toy'?"),
        (["--backend", "absent"], "Absent is not installed"),
        (["--criterion", "C99"], "no criterion C99"),
        (["--check"], "to compare with"),
        (["--profile", "huge"], "huge"),
    ],
)
def test_a_users_mistake_runs_nothing(mqlayer_command, given, tmp_path, arguments, said):
    given(C01=breaks)
    done = mqlayer_command("matrix", "--output", str(tmp_path / "new"), *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_matrix_that_cannot_be_read_is_no_traceback(mqlayer_command, given, tmp_path):
    given(C01=keeps)
    (tmp_path / "compat_matrix.json").write_text("{")
    done = mqlayer_command("matrix", "--output", str(tmp_path))
    assert done.exit_code == 2
    assert "compat_matrix.json" in done.stderr


def test_in_ci_a_missing_server_is_an_error(mqlayer_command, given, tmp_path, monkeypatch):
    given(C01=keeps)
    monkeypatch.setenv("CI", "true")
    done = mqlayer_command("matrix", "--output", str(tmp_path))
    assert done.exit_code == 2
    assert "absent cannot be run here" in done.stderr


def test_log_lines_are_held_back_while_it_runs_and_only_then(mqlayer_command, given, tmp_path):
    given(C01=warns)
    assert "on purpose" not in mqlayer_command("matrix", "--output", str(tmp_path)).stderr
    assert "on purpose" in mqlayer_command("--verbose", "matrix", "--output", str(tmp_path)).stderr


def test_the_live_table_counts_verdicts_and_names_what_runs(given):
    given(C01=keeps)
    from rich.console import Console

    table = suite_run._Table(["toy"], 2)
    table.begins("toy", suite.select()[0])
    console = Console(width=120, no_color=True)
    with console.capture() as captured:
        console.print(table.picture())
    assert "toy C01 round trip" in captured.get()
    assert "0/2" in captured.get()
