"""``python -m benchmarks [--only R1 …] [--rounds N] [--quick]``: measure, keep the JSON, write ``docs/performance.md``."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.catalogue import BENCHMARKS, quick
from benchmarks.machine import describe
from benchmarks.model import Benchmark, WrongResultError
from benchmarks.report import render
from benchmarks.runner import ROOT, Plan, Runner
from mqlayer.errors import MQError

__all__ = ["main"]

ROUNDS = 5
RESULTS = ROOT / "benchmarks" / "results" / "latest.json"
PAGE = ROOT / "docs" / "performance.md"
SCHEMA = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """0: measured and written. 1: a count or an answer was wrong, or something could not run; nothing is written."""
    options = _options(arguments)
    if options.report:
        _write_page(json.loads(options.results.read_text()), options.page)
        return 0
    chosen = [one for one in BENCHMARKS if not options.only or one.name in options.only]
    try:
        results = _measured(chosen, options)
    except (WrongResultError, MQError) as error:  # MQError: a broker did not start
        sys.stderr.write(f"\nThe run is void: {error}\n")
        return 1
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    _write_page(results, options.page)
    _say(f"{options.results} and {options.page} are written")
    return 0


def _write_page(results: Mapping[str, Any], page: Path) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    known = [quick(one) if results["benchmarks"].get(one.name, {}).get("quick") else one for one in BENCHMARKS]
    page.write_text(render(results, known))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure mqlayer beside its peers.")
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=[], help="these; earlier results of others are kept"
    )
    parser.add_argument("--rounds", type=_at_least_one, default=ROUNDS, help=f"default {ROUNDS}, the least to judge by")
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages: shows that it works, no more")
    parser.add_argument("--no-profile", action="store_true", help="do not sample what misses a goal")
    parser.add_argument("--report", action="store_true", help="measure nothing; write the page from the results again")
    parser.add_argument("--directory", type=Path, help="where SQLite's files are made; a real disk")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser.parse_args(arguments)


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("a whole number from 1")
    return number


def _measured(chosen: Sequence[Benchmark], options: argparse.Namespace) -> dict[str, Any]:
    """New results beside those kept of benchmarks that were not chosen; each has the date and machine of its own run."""
    kept = json.loads(options.results.read_text())["benchmarks"] if options.only and options.results.exists() else {}
    machine = describe(options.directory)
    plan = Plan(
        rounds=options.rounds, quick=options.quick, profiled=not options.no_profile, directory=options.directory
    )
    with Runner(plan, _say) as runner:
        for benchmark in chosen:
            found = runner.run(quick(benchmark) if options.quick else benchmark)
            kept[benchmark.name] = {"machine": machine, "rounds": plan.rounds, "quick": plan.quick, **found}
    return {"schema": SCHEMA, "benchmarks": kept}


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
