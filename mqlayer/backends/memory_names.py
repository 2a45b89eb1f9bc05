"""Names that the memory broker makes up, and the words of its errors."""

from mqlayer.driver import Verdict
from mqlayer.errors import QueueNotFoundError, StaleDeliveryError

__all__ = ["group_queue", "missing", "stale"]


def group_queue(topic: str, group: str | None, number: int) -> str:
    """The queue of a topic's group: ``topic.group``; without a group, one of its own by that *number*.

    No two share a name: ``%`` is written ``%25`` in topic and group, and ``.`` as ``%2E`` in the topic.
    """
    owner = topic.replace("%", "%25").replace(".", "%2E")
    return f"{owner}.%t{number}" if group is None else f"{owner}.{group.replace('%', '%25')}"


def missing(name: str) -> QueueNotFoundError:
    """The error of a queue that is not there."""
    return QueueNotFoundError(f"there is no queue {name!r}; declare it first")


def stale(verdict: Verdict) -> StaleDeliveryError:
    """The error of a verdict on a delivery that is nobody's any more, or another's."""
    of = verdict.of
    return StaleDeliveryError(
        f"the delivery of {of.message.id!r} from queue {of.queue!r} is not this session's any more: its lease ended, it "
        "was settled, or its connection is gone"
    )
