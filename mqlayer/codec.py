"""What travels: payloads as bytes, and fields as ``mq-*`` headers. Pure; the only place that knows those names.

Payloads: bytes as they are, str as UTF-8, anything else as JSON; msgspec's codec if it is installed, else the standard
library's, with the same result. Fields: ``to_headers`` and ``from_headers``, for backends whose broker has no property
of its own for them.
"""

import base64
import datetime
import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from mqlayer.driver import NO_TRAIL, HeaderValue, Outgoing, Trail
from mqlayer.errors import EncodeError, HeaderError, UndecodableError

__all__ = ["as_header_value", "check_headers", "decode", "encode", "from_headers", "to_headers"]

BYTES, TEXT, JSON = "application/octet-stream", "text/plain; charset=utf-8", "application/json"
RESERVED = "mq-"
TYPES = "mq-types"
HEADER_BITS_MAX = 1024  #: of a whole number in a header; Python itself refuses to write out much larger ones as text
FIELD_MAX = 2.0**63  #: of a number in an ``mq-*`` header; what is larger was not written by mqlayer

# field -> how it is written; the trail's fields are optional and rare
_FIELDS: dict[str, type] = {
    "id": str,
    "content_type": str,
    "correlation_id": str,
    "reply_to": str,
    "priority": int,
    "group_id": str,
    "dedup_id": str,
    "sent_at": float,
    "expires_at": float,
}
_TRAIL: dict[str, type] = {
    "failures": int,
    "crashes": int,
    "resent": int,
    "not_before": float,
    "copied_from": str,
    "origin": str,
    "reason": str,
    "deliveries": int,
}
_NEVER_NULL = frozenset({str, int, bool, type(None)})  #: what JSON's null stands for truly, or never
_NAMES = {field: RESERVED + field.replace("_", "-") for field in (*_FIELDS, *_TRAIL)}
_BY_NAME = {name: field for field, name in _NAMES.items()}


def encode(payload: Any, content_type: str | None = None) -> tuple[bytes, str]:
    """A payload as bytes, and its content type.

    Raises:
        EncodeError: it is not bytes, str or what JSON can hold (NaN and infinity it cannot), or the content type is
            not JSON's although the payload is neither bytes nor str.
    """
    if type(payload) is bytes:
        return payload, content_type or BYTES
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload), content_type or BYTES
    try:
        if isinstance(payload, str) and (content_type is None or not _is_json(content_type)):
            text = content_type is not None and content_type.startswith("text/")
            return payload.encode(_charset(content_type) if text and content_type else "utf-8"), content_type or TEXT
        if content_type is not None and not _is_json(content_type):
            raise EncodeError(
                f"a payload of type {type(payload).__name__} travels as JSON, not as {content_type!r}: pass bytes instead"
            )
        return _json().encode(payload), content_type or JSON
    except (TypeError, ValueError, OverflowError, RecursionError, LookupError) as exc:
        raise EncodeError(f"the payload cannot be encoded: {exc}") from exc


def decode(body: bytes, content_type: str | None) -> Any:
    """A body as the payload that was sent; bytes where the content type says nothing that we know.

    Raises:
        UndecodableError: it is not what its content type says.
    """
    if content_type is None or content_type == BYTES:
        return body
    try:
        if _is_json(content_type):
            return _json().decode(body)
        if content_type.startswith("text/"):
            return body.decode(_charset(content_type))
    except (ValueError, RecursionError, LookupError) as exc:
        raise UndecodableError(f"the body ({len(body)} bytes) is not {content_type!r}: {exc}") from exc
    return body


def check_headers(headers: Mapping[str, HeaderValue]) -> Mapping[str, HeaderValue]:
    """A copy of the user's headers.

    Raises:
        HeaderError: a name that is not a str or is reserved, or a value that cannot travel.
    """
    copy: dict[str, HeaderValue] = {}
    if not isinstance(headers, Mapping):
        raise HeaderError(f"headers are a mapping of names to values, not {type(headers).__name__}")
    for name, value in headers.items():
        if not isinstance(name, str) or not name:
            raise HeaderError(f"a header's name is a str with at least one character, not {name!r}")
        if name[:3].lower() == RESERVED:
            raise HeaderError(f"header {name!r}: names that begin with {RESERVED!r} are reserved")
        if value is not None and not isinstance(value, (str, int, float, bytes)):
            raise HeaderError(
                f"header {name!r}: a value is str, int, float, bool, bytes or None, not {type(value).__name__}"
            )
        if isinstance(value, int) and value.bit_length() > HEADER_BITS_MAX:
            raise HeaderError(f"header {name!r}: a whole number has {HEADER_BITS_MAX} bits at most")
        for text in (name, value):
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError as exc:
                    raise HeaderError(f"header {name!r} is not valid Unicode: {exc.reason}") from exc
        copy[name] = value
    return copy


