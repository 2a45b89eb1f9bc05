"""R1, R4, R5: publish to RabbitMQ, every message confirmed, persistent and mandatory.

The connection stands and a first hundred messages are confirmed before the clock starts; they are part of the count
that the broker must hold in the end.
"""

import itertools
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from benchmarks.meter import BODY_BYTE, HEADER_NAME, HEADER_VALUE, KIND, Meter, Result
from benchmarks.model import Job, WrongResultError

WARM_UP = 100  #: messages before the clock starts
WINDOW = 1024  #: unconfirmed messages of the hand-written pipeline
BATCH = 1000  #: messages of one ``send_many``
TIMEOUT = 60.0


def _body(job: Job) -> bytes:
    return BODY_BYTE * int(job.settings["body_bytes"])


def _ids() -> Iterator[str]:
    return (f"bench-{number}" for number in itertools.count())


def _sizes(count: int) -> Iterator[int]:
    """The batches of *count* messages."""
    while count > 0:
        yield min(count, BATCH)
        count -= BATCH


def _url(job: Job) -> str:
    return f"amqp://guest:guest@127.0.0.1:{job.settings['port']}/"


# --- mqlayer --------------------------------------------------------------------------------------------------------------


def mqlayer_send_many(job: Job) -> Result:
    """``producer.send_many``, a thousand a call."""
    import mqlayer

    body, meter = _body(job), Meter()
    headers = {HEADER_NAME: HEADER_VALUE}
    with mqlayer.connect(_url(job)) as mq, mq.producer(job.settings["queue"]) as producer:

        def send(count: int) -> None:
            for size in _sizes(count):
                report = producer.send_many(mqlayer.Message(body, headers=headers) for _ in range(size))
                if report.failures or len(report.ids) != size:
                    raise WrongResultError(f"not confirmed: {report.failures}")

        send(WARM_UP)
        meter.start()
        send(job.count - WARM_UP)
        meter.stop()
    return _whole(meter, job)


def mqlayer_submit(job: Job) -> Result:
    """``producer.submit`` for each, then ``flush``, which raises what failed."""
    import mqlayer

    body, meter = _body(job), Meter()
    headers = {HEADER_NAME: HEADER_VALUE}
    with mqlayer.connect(_url(job)) as mq, mq.producer(job.settings["queue"]) as producer:

        def send(count: int) -> None:
            for _ in range(count):
                producer.submit(body, headers=headers)
            producer.flush()

        send(WARM_UP)
        meter.start()
        send(job.count - WARM_UP)
        meter.stop()
    return _whole(meter, job)


def mqlayer_send(job: Job) -> Result:
    """``producer.send``: each waits for its confirm."""
    import mqlayer

    body, meter = _body(job), Meter()
    headers = {HEADER_NAME: HEADER_VALUE}
    with mqlayer.connect(_url(job)) as mq, mq.producer(job.settings["queue"]) as producer:
        for _ in range(WARM_UP):
            producer.send(body, headers=headers)
        meter.start()
        for _ in range(job.count - WARM_UP):
            producer.send(body, headers=headers)
        meter.stop()
    return _whole(meter, job)


# --- peers ----------------------------------------------------------------------------------------------------------------


def kombu_confirm(job: Job) -> Result:
    """kombu over py-amqp with ``confirm_publish``: raises for a nack, waits for each confirm; the body is bytes already."""
    kombu: Any = import_module("kombu")  # not typed

    body, meter, ids = _body(job), Meter(), _ids()
    headers = {HEADER_NAME: HEADER_VALUE}
    queue = job.settings["queue"]
    with kombu.Connection(_url(job), transport_options={"confirm_publish": True}) as connection:
        returned: list[Any] = []
        producer = kombu.Producer(connection.channel(), on_return=lambda *what: returned.append(what))

        def send(count: int) -> None:
            for _ in range(count):
                producer.publish(
                    body,
                    routing_key=queue,
                    content_type=KIND,
                    content_encoding="binary",
                    message_id=next(ids),
                    headers=headers,
                    delivery_mode=2,
                    mandatory=True,
                )

        send(WARM_UP)
        meter.start()
        send(job.count - WARM_UP)
        meter.stop()
        _check_returned(returned)
    return _whole(meter, job)


