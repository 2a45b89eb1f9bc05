"""What the command prints: data on standard output, remarks on standard error, and no control codes into a pipe."""

import base64
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from mqlayer.cli.failures import hide_passwords

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mqlayer.driver import HeaderValue
    from mqlayer.message import ReceivedMessage

__all__ = ["JSON", "body_fields", "console", "json_line", "line", "message_fields", "remark", "table", "write_body"]

PIPE_WIDTH = 250  #: columns of a table that goes to a file or another program

JSON = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def line(text: str) -> None:
    """One line of data."""
    _write(f"{text}\n".encode(sys.stdout.encoding or "utf-8", "backslashreplace"))


def remark(text: str) -> None:
    """Something for the person who watches, on standard error."""
    typer.echo(hide_passwords(text), err=True)


def json_line(value: object) -> None:
    """One JSON document on a line of its own, in UTF-8 whatever the locale."""
    _write(f"{json.dumps(value, ensure_ascii=False, allow_nan=False)}\n".encode())


def console(stream: IO[str] | None = None) -> "Console":
    """A rich console on standard output, or on *stream*: plain, and wide, where nobody watches."""
    from rich.console import Console

    stream = stream or sys.stdout
    return Console(
        file=stream,
        width=None if stream.isatty() else PIPE_WIDTH,
        force_terminal=None if stream.isatty() else False,
        highlight=False,
        markup=False,
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> "Table":
    """Texts as a table; the first column stands out."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for number, name in enumerate(columns):
        made.add_column(name, style="bold" if number == 0 else None, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def message_fields(message: "ReceivedMessage") -> dict[str, Any]:
    """A message as JSON can hold it. All keys are always there; bytes are ``{"base64": …}`` in headers."""
    return {
        "id": message.id,
        "headers": {name: _header(value) for name, value in message.headers.items()},
        "content_type": message.content_type,
        "correlation_id": message.correlation_id,
        "reply_to": message.reply_to,
        "priority": message.priority,
        "group_id": message.group_id,
        "dead_letter": _dead_letter(message),
        **body_fields(message.body),
    }


def body_fields(body: bytes) -> dict[str, str]:
    """``body`` as text where it is UTF-8, else as base64; ``body_encoding`` says which."""
    try:
        return {"body": body.decode(), "body_encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(body).decode(), "body_encoding": "base64"}


def write_body(body: bytes, *, raw: bool) -> None:
    """A body and a line end; *raw*: the body alone, byte for byte.

    Into a terminal, what could command it (escape sequences, other control characters) is written as ``\\x1b``.
    """
    if not raw and sys.stdout.isatty():
        line(_visible(body))
    else:
        _write(body if raw else body + b"\n")


def _write(data: bytes) -> None:
    """All of it, to the last byte, before anything is acknowledged.

    Under ``python -u`` the stream beneath has no buffer, and writes as much as the pipe takes just now.
    """
    sys.stdout.flush()
    stream = sys.stdout.buffer
    left = memoryview(data)
    while left:
        left = left[stream.write(left) :]
    stream.flush()


def _visible(body: bytes) -> str:
    text = body.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _header(value: "HeaderValue") -> str | int | float | bool | Mapping[str, str] | None:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number
    return value


def _dead_letter(message: "ReceivedMessage") -> dict[str, Any] | None:
    if message.dead_letter_origin is None and message.dead_letter_reason is None:
        return None
    return {
        "origin": message.dead_letter_origin,
        "reason": message.dead_letter_reason,
        "delivery_count": message.dead_letter_count,
    }