def to_headers(
    outgoing: Outgoing, *, native: frozenset[str] = frozenset(), text_only: bool = False
) -> dict[str, HeaderValue]:
    """The headers to put on the wire: the user's, and an ``mq-*`` one for each field that is set and not *native*.

    With *text_only* all values are str, and ``mq-types`` keeps the types of the user's.
    """
    headers: dict[str, HeaderValue] = dict(outgoing.headers)
    if text_only:
        types: dict[str, str] = {}
        for name, value in outgoing.headers.items():
            if not isinstance(value, str):
                headers[name], types[name] = _to_text(value)
        if types:
            headers[TYPES] = json.dumps(types, ensure_ascii=False, separators=(",", ":"))
    for field in _FIELDS:
        if field not in native:
            value = getattr(outgoing, field)
            if value is not None:
                headers[_NAMES[field]] = _number(value) if text_only else value
    if outgoing.trail is not NO_TRAIL:
        for field in _TRAIL:
            value = getattr(outgoing.trail, field)
            if value is not None and value != 0 and field not in native:
                headers[_NAMES[field]] = _number(value) if text_only else value
    return headers


def from_headers(
    headers: Mapping[str, object],
    message: Outgoing,
    *,
    native: frozenset[str] = frozenset(),
    text_only: bool = False,
    int_bits: int = HEADER_BITS_MAX,
) -> Outgoing:
    """*message* (body and *native* fields) completed by what *headers* hold.

    What is not ours stays as it is: a malformed ``mq-*`` header is left out, as is one for a native field, a value of a
    foreign type becomes text. So does what *text_only* would make a number of more than *int_bits* bits.
    """
    users: dict[str, HeaderValue] = {}
    fields: dict[str, Any] = {}
    trail: dict[str, Any] = {}
    types = ""
    for name, value in headers.items():
        if name[:3] != RESERVED:
            users[name] = value if type(value) is str else as_header_value(value)
            continue
        field = _BY_NAME.get(name)
        if field is None:
            if name == TYPES and isinstance(value, str):
                types = value
            continue
        if field in native:
            continue
        kinds, found = (_FIELDS, fields) if field in _FIELDS else (_TRAIL, trail)
        read = _read_field(value, kinds[field])
        if read is not None:
            found[field] = read
    if types and text_only:
        _restore_types(users, types, int_bits)
    if users:
        fields["headers"] = users
    if trail:
        fields["trail"] = Trail(**trail)
    if len(fields) == 1 and users:  # by far the most common; a tenth of the price of _replace
        return tuple.__new__(Outgoing, (message.id, message.body, users, *message[3:]))
    return message._replace(**fields) if fields else message


def as_header_value(value: object) -> HeaderValue:
    """A header of a foreign message as one of the types that a header can have; what has no equal becomes JSON text."""
    if value is None or isinstance(value, (str, int, float, bytes)):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, (datetime.datetime, datetime.date)):
        return value.isoformat()
    try:
        return json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # keys that JSON does not know, or a circle: still better as text
        return str(value)


