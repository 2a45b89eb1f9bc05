"""Header frames that pika cannot read are mended, and nothing else is touched, however the bytes arrive."""

import os
import struct
from datetime import UTC, datetime
from typing import Any

import pytest

if not os.environ.get("CI"):
    pytest.importorskip("pika")

import pika
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from mqlayer.backends.rabbitmq_sieve import NESTING_MAX, Sieve

FAR = 1_700_000_000_000  # milliseconds, where AMQP has seconds


def table(name: bytes, value: bytes) -> bytes:
    field = bytes([len(name)]) + name + value
    return struct.pack(">I", len(field)) + field


def header(headers: bytes, content_type: bytes = b"") -> bytes:
    """A header frame with a table that pika would not write."""
    flags = (1 << 13) | (bool(content_type) << 15)
    named = bytes([len(content_type)]) + content_type if content_type else b""
    payload = struct.pack(">HHQH", 60, 0, 5, flags) + named + headers
    return struct.pack(">BHI", 2, 1, len(payload)) + payload + b"\xce"


def nested(depth: int, value: bytes = b"t\x01") -> bytes:
    for _ in range(depth):
        value = b"A" + struct.pack(">I", len(value)) + value
    return value


def sieved(data: bytes, sizes: list[int] | None = None) -> bytes:
    passed: list[bytes] = []
    sieve = Sieve(passed.append)
    at = 0
    for size in sizes or []:
        if data[at : at + size]:
            sieve.feed(data[at : at + size])
        at += size
    if data[at:]:
        sieve.feed(data[at:])
    assert all(passed), "pika is never called with nothing"
    return b"".join(passed)


def read(data: bytes) -> dict[str, Any]:
    used, decoded = frame.decode_frame(data)
    assert used == len(data)
    assert isinstance(decoded, frame.Header)
    return dict(decoded.properties.headers or {})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"T" + struct.pack(">Q", FAR), FAR),
        (b"T" + struct.pack(">Q", 2**64 - 1), -1),
        (b"T" + struct.pack(">Q", 253_402_300_799), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (b"S" + struct.pack(">I", 12) + b"T" + b"\xff" * 11, b"T" + b"\xff" * 11),
        (b"F" + table(b"T", b"T" + struct.pack(">Q", FAR)), {"T": FAR}),
        (b"A" + struct.pack(">I", 11) + b"t\x00T" + struct.pack(">Q", FAR), [False, FAR]),
    ],
)
@pytest.mark.parametrize("content_type", [b"", b"TTTTTTTTTTTTTT"])
def test_a_timestamp_that_no_calendar_has_becomes_a_number(value: bytes, expected: object, content_type: bytes) -> None:
    assert read(sieved(header(table(b"when", value), content_type))) == {"when": expected}


def test_what_is_nested_too_deep_becomes_bytes() -> None:
    for depth in (1, NESTING_MAX, NESTING_MAX + 1, 20_000):
        value: Any = read(sieved(header(table(b"deep", nested(depth)))))["deep"]
        found = 0
        while isinstance(value, list):
            found, value = found + 1, value[0]
        assert found == min(depth, NESTING_MAX)
        assert (value is True) if depth <= NESTING_MAX else isinstance(value, bytes)


def test_what_is_no_frame_passes() -> None:
    for data in (b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad Request\r\n", header(b"\x00\x00\x00\x09\x01hT")):
        assert sieved(data) == data


FAR_HEADER = header(table(b"h", b"T" + struct.pack(">Q", FAR)), b"Text/T")
PIECES = st.sampled_from(
    [
        frame.Method(1, spec.Basic.Deliver("T" * 9, 1, False, "T" * 20, "AF" * 40)).marshal(),
        frame.Header(1, 5, pika.BasicProperties(headers={"T": "T" * 20, "n": 2**40, "f": {"a": [1]}})).marshal(),
        frame.Body(1, b"T\xff" * 50).marshal(),
        frame.Heartbeat().marshal(),
        FAR_HEADER,
    ]
)


@given(st.lists(PIECES, max_size=8), st.lists(st.integers(1, 60), max_size=60))
def test_frames_pass_whole_or_in_parts(frames: list[bytes], sizes: list[int]) -> None:
    expected = [one.replace(b"\x01hT\x00", b"\x01hl\x00") for one in frames]
    assert sieved(b"".join(frames), sizes) == b"".join(expected)
