"""Each behaviour runs four times: blocking and asyncio, in the caller's thread and through a line's own thread."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from facade import Async, Blocking
from fakes import FakeBackend, FakeFactory, ThreadedBackend, unique

from mqlayer.clock import Clock
from mqlayer.driver import Session
from mqlayer.registry import register_backend


class ThreadedFactory:
    """A URL scheme that leads to a ``ThreadedBackend`` for each name, as ``memory://name`` does."""

    def __init__(self) -> None:
        from mqlayer.backends.memory import MemoryOptions

        self.options = MemoryOptions
        self._backends: dict[str, ThreadedBackend] = {}

    def __call__(self, url: Any, options: Any, *, clock: Clock) -> Any:
        name = url.hosts[0][0] if url.hosts else unique("private")
        if name not in self._backends:
            self._backends[name] = ThreadedBackend(clock=clock, lease=options.lease)
        return _Shared(self._backends[name])


class _Shared:
    """A backend that others use too: closing it closes only what is one's own."""

    inline = False

    def __init__(self, inner: ThreadedBackend) -> None:
        self._inner = inner

    def session(self, timeout: float, look_again: Callable[[float], None]) -> Session:
        return self._inner.session(timeout, look_again)

    def close(self) -> None:
        """The sessions close by themselves."""


THREADED = unique("threaded")
register_backend(THREADED, ThreadedFactory())


@pytest.fixture(params=[Blocking, Async], ids=lambda kind: kind.name)
def api(request: pytest.FixtureRequest) -> Iterator[Any]:
    facade = request.param()
    yield facade
    facade.close()


@pytest.fixture(params=["memory", THREADED], ids=["inline", "threaded"])
def url(request: pytest.FixtureRequest) -> str:
    """A broker of the test's own."""
    return f"{request.param}://{unique('broker')}"


@pytest.fixture
def mq(api: Any, url: str) -> Iterator[Any]:
    with api.connect(url) as connection:
        yield connection


@pytest.fixture
def fake() -> Callable[..., tuple[str, FakeBackend]]:
    """Makes a backend of scripted sessions, and its URL."""

    def make(*sessions: Any, **options: Any) -> tuple[str, FakeBackend]:
        scheme, backend = unique("scripted"), FakeBackend(*sessions, **options)
        register_backend(scheme, FakeFactory(backend))
        return f"{scheme}://user:hunter2@host/", backend

    return make
