"""Payloads and headers: what went in comes out, and what is not ours breaks nothing."""

import dataclasses
import datetime
import decimal
import enum
import math
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqlayer import codec
from mqlayer.codec import as_header_value, check_headers, decode, encode, from_headers, to_headers
from mqlayer.driver import HeaderValue, Outgoing, Trail
from mqlayer.errors import EncodeError, HeaderError, UndecodableError

text = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)
payloads = json_values | text | st.binary()
STANDARD, FAST = codec._standard_json(), codec._msgspec_json()


def outcome(call: Callable[[Any], Any], value: Any) -> Any:
    """What a call returns, or that it refuses."""
    try:
        return call(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return "refused"


@dataclasses.dataclass
class Point:
    x: int
    y: int | None


class Colour(enum.Enum):
    RED = "red"


class Text(str):
    pass


class TestPayloads:
    @given(payloads)
    def test_what_went_in_comes_out(self, payload: Any) -> None:
        body, content_type = encode(payload)
        assert decode(body, content_type) == payload
        assert type(decode(body, content_type)) is type(payload)

    @pytest.mark.parametrize(
        ("payload", "content_type", "body"),
        [
            (b"\x00\xff", "application/octet-stream", b"\x00\xff"),
            (bytearray(b"ab"), "application/octet-stream", b"ab"),
            (memoryview(b"ab"), "application/octet-stream", b"ab"),
            ("grüß", "text/plain; charset=utf-8", "grüß".encode()),
            ({"a": [1, None, "é"]}, "application/json", '{"a":[1,null,"é"]}'.encode()),
            (None, "application/json", b"null"),
            (7, "application/json", b"7"),
        ],
    )
    def test_what_travels(self, payload: Any, content_type: str, body: bytes) -> None:
        assert encode(payload) == (body, content_type)

    @pytest.mark.parametrize(
        ("payload", "content_type", "body", "back"),
        [
            ("é", "text/plain; charset=latin-1", b"\xe9", "é"),
            ("é", "text/html", "é".encode(), "é"),
            ("x", "application/json", b'"x"', "x"),
            ({"a": 1}, "application/vnd.acme+json; v=1", b'{"a":1}', {"a": 1}),
            ("<a/>", "application/xml", b"<a/>", b"<a/>"),
            (b"{}", "application/json", b"{}", {}),
            (b"x", "image/png", b"x", b"x"),
        ],
    )
    def test_a_given_content_type_is_heeded(self, payload: Any, content_type: str, body: bytes, back: Any) -> None:
        assert encode(payload, content_type) == (body, content_type)
        assert decode(body, content_type) == back

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, [1, math.nan], {"a": {"b": math.inf}, "c": None}])
    @pytest.mark.parametrize("library", [STANDARD, FAST], ids=["standard", "msgspec"])
    def test_nan_and_infinity_are_refused(self, bad: Any, library: Any) -> None:
        with pytest.raises(ValueError, match=r"JSON|range"):
            library.encode(bad)
        with pytest.raises(EncodeError):
            encode(bad)

    @pytest.mark.parametrize(
        ("payload", "content_type"),
        [
            (object(), None),
            ({"a": object()}, None),
            ("\ud800", None),
            ({"a": "\ud800"}, None),
            ({"a": 1}, "text/plain"),
            ("é", "text/plain; charset=ascii"),
            ("é", "text/plain; charset=unheard-of"),
            (lambda: 1, None),
        ],
    )
    def test_what_cannot_travel_is_refused(self, payload: Any, content_type: str | None) -> None:
        with pytest.raises(EncodeError):
            encode(payload, content_type)

    def test_a_circle_is_refused(self) -> None:
        circle: list[Any] = []
        circle.append(circle)
        with pytest.raises(EncodeError):
            encode(circle)

    @pytest.mark.parametrize(
        ("body", "content_type"),
        [
            (b"{", "application/json"),
            (b"", "application/json"),
            (b"NaN", "application/json"),
            (b'"\xff"', "application/json"),
            (b'"\\ud800"', "application/json"),
            (b"1e999", "application/json"),
            (b"[" * 100_000, "application/json"),
            (b"\xff", "text/plain"),
            (b"x", "text/plain; charset=unheard-of"),
            (b"x", "text/plain; charset=hex"),
            (b"x", "text/plain; charset=a\0b"),
        ],
    )
    def test_a_body_that_is_not_what_it_says_is_undecodable(self, body: bytes, content_type: str) -> None:
        with pytest.raises(UndecodableError, match=f"{len(body)} bytes"):
            decode(body, content_type)

    @given(st.binary(), st.text())
    def test_any_body_with_any_content_type_is_decoded_or_undecodable(self, body: bytes, content_type: str) -> None:
        for kind in (content_type, "text/" + content_type, "application/json;" + content_type, None):
            try:
                decode(body, kind)
            except UndecodableError:
                assert kind is not None


