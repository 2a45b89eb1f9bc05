"""``python -m mqlayer.testing acme.harness:Harness``: the durability suite over one backend, and its column of the matrix."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from mqlayer.testing.harness import HarnessError, find_harness
from mqlayer.testing.matrix import merge, render
from mqlayer.testing.records import Document, Record
from mqlayer.testing.runner import Column, is_executed, is_red
from mqlayer.testing.stage import Profile
from mqlayer.testing.suite import select

__all__ = ["main"]

JSON, MARKDOWN = "compat_matrix.json", "compat_matrix.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all green. 1: something is red, or nothing was executed. 2: wrong arguments."""
    given = _parser().parse_args(arguments)
    try:
        checks = select(given.criterion)
        harness = find_harness(given.harness)
    except (HarnessError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if not given.verbose:  # most criteria break things on purpose
        logging.getLogger().addHandler(logging.NullHandler())
    document = Document()
    with Column(harness, profile=Profile(given.profile), seed=given.seed, output=given.output) as column:
        sys.stdout.write(f"{harness.name}, profile {given.profile}, seed {column.seed}\n")
        records = []
        for check in checks:
            records.append(column.run(check))
            _tell(records[-1])
        if any(map(is_executed, records)):
            command = f"python -m mqlayer.testing {given.harness} --profile {given.profile}"
            document = Document(records=tuple(records), columns=(column.describe(command),))
    red = [record for record in records if is_red(record)]
    if not document.records:
        sys.stdout.write("nothing was executed\n")
        return 1
    if given.output is not None:
        _write(given.output, document)
    sys.stdout.write(f"{len(records)} criteria, {len(red)} red\n")
    return 1 if red else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mqlayer.testing", description=__doc__)
    parser.add_argument("harness", help="module:Class of a BackendHarness")
    parser.add_argument("--profile", choices=[each.value for each in Profile], default=Profile.QUICK.value)
    parser.add_argument(
        "--output", type=Path, help=f"folder for {JSON}, {MARKDOWN} and the ledgers; merged into what is there"
    )
    parser.add_argument("--criterion", nargs="+", action="extend", metavar="ID", help="only these, such as C01 F1a")
    parser.add_argument("--verbose", action="store_true", help="what the clients log, on standard error")
    parser.add_argument("--seed", type=int, help="of an earlier run, to make its choices again")
    return parser


def _tell(record: Record) -> None:
    text = f"{record.criterion:4} {record.verdict.value:11} {record.seconds:6.1f} s"
    sys.stdout.write(f"{text}  {record.reason.splitlines()[0] if record.reason else ''}".rstrip() + "\n")
    sys.stdout.flush()


def _write(folder: Path, document: Document) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JSON
    if path.exists():
        document = merge(Document.from_json(path.read_text()), document)
    path.write_text(document.to_json())
    (folder / MARKDOWN).write_text(render(document))


if __name__ == "__main__":
    sys.exit(main())
