"""What travels between mqlayer and SQS: names, bodies, attributes, groups. Pure: no request is made here.

A message becomes one entry of a batch. Its body is the message's body if SQS takes it as text; else it travels as bytes
in an attribute. User's headers are attributes of the same names as far as there is room; everything else is in one
attribute more, as JSON. So the service's limit of ten attributes is nobody's problem.
"""

import base64
import binascii
import hashlib
import json
import math
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mqlayer.codec import from_headers, to_headers
from mqlayer.driver import NO_TRAIL, HeaderValue, Outgoing
from mqlayer.errors import ArgumentError, MessageTooLargeError, RefusedError, UnsupportedError

__all__ = [
    "BATCH_MAX",
    "DELAY_MAX",
    "LEASE_MAX",
    "NAME_MAX",
    "RESERVE_BYTES",
    "SIZE_MAX",
    "Entry",
    "chunked",
    "entry_of",
    "lanes_of",
    "message_of",
    "queue_name",
    "service_name",
    "whole_seconds",
]

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html and quotas-queues.html
NAME_MAX = 80  #: characters of a queue's name, ".fifo" included
SIZE_MAX = 1_048_576  #: bytes of a message with its attributes, and of all messages of one request
RESERVE_BYTES = 16 * 1024  #: of which that many are kept for headers and our own fields, whatever the body
BATCH_MAX = 10  #: messages of one request
ATTRIBUTES_MAX = 10
DELAY_MAX = 900.0
LEASE_MAX = 43_200.0  #: seconds from the delivery, all extensions included
GROUP_MAX = 128  #: characters of a group's, and of a deduplication's, id

FIFO = ".fifo"
MORE = "mq-more"  #: the attribute with our fields, and the headers that have no attribute of their own
BODY = "mq-body"  #: the attribute with a body that is no text for SQS
NO_TEXT = "(see mq-body)"  #: stands in the body's place then: SQS takes no empty body
OWN = "mq-"  #: begins the groups and deduplication ids that are ours
NATIVE = frozenset({"group_id", "dedup_id"})

# Anything else in a body or a String attribute is refused with InvalidMessageContents.
_NOT_TEXT = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# "A-Za-z0-9_-." , no dot at an end or beside another, not "AWS." or "Amazon.": sqs-message-metadata.html
_ATTRIBUTE_NAME = re.compile(r"(?!(?i:aws\.|amazon\.))[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\Z")
_ATTRIBUTE_NAME_MAX = 256
# "alphanumeric characters and punctuation": MessageGroupId, MessageDeduplicationId
_TOKEN = re.compile(r"[!-~]{1,128}\Z")
_NUMBER_MAX = 10**38  # "A number can have up to 38 digits of precision, and it can be between 10^-128 and 10^126"
_FLOAT_MIN, _FLOAT_MAX = 1e-100, 1e100

_NAME = re.compile(r"[A-Za-z0-9_-]+\Z")
_IN_NAME = re.compile(r"_-(?:_|([0-9A-F]{2}))")


class Entry(NamedTuple):
    """One message on its way.

    Attributes:
        place: In the batch that the session was given.
        request: As ``SendMessageBatch`` takes it.
        group: What keeps its order; ``None``: nothing.
    """

    place: int
    request: dict[str, Any]
    size: int
    group: str | None


# --- names -----------------------------------------------------------------------------------------------------------


def service_name(queue: str, *, fifo: bool) -> str:
    """The name that SQS knows the queue by: letters, digits, ``-`` and ``_`` are themselves, a dot is ``_-_``, any other
    byte ``_-XX``. No two queues share a name. A FIFO queue's name has ``.fifo`` at its end.

    Raises:
        ArgumentError: no queue can have that name.
    """
    if not isinstance(queue, str) or not queue:
        raise ArgumentError(f"a queue's name is a str with at least one character, not {queue!r}")
    if queue.endswith(FIFO):
        stem = queue.removesuffix(FIFO)
        hint = f"call it {stem!r}: with fifo=true every queue is one" if fifo else f"it is {stem!r} with ?fifo=true"
        raise ArgumentError(f"queue {queue!r} is a FIFO queue of SQS; {hint}")
    if _NAME.match(queue) and "_-" not in queue:
        name = queue
    else:
        try:
            name = "".join(_escaped(queue))
        except UnicodeEncodeError as exc:
            raise ArgumentError(f"the queue's name {queue!r} is not valid Unicode: {exc.reason}") from exc
    name += FIFO if fifo else ""
    if len(name) > NAME_MAX:
        raise ArgumentError(
            f"queue {queue[:20]!r}…: SQS knows it as {name[:20]}…, {len(name)} characters of {NAME_MAX}"
        )
    return name


