"""A broker where it stands: its data folder, its server if it has one, the proxy in front of it, its clients.

What a criterion does to a broker, it does here, and here it is written into the ledger: which process was killed, of what
it died, that its port refused, and who came after it. What a kill hits depends on what there is:

=========  =======================================================================================================
server     the server and all its processes; it is down until ``restart``. Clients stay
files      one of the processes that have the store open, at random; the others go on, and nothing is ever down
memory     the process that holds the store, with all its actors, for there they are; gone until ``restart``
=========  =======================================================================================================
"""

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Protocol

from mqlayer.api import Connection, connect
from mqlayer.errors import MQError
from mqlayer.needs import Needs
from mqlayer.testing.actor import HOST, Order
from mqlayer.testing.actors import Actor, ActorProcess, HostedActor, ProcessActor, ThreadActor, host_process
from mqlayer.testing.harness import BackendHarness, HarnessError, Reach, harness_path, reach_of
from mqlayer.testing.ledger import Fault, Ledger, Phase
from mqlayer.testing.outcome import NotRun
from mqlayer.testing.ports import LOOPBACK, PortError, assert_refused, free_port
from mqlayer.testing.processes import ProcessServer
from mqlayer.testing.proxy import FaultProxy
from mqlayer.testing.roles import make_role
from mqlayer.testing.urls import with_options

__all__ = ["Broker", "Ended", "Setting", "Site"]

READY_TIMEOUT = 60.0
LOOK_AGAIN = 0.2
CLOSE_TIMEOUT = 10.0


class Broker:
    """A broker of a harness on a data folder: one for all criteria of a column that leave it alone, others for one alone."""

    def __init__(self, harness: BackendHarness, datadir: Path) -> None:
        datadir.mkdir(parents=True)
        self.harness = harness
        self.datadir = datadir
        self.port = free_port()
        self.server: ProcessServer | None = None
        self.reach = Reach.MANAGED

    def start(self) -> None:
        """Start the server, if there is one, and return once it serves."""
        self.server = self.harness.start(self.datadir, self.port)
        self.reach = reach_of(self.harness, self.server)
        if self.server is not None and not self.server.alive:
            self.server.start()
        self.await_service()

    def await_service(self) -> None:
        """Return once a message goes through. A port that accepts is not a broker that is ready.

        Raises:
            HarnessError: it did not within a minute.
        """
        if self.server is None:
            return
        url = with_options(self.harness.url(self.datadir, self.port), self.harness.quick_options)
        deadline = time.monotonic() + READY_TIMEOUT
        while True:
            try:
                _round_trip(url)
                return
            except MQError as error:
                if time.monotonic() > deadline:
                    raise HarnessError(
                        f"{self.server!r} does not serve after {READY_TIMEOUT:g} s: {error!r}"
                    ) from error
            threading.Event().wait(LOOK_AGAIN)

    def close(self) -> None:
        if self.server is not None:
            self.server.__exit__()


def _round_trip(url: str) -> None:
    with connect(url, timeout=CLOSE_TIMEOUT) as mq:
        queue = f"test-probe-{uuid.uuid4()}"
        mq.declare(queue, temporary=True)
        mq.producer(queue).send(b"probe")
        with mq.consumer(queue) as consumer:
            delivery = consumer.receive(timeout=CLOSE_TIMEOUT)
            if delivery is None:
                raise MQError("a message was confirmed and did not come")
            delivery.ack()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all sites of one criterion share.

    Attributes:
        ledgers: The folder of the actors' ledgers; ``controller`` is our own.
        numbers: For names that are used once.
    """

    harness: BackendHarness
    ledgers: Path
    controller: Ledger
    random: Random
    multiplier: float
    numbers: "itertools.count[int]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended: the evidence that it did.

    Attributes:
        exit: The status; -9 is a death by SIGKILL.
        refused: Its port refused connections afterwards; ``None``: it had none.
        successor: The process that came after it; ``None``: none, or not yet.
    """

    pid: int | None
    sent: str
    exit: int
    refused: bool | None = None
    successor: int | None = None


