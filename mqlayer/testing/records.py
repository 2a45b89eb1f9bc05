"""What a run of the suite leaves behind: verdicts, records, and the document that ``compat_matrix.json`` is.

A record is one criterion on one backend, with the counts that its verdict rests on. Records know neither how they came
about nor how they are shown. A document that does not fit is refused with the name of the field.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import Enum
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

__all__ = [
    "SCHEMA",
    "Column",
    "Document",
    "Mutation",
    "Record",
    "RecordError",
    "Verdict",
    "record_from_dict",
    "record_to_dict",
]

SCHEMA = 1


class RecordError(ValueError):
    """The document is not one of ours; the text begins with the field."""


class Verdict(Enum):
    """What became of a criterion."""

    PASS = "pass"
    FAIL = "fail"
    UNSUPPORTED = "unsupported"  #: the backend says that it cannot, and the suite proved it
    NOT_RUN = "not-run"
    UNKNOWN = "unknown"  #: it ran, and too little happened to judge
    ERROR = "error"  #: the harness broke
    NOT_APPLICABLE = "n/a"  #: there is no server that could fail

    @classmethod
    def merge(cls, verdicts: Iterable["Verdict"]) -> "Verdict":
        """The verdict on all of them together: the worst one.

        ``unsupported`` and ``n/a`` count only where there is nothing else. Of nothing at all: ``not-run``.
        """
        found = set(verdicts)
        return next((verdict for verdict in _WORST_FIRST if verdict in found), cls.NOT_RUN)


_WORST_FIRST = (
    Verdict.FAIL,
    Verdict.ERROR,
    Verdict.UNKNOWN,
    Verdict.NOT_RUN,
    Verdict.PASS,
    Verdict.UNSUPPORTED,
    Verdict.NOT_APPLICABLE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One criterion on one backend.

    Attributes:
        backend: The column: ``memory``, ``rabbitmq-quorum``.
        reason: Why it is not a pass. Every other verdict has one.
        started: ISO 8601, with its offset.
        history: Where the ledgers are kept, if they are.
    """

    backend: str
    criterion: str
    verdict: Verdict
    reason: str = ""
    server: str = ""
    client: str = ""
    mqlayer: str = ""
    profile: str = ""
    seed: int | None = None
    started: str
    seconds: float = 0.0
    evidence: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    duplicates: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Any] = field(default_factory=dict)
    history: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.verdict is not Verdict.PASS and not self.reason:
            raise RecordError(f"reason: {self.backend} {self.criterion} is {self.verdict.value} and does not say why")
        _check_time("started", self.started)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One configuration of one product, as it was last run.

    Attributes:
        title: What stands above the column: product, version, configuration.
        capabilities: As the connection told them.
        tools: Names of the programs and libraries used, with their versions.
        command, commit, machine: What ran, of which state of the code, and where.
    """

    backend: str
    title: str
    configuration: str = ""
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    commit: str = ""
    machine: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """One saboteur over one good backend.

    Attributes:
        expected: The criteria that were run over it to flag it.
        flagged_by: Those that did. It escaped if one did not.
        wrongly_red: Criteria that it has nothing to do with and that went red all the same.
        not_run: Why it was not run; empty: it was.
    """

    saboteur: str
    title: str
    backend: str
    started: str
    expected: tuple[str, ...] = ()
    flagged_by: tuple[str, ...] = ()
    wrongly_red: tuple[str, ...] = ()
    not_run: str = ""

    def __post_init__(self) -> None:
        _check_time("started", self.started)

    @property
    def caught(self) -> bool:
        return bool(self.expected) and not self.missed_by and not self.wrongly_red

    @property
    def missed_by(self) -> tuple[str, ...]:
        """The expected criteria that saw nothing."""
        return tuple(criterion for criterion in self.expected if criterion not in self.flagged_by)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """``compat_matrix.json``. Keys at its top that we do not know are kept."""

    records: tuple[Record, ...] = ()
    columns: tuple[Column, ...] = ()
    sabotage: tuple[Mutation, ...] = ()
    others: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """As text, one record a line, so that a change shows as the lines that changed."""
        parts = [f'"schema": {SCHEMA}']
        parts += [f"{json.dumps(name)}: {_dump(value)}" for name, value in self.others.items()]
        for name, rows in (("columns", self.columns), ("sabotage", self.sabotage), ("records", self.records)):
            lines = ",\n".join("  " + _dump(_plain(row)) for row in rows)
            parts.append(f'"{name}": [\n{lines}\n ]' if rows else f'"{name}": []')
        return "{\n " + ",\n ".join(parts) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> "Document":
        """Read what :meth:`to_json` wrote.

        Raises:
            RecordError: the text is no JSON, or a field is missing, unknown or has a wrong value.
        """
        try:
            top = json.loads(text)
        except ValueError as exc:
            raise RecordError(f"no JSON: {exc}") from exc
        if not isinstance(top, dict):
            raise RecordError("the document is no object")
        if top.get("schema") != SCHEMA:
            raise RecordError(f"schema: {top.get('schema')!r} is not {SCHEMA}, the one that this version reads")
        document = cls(
            records=_rows(top, "records", Record),
            columns=_rows(top, "columns", Column),
            sabotage=_rows(top, "sabotage", Mutation),
            others={name: value for name, value in top.items() if name not in _OURS},
        )
        _check_unique("records", [(record.backend, record.criterion) for record in document.records])
        _check_unique("columns", [(column.backend,) for column in document.columns])
        return document


_OURS = ("schema", "records", "columns", "sabotage")
_Row = TypeVar("_Row", Record, Column, Mutation)


def record_from_dict(values: object, where: str = "record") -> Record:
    """A record of its JSON object. Raises: RecordError."""
    return _row(Record, values, where)


def record_to_dict(record: Record) -> dict[str, Any]:
    """The record's JSON object."""
    return _plain(record)


