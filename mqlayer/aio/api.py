"""What users call, awaiting: the same names as the blocking API, over the same core and engine.

Nothing here blocks the event loop. A connection belongs to the loop in which it was made. A cancelled ``receive`` loses
nothing: a delivery is taken in the same step in which it is returned. A cancelled ``send`` is taken back if it had not
left; else its message may be stored.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from mqlayer import api
from mqlayer.aio.loop import Bridge, this_task
from mqlayer.core.connecting import TIMEOUT, ConnectionCore, Health, check_limit
from mqlayer.core.consuming import AUTO, HOLD_MAX, LIMIT_MAX, ConsumerCore, DeadLetterChoice, DeliveryView, begin_acks
from mqlayer.core.sending import ProducerCore, SendReport
from mqlayer.driver import Capabilities, HeaderValue, Stats
from mqlayer.engine import Held, Line, Parcel
from mqlayer.errors import ClosedError, MQError, RequestTimeoutError, SendError, UsageError
from mqlayer.message import ReceivedMessage
from mqlayer.needs import Needs
from mqlayer.policy import Retry

__all__ = ["Connection", "Consumer", "Delivery", "Producer", "connect"]


class _Closing(Protocol):
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


C = TypeVar("C", bound=_Closing)


class Opening(Generic[C]):
    """What opens a connection, producer or consumer: await it, or enter it with ``async with``."""

    def __init__(self, open_it: Callable[[], Coroutine[Any, Any, C]]) -> None:
        self._open = open_it
        self._opened: C | None = None

    def __await__(self) -> Generator[Any, None, C]:
        return self._open().__await__()

    async def __aenter__(self) -> C:
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.__aexit__(kind, error, trace)


def connect(url: str, *, needs: Needs | None = None, timeout: float = TIMEOUT) -> "Opening[Connection]":
    """Connect, as the blocking ``connect`` does, without blocking the loop. Await it or enter it."""

    async def open_it() -> Connection:
        connection = await asyncio.to_thread(api.connect, url, needs=needs, timeout=timeout)
        return Connection(connection)

    return Opening(open_it)


class Connection:
    """A connection to one broker, in one event loop."""

    def __init__(self, connection: api.Connection) -> None:
        self._blocking = connection
        self._core: ConnectionCore = connection.core
        self._bridge = Bridge(self._core.clock)

    def producer(
        self, queue: str | None = None, *, topic: str | None = None, timeout: float | None = None
    ) -> "Opening[Producer]":
        """As ``mqlayer.Connection.producer``."""

        async def open_it() -> Producer:
            flow = ProducerCore.open(self._core, queue, topic, timeout)
            return Producer(await self._bridge.drive(flow, self._core.seconds(timeout)), self._bridge)

        return Opening(open_it)

    def consumer(
        self,
        *queues: str,
        topic: str | None = None,
        group: str | None = None,
        retry: Retry | None = None,
        prefetch: int | None = None,
        lease: float | None = None,
        hold_max: float = HOLD_MAX,
        dead_letter: str | DeadLetterChoice | None = AUTO,
        timeout: float | None = None,
    ) -> "Opening[Consumer]":
        """As ``mqlayer.Connection.consumer``."""

        async def open_it() -> Consumer:
            core = ConsumerCore(
                self._core,
                queues,
                topic,
                group,
                retry=Retry() if retry is None else retry,
                prefetch=prefetch,
                lease=lease,
                hold_max=hold_max,
                dead_letter=dead_letter,
            )
            await self._bridge.drive(core.open(timeout), self._core.seconds(timeout))
            return Consumer(core, self._bridge)

        return Opening(open_it)

    async def declare(
        self,
        queue: str,
        *,
        dead_letter: str | None = None,
        temporary: bool = False,
        ordered: bool = False,
        timeout: float | None = None,
    ) -> None:
        """As ``mqlayer.Connection.declare``."""
        flow = self._core.declare(queue, dead_letter, temporary, ordered, timeout)
        await self._bridge.drive(flow, self._core.seconds(timeout))

    async def stats(self, queue: str, *, timeout: float | None = None) -> Stats:
        """As ``mqlayer.Connection.stats``."""
        return await self._bridge.answer(self._core.stats(queue, timeout), self._core.seconds(timeout))

    async def peek(self, queue: str, limit: int = 10, *, timeout: float | None = None) -> list[ReceivedMessage]:
        """As ``mqlayer.Connection.peek``."""
        return await self._bridge.drive(self._core.peek(queue, limit, timeout), self._core.seconds(timeout))

    async def purge(self, queue: str, *, timeout: float | None = None) -> int | None:
        """As ``mqlayer.Connection.purge``."""
        return await self._bridge.answer(self._core.purge(queue, timeout), self._core.seconds(timeout))

    async def delete(self, queue: str, *, timeout: float | None = None) -> None:
        """As ``mqlayer.Connection.delete``."""
        await self._bridge.drive(self._core.delete(queue, timeout), self._core.seconds(timeout))

    @property
    def capabilities(self) -> Capabilities:
        return self._core.capabilities

    def health(self) -> Health:
        """As ``mqlayer.Connection.health``; needs no awaiting."""
        return self._core.health()

    async def close(self, *, timeout: float | None = None) -> None:
        """As ``mqlayer.Connection.close``."""
        await asyncio.to_thread(self._core.close, timeout, this_task())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<mqlayer asyncio connection to {self._core.url}>"


class Producer:
    """Sends to one queue or topic. May be shared by tasks."""

    def __init__(self, core: ProducerCore, bridge: Bridge) -> None:
        self._core = core
        self._bridge = bridge

    async def send(
        self,
        payload: Any,
        *,
        headers: Mapping[str, HeaderValue] | None = None,
        delay: float = 0.0,
        ttl: float | None = None,
        priority: int | None = None,
        group_id: str | None = None,
        dedup_id: str | None = None,
        content_type: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        id: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """As ``mqlayer.Producer.send``."""
        core = self._core
        outgoing = core.outgoing(
            payload, headers, delay, ttl, priority, group_id, dedup_id, content_type, correlation_id, reply_to, id
        )
        line = core.line
        if line.inline:
            line.send(core.target, outgoing, core.deadline(timeout))
            return outgoing.id or ""
        parcel = await self._put(core.parcel(outgoing, timeout, flushed=False))
        return await self._bridge.fate(line, parcel)

    async def submit(
        self,
        payload: Any,
        *,
        headers: Mapping[str, HeaderValue] | None = None,
        delay: float = 0.0,
        ttl: float | None = None,
        priority: int | None = None,
        group_id: str | None = None,
        dedup_id: str | None = None,
        content_type: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        id: str | None = None,
        timeout: float | None = None,
    ) -> "asyncio.Future[str]":
        """As ``mqlayer.Producer.submit``: awaiting the call waits only for room, awaiting its result for the fate."""
        core = self._core
        outgoing = core.outgoing(
            payload, headers, delay, ttl, priority, group_id, dedup_id, content_type, correlation_id, reply_to, id
        )
        parcel = await self._put(core.parcel(outgoing, timeout, flushed=True))
        waiter = self._bridge.awaitable(parcel.future)
        waiter.add_done_callback(_heard)  # ``flush`` tells of failures, whoever else awaits them or not
        return waiter

    async def _put(self, parcel: Parcel) -> Parcel:
        core = self._core
        try:
            line = core.line
            room = line.room
            while True:
                version = room.version
                if core.put(line, parcel):
                    return parcel
                await self._bridge.change(room, version, parcel.deadline - core.connection.clock.monotonic())
        except BaseException:
            core.not_put(parcel)
            raise

    async def send_many(self, messages: Iterable[Any], *, timeout: float | None = None) -> SendReport:
        """As ``mqlayer.Producer.send_many``."""
        core = self._core
        seconds = core.connection.seconds(timeout)
        deadline = core.connection.clock.monotonic() + seconds
        report = SendReport([])
        parcels: list[tuple[int, Parcel]] = []
        for place, item in enumerate(messages):
            try:
                outgoing = core.outgoing(item)
                report.ids.append(outgoing.id or "")
                left = max(deadline - core.connection.clock.monotonic(), 0.0)
                parcels.append((place, await self._put(core.parcel(outgoing, left, flushed=False))))
            except ClosedError:
                raise
            except (SendError, UsageError) as error:
                report.add(place, core.id_of(item), error)
        line = core.line
        for place, parcel in parcels:
            try:
                await self._bridge.fate(line, parcel)
            except SendError as error:
                report.failures[place] = error
        return report

    async def flush(self, *, timeout: float | None = None) -> None:
        """As ``mqlayer.Producer.flush``."""
        core = self._core
        deadline = core.deadline(timeout)
        tally = core.tally
        goal = tally.submitted
        while True:
            version = tally.signal.version
            if tally.done >= goal:
                break
            left = deadline - core.connection.clock.monotonic()
            if left <= 0:
                raise RequestTimeoutError(f"{goal - tally.done} messages to {core.name!r} are still on their way")
            await self._bridge.change(tally.signal, version, left)
        core.raise_failures()

    async def close(self, *, timeout: float | None = None) -> None:
        """As ``mqlayer.Producer.close``."""
        if not self._core.closed:
            try:
                await self.flush(timeout=timeout)
            finally:
                self._core.closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
        else:
            self._core.closed = True  # the block's own error matters more; what was submitted goes on its way

    def __repr__(self) -> str:
        return f"<mqlayer asyncio producer for {self._core.name!r}>"


class Consumer:
    """Receives from its queues or topic. May be shared by tasks; each delivery goes to one of them."""

    def __init__(self, core: ConsumerCore, bridge: Bridge) -> None:
        self._core = core
        self._bridge = bridge

    async def receive(self, timeout: float | None = None) -> "Delivery | None":
        """As ``mqlayer.Consumer.receive``. Cancelling it loses nothing."""
        got = await self.receive_many(1, timeout)
        return got[0] if got else None

    async def receive_many(self, limit: int, timeout: float | None = None) -> "list[Delivery]":
        """As ``mqlayer.Consumer.receive_many``. Cancelling it loses nothing."""
        core, bridge = self._core, self._bridge
        check_limit(limit, LIMIT_MAX)
        if timeout is not None and timeout != float("inf"):
            timeout = core.connection.seconds(timeout)
        line = core.line
        clock = core.connection.clock
        deadline = float("inf") if timeout is None else clock.monotonic() + timeout
        admitted = core.admit(line, line.take(limit, this_task()))
        if admitted:
            return [Delivery(core, line, held, bridge) for held in admitted]
        line.ask(limit)
        try:
            if timeout == 0:
                await bridge.answer(line.look(), core.connection.timeout)
            while True:
                version = line.arrivals.version
                taken = line.take(limit, this_task())
                admitted = core.admit(line, taken)
                if admitted:
                    return [Delivery(core, line, held, bridge) for held in admitted]
                if taken:  # all of them went their way; what arrived beside them was announced before
                    continue
                left = deadline - clock.monotonic()
                if left <= 0:
                    return []
                await bridge.change(line.arrivals, version, None if timeout is None else left)
        finally:
            line.ask(-limit)

    async def __aiter__(self) -> "AsyncIterator[Delivery]":
        """Deliveries until the consumer is closed."""
        while True:
            try:
                delivery = await self.receive()
            except ClosedError:
                return
            if delivery is not None:
                yield delivery

    async def ack_many(self, deliveries: "Iterable[Delivery]") -> dict[int, MQError]:
        """As ``mqlayer.Consumer.ack_many``."""
        waiting, failures = begin_acks(deliveries)
        for place, future in waiting:
            try:
                await self._bridge.answer(future, self._core.connection.timeout)
            except MQError as error:
                failures[place] = error
        return failures

    @property
    def proven(self) -> bool:
        """As ``mqlayer.Consumer.proven``."""
        return self._core.line.proven

    def stop(self) -> None:
        """As ``mqlayer.Consumer.stop``; needs no awaiting."""
        self._core.stop()

    async def close(self, *, timeout: float | None = None) -> None:
        """As ``mqlayer.Consumer.close``, with tasks for threads."""
        self._core.stop()
        await asyncio.to_thread(self._core.close, timeout, this_task())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Delivery(DeliveryView):
    """One message, handed over once. ``async with delivery as message:`` settles it by how the block ends."""

    __slots__ = ("_bridge",)

    def __init__(self, core: ConsumerCore, line: Line, held: Held, bridge: Bridge) -> None:
        super().__init__(core, line, held)
        self._bridge = bridge

    async def ack(self) -> None:
        """As ``mqlayer.Delivery.ack``."""
        await self._finish(self.begin_ack())

    async def nack(self, *, delay: float = 0.0) -> None:
        """As ``mqlayer.Delivery.nack``."""
        await self._finish(self._core.nack(self._line, self._held, delay))

    async def reject(self, reason: str) -> None:
        """As ``mqlayer.Delivery.reject``."""
        await self._finish(self._core.reject(self._line, self._held, reason))

    async def extend(self, seconds: float) -> None:
        """As ``mqlayer.Delivery.extend``."""
        await self._finish(self._core.extend(self._line, self._held, seconds))

    async def _finish(self, future: "Future[None] | None") -> None:
        if future is not None:
            await self._bridge.answer(future, self._core.connection.timeout)

    async def __aenter__(self) -> ReceivedMessage:
        self._held.holder = this_task()
        return self.message

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held.settled:
            return
        try:
            await self._finish(self._core.finish(self._line, self._held, error))
        except MQError as problem:
            self._core.not_settled(self._line, self._held, problem)


def _heard(waiter: "asyncio.Future[str]") -> None:
    if not waiter.cancelled():
        waiter.exception()
