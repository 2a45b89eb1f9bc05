"""What a session asks of SQS about queues: made, found, counted, emptied, deleted."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from mqlayer.backends.sqs_held import Change, Held, delete, parts_of
from mqlayer.backends.sqs_requests import Requests
from mqlayer.backends.sqs_service import Service, translated
from mqlayer.backends.sqs_wire import BATCH_MAX, service_name
from mqlayer.clock import Clock
from mqlayer.driver import Declare, QueueOptions, Stats
from mqlayer.errors import ArgumentError, MQError, QueueNotFoundError, RequestTimeoutError

__all__ = ["Queues"]

RETENTION = 14 * 24 * 3600  #: seconds that SQS keeps a message: its most; by default four days
PURGE_LEASE = 30  #: seconds in which what is being purged is nobody else's
COUNTS = (
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
)
T = TypeVar("T")
log = logging.getLogger("mqlayer")


class Queues:
    """One session's. Deadlines are on the monotonic clock.

    Args:
        lease: Seconds of a lease, for consumers of other programs.
        lost: Told of the error when a connection failed.
    """

    def __init__(
        self,
        service: Service,
        requests: Requests,
        *,
        fifo: bool,
        lease: int,
        clock: Clock,
        lost: Callable[[MQError], None],
    ) -> None:
        self._service = service
        self._requests = requests
        self._fifo = fifo
        self._lease = lease
        self._clock = clock
        self._lost = lost
        self._temporary: set[str] = set()  #: queues that go with this session

    def declare(self, queue: str, options: QueueOptions, mode: Declare, timeout: float) -> QueueOptions:
        """As the driver says. SQS stores none of the options, and expires no queue: a temporary one goes with the session.

        Raises:
            QueueNotFoundError: CHECK, and it is missing. ThrottledError: it was deleted within the last 60 s.
        """
        name = service_name(queue, fifo=self._fifo)
        known = self._service.known(name)
        if known is None or mode is not Declare.ENSURE:
            self._call(lambda: self._find_or_make(queue, name, mode), timeout, f"declaring {queue!r}")
        if options.temporary:
            self._temporary.add(queue)
        return QueueOptions(temporary=options.temporary)

    def url(self, queue: str, timeout: float) -> str:
        """
        Raises:
            QueueNotFoundError
        """
        name = service_name(queue, fifo=self._fifo)
        known = self._service.known(name)
        return known or self._call(lambda: self._service.url(name), timeout, f"queue {queue!r}")

    def stats(self, queue: str, timeout: float) -> Stats:
        """Estimates, all three."""
        url = self.url(queue, timeout)

        def ask() -> Stats:
            names: Any = list(COUNTS)
            client = self._service.client
            answer = translated(
                f"counting {queue!r}", lambda: client.get_queue_attributes(QueueUrl=url, AttributeNames=names)
            )
            told: Mapping[str, str] = answer.get("Attributes", {})  # type: ignore[assignment]
            ready, in_flight, delayed = (_number(told.get(name)) for name in COUNTS)
            return Stats(ready=ready, in_flight=in_flight, delayed=delayed, approximate=True)

        return self._about(queue, ask, timeout)

    def purge(self, queue: str, timeout: float) -> int:
        """Receive and delete what is ready. SQS's own PurgeQueue takes what is in flight as well, and works once a minute.

        Raises:
            RequestTimeoutError: the time was up; what was deleted by then is gone.
        """
        url = self.url(queue, timeout)
        deadline = self._clock.monotonic() + timeout
        purged = 0
        wait = 0
        while True:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise RequestTimeoutError(f"{purged} messages of {queue!r} were purged, and there are more")
            number = self._about(queue, lambda wait=wait: self._purge_some(queue, url, wait), left)  # type: ignore[misc]
            if not number and wait:
                return purged
            # Only a long poll asks all of SQS's servers: nothing is nothing when one has said so.
            wait = 0 if number else 1
            purged += number

    def _purge_some(self, queue: str, url: str, wait: int) -> int:
        began = self._clock.monotonic()
        client = self._service.client
        answer = translated(
            f"purging {queue!r}",
            lambda: client.receive_message(
                QueueUrl=url, MaxNumberOfMessages=BATCH_MAX, WaitTimeSeconds=wait, VisibilityTimeout=PURGE_LEASE
            ),
        )
        helds = [
            Held(queue, url, one["MessageId"], one["ReceiptHandle"], began, began + PURGE_LEASE)
            for one in answer.get("Messages", ())
        ]
        number = 0
        for part in parts_of(Change(place, held, 0) for place, held in enumerate(helds)):
            number += len(part) - len(delete(self._service, part))
        return number

    def delete(self, queue: str, timeout: float) -> None:
        """As the driver says. SQS may take messages for up to 60 s more, and then drops them."""
        name = service_name(queue, fifo=self._fifo)
        self._temporary.discard(queue)

        def drop() -> None:
            try:
                url = self._service.url(name)
                translated(f"deleting {queue!r}", lambda: self._service.client.delete_queue(QueueUrl=url))
            except QueueNotFoundError:  # what the caller wants
                log.debug("queue %r is gone already", queue)
            self._service.forget(name)

        self._call(drop, timeout, f"deleting {queue!r}")

    def delete_temporary(self, timeout: float) -> None:
        """At the session's end in order."""
        for queue in sorted(self._temporary):
            self.delete(queue, timeout)

    def _find_or_make(self, queue: str, name: str, mode: Declare) -> None:
        self._service.forget(name)
        try:
            self._service.url(name)
        except QueueNotFoundError:
            if mode is Declare.CHECK:
                raise QueueNotFoundError(f"there is no queue {queue!r} (SQS: {name}); declare it first") from None
            self._make(queue, name)

    def _make(self, queue: str, name: str) -> None:
        attributes: Any = {"MessageRetentionPeriod": str(RETENTION), "VisibilityTimeout": str(self._lease)}
        if self._fifo:
            attributes["FifoQueue"] = "true"
        client = self._service.client
        try:
            url = translated(
                f"declaring {queue!r}", lambda: client.create_queue(QueueName=name, Attributes=attributes)
            )["QueueUrl"]
        except ArgumentError as error:
            if "QueueNameExists" not in str(error):  # else somebody was quicker, with other attributes: it is there
                raise
            self._service.url(name)
            return
        self._service.remember(name, url)

    def _about(self, queue: str, call: Callable[[], T], timeout: float) -> T:
        try:
            return self._call(call, timeout, f"queue {queue!r}")
        except QueueNotFoundError:
            self._service.forget(service_name(queue, fifo=self._fifo))
            raise

    def _call(self, call: Callable[[], T], timeout: float, what: str) -> T:
        try:
            return self._requests.call(call, timeout, what)
        except MQError as error:
            self._lost(error)
            raise

    @property
    def temporary(self) -> Sequence[str]:
        """Queues that go with this session."""
        return sorted(self._temporary)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
