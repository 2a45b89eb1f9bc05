"""``check URL``: the contract half of the suite over a broker that somebody else runs."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import mqlayer
from mqlayer.cli.failures import ExitCode
from mqlayer.cli.output import JSON, console, json_line, remark
from mqlayer.errors import ConfigError

if TYPE_CHECKING:
    from mqlayer.testing.records import Record
    from mqlayer.testing.suite.criterion import Check

__all__ = ["check"]


def check(
    url: Annotated[str, typer.Argument(metavar="URL", help="Your broker.")],
    *,
    criterion: Annotated[
        list[str] | None, typer.Option("--criterion", metavar="ID", help="Only this one. May be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Make the choices of an earlier run again.")] = None,
    as_json: JSON = False,
) -> None:
    """See whether your own broker keeps the contract. Nothing is killed.

    The queues are made for this, have names that begin with test-, and are deleted in the end.
    """
    from mqlayer.cli.summary import summary_lines, summary_table
    from mqlayer.testing.records import Verdict, record_to_dict
    from mqlayer.testing.runner import is_executed, is_red

    checks = _contract(criterion)
    with mqlayer.connect(url):
        remark(f"checking {len(checks)} criteria")  # the first connection: a wrong URL is found before anything else
    records = _run(url, checks, seed)
    # What would need a server of ours is left out here, in CI too.
    red = [record for record in records if is_red(record) and record.verdict is not Verdict.NOT_RUN]
    if as_json:
        for record in records:
            json_line(record_to_dict(record))
    else:
        out = console()
        columns = sorted({record.backend for record in records})
        out.print(summary_table(columns, records))
        for text in summary_lines(["this broker"], records, red):
            out.print(text)
    if red or not any(map(is_executed, records)):
        raise typer.Exit(ExitCode.NEGATIVE)


def _contract(ids: list[str] | None) -> "list[Check]":
    """The criteria that need no server of ours.

    Raises:
        ConfigError: there is no such criterion, or it is one that kills.
    """
    from mqlayer.testing.catalogue import FAILSAFE
    from mqlayer.testing.suite import select

    found = {
        check.id: check
        for check in select()
        if check.criterion.group != FAILSAFE and "server" not in check.criterion.requires.split()
    }
    unknown = [id for id in ids or () if id not in found]
    if unknown:
        raise ConfigError(f"no criterion {', '.join(unknown)} here; there are: {', '.join(found)}")
    return [check for id, check in found.items() if not ids or id in ids]


def _run(url: str, checks: "list[Check]", seed: int | None) -> "list[Record]":
    from mqlayer.cli.suite_run import watching
    from mqlayer.cli.user_broker import user_broker
    from mqlayer.testing.runner import Column
    from mqlayer.testing.stage import Profile

    with tempfile.TemporaryDirectory(prefix="mqlayer-check-") as folder:
        notes = Path(folder) / "queues"
        with (
            user_broker(url, notes) as harness,
            _deleted_afterwards(url, notes),
            Column(harness, profile=Profile.QUICK, seed=seed) as column,
            watching([harness.name], len(checks)) as watcher,
        ):
            remark(f"seed {column.seed}")
            records = []
            for each in checks:
                watcher.begins(harness.name, each)
                records.append(column.run(each))
                watcher.ended(records[-1])
            return records


@contextmanager
def _deleted_afterwards(url: str, notes: Path) -> Iterator[None]:
    from mqlayer.cli.user_broker import delete_noted

    try:
        yield
    finally:
        deleted, failed = delete_noted(url, notes)
        remark(f"deleted {deleted} queues of its own")
        for name, error in failed.items():
            remark(f"could not delete {name!r}: {error}")