def _escaped(queue: str) -> Iterable[str]:
    for place, char in enumerate(queue):
        if char == ".":
            yield "_-_"
        elif _NAME.match(char) and not (char == "_" and queue[place + 1 : place + 2] == "-"):
            yield char
        else:
            yield from (f"_-{byte:02X}" for byte in char.encode())


def queue_name(name: str) -> str:
    """The queue that SQS knows by that name."""

    def plain(found: re.Match[str]) -> str:
        return chr(int(found[1], 16)) if found[1] else "."

    # Escapes are bytes of UTF-8; latin-1 keeps them apart until all are there.
    stem = name.removesuffix(FIFO)
    return _IN_NAME.sub(plain, stem).encode("latin-1").decode(errors="replace")


# --- out -------------------------------------------------------------------------------------------------------------


def entry_of(place: int, message: Outgoing, *, fifo: bool, size_max: int) -> Entry:
    """A message as ``SendMessageBatch`` takes it.

    Raises:
        UnsupportedError: a delay on a FIFO queue, or deduplication on one that is none.
        RefusedError: a delay longer than SQS's. MessageTooLargeError: with its headers it is larger than SQS takes.
    """
    attributes, text = _attributes_of(message)
    request: dict[str, Any] = {"Id": str(place), "MessageBody": text, "MessageAttributes": attributes}
    if fifo:
        if message.delay:
            raise UnsupportedError("SQS cannot delay a message of a FIFO queue")
        request["MessageGroupId"] = _group_of(message)
        request["MessageDeduplicationId"] = _dedup_of(message)
    else:
        if message.dedup_id is not None:
            raise UnsupportedError("deduplication is for FIFO queues: sqs://…?fifo=true")
        if message.delay > DELAY_MAX:
            raise RefusedError(f"delay={message.delay} is longer than SQS's {DELAY_MAX:g} s", message_id=message.id)
        if message.delay:
            request["DelaySeconds"] = whole_seconds(message.delay)
        if message.group_id is not None:  # of a fair queue, which others may fill: a copy keeps it. It orders nothing
            request["MessageGroupId"] = _group_of(message)
    size = len(text) if text.isascii() else len(text.encode())
    for name, attribute in attributes.items():
        value = attribute.get("BinaryValue") or attribute["StringValue"]
        size += len(name) + len(attribute["DataType"])
        size += len(value) if isinstance(value, bytes) or value.isascii() else len(value.encode())
    if size > size_max:
        text = f"the message has {size} bytes with its headers; SQS takes {size_max}"
        raise MessageTooLargeError(text, message_id=message.id)
    return Entry(place, request, size, message.group_id if fifo else None)


def whole_seconds(seconds: float) -> int:
    """SQS counts whole seconds: no sooner than asked for."""
    return math.ceil(seconds)


def _attributes_of(message: Outgoing) -> tuple[dict[str, dict[str, Any]], str]:
    """Attributes, and the body's text."""
    attributes: dict[str, dict[str, Any]] = {}
    text = _as_text(message.body)
    if text is None:
        text = NO_TEXT
        attributes[BODY] = {"DataType": "Binary", "BinaryValue": message.body}
        if not message.body:
            # An empty value is refused, too: one byte stands for none, and its label says so.
            attributes[BODY] = {"DataType": "Binary.empty", "BinaryValue": b"\0"}
    fields: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    ours = {name for name in NATIVE if _is_token(getattr(message, name))}
    for name, value in to_headers(message, native=frozenset(ours)).items():
        if name[:3] == OWN:
            fields[name] = value
            continue
        attribute = _attribute(name, value) if len(attributes) < ATTRIBUTES_MAX - 1 else None
        if attribute is not None:
            attributes[name] = attribute
        else:
            rest[name] = [base64.b64encode(value).decode()] if isinstance(value, bytes) else value
    if rest:
        fields["headers"] = rest
    if fields:
        # ensure_ascii: what SQS refuses in a text is escaped
        attributes[MORE] = {"DataType": "String", "StringValue": json.dumps(fields, separators=(",", ":"))}
    return attributes, text


def _as_text(body: bytes) -> str | None:
    """The body as SQS carries it; ``None``: it does not."""
    if not body:
        return None
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return None if _NOT_TEXT.search(text) else text


def _attribute(name: str, value: HeaderValue) -> dict[str, Any] | None:
    """A header as an attribute of its own; ``None``: it cannot be one. Labels behind a dot keep Python's types apart."""
    if len(name) > _ATTRIBUTE_NAME_MAX or not _ATTRIBUTE_NAME.match(name):
        return None
    if isinstance(value, str):
        return {"DataType": "String", "StringValue": value} if value and not _NOT_TEXT.search(value) else None
    if isinstance(value, bytes):
        return {"DataType": "Binary", "BinaryValue": value} if value else None
    if value is None:
        return {"DataType": "String.null", "StringValue": "null"}
    if isinstance(value, bool):
        return {"DataType": "String.bool", "StringValue": "true" if value else "false"}
    if isinstance(value, int):
        return {"DataType": "Number", "StringValue": str(int(value))} if abs(value) < _NUMBER_MAX else None
    # "SQS trims leading and trailing zeroes": 3.0 may come back as 3, so the label says what it was.
    fits = _FLOAT_MIN < abs(value) < _FLOAT_MAX
    return {"DataType": "Number.float", "StringValue": repr(float(value))} if fits else None


