"""Sending: batches of ten, several requests side by side, a fate for every message.

Messages of one group keep their order: their requests go one after the other, and once one of them has to be sent again,
those behind it have not left.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from mqlayer.backends.sqs_requests import Requests
from mqlayer.backends.sqs_service import REQUESTS_MAX, Service, failed_entry, fate_of, translated
from mqlayer.backends.sqs_wire import Entry, entry_of, lanes_of, service_name
from mqlayer.clock import Clock
from mqlayer.driver import Failures, Outgoing
from mqlayer.errors import (
    MQError,
    NotSentError,
    OutcomeUnknownError,
    QueueNotFoundError,
    RefusedError,
    UsageError,
)

__all__ = ["Sender"]


class _Lane:
    """Requests that are made one after the other, in a thread of ``Requests``, until somebody gives them up."""

    def __init__(self, chunks: list[list[Entry]], send: Callable[[list[Entry]], Failures], is_over: Callable[[], bool]):
        self._chunks = chunks
        self._send = send
        self._is_over = is_over
        self._lock = threading.Lock()
        self._given_up = False
        self._begun = 0  # chunks whose request may have left
        self._done = 0
        self._fates: dict[int, MQError] = {}

    def run(self) -> None:
        for chunk in self._chunks:
            with self._lock:
                if self._given_up or self._is_over():
                    return
                self._begun += 1
            fates = self._send(chunk)
            with self._lock:
                self._fates.update(fates)
                self._done += 1
            if any(not isinstance(error, (RefusedError, UsageError)) for error in fates.values()):
                return

    def give_up(self) -> tuple[dict[int, MQError], list[Entry], list[Entry]]:
        """No further request begins. Returns what is known, and the entries that have no answer and that never left."""
        with self._lock:
            self._given_up = True
            unanswered = [entry for chunk in self._chunks[self._done : self._begun] for entry in chunk]
            unsent = [entry for chunk in self._chunks[self._begun :] for entry in chunk]
            return self._fates, unanswered, unsent


class Sender:
    """One session's.

    Args:
        lost: Told of the error when a connection failed.
    """

    def __init__(
        self,
        service: Service,
        requests: Requests,
        *,
        fifo: bool,
        size_max: int,
        clock: Clock,
        lost: Callable[[MQError], None],
    ) -> None:
        self._service = service
        self._requests = requests
        self._fifo = fifo
        self._size_max = size_max
        self._clock = clock
        self._lost = lost

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        """As the driver says.

        Raises:
            ArgumentError: no queue can have that name.
        """
        deadline = self._clock.monotonic() + timeout
        name = service_name(queue, fifo=self._fifo)
        failures: dict[int, MQError] = {}
        entries: list[Entry] = []
        for place, message in enumerate(batch):
            try:
                entries.append(entry_of(place, message, fifo=self._fifo, size_max=self._size_max))
            except (RefusedError, UsageError) as error:
                failures[place] = error
        if not entries:
            return failures
        try:
            url = self._requests.call(lambda: self._service.url(name), timeout, f"queue {queue!r}")
        except MQError as error:
            self._lost(error)
            for entry in entries:
                failures[entry.place] = fate_of(error, batch[entry.place].id, begun=False)
            return failures
        failures.update(self._send(queue, url, entries, batch, deadline))
        if any(isinstance(error, QueueNotFoundError) for error in failures.values()):
            self._service.forget(name)
        return failures

    def _send(
        self, queue: str, url: str, entries: list[Entry], batch: Sequence[Outgoing], deadline: float
    ) -> dict[int, MQError]:
        def send(chunk: list[Entry]) -> Failures:
            return self._request(queue, url, chunk, batch)

        lanes = [
            _Lane(chunks, send, lambda: self._clock.monotonic() >= deadline)
            for chunks in lanes_of(entries, REQUESTS_MAX, self._size_max)
        ]
        requests = [self._requests.start(lane.run) for lane in lanes]
        self._requests.wait(requests, deadline)
        failures: dict[int, MQError] = {}
        for lane, request in zip(lanes, requests, strict=True):
            if request.defect is not None:
                raise request.defect
            fates, unanswered, unsent = lane.give_up()
            failures.update(fates)
            for entry in unanswered:
                text = f"no answer from SQS in time (sending to {queue!r})"
                failures[entry.place] = OutcomeUnknownError(text, message_id=batch[entry.place].id)
            for entry in unsent:
                text = f"sending to {queue!r}: not begun in time, or what was before it has to be sent first"
                failures[entry.place] = NotSentError(text, message_id=batch[entry.place].id)
        return failures

    def _request(self, queue: str, url: str, chunk: list[Entry], batch: Sequence[Outgoing]) -> dict[int, MQError]:
        """One request, in a thread of ``Requests``. 200 is no success: each entry has its own."""
        what = f"sending to {queue!r}"
        entries: Any = [entry.request for entry in chunk]
        try:
            answer = translated(what, lambda: self._service.client.send_message_batch(QueueUrl=url, Entries=entries))
        except MQError as error:
            self._lost(error)
            return {entry.place: fate_of(error, batch[entry.place].id) for entry in chunk}
        fates: dict[int, MQError] = {
            entry.place: OutcomeUnknownError(
                f"{what}: SQS did not say what became of it", message_id=batch[entry.place].id
            )
            for entry in chunk
        }
        for done in answer.get("Successful", ()):
            fates.pop(int(done["Id"]), None)
        for failed in answer.get("Failed", ()):
            place = int(failed["Id"])
            fates[place] = fate_of(failed_entry(failed, what), batch[place].id)
        return fates
