"""What is sent is what arrives: C01 to C05."""

import math
from collections.abc import Sequence
from typing import Any

from mqlayer.api import Connection, Delivery
from mqlayer.driver import HeaderValue
from mqlayer.errors import ArgumentError, HeaderError, SendError
from mqlayer.message import Message
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion

__all__ = [
    "bodies_keep_their_type",
    "empty_bodies_arrive",
    "headers_keep_names_values_and_types",
    "messages_make_the_round_trip",
    "unicode_arrives_or_is_refused",
]

PATIENCE = 10.0


@criterion("C01")
def messages_make_the_round_trip(stage: Stage) -> Outcome:
    """Id, body, headers and what answers need are the same, and an acked message is gone. An id may be the user's own."""
    mq = stage.connect()
    queue = stage.queue()
    number = stage.size(quick=100, full=100)
    with mq.producer(queue) as producer:
        stage.assert_empty(mq, queue)
        sent: dict[str | None, tuple[object, ...]] = {}
        for index in range(number):
            body = stage.random.randbytes(100)
            headers: dict[str, HeaderValue] = {"index": index, "tenant": "pbs"}
            correlation_id, reply_to = f"c-{index}", "answers"
            id = producer.send(body, headers=headers, correlation_id=correlation_id, reply_to=reply_to)
            sent[id] = body, headers, correlation_id, reply_to
    assert len(sent) == number, f"{number} sends returned {len(sent)} different ids"
    came: dict[str | None, tuple[object, ...]] = {}
    with mq.consumer(queue) as consumer:
        for _ in range(number):
            delivery = _receive(stage, consumer.receive(timeout=stage.seconds(PATIENCE)), len(came), number)
            message = delivery.message
            came[message.id] = message.body, dict(message.headers), message.correlation_id, message.reply_to
            delivery.ack()
    assert came == sent, f"{sum(came.get(id) != what for id, what in sent.items())} of {number} came back different"
    stage.assert_empty(mq, queue)
    _own_ids(stage, mq)
    return Outcome(counts={"checked": number})


def _own_ids(stage: Stage, mq: Connection) -> None:
    queue = stage.queue("own-ids")
    ids = ["7", "order 42", "a/b:c.d#e", "x" * 200, "\u952e \U0001f511"]
    taken: list[str] = []
    with mq.producer(queue) as producer:
        for id in ids:
            try:
                told = producer.send(id, id=id)
            except (SendError, ArgumentError) as error:
                if id in ids[:2]:
                    raise AssertionError(f"the id {id!r} is refused") from error
            else:
                assert told == id, f"sent under the id {id!r}, it is said to be {told!r}"
                taken.append(id)
    came = [(one.message.id, one.message.payload) for one in _all(stage, mq, queue, len(taken))]
    _compare([(id, id) for id in taken], came)


@criterion("C02")
def headers_keep_names_values_and_types(stage: Stage) -> Outcome:
    """Plain headers of every type travel; extreme ones travel unchanged or are refused; none is dropped in silence."""
    plain: dict[str, HeaderValue] = {
        "text": "pbs", "empty": "", "zero": 0, "negative": -5, "large": 2**53 + 1, "float": 0.1, "whole float": 3.0,
        "true": True, "false": False, "bytes": b"\x00\xff", "none": None, "x-request-id": "r-1",
    }  # fmt: skip
    must_travel = [plain, *({name: value} for name, value in plain.items())]
    may_be_refused: list[dict[str, HeaderValue]] = [
        {"gr\u00f6\u00dfe": 1, "\u952e": "\u503c", "\U0001f511": "\U0001f600"},
        {f"header-{index}": index for index in range(64)},
        {"long": "x" * 10_000},
        {"int64": 2**63 - 1, "int64 low": -(2**63)},
        {"beyond int64": 2**64},
        {"tiny": 5e-324, "huge": 1.7e308, "minus zero": -0.0},
        {"infinite": math.inf, "minus infinite": -math.inf},
        {"no number": math.nan},
        {"colon:semicolon;equals=": "a:b;c=d\r\ne\\f"},
        {"blank name ": " blank value "},
        {"X-Upper": "x", "x-upper-2": "y"},
        {"Case": "a", "case": "b"},
        {"nul": "a\x00b"},
    ]
    reserved: list[dict[str, HeaderValue]] = [{"mq-id": "1"}, {"MQ-anything": 1}, {"ok": 1, "mq-resent": 2}]
    mq = stage.connect()
    queue = stage.queue()
    producer = mq.producer(queue)
    stage.assert_empty(mq, queue)
    for headers in reserved:
        try:
            producer.send(b"", headers=headers)
        except HeaderError:
            continue
        raise AssertionError(f"the reserved names among {sorted(headers)} were taken")
    sent, refused = [], 0
    for place, headers in enumerate([*must_travel, *may_be_refused]):
        try:
            producer.send(b"%d" % place, headers=headers)
        except HeaderError as error:
            if place < len(must_travel):
                raise AssertionError(f"{headers} is refused") from error
            refused += 1
        else:
            sent.append((b"%d" % place, _typed(headers)))
    came = [(one.message.body, _typed(one.message.headers)) for one in _all(stage, mq, queue, len(sent))]
    _compare(sent, came)
    return Outcome(counts={"checked": len(sent)}, evidence={"refused": refused})