class TestBothLibraries:
    """msgspec's JSON and the standard library's are the same to users."""

    @given(json_values)
    def test_one_reads_what_the_other_wrote(self, value: Any) -> None:
        ours, theirs = outcome(STANDARD.encode, value), outcome(FAST.encode, value)
        assert (ours == "refused") == (theirs == "refused")
        if ours != "refused":
            assert STANDARD.decode(theirs) == FAST.decode(ours) == STANDARD.decode(ours) == FAST.decode(theirs) == value

    @pytest.mark.parametrize(
        ("value", "body"),
        [
            (Point(1, None), b'{"x":1,"y":null}'),
            (Colour.RED, b'"red"'),
            (uuid.UUID(int=5), b'"00000000-0000-0000-0000-000000000005"'),
            (decimal.Decimal("1.50"), b'"1.50"'),
            (datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.UTC), b'"2026-01-02T03:04:05.000006Z"'),
            (datetime.datetime(2026, 1, 2), b'"2026-01-02T00:00:00"'),
            (datetime.date(2026, 1, 2), b'"2026-01-02"'),
            (datetime.time(1, 2), b'"01:02:00"'),
            (datetime.timedelta(days=1, seconds=3, microseconds=500), b'"P1DT3.0005S"'),
            (datetime.timedelta(seconds=-90), b'"-PT90S"'),
            (datetime.timedelta(days=2), b'"P2D"'),
            (datetime.timedelta(), b'"P0D"'),
            (b"\xff", b'"/w=="'),
            ((1, 2), b"[1,2]"),
            ({3}, b"[3]"),
            (2**70, str(2**70).encode()),
            ({2: "a", True: "b"}, b'{"2":"a","true":"b"}'),
            ({None: 1}, b'{"null":1}'),
            ({uuid.UUID(int=5): {Colour.RED: 1}}, b'{"00000000-0000-0000-0000-000000000005":{"red":1}}'),
            ([{datetime.date(2026, 1, 2): 1, b"\xff": 2}], b'[{"2026-01-02":1,"/w==":2}]'),
            ({decimal.Decimal("1.50"): {3}}, b'{"1.50":[3]}'),
            (Text("x"), b'"x"'),
        ],
    )
    def test_what_json_has_no_type_for(self, value: Any, body: bytes) -> None:
        assert STANDARD.encode(value) == body
        assert FAST.encode(value) == body

    @given(
        st.one_of(
            st.binary(max_size=12),
            st.text('0123456789eE+-.[]{}",:\\udUD8cfalsetrun N', max_size=16).map(str.encode),
        )
    )
    def test_both_read_or_refuse_the_same_bodies(self, body: bytes) -> None:
        ours, theirs = outcome(STANDARD.decode, body), outcome(FAST.decode, body)
        assert ours == theirs
        assert type(ours) is type(theirs)

    def test_without_msgspec_the_standard_library_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing() -> None:
            raise ImportError("no msgspec")

        monkeypatch.setattr(codec, "_msgspec_json", missing)
        codec._json.cache_clear()
        try:
            body, _ = encode({"a": 1.0e16, "b": None})
            assert body == b'{"a":1e+16,"b":null}'
            assert decode(body, "application/json") == {"a": 1e16, "b": None}
        finally:
            codec._json.cache_clear()


header_names = text.filter(lambda name: name and name[:3].lower() != "mq-")
header_values: st.SearchStrategy[HeaderValue] = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text | st.binary()
)
headers = st.dictionaries(header_names, header_values, max_size=5)
trails = st.builds(
    Trail,
    failures=st.integers(0, 99),
    crashes=st.integers(0, 99),
    resent=st.integers(0, 9),
    not_before=st.none() | st.floats(1, 1e10),
    copied_from=st.none() | text,
    origin=st.none() | text,
    reason=st.none() | text,
    deliveries=st.integers(0, 99),
)
messages = st.builds(
    Outgoing,
    id=st.none() | text,
    body=st.just(b"body"),
    headers=headers,
    content_type=st.none() | text,
    correlation_id=st.none() | text,
    reply_to=st.none() | text,
    priority=st.none() | st.integers(0, 9),
    group_id=st.none() | text,
    dedup_id=st.none() | text,
    sent_at=st.none() | st.floats(0, 1e10),
    expires_at=st.none() | st.floats(0, 1e10),
    delay=st.just(0.0),
    trail=trails,
)


