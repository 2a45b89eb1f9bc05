"""Where the messages lie, and the independent look at them after each run.

A place gives each run a queue or a file of its own, and counts afterwards with a client that is neither ours nor the
variant's: a plain pika channel, a plain sqlite3 connection.
"""

import itertools
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from benchmarks.meter import BODY_BYTE, HEADER_NAME, HEADER_VALUE, KIND
from benchmarks.model import Case, Variant, WrongCountError, WrongResultError, check_count
from mqlayer.testing.brokers.rabbitmq import rabbitmq_server
from mqlayer.testing.ports import free_port

__all__ = ["Place", "ProcessPlace", "RabbitPlace", "SQLitePlace", "file_system"]

SETTLE = 20.0  #: seconds in which a broker's own count becomes the right one
LOOK_AGAIN = 0.05


class Place(Protocol):
    """Prepares runs and checks what they left."""

    def prepare(self, case: Case, variant: Variant, count: int) -> dict[str, Any]:
        """A fresh queue or file; what the variant has to know about it."""

    def check(self, case: Case, variant: Variant, count: int) -> None:
        """Count what lies there, then throw it away.

        Raises:
            WrongCountError: it is not what the run should have left.
            WrongResultError: a message is not what everybody should have published.
        """


class ProcessPlace:
    """Nowhere: the variant's own process, which counts for itself."""

    def prepare(self, case: Case, variant: Variant, count: int) -> dict[str, Any]:
        return {}

    def check(self, case: Case, variant: Variant, count: int) -> None:
        """Nothing is left of the process; the count that it handed back is compared by the runner."""


class RabbitPlace:
    """A broker of its own for the time of the ``with`` block, and a raw client."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mqlayer-bench-rabbitmq-"))
        self._port = free_port()
        self._server = rabbitmq_server(self._folder, self._port)
        self._numbers = itertools.count(1)
        self._queue = ""
        self._connection: Any = None
        self._channel: Any = None

    def __enter__(self) -> Self:
        import pika

        try:
            self._server.start()
            # No heartbeats: it waits idle while variants run.
            address = pika.ConnectionParameters("127.0.0.1", self._port, heartbeat=0)
            self._connection = pika.BlockingConnection(address)
            self._channel = self._connection.channel()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.__exit__(kind, error, trace)
        shutil.rmtree(self._folder, ignore_errors=True)

    def prepare(self, case: Case, variant: Variant, count: int) -> dict[str, Any]:
        self._queue = f"bench.{next(self._numbers)}"
        arguments = {"x-queue-type": case.settings["queue_type"]}
        self._channel.queue_declare(self._queue, durable=True, arguments=arguments)
        if case.settings.get("filled"):
            self._fill(BODY_BYTE * case.settings["body_bytes"], count)
            self._await_count(count)
        return {"port": self._port, "queue": self._queue}

    def _fill(self, body: bytes, count: int) -> None:
        import pika

        for number in range(count):
            properties = pika.BasicProperties(
                content_type=KIND, message_id=f"bench-{number}", headers={HEADER_NAME: HEADER_VALUE}, delivery_mode=2
            )
            self._channel.basic_publish("", self._queue, body, properties)

    def check(self, case: Case, variant: Variant, count: int) -> None:
        if case.settings.get("filled"):
            self._await_count(0)
        else:
            self._await_count(count)
            self._check_one(case)
        self._channel.queue_delete(self._queue)

    def _await_count(self, wanted: int) -> None:
        """The variant's process has ended, but the broker may still be giving back what its connection held."""
        deadline = time.monotonic() + SETTLE
        while True:
            found = self._channel.queue_declare(self._queue, passive=True).method
            if found.consumer_count == 0 and found.message_count == wanted:
                return
            if time.monotonic() > deadline or (found.consumer_count == 0 and found.message_count > wanted):
                check_count(f"in queue {self._queue}", found.message_count, wanted)
                raise WrongCountError(f"queue {self._queue} still has {found.consumer_count} consumers")
            self._connection.process_data_events(time_limit=LOOK_AGAIN)

    def _check_one(self, case: Case) -> None:
        """Persistent, with content type, id and header: like for like is not taken on trust."""
        method, properties, body = self._channel.basic_get(self._queue)
        self._channel.basic_reject(method.delivery_tag, requeue=True)
        wanted = (KIND, 2, HEADER_VALUE, case.settings["body_bytes"])
        header = (properties.headers or {}).get(HEADER_NAME)
        found = (properties.content_type, properties.delivery_mode, header, len(body))
        if found != wanted or not properties.message_id:
            raise WrongResultError(f"published as {found} with id {properties.message_id!r}, not as {wanted}")


class SQLitePlace:
    """A folder on a real disk; each run has a file of its own, unless the case keeps its file from round to round."""

    def __init__(self, parent: Path | None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mqlayer-bench-sqlite-", dir=parent))
        kind = file_system(self._folder)
        if kind in ("tmpfs", "ramfs"):
            self.__exit__(None, None, None)
            raise WrongResultError(
                f"{self._folder} is a {kind}, where a sync costs nothing: choose another --directory"
            )
        self._numbers = itertools.count(1)
        self._path = self._folder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def prepare(self, case: Case, variant: Variant, count: int) -> dict[str, Any]:
        kept = variant.name if case.settings.get("keep") else str(next(self._numbers))
        self._path = self._folder / kept
        self._path.mkdir(exist_ok=bool(case.settings.get("keep")))
        return {"path": str(self._path / "store.db")}

    def check(self, case: Case, variant: Variant, count: int) -> None:
        left = case.settings["left"]
        wanted = {"all": count, "none": 0, "depth": variant.settings.get("depth", 0)}[left]
        store = self._path / "store.db"
        if variant.name.startswith("persist-queue"):
            ready, others = _count(store / "data.db", "SELECT count(*) FROM ack_queue_default WHERE status < 2"), 0
            if left == "none":
                acked = _count(store / "data.db", "SELECT count(*) FROM ack_queue_default WHERE status = 5")
                check_count("acked in persist-queue's file", acked, count)
        else:
            ready = _count(store, "SELECT count(*) FROM mqlayer_messages WHERE state = 0")
            others = _count(store, "SELECT count(*) FROM mqlayer_messages WHERE state <> 0")
        check_count(f"ready in the file of {variant.name}", ready, wanted)
        check_count(f"unsettled in the file of {variant.name}", others, 0)
        if not case.settings.get("keep"):
            shutil.rmtree(self._path)


def _count(path: Path, query: str) -> int:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return int(connection.execute(query).fetchone()[0])
    finally:
        connection.close()


def file_system(path: Path) -> str:
    """The type of the file system that *path* is on, as the kernel calls it."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        if path.resolve().is_relative_to(mount) and len(mount) > len(best):
            best, kind = mount, found
    return kind
