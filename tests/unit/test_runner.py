"""The suite's own rules: what is demanded, what an outcome means, and that nothing passes without having happened."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mqlayer.driver import Support
from mqlayer.errors import ConnectionLostError
from mqlayer.testing.__main__ import main
from mqlayer.testing.catalogue import CATALOGUE, Criterion
from mqlayer.testing.harness import BackendHarness, Claims, Deviation, HarnessError, Reach, find_harness
from mqlayer.testing.harnesses import Memory
from mqlayer.testing.records import Document, Record, Verdict
from mqlayer.testing.runner import Column, is_red, run
from mqlayer.testing.stage import Profile
from mqlayer.testing.suite import absence, select
from mqlayer.testing.suite.criterion import Check, FloorUnmet, NotApplicable, NotRun, Outcome, PromiseBroken, criterion
from mqlayer.testing.suite.requirements import REFUSABLE, Demand, Kind, demand, verdict
from mqlayer.testing.urls import with_options

PASS, FAIL, UNSUPPORTED, NOT_RUN = Verdict.PASS, Verdict.FAIL, Verdict.UNSUPPORTED, Verdict.NOT_RUN
UNKNOWN, ERROR, NOT_APPLICABLE = Verdict.UNKNOWN, Verdict.ERROR, Verdict.NOT_APPLICABLE


class ClaimsToSurvive(Memory):
    """What is not true."""

    claims = Claims(graceful=True, sigkill=True, power_loss=None, queues=True)


class Absent(Memory):
    def available(self):
        return "there is no such broker here"


class LikeSQS(Memory):
    """Without priorities, peek and more."""

    def url(self, datadir: Path, port: int) -> str:
        return super().url(datadir, port) + "?profile=sqs"


class Unstartable(Memory):
    def start(self, datadir, port):
        raise HarnessError("no start")


@pytest.fixture
def column():
    with Column(Memory(), profile=Profile.QUICK, seed=1) as column:
        yield column


@pytest.fixture(autouse=True)
def _away_from_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("MQLAYER_TIMEOUT_MULTIPLIER", raising=False)


def check_of(function, *, requires: str = "", limit: float = 20.0) -> Check:
    return Check(Criterion("X1", "a test", "group", requires), function, limit)


def ends_with(error: BaseException):
    def function(stage):
        raise error

    return function


# ---- what is demanded ----


@pytest.fixture(scope="module")
def capabilities():
    with Column(Memory(), profile=Profile.QUICK) as column:
        return column.start().capabilities


ALL, NONE, UNSAID = Claims(graceful=True, sigkill=True, queues=True), Claims(sigkill=False), Claims()


@pytest.mark.parametrize(
    ("requires", "claims", "reach", "kind", "names"),
    [
        ("", ALL, Reach.SERVER, Kind.REQUIRED, ()),
        ("delay", ALL, Reach.FILES, Kind.REQUIRED, ("delay",)),
        ("priority", ALL, Reach.FILES, Kind.REFUSED, ("priority",)),
        ("ordered", ALL, Reach.FILES, Kind.LOST, ("ordered",)),
        ("dead_letter", ALL, Reach.FILES, Kind.LOST, ("dead_letter",)),
        ("sigkill", ALL, Reach.FILES, Kind.REQUIRED, ("sigkill",)),
        ("sigkill", NONE, Reach.MEMORY, Kind.LOST, ("sigkill",)),
        ("sigkill", UNSAID, Reach.SERVER, Kind.OPEN, ("sigkill",)),
        ("delay sigkill", UNSAID, Reach.SERVER, Kind.OPEN, ("sigkill",)),
        ("delay sigkill", NONE, Reach.SERVER, Kind.LOST, ("sigkill",)),
        ("priority sigkill", NONE, Reach.SERVER, Kind.REFUSED, ("priority",)),
        ("priority sigkill", UNSAID, Reach.SERVER, Kind.REFUSED, ("priority",)),
        ("server", ALL, Reach.SERVER, Kind.REQUIRED, ("server",)),
        ("server", ALL, Reach.FILES, Kind.NOT_APPLICABLE, ("server",)),
        ("sigkill server", NONE, Reach.MEMORY, Kind.NOT_APPLICABLE, ("server",)),
        ("sigkill", ALL, Reach.MANAGED, Kind.NOT_RUN, ("sigkill",)),
        ("server", ALL, Reach.MANAGED, Kind.NOT_RUN, ("server",)),
        ("delay", ALL, Reach.MANAGED, Kind.REQUIRED, ("delay",)),
    ],
)
def test_what_is_demanded_follows_from_the_claims(capabilities, requires, claims, reach, kind, names):
    lacking = replace(
        capabilities,
        priority=Support.UNSUPPORTED,
        dead_letter=Support.UNSUPPORTED,
        ordered=False,
        delay=Support.EMULATED,
    )
    assert demand(requires, lacking, claims, reach) == Demand(kind, names)


def test_an_unknown_requirement_is_refused(capabilities):
    with pytest.raises(ValueError, match="'delya'"):
        demand("delya", capabilities, ALL, Reach.SERVER)


def test_every_requirement_of_the_catalogue_is_known(capabilities):
    for each in CATALOGUE:
        demand(each.requires, capabilities, ALL, Reach.SERVER)


@pytest.mark.parametrize(
    ("kind", "seen", "means"),
    [
        *((Kind.REQUIRED, each, each) for each in Verdict),
        *((Kind.OPEN, each, each) for each in Verdict),
        (Kind.REFUSED, PASS, UNSUPPORTED),
        (Kind.REFUSED, FAIL, FAIL),
        (Kind.REFUSED, ERROR, ERROR),
        (Kind.LOST, PASS, FAIL),
        (Kind.LOST, FAIL, UNSUPPORTED),
        (Kind.LOST, UNKNOWN, UNKNOWN),
        (Kind.LOST, ERROR, ERROR),
        (Kind.LOST, NOT_RUN, NOT_RUN),
        (Kind.NOT_APPLICABLE, NOT_RUN, NOT_APPLICABLE),
        (Kind.NOT_RUN, NOT_RUN, NOT_RUN),
    ],
)
def test_what_an_outcome_means_follows_from_the_demand(kind, seen, means):
    found, reason = verdict(Demand(kind, ("sigkill",)), seen, "" if seen is PASS else "because")
    assert found is means
    assert (reason == "") == (means is PASS), "every verdict but a pass has a reason"


def test_only_what_is_not_claimed_never_gates():
    assert [kind for kind in Kind if not Demand(kind).gates] == [Kind.OPEN]


# ---- what a run ends with ----


@pytest.mark.parametrize(
    ("error", "expected", "reason"),
    [
        (AssertionError("3 of 5 lost"), FAIL, "3 of 5 lost"),
        (PromiseBroken("gone", Outcome(counts={"lost": 3})), FAIL, "gone"),
        (ConnectionLostError("cut"), FAIL, "unexpected ConnectionLostError: cut"),
        (FloorUnmet("no kill", Outcome(evidence={"kills": 0})), UNKNOWN, "no kill"),
        (NotRun("no gcc"), NOT_RUN, "no gcc"),
        (NotApplicable("no disk"), NOT_APPLICABLE, "no disk"),
        (HarnessError("broken"), ERROR, "broken"),
        (KeyError("typo"), ERROR, "KeyError: 'typo'"),
        (SystemExit(0), ERROR, "SystemExit"),
    ],
)
def test_how_a_function_ends_is_its_verdict(column, error, expected, reason):
    record = column.run(check_of(ends_with(error)))
    assert record.verdict is expected
    assert reason in record.reason
    assert record.seed == 1


def test_an_outcome_is_kept_with_its_verdict(column):
    record = column.run(check_of(lambda stage: Outcome(counts={"checked": 5}, evidence={"kills": 1})))
    assert (record.verdict, record.counts, record.evidence) == (PASS, {"checked": 5}, {"kills": 1})
    record = column.run(check_of(ends_with(PromiseBroken("gone", Outcome(counts={"lost": 3})))))
    assert record.counts == {"lost": 3}


def test_an_outcome_that_json_has_no_form_for_is_kept_as_text(column):
    record = column.run(check_of(lambda stage: Outcome(evidence={"payloads": [b"two", ("one", {3})]})))
    assert record.evidence == {"payloads": ["b'two'", ["one", "{3}"]]}
    assert Document(records=(record,)).to_json()


def test_a_hang_is_a_fail_that_says_where_and_the_run_goes_on(column, tmp_path):
    over = threading.Event()
    record = column.run(check_of(lambda stage: over.wait(60), limit=0.2), keep=tmp_path)
    assert record.verdict is FAIL
    assert "hangs" in record.reason
    assert "over.wait" in record.reason
    assert "Thread" in (tmp_path / "stacks.txt").read_text()
    over.set()
    assert column.run(check_of(lambda stage: None)).verdict is PASS


def test_an_error_in_a_thread_that_nobody_waits_for_is_no_pass(column):
    def function(stage):
        thread = threading.Thread(target=lambda: 1 / 0, name="forgotten")
        thread.start()
        thread.join()

    record = column.run(check_of(function))
    assert record.verdict is ERROR
    assert "forgotten" in record.reason
    assert "ZeroDivisionError" in record.reason


def test_chance_follows_from_the_seed_and_the_criterion():
    def draw(seed, id):
        drawn = []
        with Column(Memory(), profile=Profile.QUICK, seed=seed) as column:
            column.run(Check(Criterion(id, "t", "g"), lambda stage: drawn.append(stage.random.random()), 20.0))
        return drawn

    assert draw(7, "X1") == draw(7, "X1")
    assert draw(7, "X1") != draw(8, "X1")
    assert draw(7, "X1") != draw(7, "X2")


@pytest.mark.parametrize(("profile", "size"), [(Profile.QUICK, 10), (Profile.FULL, 20), (Profile.SOAK, 200)])
def test_sizes_come_from_the_profile(profile, size):
    seen = []
    with Column(Memory(), profile=profile) as column:
        column.run(check_of(lambda stage: seen.append(stage.size(quick=10, full=20))))
    assert seen == [size]


# ---- claims ----


def test_what_is_claimed_absent_and_holds_is_an_unexpected_pass(column):
    record = column.run(check_of(lambda stage: None, requires="sigkill"))
    assert record.verdict is FAIL
    assert "unexpected pass" in record.reason


def test_what_is_claimed_absent_and_fails_is_proved_absent(column):
    record = column.run(check_of(ends_with(AssertionError("5 lost")), requires="sigkill"))
    assert record.verdict is UNSUPPORTED
    assert "5 lost" in record.reason


def test_what_is_not_claimed_is_reported_and_never_red():
    class Unsaid(Memory):
        claims = Claims()

    with Column(Unsaid(), profile=Profile.FULL) as column:
        record = column.run(check_of(ends_with(AssertionError("5 lost")), requires="sigkill"))
        assert record.verdict is FAIL
        assert not is_red(record)
        assert is_red(column.run(check_of(ends_with(AssertionError("5 lost")))))


def test_a_server_criterion_does_not_apply_without_a_server(column):
    called = []
    record = column.run(check_of(lambda stage: called.append(1), requires="server sigkill"))
    assert record.verdict is NOT_APPLICABLE
    assert not called
    assert not is_red(record)


def test_an_absent_capability_is_proved_by_a_refused_call():
    def never(stage):
        raise AssertionError("run although it is absent")

    with Column(LikeSQS(), profile=Profile.QUICK) as column:
        assert column.start().capabilities.priority is Support.UNSUPPORTED
        record = column.run(check_of(never, requires="priority"))
    assert record.verdict is UNSUPPORTED
    assert "priority" in record.evidence


@pytest.mark.parametrize("capability", sorted(REFUSABLE))
def test_a_capability_that_works_is_never_proved_absent(column, capability):
    record = column.run(check_of(lambda stage: absence.absent(stage, capability)))
    assert record.verdict is FAIL
    assert "unexpected pass" in record.reason


# ---- what is red ----


def record_of(verdict_: Verdict, profile: Profile = Profile.QUICK) -> Record:
    return Record(
        backend="memory",
        criterion="C01",
        verdict=verdict_,
        reason="r",
        profile=profile.value,
        started="2026-01-01T00:00:00Z",
    )


def test_red_is_what_is_no_pass_and_no_proof(monkeypatch):
    red = {each for each in Verdict if is_red(record_of(each))}
    assert red == {FAIL, ERROR, UNKNOWN}
    assert is_red(record_of(NOT_RUN, Profile.FULL))
    monkeypatch.setenv("CI", "true")
    assert is_red(record_of(NOT_RUN))


def test_a_missing_broker_leaves_everything_not_run_with_the_reason():
    records = run(Absent(), select(["C01"]))
    assert [record.verdict for record in records] == [NOT_RUN]
    assert records[0].reason == "there is no such broker here"


def test_a_broker_that_does_not_start_is_an_error_each_time():
    with Column(Unstartable(), profile=Profile.QUICK) as column:
        records = [column.run(check_of(lambda stage: None)) for _ in range(2)]
    assert [record.verdict for record in records] == [ERROR, ERROR]
    assert "no start" in records[1].reason


def test_nothing_to_run_is_an_error():
    with pytest.raises(HarnessError, match="no criterion"):
        run(Memory(), [])


# ---- which criteria there are ----


def test_every_criterion_is_in_the_catalogue_and_written_once():
    ids = [check.id for check in select()]
    assert len(ids) == len(set(ids)) > 0
    order = [each.id for each in CATALOGUE]
    assert ids == sorted(ids, key=order.index)
    with pytest.raises(ValueError, match="C99"):
        select(["C99"])
    with pytest.raises(ValueError, match="Z99"):
        criterion("Z99")


def test_every_capability_whose_absence_is_a_refusal_has_a_call_that_is_to_be_refused():
    assert set(absence._USES) == REFUSABLE


# ---- the command ----

HERE = f"{__name__}:"


def test_the_command_writes_the_column_and_says_whether_it_is_red(tmp_path, capsys):
    path = "mqlayer.testing.harnesses:Memory"
    assert main([path, "--output", str(tmp_path), "--criterion", "C01", "C04", "--seed", "5"]) == 0
    document = Document.from_json((tmp_path / "compat_matrix.json").read_text())
    assert [(record.criterion, record.verdict, record.seed) for record in document.records] == [
        ("C01", PASS, 5),
        ("C04", PASS, 5),
    ]
    assert document.columns[0].capabilities["delay"] == "native"
    assert "C01 round trip" in (tmp_path / "compat_matrix.md").read_text()
    assert "2 criteria, 0 red" in capsys.readouterr().out


def test_the_command_fails_if_nothing_was_executed(capsys):
    assert main([HERE + "Absent", "--criterion", "C01"]) == 1
    assert "nothing was executed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["nowhere:Harness"], [HERE + "PASS"], ["memory"], ["mqlayer.testing.harnesses:Memory", "--criterion", "C99"]],
)
def test_wrong_arguments_are_told_apart_from_red(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err


def test_a_harness_is_found_by_its_path():
    assert type(find_harness(HERE + "Absent")) is Absent
    assert issubclass(Absent, BackendHarness)


def test_options_of_a_url_are_replaced_not_repeated():
    url = "amqp://h:1/v?a=1&b=2"
    assert with_options(url, {}) == url
    assert with_options(url, {"b": 3, "c": True}) == "amqp://h:1/v?a=1&b=3&c=true"
    assert with_options(url, {"a": None, "b": None}) == "amqp://h:1/v"


# ---- as third parties see it ----

ACME = """
from mqlayer.testing import BackendHarness, Claims, ProcessServer
class Harness(BackendHarness):
    name, version = "acme", "1.2"
    scope = "process"
    claims = Claims(graceful=False, sigkill={sigkill}, power_loss=None, queues=False)
    def register(self):
        from mqlayer import register_backend
        from mqlayer.backends.memory import MemoryFactory
        register_backend("acme", MemoryFactory)
    def start(self, datadir, port): return None
    def url(self, datadir, port): return f"acme://{{datadir.name}}"
