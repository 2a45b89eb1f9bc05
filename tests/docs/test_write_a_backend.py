"""The backends that the documentation writes: the files of ``write-a-backend.md`` and ``examples/spool.py``, each under the
suite, in processes of their own as a reader would run it."""

import os
import subprocess
import sys

import pytest

import mqlayer
from examples import ROOT, run_block, saved_files, sections
from mqlayer.testing.records import Document, Verdict

PAGE = ROOT / "docs" / "write-a-backend.md"
LIMIT = 120.0
SPOOL_HARNESS = """
import mqlayer
from mqlayer.testing import BackendHarness, Claims
from spool import SpoolFactory

class Harness(BackendHarness):
    name, version = "spool", "1.0"
    claims = Claims(graceful=True, sigkill=True, power_loss=None, queues=True)
    scope = "machine"

    def register(self):
        mqlayer.register_backend("spool", SpoolFactory)

    def url(self, datadir, port):
        return f"spool://{datadir}"
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    for name, text in saved_files(PAGE).items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("acme_list", "acme_harness", "test_acme"):
        sys.modules.pop(name, None)


def run(*arguments):
    """Run Python in the current folder, as a reader would; what it printed is in the failure's text."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def verdicts(folder):
    document = Document.from_json((folder / "compat_matrix.json").read_text())
    return {record.criterion: record.verdict for record in document.records}


def test_the_page_has_its_three_files():
    assert list(saved_files(PAGE)) == ["acme_list.py", "acme_harness.py", "test_acme.py"]


def test_a_registered_backend_serves(files):
    (section,) = [section for section in sections(PAGE) if section.title == "Make it known"]
    for block in section.blocks:
        run_block(block, PAGE, {})


def test_what_it_lacks_is_supplied_by_copies(files):
    from acme_list import ListBackend

    mqlayer.register_backend("list", ListBackend)
    with mqlayer.connect("list://copies") as mq:
        orders, consumer = mq.producer("orders"), mq.consumer("orders", retry=mqlayer.Retry(attempts_max=2, delay=0))
        orders.send("bad", headers={"n": 1})
        for count in (1, 2):
            delivery = consumer.receive(timeout=5)
            assert delivery.delivery_count == count
            with pytest.raises(ValueError, match="boom"), delivery:
                raise ValueError("boom")
        with mq.consumer("orders.dead").receive(timeout=5) as dead:
            assert (dead.payload, dict(dead.headers), dead.dead_letter_count) == ("bad", {"n": 1}, 2)
        with pytest.raises(mqlayer.errors.UnsupportedError):
            orders.send("later", delay=1)


def test_the_suite_passes_by_command_and_by_pytest(files):
    run("-m", "mqlayer.testing", "acme_harness:Harness", "--criterion", "C01", "--output", "results")
    assert verdicts(files / "results") == {"C01": Verdict.PASS}
    assert "1 passed" in run("-m", "pytest", "-q", "-k", "C01", "-p", "no:cacheprovider", "test_acme.py")


def test_the_spool_example_passes_the_suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spool.py").write_text((ROOT / "examples" / "spool.py").read_text())
    (tmp_path / "spool_harness.py").write_text(SPOOL_HARNESS)
    wanted = ["C01", "C02", "C03", "C04", "C05"]
    run("-m", "mqlayer.testing", "spool_harness:Harness", "--criterion", *wanted, "--output", "results")
    assert verdicts(tmp_path / "results") == dict.fromkeys(wanted, Verdict.PASS)
