"""Sessions over a good session that break one promise each."""

import itertools
import sqlite3
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from mqlayer.driver import (
    Ack,
    Declare,
    Failures,
    HeaderValue,
    Incoming,
    Outgoing,
    QueueOptions,
    Session,
    Verdict,
)
from mqlayer.errors import ConnectionLostError, MQError, OutcomeUnknownError, QueueMismatchError, RefusedError
from mqlayer.layers.observed import Observations, Observed
from mqlayer.urls import BrokerURL

__all__ = [
    "STARTS",
    "AckEarly",
    "Broken",
    "DropHeaders",
    "DupEvery100",
    "ForgetQueues",
    "HangForever",
    "LateAckWins",
    "LieConfirm",
    "LooseGroups",
    "LosesOnReconnect",
    "Phantom",
    "PrefetchHog",
    "Reorder",
    "Resurrect",
    "RetypeHeaders",
    "Shared",
    "StripNUL",
    "SwallowErrors",
    "Truncate64K",
    "ZombieConsumer",
    "starts",
]

STARTS = "saboteur-starts"  #: a file with one mark for each start of the server
HOG = 10_000
CUT = 64 * 1024
LONG = 1e6


class Shared:
    """What the sessions of one connection know together.

    Attributes:
        lost: A connection has ended before this moment.
        folder: The column's, where its server's starts are counted.
        restarts: How often the server was started again on its data.
    """

    def __init__(self, url: BrokerURL, folder: Path | None) -> None:
        self.url = url
        self.folder = folder
        self.restarts = starts(folder) - 1 if folder is not None else 0
        self.lost = False
        self.numbers = itertools.count(1)


class Broken(Observed):
    """Passes everything on; what derives from it breaks one thing."""

    def __init__(self, inner: Session, shared: Shared) -> None:
        super().__init__(inner, Observations())
        self.shared = shared

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        try:
            return super().receive(limit, timeout)
        except ConnectionLostError:
            self.shared.lost = True
            raise


class AckEarly(Broken):
    """Acks on delivery, before a handler has seen it."""

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        got = super().receive(limit, timeout)
        if got:
            super().settle([Ack(incoming) for incoming in got], 10.0)
        return got

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        return {}


class LieConfirm(Broken):
    """Says that a message is stored, and sends it later."""

    def __init__(self, inner: Session, shared: Shared) -> None:
        super().__init__(inner, shared)
        self._later: deque[tuple[str, Sequence[Outgoing]]] = deque()

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        self._later.append((queue, batch))
        return {}

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        while self._later:
            queue, batch = self._later.popleft()
            super().send(queue, batch, 5.0)
        return super().receive(limit, timeout)


class SwallowErrors(Broken):
    """Every send that failed is said to have succeeded."""

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        super().send(queue, batch, timeout)
        return {}


class LosesOnReconnect(Broken):
    """What was on its way when the connection ended is forgotten, and said to be sent."""

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        failures = super().send(queue, batch, timeout)
        return {place: error for place, error in failures.items() if not isinstance(error, OutcomeUnknownError)}


class DupEvery100(Broken):
    """Delivers each hundredth message twice."""

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        got: list[Incoming] = []
        for incoming in super().receive(limit, timeout):
            got.append(incoming)
            if next(self.shared.numbers) % 100 == 0:
                got.append(incoming)
        return got


class Reorder(Broken):
    """Swaps neighbours: now and then a delivery is held back until the next has gone before it."""

    def __init__(self, inner: Session, shared: Shared) -> None:
        super().__init__(inner, shared)
        self._late: list[Incoming] = []

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        got: list[Incoming] = []
        for incoming in super().receive(limit, 0.05 if self._late else timeout):
            got += [incoming, *self._late]
            self._late = []
            if next(self.shared.numbers) % 10 == 0:
                self._late = [got.pop(0)]
        if limit and not got:  # nothing came to go before it
            got, self._late = self._late, []
        return got


class LooseGroups(Broken):
    """Takes each message for a group of its own."""

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        loose = [out._replace(group_id=out.group_id and f"{out.group_id}#{next(self.shared.numbers)}") for out in batch]
        return super().send(queue, loose, timeout)

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        got = super().receive(limit, timeout)
        groups = [(of.message.group_id or "").partition("#")[0] or None for of in got]
        return [of._replace(message=of.message._replace(group_id=g)) for of, g in zip(got, groups, strict=True)]


class DropHeaders(Broken):
    """Loses headers whose names are not plain ASCII."""

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        return super().send(queue, [_with(out, _ascii(out.headers)) for out in batch], timeout)


class RetypeHeaders(Broken):
    """Whole numbers in headers become text."""

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        retyped = [
            _with(out, {k: str(v) if isinstance(v, int) else v for k, v in out.headers.items()}) for out in batch
        ]
        return super().send(queue, retyped, timeout)


class Truncate64K(Broken):
    """Bodies end after 64 KiB."""

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        return super().send(queue, [out._replace(body=out.body[:CUT]) for out in batch], timeout)


class StripNUL(Broken):
    """Bodies end at their first NUL, as text protocols end them."""

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        return super().send(queue, [out._replace(body=out.body.partition(b"\0")[0]) for out in batch], timeout)