"""
TEST = """
from acme import Harness
from mqlayer.testing.suite import DurabilitySuite
class TestAcme(DurabilitySuite):
    harness = Harness()
    criteria = {criteria}
"""


def run_pytest(folder: Path, criteria: list[str], sigkill: bool = False) -> subprocess.CompletedProcess[str]:
    (folder / "acme.py").write_text(ACME.format(sigkill=sigkill))
    (folder / "test_acme.py").write_text(TEST.format(criteria=criteria))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rA",
        "--strict-markers",
        "-p",
        "no:cacheprovider",
        "test_acme.py",
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_a_class_of_two_lines_is_the_whole_suite(tmp_path):
    done = run_pytest(tmp_path, ["C01", "C04"])
    assert done.returncode == 0, done.stdout
    assert "PASSED test_acme.py::TestAcme::test_criterion[C01-round trip]" in done.stdout
    assert "2 passed" in done.stdout


def test_a_class_without_criteria_fails(tmp_path):
    done = run_pytest(tmp_path, [])
    assert done.returncode != 0, done.stdout
    assert "no criterion to run" in done.stdout + done.stderr


def test_importing_the_helpers_loads_no_test_library_and_no_client():
    script = (
        "import sys, mqlayer.testing as t; t.BackendHarness, t.Claims, t.ProcessServer; import mqlayer.testing.runner;"
        "print([n for n in ('pytest', 'hypothesis', 'pika', '_pytest') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []


@pytest.mark.parametrize(
    ("seen", "reason", "becomes"),
    [
        (Verdict.FAIL, "2 came back after the kill", Verdict.UNSUPPORTED),
        (Verdict.FAIL, "something else broke", Verdict.FAIL),
        (Verdict.PASS, "", Verdict.FAIL),
        (Verdict.ERROR, "2 came back after the kill", Verdict.ERROR),
    ],
)
def test_what_the_server_itself_breaks_has_to_fail_in_the_way_that_is_said(
    seen: Verdict, reason: str, becomes: Verdict
) -> None:
    deviation = Deviation(behaviour="the server forgets", seen="came back")
    found, why = verdict(Demand(Kind.DEVIATES, ("sigkill",), deviation), seen, reason)
    assert found is becomes
    assert ("the server forgets" in why) is (becomes is Verdict.UNSUPPORTED or seen is Verdict.PASS)
