"""One STOMP connection as a session. Sending, consuming, settling and asking each have a file of their own."""

import contextlib
import secrets
from collections.abc import Sequence

from mqlayer.backends.stomp_connection import Connection
from mqlayer.backends.stomp_consumer import Consumer
from mqlayer.backends.stomp_flow import Flow
from mqlayer.backends.stomp_publisher import Publisher
from mqlayer.backends.stomp_settler import Move, Settler
from mqlayer.backends.stomp_wire import destination
from mqlayer.clock import Clock
from mqlayer.driver import (
    Ack,
    Capabilities,
    Declare,
    Extend,
    Failures,
    Forward,
    Incoming,
    Outgoing,
    QueueOptions,
    Release,
    Stats,
    Support,
    Verdict,
)
from mqlayer.errors import (
    MQError,
    StaleDeliveryError,
    UnsupportedError,
)

__all__ = ["StompSession"]

LOOK = 0.1  #: seconds in which the server pushes what it has, where the caller only wants to look
CLOSE_PART = 0.7  #: of the time that a close has: for giving back; the rest is for the goodbye


class StompSession:
    """One STOMP connection. Knows nothing of retries or payloads."""

    def __init__(self, connection: Connection, *, clock: Clock) -> None:
        self._connection = connection
        self._dialect = connection.dialect
        self._clock = clock
        self._monotonic = clock.monotonic
        epoch = secrets.token_hex(6)
        self._publisher = Publisher(connection, clock.monotonic)
        self._settler = Settler(connection, self._publisher, clock.monotonic)
        self._flow = Flow(connection, epoch)
        self._consumer = Consumer(connection, self._flow, self._settler, epoch)
        self._groups: set[str] = set()
        self._temporary: dict[str, str] = {}  #: queues that go with the session, and the destinations of their copies
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        return self._dialect.capabilities

    # --- queues -------------------------------------------------------------------------------------------------------

    def declare(self, queue: str, options: QueueOptions, mode: Declare, timeout: float) -> QueueOptions:
        """STOMP has no word for it: a queue is made when it is used, and keeps no options."""
        self._connection.check_open()
        self._target(queue)
        return QueueOptions()

    def bind(self, topic: str, group: str | None, timeout: float) -> str:
        self._need("topics")
        deadline = self._monotonic() + timeout
        if group is None:
            name = f"mq.temporary.{secrets.token_hex(12)}"
            copies = self._temporary[name] = f"/temp-queue/{name}"
            self._consumer.add_temporary(name, [self._topic(topic), copies], deadline)
            return name
        name = f"Consumer.{group.replace('%', '%25').replace('.', '%2E')}.VirtualTopic.{topic}"
        if name not in self._groups:
            self._flow.found(self._target(name), self._clock.time(), deadline)
            self._groups.add(name)
        return name

    def stats(self, queue: str, timeout: float) -> Stats:
        raise UnsupportedError(f"{self._dialect.name} does not tell over STOMP what a queue holds")

    def peek(self, queue: str, limit: int, timeout: float) -> Sequence[Incoming]:
        raise UnsupportedError(f"{self._dialect.name} cannot show over STOMP what is ready and only that")

    def purge(self, queue: str, timeout: float) -> int | None:
        self._need("purge")
        return self._flow.drain(self._target(queue), self._clock.time(), self._monotonic() + timeout)

    def delete(self, queue: str, timeout: float) -> None:
        """STOMP has no word for it: what the queue holds is dropped, where it can be; an empty queue stays."""
        self._connection.check_open()
        target = self._target(queue)
        deadline = self._monotonic() + timeout
        if self._temporary.pop(queue, None) is not None:
            return  # it goes with the connection
        if self.capabilities.purge is Support.NATIVE:
            self._flow.drain(target, self._clock.time(), deadline)
        else:
            self._flow.empty(target, dict(self._dialect.subscribe_headers), deadline)

    # --- sending ------------------------------------------------------------------------------------------------------

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        return self._send(self._target(queue), batch, timeout)

    def publish(self, topic: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        self._need("topics")
        return self._send(self._topic(topic), batch, timeout)

    def _send(self, target: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        deadline = self._monotonic() + timeout
        refused = {place: error for place, message in enumerate(batch) if (error := self._refusal(message)) is not None}
        if not refused:
            return self._publisher.send(target, batch, deadline)
        places = [place for place in range(len(batch)) if place not in refused]
        failed = self._publisher.send(target, [batch[place] for place in places], deadline)
        return refused | {places[index]: error for index, error in failed.items()}

    def _refusal(self, message: Outgoing) -> MQError | None:
        """What the server has no means for is refused before anything leaves."""
        can = self.capabilities
        asked = (
            ("delay", can.delay, message.delay > 0),
            ("priority", can.priority, message.priority is not None),
            ("group_id", can.group_id, message.group_id is not None),
            ("dedup_id", can.dedup_id, message.dedup_id is not None),
        )
        for name, support, wanted in asked:
            if wanted and support is Support.UNSUPPORTED:
                return UnsupportedError(f"{self._dialect.name} has no {name} over STOMP")
        return None

    # --- receiving ----------------------------------------------------------------------------------------------------

    def subscribe(self, queue: str, window: int, lease: float | None, timeout: float) -> None:
        """As the driver says; *lease* has no meaning here: a delivery is held as long as its connection lives."""
        self._consumer.subscribe(queue, self._target(queue), window, self._monotonic() + timeout)

    def unsubscribe(self, queue: str, timeout: float) -> None:
        self._consumer.unsubscribe(queue, self._monotonic() + timeout)

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        """As the driver says. The server pushes, so asking once means to give it a moment."""
        seconds = max(timeout, LOOK) if limit and self._consumer.active else timeout
        return self._consumer.receive(limit, self._monotonic() + seconds)

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        deadline = self._monotonic() + timeout
        failures: dict[int, MQError] = {}
        acks: list[int] = []
        back: list[int] = []
        moves: list[int] = []
        for place, verdict in enumerate(verdicts):
            kind = type(verdict)
            if kind is Extend:
                continue  # there is no lease that could end
            if not self._consumer.holds(verdict.of):
                text = f"the delivery from queue {verdict.of.queue!r} is settled, or its connection is gone"
                failures[place] = StaleDeliveryError(text)
            elif kind is Ack:
                acks.append(place)
            elif kind is Release and self.capabilities.release is Support.NATIVE:
                back.append(place)
            elif kind is Forward and self.capabilities.forward is Support.NATIVE:
                moves.append(place)
            else:
                text = f"{self._dialect.name} cannot {kind.__name__.lower()} a delivery over STOMP"
                failures[place] = UnsupportedError(text)
        try:
            if acks:
                failed = self._settler.ack([verdicts[place].of for place in acks], deadline)
                failures.update((acks[index], error) for index, error in failed.items())
            if moves:
                failed = self._settler.move(self._moves(moves, verdicts), deadline)
                failures.update((moves[index], error) for index, error in failed.items())
            if back:
                self._release(back, verdicts, failures, deadline)
            done = [verdicts[place].of for place in (*acks, *moves, *back) if not _keeps(failures.get(place))]
            self._consumer.settled(done, deadline)
        except MQError as exc:
            # The verdicts are carried out, and the windows cannot be made to fit: the next call says so.
            self._settler.lose(str(exc))
        return failures

    def _moves(self, places: Sequence[int], verdicts: Sequence[Verdict]) -> list[Move]:
        moves = []
        for place in places:
            verdict = verdicts[place]
            assert isinstance(verdict, Forward)
            moves.append(Move(verdict.of, self._target(verdict.queue), verdict.copy))
        return moves

    def _release(
        self, places: Sequence[int], verdicts: Sequence[Verdict], failures: dict[int, MQError], deadline: float
    ) -> None:
        incomings = [verdicts[place].of for place in places]
        if self._dialect.one_by_one:
            self._consumer.release_by_end(incomings, deadline)
            return
        by_queue: dict[str, list[int]] = {}
        for place in places:
            by_queue.setdefault(verdicts[place].of.queue, []).append(place)
        for queue, ones in by_queue.items():
            failed = self._settler.give_back([verdicts[place].of for place in ones], self._target(queue), deadline)
            failures.update((ones[index], error) for index, error in failed.items())

    # --- the connection -----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        self._connection.wake()

    def abort(self) -> None:
        self._connection.abort()

    def close(self, timeout: float) -> None:
        if not self._closed:
            self._closed = True
            deadline = self._monotonic() + timeout
            # Where it fails the server takes it all back with the connection, if counted once more.
            with contextlib.suppress(MQError):
                self._consumer.give_all_back(self._monotonic() + timeout * CLOSE_PART)
            self._connection.close(max(deadline - self._monotonic(), 0.0))

    def _target(self, queue: str) -> str:
        return self._temporary.get(queue) or destination(queue, self._dialect)

    def _topic(self, topic: str) -> str:
        return destination(topic, self._dialect, "/topic/VirtualTopic.")

    def _need(self, capability: str) -> None:
        if getattr(self.capabilities, capability) is Support.UNSUPPORTED:
            raise UnsupportedError(f"{self._dialect.name} has no {capability} over STOMP")


def _keeps(error: MQError | None) -> bool:
    """The delivery is still ours to settle."""
    return error is not None and not isinstance(error, StaleDeliveryError)