def _group_of(message: Outgoing) -> str:
    """A message without a group is alone in one: it waits for no other, and no other for it."""
    group = message.group_id
    if group is None:
        return OWN + "own-" + _digest(message.id or secrets.token_hex(16))
    return group if _is_token(group) else OWN + _digest(group)


def _dedup_of(message: Outgoing) -> str:
    """The same for each attempt to send a message, so that one that was sent again is there once. Copies are others."""
    if message.dedup_id is not None:
        return message.dedup_id if _is_token(message.dedup_id) else OWN + _digest(message.dedup_id)
    trail = message.trail._replace(resent=0)
    is_copy = trail != NO_TRAIL
    if message.id is None or message.sent_at is None or (is_copy and trail.copied_from is None):
        return OWN + secrets.token_hex(32)
    return OWN + _digest(repr((message.id, message.sent_at, trail)))


def _is_token(text: str | None) -> bool:
    """It can be a group's or a deduplication's id as it is, and is taken for none of ours."""
    return text is not None and _TOKEN.match(text) is not None and not text.startswith(OWN)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# --- batches ---------------------------------------------------------------------------------------------------------


def chunked(entries: Iterable[Entry], size_max: int) -> list[list[Entry]]:
    """In order, as many to a request as SQS takes."""
    chunks: list[list[Entry]] = []
    size = 0
    for entry in entries:
        size += entry.size
        if not chunks or len(chunks[-1]) == BATCH_MAX or size > size_max:
            chunks.append([])
            size = entry.size
        chunks[-1].append(entry)
    return chunks


def lanes_of(entries: Iterable[Entry], most: int, size_max: int) -> list[list[list[Entry]]]:
    """Requests that may be made side by side; those of one lane go one after the other. A group keeps to its lane."""
    free: list[Entry] = []
    grouped: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry.group is None:
            free.append(entry)
        else:
            grouped.setdefault(hash(entry.group) % most, []).append(entry)
    lanes = [chunked(lane, size_max) for lane in grouped.values()]
    lanes.extend([chunk] for chunk in chunked(free, size_max))
    return lanes


# --- in --------------------------------------------------------------------------------------------------------------


def message_of(received: Mapping[str, Any]) -> Outgoing:
    """A message as it was received, whoever sent it."""
    headers: dict[str, object] = {}
    body = received.get("Body", "").encode("utf-8", "surrogatepass")
    more: str | None = None
    for name, attribute in received.get("MessageAttributes", {}).items():
        kind = attribute.get("DataType", "String")
        if name == MORE and kind == "String":
            more = attribute.get("StringValue")
        elif name == BODY and kind.startswith("Binary"):
            body = b"" if kind == "Binary.empty" else attribute.get("BinaryValue", b"")
        else:
            headers[name] = _value(kind, attribute)
    if more is not None:
        _unpack(more, headers)
    system = received.get("Attributes", {})
    group, dedup = system.get("MessageGroupId"), system.get("MessageDeduplicationId")
    message = Outgoing(
        None,
        body,
        group_id=group if _is_token(group) else None,
        dedup_id=dedup if _is_token(dedup) else None,
    )
    return from_headers(headers, message)


def _value(kind: str, attribute: Mapping[str, Any]) -> HeaderValue:
    if "BinaryValue" in attribute:
        return bytes(attribute["BinaryValue"])
    text: str = attribute.get("StringValue", "")
    if kind == "String":
        return text
    if kind == "String.null" and text == "null":
        return None
    if kind == "String.bool" and text in ("true", "false"):
        return text == "true"
    if kind.partition(".")[0] == "Number":
        try:
            return float(text) if kind == "Number.float" else int(text)
        except ValueError:
            return _number(text)
    return text


def _number(text: str) -> HeaderValue:
    """A foreign number: whole, or a float if that is exact enough for anybody; else what was sent."""
    try:
        return float(text)
    except ValueError:
        return text


def _unpack(more: str, headers: dict[str, object]) -> None:
    try:
        fields = json.loads(more)
        rest = fields.pop("headers", {})
        for name, value in rest.items():
            headers[name] = base64.b64decode(value[0]) if isinstance(value, list) else value
        headers.update(fields)
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError, binascii.Error):
        # Somebody else's attribute of our name: the message is delivered without it.
        headers.pop(MORE, None)
