"""``Delivery`` of the blocking API: one message in a handler's hands, and the four ways to settle it."""

from concurrent.futures import Future
from threading import current_thread
from types import TracebackType

from mqlayer.core.consuming import DeliveryView
from mqlayer.core.flow import wait
from mqlayer.errors import MQError
from mqlayer.message import ReceivedMessage

__all__ = ["Delivery"]


class Delivery(DeliveryView):
    """One message, handed over once. ``with delivery as message:`` settles it by how the block ends."""

    __slots__ = ()

    def ack(self) -> None:
        """Handled: the broker may forget it.

        Returns when the broker has confirmed that, or, where it cannot (``confirms_acks``), when it is queued for writing:
        a crash soon after may bring the message back.

        Raises:
            AlreadySettledError: it was settled before.
            StaleDeliveryError: its lease or connection is gone; the broker already has it back.
        """
        self._finish(self.begin_ack())

    def nack(self, *, delay: float = 0.0) -> None:
        """Give it back to be delivered again, no sooner than *delay* seconds. Counts as a failure.

        Other consumers may get it. Order within the queue is not kept.

        Raises:
            AlreadySettledError, StaleDeliveryError: as for ``ack``.
        """
        self._finish(self._core.nack(self._line, self._held, delay))

    def reject(self, reason: str) -> None:
        """Send it to the dead-letter queue: confirmed there first, acked second. It may be there twice, never lost.

        Raises:
            AlreadySettledError, StaleDeliveryError: as for ``ack``.
        """
        self._finish(self._core.reject(self._line, self._held, reason))

    def extend(self, seconds: float) -> None:
        """Have the lease end that many seconds from now. Nothing to do where the broker has no timed lease.

        Raises:
            AlreadySettledError, StaleDeliveryError: as for ``ack``.
        """
        self._finish(self._core.extend(self._line, self._held, seconds))

    def _finish(self, future: "Future[None] | None") -> None:
        if future is not None:
            wait(future, self._core.connection.timeout)

    def __enter__(self) -> ReceivedMessage:
        self._held.holder = current_thread()
        return self.message

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held.settled:
            return
        try:
            self._finish(self._core.finish(self._line, self._held, error))
        except MQError as problem:
            self._core.not_settled(self._line, self._held, problem)
