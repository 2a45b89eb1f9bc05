"""``memory://``: a whole broker in memory, for tests and for queues that may end with their process.

``memory://`` is private to its connection, and so nothing is left over for the next test. ``memory://name`` is shared by
all connections of the process that use the name, and lives as long as the process, as a broker would: what was sent before
a connection closed is there for the next one. ``MemoryFactory.forget(name)`` ends it. Nothing survives the process, and
nothing crosses a fork.

A session never blocks: ``receive`` returns at once, whatever its timeout, and ``look_again`` says when the next one may
find something. It is called from whichever thread made the change, without the store's lock.
"""

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from mqlayer.backends.memory_faults import Faults
from mqlayer.backends.memory_limited import LimitedSession
from mqlayer.backends.memory_profiles import PROFILES, ProfileName
from mqlayer.backends.memory_session import MemorySession, SharedStore
from mqlayer.clock import Clock, SystemClock
from mqlayer.driver import Session, Support
from mqlayer.errors import ClosedError, ConfigError, ForkedError
from mqlayer.urls import BrokerURL

__all__ = ["Faults", "MemoryBackend", "MemoryFactory", "MemoryOptions", "MemorySession", "SharedStore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOptions:
    """The options of ``memory://``.

    Attributes:
        profile: Refuse what this broker would refuse.
        lease: Seconds for which a delivery is its session's, where the session does not say.
    """

    profile: ProfileName | None = None
    lease: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.lease < math.inf:
            raise ValueError(f"option 'lease' is a positive number of seconds, not {self.lease!r}")


class MemoryBackend:
    """Makes sessions on one store.

    Args:
        shared: A store to share with others; ``None``: one of its own.
        faults: What a test orders to go wrong.
        on_close: Called once, at the first ``close``.
    """

    inline = True

    def __init__(
        self,
        options: MemoryOptions,
        *,
        clock: Clock,
        shared: SharedStore | None = None,
        faults: Faults | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._profile = PROFILES[options.profile] if options.profile is not None else None
        longest = self._profile.capabilities.lease_max if self._profile is not None else None
        if longest is not None and options.lease > longest:
            raise ConfigError(
                f"option 'lease' of memory:// is {longest} s at most with this profile, not {options.lease}"
            )
        self._options = options
        self._faults = faults
        self._shared = shared if shared is not None else SharedStore(clock)
        self._on_close = on_close
        self._closed = False

    def session(self, timeout: float, look_again: Callable[[float], None]) -> Session:
        """As the driver's.

        Raises:
            ForkedError: the store is the parent process's.
        """
        if self._closed:
            raise ClosedError("the connection to memory:// is closed")
        if os.getpid() != self._shared.pid:
            raise ForkedError("a memory:// store cannot follow into a fork; connect again in the child")
        expires = self._profile is None or self._profile.capabilities.ttl is Support.NATIVE
        session = MemorySession(self._shared, self._options.lease, look_again, expires=expires)
        if self._profile is None and self._faults is None:
            return session
        return LimitedSession(session, self._profile, self._faults or Faults())

    def close(self) -> None:
        """No more sessions. Those that were made close by themselves; again: nothing."""
        if not self._closed:
            self._closed = True
            if self._on_close is not None:
                self._on_close()


class _MemoryFactory:
    """Makes backends, and knows the named stores of the process: that they are one for all who use the name, for as long
    as the process lives, is their whole point."""

    options = MemoryOptions

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores: dict[str, SharedStore] = {}

    def __call__(self, url: BrokerURL, options: object, *, clock: Clock, faults: Faults | None = None) -> MemoryBackend:
        """A backend for *url*. *faults* are a test's.

        Raises:
            ConfigError: the URL has parts that mean nothing here, or its store is open with another clock.
        """
        if not isinstance(options, MemoryOptions):
            raise ConfigError(f"memory:// takes MemoryOptions, not {type(options).__name__}")
        name = _store_name(url)
        if not name:
            return MemoryBackend(options, clock=clock, faults=faults)
        with self._lock:
            shared = self._stores.get(name)
            same_clock = shared is not None and (
                shared.clock is clock or type(clock) is type(shared.clock) is SystemClock
            )
            if shared is None or shared.pid != os.getpid() or not (same_clock or shared.backends):
                # Nobody has it open, and its times mean nothing by another clock: it begins anew.
                shared = self._stores[name] = SharedStore(clock)
            elif not same_clock:
                raise ConfigError(
                    f"memory://{name} is open with another clock; pass the same one to all its connections"
                )
            opened = shared
            backend = MemoryBackend(
                options, clock=clock, shared=opened, faults=faults, on_close=lambda: self._release(opened)
            )
            opened.backends += 1
            return backend

    def _release(self, shared: SharedStore) -> None:
        with self._lock:
            shared.backends -= 1

    def forget(self, name: str) -> None:
        """The next connection to ``memory://name`` begins with an empty broker."""
        with self._lock:
            self._stores.pop(name, None)


MemoryFactory = _MemoryFactory()


def _store_name(url: BrokerURL) -> str:
    if url.username is not None or url.password is not None:
        raise ConfigError("memory:// has no user and no password: memory:// or memory://name")
    if len(url.hosts) > 1:
        raise ConfigError("memory:// has one name, not several hosts: memory:// or memory://name")
    if url.path:
        raise ConfigError(f"memory:// has no path {url.path!r}: memory:// or memory://name")
    if not url.hosts:
        return ""
    name, port = url.hosts[0]
    if port is not None:
        raise ConfigError(f"memory:// has no port {port}: memory:// or memory://name")
    return name
