"""The asyncio worker: ``aio.run``."""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator

from mqlayer.aio.api import Consumer, Delivery
from mqlayer.errors import ClosedError
from mqlayer.worker import check_concurrency

__all__ = ["run"]

log = logging.getLogger("mqlayer")


async def run(consumer: Consumer, handler: Callable[[Delivery], Awaitable[object]], *, concurrency: int = 1) -> None:
    """As ``mqlayer.run``, with handlers that are coroutine functions."""
    check_concurrency(concurrency)
    running: set[asyncio.Task[None]] = set()
    stopping = asyncio.Event()

    def stop() -> None:
        stopping.set()
        consumer.stop()

    with _stopped_by_signals(stop):
        try:
            while True:
                await _wait_below(running, concurrency if consumer.proven else 1)
                delivery = await consumer.receive()
                if delivery is None:
                    continue
                if delivery.suspect:
                    await _wait_below(running, 1)
                if stopping.is_set():
                    await _give_back(delivery)
                    continue
                task = asyncio.create_task(_handle(handler, delivery, stop))
                running.add(task)
                task.add_done_callback(running.discard)
        except ClosedError:
            log.debug("%r is closed; %d handlers finish", consumer, len(running))
        finally:
            if running:
                await asyncio.wait(running)


async def _give_back(delivery: Delivery) -> None:
    """Give back, uncounted, what was fetched and will not be begun."""
    with contextlib.suppress(asyncio.CancelledError):
        async with delivery:
            raise asyncio.CancelledError


async def _wait_below(running: "set[asyncio.Task[None]]", most: int) -> None:
    while len(running) >= most:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)


async def _handle(
    handler: Callable[[Delivery], Awaitable[object]], delivery: Delivery, stop: Callable[[], None]
) -> None:
    try:
        async with delivery:
            await _called(handler, delivery)
    except Exception:
        # ``async with delivery`` has logged it with its traceback and settled the delivery; a worker survives its handlers.
        log.debug("%r: its handler failed", delivery)
    except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):  # the event loop's to deal with
        raise
    except BaseException:
        log.exception("%r: its handler wants the worker to end", delivery)
        stop()


async def _called(handler: Callable[[Delivery], Awaitable[object]], delivery: Delivery) -> None:
    try:
        await handler(delivery)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Not we are cancelled, but something that the handler awaited. Given back uncounted it would come again for ever.
        raise RuntimeError("what the handler awaited was cancelled") from error


@contextlib.contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def restore() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def heed(number: int) -> None:
        log.info("signal %d: the worker finishes what runs", number)
        restore()
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heed, number)
    try:
        yield
    finally:
        restore()
