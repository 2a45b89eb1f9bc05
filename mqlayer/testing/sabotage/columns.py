"""The saboteurs as columns: our own harnesses, with a broken session, or a server or an actor that does less than it should."""

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from mqlayer import register_backend
from mqlayer.clock import Clock
from mqlayer.driver import Backend, Session
from mqlayer.registry import backend_factory
from mqlayer.testing.harness import BackendHarness
from mqlayer.testing.harnesses import RabbitMQQuorum, SQLite
from mqlayer.testing.processes import Ending, ProcessServer
from mqlayer.testing.roles import draining, producing
from mqlayer.testing.sabotage import sessions
from mqlayer.urls import BrokerURL

__all__ = [
    "AckEarly",
    "DropHeaders",
    "DupEvery100",
    "EmptyRun",
    "FakeKill",
    "FlushOnExit",
    "ForgetQueues",
    "HangForever",
    "LateAckWins",
    "LieConfirm",
    "LooseGroups",
    "LosesOnReconnect",
    "NoDrain",
    "Phantom",
    "PrefetchHog",
    "Reorder",
    "Resurrect",
    "RetypeHeaders",
    "StripNUL",
    "SwallowErrors",
    "Truncate64K",
    "Volatile",
    "ZombieConsumer",
]

FOLDER = "saboteur_folder"  #: the option of a broken URL that names the column's data folder


class _Backend:
    """A good backend whose sessions are broken."""

    def __init__(self, inner: Backend, kind: type[sessions.Broken], shared: sessions.Shared) -> None:
        self._inner = inner
        self._kind = kind
        self._shared = shared

    @property
    def inline(self) -> bool:
        return self._inner.inline

    def session(self, timeout: float, look_again: Callable[[float], None]) -> Session:
        return self._kind(self._inner.session(timeout, look_again), self._shared)

    def close(self) -> None:
        self._inner.close()


class _Factory:
    """What is registered under ``<saboteur>+<scheme>``."""

    def __init__(self, scheme: str, kind: type[sessions.Broken]) -> None:
        self._scheme = scheme
        self._kind = kind

    @property
    def options(self) -> type:
        inner = backend_factory(self._scheme).options
        return make_dataclass("Options", [(FOLDER, str, "")], bases=(inner,), frozen=True, kw_only=True)

    def __call__(self, url: BrokerURL, options: object, *, clock: Clock) -> Backend:
        inner_url = BrokerURL(self._scheme, url.hosts, url.path, url.username, url.password)
        inner = backend_factory(self._scheme)(inner_url, options, clock=clock)
        folder = getattr(options, FOLDER)
        return _Backend(inner, self._kind, sessions.Shared(url, Path(folder) if folder else None))


class _Column(BackendHarness):
    """A good column, whose sessions are of a broken kind."""

    kind: ClassVar[type[sessions.Broken]] = sessions.Broken

    def register(self) -> None:
        for scheme in ("sqlite", "amqp"):
            register_backend(f"{self._prefix}{scheme}", _Factory(scheme, self.kind))

    def url(self, datadir: Path, port: int) -> str:
        good = super().url(datadir, port)
        return f"{self._prefix}{good}{'&' if '?' in good else '?'}{FOLDER}={quote(str(datadir))}"

    @property
    def _prefix(self) -> str:
        return f"{type(self).__name__.lower()}+"


class _OverSQLite(_Column, SQLite):
    name = "sqlite"


class _OverRabbit(_Column, RabbitMQQuorum):
    name = "rabbitmq-quorum"

    def start(self, datadir: Path, port: int) -> ProcessServer:
        server = RabbitMQQuorum.start(self, datadir, port)
        good = server.start

        def start() -> None:
            self.before_start(datadir, server)
            with (datadir / sessions.STARTS).open("a") as marks:
                marks.write("+")
            good()

        server.start = start  # type: ignore[method-assign]
        return server

    def before_start(self, datadir: Path, server: ProcessServer) -> None:
        """What a broken server does to its data."""


class AckEarly(_OverSQLite):
    kind = sessions.AckEarly


class DupEvery100(_OverSQLite):
    kind = sessions.DupEvery100


class Reorder(_OverSQLite):
    kind = sessions.Reorder


class LooseGroups(_OverSQLite):
    kind = sessions.LooseGroups


class DropHeaders(_OverSQLite):
    kind = sessions.DropHeaders


class RetypeHeaders(_OverSQLite):
    kind = sessions.RetypeHeaders


class Truncate64K(_OverSQLite):
    kind = sessions.Truncate64K


class StripNUL(_OverSQLite):
    kind = sessions.StripNUL


class LateAckWins(_OverSQLite):
    kind = sessions.LateAckWins


class PrefetchHog(_OverSQLite):
    kind = sessions.PrefetchHog


class LieConfirm(_OverRabbit):
    kind = sessions.LieConfirm


class SwallowErrors(_OverRabbit):
    kind = sessions.SwallowErrors


class LosesOnReconnect(_OverRabbit):
    kind = sessions.LosesOnReconnect


class Phantom(_OverRabbit):
    kind = sessions.Phantom


class ZombieConsumer(_OverRabbit):
    kind = sessions.ZombieConsumer


class HangForever(_OverRabbit):
    kind = sessions.HangForever


class Resurrect(_OverRabbit):
    kind = sessions.Resurrect


class ForgetQueues(_OverRabbit):
    kind = sessions.ForgetQueues


class Volatile(_OverRabbit):
    """Its server begins with nothing, whatever it was told before."""

    def before_start(self, datadir: Path, server: ProcessServer) -> None:
        _wipe(datadir)


class FlushOnExit(_OverRabbit):
    """Its server keeps only what it could write in an orderly end."""

    def before_start(self, datadir: Path, server: ProcessServer) -> None:
        if server.endings and server.endings[-1].signal is signal.SIGKILL:
            _wipe(datadir)


class FakeKill(RabbitMQQuorum):
    """Its server does not die when it is killed, and says that it did."""

    def start(self, datadir: Path, port: int) -> ProcessServer:
        server = super().start(datadir, port)
        good = server.start

        def spared(number: signal.Signals = signal.SIGKILL, *, timeout: float = 0.0) -> Ending:
            now = time.monotonic()
            return Ending(
                pids=tuple(server.pids()),
                signal=number,
                exit_status=-number,
                by_itself=False,
                leftovers=(),
                port_refused=False,
                began_at=now,
                ended_at=now,
            )

        def start() -> None:
            if not server.alive:
                good()

        server.kill = spared  # type: ignore[method-assign]
        server.start = server.restart = start  # type: ignore[method-assign]
        return server


class EmptyRun(SQLite):
    """Its producers send nothing, and say that all went well."""

    def register(self) -> None:
        producing.Produce.run = _nothing_sent  # type: ignore[method-assign, assignment]


class NoDrain(SQLite):
    """Its drains look at nothing."""

    def register(self) -> None:
        draining.Drain.run = _nothing_drained  # type: ignore[method-assign, assignment]


def _wipe(datadir: Path) -> None:
    shutil.rmtree(datadir / "store", ignore_errors=True)


def _nothing_sent(job: producing.Produce, work: Any) -> dict[str, Any]:
    work.say("ready")
    return {"sent": 0, "ok": 0, "fail": 0, "info": 0}


def _nothing_drained(job: draining.Drain, work: Any) -> dict[str, Any]:
    work.say("ready")
    return {"drained": False, "queue_empty": None, "received": 0, "missing": []}
