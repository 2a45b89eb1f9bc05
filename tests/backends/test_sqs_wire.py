"""What travels between mqlayer and SQS, as tables and round trips. No server."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqlayer.backends.sqs_wire import (
    BATCH_MAX,
    SIZE_MAX,
    Entry,
    chunked,
    entry_of,
    lanes_of,
    message_of,
    queue_name,
    service_name,
    whole_seconds,
)
from mqlayer.driver import HeaderValue, Outgoing, Trail
from mqlayer.errors import ArgumentError, MessageTooLargeError, RefusedError, UnsupportedError

LEGAL_NAME = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"


def entry(message: Outgoing, *, fifo: bool = False, size_max: int = SIZE_MAX) -> Entry:
    return entry_of(0, message, fifo=fifo, size_max=size_max)


def back(made: Entry) -> Outgoing:
    """The message as SQS would hand it over."""
    request = made.request
    system = {name: request[name] for name in ("MessageGroupId", "MessageDeduplicationId") if name in request}
    return message_of(
        {"Body": request["MessageBody"], "MessageAttributes": request["MessageAttributes"], "Attributes": system}
    )


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queue", "name"),
    [
        ("orders", "orders"),
        ("my_queue-2", "my_queue-2"),
        ("orders.dead", "orders_-_dead"),
        ("a_-b", "a_-5F-b"),
        ("ä b", "_-C3_-A4_-20b"),
        ("..", "_-__-_"),
    ],
)
def test_names_are_mapped(queue: str, name: str) -> None:
    assert service_name(queue, fifo=False) == name
    assert service_name(queue, fifo=True) == f"{name}.fifo"
    assert queue_name(name) == queue_name(f"{name}.fifo") == queue


@given(st.text(st.sampled_from("_-.aFé\u0001😀/ 5"), min_size=1, max_size=9))
def test_no_two_queues_share_a_name(queue: str) -> None:
    name = service_name(queue, fifo=False)
    assert set(name) <= set(LEGAL_NAME)
    assert queue_name(name) == queue


@pytest.mark.parametrize(
    ("queue", "fifo"),
    [("", False), ("n" * 81, False), ("n" * 76, True), ("." * 27, False), ("\ud800", False), ("a.fifo", True)],
)
def test_names_that_no_queue_can_have(queue: str, fifo: bool) -> None:
    with pytest.raises(ArgumentError):
        service_name(queue, fifo=fifo)


def test_a_fifo_queues_name_says_what_to_write_instead() -> None:
    with pytest.raises(ArgumentError, match=r"'orders' with \?fifo=true"):
        service_name("orders.fifo", fifo=False)


# --- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"text", "text"),
        ("größe \U0001f600\r\n\t".encode(), "größe \U0001f600\r\n\t"),
        (b'{"id": 42}', '{"id": 42}'),
        (b"", "(see mq-body)"),
        (b"nul \0", "(see mq-body)"),
        (b"\xff\xfe", "(see mq-body)"),
        ("\ufffe".encode(), "(see mq-body)"),
        (b"(see mq-body)", "(see mq-body)"),
    ],
)
def test_a_text_is_text_for_everybody_and_any_body_comes_back(body: bytes, text: str) -> None:
    made = entry(Outgoing("i", body))
    assert made.request["MessageBody"] == text
    assert back(made).body == body


@given(st.binary(max_size=200))
def test_any_bytes_come_back(body: bytes) -> None:
    assert back(entry(Outgoing(None, body))).body == body


# --- headers ---------------------------------------------------------------------------------------------------------


def test_a_few_headers_are_attributes_of_their_own() -> None:
    headers: dict[str, HeaderValue] = {"tenant": "pbs", "n": -3, "pi": 3.0, "yes": True, "none": None, "raw": b"\0\xff"}
    attributes = entry(Outgoing("i", b"x", headers)).request["MessageAttributes"]
    assert attributes["tenant"] == {"DataType": "String", "StringValue": "pbs"}
    assert attributes["n"] == {"DataType": "Number", "StringValue": "-3"}
    assert attributes["pi"] == {"DataType": "Number.float", "StringValue": "3.0"}
    assert attributes["yes"] == {"DataType": "String.bool", "StringValue": "true"}
    assert attributes["none"] == {"DataType": "String.null", "StringValue": "null"}
    assert attributes["raw"] == {"DataType": "Binary", "BinaryValue": b"\0\xff"}
    assert json.loads(attributes["mq-more"]["StringValue"]) == {"mq-id": "i"}


@pytest.mark.parametrize(
    "headers",
    [
        {f"header-{n}": n for n in range(64)},
        {"AWS.trace": "x", "amazon.y": 1, ".dot": 1, "a..b": 2, "blank name ": "", "ünï": "\0", "n" * 300: b""},
        {"huge": 10**40, "tiny": 5e-324, "inf": float("inf"), "zero": -0.0, "big": 2**64},
        {"Case": "a", "case": "b"},
    ],
)
@pytest.mark.parametrize("body", [b"text", b"", b"\0"])
def test_the_limit_of_ten_attributes_is_nobodys_problem(headers: dict[str, HeaderValue], body: bytes) -> None:
    made = entry(Outgoing("i", body, headers, content_type="x/y"))
    assert len(made.request["MessageAttributes"]) <= 10
    came = back(made)
    assert (came.id, came.body, came.content_type) == ("i", body, "x/y")
    assert {name: repr(value) for name, value in came.headers.items()} == {n: repr(v) for n, v in headers.items()}


HEADERS = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: not name.lower().startswith("mq-")),
    st.one_of(
        st.text(max_size=12),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False),
        st.booleans(),
        st.binary(max_size=12),
        st.none(),
    ),
    max_size=14,
)


@given(HEADERS, st.booleans(), st.none() | st.text(min_size=1, max_size=8), st.none() | st.text(min_size=1, max_size=8))
def test_a_message_comes_back_as_it_was(
    headers: dict[str, HeaderValue], fifo: bool, group: str | None, dedup: str | None
) -> None:
    trail = Trail(failures=2, copied_from="place", not_before=1.5)
    sent = Outgoing("i", b"x", headers, "c/t", "c", "r", sent_at=2.5, expires_at=3.5, trail=trail)
    if fifo:
        sent = sent._replace(group_id=group, dedup_id=dedup)
    came = back(entry(sent, fifo=fifo))
    assert {name: repr(value) for name, value in came.headers.items()} == {n: repr(v) for n, v in headers.items()}
    assert came._replace(headers={}) == sent._replace(headers={})


@pytest.mark.parametrize(
    ("attributes", "headers"),
    [
        ({"n": ("Number", "12")}, {"n": 12}),
        ({"n": ("Number.int", "1.5")}, {"n": 1.5}),
        ({"n": ("Number", "many")}, {"n": "many"}),
        ({"s": ("String.label", "x")}, {"s": "x"}),
        ({"s": ("String.bool", "perhaps")}, {"s": "perhaps"}),
        ({"mq-more": ("String", "no json")}, {}),
        ({"mq-more": ("String", '["list"]')}, {}),
        ({"mq-more": ("String", '{"headers": {"x": []}}')}, {}),
        ({"mq-more": ("String", '{"headers": 3}')}, {}),
        ({"mq-anything": ("String", "x")}, {}),
    ],
)
def test_what_is_not_ours_is_delivered(attributes: dict[str, tuple[str, str]], headers: dict[str, Any]) -> None:
    made = {name: {"DataType": kind, "StringValue": value} for name, (kind, value) in attributes.items()}
    came = message_of({"Body": "foreign", "MessageAttributes": made})
    assert came == Outgoing(None, b"foreign", came.headers)
    assert dict(came.headers) == headers


def test_the_content_type_of_a_raw_client_counts() -> None:
    attributes = {"mq-content-type": {"DataType": "String", "StringValue": "application/json"}}
    assert message_of({"Body": "{}", "MessageAttributes": attributes}).content_type == "application/json"


# --- groups, delays, sizes -------------------------------------------------------------------------------------------


def test_a_message_without_a_group_is_alone_in_one() -> None:
    first, second = (entry(Outgoing(id, b"x"), fifo=True) for id in "ab")
    assert first.request["MessageGroupId"] != second.request["MessageGroupId"]
    assert back(first).group_id is None


@pytest.mark.parametrize("field", ["group_id", "dedup_id"])
@pytest.mark.parametrize("value", ["plain", "with blank", "größe", "x" * 200, "mq-ours"])
def test_groups_and_deduplication_take_any_text(field: str, value: str) -> None:
    made = entry(Outgoing("i", b"x")._replace(**{field: value}), fifo=True)
    key = {"group_id": "MessageGroupId", "dedup_id": "MessageDeduplicationId"}[field]
    assert len(made.request[key]) <= 128
    assert (made.request[key] == value) is (value == "plain")
    assert getattr(back(made), field) == value


def test_only_what_is_sent_again_is_a_duplicate() -> None:
    def dedup(message: Outgoing) -> str:
        text: str = entry(message, fifo=True).request["MessageDeduplicationId"]
        return text

    sent = Outgoing("i", b"x", sent_at=1.0)
    again = sent._replace(trail=Trail(resent=1))
    assert dedup(sent) == dedup(again)
    copy = sent._replace(trail=Trail(failures=1, copied_from="a"))
    others = [sent._replace(sent_at=2.0), copy, copy._replace(trail=Trail(failures=1, copied_from="b"))]
    assert len({dedup(one) for one in [sent, *others]}) == 4
    nameless = sent._replace(trail=Trail(failures=1))
    assert dedup(nameless) != dedup(nameless), "a copy of nobody knows what is never dropped"
    assert dedup(sent._replace(id=None)) != dedup(sent._replace(id=None))


@pytest.mark.parametrize(("seconds", "whole"), [(0.1, 1), (1.0, 1), (1.2, 2), (900.0, 900)])
def test_delays_are_whole_seconds_and_never_shorter(seconds: float, whole: int) -> None:
    assert entry(Outgoing("i", b"x", delay=seconds)).request["DelaySeconds"] == whole == whole_seconds(seconds)


@pytest.mark.parametrize(
    ("fields", "fifo", "error"),
    [
        ({"delay": 900.5}, False, RefusedError),
        ({"delay": 1.0}, True, UnsupportedError),
        ({"dedup_id": "d"}, False, UnsupportedError),
        ({"body": b"x" * SIZE_MAX}, False, MessageTooLargeError),
        ({"body": b"\0" * SIZE_MAX}, True, MessageTooLargeError),
        ({"headers": {"x": "y" * SIZE_MAX}}, False, MessageTooLargeError),
    ],
)
def test_what_sqs_refuses_is_refused_here(fields: dict[str, Any], fifo: bool, error: type[Exception]) -> None:
    with pytest.raises(error):
        entry(Outgoing("i", b"x")._replace(**fields), fifo=fifo)


@given(st.lists(st.integers(1, 60), max_size=60))
def test_requests_are_full_and_not_too_large(sizes: list[int]) -> None:
    entries = [Entry(place, {}, size, None) for place, size in enumerate(sizes)]
    chunks = chunked(entries, 100)
    assert [one for chunk in chunks for one in chunk] == entries
    assert all(len(chunk) <= BATCH_MAX and sum(one.size for one in chunk) <= 100 for chunk in chunks)
    for chunk, following in itertools.pairwise(chunks):
        assert len(chunk) == BATCH_MAX or sum(one.size for one in chunk) + following[0].size > 100


def test_a_group_keeps_to_its_lane() -> None:
    entries = [Entry(place, {}, 1, f"g{place % 3}" if place % 2 else None) for place in range(100)]
    lanes = lanes_of(entries, 4, SIZE_MAX)
    places: dict[str, list[tuple[int, int]]] = {}
    for number, lane in enumerate(lanes):
        for one in (one for chunk in lane for one in chunk):
            if one.group is not None:
                places.setdefault(one.group, []).append((number, one.place))
    for found in places.values():
        assert len({number for number, _ in found}) == 1
        assert [place for _, place in found] == sorted(place for _, place in found)
    assert sorted(one.place for lane in lanes for chunk in lane for one in chunk) == list(range(100))
