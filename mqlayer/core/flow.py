"""Operations of several steps, written once: generators that yield a future for each thing to wait for."""

from collections.abc import Generator
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["Flow"]

T = TypeVar("T")
Flow = Generator[Future[Any], Any, T]
"""Yields futures, is sent their results, returns a ``T``. The API drives it, blocking or awaiting."""