def _rows(top: Mapping[str, Any], name: str, kind: type[_Row]) -> tuple[_Row, ...]:
    rows = top.get(name, [] if name != "records" else None)
    if not isinstance(rows, list):
        raise RecordError(f"{name}: {'missing' if rows is None else 'no list'}")
    return tuple(_row(kind, row, f"{name}[{index}]") for index, row in enumerate(rows))


def _row(kind: type[_Row], values: object, where: str) -> _Row:
    if not isinstance(values, dict):
        raise RecordError(f"{where}: no object")
    types = get_type_hints(kind)
    unknown = values.keys() - types.keys()
    if unknown:
        raise RecordError(f"{where}.{min(unknown)}: unknown field")
    if values.get("schema", SCHEMA) != SCHEMA:
        raise RecordError(f"{where}.schema: {values['schema']!r} is not {SCHEMA}")
    given = {name: _value(types[name], value, f"{where}.{name}") for name, value in values.items()}
    required = {each.name for each in fields(kind) if each.default is each.default_factory}  # both MISSING
    missing = required - given.keys()
    if missing:
        raise RecordError(f"{where}.{min(missing)}: missing")
    make: Callable[..., _Row] = kind
    try:
        return make(**given)
    except RecordError as exc:
        raise RecordError(f"{where}.{exc}") from exc


def _value(wanted: Any, value: object, where: str) -> object:
    """The value as the field holds it. Knows just the types that the rows use."""
    if wanted is Verdict:
        try:
            return Verdict(value)
        except ValueError:
            known = ", ".join(verdict.value for verdict in Verdict)
            raise RecordError(f"{where}: {value!r} is none of {known}") from None
    name = getattr(wanted, "__name__", str(wanted))
    if wanted == tuple[str, ...]:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise RecordError(f"{where}: {value!r} is no list of texts")
    if getattr(wanted, "__origin__", None) is not None:  # the only other generic is Mapping
        allowed: tuple[type, ...] = (dict,)
    elif isinstance(wanted, UnionType):
        allowed, name = get_args(wanted), str(wanted)
    else:
        allowed = (int, float) if wanted is float else (wanted,)
    if not isinstance(value, allowed) or isinstance(value, bool):
        raise RecordError(f"{where}: {value!r} is no {name}")
    return value


def _plain(row: Record | Column | Mutation) -> dict[str, Any]:
    plain = {name: getattr(row, name) for name in (each.name for each in fields(row))}
    if isinstance(row, Record):
        plain = {"schema": plain.pop("schema")} | plain | {"verdict": row.verdict.value}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in plain.items()}


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _check_time(name: str, text: str) -> None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise RecordError(f"{name}: {text!r} is no ISO 8601 time") from None
    if time.tzinfo is None:
        raise RecordError(f"{name}: {text!r} does not say its offset from UTC")


def _check_unique(name: str, keys: list[tuple[str, ...]]) -> None:
    seen: set[tuple[str, ...]] = set()
    for index, key in enumerate(keys):
        if key in seen:
            raise RecordError(f"{name}[{index}]: {' '.join(key)} is there twice")
        seen.add(key)