class Site:
    """A broker with its clients, for one criterion.

    Args:
        own: Nobody else uses the broker, so it may be killed. A store in memory is then in a child process, for actors
            alone.
        options: More options for every URL.
    """

    def __init__(
        self,
        setting: Setting,
        broker: Broker,
        *,
        proxied: bool = False,
        own: bool = False,
        options: Mapping[str, object] | None = None,
    ) -> None:
        self.broker = broker
        self.actors: list[Actor] = []
        self.endings: list[Ended] = []
        self.proxy: FaultProxy | None = None
        self._setting = setting
        self._options = dict(options or {})
        self._connections: list[Connection] = []
        self._down: tuple[Fault, str | None, Ended] | None = None
        self._own = own
        if proxied:
            if broker.reach is not Reach.SERVER:
                raise NotRun("there is no server to put a proxy in front of")
            self.proxy = FaultProxy(LOOPBACK, broker.port)
            self.proxy.start()
        self._life = self._begin_life()

    def _begin_life(self) -> "_Life":
        if self.broker.server is not None:
            return _ServerLife(self.broker)
        if self._own and self.broker.reach is Reach.MEMORY:
            return _InsideLife(self._host_order(), self._setting.ledgers, READY_TIMEOUT * self._setting.multiplier)
        return _FilesLife(self)

    def _host_order(self) -> Order:
        return self._order(HOST, f"host-{next(self._setting.numbers)}", {})

    # ---- clients ----

    @property
    def url(self) -> str:
        """Where to connect: to the proxy, if there is one."""
        port = self.proxy.port if self.proxy is not None else self.broker.port
        return with_options(self._setting.harness.url(self.broker.datadir, port), self._options)

    def connect(self, *, needs: Needs | None = None, **query: object) -> Connection:
        """A connection, closed when the criterion ends. Keywords are options of the URL.

        Raises:
            HarnessError: the store is in another process's memory. Actors can use it: that is what they are for.
        """
        if isinstance(self._life, _InsideLife):
            raise HarnessError("the store is in a child process, to be killed with it: leave the work to actors")
        connection = connect(with_options(self.url, query), needs=needs)
        self._connections.append(connection)
        return connection

    def actor(self, role: str, name: str | None = None, /, **job: Any) -> Actor:
        """Start an actor; see ``roles`` for the fields of each job. Wait for its ``ready()`` where it matters."""
        make_role(role, job)  # a wrong job is found here, not in a process that dies of it
        order = self._order(role, name or f"{role}-{next(self._setting.numbers)}", job)
        actor: Actor
        if isinstance(self._life, _InsideLife):
            actor = HostedActor(order, self._setting.controller, self._life.host)
        elif self.broker.reach is Reach.MEMORY:
            actor = ThreadActor(order, self._setting.controller)
        else:
            log = self._setting.ledgers / f"{order.name}.log"
            actor = ProcessActor(order, self._setting.controller, log)
        self.actors.append(actor)
        return actor

    def _order(self, role: str, name: str, job: Mapping[str, Any]) -> Order:
        return Order(
            harness=harness_path(self._setting.harness),
            name=name,
            role=role,
            url=self.url,
            ledgers=str(self._setting.ledgers),
            job=job,
            multiplier=self._setting.multiplier,
        )

    # ---- faults ----

    def kill(self, *, during: str | None = None) -> Ended:
        """SIGKILL, and wait until it is dead. *during* names what was going on, for the record."""
        return self._end(Fault.SERVER_KILL, during)

    def stop(self, *, during: str | None = None) -> Ended:
        """Ask the same process to end in good order, and wait until it has."""
        return self._end(Fault.SERVER_STOP, during)

    def restart(self) -> None:
        """Start again on the same data, after a kill or a stop, and return once it serves."""
        if self._down is None:
            if not self._life.goes_on:
                raise HarnessError("it runs: nothing to restart")
            return
        self._is_back(self._life.restart())

    def pause(self) -> None:
        """SIGSTOP to the server: connections stay, nobody answers."""
        server = self._server()
        self._setting.controller.fault(Fault.SERVER_PAUSE, Phase.BEGIN, pid=server.pid)
        server.pause()

    def resume(self) -> None:
        """SIGCONT, after ``pause``."""
        self._server().resume()
        self._setting.controller.fault(Fault.SERVER_PAUSE, Phase.END)

    def _server(self) -> ProcessServer:
        if self.broker.server is None:
            raise NotRun("there is no server")
        return self.broker.server

    def _end(self, fault: Fault, during: str | None) -> Ended:
        if self.broker.reach is Reach.MANAGED:
            raise NotRun("the server is managed by somebody else")
        if not self._own:
            raise HarnessError("others use this broker, too: take stage.own_server()")
        if self._down is not None:
            raise HarnessError("it is down already")
        target, pid = self._life.aim()
        self._setting.controller.fault(fault, Phase.BEGIN, target=target, pid=pid, during=during)
        ended = self._life.kill() if fault is Fault.SERVER_KILL else self._life.stop()
        if isinstance(self._life, _InsideLife):
            for actor in self.actors:
                actor.mark_dead()
        self.endings.append(ended)
        self._down = fault, target, ended
        if self._life.goes_on:
            self._is_back(None)
        return ended

    def _is_back(self, pid: int | None) -> None:
        assert self._down is not None
        (fault, target, ended), self._down = self._down, None
        self.endings[-1] = replace(ended, successor=pid)
        self._setting.controller.fault(fault, Phase.END, target=target, pid=pid, exit=ended.exit, refused=ended.refused)

    def evidence(self) -> dict[str, Any]:
        """What shows that kills and stops happened, for the record."""
        found: dict[str, Any] = {}
        if self.endings:
            found |= {
                "ended_pids": [ended.pid for ended in self.endings],
                "successors": [ended.successor for ended in self.endings],
                "signals": [ended.sent for ended in self.endings],
                "exits": [ended.exit for ended in self.endings],
                "port_refused": [ended.refused for ended in self.endings],
            }
        if self.proxy is not None:
            found["proxy"] = asdict(self.proxy.stats())
        return found

    # ---- the end ----

    def close(self, errors: list[BaseException]) -> None:
        """End all clients. What went wrong, and what actors had to say that nobody has heard, is added to *errors*."""
        steps = [*(actor.dismiss for actor in self.actors), *(_closing(each) for each in self._connections)]
        steps.append(self._life.close)
        if self.proxy is not None:
            steps.append(self.proxy.stop)
        for step in steps:
            try:
                step()
            except Exception as error:
                errors.append(error)