@criterion("C03")
def bodies_keep_their_type(stage: Stage) -> Outcome:
    """bytes, text and JSON come back equal and of the same type, with their content type."""
    deep: Any = "end"
    for level in range(50):
        deep = {"level": level, "next": [deep]}
    payloads: list[tuple[Any, str | None, str]] = [
        (b"bytes", None, "application/octet-stream"),
        (bytes(range(256)), "image/png", "image/png"),
        ("text", None, "text/plain; charset=utf-8"),
        ("a,b\r\n1,2\r\n", "text/csv", "text/csv"),
        *((value, None, "application/json") for value in (
            {"id": 42}, [1, 2.5, None, True, "x"], 0, -1, 2**53 + 1, 2**63, -(2**63), 0.1, 1e300, 5e-324, True, None,
            {"nested": {"list": [[], {}, [{"a": None}]]}}, deep, ["", " ", "\u00e4"], {"": 1}, list(range(1000)),
        )),
        ({"id": 1}, "application/vnd.acme+json", "application/vnd.acme+json"),
    ]  # fmt: skip
    mq = stage.connect()
    queue = stage.queue()
    producer = mq.producer(queue)
    stage.assert_empty(mq, queue)
    sent = []
    for payload, content_type, expected in payloads:
        id = producer.send(Message(payload, content_type=content_type))
        sent.append((id, (_exactly(payload), expected)))
    came = [
        (one.message.id, (_exactly(one.message.payload), one.message.content_type))
        for one in _all(stage, mq, queue, len(sent))
    ]
    _compare(sent, came)
    return Outcome(counts={"checked": len(sent)})


@criterion("C04")
def empty_bodies_arrive(stage: Stage) -> Outcome:
    """An empty body is a message like any other."""
    mq = stage.connect()
    queue = stage.queue()
    producer = mq.producer(queue)
    stage.assert_empty(mq, queue)
    empty: tuple[Any, ...] = (b"", "", {}, [], None)
    sent = [(producer.send(payload), _exactly(payload)) for payload in empty]
    sent.append((producer.send(b"", headers={"only": "headers"}), _exactly(b"")))
    came = [(one.message.id, _exactly(one.message.payload)) for one in _all(stage, mq, queue, len(sent))]
    _compare(sent, came)
    return Outcome(counts={"checked": len(sent)})


@criterion("C05")
def unicode_arrives_or_is_refused(stage: Stage) -> Outcome:
    """Text is not normalised, cut or replaced; what cannot travel is refused, and then it is not sent."""
    texts = [
        "\U0001f600\U0001f468\u200d\U0001f469", "e\u0301 and \u00e9", "\u05e9\u05dc\u05d5\u05dd \u202eabc", "\ufeffmark",
        "nul \x00 inside", "\x00", "\u2028\u2029\x85", "\ufffe\uffff", "\U0010ffff", "\x7f\x1b[0m", "\r\n\r\n", "\u212b \u00c5",
    ]  # fmt: skip
    broken = ["\ud800", "half \udc00", "\udce4\udcb8"]
    mq = stage.connect()
    queue = stage.queue("\u952e-\u00e4")
    producer = mq.producer(queue)
    stage.assert_empty(mq, queue)
    sent, refused = [], 0
    for text in [*texts, *broken]:
        messages: list[tuple[Any, dict[str, HeaderValue], str | None]] = [
            (text, {}, None), ({text: text}, {}, None), (b"", {"text": text}, None), (b"", {}, text), (b"", {}, text * 99),
        ]  # fmt: skip
        for payload, headers, answers in messages:
            try:
                id = producer.send(payload, headers=headers, correlation_id=answers, reply_to=answers)
            except (SendError, ArgumentError) as error:
                if text in texts[:3] and answers != text * 99:
                    raise AssertionError(f"{text!r} is refused") from error
                refused += 1
            else:
                sent.append((id, (payload, headers, answers, answers)))
    came = [
        (one.id, (one.payload, dict(one.headers), one.correlation_id, one.reply_to))
        for one in (delivery.message for delivery in _all(stage, mq, queue, len(sent)))
    ]
    _compare(sent, came)
    return Outcome(counts={"checked": len(sent)}, evidence={"refused": refused})


def _all(stage: Stage, mq: Connection, queue: str, number: int) -> list[Delivery]:
    """Receive and ack that many, and see that there are no more."""
    deliveries: list[Delivery] = []
    with mq.consumer(queue) as consumer:
        for _ in range(number):
            delivery = _receive(stage, consumer.receive(timeout=stage.seconds(PATIENCE)), len(deliveries), number)
            delivery.ack()
            deliveries.append(delivery)
    stage.assert_empty(mq, queue)
    return deliveries


def _receive(stage: Stage, delivery: Delivery | None, came: int, number: int) -> Delivery:
    assert delivery is not None, f"{came} of {number} messages came, then none for {stage.seconds(PATIENCE):g} s"
    return delivery


def _compare(sent: Sequence[tuple[Any, Any]], came: Sequence[tuple[Any, Any]]) -> None:
    """What came under each key is what was sent under it."""
    found = dict(came)
    assert len(found) == len(came), f"{len(came) - len(found)} of {len(came)} messages came twice"
    for key, what in sent:
        assert key in found, f"{what!r} never came"
        assert found[key] == what, f"sent {what!r}, came {found[key]!r}"
    assert len(came) == len(sent), f"{len(came) - len(sent)} messages came that were not sent"


def _typed(headers: Any) -> dict[str, tuple[str, str]]:
    """Names with types and exact values: 1, 1.0 and True are equal in Python, and so are 0.0 and -0.0."""
    return {name: (type(value).__name__, repr(value)) for name, value in headers.items()}


def _exactly(payload: Any) -> tuple[str, str]:
    return type(payload).__name__, repr(payload)
