"""Receiving in criteria: with a limit, and with a word for what did not come."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from mqlayer.api import Connection, Consumer, Delivery
from mqlayer.errors import MQError
from mqlayer.testing.stage import Stage

__all__ = ["PATIENCE", "in_threads", "receive", "receive_all", "refusal", "silence"]

E = TypeVar("E", bound=MQError)

PATIENCE = 15.0  #: seconds that a delivery may take before it counts as missing


def receive(stage: Stage, consumer: Consumer, what: str = "a message", *, timeout: float = PATIENCE) -> Delivery:
    """The next delivery.

    Raises:
        AssertionError: there was none in time.
    """
    delivery = consumer.receive(timeout=stage.seconds(timeout))
    assert delivery is not None, f"{what} did not come within {timeout:g} s"
    return delivery


def receive_all(
    stage: Stage, mq: Connection, queue: str, number: int, *, prefetch: int | None = None
) -> list[Delivery]:
    """Receive and ack that many, and see that there are no more."""
    deliveries: list[Delivery] = []
    with mq.consumer(queue, prefetch=prefetch) as consumer:
        for place in range(number):
            delivery = receive(stage, consumer, f"message {place + 1} of {number}")
            delivery.ack()
            deliveries.append(delivery)
    stage.assert_empty(mq, queue)
    return deliveries


def in_threads(functions: Sequence[Callable[[], object]], *, timeout: float) -> None:
    """Run them side by side and wait for all; what one of them raises is raised here.

    Raises:
        AssertionError: they have not ended in time.
    """
    errors: list[BaseException] = []

    def guarded(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    end = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0.0))
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), f"threads have not ended after {timeout:g} s"


def refusal(kind: type[E], call: Callable[[], object], what: str) -> E:
    """The error of that kind with which *call* ends.

    Raises:
        AssertionError: it ends with another one, or does *what* as if nothing were.
    """
    try:
        call()
    except kind as error:
        return error
    except MQError as error:
        raise AssertionError(f"{what}: {type(error).__name__} instead of {kind.__name__}: {error}") from error
    raise AssertionError(f"{what}: no {kind.__name__}, no word")


def silence(consumer: Consumer, seconds: float, what: str) -> None:
    """Nothing comes for so long."""
    delivery = consumer.receive(timeout=seconds)
    assert delivery is None, f"{what}, but {delivery!r} came"
