"""The types that users see: what they may write checks, and what they may not does not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EXPECTED = re.compile(r"# expect: ([\w, -]+)$")


@pytest.fixture(scope="module")
def found() -> dict[str, dict[int, set[str]]]:
    """What mypy finds: file → line → codes. One run for all files; its cache is the project's."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--no-warn-unused-ignores"]
    files = [str(HERE / name) for name in ("accepted.py", "refused.py")]
    done = subprocess.run(
        [*command, *files], capture_output=True, text=True, timeout=300, check=False, cwd=HERE.parents[1]
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    errors: dict[str, dict[int, set[str]]] = {}
    for line in done.stdout.splitlines():
        error = re.match(r"(.+?):(\d+): error: .*\[([\w-]+)\]$", line)
        if error:
            errors.setdefault(Path(error[1]).name, {}).setdefault(int(error[2]), set()).add(error[3])
    return errors


def test_what_users_may_write_checks(found: dict[str, dict[int, set[str]]]) -> None:
    assert found.get("accepted.py", {}) == {}


def test_what_they_may_not_does_not(found: dict[str, dict[int, set[str]]]) -> None:
    expected: dict[int, set[str]] = {}
    for number, line in enumerate((HERE / "refused.py").read_text("utf-8").splitlines(), 1):
        mark = EXPECTED.search(line)
        if mark:
            expected[number] = set(mark[1].split(", "))
    assert len(expected) > 20
    refused = found.get("refused.py", {})
    assert set(refused) == set(expected), "found beside expected"
    for number, codes in expected.items():
        assert codes <= refused[number], f"line {number}"
