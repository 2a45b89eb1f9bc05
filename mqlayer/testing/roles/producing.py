"""The role that sends, and writes down what became of each message."""

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from mqlayer.api import Producer
from mqlayer.errors import Fate, MQError, OutcomeUnknownError, SendError, UsageError
from mqlayer.message import Message
from mqlayer.testing.ledger import EventType, Phase, make_body, read_body
from mqlayer.testing.roles.work import Result, Work

__all__ = ["Produce", "fate_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Produce:
    """Send messages whose bodies are ``producer:counter``, and write down what became of each.

    Attributes:
        count: How many; ``None``: until stopped.
        first: The first counter.
        size: Of each body, in bytes.
        how: The call that is used. batch: of ``send_many``. window: how many ``submit`` may have open.
        rate: At most that many a second.
        groups: Over how many ``group_id`` they are spread in turn; 0: without one.
        fields: More fields of each ``Message``.
        query: More options of the URL.
    """

    queue: str | None = None
    topic: str | None = None
    count: int | None = None
    first: int = 0
    size: int = 64
    seed: int = 0
    how: Literal["send", "submit", "send_many"] = "send"
    batch: int = 100
    window: int = 100
    rate: float | None = None
    timeout: float | None = None
    groups: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)

    def run(self, work: Work) -> Result:
        producer = work.connect(**self.query).producer(self.queue, topic=self.topic)
        sending = _Sending(self, work, producer)
        work.say("ready")
        {"send": sending.one_by_one, "submit": sending.submitted, "send_many": sending.in_batches}[self.how]()
        return dict(sending.counts)


class _Sending:
    """One producer's sending, as its ledger sees it."""

    def __init__(self, job: Produce, work: Work, producer: Producer) -> None:
        self._job = job
        self._work = work
        self._producer = producer
        self._where = job.queue if job.queue is not None else job.topic
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self.counts = {"sent": 0, "ok": 0, "fail": 0, "info": 0}

    def one_by_one(self) -> None:
        for counter in self._counters():
            id, message = self._begin(counter)
            try:
                self._producer.send(message, timeout=self._job.timeout)
            except MQError as error:
                self._note(id, error)
            else:
                self._note(id, None)

    def submitted(self) -> None:
        open_ones: deque[Future[str]] = deque()
        for counter in self._counters():
            id, message = self._begin(counter)
            try:
                future = self._producer.submit(message, timeout=self._job.timeout)
            except MQError as error:
                self._note(id, error)
                continue
            future.add_done_callback(lambda done, id=id: self._note(id, done.exception()))  # type: ignore[misc]
            open_ones.append(future)
            if len(open_ones) >= self._job.window:
                open_ones.popleft().exception()  # waits; noted by the callback
        for future in open_ones:
            future.exception()

    def in_batches(self) -> None:
        batch: list[tuple[str, Message]] = []
        for counter in self._counters():
            batch.append(self._begin(counter))
            if len(batch) == self._job.batch:
                self._send_batch(batch)
                batch = []
        if batch:
            self._send_batch(batch)

    def _send_batch(self, batch: Sequence[tuple[str, Message]]) -> None:
        try:
            report = self._producer.send_many([m for _, m in batch], timeout=self._job.timeout)
        except MQError as error:  # which of them had left by then is not told
            for id, _ in batch:
                self._note(id, OutcomeUnknownError(str(error)))
            return
        for place, (id, _) in enumerate(batch):
            self._note(id, report.failures.get(place))

    def _counters(self) -> Iterator[int]:
        """The counters to send, at the rate that is asked for, until the job or the actor ends."""
        job, work = self._job, self._work
        done = 0
        while (job.count is None or done < job.count) and not work.stopping.is_set():
            work.check()
            yield job.first + done
            done += 1
            if job.rate is not None:
                work.pause(max(0.0, self._begun + done / job.rate - time.monotonic()))

    def _begin(self, counter: int) -> tuple[str, Message]:
        job = self._job
        body = make_body(self._work.name, counter, job.size, job.seed)
        id, sha256 = read_body(body)
        group = f"group-{counter % job.groups}" if job.groups else None
        self._work.ledger.write(EventType.PUBLISH, Phase.INVOKE, id=id, sha256=sha256, queue=self._where, group=group)
        self.counts["sent"] += 1
        return id or "", Message(body, group_id=group, **job.fields)

    def _note(self, id: str, error: BaseException | None) -> None:
        if self._work.abandoned:
            return
        phase = fate_of(error)
        with self._lock:
            self.counts[phase.value] += 1
        detail = {} if error is None else {"error": type(error).__name__, "text": str(error)[:300]}
        self._work.ledger.write(EventType.PUBLISH, phase, id=id, queue=self._where, detail=detail)


def fate_of(error: BaseException | None) -> Phase:
    """What a send's end proves: ``fail`` only if the message is certainly not stored."""
    if error is None:
        return Phase.OK
    if isinstance(error, SendError):
        return Phase.INFO if error.fate is Fate.UNKNOWN else Phase.FAIL
    return Phase.FAIL if isinstance(error, UsageError) else Phase.INFO
