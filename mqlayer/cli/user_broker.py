"""A broker that somebody else runs, for ``check``: its harness, and a note of each queue that is made, to delete it again.

Processes of the suite import this, so it imports nothing of the command line.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import mqlayer
from mqlayer.clock import Clock
from mqlayer.driver import Backend, BackendFactory, Declare, QueueOptions, Session
from mqlayer.errors import ConfigError, MQError
from mqlayer.registry import backend_factory, register_backend
from mqlayer.testing.harness import NO_OPTIONS, BackendHarness, Scope
from mqlayer.testing.harnesses import ALL
from mqlayer.testing.urls import with_options
from mqlayer.urls import BrokerURL, parse_url

__all__ = ["UserBroker", "delete_noted", "user_broker"]

# The suite's processes are started with a harness's class alone; this is how they hear of the rest.
SCHEME, NOTES = "MQLAYER_CHECK_SCHEME", "MQLAYER_CHECK_NOTES"
OURS = "test-"  #: the suite's names contain it; nothing else is ever deleted


class UserBroker(BackendHarness):
    """Claims nothing but what the connection tells, and kills nothing. Every queue made is noted."""

    name = "check"
    scope: ClassVar[Scope] = "network"

    def __init__(self, url: str = "", options: Mapping[str, str] = NO_OPTIONS) -> None:
        self._url = with_options(url, options)  # quick ones: nothing is killed here that they would be needed for

    def register(self) -> None:
        scheme, notes = os.environ[SCHEME], Path(os.environ[NOTES])
        inner = backend_factory(scheme)
        if not isinstance(inner, _NotingFactory):
            register_backend(scheme, _NotingFactory(inner, notes))

    def url(self, datadir: Path, port: int) -> str:
        return self._url

    def server_version(self) -> str:
        return str(parse_url(self._url))


class UserFile(UserBroker):
    """A store that the processes of a machine share."""

    scope: ClassVar[Scope] = "machine"


class UserMemory(UserBroker):
    """A store in this process."""

    scope: ClassVar[Scope] = "process"


_BY_SCOPE: dict[Scope, type[UserBroker]] = {"network": UserBroker, "machine": UserFile, "process": UserMemory}


@contextmanager
def user_broker(url: str, notes: Path) -> Iterator[UserBroker]:
    """The harness for *url*. This process, and those that it starts meanwhile, keep their notes in *notes*.

    Raises:
        ConfigError: the URL or the installation is wrong, or it leads to a store that no second connection can share.
    """
    parsed = parse_url(url)
    factory = backend_factory(parsed.scheme)
    alike = [kind for kind in ALL if parse_url(kind().url(notes.parent, 1)).scheme == parsed.scheme]
    scope: Scope = alike[0].scope if alike else "network"
    if scope == "process" and not parsed.hosts:
        raise ConfigError(f"{parsed} is private to one connection; give it a name: {parsed.scheme}://check")
    notes.touch()
    before = {name: os.environ.get(name) for name in (SCHEME, NOTES)}
    os.environ |= {SCHEME: parsed.scheme, NOTES: str(notes)}
    try:
        yield _BY_SCOPE[scope](url, alike[0].quick_options if alike else NO_OPTIONS)
    finally:
        register_backend(parsed.scheme, factory)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def delete_noted(url: str, notes: Path) -> tuple[int, dict[str, MQError]]:
    """Delete the queues that were noted. Returns how many are gone, and which are not, and why."""
    # A process that was killed may have left half a line.
    names = sorted({str(json.loads(line)) for line in notes.read_text().splitlines() if line.endswith('"')})
    failed: dict[str, MQError] = {}
    ours = [name for name in names if OURS in name]
    with mqlayer.connect(url) as mq:
        for name in ours:
            try:
                mq.delete(name)
            except MQError as error:
                failed[name] = error
    return len(ours) - len(failed), failed


class _NotingFactory:
    """Another factory, whose sessions note the queues that they make."""

    def __init__(self, inner: BackendFactory, notes: Path) -> None:
        self._inner = inner
        self._notes = notes

    @property
    def options(self) -> type:
        return self._inner.options

    def __call__(self, url: BrokerURL, options: object, *, clock: Clock) -> Backend:
        return cast(Backend, _NotingBackend(self._inner(url, options, clock=clock), self._note))

    def _note(self, queue: str) -> None:
        with open(self._notes, "a") as file:  # one short write each: processes do not tear each other's lines
            file.write(json.dumps(queue) + "\n")


class _Passing:
    """Passes on what a subclass does not say itself."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _NotingBackend(_Passing):
    def __init__(self, inner: Backend, note: Callable[[str], None]) -> None:
        super().__init__(inner)
        self._backend = inner
        self._note = note

    def session(self, timeout: float, look_again: Callable[[float], None]) -> Session:
        return cast(Session, _NotingSession(self._backend.session(timeout, look_again), self._note))


class _NotingSession(_Passing):
    def __init__(self, inner: Session, note: Callable[[str], None]) -> None:
        super().__init__(inner)
        self._session = inner
        self._note = note

    def declare(self, queue: str, options: QueueOptions, mode: Declare, timeout: float) -> QueueOptions:
        if mode is not Declare.CHECK:
            self._note(queue)
        return self._session.declare(queue, options, mode, timeout)

    def bind(self, topic: str, group: str | None, timeout: float) -> str:
        queue = self._session.bind(topic, group, timeout)
        self._note(queue)
        return queue
