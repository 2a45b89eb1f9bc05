"""Watching the suite at work: a live table and a bar for a person, a line for each criterion for a log."""

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import typer

from mqlayer.cli.output import console, table
from mqlayer.testing.records import Record, Verdict
from mqlayer.testing.runner import is_red

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mqlayer.testing.suite.criterion import Check

__all__ = ["Watcher", "line_of", "watching"]


class Watcher(Protocol):
    """Is told what goes on."""

    def begins(self, column: str, check: "Check") -> None: ...

    def ended(self, record: Record) -> None: ...


@contextmanager
def watching(columns: Sequence[str], criteria: int) -> Iterator[Watcher]:
    """Show what goes on, on standard error: live in a terminal, as lines elsewhere. Log lines are held back meanwhile:
    connections are lost on purpose."""
    with _silenced_logs():
        if not sys.stderr.isatty():
            yield _Lines()
            return
        watcher = _Table(columns, criteria)
        with watcher.live:
            yield watcher


def line_of(record: Record) -> str:
    """A record in one line."""
    reason = record.reason.strip().splitlines()[0] if record.reason.strip() else ""
    return f"{record.backend} {record.criterion:4} {record.verdict.value:11} {record.seconds:6.1f} s  {reason}".rstrip()


class _Lines:
    def begins(self, column: str, check: "Check") -> None:
        """A line comes when it has ended."""

    def ended(self, record: Record) -> None:
        typer.echo(line_of(record), err=True)


class _Table:
    """Verdicts so far, a row for each column; below it a bar, and what runs now."""

    SHOWN = (Verdict.PASS, Verdict.FAIL, Verdict.UNSUPPORTED, Verdict.NOT_RUN, Verdict.UNKNOWN, Verdict.ERROR)

    def __init__(self, columns: Sequence[str], criteria: int) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        text = TextColumn("{task.description}", markup=False)
        self._bar = Progress(text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._task = self._bar.add_task("starting", total=len(columns) * criteria)
        self._verdicts: dict[str, Counter[Verdict]] = {column: Counter() for column in columns}
        self._red: list[str] = []
        self.live = Live(self.picture(), console=console(sys.stderr), transient=True, refresh_per_second=4)

    def begins(self, column: str, check: "Check") -> None:
        self._bar.update(self._task, description=f"{column} {check.id} {check.criterion.title}")

    def ended(self, record: Record) -> None:
        self._verdicts.setdefault(record.backend, Counter())[record.verdict] += 1
        if is_red(record):
            self._red.append(line_of(record))
        self._bar.advance(self._task)
        self.live.update(self.picture())

    def picture(self) -> "RenderableType":
        from rich.console import Group
        from rich.text import Text

        rows = [
            [column, *(str(counts[verdict] or "") for verdict in self.SHOWN)]
            for column, counts in self._verdicts.items()
        ]
        red = [Text(line, style="red", no_wrap=True, overflow="ellipsis") for line in self._red]
        return Group(table(["", *(verdict.value for verdict in self.SHOWN)], rows), *red, self._bar)


@contextmanager
def _silenced_logs() -> Iterator[None]:
    """Nothing of the log reaches the screen; ``--verbose`` (a level below WARNING) shows it all the same."""
    root = logging.getLogger()
    if root.level and root.level < logging.WARNING:
        yield
        return
    handlers = list(root.handlers)
    for handler in handlers:
        handler.addFilter(_nothing)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False
