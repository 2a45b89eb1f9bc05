"""What a session asks of its server besides messages: subscriptions that begin and end, and a queue's flow that stands still.

ActiveMQ's exclusive consumer is the only one that its queue serves. One whose selector matches nothing gets nothing, so while
it is there nobody does. Where it has begun, all that was dispatched before is on its way to us, though it may still be
overtaken by receipts; a message to ourselves through a temporary queue comes behind it.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from mqlayer.backends.stomp_answers import Answer
from mqlayer.backends.stomp_connection import Connection
from mqlayer.backends.stomp_wire import Frame, encode
from mqlayer.errors import RequestTimeoutError

__all__ = ["Flow"]

NOTHING = "FALSE"  #: a selector that no message passes
MARK = "mq_mark"  #: a header of a message of this module's own; a JMS selector knows no "-" in names
MARK_LIFE = 60.0  #: seconds until one that was left behind by a crash expires
QUIET = 0.3  #: seconds in which nothing comes from a queue that is empty
DRAIN_WINDOW = "500"  #: deliveries on their way to one that empties a queue
PRIORITY = "127"  #: of a consumer; the highest is the exclusive one, where there are several


class Flow:
    """Subscriptions of one connection."""

    def __init__(self, connection: Connection, epoch: str) -> None:
        self._connection = connection
        self._epoch = epoch
        self._count = 0
        self._barrier: str | None = None
        self._marks: dict[str, list[Frame]] = {}  #: by subscription, what came on it

    def subscribe(self, target: str, id: str, headers: Mapping[str, str], deadline: float, *, ack: bool = True) -> None:
        """Begin a subscription, and wait until the server has."""
        answer = self.begin(target, id, headers, ack=ack)
        self._connection.wait_for(answer, f"subscribing to {target!r}", deadline)

    def begin(self, target: str, id: str, headers: Mapping[str, str], *, ack: bool = True) -> Answer:
        """Ask for a subscription."""
        receipt, answer = self._connection.expect()
        mode = "client-individual" if ack else "auto"
        self._connection.stomp.subscribe(target, id, mode, headers={**headers, "receipt": receipt})
        return answer

    def unsubscribe(self, ids: Sequence[str], deadline: float) -> None:
        """End subscriptions, and wait until the server has."""
        answers = []
        for id in ids:
            receipt, answer = self._connection.expect()
            self._connection.stomp.unsubscribe(id, headers={"receipt": receipt})
            answers.append(answer)
        for answer in answers:
            self._connection.wait_for(answer, "ending a subscription", deadline)

    def on_message(self, frame: Frame) -> None:
        """What came on no feed: a mark of ours, or of a session that died beside it, which nobody else shall get."""
        kept = self._marks.get(frame.headers.get("subscription", ""))
        if kept is not None:
            kept.append(frame)
        elif MARK in frame.headers and "ack" in frame.headers:
            self._connection.write(encode("ACK", [("id", frame.headers["ack"])]))

    @contextlib.contextmanager
    def stopped(self, target: str, deadline: float) -> Iterator[None]:
        """The queue serves nobody meanwhile, and all that it had handed over to us has arrived."""
        with self._only(target, NOTHING, "1", deadline):
            self._pass_barrier(deadline)
            yield

    @contextlib.contextmanager
    def _only(self, target: str, selector: str | None, prefetch: str, deadline: float) -> Iterator[str]:
        """A subscription beside which the queue serves no other."""
        self._count += 1
        id = f"x{self._count}"
        headers = {
            "activemq.exclusive": "true",
            "activemq.priority": PRIORITY,
            "activemq.prefetchSize": prefetch,
        }
        if selector is not None:
            headers["selector"] = selector
        self._marks[id] = []
        try:
            self.subscribe(target, id, headers, deadline)
            yield id
            if id in self._marks:
                self.unsubscribe([id], deadline)
        except RequestTimeoutError as exc:
            # Whether it stands in everybody's way or not is unknown: it goes with the connection.
            raise self._connection.lose(f"{exc}") from exc
        except BaseException:
            if self._connection.lost is None:
                self._connection.stomp.unsubscribe(id)
            raise
        finally:
            self._marks.pop(id, None)

    def has_scheduler(self, deadline: float) -> bool:
        """Whether messages can be delayed: without its scheduler ActiveMQ takes a delay for a header like any other.

        A delayed message and one that is not: without a scheduler they come in that order.
        """
        late = [("AMQ_SCHEDULED_DELAY", "1"), (MARK, "late")]
        came = self._pass_barrier(deadline, late)
        return all("scheduledJobId" in frame.headers for frame in came if frame.headers.get(MARK) == "late")

    def _pass_barrier(self, deadline: float, before: Sequence[tuple[str, str]] = ()) -> list[Frame]:
        """Send a message to ourselves, behind another with these headers, and wait for it. Returns what came."""
        target = f"/temp-queue/mq-barrier-{self._epoch}"
        if self._barrier is None:
            self._marks["barrier"] = []
            self.subscribe(target, "barrier", {}, deadline, ack=False)
            self._barrier = "barrier"
        came = self._marks[self._barrier]
        came.clear()
        self._count += 1
        mark = f"{self._epoch}-{self._count}"
        if before:
            self._connection.write(encode("SEND", [("destination", target), *before]))
        self._connection.write(encode("SEND", [("destination", target), (MARK, mark)]))
        if not self._connection.run_until(lambda: any(frame.headers.get(MARK) == mark for frame in came), deadline):
            raise RequestTimeoutError(f"{self._connection.dialect.name} did not hand over a message to ourselves")
        return came

    def found(self, target: str, now: float, deadline: float) -> None:
        """Make a queue such that it outlives its server: ActiveMQ stores one with its first message."""
        self._count += 1
        mark = f"{self._epoch}-{self._count}"
        with self._only(target, f"{MARK} = '{mark}'", "1", deadline) as id:
            self._drain(target, id, mark, now, deadline)

    def drain(self, target: str, now: float, deadline: float) -> int:
        """Drop what a queue holds that nobody else has in hand. Returns how many.

        A mark of the lowest priority is the last in the queue: when it has come, all before it have.
        """
        self._count += 1
        mark = f"{self._epoch}-{self._count}"
        with self._only(target, None, DRAIN_WINDOW, deadline) as id:
            count = self._drain(target, id, mark, now, deadline)
            with self.stopped(target, deadline):  # else what was sent behind the mark would go back flagged
                count += self._ack(self._marks[id], deadline)
                self.unsubscribe([id], deadline)
                del self._marks[id]
        return count

    def empty(self, target: str, headers: Mapping[str, str], deadline: float) -> None:
        """Drop what a queue hands over, until nothing has come for a moment: where nothing marks the end for certain."""
        connection = self._connection
        self._count += 1
        id = f"x{self._count}"
        came = self._marks[id] = []
        self.subscribe(target, id, headers, deadline)
        while connection.run_until(lambda: came, min(connection.now() + QUIET, deadline)):
            frames, came[:] = list(came), []
            acks = [encode("ACK", [("id", frame.headers["ack"])]) for frame in frames]
            connection.write(b"".join(acks))
        self.unsubscribe([id], deadline)
        del self._marks[id]

    def _drain(self, target: str, id: str, mark: str, now: float, deadline: float) -> int:
        connection = self._connection
        receipt, answer = connection.expect()
        expires = str(int((now + MARK_LIFE) * 1000))
        headers = [("destination", target), ("persistent", "true"), ("priority", "0"), ("expires", expires)]
        connection.write(encode("SEND", [*headers, (MARK, mark), ("receipt", receipt), ("content-length", "0")]))
        count = 0
        came = self._marks[id]
        ended = False
        while not ended:
            if not connection.run_until(lambda: came, deadline):
                raise RequestTimeoutError(f"{connection.dialect.name} did not hand over all of {target!r} in time")
            frames, came[:] = list(came), []
            ended = any(frame.headers.get(MARK) == mark for frame in frames)
            count += self._ack(frames, deadline)
        connection.wait_for(answer, f"a mark in {target!r}", deadline)
        return count

    def _ack(self, frames: Sequence[Frame], deadline: float) -> int:
        """Ack them all. Returns how many are no marks."""
        if not frames:
            return 0
        self._count += 1
        name = f"x{self._count}"
        receipt, answer = self._connection.expect()
        parts = [encode("BEGIN", [("transaction", name)])]
        parts += [encode("ACK", [("id", frame.headers["ack"]), ("transaction", name)]) for frame in frames]
        parts.append(encode("COMMIT", [("transaction", name), ("receipt", receipt)]))
        self._connection.write(b"".join(parts))
        self._connection.wait_for(answer, "an ack", deadline)
        return sum(MARK not in frame.headers for frame in frames)
