"""Runs criteria over one column, and writes down each as a record. Whatever one of them does, the others run.

:class:`Column` is one backend, started: the pytest class and the command line both go through it. A criterion has a
thread of its own and a limit of time; one that hangs is a fail, with the stacks of all threads beside its ledgers.
"""

import contextlib
import faulthandler
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from random import SystemRandom
from typing import Any

import mqlayer
from mqlayer.api import connect
from mqlayer.errors import MQError
from mqlayer.testing.harness import BackendHarness, HarnessError
from mqlayer.testing.matrix import EXECUTED
from mqlayer.testing.outcome import FloorUnmet, NotApplicable, NotRun, Outcome, PromiseBroken, ProvedAbsent
from mqlayer.testing.ports import PortError
from mqlayer.testing.processes import ServerError
from mqlayer.testing.records import Column as MatrixColumn
from mqlayer.testing.records import Record, Verdict
from mqlayer.testing.sites import Broker
from mqlayer.testing.stage import Profile, Stage, timeout_multiplier
from mqlayer.testing.suite.absence import prove_absent
from mqlayer.testing.suite.criterion import Check
from mqlayer.testing.suite.requirements import Demand, Kind, demand, verdict
from mqlayer.testing.urls import with_options

__all__ = ["Column", "in_ci", "is_executed", "is_red", "new_seed", "run"]

SOAK_FACTOR = 10.0
CLOSE_LIMIT = 60.0
NOT_CLAIMED = "not_claimed"
"""Where a record's ``config`` names what the backend does not claim: such a record is never red."""


def in_ci() -> bool:
    """In CI nothing may be left out."""
    return bool(os.environ.get("CI"))


def new_seed() -> int:
    """A seed for a run whose choices nobody has fixed."""
    return SystemRandom().randrange(1_000_000)


def is_red(record: Record) -> bool:
    """Whether a run with this record has failed. What was left out is red in CI and where the matrix is made."""
    if NOT_CLAIMED in record.config:
        return False
    if record.verdict is Verdict.NOT_RUN:
        return in_ci() or record.profile != Profile.QUICK.value
    return record.verdict in (Verdict.FAIL, Verdict.ERROR, Verdict.UNKNOWN)


def is_executed(record: Record) -> bool:
    """Whether anything was tried, and not only left out."""
    return record.verdict in EXECUTED


