"""``send``, ``receive``, ``stats``, ``peek``, ``purge``: the verbs of the API, one queue at a time."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

import mqlayer
from mqlayer.cli.failures import ExitCode
from mqlayer.cli.output import JSON, json_line, line, message_fields, remark, table, write_body
from mqlayer.cli.output import console as console_on
from mqlayer.codec import decode
from mqlayer.errors import UndecodableError

__all__ = ["peek", "purge", "receive", "send", "stats"]

TIMEOUT = 30.0
LIMIT = 1000  #: deliveries that are asked for at once
# What is received here may have been refused by many handlers before; whoever looks at it by hand wants to see it.
ANY_COUNT = mqlayer.Retry(attempts_max=2**31)

URL = Annotated[str, typer.Argument(metavar="URL", help="The broker: sqlite:///jobs.db, amqp://user:password@host/ …")]
Queue = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue's name.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Seconds that this may take.")]


def send(
    url: URL,
    queue: Queue,
    body: Annotated[
        str | None,
        typer.Argument(
            metavar="BODY", help="The message; - or nothing: standard input, to its end.", show_default=False
        ),
    ] = None,
    *,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="NAME=VALUE", help="A header. May be repeated.")
    ] = None,
    json_body: Annotated[bool, typer.Option("--json-body", help="The body is JSON: checked, and marked so.")] = False,
    content_type: Annotated[str | None, typer.Option(help="Default: text for BODY, bytes for standard input.")] = None,
    delay: Annotated[float, typer.Option(metavar="SECONDS", help="Hand it over no sooner than that.")] = 0.0,
    ttl: Annotated[float | None, typer.Option(metavar="SECONDS", help="Discard it after that.")] = None,
    priority: Annotated[int | None, typer.Option(metavar="0-9", help="Higher comes first.")] = None,
    group_id: Annotated[str | None, typer.Option(metavar="TEXT", help="Order is kept within a group.")] = None,
    dedup_id: Annotated[str | None, typer.Option(metavar="TEXT", help="A second one with the same is dropped.")] = None,
    correlation_id: Annotated[str | None, typer.Option(metavar="TEXT", help="The request that this answers.")] = None,
    reply_to: Annotated[str | None, typer.Option(metavar="QUEUE", help="Where an answer should go.")] = None,
    message_id: Annotated[str | None, typer.Option("--id", metavar="TEXT", help="Default: made here.")] = None,
    timeout: Timeout = TIMEOUT,
    as_json: JSON = False,
) -> None:
    """Send one message; print its id once the broker has it safely.

    If it is not known whether the broker has it, the exit code is 4: sending it again may repeat it.
    """
    payload, kind = _payload(body, content_type, json_body)
    message = mqlayer.Message(
        payload,
        headers=_headers(header or []),
        delay=delay,
        ttl=ttl,
        priority=priority,
        group_id=group_id,
        dedup_id=dedup_id,
        content_type=kind,
        correlation_id=correlation_id,
        reply_to=reply_to,
        id=message_id,
    )
    with mqlayer.connect(url, timeout=timeout) as mq:
        sent_id = mq.producer(queue, timeout=timeout).send(message, timeout=timeout)
    if as_json:
        json_line({"id": sent_id, "queue": queue})
    else:
        line(sent_id)


def receive(
    url: URL,
    queue: Queue,
    *,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Messages at the most.")] = 1,
    timeout: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="Wait that long for each; 0: take what is there; inf: for ever."),
    ] = 10.0,
    no_ack: Annotated[bool, typer.Option("--no-ack", help="Only look: give all back in the end, uncounted.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Write the bodies alone, byte for byte, no line ends.")] = False,
    as_json: JSON = False,
) -> None:
    """Receive messages and print their bodies, one a line. Each is acknowledged after it was printed.

    Exit code 1: there was none. A message that was printed and could not be acknowledged comes again.
    """
    wait = None if timeout == float("inf") else timeout
    with (
        mqlayer.connect(url) as mq,
        mq.consumer(queue, prefetch=1, retry=ANY_COUNT, dead_letter=None) as consumer,
        _held(consumer) as held,
    ):
        got = 0
        # Each is acknowledged before the next is fetched; what is only looked at is held together, so asked for together.
        while got < count and (new := consumer.receive_many(min(count - got, LIMIT) if no_ack else 1, timeout=wait)):
            got += len(new)
            held += new
            for delivery in new:
                _print_delivery(delivery, raw=raw, as_json=as_json)
                if not no_ack:
                    delivery.ack()
                    held.remove(delivery)
    if not got:
        remark(f"nothing received from {queue!r} in {timeout:g} s")
        raise typer.Exit(ExitCode.NEGATIVE)


def stats(url: URL, queue: Queue, *, timeout: Timeout = TIMEOUT, as_json: JSON = False) -> None:
    """Print how many messages the queue holds."""
    with mqlayer.connect(url, timeout=timeout) as mq:
        found = mq.stats(queue, timeout=timeout)
    names = ("ready", "in_flight", "delayed")
    if as_json:
        json_line({"queue": queue, **{name: getattr(found, name) for name in names}, "approximate": found.approximate})
        return
    about = "about " if found.approximate else ""
    numbers = [getattr(found, name) for name in names]
    shown = ["not told" if number is None else f"{about}{number}" for number in numbers]
    console_on().print(table(["queue", *(name.replace("_", " ") for name in names)], [[queue, *shown]]))


def peek(
    url: URL,
    queue: Queue,
    *,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Messages at the most.")] = 10,
    raw: Annotated[bool, typer.Option("--raw", help="Write the bodies alone, byte for byte, no line ends.")] = False,
    timeout: Timeout = TIMEOUT,
    as_json: JSON = False,
) -> None:
    """Print what a consumer would get, and change nothing. Exit code 1: there is nothing."""
    with mqlayer.connect(url, timeout=timeout) as mq:
        found = mq.peek(queue, count, timeout=timeout)
    for message in found:
        if as_json:
            json_line({"queue": queue, **message_fields(message)})
        else:
            write_body(message.body, raw=raw)
    if not found:
        remark(f"nothing is ready in {queue!r}")
        raise typer.Exit(ExitCode.NEGATIVE)


def purge(url: URL, queue: Queue, *, timeout: Timeout = TIMEOUT, as_json: JSON = False) -> None:
    """Drop what is ready in the queue. What consumers hold stays."""
    with mqlayer.connect(url, timeout=timeout) as mq:
        dropped = mq.purge(queue, timeout=timeout)
    if as_json:
        json_line({"queue": queue, "purged": dropped})
    else:
        line(f"purged {queue}" if dropped is None else f"purged {dropped} from {queue}")


def _payload(body: str | None, content_type: str | None, json_body: bool) -> tuple[bytes | str, str | None]:
    """What to send, and its content type where it does not follow from the payload."""
    if body is None and sys.stdin.isatty():
        raise typer.BadParameter("give the message, or - to read it from standard input", param_hint="BODY")
    payload: bytes | str = sys.stdin.buffer.read() if body is None or body == "-" else _argument(body)
    if not json_body:
        return (payload, None) if content_type is None else (_as_bytes(payload), content_type)
    body_bytes = _as_bytes(payload)
    try:
        decode(body_bytes, "application/json")
    except UndecodableError as exc:
        raise typer.BadParameter(str(exc), param_hint="--json-body") from exc
    return body_bytes, content_type or "application/json"


def _argument(body: str) -> bytes | str:
    """An argument is text, unless the shell passed bytes that are none."""
    try:
        body.encode()
    except UnicodeEncodeError:
        return os.fsencode(body)
    return body


def _as_bytes(payload: bytes | str) -> bytes:
    return payload.encode() if isinstance(payload, str) else payload


def _headers(texts: list[str]) -> dict[str, mqlayer.HeaderValue]:
    headers: dict[str, mqlayer.HeaderValue] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"a header is NAME=VALUE, not {text!r}", param_hint="--header")
        headers[name] = value
    return headers


def _print_delivery(delivery: "mqlayer.Delivery", *, raw: bool, as_json: bool) -> None:
    message = delivery.message
    if not as_json:
        write_body(message.body, raw=raw)
        return
    counted: dict[str, Any] = {"delivery_count": delivery.delivery_count, "redelivered": delivery.redelivered}
    json_line({"queue": delivery.queue, **message_fields(message), **counted})


class _NotHandled(BaseException):
    """Ends a ``with delivery`` so that the message goes back uncounted: no failure, as with Ctrl-C."""


@contextmanager
def _held(consumer: "mqlayer.Consumer") -> Iterator[list["mqlayer.Delivery"]]:
    """Deliveries that are given back, uncounted, if they are still in the list in the end."""
    held: list[mqlayer.Delivery] = []
    try:
        yield held
    finally:
        consumer.stop()  # or what is given back would come straight here again
        for delivery in held:
            try:
                with delivery:
                    raise _NotHandled
            except _NotHandled:
                continue  # that was all it is for
