"""Carrying out verdicts: acks by receipt; a copy and the ack of its original as one transaction, where there is one."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mqlayer.backends.stomp_connection import Answer, Connection
from mqlayer.backends.stomp_publisher import Publisher
from mqlayer.backends.stomp_wire import Token, encode, to_wire
from mqlayer.driver import Incoming, Outgoing
from mqlayer.errors import (
    ConnectionLostError,
    MQError,
    RefusedError,
    RequestTimeoutError,
    SendError,
    StaleDeliveryError,
)

__all__ = ["Move", "Settler"]

GROUP = 128  #: copies with the acks of their originals in one transaction


class Move(NamedTuple):
    """A copy to *target*, and the ack of what it was made of."""

    of: Incoming
    target: str
    copy: Outgoing


class Settler:
    """The settling half of a session. Each call gives every index its fate, or None of its own if it succeeded."""

    def __init__(self, connection: Connection, publisher: Publisher, monotonic: Callable[[], float]) -> None:
        self._connection = connection
        self._publisher = publisher
        self._monotonic = monotonic
        self._transactions = 0

    # --- acks ---------------------------------------------------------------------------------------------------------

    def ack(self, incomings: Sequence[Incoming], deadline: float) -> dict[int, MQError]:
        """Ack, and wait for the receipts where the server's say that it is done. What fails is the server's again."""
        failures: dict[int, MQError] = {}
        try:
            if not self._connection.dialect.capabilities.confirms_acks:
                self._connection.write(b"".join(_ack(incoming) for incoming in incomings))
                self._connection.turn(0.0)
            else:
                self._ack_each(incomings, failures, deadline)
        except MQError as exc:
            lost = exc if isinstance(exc, ConnectionLostError) else self.lose(str(exc))
            for place in range(len(incomings)):
                failures.setdefault(place, lost)
        return failures

    def _ack_each(self, incomings: Sequence[Incoming], failures: dict[int, MQError], deadline: float) -> None:
        asked: list[Answer] = []
        for incoming in incomings:
            receipt, answer = self._connection.expect()
            self._connection.write(_ack(incoming, receipt=receipt))
            asked.append(answer)
        for place, answer in enumerate(asked):
            self._wait(answer, deadline)
            if answer.error is not None:
                text = f"{self._connection.dialect.name} took no ack for {incomings[place].queue!r}: {answer.error}"
                failures[place] = StaleDeliveryError(text)

    # --- copies -------------------------------------------------------------------------------------------------------

    def move(self, moves: Sequence[Move], deadline: float) -> dict[int, MQError]:
        """Copy, confirm, ack. What failed is not acked."""
        failures: dict[int, MQError] = {}
        together = [place for place, move in enumerate(moves) if not move.copy.delay]
        try:
            for first in range(0, len(together), GROUP):
                self._move_group(together[first : first + GROUP], moves, failures, deadline)
            # The scheduler takes its message in after the commit, so a kill in between would lose it: it comes first.
            waiting = [place for place, move in enumerate(moves) if move.copy.delay]
            if waiting:
                self._move_waiting(waiting, moves, failures, deadline)
        except MQError as exc:
            lost = exc if isinstance(exc, ConnectionLostError) else self.lose(str(exc))
            for place in range(len(moves)):
                failures.setdefault(place, lost)
        return failures

    def _move_group(
        self, places: Sequence[int], moves: Sequence[Move], failures: dict[int, MQError], deadline: float
    ) -> None:
        """One transaction. Its COMMIT is written once the server has taken every copy: one that fails as a whole would leave
        ActiveMQ with acks that it neither carries out nor takes again."""
        connection = self._connection
        name = self._next()
        frames: list[bytes] = []
        copies: dict[int, Answer] = {}
        for place in places:
            move = moves[place]
            receipt, answer = connection.expect()
            marks = [("transaction", name), ("receipt", receipt)]
            try:
                frames.append(to_wire(move.copy, move.target, connection.dialect, marks))
            except SendError as exc:
                connection.forget(answer)
                failures[place] = exc
            else:
                copies[place] = answer
        if not copies:
            return
        *others, last = copies
        frames += [_ack(moves[place].of, name) for place in others]
        receipt, acked = connection.expect(covers=GROUP)
        self._begin([*frames, _ack(moves[last].of, name, receipt)], name)
        for answer in (*copies.values(), acked):
            self._wait(answer, deadline)
        refused = {place: answer.error for place, answer in copies.items() if answer.error is not None}
        if not refused and acked.refusal is None:
            commit = self._commit(name)
            self._wait(commit, deadline)
            if commit.refusal is not None:
                raise self.lose(f"{connection.dialect.name} did not commit: {commit.refusal}")
            return
        connection.stomp.abort(name)
        for place, error in refused.items():
            text = f"{connection.dialect.name} refused a copy to {moves[place].target!r}: {error}"
            failures[place] = RefusedError(text, message_id=moves[place].copy.id)
        rest = [place for place in copies if place not in refused]
        if acked.refusal is None:
            self._move_group(rest, moves, failures, deadline)
        elif len(rest) == 1:
            text = f"{connection.dialect.name} took no ack for {moves[rest[0]].of.queue!r}: {acked.refusal}"
            failures[rest[0]] = StaleDeliveryError(text)
        else:  # all or nothing: one by one shows which it is
            for place in rest:
                self._move_group([place], moves, failures, deadline)

    def _move_waiting(
        self, places: Sequence[int], moves: Sequence[Move], failures: dict[int, MQError], deadline: float
    ) -> None:
        targets: dict[str, list[int]] = {}
        for place in places:
            targets.setdefault(moves[place].target, []).append(place)
        good: list[int] = []
        for target, ones in targets.items():
            failed = self._publisher.send(target, [moves[place].copy for place in ones], deadline)
            for index, place in enumerate(ones):
                if index in failed:
                    failures[place] = failed[index]
                else:
                    good.append(place)
        unacked = self.ack([moves[place].of for place in good], deadline) if good else {}
        failures.update((good[index], error) for index, error in unacked.items())

    def give_back(self, incomings: Sequence[Incoming], target: str, deadline: float) -> dict[int, MQError]:
        """Back to their queue as they came: nobody ran them, and neither a failure nor a delivery is added."""
        return self.move([Move(incoming, target, returned(incoming)) for incoming in incomings], deadline)

    # --- transactions -------------------------------------------------------------------------------------------------

    def _next(self) -> str:
        self._transactions += 1
        return f"t{self._transactions}"

    def _begin(self, frames: Sequence[bytes], name: str) -> None:
        self._connection.write(b"".join((encode("BEGIN", [("transaction", name)]), *frames)))

    def _commit(self, name: str) -> Answer:
        receipt, answer = self._connection.expect(covers=GROUP)
        commit = encode("COMMIT", [("transaction", name), ("receipt", receipt)])
        # ActiveMQ (StompSubscription.onStompCommit, 5.17) remembers what was acked in transactions until one is aborted, and
        # goes through all of it at each COMMIT: 1000 such acks took 0.3 s at first, and 7 s after 10,000. So one is
        # aborted, with nothing in it.
        empty = self._next()
        nothing = [encode(command, [("transaction", empty)]) for command in ("BEGIN", "ABORT")]
        self._connection.write(b"".join((commit, *nothing)))
        return answer

    def _wait(self, answer: Answer, deadline: float) -> None:
        if not self._connection.run_until(lambda: answer, deadline):
            raise RequestTimeoutError(f"{self._connection.dialect.name} did not answer in time")

    def lose(self, why: str) -> ConnectionLostError:
        """End the connection: whether the server has carried something out is unknown, and it takes back what it has not."""
        return self._connection.lose(why)


def returned(incoming: Incoming) -> Outgoing:
    """The copy of a delivery that goes back as it came."""
    message = incoming.message
    place = f"{incoming.queue}:{incoming.token}"[:200]
    return message._replace(trail=message.trail._replace(copied_from=place))


def _ack(incoming: Incoming, transaction: str | None = None, receipt: str | None = None) -> bytes:
    token = incoming.token
    assert isinstance(token, Token)
    headers = [("id", token.ack)]
    if transaction is not None:
        headers.append(("transaction", transaction))
    if receipt is not None:
        headers.append(("receipt", receipt))
    return encode("ACK", headers)
