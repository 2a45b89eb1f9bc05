"""The end of a run, for somebody who has never seen the suite: what each column keeps, in counts, and where to look."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mqlayer.testing.catalogue import CATALOGUE, FAILSAFE, SEEDS
from mqlayer.testing.records import Record, Verdict
from mqlayer.testing.runner import is_executed, is_red

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

__all__ = ["summary_lines", "summary_table"]

RED_SHOWN = 10

_STYLES = {
    Verdict.PASS: "green",
    Verdict.FAIL: "bold red",
    Verdict.ERROR: "bold red",
    Verdict.UNKNOWN: "yellow",
    Verdict.NOT_RUN: "yellow",
}
_TITLES = {criterion.id: criterion.title for criterion in CATALOGUE}
_GROUPS = {criterion.id: criterion.group for criterion in CATALOGUE}


def summary_table(columns: Sequence[str], records: Sequence[Record]) -> "Table":
    """Groups of criteria by columns, each cell a count of verdicts in words; then what was killed, and what was lost."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("what is promised", style="bold", overflow="fold")
    for column in columns:
        table.add_column(column, overflow="fold")
    rows = _rows()
    for number, (title, chosen) in enumerate(rows):
        parts = [[each for each in records if each.backend == column and chosen(each)] for column in columns]
        if any(parts):
            table.add_row(title, *map(_cell, parts), end_section=number == len(rows) - 1)
    table.add_row("in all", *(_cell(_of(records, column)) for column in columns))
    if any(record.criterion in _failsafe() for record in records):
        table.add_row("kills and losses", *(_kills(_of(records, column)) for column in columns))
    return table


def summary_lines(columns: Sequence[str], records: Sequence[Record], red: Sequence[Record]) -> list[str]:
    """What to look at: the red ones by name, or that there are none."""
    if not red and not any(map(is_executed, records)):
        return ["Nothing was executed, so this says nothing."]
    if not red:
        return [
            f"Nothing is red ({', '.join(columns)}): what is claimed is kept. 'unsupported' is a claim, too: the backend "
            "says that it cannot, and the suite proved it."
        ]
    lines = [f"{len(red)} of {len(records)} results are red; look at these first:"]
    for record in red[:RED_SHOWN]:
        reason = record.reason.strip().splitlines()[0] if record.reason.strip() else "no reason given"
        title = _TITLES.get(record.criterion, "")
        lines.append(f"  {record.backend} {record.criterion} ({title}): {record.verdict.value}: {reason}")
    if len(red) > RED_SHOWN:
        lines.append(f"  and {len(red) - RED_SHOWN} more")
    return lines


def _rows() -> list[tuple[str, Callable[[Record], bool]]]:
    """The three first questions, then each group of criteria."""
    rows = [(seed.title, _among({id for part in seed.parts.values() for id in part})) for seed in SEEDS]
    asked = {id for seed in SEEDS for part in seed.parts.values() for id in part}
    rows.append(("other failures", _among(_failsafe() - asked)))
    groups = [group for group in dict.fromkeys(_GROUPS.values()) if group != FAILSAFE]
    return rows + [(group, _among({id for id, its in _GROUPS.items() if its == group})) for group in groups]


def _among(ids: set[str]) -> Callable[[Record], bool]:
    return lambda record: record.criterion in ids


def _failsafe() -> set[str]:
    return {id for id, group in _GROUPS.items() if group == FAILSAFE}


def _of(records: Sequence[Record], column: str) -> list[Record]:
    return [record for record in records if record.backend == column]


def _cell(records: Sequence[Record]) -> "Text":
    """Such as ``9 pass, 1 unsupported``, in the colour of the worst."""
    from rich.text import Text

    if not records:
        return Text("not asked", style="dim")
    counts = Counter(record.verdict for record in records)
    words = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict])
    return Text(words, style=_STYLES.get(Verdict.merge(counts), ""))


def _kills(records: Sequence[Record]) -> "Text":
    """Over the failsafe criteria: ``23 kills, 0 of 41,200 lost``."""
    from rich.text import Text

    failsafe = [record for record in records if record.criterion in _failsafe()]
    kills = sum(_number(record.evidence.get("kills")) for record in failsafe)
    confirmed = sum(_number(record.counts.get("confirmed")) for record in failsafe)
    lost = sum(_number(record.counts.get("lost")) for record in failsafe)
    if not kills:
        return Text("nothing was killed", style="dim")
    expected = not any(map(is_red, failsafe))
    said = f"{kills:,} kills, {lost:,} of {confirmed:,} lost" + (", as it says" if lost and expected else "")
    return Text(said, style="red" if lost and not expected else "")


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
