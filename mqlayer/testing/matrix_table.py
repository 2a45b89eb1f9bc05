"""The table inside the matrix: rows, cells, footnotes, totals."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from mqlayer.testing.catalogue import FAILSAFE, SEEDS, Criterion, Seed
from mqlayer.testing.records import Column, Document, Record, Verdict

__all__ = ["Table"]

WORDS: Mapping[Verdict, str] = {
    Verdict.PASS: "✔ pass",
    Verdict.FAIL: "✘ fail",
    Verdict.UNSUPPORTED: "— unsupported",
    Verdict.NOT_RUN: "○ not run",
    Verdict.UNKNOWN: "? unknown",
    Verdict.ERROR: "! error",
    Verdict.NOT_APPLICABLE: "— n/a",
}
TOTALS = (Verdict.PASS, Verdict.FAIL, Verdict.UNSUPPORTED, Verdict.NOT_RUN, Verdict.UNKNOWN)
SAMPLES_SHOWN = 5

_DAMAGE = ("lost", "unreturned", "unexpected", "phantom", "resurrected", "corrupt", "unexplained", "order_violations")
_FAULTS = (("kills", "kill"), ("actor_kills", "actor kill"), ("stops", "stop"), ("connection_faults", "cut"))
_MINOR = re.compile(r"\d+\.\d+")


class Table:
    """A document as the lines of a table. Footnotes are numbered in the order in which the cells use them."""

    def __init__(self, document: Document, catalogue: Sequence[Criterion], stale_after: timedelta) -> None:
        self._document = document
        self._catalogue = catalogue
        self._stale_after = stale_after
        self._records = {(record.backend, record.criterion): record for record in document.records}
        self._columns = _columns(document)
        self._newest = {column.backend: self._newest_of(column) for column in self._columns}
        self._now = max((_time(record) for record in document.records), default=None)
        self._notes: dict[str, int] = {}
        self._seen = {record.criterion for record in document.records}

    def _newest_of(self, column: Column) -> Record | None:
        records = [record for record in self._document.records if record.backend == column.backend]
        return max(records, key=_time, default=None)

    def has_row(self, criterion: Criterion) -> bool:
        return not criterion.later or criterion.id in self._seen

    def lines(self) -> list[str]:
        rows = [self._row("criterion", [_title(column) for column in self._columns])]
        rows.append("|" + "---|" * (len(self._columns) + 1))
        rows.append(self._row("versions", [self._versions(column) for column in self._columns]))
        rows += [self._seed_row(seed) for seed in SEEDS]
        rows.append(self._row("duplicates under faults, per 1,000 (n)", [self._repeats(c) for c in self._columns]))
        group = None
        for criterion in self._catalogue:
            if not self.has_row(criterion):
                continue
            if criterion.group != group:
                group = criterion.group
                rows.append(self._row(f"**{group}**", ["" for _ in self._columns]))
            cells = [self._merged(column, [criterion.id]) for column in self._columns]
            rows.append(self._row(f"{criterion.id} {criterion.title}", cells))
        rows.append(self._row("**total**", [self._total(column) for column in self._columns]))
        return rows

    def footnotes(self) -> list[str]:
        return [f"[^{number}]: {text}" for text, number in self._notes.items()]

    def _row(self, head: str, cells: Sequence[str]) -> str:
        return "| " + " | ".join(_one_line(text) for text in (head, *cells)) + " |"

    def _versions(self, column: Column) -> str:
        record = self._newest[column.backend]
        if record is None:
            return ""
        mqlayer = f"mqlayer {record.mqlayer}" if record.mqlayer else ""
        return "<br>".join(text for text in (record.server, record.client, mqlayer) if text)

    def _seed_row(self, seed: Seed) -> str:
        known = {criterion.id for criterion in self._catalogue if self.has_row(criterion)}
        parts = {label: [id for id in ids if id in known] for label, ids in seed.parts.items()}
        parts = {label: ids for label, ids in parts.items() if ids}
        cells = [
            " / ".join(self._merged(column, ids) for ids in parts.values()) if parts else "" for column in self._columns
        ]
        return self._row(f"**{seed.title}**: {' / '.join(parts)}", cells)

    def _merged(self, column: Column, ids: Sequence[str]) -> str:
        """The worst verdict, then all that are no pass by name: a merged pass does not hide what was left out of it."""
        records = {id: self._records.get((column.backend, id)) for id in ids}
        groups: dict[Verdict, list[str]] = {}
        for id, record in records.items():
            groups.setdefault(Verdict.NOT_RUN if record is None else record.verdict, []).append(id)
        worst = Verdict.merge(groups)
        parts = []
        for verdict in sorted(groups, key=lambda verdict: verdict is not worst):
            parts.append(self._group(verdict, {id: records[id] for id in groups[verdict]}, named=len(groups) > 1))
        return "; ".join(parts) + self._date([record for record in records.values() if record is not None])

    def _group(self, verdict: Verdict, found: Mapping[str, Record | None], *, named: bool) -> str:
        """Several criteria with one verdict, each reason once."""
        records = [record for record in found.values() if record is not None]
        if verdict is Verdict.PASS:
            return ", ".join([WORDS[verdict], *_evidence(records)])
        notes = [self._note("no record of it") if record is None else self._why(record) for record in found.values()]
        if named:
            damages = [" ".join([id, *([] if record is None else _damage([record]))]) for id, record in found.items()]
            text = f"{WORDS[verdict]}: {', '.join(damages)}"
        else:
            text = " ".join([WORDS[verdict], *_damage(records)])
        return text + "".join(dict.fromkeys(notes))

    def _repeats(self, column: Column) -> str:
        """Over all failsafe criteria; what was delivered while nothing was wrong is never counted in."""
        failsafe = {criterion.id for criterion in self._catalogue if criterion.group == FAILSAFE}
        deliveries = extra = unexplained = 0
        for record in self._document.records:
            if record.backend != column.backend or record.criterion not in failsafe:
                continue
            under_faults = record.duplicates.get("under_faults", {})
            deliveries += under_faults.get("deliveries", 0)
            extra += under_faults.get("extra", 0)
            unexplained += record.duplicates.get("by_cause", {}).get("unexplained", 0)
        if not deliveries:
            return "—"
        rate = f"{1000 * extra / deliveries:.2g}" if extra else f"< {3000 / deliveries:.2g} at 95 %"
        return f"{rate} (n={deliveries:,}, {unexplained:,} unexplained)"

    def _total(self, column: Column) -> str:
        counts: Counter[Verdict] = Counter()
        for criterion in self._catalogue:
            if self.has_row(criterion):
                record = self._records.get((column.backend, criterion.id))
                counts[Verdict.NOT_RUN if record is None else record.verdict] += 1
        shown = [verdict for verdict in Verdict if verdict in TOTALS or counts[verdict]]
        return ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in shown)

    def _why(self, record: Record) -> str:
        if record.verdict is Verdict.PASS:
            return ""
        samples = [f"{name}: {', '.join(map(str, ids[:SAMPLES_SHOWN]))}" for name, ids in record.samples.items() if ids]
        return self._note(record.reason + (f" ({'; '.join(samples)})" if samples else ""))

    def _note(self, text: str) -> str:
        number = self._notes.setdefault(_one_line(text), len(self._notes) + 1)
        return f"[^{number}]"

    def _date(self, records: Sequence[Record]) -> str:
        """The day of the oldest record that is stale, if one is."""
        stale = [record for record in records if self._stale(record)]
        if not stale:
            return ""
        oldest, newest = min(stale, key=_time), self._newest[stale[0].backend]
        versions = [oldest.started[:10]]
        for name in ("server", "mqlayer"):
            if newest is not None and _minor(getattr(oldest, name)) != _minor(getattr(newest, name)):
                versions.append(f"mqlayer {oldest.mqlayer}" if name == "mqlayer" else oldest.server)
        return f" ({', '.join(versions)})"

    def _stale(self, record: Record) -> bool:
        newest = self._newest[record.backend]
        if newest is None or self._now is None:
            return False
        if self._now - _time(record) > self._stale_after:
            return True
        return _minor(record.server) != _minor(newest.server) or _minor(record.mqlayer) != _minor(newest.mqlayer)


def _columns(document: Document) -> list[Column]:
    """The columns as the document lists them; a backend with records alone stands under its own name."""
    columns = {column.backend: column for column in document.columns}
    for record in document.records:
        if record.backend not in columns:
            columns[record.backend] = Column(backend=record.backend, title=record.backend)
    return list(columns.values())


def _title(column: Column) -> str:
    return f"{column.title} ({column.configuration})" if column.configuration else column.title


def _evidence(records: Sequence[Record]) -> list[str]:
    """Faults and messages of the records together: ``20 kills``, ``0/19,874 lost``; ``n=100`` where none was accounted for."""
    parts = []
    for name, word in _FAULTS:
        number = sum(_number(record.evidence, name) for record in records)
        if number:
            parts.append(f"{number:,} {word}{'' if number == 1 else 's'}")
    size = sum(map(_size, records))
    if not size:
        return parts
    accounted = all("lost" in record.counts for record in records)
    return [
        *parts,
        f"{sum(_number(record.counts, 'lost') for record in records)}/{size:,} lost" if accounted else f"n={size:,}",
    ]


def _damage(records: Sequence[Record]) -> list[str]:
    """What went wrong, against how many: ``3/50 lost``."""
    size = sum(map(_size, records))
    numbers = {name: sum(_number(record.counts, name) for record in records) for name in _DAMAGE}
    return [f"{number:,}/{size:,} {name.replace('_', ' ')}" for name, number in numbers.items() if number]


def _size(record: Record) -> int:
    for name in ("confirmed", "attempted", "checked"):
        if _number(record.counts, name):
            return _number(record.counts, name)
    return 0


def _number(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name, 0)
    return value if isinstance(value, int) else 0


def _time(record: Record) -> datetime:
    return datetime.fromisoformat(record.started)


def _minor(version: str) -> str:
    found = _MINOR.search(version)
    return found[0] if found else version


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