def _closing(connection: Connection) -> Callable[[], None]:
    return lambda: connection.close(timeout=CLOSE_TIMEOUT)


class _Life(Protocol):
    """What it means to a broker to be killed. ``goes_on``: its store is never down."""

    goes_on: bool

    def aim(self) -> tuple[str | None, int | None]:
        """The actor that the next kill or stop hits (``None``: all), and the process."""
        ...

    def kill(self) -> Ended: ...
    def stop(self) -> Ended: ...
    def restart(self) -> int | None: ...
    def close(self) -> None: ...


class _ServerLife:
    goes_on = False

    def __init__(self, broker: Broker) -> None:
        assert broker.server is not None
        self._broker = broker
        self._server = broker.server

    def aim(self) -> tuple[str | None, int | None]:
        return None, self._server.pid

    def kill(self) -> Ended:
        return self._ended(self._server.pid, self._server.kill().exit_status, "SIGKILL")

    def stop(self) -> Ended:
        return self._ended(self._server.pid, self._server.stop().exit_status, "SIGTERM")

    def _ended(self, pid: int | None, status: int, sent: str) -> Ended:
        try:
            assert_refused(self._broker.port)
        except PortError:  # then nothing was proved, which the record is to show
            return Ended(pid=pid, sent=sent, exit=status, refused=False)
        return Ended(pid=pid, sent=sent, exit=status, refused=True)

    def restart(self) -> int | None:
        if not self._server.alive:
            self._server.restart()
        self._broker.await_service()
        return self._server.pid

    def close(self) -> None:
        """The broker's owner does that."""


class _FilesLife:
    goes_on = True

    def __init__(self, site: Site) -> None:
        self._site = site
        self._victim: ProcessActor | None = None

    def aim(self) -> tuple[str | None, int | None]:
        site = self._site
        living = [actor for actor in site.actors if isinstance(actor, ProcessActor) and actor.alive]
        if not living:
            bystander = site.actor("idle")
            bystander.ready()
            assert isinstance(bystander, ProcessActor)
            living = [bystander]
        self._victim = site._setting.random.choice(living)
        return self._victim.name, self._victim.pid

    def kill(self) -> Ended:
        victim = self._aimed()
        return Ended(pid=victim.pid, sent="SIGKILL", exit=victim.end())

    def stop(self) -> Ended:
        victim = self._aimed()
        victim.stop()
        return Ended(pid=victim.pid, sent="stop", exit=victim.process.wait(CLOSE_TIMEOUT))

    def _aimed(self) -> ProcessActor:
        assert self._victim is not None
        return self._victim

    def restart(self) -> int | None:
        return None

    def close(self) -> None:
        """Nothing runs but the actors."""


class _InsideLife:
    goes_on = False

    def __init__(self, order: Order, ledgers: Path, timeout: float) -> None:
        self._order = order
        self._log = ledgers / f"{order.name}.log"
        self._timeout = timeout
        self.host: ActorProcess = host_process(order, self._log, timeout)

    def aim(self) -> tuple[str | None, int | None]:
        return None, self.host.pid

    def kill(self) -> Ended:
        pid = self.host.pid
        return Ended(pid=pid, sent="SIGKILL", exit=self.host.kill())

    def stop(self) -> Ended:
        pid = self.host.pid
        self.host.send("stop")
        return Ended(pid=pid, sent="stop", exit=self.host.wait(READY_TIMEOUT))

    def restart(self) -> int | None:
        self.host = host_process(self._order, self._log, self._timeout)
        return self.host.pid

    def close(self) -> None:
        self.host.kill()