def pika_blocking(job: Job) -> Result:
    """pika's BlockingConnection with ``confirm_delivery``: raises for a nack and for a returned message."""
    import pika

    body, meter, ids = _body(job), Meter(), _ids()
    headers = {HEADER_NAME: HEADER_VALUE}
    connection = pika.BlockingConnection(pika.URLParameters(_url(job) + "%2F"))
    channel = connection.channel()
    channel.confirm_delivery()

    def send(count: int) -> None:
        for _ in range(count):
            properties = pika.BasicProperties(content_type=KIND, message_id=next(ids), headers=headers, delivery_mode=2)
            channel.basic_publish("", job.settings["queue"], body, properties, mandatory=True)

    send(WARM_UP)
    meter.start()
    send(job.count - WARM_UP)
    meter.stop()
    connection.close()
    return _whole(meter, job)


def pika_select(job: Job) -> Result:
    """pika's SelectConnection with a window of 1024 unconfirmed messages, written by hand: no envelope, no futures."""
    import pika

    run = _Pipeline(job, _body(job))
    connection = pika.SelectConnection(
        pika.URLParameters(_url(job) + "%2F"),
        on_open_callback=lambda opened: opened.channel(on_open_callback=run.opened),
        on_open_error_callback=run.failed,
        on_close_callback=run.closed,
    )
    connection.ioloop.start()
    if run.problem is not None:
        raise run.problem
    return _whole(run.meter, job)


class _Pipeline:
    """Publish while the window has room; each confirm makes room again."""

    def __init__(self, job: Job, body: bytes) -> None:
        self.meter = Meter()
        self.problem: WrongResultError | None = None
        self._job = job
        self._body = body
        self._ids = _ids()
        self._sent = 0
        self._confirmed = 0
        self._limit = WARM_UP
        self._channel: Any = None

    def opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_return_callback(lambda *what: self._fail(f"returned: {what[1]}"))
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._publish())

    def failed(self, connection: Any, error: object) -> None:
        self.problem = WrongResultError(f"no connection: {error}")
        connection.ioloop.stop()

    def closed(self, connection: Any, reason: object) -> None:
        if self._confirmed != self._job.count and self.problem is None:
            self.problem = WrongResultError(f"the connection ended: {reason}")
        connection.ioloop.stop()

    def _fail(self, what: str) -> None:
        self.problem = WrongResultError(what)
        self._channel.connection.close()

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        if method.NAME != "Basic.Ack":
            self._fail(f"nacked: {method}")
            return
        self._confirmed = method.delivery_tag if method.multiple else self._confirmed + 1
        if self._confirmed == self._job.count:
            self.meter.stop()
            self._channel.connection.close()
            return
        if self._confirmed == WARM_UP and self._limit == WARM_UP:
            self._limit = self._job.count
            self.meter.start()
        self._publish()

    def _publish(self) -> None:
        import pika

        headers = {HEADER_NAME: HEADER_VALUE}
        while self._sent < min(self._limit, self._confirmed + WINDOW):
            properties = pika.BasicProperties(
                content_type=KIND, message_id=next(self._ids), headers=headers, delivery_mode=2
            )
            self._channel.basic_publish("", self._job.settings["queue"], self._body, properties, mandatory=True)
            self._sent += 1


def _check_returned(returned: list[Any]) -> None:
    if returned:
        raise WrongResultError(f"{len(returned)} messages were returned: {returned[0]}")


def _whole(meter: Meter, job: Job) -> Result:
    """The rate of what was timed; the count of all that was published."""
    result = meter.result(job.count - WARM_UP)
    result.count = job.count
    return result
