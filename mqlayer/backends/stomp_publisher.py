"""Sending: a fate for each message, by the receipt of the frame that stored it.

A batch goes as transactions, several on their way at a time: on a server that writes them to the disk at once (ActiveMQ,
Artemis) each COMMIT confirms up to ``GROUP_MESSAGES`` messages. A transaction that is refused has stored nothing, so its
messages are sent one by one, and the one that is at fault takes none with it. Elsewhere, and for what waits in a scheduler,
which no transaction covers, each SEND has a receipt of its own.
"""

from collections import deque
from collections.abc import Callable, Sequence

from mqlayer.backends.stomp_connection import Answer, Connection
from mqlayer.backends.stomp_wire import encode, to_wire
from mqlayer.driver import Outgoing
from mqlayer.errors import (
    ConnectionLostError,
    MQError,
    NotSentError,
    OutcomeUnknownError,
    RefusedError,
    SendError,
    SendTimeoutError,
)

__all__ = ["Publisher"]

WINDOW = 512  #: receipts on their way at the most …
GROUPS_WINDOW = 4  #: … and transactions
GROUP_MESSAGES = 128  #: of one transaction, at the most
GROUP_BYTES = 512 * 1024  #: … and of their bodies, but for one message alone
UNWRITTEN_MAX = 256 * 1024  #: bytes handed over beyond what the socket takes; more is not sent yet


class _Unit:
    """What one receipt confirms."""

    __slots__ = ("answer", "frames", "group", "places")

    def __init__(self, places: list[int], frames: list[bytes], group: bool) -> None:
        self.places = places
        self.frames = frames
        self.group = group
        self.answer: Answer | None = None


