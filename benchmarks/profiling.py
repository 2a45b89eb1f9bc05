"""Where the time of a variant goes, from samples of its stacks while it runs (py-spy: all threads that are not asleep)."""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Profile", "Share", "fold", "import_times", "sampled"]

RATE = 250  #: samples a second
TOP = 12  #: rows that are kept
TIMEOUT = 600.0
_FRAME = re.compile(r"^(?P<function>.+?) \((?P<file>[^:)]+)(?::(?P<line>\d+))?\)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    name: str
    percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """
    Attributes:
        what: What was profiled, and how.
        own: Functions by the samples in which they were running themselves.
        parts: Parts of the program by the samples in which the innermost frame of ours or a client library's was theirs.
    """

    what: str
    samples: int
    own: Sequence[Share]
    parts: Sequence[Share]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def sampled(command: Sequence[str], what: str, folder: Path) -> Profile | str:
    """Run *command* in *folder* and sample it. A text instead of a profile says why there is none."""
    with tempfile.TemporaryDirectory(prefix="mqlayer-bench-profile-") as own:
        output = Path(own) / "stacks"
        spy = Path(sys.executable).with_name("py-spy")
        options = ["record", "--format", "raw", "--rate", str(RATE), "--output", str(output), "--"]
        try:
            done = subprocess.run(
                [str(spy), *options, *command], capture_output=True, text=True, timeout=TIMEOUT, cwd=folder
            )
        except (OSError, subprocess.SubprocessError) as exc:
            return f"py-spy did not run: {exc}"
        if done.returncode != 0 or not output.exists():
            return f"py-spy did not run: {(done.stderr or 'no output').strip().splitlines()[-1]}"
        return fold(output.read_text().splitlines(), what)


def fold(lines: Iterable[str], what: str) -> Profile | str:
    """A profile of folded stacks: ``outermost;…;innermost count`` on each line."""
    own: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = [frame for frame in stack.split(";") if _FRAME.match(frame)]
        if not frames or any("importlib" in frame for frame in frames):
            continue  # imports come before the clock starts
        own[_name(frames[-1])] += int(count)
        parts[_part(frames)] += int(count)
    total = sum(own.values())
    if not total:
        return "no samples: the variant was too short, or waited all the time"
    return Profile(what=f"{what}; {total} samples", samples=total, own=_shares(own, total), parts=_shares(parts, total))


def _shares(found: Mapping[str, int], total: int) -> list[Share]:
    """The largest first; of equals, by name."""
    largest = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:TOP]
    return [Share(name=name, percent=round(100 * count / total, 1)) for name, count in largest]


def _name(frame: str) -> str:
    match = _FRAME.match(frame)
    return frame if match is None else f"{match['function']} ({_short(match['file'])})"


def _short(path: str) -> str:
    return re.sub(r"^.*?(?:site-packages|lib/python3\.\d+)/", "", path)


def _part(frames: Sequence[str]) -> str:
    """The innermost frame that is not the standard library's, as ``mqlayer/engine``, ``pika/adapters``, …"""
    for frame in reversed(frames):
        match = _FRAME.match(frame)
        path = _short(match["file"]) if match else ""
        found = re.search(r"(mqlayer|benchmarks|pika|kombu|amqp|persistqueue|msgspec)/([\w]+)(/[\w]+)?", path)
        if found:
            package, first, second = found.groups()
            return f"{package}/{first}{second or ''}" if package == "mqlayer" else f"{package}"
    return "standard library"


def import_times(statement: str) -> Profile | str:
    """What an import costs, module by module (``python -X importtime``), itself without what it imports in turn."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", statement], capture_output=True, text=True)
    bare = subprocess.run([sys.executable, "-X", "importtime", "-c", "pass"], capture_output=True, text=True)
    known = set(_import_rows(bare.stderr))
    own = {name: cost for name, cost in _import_rows(done.stderr).items() if name not in known}
    parts: Counter[str] = Counter()
    for name, cost in own.items():
        parts[name.partition(".")[0]] += cost
    total = sum(own.values())
    if not total:
        return "nothing was imported"
    what = f"`{statement}`: {total / 1000:.1f} ms in {len(own)} modules beyond bare Python, measured by `-X importtime`"
    return Profile(what=what, samples=len(own), own=_shares(own, total), parts=_shares(parts, total))


def _import_rows(text: str) -> dict[str, int]:
    rows: dict[str, int] = {}
    for line in text.splitlines():
        match = re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", line)
        if match:
            rows[match[2]] = int(match[1])
    return rows


def command_of(run: str, job: Mapping[str, Any]) -> list[str]:
    """The command that runs one variant in a process of its own."""
    return [sys.executable, "-m", "benchmarks.child", run, json.dumps(job)]
