"""STOMP 1.2 frames, and what a message looks like in them. Pure: no I/O, no clock.

STOMP headers are text. A header of another type travels as text beside ``mq-types``; a field that the server has a header
for travels there, so that any client finds it where its users look, and the rest in ``mq-*`` headers.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mqlayer.backends.stomp_dialects import Dialect
from mqlayer.codec import from_headers, to_headers
from mqlayer.driver import Outgoing, Support
from mqlayer.errors import ArgumentError, ConnectionLostError, HeaderError, MessageTooLargeError, RefusedError

__all__ = [
    "Frame",
    "FrameReader",
    "Token",
    "destination",
    "encode",
    "from_wire",
    "is_redelivered",
    "is_reserved",
    "queue_of",
    "to_wire",
]

COMMAND_MAX = 1024 * 1024  #: bytes of a frame's command and headers; a server that sends more is not one
NAME_MAX_BYTES = 1024  #: of a destination, escaped
COPY_ROOM = 2048  #: bytes of a header line that a message leaves to its copies, whose mq-types must fit again

_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", ":": "\\c"})
_UNESCAPED = {"\\\\": "\\", "\\n": "\n", "\\r": "\r", "\\c": ":"}
_ESCAPE = re.compile(r"\\.", re.DOTALL)
_SPECIAL = re.compile(r"[\\\n\r:]")

_LINE_ENDS = (bytearray(b"\n"), bytearray(b"\r"))
NATIVE = frozenset({"content_type", "correlation_id"})
# What a MESSAGE frame itself has. A user may not set them, and they are no headers of the message that arrived.
FRAME_HEADERS = frozenset(
    {
        *("destination", "message-id", "subscription", "ack", "receipt", "receipt-id", "transaction", "content-length"),
        *(
            "content-type",
            "correlation-id",
            "reply-to",
            "persistent",
            "priority",
            "expires",
            "timestamp",
            "redelivered",
        ),
        *("type", "id", "selector", "browser"),
    }
)


class Frame(NamedTuple):
    """One frame of the server's."""

    command: str
    headers: dict[str, str]
    body: bytes


class Token(NamedTuple):
    """Settles a delivery: the session that it came on, the subscription there, and the id that its ACK names."""

    epoch: str
    subscription: str
    ack: str


# --- frames -----------------------------------------------------------------------------------------------------------


def encode(command: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> bytes:
    """A frame as bytes, its names and values escaped. All frames but CONNECT, which STOMP never escapes."""
    lines = [command]
    for name, value in headers:
        if _SPECIAL.search(name):
            name = name.translate(_ESCAPES)
        if _SPECIAL.search(value):
            value = value.translate(_ESCAPES)
        lines.append(f"{name}:{value}")
    lines.append("\n")
    return b"".join(("\n".join(lines).encode(), body, b"\0"))


class FrameReader:
    """Cuts what arrives into frames. A line end between two frames, which is a heart-beat, is left out."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._sought = 0  # where the search for the end of the headers goes on
        self._need = 0  # bytes that the frame at the front certainly has

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with *data*.

        Raises:
            ConnectionLostError: this is no STOMP.
        """
        buffer = self._data
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= self._need:
                while buffer[start : start + 1] in _LINE_ENDS:
                    start += 1
                found = self._frame(buffer, start)
                if found is None:
                    break
                frame, start = found
                self._sought = self._need = 0
                yield frame
        finally:
            del buffer[:start]

    def _frame(self, buffer: bytearray, start: int) -> tuple[Frame, int] | None:
        end = buffer.find(b"\n\n", start + self._sought)
        blank = 2
        if end < 0:
            end = buffer.find(b"\n\r\n", start + self._sought)
            blank = 3
        if end < 0:
            size = len(buffer) - start
            if size > COMMAND_MAX:
                raise ConnectionLostError("the server sends headers without an end")
            self._sought = max(size - 2, 0)
            return None
        text = buffer[start:end].decode("utf-8", "replace")
        if "\r" in text:
            text = text.replace("\r\n", "\n").removesuffix("\r")
        command, _, rest = text.partition("\n")
        headers = _headers(rest, escaped=command != "CONNECTED")
        first = end + blank
        length = headers.get("content-length")
        if length is None:
            last = buffer.find(b"\0", first)
            if last < 0:
                return None
        else:
            if not length.isascii() or not length.isdigit():
                raise ConnectionLostError(f"the server sends a frame of {length[:20]!r} bytes")
            last = first + int(length)
            if len(buffer) <= last:
                self._need = last + 1 - start
                return None
            if buffer[last]:
                raise ConnectionLostError("the server sends a frame that is longer than it says")
        return Frame(command, headers, bytes(buffer[first:last])), last + 1


def _headers(text: str, *, escaped: bool) -> dict[str, str]:
    """The first of each name counts: "the first header entry SHOULD be used" (STOMP 1.2, Repeated Header Entries)."""
    headers: dict[str, str] = {}
    unescape = escaped and "\\" in text
    for line in text.split("\n"):
        name, colon, value = line.partition(":")
        if not colon:
            continue
        if unescape:
            name, value = _unescaped(name), _unescaped(value)
        headers.setdefault(name, value)
    return headers


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: _UNESCAPED.get(match[0], match[0]), text)


