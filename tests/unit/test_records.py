"""A document comes back as it was, and one that is not ours is refused with the field's name."""

import json
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest

from mqlayer.testing.records import (
    Column,
    Document,
    Mutation,
    Record,
    RecordError,
    Verdict,
    record_from_dict,
    record_to_dict,
)

RECORD = Record(
    backend="rabbitmq-quorum",
    criterion="F10",
    verdict=Verdict.FAIL,
    reason="3 confirmed and never delivered",
    server="RabbitMQ 3.10.8/Erlang 25",
    client="pika 1.4.4",
    mqlayer="0.1.0+g1a2b3c4",
    profile="full",
    seed=918273,
    started="2026-11-23T22:01:02Z",
    seconds=241.7,
    evidence={"kills": 20, "in_flight_at_kill": [12, 9]},
    counts={"confirmed": 19874, "lost": 3},
    duplicates={"extra": 262, "by_cause": {"server_kill": 262, "unexplained": 0}},
    samples={"lost": ["p:1"]},
    history=None,
    config={"queue_type": "quorum"},
)
DOCUMENT = Document(
    records=(RECORD,),
    columns=(
        Column(backend="rabbitmq-quorum", title="rabbitmq 3.10.8", capabilities={"delay": "native"}, commit="1a2b3c4"),
    ),
    sabotage=(
        Mutation(
            saboteur="S1",
            title="AckEarly",
            backend="memory",
            started="2026-11-23T22:01:02+00:00",
            expected=("C15", "F11"),
            flagged_by=("C15",),
        ),
    ),
    others={"note": "kept"},
)


def test_a_document_comes_back_as_it_was() -> None:
    assert Document.from_json(DOCUMENT.to_json()) == DOCUMENT


def test_an_empty_document_comes_back_too() -> None:
    assert Document.from_json(Document().to_json()) == Document()


def test_a_document_is_one_json_object_with_a_record_a_line() -> None:
    text = DOCUMENT.to_json()
    top = json.loads(text)
    assert top["schema"] == 1
    assert top["note"] == "kept"
    assert sum('"criterion"' in line for line in text.splitlines()) == 1


def test_a_record_has_the_keys_of_its_schema() -> None:
    assert list(record_to_dict(RECORD)) == [
        "schema", "backend", "criterion", "verdict", "reason", "server", "client", "mqlayer", "profile", "seed", "started",
        "seconds", "evidence", "counts", "duplicates", "samples", "history", "config",
    ]  # fmt: skip
    assert record_to_dict(RECORD)["verdict"] == "fail"
    assert record_from_dict(record_to_dict(RECORD)) == RECORD


def test_a_record_needs_little() -> None:
    values = {"backend": "memory", "criterion": "C01", "verdict": "pass", "started": "2026-11-23T22:01:02Z"}
    assert record_from_dict(values).counts == {}


def change(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update(values)


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.pop(name) and None


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (drop("backend"), r"records\[0\]\.backend: missing"),
        (drop("verdict"), r"records\[0\]\.verdict: missing"),
        (
            change(verdict="passed"),
            r"records\[0\]\.verdict: 'passed' is none of pass, fail, unsupported, not-run, unknown",
        ),
        (change(verdict=["fail"]), r"records\[0\]\.verdict: "),
        (change(reason=""), r"records\[0\]\.reason: .*does not say why"),
        (change(seed="918273"), r"records\[0\]\.seed: '918273' is no int \| None"),
        (change(seed=True), r"records\[0\]\.seed: True"),
        (change(seconds="long"), r"records\[0\]\.seconds: 'long' is no float"),
        (change(started="yesterday"), r"records\[0\]\.started: 'yesterday' is no ISO 8601 time"),
        (change(started="2026-11-23T22:01:02"), r"records\[0\]\.started: .*offset from UTC"),
        (change(counts=[1]), r"records\[0\]\.counts: \[1\] is no Mapping"),
        (change(server=None), r"records\[0\]\.server: None is no str"),
        (change(schema=2), r"records\[0\]\.schema: 2 is not 1"),
        (change(colour="red"), r"records\[0\]\.colour: unknown field"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_by_its_field(
    spoil: Callable[[dict[str, Any]], None], complaint: str
) -> None:
    top = json.loads(DOCUMENT.to_json())
    spoil(top["records"][0])
    with pytest.raises(RecordError, match=complaint):
        Document.from_json(json.dumps(top))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "no JSON"),
        ("[]", "no object"),
        ('{"records": []}', "schema: None is not 1"),
        ('{"schema": 2, "records": []}', "schema: 2 is not 1"),
        ('{"schema": 1}', "records: missing"),
        ('{"schema": 1, "records": {}}', "records: no list"),
        ('{"schema": 1, "records": [7]}', r"records\[0\]: no object"),
        ('{"schema": 1, "records": [], "columns": [{"backend": "x"}]}', r"columns\[0\]\.title: missing"),
        (
            '{"schema": 1, "records": [], "sabotage": [{"saboteur": "S1", "title": "x", "backend": "m",'
            ' "started": "2026-11-23T22:01:02Z", "flagged_by": "C15"}]}',
            r"sabotage\[0\]\.flagged_by: 'C15' is no list of texts",
        ),
    ],
)
def test_a_text_that_is_no_document_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(RecordError, match=complaint):
        Document.from_json(text)


def test_two_records_of_one_cell_are_refused() -> None:
    twice = Document(records=(RECORD, RECORD)).to_json()
    with pytest.raises(RecordError, match=r"records\[1\]: rabbitmq-quorum F10 is there twice"):
        Document.from_json(twice)


def test_the_worst_verdict_wins() -> None:
    worst_first = [
        Verdict.FAIL,
        Verdict.ERROR,
        Verdict.UNKNOWN,
        Verdict.NOT_RUN,
        Verdict.PASS,
        Verdict.UNSUPPORTED,
        Verdict.NOT_APPLICABLE,
    ]
    assert set(worst_first) == set(Verdict)
    for worse, better in permutations(worst_first, 2):
        wanted = worse if worst_first.index(worse) < worst_first.index(better) else better
        assert Verdict.merge([worse, better]) is wanted


def test_nothing_at_all_was_not_run() -> None:
    assert Verdict.merge([]) is Verdict.NOT_RUN


@pytest.mark.parametrize(
    ("flagged_by", "wrongly_red", "caught"),
    [
        (("C15", "F11"), (), True),
        (("C15",), (), False),
        ((), (), False),
        (("C15", "F11"), ("C01",), False),
    ],
)
def test_a_saboteur_is_caught_by_all_that_should_and_none_that_should_not(
    flagged_by: tuple[str, ...], wrongly_red: tuple[str, ...], caught: bool
) -> None:
    mutation = Mutation(
        saboteur="S1",
        title="AckEarly",
        backend="memory",
        started="2026-11-23T22:01:02Z",
        expected=("C15", "F11"),
        flagged_by=flagged_by,
        wrongly_red=wrongly_red,
    )
    assert mutation.caught is caught
