"""E1: what surrounds the body, both ways, and JSON bodies; no broker."""

import json
from typing import Any

from benchmarks.meter import BODY_BYTE, HEADER_NAME, HEADER_VALUE, Meter, Result
from benchmarks.model import Job, WrongResultError

PAYLOAD: dict[str, Any] = {
    "id": "6fb2f2a4-0f10-4a37-9b3c-2c6e6f1f6c11",
    "type": "order.created",
    "tenant": "pbs",
    "created": "2026-11-23T10:11:12.131415+00:00",
    "customer": {"number": 80412, "name": "Example & Sons", "vip": False},
    "lines": [{"sku": "A-1001", "amount": 3, "price": 19.95}, {"sku": "B-2002", "amount": 1, "price": 249.0}],
    "notes": None,
    "tags": ["web", "first", "gift"],
}
# What a broker such as RabbitMQ has a property of its own for; the rest becomes headers.
NATIVE = frozenset({"id", "content_type", "correlation_id", "reply_to", "priority", "sent_at"})


def mqlayer_envelope(job: Job) -> Result:
    """Payload and header → message with its id → headers of the wire → back to what a handler reads. The body is bytes."""
    import mqlayer
    from mqlayer.codec import decode, from_headers, to_headers
    from mqlayer.core.sending import ProducerCore
    from mqlayer.driver import Outgoing
    from mqlayer.message import ReceivedMessage

    meter = Meter()
    body = BODY_BYTE * int(job.settings["body_bytes"])
    headers = {HEADER_NAME: HEADER_VALUE}
    with mqlayer.connect("memory://") as mq:
        core = ProducerCore(mq.core, "bench", None)
        bad = 0

        def turn(count: int) -> int:
            bad = 0
            for _ in range(count):
                sent = core.outgoing(body, headers)
                wire = to_headers(sent, native=NATIVE)
                arrived = Outgoing(sent.id, sent.body, content_type=sent.content_type, sent_at=sent.sent_at)
                message = ReceivedMessage(from_headers(wire, arrived), decode)
                if message.payload is not body or message.headers != headers or message.id is None:
                    bad += 1
            return bad

        turn(1000)
        meter.start()
        bad = turn(job.count)
        meter.stop()
    if bad:
        raise WrongResultError(f"{bad} of {job.count} messages changed on the way")
    return meter.result(job.count)


def mqlayer_amqp_envelope(job: Job) -> Result:
    """The same through the AMQP backend's own functions, pika's property objects included; not their bytes."""
    import mqlayer
    from mqlayer.backends.rabbitmq_wire import from_wire, to_properties
    from mqlayer.codec import decode
    from mqlayer.core.sending import ProducerCore
    from mqlayer.message import ReceivedMessage

    meter = Meter()
    body = BODY_BYTE * int(job.settings["body_bytes"])
    headers = {HEADER_NAME: HEADER_VALUE}
    with mqlayer.connect("memory://") as mq:
        core = ProducerCore(mq.core, "bench", None)

        def turn(count: int) -> int:
            bad = 0
            for _ in range(count):
                sent = core.outgoing(body, headers)
                properties = to_properties(sent, sent.sent_at or 0.0)
                message = ReceivedMessage(from_wire(properties, body), decode)
                if message.payload is not body or message.headers != headers or message.id is None:
                    bad += 1
            return bad

        turn(1000)
        meter.start()
        bad = turn(job.count)
        meter.stop()
    if bad:
        raise WrongResultError(f"{bad} of {job.count} messages changed on the way")
    return meter.result(job.count)


def _payload(job: Job) -> dict[str, Any]:
    return PAYLOAD if job.settings["null"] else {name: value for name, value in PAYLOAD.items() if value is not None}


def mqlayer_json(job: Job) -> Result:
    """``codec.encode`` and ``decode`` of a small order."""
    from mqlayer.codec import decode, encode

    meter, payload = Meter(), _payload(job)
    if decode(*encode(payload)) != payload:
        raise WrongResultError("the payload changed on the way")
    meter.start()
    for _ in range(job.count):
        body, kind = encode(payload)
        decode(body, kind)
    meter.stop()
    return meter.result(job.count)


def standard_json(job: Job) -> Result:
    """``json.dumps(…).encode()`` and ``json.loads``."""
    meter, payload = Meter(), _payload(job)
    if json.loads(json.dumps(payload).encode()) != payload:
        raise WrongResultError("the payload changed on the way")
    meter.start()
    for _ in range(job.count):
        body = json.dumps(payload).encode()
        json.loads(body)
    meter.stop()
    return meter.result(job.count)
