"""From a URL to a backend: by entry point, so that ours and a third party's are found in the same way."""

import difflib
import functools
import threading
from dataclasses import dataclass
from typing import cast

from mqlayer.clock import Clock
from mqlayer.driver import Backend, BackendFactory
from mqlayer.errors import ConfigError, MissingExtraError, UnknownSchemeError
from mqlayer.urls import BrokerURL, parse_url, split_options

__all__ = [
    "CommonOptions",
    "Reading",
    "Target",
    "backend_factory",
    "open_backend",
    "read_url",
    "register_backend",
    "schemes",
]

GROUP = "mqlayer.backends"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonOptions:
    """The options that every URL may have.

    Attributes:
        declare: ``auto``: producers and consumers make sure that their queue exists. ``never``: a missing queue is an error.
        require: ``native``: what mqlayer would emulate is unsupported.
        timeout: Seconds that each call may take as a whole, where the call itself does not say.
    """

    declare: str = "auto"
    require: str = "any"
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.declare not in ("auto", "never"):
            raise ValueError(f"option 'declare' is auto or never, not {self.declare!r}")
        if self.require not in ("any", "native"):
            raise ValueError(f"option 'require' is any or native, not {self.require!r}")
        if self.timeout is not None and not 0 < self.timeout < float("inf"):
            raise ValueError(f"option 'timeout' is a positive number of seconds, not {self.timeout!r}")


@dataclass(frozen=True, slots=True)
class Target:
    """What a URL leads to."""

    url: BrokerURL
    backend: Backend
    common: CommonOptions
    prefetch: int | None  #: the backend's own default or the URL's word; None: it has no such option


class _Registered:
    """Factories that tests registered. They come before installed ones of the same scheme."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.factories: dict[str, BackendFactory] = {}


_registered = _Registered()


def register_backend(scheme: str, factory: BackendFactory) -> None:
    """Make ``scheme://`` lead to *factory* in this process, as an entry point would. Again: replaces it."""
    with _registered.lock:
        _registered.factories[scheme.lower()] = factory


@functools.cache
def _installed() -> dict[str, object]:
    from importlib.metadata import entry_points

    return {point.name.lower(): point for point in entry_points(group=GROUP)}


def schemes() -> list[str]:
    """All schemes that a URL can have here, in alphabetical order."""
    return sorted({*_installed(), *_registered.factories})


def backend_factory(scheme: str) -> BackendFactory:
    """The factory of a scheme.

    Raises:
        UnknownSchemeError: nobody registered it; the text names the nearest match, or those that are.
        MissingExtraError: its client library is not installed; the text names the ``pip install`` that mends it.
    """
    factory = _registered.factories.get(scheme)
    if factory is not None:
        return factory
    point = _installed().get(scheme)
    if point is None:
        names = schemes()
        near = difflib.get_close_matches(scheme, names, n=1)
        hint = f"did you mean {near[0]}://?" if near else "known here: " + ", ".join(f"{name}://" for name in names)
        raise UnknownSchemeError(f"unknown scheme {scheme}://; {hint}")
    try:
        return cast(BackendFactory, point.load())  # type: ignore[attr-defined]
    except ImportError as exc:
        extra = next(iter(getattr(point, "extras", ())), None)
        package = (exc.name or "its client library").partition(".")[0]
        mend = f'pip install "mqlayer[{extra}]"' if extra else f"pip install {package}"
        raise MissingExtraError(f"{scheme}:// needs {package}: {mend}") from exc


@dataclass(frozen=True, slots=True)
class Reading:
    """A URL that has been understood; nothing is made of it yet."""

    url: BrokerURL
    factory: BackendFactory
    options: object
    common: CommonOptions

    def target(self, backend: Backend) -> Target:
        return Target(self.url, backend, self.common, getattr(self.options, "prefetch", None))


def read_url(text: str) -> Reading:
    """Read a URL and find its factory.

    Raises:
        ConfigError: the URL, its scheme, an option or the installation is wrong.
    """
    url = parse_url(text)
    factory = backend_factory(url.scheme)
    options, common = split_options(url.query, factory.options, CommonOptions, scheme=url.scheme)
    if not isinstance(common, CommonOptions):
        raise ConfigError(f"{url.scheme}:// has a broken options class")
    return Reading(url, factory, options, common)


def open_backend(text: str, *, clock: Clock) -> Target:
    """Read a URL and make its backend. Nothing is connected yet.

    Raises:
        ConfigError: as for ``read_url``.
    """
    reading = read_url(text)
    return reading.target(reading.factory(reading.url, reading.options, clock=clock))
