"""One session on an SQLite store. Knows queues, leases and transactions; knows nothing of retries or payloads."""

import logging
import math
import secrets
from collections.abc import Callable, Sequence

from mqlayer.backends import sqlite_model as model
from mqlayer.backends import sqlite_schema as sql
from mqlayer.backends.sqlite_claims import Claims, Subscription
from mqlayer.backends.sqlite_file import StoreFile
from mqlayer.backends.sqlite_lookout import Lookout
from mqlayer.backends.sqlite_wake import Waker
from mqlayer.clock import Clock
from mqlayer.driver import (
    Capabilities,
    Declare,
    Failures,
    Incoming,
    Outgoing,
    QueueOptions,
    Stats,
    Verdict,
)
from mqlayer.errors import (
    MessageTooLargeError,
    MQError,
    NotSentError,
    OutcomeUnknownError,
    RequestTimeoutError,
    SendError,
    SendTimeoutError,
    UnroutableError,
)

__all__ = ["SQLiteSession"]

LOOK_EVERY = 0.5  #: seconds between two looks of a consumer that nobody pokes
log = logging.getLogger("mqlayer")


class SQLiteSession:
    """One connection to the file.

    A message whose send failed before its COMMIT, or whose COMMIT could not write, is certainly not stored
    (``NotSentError``). If the COMMIT failed in another way it may be (``OutcomeUnknownError``), and the session has ended.
    """

    def __init__(self, file: StoreFile, clock: Clock, lease: float) -> None:
        self._file = file
        self._clock = clock
        self._lease = lease
        self._claims = Claims()
        self._waker = Waker(file.path + "-wake")
        self._unwatch_clock = clock.watch(self._waker.nudge)
        self._lookout = Lookout(file, self._claims, self._waker, clock)
        self._closed = False
        self._hungry = False  # the last receive asked for deliveries
        self._keep_at = -math.inf
        self._own_queues: dict[str, int] = {}  # temporary subscriptions to topics: they go with the session

    @property
    def capabilities(self) -> Capabilities:
        return model.CAPABILITIES

    # --- queues ------------------------------------------------------------------------------------------------------

    def declare(self, queue: str, options: QueueOptions, mode: Declare, timeout: float) -> QueueOptions:
        found = self._find(queue)
        if mode is Declare.CHECK and found is None:
            raise model.missing(queue)
        if found is None or found.options.temporary:  # a temporary one has to be kept alive
            with self._file.write(timeout) as connection:
                return model.declare(connection, queue, options, mode, self._file.now()).options
        model.compare(queue, found, options, mode)
        return found.options

    def bind(self, topic: str, group: str | None, timeout: float) -> str:
        unique = secrets.token_hex(8)
        name = model.group_queue(topic, group) if group is not None else model.temporary_queue(topic, unique)
        options = QueueOptions(temporary=group is None)
        with self._file.write(timeout) as connection:
            queue = model.declare(connection, name, options, Declare.ENSURE, self._file.now())
            connection.execute(sql.BIND, (topic, queue.id))
        if group is None:
            self._own_queues[name] = queue.id
            self._keep_at = -math.inf
        return name

    def delete(self, queue: str, timeout: float) -> None:
        with self._file.write(timeout) as connection:
            for (number,) in connection.execute(sql.QUEUE_BY_NAME, (queue,)).fetchall():
                model.drop(connection, number)
        self._own_queues.pop(queue, None)

    def stats(self, queue: str, timeout: float) -> Stats:
        found = self._existing(queue)
        return model.counts(self._file.read(sql.COUNTS, (found.id, self._file.now())))

    def peek(self, queue: str, limit: int, timeout: float) -> Sequence[Incoming]:
        found = self._existing(queue)
        rows = self._file.read(sql.PEEK, (found.id, self._file.now(), max(limit, 0)))
        seen = [model.incoming(queue, None, row, None) for row in rows]
        return [
            one._replace(broker_count=row[2] + 1, redelivered=row[2] > 0) for one, row in zip(seen, rows, strict=True)
        ]

    def purge(self, queue: str, timeout: float) -> int:
        """Drop what is ready; what is in flight or delayed stays."""
        found = self._existing(queue)
        with self._file.write(timeout) as connection:
            return model.purge(connection, found.id, self._file.now())

    def _find(self, queue: str) -> model.Queue | None:
        return model.queue_of(self._file.read(sql.QUEUE, (queue, self._file.now())))

    def _existing(self, queue: str) -> model.Queue:
        found = self._find(queue)
        if found is None:
            raise model.missing(queue)
        return found

    # --- sending -----------------------------------------------------------------------------------------------------

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        """Store the batch in one transaction: all of it, or none."""

        def targets(read: model.Read) -> list[model.Queue] | None:
            found = model.queue_of(read(sql.QUEUE, (queue, self._file.now())))
            return None if found is None else [found]

        return self._store(targets, batch, timeout, queue)

    def publish(self, topic: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        """Store a copy of each message for each group, all in one transaction."""
        return self._store(lambda read: model.bound(read(sql.BOUND, (topic, self._file.now()))), batch, timeout, topic)

    def _store(
        self,
        targets: Callable[[model.Read], list[model.Queue] | None],
        batch: Sequence[Outgoing],
        timeout: float,
        name: str,
    ) -> Failures:
        failures: dict[int, MQError] = {}
        fitting: list[tuple[int, Outgoing]] = []
        for index, outgoing in enumerate(batch):
            if len(outgoing.body) > model.BODY_MAX_BYTES:
                text = f"a body of {len(outgoing.body)} bytes; {model.BODY_MAX_BYTES} is the most"
                failures[index] = MessageTooLargeError(text, message_id=outgoing.id)
            else:
                fitting.append((index, outgoing))
        queues: list[model.Queue] | None = []
        try:
            with self._file.write(timeout) as connection:
                queues = targets(lambda statement, values: connection.execute(statement, values).fetchall())
                now, behind = self._file.now(), self._file.behind()
                messages = [outgoing for _, outgoing in fitting]
                rows = [sql.row_of(outgoing, now, behind) for outgoing in messages]
                for queue in queues or ():
                    model.store(connection, queue, messages, rows, now)
        except MQError as error:
            failures.update({index: self._fate(error, outgoing) for index, outgoing in fitting})
            return failures
        if queues is None:
            text = f"there is no queue {name!r}; declare it first"
            failures.update({index: UnroutableError(text, message_id=outgoing.id) for index, outgoing in fitting})
        else:
            self._waker.poke(queue.id for queue in queues)
        return failures

    def _fate(self, error: MQError, outgoing: Outgoing) -> SendError:
        """What a transaction that failed means for a message of it."""
        kind: type[SendError] = NotSentError
        if self._file.in_doubt:
            kind = OutcomeUnknownError
        elif isinstance(error, RequestTimeoutError):
            kind = SendTimeoutError
        fate = kind(str(error), message_id=outgoing.id)
        fate.__cause__ = error
        return fate

    # --- consuming ---------------------------------------------------------------------------------------------------

    def subscribe(self, queue: str, window: int, lease: float | None, timeout: float) -> None:
        found = self._existing(queue)
        wanted = Subscription(queue, found, window, self._lease if lease is None else lease)
        self._give_back_unseen(queue, window, timeout)
        if wanted.temporary and queue not in self._claims.subscriptions:
            self._keep_at = -math.inf
        self._claims.subscriptions[queue] = wanted
        self._waker.watch(found.id)
        self._lookout.again()

    def unsubscribe(self, queue: str, timeout: float) -> None:
        subscription = self._claims.subscriptions.get(queue)
        if subscription is None:
            return
        self._give_back_unseen(queue, 0, timeout)
        if subscription.ordered:
            with self._file.write(timeout) as connection:
                self._claims.leave(connection, subscription.id)
            self._waker.poke((subscription.id,))
        self._waker.unwatch(subscription.id)
        del self._claims.subscriptions[queue]

    def _give_back_unseen(self, queue: str, window: int, timeout: float) -> None:
        """What was claimed and not handed over, as far as *window* has no room for it: uncounted."""
        tokens = self._claims.surplus(queue, window)
        if tokens:
            with self._file.write(timeout) as connection:
                self._claims.release(connection, tokens)
            self._claims.forget(tokens)
            self._waker.poke({token[0] for token in tokens})

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        """As the driver says. Waits for a poke, for what falls due, and looks by itself twice a second at the most."""
        self._file.check()
        self._hungry = limit > 0
        end = self._clock.monotonic() + timeout
        try:
            while True:
                self._keep_own_queues()
                found = self._next(limit, max(end - self._clock.monotonic(), 0.0)) if limit > 0 else []
                now = self._clock.monotonic()
                if found or now >= end or self._waker.woken:
                    return found
                until = end if limit <= 0 else min(end, self._lookout.next_look, now + LOOK_EVERY)
                if self._waker.wait(until - now):
                    self._lookout.again()
                self._file.check()
        finally:
            self._waker.woken = False

    def _next(self, limit: int, timeout: float) -> list[Incoming]:
        found = self._claims.hand_over(limit, self._file.now(), self._file.ahead)
        if found or not self._claims.subscriptions:
            return found
        try:
            if not self._lookout.anything_there():
                return found
            with self._file.write(timeout) as connection:
                taken = self._claims.take(connection, limit, self._file.now())
        except RequestTimeoutError:
            self._lookout.again()  # others keep the file locked: nothing now, and another look at the next call
            return found
        self._claims.add(taken)
        return self._claims.hand_over(limit, self._file.now(), self._file.ahead)

    def _keep_own_queues(self) -> None:
        """Temporary queues that this session uses do not go while it lives."""
        now = self._clock.monotonic()
        if now < self._keep_at:
            return
        self._keep_at = now + model.TEMPORARY_IDLE / 3
        own = set(self._own_queues.values())
        own |= {one.id for one in self._claims.subscriptions.values() if one.temporary}
        if own:
            try:
                with self._file.write(0.0) as connection:
                    until = self._file.now() + model.TEMPORARY_IDLE
                    connection.executemany(sql.KEEP_QUEUE, [(until, number) for number in own])
            except RequestTimeoutError:  # others keep the file locked: tried again while there is time
                self._keep_at = now + LOOK_EVERY

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        """Carry out the verdicts and claim what there is room for then, in one transaction."""
        try:
            with self._file.write(timeout) as connection:
                now = self._file.now()
                done = self._claims.settle(connection, verdicts, now, self._file.behind())
                taken = self._claims.take_more(connection, now, done, hungry=self._hungry)
        except MQError as error:
            return {index: type(error)(*error.args) for index in range(len(verdicts))}
        self._claims.remember(done)
        self._claims.add(taken)
        self._lookout.again()  # there may be room again
        self._waker.poke(done.queues)
        return done.failures

    # --- the end -----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        self._waker.wake()

    def abort(self) -> None:
        self._file.abort()
        self._waker.wake()

    def close(self, timeout: float) -> None:
        if self._closed:
            return
        self._closed = True
        if self._file.usable:
            try:
                with self._file.write(timeout) as connection:
                    queues = self._claims.give_back_all(connection)
                    for number in self._own_queues.values():
                        model.drop(connection, number)
                self._waker.poke(queues)
            except MQError as error:
                log.warning("%s: what is held goes back when its lease ends: %s", self._file.path, error)
        self._unwatch_clock()
        self._waker.close()
        self._file.close()
