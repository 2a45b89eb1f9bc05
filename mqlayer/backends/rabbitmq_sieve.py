"""What RabbitMQ lets through and pika cannot read, made readable on its way in. Bytes in, bytes out; no I/O.

RabbitMQ asks neither how far away a timestamp in a header lies nor how deep tables are nested. pika's decoder raises at
both, which ends the connection: one foreign message would do so to every consumer that it is handed to, again and again.
Milliseconds where AMQP has seconds are enough. Both are mended in place, by another type of the same size: the timestamp
becomes the whole number that it is, the table that is too deep the bytes that it consists of.
"""

import struct
from collections.abc import Callable

__all__ = ["NESTING_MAX", "Sieve"]

TIMESTAMP_MAX = 253_402_300_799  #: the last second of the year 9999, Python's last
NESTING_MAX = 64  #: tables and arrays within each other that are left as they are

_FRAME = struct.Struct(">BHI")
_unpack_frame = _FRAME.unpack_from
_FRAME_EXTRA = 8  #: bytes of a frame around its payload
_HEADER_FRAME, _OTHER_FRAMES = 2, frozenset({1, 3, 8})
_FLAGS_AT = 12  #: in the payload of a header frame, behind class, weight and body size
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _MORE_FLAGS = 1 << 15, 1 << 14, 1 << 13, 1
_UINT16, _UINT32, _UINT64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")
_TIMESTAMP, _TABLE, _ARRAY, _INT64, _BYTES = b"TFAlx"
_DEEP_MIN = 5 * NESTING_MAX  #: bytes that so many nested tables have at least
_SIZES = dict(zip(b"tbBsuUIilLfdDV", (1, 1, 1, 2, 2, 2, 4, 4, 8, 8, 4, 8, 5, 0), strict=True))


class Sieve:
    """One connection's bytes. A header frame is passed on when it is whole, everything else as it comes."""

    def __init__(self, pass_on: Callable[[bytes], object]) -> None:
        self._pass_on = pass_on
        self._kept = b""  # the beginning of a frame
        self._left = 0  # bytes of the present frame that nobody looks at
        self._foreign = False  # no frames: a broker that speaks another version says so, and ends

    def feed(self, data: bytes) -> None:
        """Take what has arrived, and pass on what can be."""
        if self._kept:
            data, self._kept = self._kept + data, b""
        size = len(data)
        at = size if self._foreign else min(self._left, size)
        self._left -= min(self._left, size)
        look_until = size - _FRAME.size
        while at <= look_until:
            kind, _, length = _unpack_frame(data, at)
            end = at + length + _FRAME_EXTRA
            if kind != _HEADER_FRAME:
                if kind not in _OTHER_FRAMES:
                    self._foreign, end = True, size
                elif end > size:
                    self._left, end = end - size, size
            elif end > size:
                break
            elif (_TIMESTAMP in data[at:end] or length > _DEEP_MIN) and _is_doubtful(data, at, end):
                data = data[:at] + _mended(data[at:end]) + data[end:]
            at = end
        if at < size:
            self._kept = data[at:]
            data = data[:at]
        if data:
            self._pass_on(data)


def _is_doubtful(data: bytes, start: int, end: int) -> bool:
    """Whether a header frame may hold what pika cannot read. Quick, and wrong only on the safe side."""
    at = data.find(_TIMESTAMP, start, end)
    while 0 <= at < end - _UINT64.size:
        if _UINT64.unpack_from(data, at + 1)[0] > TIMESTAMP_MAX:
            return True
        at = data.find(_TIMESTAMP, at + 1, end)
    return data.count(_TABLE, start, end) + data.count(_ARRAY, start, end) > NESTING_MAX


def _mended(frame: bytes) -> bytes:
    """A header frame that pika can read. What no broker writes is left as it is."""
    mended = bytearray(frame)
    try:
        _mend(mended)
    except (IndexError, KeyError, struct.error):  # pika says what is wrong with it
        return frame
    return bytes(mended)


def _mend(frame: bytearray) -> None:
    at = _FRAME.size + _FLAGS_AT
    (flags,) = _UINT16.unpack_from(frame, at)
    at += _UINT16.size
    if flags & _MORE_FLAGS or not flags & _HEADERS:
        return
    for flag in (_CONTENT_TYPE, _CONTENT_ENCODING):
        if flags & flag:
            at += 1 + frame[at]
    (length,) = _UINT32.unpack_from(frame, at)
    at += _UINT32.size
    open_ends = [(at + length, True)]  # of tables (True) and arrays, the innermost last
    while open_ends:
        end, named = open_ends[-1]
        if at >= end:
            open_ends.pop()
            continue
        if named:
            at += 1 + frame[at]
        kind_at, kind = at, frame[at]
        at += 1
        if kind == _TIMESTAMP:
            if _UINT64.unpack_from(frame, at)[0] > TIMESTAMP_MAX:
                frame[kind_at] = _INT64
            at += _UINT64.size
        elif kind in _SIZES:
            at += _SIZES[kind]
        else:  # a length, and what it says
            (length,) = _UINT32.unpack_from(frame, at)
            at += _UINT32.size
            if kind not in (_TABLE, _ARRAY):
                at += length
            elif len(open_ends) <= NESTING_MAX:
                open_ends.append((at + length, kind == _TABLE))
            else:
                frame[kind_at] = _BYTES
                at += length
