"""A third party's backend: queues in the memory of one process, behind sessions that wait for what arrives."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes import ThreadedBackend

from mqlayer import register_backend
from mqlayer.backends.memory import MemoryOptions
from mqlayer.clock import Clock
from mqlayer.driver import Session
from mqlayer.errors import ForkedError
from mqlayer.testing.harness import BackendHarness, Claims


class ThreadedFactory:
    """``threaded-memory://name``: one store for each name."""

    options = MemoryOptions
    _stores: dict[str, "ThreadedFactory"] = {}  # noqa: RUF012

    inline = False

    def __new__(cls, url: Any, options: MemoryOptions, *, clock: Clock) -> "ThreadedFactory":
        name = url.hosts[0][0]
        if name not in cls._stores:
            self = cls._stores[name] = super().__new__(cls)
            self._backend = ThreadedBackend(clock=clock, lease=options.lease)
            self._process = os.getpid()
        return cls._stores[name]

    def session(self, timeout: float, look_again: Callable[[float], None]) -> Session:
        if os.getpid() != self._process:
            raise ForkedError("the store is in the memory of the parent process")
        return self._backend.session(timeout, look_again)

    def close(self) -> None:
        """The store lives as long as the process."""


class ThreadedMemory(BackendHarness):
    name = "threaded-memory"
    scope = "process"
    claims = Claims(graceful=False, sigkill=False, power_loss=False, queues=False)

    def register(self) -> None:
        register_backend("threaded-memory", ThreadedFactory)

    def url(self, datadir: Path, port: int) -> str:
        return f"threaded-memory://{datadir.parent.name}-{datadir.name}"
