"""What a criterion is given: a broker to use, brokers to kill, actors, a ledger, sizes, chance, time.

Names are fresh, ledgers are its own, and whatever it opens is closed behind it. The sizes of a profile and the slowness of
a machine come in here and nowhere else: ``stage.size(quick=200, full=1000)``, ``stage.seconds(2.0)``.
"""

import itertools
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from random import Random
from typing import Any

from mqlayer.api import Connection
from mqlayer.driver import Capabilities
from mqlayer.needs import Needs
from mqlayer.testing.actors import Actor
from mqlayer.testing.checker import Expect, check
from mqlayer.testing.harness import BackendHarness, HarnessError, Reach
from mqlayer.testing.ledger import Event, Ledger, Probe, read_ledgers
from mqlayer.testing.outcome import FloorUnmet, Outcome, conclude
from mqlayer.testing.roles.draining import looks_empty
from mqlayer.testing.sites import Broker, Setting, Site

__all__ = ["Drained", "Profile", "Stage", "timeout_multiplier"]

POLL = 0.05
CONTROLLER = "controller"


class Profile(Enum):
    """How much is done."""

    QUICK = "quick"  #: every commit, every column
    FULL = "full"  #: what the matrix is made of
    SOAK = "soak"  #: by hand


SOAK_FACTOR = 10


def timeout_multiplier() -> float:
    """By how much this machine is slower than the one that the timeouts are meant for: ``MQLAYER_TIMEOUT_MULTIPLIER``."""
    return float(os.environ.get("MQLAYER_TIMEOUT_MULTIPLIER", "1"))


@dataclass(frozen=True, slots=True)
class Drained:
    """How a drain ended, as ``Expect`` takes it."""

    drained: bool
    queue_empty: bool | None
    received: int


