"""Runs: one variant at a time, each in a process of its own, round after round; what each run left is counted."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.model import (
    Benchmark,
    Case,
    Goal,
    Job,
    Kind,
    Sample,
    Variant,
    WrongResultError,
    check_count,
    judge,
    order,
    scaled,
)
from benchmarks.places import Place, ProcessPlace, RabbitPlace, SQLitePlace
from benchmarks.profiling import Profile, command_of, import_times, sampled

__all__ = ["QUICK_DIVISOR", "Plan", "Runner"]

QUICK_DIVISOR = 10
RUN_TIMEOUT = 600.0  #: seconds that one run of a variant may take
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    Attributes:
        directory: Where the files of SQLite are made; ``None``: where temporary files go.
    """

    rounds: int
    quick: bool
    profiled: bool = True
    directory: Path | None = None


class Runner:
    """Places are opened when they are first needed and closed at the end of the ``with`` block."""

    def __init__(self, plan: Plan, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._tell = tell
        self._stack = ExitStack()
        self._places: dict[str, Place] = {}

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *what: Any) -> None:
        self._stack.close()

    def run(self, benchmark: Benchmark) -> dict[str, Any]:
        """All rounds of all cases, as JSON: samples, and a profile for each subject of a goal that is not met.

        Raises:
            WrongResultError: a count or an answer was wrong; nothing of the run is to be believed.
        """
        return {
            "samples": [asdict(sample) for sample in self._samples(benchmark)],
            "profiles": self._profiles,
        }

    def _samples(self, benchmark: Benchmark) -> list[Sample]:
        self._profiles: list[dict[str, Any]] = []
        everything: list[Sample] = []
        for case in benchmark.cases:
            samples: list[Sample] = []
            for number in range(self._plan.rounds):
                for variant in order(case.variants, number):
                    samples.append(self._sample(benchmark, case, variant, number))
            everything += samples
            if self._plan.profiled:
                self._profile(benchmark, case, samples)
        return everything

    def _sample(self, benchmark: Benchmark, case: Case, variant: Variant, number: int) -> Sample:
        count = self._count(variant)
        place = self._place(case.place)
        found = self._outcome(variant, self._job(case, variant, count))
        check_count(f"{variant.name} handled", found["count"], count)
        place.check(case, variant, count)
        figures: Mapping[str, float] = found["figures"]
        shown = "  ".join(f"{name} {figures[name]:,.1f}" for name in case.figures if name in figures)
        self._tell(f"{benchmark.name}  {case.name}  round {number + 1}  {variant.name}: {shown}")
        return Sample(
            benchmark=benchmark.name,
            case=case.name,
            variant=variant.name,
            round=number,
            count=count,
            figures=figures,
        )

    def _count(self, variant: Variant) -> int:
        return scaled(variant, QUICK_DIVISOR if self._plan.quick else 1)

    def _job(self, case: Case, variant: Variant, count: int) -> dict[str, Any]:
        own = self._place(case.place).prepare(case, variant, count)
        return asdict(Job(count=count, settings={**case.settings, **variant.settings, **own}))

    def _outcome(self, variant: Variant, job: Mapping[str, Any]) -> dict[str, Any]:
        command = command_of(variant.run, job)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT, cwd=ROOT)
        except subprocess.TimeoutExpired as exc:
            raise WrongResultError(f"{variant.name} was not done after {RUN_TIMEOUT:g} s") from exc
        if done.returncode != 0:
            raise WrongResultError(f"{variant.name} ended with {done.returncode}:\n{done.stderr.strip()}")
        outcome: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return outcome

    def _place(self, name: str) -> Place:
        if name not in self._places:
            if name == "rabbitmq":
                self._tell("starting RabbitMQ")
                self._places[name] = self._stack.enter_context(RabbitPlace())
            elif name == "sqlite":
                self._places[name] = self._stack.enter_context(SQLitePlace(self._plan.directory))
            else:
                self._places[name] = ProcessPlace()
        return self._places[name]

    # --- where the time goes ----------------------------------------------------------------------------------------------

    def _profile(self, benchmark: Benchmark, case: Case, samples: Sequence[Sample]) -> None:
        """One more run, sampled, of each variant that misses a goal of this step."""
        for variant in case.variants:
            if any(_missed(goal, variant, samples) for goal in case.goals):
                self._tell(f"{benchmark.name}  {case.name}  profile of {variant.name}")
                found = self._profile_of(case, variant)
                row = {"case": case.name, "variant": variant.name}
                self._profiles.append(row | (found.as_json() if isinstance(found, Profile) else {"problem": found}))

    def _profile_of(self, case: Case, variant: Variant) -> Profile | str:
        if variant.run.startswith("imports:"):
            return import_times("import mqlayer")
        count = self._count(variant)
        job = self._job(case, variant, count)
        what = f"{count} messages, samples of threads that were not asleep, of the whole process, filling and connecting included"
        found = sampled(command_of(variant.run, job), what, ROOT)
        if isinstance(found, Profile):
            self._place(case.place).check(case, variant, count)
        return found


def _missed(goal: Goal, variant: Variant, samples: Sequence[Sample]) -> bool:
    return goal.kind is Kind.NOW and goal.subject == variant.name and not judge(goal, samples).met
