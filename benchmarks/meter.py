"""Seconds and CPU seconds of a stretch of a variant's run, in the process that runs it."""

import time
from dataclasses import dataclass, field

__all__ = ["BODY_BYTE", "HEADER_NAME", "HEADER_VALUE", "KIND", "Meter", "Result"]

# Everybody publishes the same: a content type, an id, this one header, persistent, mandatory, confirmed.
HEADER_NAME, HEADER_VALUE = "tenant", "benchmark"
KIND = "application/octet-stream"
BODY_BYTE = b"m"


@dataclass(slots=True)
class Result:
    """What a variant hands back: how many messages it handled, and what that took."""

    count: int
    figures: dict[str, float]


@dataclass(slots=True)
class Meter:
    """Adds up the stretches between ``start`` and ``stop``. CPU is user and system time of all the process's threads."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    _wall: float = field(default=0.0, repr=False)
    _cpu: float = field(default=0.0, repr=False)

    def start(self) -> None:
        self._cpu = time.process_time()
        self._wall = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._wall
        self.cpu_seconds += time.process_time() - self._cpu

    def result(self, count: int) -> Result:
        """As messages a second and CPU microseconds a message."""
        rate, cpu_us = count / self.seconds, self.cpu_seconds / count * 1e6
        return Result(count, {"rate": rate, "cpu_us": cpu_us, "us": self.seconds / count * 1e6})