class Stage:
    """One criterion's run.

    Attributes:
        site: The column's broker, which other criteria use as well: it is not killed.
        capabilities: As the connection tells them.
        random: The only source of chance; it follows from the seed and the criterion.
        folder: For files of one's own.
        deadline: When the run is given up as hanging, on the monotonic clock.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        capabilities: Capabilities,
        profile: Profile,
        seed: int,
        name: str,
        folder: Path,
        deadline: float,
        multiplier: float,
    ) -> None:
        self.harness: BackendHarness = broker.harness
        self.capabilities = capabilities
        self.profile = profile
        self.seed = seed
        self.random = Random(f"{seed} {name}")
        self.folder = folder
        self.deadline = deadline
        self.timeout_multiplier = multiplier
        self.ledgers = folder / "ledgers"
        self.ledgers.mkdir(parents=True)
        self.controller = self.ledger(CONTROLLER)
        self._setting = Setting(
            harness=broker.harness,
            ledgers=self.ledgers,
            controller=self.controller,
            random=self.random,
            multiplier=multiplier,
            numbers=itertools.count(1),
        )
        self._brokers: list[Broker] = []
        self._sites: list[Site] = []
        self.site = self._site(broker, options=self.harness.quick_options)

    # ---- how much, how long ----

    def size(self, *, quick: int, full: int, soak: int | None = None) -> int:
        """How many, by the profile."""
        if self.profile is Profile.SOAK:
            return full * SOAK_FACTOR if soak is None else soak
        return quick if self.profile is Profile.QUICK else full

    def seconds(self, seconds: float) -> float:
        """A timeout, for this machine. Not for times that are part of what is tested."""
        return seconds * self.timeout_multiplier

    def wait_until(self, condition: Callable[[], object], what: str, *, timeout: float = 30.0) -> None:
        """Look again and again until *condition* holds.

        Raises:
            AssertionError: it does not within *timeout* seconds: "… after 30 s: <what>".
        """
        end = time.monotonic() + self.seconds(timeout)
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < end, f"not so after {timeout:g} s: {what}"
            pause.wait(POLL)

    def floor(self, what: str, value: float, at_least: float) -> None:
        """Too little of *what* proves nothing.

        Raises:
            FloorUnmet
        """
        if value < at_least:
            raise FloorUnmet(f"{what}: {value:g} of at least {at_least:g}", Outcome(evidence={what: value}))

    # ---- the broker ----

    @property
    def url(self) -> str:
        """The shared broker's."""
        return self.site.url

    @property
    def in_process(self) -> bool:
        """The store is in this process's memory: actors are threads, whose death is to be abandoned."""
        return self.site.broker.reach is Reach.MEMORY

    @property
    def has_server(self) -> bool:
        return self.site.broker.reach is Reach.SERVER

    def queue(self, label: str = "") -> str:
        """A queue's name that nobody has used. It is not declared."""
        return f"test-{uuid.uuid4()}" + (f"-{label}" if label else "")

    def connect(self, *, needs: Needs | None = None, **query: object) -> Connection:
        """A connection to the shared broker, closed in the end. Keywords are options of the URL."""
        return self.site.connect(needs=needs, **query)

    def actor(self, role: str, name: str | None = None, /, **job: Any) -> Actor:
        """Start an actor that uses the shared broker; see ``roles`` for the fields of each job."""
        return self.site.actor(role, name, **job)

    def proxied(self) -> Site:
        """The shared broker once more, behind a fault proxy of one's own. ``NotRun`` where there is no server."""
        return self._site(self.site.broker, proxied=True, options=self.harness.quick_options)

    def own_server(self, *, proxied: bool = False, **query: object) -> Site:
        """A broker of one's own on an empty data folder, started, to be killed and restarted.

        Options of the URL are at their defaults, but for *query*. A store in memory is in a child process, for actors
        alone.
        """
        broker = Broker(self.harness, self.folder / f"broker-{len(self._brokers) + 1}")
        self._brokers.append(broker)
        broker.start()
        return self._site(broker, own=True, proxied=proxied, options=query)

    def _site(self, broker: Broker, *, own: bool = False, proxied: bool = False, options: Mapping[str, object]) -> Site:
        site = Site(self._setting, broker, own=own, proxied=proxied, options=options)
        self._sites.append(site)
        return site

    def assert_empty(self, mq: Connection, queue: str) -> None:
        """Nothing is in the queue, by its count and by asking for a delivery. Its other consumers have to be closed."""
        empty = looks_empty(mq, queue, self.controller, wait=threading.Event().wait)
        assert empty is not False, f"{queue} is not empty: {mq.stats(queue)}"
        with mq.consumer(queue) as consumer:
            delivery = consumer.receive(timeout=0)
            assert delivery is None, f"{queue} is not empty: {delivery!r}"

    # ---- what happened ----

    def ledger(self, name: str) -> Ledger:
        """A ledger for the criterion itself, or for a thread of it that sends or receives."""
        return Ledger(self.ledgers / f"{name}.jsonl", name)

    def history(self) -> list[Event]:
        """Everything that everybody saw so far, in the order of time."""
        return read_ledgers(self.ledgers)

    def settled(self, mq: Connection, queue: str, *, timeout: float = 10.0) -> None:
        """The barrier behind which nothing acked may come again: wait until the queue is empty, and write that down.

        Consumers have to be closed.

        Raises:
            FloorUnmet: the broker does not say that it is empty.
        """
        end = time.monotonic() + self.seconds(timeout)
        while not looks_empty(mq, queue, self.controller, wait=threading.Event().wait):
            if time.monotonic() > end:
                raise FloorUnmet(
                    f"{queue} is not seen to be empty after {timeout:g} s, so no ack is known to be settled"
                )
            threading.Event().wait(POLL)
        self.controller.probe(Probe.SETTLED, queue=queue)

    def drain(self, site: Site, *queues: str, quiet: float = 2.0, deadline: float = 30.0, **query: object) -> Drained:
        """Have a fresh actor receive all that is left. *quiet* is longer than any lease of the run."""
        actor = site.actor("drain", queues=queues, quiet=quiet, deadline=deadline, query=query)
        said = actor.finish(deadline + quiet + 30.0)
        return Drained(said["drained"], said["queue_empty"], said["received"])

    def judge(self, expect: Expect, **evidence: Any) -> Outcome:
        """What the history proves, as the outcome of the criterion. *evidence* goes into the record, too.

        Raises:
            PromiseBroken: it is a fail. FloorUnmet: too little happened, or something may still be in a queue.
        """
        for site in self._sites:
            evidence = site.evidence() | evidence
        return conclude(check(self.history(), expect), **evidence)

    # ---- the end ----

    def close(self) -> None:
        """End all that it opened.

        Raises:
            HarnessError, PromiseBroken: something did not end well, or an actor failed and nobody has heard of it.
        """
        errors: list[BaseException] = []
        for site in reversed(self._sites):
            site.close(errors)
        for broker in self._brokers:
            try:
                broker.close()
            except Exception as error:
                errors.append(error)
        self.controller.close()
        if errors:
            broken = [error for error in errors if isinstance(error, AssertionError)]
            raise (
                (broken or errors)[0]
                if len(errors) == 1 or broken
                else HarnessError("; ".join(f"{type(error).__name__}: {error}" for error in errors))
            ) from errors[0]