class TestHeaders:
    @given(messages, st.booleans())
    def test_what_went_in_comes_out(self, message: Outgoing, text_only: bool) -> None:
        wire = to_headers(message, text_only=text_only)
        assert not text_only or all(type(value) is str for value in wire.values())
        back = from_headers(wire, Outgoing(None, b"body"), text_only=text_only)
        assert back == message
        assert [type(value) for value in back.headers.values()] == [type(value) for value in message.headers.values()]

    @given(messages)
    def test_native_fields_stay_out_of_the_headers(self, message: Outgoing) -> None:
        native = frozenset(Outgoing._fields) - {"headers", "trail"}
        wire = to_headers(message, native=native)
        assert {name for name in wire if name.startswith("mq-")} <= {
            *("mq-failures", "mq-crashes", "mq-resent", "mq-not-before", "mq-copied-from", "mq-origin", "mq-reason"),
            "mq-deliveries",
        }
        assert from_headers(wire, message._replace(headers={}, trail=Trail())) == message

    def test_a_plain_message_needs_no_header_but_its_id(self) -> None:
        assert to_headers(Outgoing("m1", b"")) == {"mq-id": "m1"}

    ours = st.sampled_from([*codec._NAMES.values(), "mq-types", "mq-unheard-of", "mq-"])
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
        max_leaves=5,
    )

    @given(st.dictionaries(ours | st.text(), anything, max_size=8), st.booleans())
    def test_headers_of_others_under_our_names_crash_nothing(self, found: dict[str, object], text_only: bool) -> None:
        back = from_headers(found, Outgoing(None, b""), text_only=text_only)
        assert isinstance(back, Outgoing)
        assert isinstance(back.trail, Trail)
        for value in (back.trail.failures, back.trail.crashes, back.trail.deliveries, back.priority or 0):
            assert isinstance(value, int)
            assert 0 <= value < 2**63
        assert all(name in found for name in back.headers)

    @pytest.mark.parametrize(
        "types", ["[" * 100_000, "{", '["a"]', "7", '{"a":"i"}', '{"a":["i"]}', '{"a":"x"}', '"a"']
    )
    def test_broken_types_leave_the_text_that_arrived(self, types: str) -> None:
        back = from_headers({"a": "no number", "mq-types": types}, Outgoing(None, b""), text_only=True)
        assert back.headers == {"a": "no number"}

    @pytest.mark.parametrize(
        ("name", "value"),
        [("mq-failures", "9" * 4000), ("mq-failures", -1), ("mq-sent-at", "nan"), ("mq-priority", True)],
    )
    def test_a_number_that_we_would_not_have_written_is_left_out(self, name: str, value: HeaderValue) -> None:
        assert from_headers({name: value}, Outgoing(None, b"")) == Outgoing(None, b"")

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (bytearray(b"a"), b"a"),
            (datetime.datetime(2026, 1, 2), "2026-01-02T00:00:00"),
            ([1, "a"], '[1, "a"]'),
            ({"a": decimal.Decimal("1.5")}, '{"a": "1.5"}'),
            ({(1, 2): 3}, "{(1, 2): 3}"),
        ],
    )
    def test_values_of_other_types_become_text(self, value: object, expected: HeaderValue) -> None:
        assert as_header_value(value) == expected


class TestCheckHeaders:
    def test_a_copy_is_made(self) -> None:
        given_headers: dict[str, HeaderValue] = {"x-request-id": "1", "n": None, "b": b"x", "f": 1.5, "t": True}
        checked = check_headers(given_headers)
        assert checked == given_headers
        assert checked is not given_headers

    @pytest.mark.parametrize(
        "bad",
        [
            {"mq-id": "x"},
            {"MQ-anything": "x"},
            {"": "x"},
            {1: "x"},
            {"a": [1]},
            {"a": object()},
            {"a": "\ud800"},
            {"\ud800": "a"},
            {"a": 2**1024},
        ],
    )
    def test_what_cannot_travel_is_refused(self, bad: dict[Any, Any]) -> None:
        with pytest.raises(HeaderError):
            check_headers(bad)

    def test_the_largest_number_travels_as_text(self) -> None:
        checked = check_headers({"n": -(2**1023)})
        wire = to_headers(Outgoing("m", b"", checked), text_only=True)
        assert from_headers(wire, Outgoing(None, b""), text_only=True).headers == {"n": -(2**1023)}
