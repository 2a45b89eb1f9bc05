"""What somebody who writes a backend tells the durability suite: how their broker is started, and what it should survive.

    class Harness(BackendHarness):
        name, version = "acme", "1.2"
        claims = Claims(graceful=True, sigkill=True, power_loss=None, queues=True)
        def start(self, datadir, port): return ProcessServer(["acmed", "--data", datadir, "--port", str(port)])
        def url(self, datadir, port): return f"acme://127.0.0.1:{port}/"

What the backend can do is read from its connection, never said again here.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

from mqlayer.testing.processes import ProcessServer

__all__ = [
    "BackendHarness",
    "Claims",
    "Deviation",
    "HarnessError",
    "Reach",
    "Scope",
    "find_harness",
    "harness_path",
    "reach_of",
]

Scope = Literal["process", "machine", "network"]
NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


class HarnessError(Exception):
    """The test set-up is broken. Nothing is known about the broker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What confirmed messages and queues are said to survive.

    ``True``: proved, or red. ``False``: it is lost, and the suite sees to it that this is true as well. ``None``: tried
    and reported, never red.

    Attributes:
        graceful: A server that is asked to end, and does.
        sigkill: A server that is killed.
        power_loss: … and loses what it had not synced to the disk.
        queues: Queues come back with their options after a kill.
        counts: A delivery that was held when the server was killed is counted when it comes again. Where a backend
            counts deliveries at all, this is asked of it unless it says ``False``.
    """

    graceful: bool | None = None
    sigkill: bool | None = None
    power_loss: bool | None = None
    queues: bool | None = None
    counts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """Where the server itself breaks a promise that is its backend's to make.

    The criterion is run, and has to fail in this way: then it is ``unsupported``, with these words. A pass, or any other
    failure, is red.

    Attributes:
        behaviour: What the server does, in words.
        seen: A regular expression that the reason of the failed run has to match.
    """

    behaviour: str
    seen: str


class Reach(Enum):
    """What there is of a broker that the suite can put its hands on."""

    SERVER = "server"  #: a server process of ours
    FILES = "files"  #: no server: the processes that use the store are all there is to kill
    MEMORY = "memory"  #: no server, and the store is in the memory of one process
    MANAGED = "managed"  #: a server that somebody else runs


NO_DEVIATIONS: Mapping[str, Deviation] = MappingProxyType({})


class BackendHarness:
    """One column of the matrix: a backend in one configuration.

    Processes of the suite make their own by calling the class without arguments, so two configurations are two classes.

    Attributes:
        name: The column's: ``acme``, ``acme-cluster``. It names files, too.
        version: The server's. Override ``server_version`` to ask it instead.
        scope: Who can share a store: the threads of a process, the processes of a machine, or everybody.
        configuration: In words, what this column sets, where a broker has more than one.
        deviations: Criteria that the server itself makes fail → how.
        quick_options: URL options for criteria that look at behaviour and kill nothing, to save time.
    """

    name: ClassVar[str]
    version: ClassVar[str] = ""
    claims: ClassVar[Claims] = Claims()
    scope: ClassVar[Scope] = "network"
    configuration: ClassVar[str] = ""
    deviations: ClassVar[Mapping[str, Deviation]] = NO_DEVIATIONS
    quick_options: ClassVar[Mapping[str, str]] = NO_OPTIONS

    def register(self) -> None:
        """Make the scheme known (``mqlayer.register_backend``); for backends that are no installed entry point.

        Called first in every process of the suite.
        """

    def start(self, datadir: Path, port: int) -> ProcessServer | None:
        """A server that keeps its data in *datadir* and listens on *port*, started or not; ``None`` for an embedded store."""
        return None

    def url(self, datadir: Path, port: int) -> str:
        """Where to connect. *port* may be a fault proxy's, in front of the server's."""
        raise NotImplementedError(f"{type(self).__name__}.url")

    def available(self) -> str | None:
        """Why this cannot be run here, such as what to install; ``None``: it can."""
        return None

    def unacked(self, queue: str) -> int | None:
        """What the broker itself says is delivered and not settled, by another way than our connection; ``None``: no way."""
        return None

    def server_version(self) -> str:
        """Product and version of the server."""
        return f"{self.name} {self.version}".strip()

    def client_version(self) -> str:
        """Name and version of the client library; empty: none."""
        return ""


def reach_of(harness: BackendHarness, server: ProcessServer | None) -> Reach:
    """What can be done to the broker, given what ``start`` returned."""
    if server is not None:
        return Reach.SERVER
    return {"process": Reach.MEMORY, "machine": Reach.FILES, "network": Reach.MANAGED}[harness.scope]


def harness_path(harness: BackendHarness) -> str:
    """``module:Class``, by which another process finds it."""
    kind = type(harness)
    if kind.__module__ == "__main__" or "<" in kind.__qualname__:
        raise HarnessError(f"{kind.__qualname__} has to be at the top of a module that other processes can import")
    return f"{kind.__module__}:{kind.__qualname__}"


def find_harness(path: str) -> BackendHarness:
    """The harness at ``module:Class``.

    Raises:
        HarnessError: there is none.
    """
    module_name, colon, class_name = path.partition(":")
    if not colon or not class_name:
        raise HarnessError(f"a harness is named module:Class, not {path!r}")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as exc:
        raise HarnessError(f"no harness at {path}: {exc}") from exc
    if not (isinstance(found, type) and issubclass(found, BackendHarness)):
        raise HarnessError(f"{path} is no class derived from BackendHarness")
    return found()