# --- names ------------------------------------------------------------------------------------------------------------


def destination(name: str, dialect: Dialect, prefix: str | None = None) -> str:
    """The destination of queue *name*; two names never share one.

    Raises:
        ArgumentError: it is empty, too long, or not valid Unicode.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError as exc:
        raise ArgumentError(f"the name {name[:80]!r} is not valid Unicode: {exc.reason}") from exc
    quoted = "".join(_quoted(mark) if _is_special(mark, dialect) else mark for mark in name)
    if not name or max(size, len(quoted.encode())) > NAME_MAX_BYTES:
        raise ArgumentError(f"a STOMP queue has a name of 1 to {NAME_MAX_BYTES} bytes, not {name[:80]!r}")
    return (dialect.queue_prefix if prefix is None else prefix) + quoted


def queue_of(text: str, dialect: Dialect) -> str | None:
    """The queue that a destination names; None: it is no queue's."""
    if not text.startswith(dialect.queue_prefix):
        return None
    quoted = text[len(dialect.queue_prefix) :]
    data = re.sub(rb"%([0-9A-F]{2})", lambda match: bytes([int(match[1], 16)]), quoted.encode())
    return data.decode("utf-8", "replace")


def _is_special(mark: str, dialect: Dialect) -> bool:
    return mark in dialect.quoted or mark <= " " or mark == "\x7f" or (not mark.isascii() and dialect.quotes_unicode)


def _quoted(mark: str) -> str:
    return "".join(f"%{byte:02X}" for byte in mark.encode())


# --- messages ---------------------------------------------------------------------------------------------------------


def to_wire(message: Outgoing, target: str, dialect: Dialect, more: Sequence[tuple[str, str]] = ()) -> bytes:
    """The SEND frame of *message*; *more*: headers such as its receipt.

    Raises:
        HeaderError: a header's name is the server's own, or a header is longer than the server takes.
        MessageTooLargeError: the body is.
    """
    most = dialect.capabilities.body_max_bytes
    if most is not None and len(message.body) > most:
        raise MessageTooLargeError(
            f"the body has {len(message.body)} bytes; {dialect.name} takes {most}", message_id=message.id
        )
    headers = [("destination", target), ("content-length", str(len(message.body))), ("persistent", "true")]
    headers += more
    headers += dialect.send_headers
    if message.content_type is not None:
        headers.append(("content-type", message.content_type))
    if message.correlation_id is not None:
        headers.append(("correlation-id", message.correlation_id))
    if message.reply_to is not None and dialect.has_reply_to and message.reply_to:
        headers.append(("reply-to", destination(message.reply_to, dialect)))
    if dialect.capabilities.priority is Support.NATIVE:
        # JMS gives 4 to a message without one; here none is the lowest, as everywhere else.
        headers.append(("priority", str(message.priority or 0)))
    if message.group_id is not None and dialect.group_header:
        headers.append((dialect.group_header, message.group_id))
    if message.delay:
        headers.append((dialect.delay_header, str(max(round(message.delay * 1000), 1))))
    elif message.expires_at is not None and dialect.has_expires:  # a scheduler moves it by the delay
        headers.append(("expires", str(max(round(message.expires_at * 1000), 1))))
    if dialect.has_text_type and _is_text(message):
        headers.append(("amq-msg-type", "text"))
    for name in message.headers:
        if is_reserved(name, dialect):
            raise HeaderError(f"header {name!r} is {dialect.name}'s own", message_id=message.id)
    for name, value in to_headers(message, native=NATIVE, text_only=True).items():
        headers.append((name, str(value)))
    _check_size(message, headers, dialect)
    try:
        return encode("SEND", headers, message.body)
    except UnicodeEncodeError as exc:
        raise RefusedError(f"a field is not valid Unicode: {exc.reason}", message_id=message.id) from exc