class PrefetchHog(Broken):
    """Takes everything, whatever window it is given."""

    def subscribe(self, queue: str, window: int, lease: float | None, timeout: float) -> None:
        super().subscribe(queue, HOG, lease, timeout)

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        return super().receive(HOG if limit else 0, timeout)


class LateAckWins(Broken):
    """An ack removes the message by its id, whoever has it now. For ``sqlite:///``."""

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        # The layers above would never pass on an ack that they know to be late.
        return [incoming._replace(lease_until=None) for incoming in super().receive(limit, timeout)]

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        failures = super().settle(verdicts, timeout)
        late = [verdicts[place].of.message.id for place in failures if isinstance(verdicts[place], Ack)]
        if late:
            with sqlite3.connect(self.shared.url.path[1:], timeout=10.0) as connection:
                connection.executemany("DELETE FROM mqlayer_messages WHERE message_id = ?", [(id,) for id in late])
        return {place: error for place, error in failures.items() if not isinstance(verdicts[place], Ack)}


class Phantom(Broken):
    """Says of what it does not know, or of each twentieth that is stored, that it was refused."""

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        failures = dict(super().send(queue, batch, timeout))
        for place in range(len(batch)):
            error: MQError | None = failures.get(place)
            if isinstance(error, OutcomeUnknownError) or (error is None and next(self.shared.numbers) % 20 == 0):
                failures[place] = RefusedError("refused, says the saboteur", message_id=batch[place].id)
        return failures


class ZombieConsumer(Broken):
    """Connects again, and does not subscribe again."""

    def subscribe(self, queue: str, window: int, lease: float | None, timeout: float) -> None:
        if not self.shared.lost:
            super().subscribe(queue, window, lease, timeout)


class HangForever(Broken):
    """Notices no end of a connection, and heeds no timeout."""

    def __init__(self, inner: Session, shared: Shared) -> None:
        super().__init__(inner, shared)
        self._aborted = threading.Event()

    def send(self, queue: str, batch: Sequence[Outgoing], timeout: float) -> Failures:
        failures = super().send(queue, batch, LONG)
        if failures:
            self._aborted.wait()
        return failures

    def receive(self, limit: int, timeout: float) -> Sequence[Incoming]:
        try:
            return super().receive(limit, timeout)
        except ConnectionLostError:
            self._aborted.wait()
            raise

    def abort(self) -> None:
        self._aborted.set()
        super().abort()


class ForgetQueues(Broken):
    """After a restart of the server, queues have lost their options."""

    def declare(self, queue: str, options: QueueOptions, mode: Declare, timeout: float) -> QueueOptions:
        stored = super().declare(queue, options, mode, timeout)
        folder = self.shared.folder
        if folder is None or options == QueueOptions():
            return stored
        before = folder / "declared"
        if self.shared.restarts == 0:
            with before.open("a", encoding="utf-8") as file:
                file.write(queue + "\n")
        elif mode is Declare.COMPARE and queue in before.read_text(encoding="utf-8").splitlines():
            raise QueueMismatchError(f"queue {queue!r} exists with {QueueOptions()}, not {options}")
        return stored


class Resurrect(Broken):
    """After a restart of the server, what was acked before comes back."""

    def settle(self, verdicts: Sequence[Verdict], timeout: float) -> Failures:
        failures = super().settle(verdicts, timeout)
        acked = [v.of for place, v in enumerate(verdicts) if isinstance(v, Ack) and place not in failures]
        if self.shared.restarts == 0:
            graves = _Graves(self.shared)
            graves.bury(acked)
        return failures

    def subscribe(self, queue: str, window: int, lease: float | None, timeout: float) -> None:
        if self.shared.restarts:
            for grave in _Graves(self.shared).open(queue):
                super().send(queue, [grave], timeout)
        super().subscribe(queue, window, lease, timeout)


class _Graves:
    """Acked messages, in a file beside the broker's own, one body a line in hex."""

    def __init__(self, shared: Shared) -> None:
        self._file = shared.folder / "acked" if shared.folder is not None else None

    def bury(self, acked: Sequence[Incoming]) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(f"{of.queue} {of.message.id} {of.message.body.hex()}\n" for of in acked[:5])

    def open(self, queue: str) -> list[Outgoing]:
        if self._file is None or not self._file.exists():
            return []
        rows = [line.split() for line in self._file.read_text(encoding="utf-8").splitlines()]
        others = [row for row in rows if row[0] != queue]
        self._file.write_text("".join(" ".join(row) + "\n" for row in others), encoding="utf-8")
        return [Outgoing(id, bytes.fromhex(body)) for name, id, body in rows if name == queue]


def starts(folder: Path) -> int:
    """How often the server of a column with this data folder was started."""
    marks = folder / STARTS
    return len(marks.read_text()) if marks.exists() else 0


def _ascii(headers: Mapping[str, HeaderValue]) -> dict[str, HeaderValue]:
    return {name: value for name, value in headers.items() if name.isascii()}


def _with(out: Outgoing, headers: dict[str, HeaderValue]) -> Outgoing:
    return out._replace(headers=headers)
