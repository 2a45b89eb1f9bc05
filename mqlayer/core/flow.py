"""Operations of several steps, written once: generators that yield a future for each thing to wait for."""

from collections.abc import Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

from mqlayer.errors import MQError, RequestTimeoutError

__all__ = ["Flow", "drive", "wait"]

T = TypeVar("T")
Flow = Generator[Future[Any], Any, T]
"""Yields futures, is sent their results, returns a ``T``. The API drives it, blocking or awaiting."""


def wait(future: "Future[T]", timeout: float) -> T:
    """The result of *future*, blocking.

    Raises:
        RequestTimeoutError: there was none within *timeout* seconds.
    """
    try:
        return future.result(timeout)
    except FutureTimeoutError:
        future.cancel()
        raise RequestTimeoutError(f"no answer within {timeout:g} s") from None


def drive(flow: Flow[T], timeout: float) -> T:
    """Take a flow through its steps, blocking; *timeout* is each step's."""
    try:
        future = next(flow)
        while True:
            try:
                result = wait(future, timeout)
            except MQError as error:
                future = flow.throw(error)
            else:
                future = flow.send(result)
    except StopIteration as end:
        value: T = end.value
        return value