def _number(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _read_field(value: object, kind: type) -> object:
    if kind is str:
        return value if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = kind(value)
    except (
        ValueError,
        OverflowError,
    ):  # nan, inf, no number: somebody else's header under our name: left out, the message is not ours
        return None
    return number if 0 <= number < FIELD_MAX else None


def _to_text(value: HeaderValue) -> tuple[str, str]:
    if value is None:
        return "", "n"
    if isinstance(value, bool):
        return ("true" if value else "false"), "b"
    if isinstance(value, int):
        return str(int(value)), "i"
    if isinstance(value, float):
        return repr(float(value)), "f"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode(), "x"
    return value, "s"


def _from_text(text: str, kind: str) -> HeaderValue:
    if kind == "n":
        return None
    if kind == "b":
        return text == "true"
    if kind == "i":
        return int(text)
    if kind == "f":
        return float(text)
    if kind == "x":
        return base64.b64decode(text, validate=True)
    return text


def _restore_types(users: dict[str, HeaderValue], text: str, int_bits: int) -> None:
    try:
        types = json.loads(text)
        restored = {
            name: _from_text(value, types[name])
            for name, value in users.items()
            if name in types and isinstance(value, str)
        }
        for value in restored.values():
            if isinstance(value, int) and value.bit_length() > int_bits:
                raise ValueError("no message of ours has such a number here")
    except (ValueError, TypeError, RecursionError):
        # mq-types was changed on its way: the headers stay the text that arrived, which loses nothing
        return
    users.update(restored)


def _is_json(content_type: str) -> bool:
    kind = content_type if content_type == JSON else content_type.partition(";")[0].strip().lower()
    return kind == JSON or kind.endswith("+json")


def _charset(content_type: str) -> str:
    for part in content_type.split(";")[1:]:
        name, _, value = part.strip().partition("=")
        if name.lower() == "charset":
            return value.strip("\"' ")
    return "utf-8"


class _Json:
    """JSON's two functions, with the limits that hold whichever library provides them."""

    __slots__ = ("decode", "encode")

    def __init__(self, encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]) -> None:
        self.encode = encode
        self.decode = decode


@functools.cache
def _json() -> _Json:
    # Made on first use: importing msgspec costs 25 ms, and who sends bytes needs neither library.
    try:
        return _msgspec_json()
    except ImportError:
        return _standard_json()


def _standard_json() -> _Json:
    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def finite(text: str) -> float:
        number = float(text)
        return number if abs(number) != float("inf") else refuse(text)

    dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode
    loads = json.JSONDecoder(parse_constant=refuse, parse_float=finite).decode

    def decode(body: bytes) -> Any:
        value = loads(body.decode())
        if b"\\ud" in body.lower():  # half a surrogate pair is no text: it could not be sent on
            dumps(value).encode()
        return value

    def encode(value: Any) -> bytes:
        try:
            return dumps(value).encode()
        except TypeError:  # perhaps only because of a key that is neither str nor number
            return dumps(_with_text_keys(value)).encode()

    return _Json(encode, decode)


def _msgspec_json() -> _Json:
    import msgspec

    fast = msgspec.json.Encoder(enc_hook=_plain).encode
    exact = _standard_json().encode

    def encode(value: Any) -> bytes:
        try:
            body = fast(value)
        except (TypeError, OverflowError):  # subclasses of str and int, some keys: the standard library knows them
            return exact(value)
        # msgspec writes NaN and infinity as null; where a null may be one of them, the standard library refuses it
        return exact(value) if b"null" in body and not _finite(value) else body

    return _Json(encode, msgspec.json.Decoder().decode)


def _with_text_keys(value: Any) -> Any:
    """The same, with those keys of mappings as text that the standard library takes for values alone."""
    if isinstance(value, dict):
        return {
            key if key is None or isinstance(key, (str, int, float)) else _plain(key): _with_text_keys(inner)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_with_text_keys(inner) for inner in value]
    return value


def _finite(value: Any) -> bool:
    """No NaN and no infinity is in *value*; False also where that cannot be told at a glance."""
    open_ones = [value]
    while open_ones:
        one = open_ones.pop()
        kind = type(one)
        if kind is dict:
            open_ones.extend(one.values())
        elif kind is list or kind is tuple:
            open_ones.extend(one)
        elif kind is float:
            if not math.isfinite(one):
                return False
        elif kind not in _NEVER_NULL:
            return False
    return True


def _plain(value: Any) -> Any:
    """What JSON has no type for, in the text form that msgspec gives it."""
    import dataclasses
    import decimal
    import enum
    import uuid

    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, datetime.timedelta):
        return _duration(value)
    if isinstance(value, (uuid.UUID, decimal.Decimal)):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode()
    raise TypeError(f"JSON has no form for {type(value).__name__}")


def _duration(value: datetime.timedelta) -> str:
    """ISO 8601, in days and seconds."""
    sign, value = ("-", -value) if value < datetime.timedelta() else ("", value)
    seconds = str(value.seconds) + (f".{value.microseconds:06d}".rstrip("0") if value.microseconds else "")
    days = f"{value.days}D" if value.days or seconds == "0" else ""
    return f"{sign}P{days}" + (f"T{seconds}S" if seconds != "0" else "")
