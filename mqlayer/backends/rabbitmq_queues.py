"""What a session asks of RabbitMQ about queues, delay queues and topics, on a channel of its own.

A refusal closes that channel, and the next request opens another; publishing and consuming never notice.
"""

import contextlib
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from mqlayer.backends.rabbitmq_connection import Connection, Lane
from mqlayer.backends.rabbitmq_wire import (
    DELAY_MAX,
    check_queue,
    delay_arguments,
    delay_name,
    delay_step,
    group_queue,
    memory_exchange,
    queue_arguments,
    remembered_dead_letter,
    topic_exchange,
)
from mqlayer.driver import Declare, Outgoing, QueueOptions, Stats
from mqlayer.errors import (
    ArgumentError,
    AuthenticationError,
    MQError,
    NotSentError,
    QueueMismatchError,
    QueueNotFoundError,
    RequestTimeoutError,
    SendTimeoutError,
    UnroutableError,
    UnsupportedError,
    UsageError,
)

__all__ = ["Queues", "unsent"]

# RabbitMQ makes no queue but a stream with it, and does not compare it with what other queues have.
OF_STREAMS = {"x-max-age": "1D"}


class Queues:
    """Deadlines are on the monotonic clock."""

    def __init__(
        self, connection: Connection, queue_type: str, *, declare_settle: float, monotonic: Callable[[], float]
    ) -> None:
        self._connection = connection
        self._queue_type = queue_type
        self._declare_settle = declare_settle
        self._monotonic = monotonic
        self._asking: Lane | None = None
        self._unsafe: dict[
            str, float
        ] = {}  #: queues created here → when they would survive a kill, in monotonic seconds
        self._temporary: set[str] = set()  #: queues that go with this session
        self._known: set[str] = set()  #: exchanges and delay queues that this session has seen

    # --- queues -------------------------------------------------------------------------------------------------------

    def declare(self, queue: str, options: QueueOptions, mode: Declare, deadline: float) -> QueueOptions:
        """As the driver says. A queue that is created takes ``declare_settle`` seconds, its dead-letter queue with it.

        A *timeout* that ends sooner ends the wait, not the queue: what this session sends to it or subscribes from it
        waits for the rest.
        """
        found = self._exists(check_queue(queue), deadline)
        if not found and mode is Declare.CHECK:
            raise QueueNotFoundError(f"there is no queue {queue!r}")
        if found and mode is not Declare.COMPARE:
            stored = QueueOptions(
                dead_letter=self._dead_letter(queue, deadline),
                temporary=options.temporary,
                ordered=self.is_single(queue, deadline) is True,
            )
        else:
            self._remember_dead_letter(queue, options.dead_letter, found, deadline)
            self._create(queue, options, found or options.temporary, mode, deadline)
            if options.dead_letter is not None and not self._exists(check_queue(options.dead_letter), deadline):
                self._create(options.dead_letter, QueueOptions(), False, Declare.ENSURE, deadline)
            stored = options
        self.await_settled((queue, options.dead_letter), deadline)
        return stored

    def bind(self, topic: str, group: str | None, deadline: float) -> str:
        """The group's queue gets what is published to *topic* from now on; without a group, a queue that this session
        alone can read and that goes with it."""
        exchange = self.topic(topic, deadline)
        if group is None:
            queue = f"mq.temporary.{secrets.token_hex(12)}"
            # Not auto_delete: it would go, with all that is in it, whenever its consumer is cancelled for another window.
            self._ask(lambda c, done: c.queue_declare(queue, exclusive=True, callback=done), deadline)
            self._temporary.add(queue)
        else:
            queue = group_queue(topic, group)
            if not self._exists(queue, deadline):
                self._create(queue, QueueOptions(), False, Declare.ENSURE, deadline)
        self._ask(lambda c, done: c.queue_bind(queue, exchange, callback=done), deadline)
        self.await_settled((queue,), deadline)
        return queue

    def stats(self, queue: str, deadline: float) -> Stats:
        return Stats(ready=self.check(check_queue(queue), deadline).method.message_count)

    def purge(self, queue: str, deadline: float) -> int | None:
        answer = self._ask(lambda c, done: c.queue_purge(check_queue(queue), callback=done), deadline)
        return int(answer.method.message_count)

    def delete(self, queue: str, deadline: float) -> None:
        self._ask(lambda c, done: c.queue_delete(check_queue(queue), callback=done), deadline)
        self._ask(lambda c, done: c.exchange_delete(memory_exchange(queue), callback=done), deadline)

    # --- before a batch is sent ---------------------------------------------------------------------------------------

    def prepare(self, queue: str, batch: Sequence[Outgoing], deadline: float) -> dict[int, MQError]:
        """See to the queues that the delayed messages of a batch wait in, and that the queue is safe."""
        if not self._unsafe and not any(message.delay for message in batch):
            return {}
        failures: dict[int, MQError] = {}
        delayed = [place for place, message in enumerate(batch) if message.delay]
        affected: Sequence[int] = delayed
        try:
            for place in delayed:
                if batch[place].delay > DELAY_MAX:
                    failures[place] = UnsupportedError(f"RabbitMQ delays for at most {DELAY_MAX:.0f} s")
            steps = {delay_step(batch[place].delay) for place in delayed if place not in failures}
            # What falls due and has no queue to go to is lost, and nobody is told: so look before it leaves.
            if steps and not self._exists(queue, deadline):
                text = f"there is no queue {queue!r}"
                return {place: UnroutableError(text, message_id=batch[place].id) for place in delayed} | failures
            for step in sorted(steps):
                self._make_delay(step, deadline)
            affected = range(len(batch)) if queue in self._unsafe else delayed
            names = (queue, *(delay_name(step) for step in steps))
            self.await_settled(names, deadline)
            if any(name in self._unsafe for name in names):
                raise RequestTimeoutError("the queue was created a moment ago and is not safe yet")
        except MQError as exc:
            failures |= {place: unsent(batch[place], exc) for place in affected if place not in failures}
        return failures

    def _make_delay(self, step: int, deadline: float) -> None:
        name = delay_name(step)
        if name in self._known:
            return
        if not self._exists(name, deadline):
            self._make_exchange(name, deadline)
            self._ask(
                lambda c, done: c.queue_declare(name, durable=True, arguments=delay_arguments(step), callback=done),
                deadline,
            )
            if self._declare_settle:
                self._unsafe[name] = self._monotonic() + self._declare_settle
        # Also when it was found: who created it may have been killed before the binding.
        self._make_exchange(name, deadline)
        # Without the right to bind: it has been done, or what is published comes back.
        with contextlib.suppress(AuthenticationError):
            self._ask(lambda c, done: c.queue_bind(name, name, callback=done), deadline)
        self._known.add(name)

    # --- asking -------------------------------------------------------------------------------------------------------

    def _ask(self, begin: Callable[[Any, Callable[[Any], None]], object], deadline: float) -> Any:
        """One request on the channel for requests, which a refusal closes and the next request opens again."""
        lane = self._asking
        if lane is None or lane.ended is not None:
            lane = self._asking = self._connection.open_lane(deadline)
        channel = lane.channel
        return self._connection.call(lane, lambda done: begin(channel, done), deadline)

    def check(self, queue: str, deadline: float) -> Any:
        return self._ask(lambda c, done: c.queue_declare(queue, passive=True, callback=done), deadline)

    def _exists(self, queue: str, deadline: float) -> bool:
        try:
            self.check(queue, deadline)
        except QueueNotFoundError:
            return False
        return True

    def _create(self, queue: str, options: QueueOptions, safe: bool, mode: Declare, deadline: float) -> None:
        """Declare actively. *safe*: it was there before, or need not survive, so nobody has to wait for it."""
        arguments = queue_arguments(self._queue_type, options)
        try:
            self._ask(
                lambda c, done: c.queue_declare(queue, durable=True, arguments=arguments, callback=done), deadline
            )
        except QueueMismatchError as exc:
            if mode is Declare.COMPARE:
                raise QueueMismatchError(f"queue {queue!r} exists with other options: {exc}") from exc
            return  # somebody else has just made it
        if not safe and self._declare_settle:
            self._unsafe[queue] = self._monotonic() + self._declare_settle

    def await_settled(self, names: Sequence[str | None], deadline: float) -> None:
        """Turn the loop until queues that were just created would survive a kill, or until the deadline."""
        for name in names:
            ready_at = self._unsafe.get(name) if name is not None else None
            if name is None or ready_at is None:
                continue
            self._connection.run_until(_never, min(ready_at, deadline))
            if self._monotonic() >= ready_at:
                self._unsafe.pop(name, None)

    def _make_exchange(self, name: str, deadline: float) -> None:
        """Declare it if it is missing; who may only use it need not have the right to make it."""
        try:
            self._ask(lambda c, done: c.exchange_declare(name, passive=True, callback=done), deadline)
        except QueueNotFoundError:
            self._ask(lambda c, done: c.exchange_declare(name, "fanout", durable=True, callback=done), deadline)

    def forget(self, name: str) -> None:
        """An exchange or a delay queue may be gone: its next use makes sure of it."""
        self._known.discard(name)

    def topic(self, topic: str, deadline: float) -> str:
        exchange = topic_exchange(topic)
        if exchange not in self._known:
            self._make_exchange(exchange, deadline)
            self._known.add(exchange)
        return exchange

    def is_single(self, queue: str, deadline: float) -> bool | None:
        """Whether the queue lets only one consumer at a time be active; ``None`` where RabbitMQ does not let us know.

        Nothing tells a queue's arguments but the complaint about a declare that differs in one of them.

        Raises:
            QueueNotFoundError: it is gone.
        """
        if queue in self._temporary:
            return False
        other = "classic" if self._queue_type == "quorum" else "quorum"
        ours = [queue_arguments(kind, QueueOptions()) for kind in (self._queue_type, other)]
        for arguments in (*ours, {}, {"x-queue-type": "quorum"}):  # the last two: as other clients make them
            try:
                complaint = self._complaint(queue, arguments, deadline)
                if "inequivalent arg 'x-expires'" in complaint:
                    temporary = queue_arguments(self._queue_type, QueueOptions(temporary=True))["x-expires"]
                    complaint = self._complaint(queue, {**arguments, "x-expires": temporary}, deadline)
            except AuthenticationError:
                return None  # who may not configure a queue may still read it
            if "inequivalent arg 'x-single-active-consumer'" in complaint:
                return True
            if any(f"invalid arg '{name}'" in complaint for name in OF_STREAMS):  # it is to be made first
                raise QueueNotFoundError(f"there is no queue {queue!r}")
            if not complaint:
                return False
        return None

    def _complaint(self, queue: str, arguments: dict[str, Any], deadline: float) -> str:
        """What RabbitMQ says against the queue's having these arguments; empty: it has them. Never makes the queue."""
        arguments = arguments | OF_STREAMS
        try:
            self._ask(
                lambda c, done: c.queue_declare(queue, durable=True, arguments=arguments, callback=done), deadline
            )
        except QueueMismatchError as exc:
            return str(exc)
        return ""

    # --- the dead-letter queue that a queue remembers -----------------------------------------------------------------

    def _dead_letter(self, queue: str, deadline: float) -> str | None:
        """What ``declare`` stored for the queue; see ``remembered_dead_letter``."""
        exchange = memory_exchange(queue)
        try:
            self._ask(lambda c, done: c.exchange_declare(exchange, passive=True, callback=done), deadline)
        except QueueNotFoundError:
            return None
        asked = f"not {secrets.token_hex(8)}"
        try:
            self._ask(
                lambda c, done: c.exchange_declare(
                    exchange, "fanout", durable=True, arguments={"alternate-exchange": asked}, callback=done
                ),
                deadline,
            )
        except QueueMismatchError as exc:
            return remembered_dead_letter(str(exc), asked)
        except AuthenticationError:
            return None  # without the right to configure it, RabbitMQ does not tell
        return None

    def _remember_dead_letter(self, queue: str, dead_letter: str | None, found: bool, deadline: float) -> None:
        """Store it, or compare it where the queue was there before."""
        if found:
            stored = self._dead_letter(queue, deadline)
            if stored != dead_letter:
                raise QueueMismatchError(f"queue {queue!r} exists with dead_letter={stored!r}, not {dead_letter!r}")
            return
        exchange = memory_exchange(queue)
        # Left over from a queue of that name that another client deleted.
        self._ask(lambda c, done: c.exchange_delete(exchange, callback=done), deadline)
        if dead_letter is not None:
            arguments = {"alternate-exchange": dead_letter}
            self._ask(
                lambda c, done: c.exchange_declare(
                    exchange, "fanout", durable=True, arguments=arguments, callback=done
                ),
                deadline,
            )
            if (
                self._dead_letter(queue, deadline) != dead_letter
            ):  # RabbitMQ keeps it, but cannot tell it in its 255 bytes
                self._ask(lambda c, done: c.exchange_delete(exchange, callback=done), deadline)
                raise ArgumentError(f"RabbitMQ cannot remember so long a name of a dead-letter queue: {dead_letter!r}")


def unsent(message: Outgoing, cause: MQError) -> MQError:
    """A message for which what it needs on the broker could not be made."""
    if isinstance(cause, (UnroutableError, UsageError)):  # a name that RabbitMQ cannot have is no better the next time
        return cause
    kind = SendTimeoutError if isinstance(cause, RequestTimeoutError) else NotSentError
    unsent = kind(f"not sent to RabbitMQ: {cause}", message_id=message.id)
    unsent.__cause__ = cause
    return unsent


def _never() -> bool:
    return False
