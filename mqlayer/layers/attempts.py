"""What became of each message of a batch over several attempts to send it. Pure."""

from collections.abc import Callable, Sequence

from mqlayer.clock import Clock
from mqlayer.driver import Failures, Outgoing
from mqlayer.errors import MQError, NotSentError, OutcomeUnknownError, SendTimeoutError, ThrottledError

__all__ = ["Attempts", "in_parts", "not_sent"]


class Attempts:
    """One batch on its way.

    Attributes:
        messages: What the next attempt is to send: at first all of them; then those that may be sent again, marked as
            resent if an attempt of them may have been stored.
    """

    def __init__(self, batch: Sequence[Outgoing]) -> None:
        self.messages = batch
        self._places: Sequence[int] = range(len(batch))  # of ``messages``, in the batch
        self._pending: dict[int, MQError] = {}
        self._final: dict[int, MQError] = {}
        self._doubts: dict[int, MQError] = {}  # why an attempt is unknown, if one ever was

    def note(self, failures: Failures) -> None:
        """What the last attempt came to, by place in ``messages``."""
        messages, places = [], []
        self._pending = {}
        for place in sorted(failures):
            error, index, message = failures[place], self._places[place], self.messages[place]
            if isinstance(error, OutcomeUnknownError):
                self._doubts[index] = error
                trail = message.trail
                message = message._replace(trail=trail._replace(resent=trail.resent + 1))
            elif isinstance(error, ThrottledError):
                error = not_sent(error)
            elif not isinstance(error, NotSentError):
                self._final[index] = error
                continue
            self._pending[index] = error
            messages.append(message)
            places.append(index)
        self.messages, self._places = messages, places

    @property
    def done(self) -> bool:
        """Nothing is left that may be sent again."""
        return not self.messages

    def failures(self) -> Failures:
        """Why each message failed that did. Once one attempt is unknown, so is the message, whatever the last one says."""
        errors = {**self._final, **self._pending}
        return {index: _in_doubt(error, self._doubts.get(index)) for index, error in errors.items()}


def not_sent(error: MQError) -> MQError:
    """Why a message never left."""
    unsent = SendTimeoutError(f"not sent: {error}")
    unsent.__cause__ = error
    return unsent


def in_parts(
    batch: Sequence[Outgoing],
    most: int,
    timeout: float,
    clock: Clock,
    send: Callable[[Sequence[Outgoing], float], Failures],
) -> Failures:
    """Send a batch that is larger than the broker takes at once."""
    deadline = clock.monotonic() + timeout
    failures: dict[int, MQError] = {}
    for start in range(0, len(batch), most):
        part = send(batch[start : start + most], max(deadline - clock.monotonic(), 0.0))
        failures.update({start + place: error for place, error in part.items()})
    return failures


def _in_doubt(error: MQError, doubt: MQError | None) -> MQError:
    if doubt is None or isinstance(error, OutcomeUnknownError):
        return error
    unknown = OutcomeUnknownError(f"{doubt}; then, sent again: {error}")
    unknown.__cause__ = error
    return unknown
