"""Deliveries that a session has, and how they go back: by visibility, and only while they are its own.

A receipt handle is good for one delivery. SQS may carry out what is asked with an old one, and then it is another consumer's
delivery that is deleted or handed over again. So nothing is asked once the lease may be over by the monotonic clock.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mqlayer.backends.sqs_returns import Returns
from mqlayer.backends.sqs_service import Service, failed_entry, translated
from mqlayer.backends.sqs_wire import BATCH_MAX, LEASE_MAX
from mqlayer.driver import Failures
from mqlayer.errors import ArgumentError, MQError, OutcomeUnknownError, StaleDeliveryError, ThrottledError

__all__ = [
    "COPY_SIZE_MAX",
    "Change",
    "Held",
    "Token",
    "change_visibility",
    "delete",
    "give_back",
    "parts_of",
    "put_copies",
]

MARGIN = 0.05  #: the part of a lease before its end in which nothing is asked any more
COPY_TIME = 2.0  #: seconds that must be left of a lease for a copy to be made and its original settled
COPY_SIZE_MAX = 100_000  #: bytes of a copy: ten of them are one request
MARGIN_MAX = 1.0  #: … in seconds at the most
log = logging.getLogger("mqlayer")


class Token(NamedTuple):
    """Names one delivery, among all of all sessions."""

    epoch: str
    number: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.number:x}"


@dataclass(slots=True)
class Held:
    """One delivery of ours. Times are monotonic.

    Attributes:
        given_at: When SQS handed it over, or earlier.
        until: When its lease ends, or earlier.
    """

    queue: str
    url: str
    message_id: str
    receipt: str
    given_at: float
    until: float

    def is_ours(self, now: float) -> bool:
        """Its lease is not over, nor about to be."""
        return now < self.until - min((self.until - self.given_at) * MARGIN, MARGIN_MAX)

    def is_copyable(self, now: float) -> bool:
        """There is time for a copy."""
        return self.is_ours(now + COPY_TIME)

    def may_last(self, now: float, seconds: float) -> bool:
        """ "If you attempt to set the VisibilityTimeout to a value greater than the maximum time left" is refused."""
        return now + seconds <= self.given_at + LEASE_MAX


class Change(NamedTuple):
    """A visibility to be: so many seconds from now."""

    place: int
    held: Held
    seconds: int


def parts_of(changes: Iterable[Change]) -> list[list[Change]]:
    """As many to a request as SQS takes, each of one queue."""
    by_url: dict[str, list[Change]] = {}
    for change in changes:
        by_url.setdefault(change.held.url, []).append(change)
    return [all_[start : start + BATCH_MAX] for all_ in by_url.values() for start in range(0, len(all_), BATCH_MAX)]


def delete(service: Service, part: Sequence[Change]) -> Failures:
    """One request: they are settled for good."""
    what = f"acking deliveries of {part[0].held.queue!r}"
    url = part[0].held.url
    entries: Any = [{"Id": str(change.place), "ReceiptHandle": change.held.receipt} for change in part]
    answer = translated(what, lambda: service.client.delete_message_batch(QueueUrl=url, Entries=entries))
    return _failures(answer.get("Failed", ()), answer.get("Successful", ()), part, what)


def change_visibility(service: Service, part: Sequence[Change]) -> Failures:
    """One request: their leases end when they are told to; with 0 seconds, now."""
    what = f"changing leases of deliveries of {part[0].held.queue!r}"
    url = part[0].held.url
    entries: Any = [
        {"Id": str(change.place), "ReceiptHandle": change.held.receipt, "VisibilityTimeout": change.seconds}
        for change in part
    ]
    answer = translated(what, lambda: service.client.change_message_visibility_batch(QueueUrl=url, Entries=entries))
    return _failures(answer.get("Failed", ()), answer.get("Successful", ()), part, what)


def _failures(failed: Iterable[Any], done: Iterable[Any], part: Sequence[Change], what: str) -> Failures:
    failures: dict[int, MQError] = {
        change.place: OutcomeUnknownError(f"{what}: SQS did not say what became of it") for change in part
    }
    for entry in done:
        failures.pop(int(entry["Id"]), None)
    for entry in failed:
        error = failed_entry(entry, what)
        if isinstance(error, ArgumentError):  # the receipt, which is all that there is to be wrong
            error = StaleDeliveryError(str(error))
        failures[int(entry["Id"])] = error
    return failures


def put_copies(service: Service, part: Sequence[Change], entries: Sequence[dict[str, Any]]) -> Failures:
    """Two requests: copies are stored, then those whose copy is are settled. Twice is allowed, lost is not."""
    url, what = part[0].held.url, f"giving back deliveries of {part[0].held.queue!r}"
    batch: Any = list(entries)
    answer = translated(what, lambda: service.client.send_message_batch(QueueUrl=url, Entries=batch))
    failures = dict(_failures(answer.get("Failed", ()), answer.get("Successful", ()), part, what))
    stored = [change for change in part if change.place not in failures]
    if stored:
        try:
            delete(service, stored)
        except MQError as error:  # there are two of them then, until another consumer has had both
            log.debug("%s: copied, and the originals may be there: %s", what, error)
    return failures


def give_back(
    service: Service,
    helds: Iterable[Held],
    now: Callable[[], float],
    left_over: Callable[[list[Held]], None],
    returns: Returns | None = None,
) -> None:
    """Whoever asks next gets them. SQS counts them as delivered; *returns* notes that they were not, where that is so.
    What SQS cannot be told now is *left_over*."""
    ours = [held for held in helds if held.is_ours(now())]
    for part in parts_of(Change(place, held, 0) for place, held in enumerate(ours)):
        try:
            failures = change_visibility(service, part)
        except MQError as error:
            log.debug("deliveries of %r go back later: %s", part[0].held.queue, error)
            left_over([change.held for change in part])
            continue
        left_over([change.held for change in part if isinstance(failures.get(change.place), ThrottledError)])
        for change in part:
            if returns is not None and change.place not in failures:
                returns.note(change.held.url, change.held.message_id, failed=False)