def run(
    harness: BackendHarness,
    checks: Sequence[Check],
    *,
    profile: Profile = Profile.QUICK,
    seed: int | None = None,
    output: Path | None = None,
    progress: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Run *checks* over the harness's backend, one after another.

    Args:
        output: Ledgers are kept below it, in a folder for each criterion.
        progress: Called with each record as soon as there is one.

    Raises:
        HarnessError: there is nothing to run.
    """
    if not checks:
        raise HarnessError("no criterion to run")
    with Column(harness, profile=profile, seed=seed, output=output) as column:
        records = []
        for check in checks:
            record = column.run(check)
            records.append(record)
            progress(record)
        return records


class Column:
    """One backend in one configuration, started when it is first needed.

    Attributes:
        missing: Why it cannot be run here; ``None``: it can.
        broken: Why it could not be started.
    """

    def __init__(
        self, harness: BackendHarness, *, profile: Profile, seed: int | None = None, output: Path | None = None
    ) -> None:
        if not __debug__:
            raise HarnessError("criteria assert, and python -O leaves assertions out: nothing would ever fail")
        self.harness = harness
        self.profile = profile
        self.seed = new_seed() if seed is None else seed
        self.missing = harness.available()
        self.broken: BaseException | None = None
        self._output = output
        self._multiplier = timeout_multiplier()
        self._ended = contextlib.ExitStack()
        self._started: _Started | None = None

    def __enter__(self) -> "Column":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the broker and remove its data."""
        self._started = None
        self._ended.close()

    def run(self, check: Check, keep: Path | None = None) -> Record:
        """Run one criterion. Raises nothing: the record says it all.

        Args:
            keep: A folder for its ledgers, instead of the column's own.
        """
        began = datetime.now(UTC)
        begin = time.monotonic()
        kept = keep or (self._output / self.harness.name / check.id if self._output is not None else None)
        demanded, seen = self._look_and_run(check, kept)
        found, reason = verdict(demanded, seen.verdict, seen.reason)
        config: dict[str, Any] = {"options": dict(self.harness.quick_options)} if self.harness.quick_options else {}
        if demanded.kind is Kind.OPEN:
            config[NOT_CLAIMED] = list(demanded.names)
        started = self._started
        return Record(
            backend=self.harness.name,
            criterion=check.id,
            verdict=found,
            reason=reason,
            server=started.server_version if started else "",
            client=started.client_version if started else "",
            mqlayer=mqlayer.__version__,
            profile=self.profile.value,
            seed=self.seed,
            started=began.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - begin, 3),
            evidence=_in_json(seen.outcome.evidence),
            counts=_in_json(seen.outcome.counts),
            duplicates=_in_json(seen.outcome.duplicates),
            samples=_in_json(seen.outcome.samples),
            history=self._history(kept, check),
            config=config | ({"filesystem": started.filesystem} if started else {}),
        )

    def _history(self, kept: Path | None, check: Check) -> str | None:
        return f"{self.harness.name}/{check.id}" if kept is not None and any(kept.glob("*.jsonl")) else None

    def _look_and_run(self, check: Check, kept: Path | None) -> "tuple[Demand, _Seen]":
        required = Demand(Kind.REQUIRED)
        if self.missing is not None:
            return required, _Seen(Verdict.NOT_RUN, self.missing)
        try:
            started = self.start()
            demanded = demand(check.criterion.requires, started.capabilities, self.harness.claims, started.broker.reach)
        except Exception as error:
            return required, _Seen(Verdict.ERROR, f"the broker did not start: {_text(error)}")
        if not demanded.executes:
            return demanded, _Seen(Verdict.NOT_RUN, "")
        deviation = self.harness.deviations.get(check.id)
        if deviation is not None and demanded.kind is Kind.REQUIRED:
            demanded = Demand(Kind.DEVIATES, demanded.names, deviation)
        if demanded.kind is Kind.REFUSED:
            check = Check(check.criterion, lambda stage: _refusals(stage, demanded), check.limit)
        return demanded, self._run(check, started, kept)

    def start(self) -> "_Started":
        """Start the broker, the first time. A second try of what failed is not made."""
        if self.broken is not None:
            raise self.broken
        if self._started is None:
            try:
                self._started = self._start()
            except BaseException as error:
                self.broken = error
                raise
        return self._started

    def _start(self) -> "_Started":
        harness = self.harness
        harness.register()
        folder = Path(tempfile.mkdtemp(prefix="mqlayer-"))
        self._ended.callback(shutil.rmtree, folder)
        broker = Broker(harness, folder / "broker")
        self._ended.callback(broker.close)
        broker.start()
        # Open until the end: a store in memory lives as long as somebody has it open.
        keeper = connect(with_options(harness.url(broker.datadir, broker.port), harness.quick_options))
        self._ended.callback(keeper.close)
        return _Started(
            broker=broker,
            folder=folder,
            capabilities=keeper.capabilities,
            server_version=harness.server_version(),
            client_version=harness.client_version(),
            filesystem=filesystem_of(folder),
        )

    def _run(self, check: Check, started: "_Started", kept: Path | None) -> "_Seen":
        soak = SOAK_FACTOR if self.profile is Profile.SOAK else 1.0
        limit = check.limit * self._multiplier * soak
        folder = started.folder / check.id
        stage = Stage(
            broker=started.broker,
            capabilities=started.capabilities,
            profile=self.profile,
            seed=self.seed,
            name=check.id,
            folder=folder,
            deadline=time.monotonic() + limit,
            multiplier=self._multiplier,
        )
        stray: list[str] = []
        with _thread_errors(stray):
            seen = _in_time(lambda: _perform(check, stage), limit, stage.ledgers, check.id)
            closing = _in_time(lambda: _closed(stage), CLOSE_LIMIT * self._multiplier, stage.ledgers, "closing")
        if seen.verdict is Verdict.PASS and closing.verdict is not Verdict.PASS:
            seen = _Seen(closing.verdict, closing.reason, seen.outcome)
        if seen.verdict is Verdict.PASS and stray:
            seen = _Seen(Verdict.ERROR, stray[0], seen.outcome)
        if kept is not None:
            shutil.copytree(stage.ledgers, kept, dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=closing.verdict is not Verdict.PASS)
        return seen

    def describe(self, command: str) -> MatrixColumn:
        """The column for the matrix, once it was started."""
        started = self.start()
        title = " ".join(started.server_version.partition("/")[0].split()) or self.harness.name
        return MatrixColumn(
            backend=self.harness.name,
            title=title,
            configuration=self.harness.configuration,
            capabilities={
                name: value.value if isinstance(value, Enum) else value
                for name, value in asdict(started.capabilities).items()
            },
            tools={"python": platform.python_version()},
            command=command,
            commit=_commit(),
            machine=f"{os.cpu_count()} CPUs, {platform.system()} {platform.release()}, {platform.machine()}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    broker: Broker
    folder: Path
    capabilities: mqlayer.Capabilities
    server_version: str
    client_version: str
    filesystem: str


@dataclass(frozen=True, slots=True)
class _Seen:
    """How a run ended by itself, whatever was claimed."""

    verdict: Verdict
    reason: str
    outcome: Outcome = field(default_factory=Outcome)


def _in_json(told: Mapping[str, Any]) -> dict[str, Any]:
    # What JSON has no form for becomes text here, and not an error when the whole column is written in the end
    read: dict[str, Any] = json.loads(json.dumps(dict(told), default=repr))
    return read


def _refusals(stage: Stage, demanded: Demand) -> Outcome:
    return Outcome(evidence={name: prove_absent(stage, name) for name in demanded.names})


def _perform(check: Check, stage: Stage) -> _Seen:
    """Run the function, and read its end."""
    try:
        outcome = check.function(stage)
    except PromiseBroken as broken:
        return _Seen(Verdict.FAIL, str(broken), broken.outcome)
    except AssertionError as broken:
        return _Seen(Verdict.FAIL, str(broken) or f"failed{_where(broken)}")
    except FloorUnmet as unmet:
        return _Seen(Verdict.UNKNOWN, str(unmet), unmet.outcome)
    except NotRun as reason:
        return _Seen(Verdict.NOT_RUN, str(reason))
    except NotApplicable as reason:
        return _Seen(Verdict.NOT_APPLICABLE, str(reason))
    except ProvedAbsent as proof:
        return _Seen(Verdict.UNSUPPORTED, str(proof))
    except (ServerError, PortError, HarnessError) as error:
        return _Seen(Verdict.ERROR, _text(error))
    except MQError as error:
        return _Seen(Verdict.FAIL, f"unexpected {_text(error)}{_where(error)}")
    except BaseException as error:
        return _Seen(Verdict.ERROR, f"{_text(error)}{_where(error)}")
    return _Seen(Verdict.PASS, "", outcome or Outcome())


def _closed(stage: Stage) -> _Seen:
    try:
        stage.close()
    except AssertionError as broken:
        return _Seen(Verdict.FAIL, str(broken))
    except Exception as error:
        return _Seen(Verdict.ERROR, f"in the end: {_text(error)}")
    return _Seen(Verdict.PASS, "")


def _in_time(work: Callable[[], _Seen], limit: float, folder: Path, name: str) -> _Seen:
    """What *work* returns; or, if it does not, that it hangs, and where."""
    found: list[_Seen] = []
    thread = threading.Thread(target=lambda: found.append(work()), name=name, daemon=True)
    thread.start()
    thread.join(limit)
    if found:
        return found[0]
    with open(folder / "stacks.txt", "a") as stacks:
        faulthandler.dump_traceback(stacks, all_threads=True)
    frame = sys._current_frames().get(thread.ident or 0)
    where = "".join(traceback.format_stack(frame)[-3:]) if frame is not None else ""
    return _Seen(Verdict.FAIL, f"hangs: not over after {limit:g} s, at\n{where}")


@contextlib.contextmanager
def _thread_errors(errors: list[str]) -> Iterator[None]:
    """An error that ends a thread nobody waits for must not pass unseen."""
    before = threading.excepthook

    def note(caught: threading.ExceptHookArgs) -> None:
        if caught.exc_value is not None:
            name = caught.thread.name if caught.thread is not None else "a thread"
            errors.append(f"in {name}: {_text(caught.exc_value)}{_where(caught.exc_value)}")

    threading.excepthook = note
    try:
        yield
    finally:
        threading.excepthook = before


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({', '.join(f'{Path(each.filename).name}:{each.lineno}' for each in frames[-3:])})" if frames else ""


def filesystem_of(path: Path) -> str:
    """The type of the file system that *path* is on. A kill proves little about data that was never on a disk."""
    real = path.resolve()
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if real.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]


def _commit() -> str:
    """Of the source tree that this runs from; empty if it is none."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git: there is no commit to tell
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