class Publisher:
    """The sending half of a session."""

    def __init__(self, connection: Connection, monotonic: Callable[[], float]) -> None:
        self._connection = connection
        self._monotonic = monotonic
        self._transactions = 0

    def send(self, target: str, batch: Sequence[Outgoing], deadline: float) -> dict[int, MQError]:
        """Send a batch to a destination. Returns why each of those failed that did; never raises for one."""
        failures: dict[int, MQError] = {}
        groups = self._connection.dialect.groups_sends and len(batch) > 1
        again = self._run(self._units(target, batch, failures, groups=groups), batch, failures, deadline)
        if again:  # their transactions were refused: nothing of them is stored
            alone = self._units(target, batch, failures, groups=False, only=again)
            self._run(alone, batch, failures, deadline)
        return failures

    def _units(
        self,
        target: str,
        batch: Sequence[Outgoing],
        failures: dict[int, MQError],
        *,
        groups: bool,
        only: Sequence[int] | None = None,
    ) -> deque[_Unit]:
        """What is to be written, in order; a receipt is asked for when it is."""
        dialect = self._connection.dialect
        units: deque[_Unit] = deque()
        group: _Unit | None = None
        size = 0
        for place in range(len(batch)) if only is None else only:
            message = batch[place]
            grouped = groups and not message.delay
            try:
                frame = to_wire(message, target, dialect, [_MARK])
            except SendError as exc:
                exc.message_id = message.id
                failures[place] = exc
                continue
            if not grouped:
                units.append(_Unit([place], [frame], False))
                group = None
            elif group is None or len(group.places) >= GROUP_MESSAGES or size + len(frame) > GROUP_BYTES:
                group, size = _Unit([place], [frame], True), len(frame)
                units.append(group)
            else:
                group.places.append(place)
                group.frames.append(frame)
                size += len(frame)
        return units

    def _run(
        self, waiting: deque[_Unit], batch: Sequence[Outgoing], failures: dict[int, MQError], deadline: float
    ) -> list[int]:
        """Write the units and wait for their answers. Returns the places of transactions that were refused."""
        connection = self._connection
        pending: deque[_Unit] = deque()
        again: list[int] = []
        cause: MQError | None = None
        late = False
        try:
            connection.check_open()
            while waiting or pending:
                wrote = False
                while waiting and self._has_room(waiting[0], pending):
                    if late := self._monotonic() >= deadline:
                        break
                    unit = waiting.popleft()
                    self._write(unit)
                    pending.append(unit)
                    wrote = True
                if late:
                    break
                if wrote:
                    connection.turn(0.0)
                elif not connection.run_until(
                    lambda: pending[0].answer if pending else connection.unwritten < UNWRITTEN_MAX, deadline
                ):
                    late = True
                    break
                while pending and pending[0].answer:
                    again += self._settled(pending.popleft(), batch, failures)
        except ConnectionLostError as exc:
            cause = exc
        self._give_up(pending, waiting, batch, failures, cause, late)
        return again

    def _has_room(self, unit: _Unit, pending: deque[_Unit]) -> bool:
        most = GROUPS_WINDOW if unit.group else WINDOW
        return len(pending) < most and self._connection.unwritten < UNWRITTEN_MAX

    def _write(self, unit: _Unit) -> None:
        connection = self._connection
        receipt, answer = connection.expect(covers=len(unit.frames) if len(unit.frames) > 1 else 0)
        if len(unit.frames) == 1:
            connection.write(unit.frames[0].replace(_MARK_LINE, b"receipt:%s\n" % receipt.encode(), 1))
        else:
            self._transactions += 1
            name = f"s{self._transactions}"
            mark = b"transaction:%s\n" % name.encode()
            frames = [frame.replace(_MARK_LINE, mark, 1) for frame in unit.frames]
            begin = encode("BEGIN", [("transaction", name)])
            commit = encode("COMMIT", [("transaction", name), ("receipt", receipt)])
            connection.write(b"".join((begin, *frames)))
            # Without its COMMIT nothing of a transaction is stored: until these bytes have left, nothing was sent.
            answer.begins = connection.queued
            connection.write(commit)
        unit.answer = answer

    def _settled(self, unit: _Unit, batch: Sequence[Outgoing], failures: dict[int, MQError]) -> list[int]:
        assert unit.answer is not None
        if unit.answer.refusal is None:
            return []
        if unit.answer.error is None:  # committed, although something in it was refused: which, nobody says
            self._connection.lose(
                f"{self._connection.dialect.name} committed a part of a transaction: {unit.answer.stray}"
            )
            for place in unit.places:
                failures[place] = OutcomeUnknownError(f"in doubt: {unit.answer.stray}", message_id=batch[place].id)
            return []
        if len(unit.frames) > 1:
            return unit.places
        place = unit.places[0]
        text = f"{self._connection.dialect.name} refused the message: {unit.answer.error}"
        failures[place] = RefusedError(text, message_id=batch[place].id)
        return []

    def _give_up(
        self,
        pending: deque[_Unit],
        waiting: deque[_Unit],
        batch: Sequence[Outgoing],
        failures: dict[int, MQError],
        cause: MQError | None,
        late: bool,
    ) -> None:
        """A fate for everything without an answer."""
        why = str(cause) if cause is not None else "the time is up"
        for unit in pending:
            answer = unit.answer
            if answer is None or answer.done:
                continue
            if answer.error is not None and len(unit.frames) == 1:
                self._settled(unit, batch, failures)
                continue
            # What never left was not stored, if it cannot leave any more.
            unsent = self._connection.lost is not None and answer.begins >= self._connection.written
            for place in unit.places:
                message_id = batch[place].id
                error: SendError
                if unsent:
                    error = NotSentError(f"not sent: {why}", message_id=message_id)
                else:
                    error = OutcomeUnknownError(f"no receipt: {why}", message_id=message_id)
                error.__cause__ = cause
                failures[place] = error
        self._connection.forget(*(unit.answer for unit in pending if unit.answer is not None))
        kind: type[SendError] = SendTimeoutError if late else NotSentError
        for unit in waiting:
            for place in unit.places:
                unsent_error = kind(f"not sent: {why}", message_id=batch[place].id)
                unsent_error.__cause__ = cause
                failures[place] = unsent_error


_MARK = ("receipt", "?")  # where the receipt, or the transaction, goes when the frame is written
_MARK_LINE = b"receipt:?\n"
