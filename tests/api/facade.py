"""One way to call both APIs: the asyncio one runs in an event loop of its own thread, and looks like the blocking one."""

import asyncio
import inspect
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import mqlayer
from mqlayer import aio
from mqlayer.errors import ClosedError

PATIENCE = 60.0  #: seconds after which a call that does not return fails its test
WRAPPED = (aio.Connection, aio.Producer, aio.Consumer, aio.Delivery)


class Blocking:
    """The blocking API as it is."""

    name = "blocking"

    def connect(self, url: str, **options: Any) -> Any:
        return mqlayer.connect(url, **options)

    def close(self) -> None:
        """Nothing to end."""


class Async:
    """The asyncio API: each call is a task in a loop of its own."""

    name = "asyncio"

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def connect(self, url: str, **options: Any) -> Any:
        return self.run(lambda: aio.connect(url, **options))

    def run(self, call: Any) -> Any:
        """What *call* returns, awaited; connections, producers, consumers and deliveries come wrapped."""

        async def go() -> Any:
            result = call()
            if inspect.isawaitable(result):
                result = await result
            return self._bridged(result) if isinstance(result, asyncio.Future) else result

        return self._wrapped(asyncio.run_coroutine_threadsafe(go(), self.loop).result(PATIENCE))

    def _bridged(self, inner: "asyncio.Future[Any]") -> "Future[Any]":
        outer: Future[Any] = Future()
        outer.set_running_or_notify_cancel()

        def copy(done: "asyncio.Future[Any]") -> None:
            error = done.exception()
            if error is not None:
                outer.set_exception(error)
            else:
                outer.set_result(done.result())

        inner.add_done_callback(copy)
        return outer

    def _wrapped(self, value: Any) -> Any:
        if isinstance(value, WRAPPED):
            return _Wrapped(self, value)
        return [self._wrapped(item) for item in value] if isinstance(value, list) else value

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class _Wrapped:
    def __init__(self, api: Async, inner: Any) -> None:
        self._api = api
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.inner, name)
        if not inspect.ismethod(attribute):
            return attribute
        return lambda *values, **options: self._api.run(lambda: attribute(*values, **options))

    def __enter__(self) -> Any:
        entered = self._api.run(self.inner.__aenter__)
        return self if entered is self else entered

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._api.run(lambda: self.inner.__aexit__(kind, error, trace))

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                delivery = self.receive()
            except ClosedError:
                return
            yield delivery

    def __repr__(self) -> str:
        return repr(self.inner)