def from_wire(frame: Frame, dialect: Dialect) -> Outgoing:
    """The message as it was sent, without what the server added on the way; such that a copy of it can be sent."""
    found = frame.headers
    foreign = "mq-id" not in found
    priority = found.get("priority")
    reply_to = found.get("reply-to")
    message = Outgoing(
        None,
        frame.body,
        content_type=found.get("content-type") or None,
        correlation_id=found.get("correlation-id") or None,
        reply_to=(queue_of(reply_to, dialect) or reply_to) if foreign and reply_to else None,
        priority=int(priority) if foreign and priority is not None and priority.isdigit() else None,
        group_id=found.get(dialect.group_header) if foreign and dialect.group_header else None,
        expires_at=_expiry(found.get("expires")) if foreign else None,
    )
    users = {
        name: value for name, value in found.items() if name not in FRAME_HEADERS and not is_reserved(name, dialect)
    }
    return from_headers(users, message, native=NATIVE, text_only=True)


def is_reserved(name: str, dialect: Dialect) -> bool:
    """A user may not set it, and a copy does not carry it: the server writes it or acts on it."""
    return name in FRAME_HEADERS or name in dialect.reserved or name.startswith(dialect.reserved_prefixes)


def _expiry(text: str | None) -> float | None:
    if text is None or not text.isdigit() or text == "0":
        return None
    return int(text) / 1000


def _is_text(message: Outgoing) -> bool:
    """JMS clients read it as a TextMessage, whose text ends at a NUL."""
    kind = message.content_type or ""
    if not (kind.startswith("text/") or "json" in kind) or b"\0" in message.body:
        return False
    if message.body.isascii():
        return True
    try:
        text = message.body.decode()
    except UnicodeDecodeError:
        return False
    return max(text) <= "\uffff"  # Java's own UTF-8 has no four bytes for one character


def _check_size(message: Outgoing, headers: Sequence[tuple[str, str]], dialect: Dialect) -> None:
    longest = dialect.name_max_bytes
    if longest is not None:
        for text in (message.content_type, message.correlation_id, *message.headers):
            if text is not None and len(text.encode("utf-8", "replace")) > longest:
                raise HeaderError(
                    f"{text[:40]!r}… is longer than the {longest} bytes that {dialect.name} takes",
                    message_id=message.id,
                )
    spare = COPY_ROOM if message.trail.copied_from is None else 0
    total = 0
    for name, value in headers:
        size = len(name) + len(value)
        if size * 8 > dialect.header_max_bytes:
            size = len(encode("", [(name, value)])) if _encodable(name + value) else size
            if size > dialect.header_max_bytes:
                raise HeaderError(
                    f"header {name[:40]!r} has {size} bytes on the wire; {dialect.name} takes {dialect.header_max_bytes}",
                    message_id=message.id,
                )
        total += size
    if len(message.headers) > dialect.headers_max:
        raise HeaderError(
            f"{len(message.headers)} headers; {dialect.name} takes {dialect.headers_max}", message_id=message.id
        )
    if total + spare > dialect.headers_max_bytes:
        raise HeaderError(
            f"the headers have {total} bytes; {dialect.name} takes {dialect.headers_max_bytes - spare} in all",
            message_id=message.id,
        )


def _encodable(text: str) -> bool:
    return text.encode("utf-8", "replace").decode() == text


def is_redelivered(headers: Mapping[str, str]) -> bool:
    """The server says that it delivered this copy before."""
    return headers.get("redelivered") == "true"
