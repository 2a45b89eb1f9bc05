"""What a send says is true when the answer is lost or the server takes nothing: F7, F9."""

import threading
import time
from collections import Counter
from collections.abc import Callable

from mqlayer.testing.checker import Floors
from mqlayer.testing.ledger import Fault, Phase
from mqlayer.testing.proxy import Direction, FaultProxy
from mqlayer.testing.sites import Site
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import NotApplicable, Outcome, criterion
from mqlayer.testing.suite.survival import drain_and_judge, send_noted

__all__ = ["a_blocked_producer_waits_then_goes_on", "a_lost_confirm_is_an_unknown_outcome"]

CASE = 20  #: messages of each case
HASTY, TIMEOUT = 0.25, 1.0
LONG = 30.0
BLOCKED_MIN = 2.0
LATE_MAX = 3.0  #: seconds that a send may take beyond its timeout


@criterion("F7", limit=180)
def a_lost_confirm_is_an_unknown_outcome(stage: Stage) -> Outcome:
    """Confirm or message are swallowed on the way: no send succeeds, and none that arrived is said not to have been sent."""
    if not stage.has_server:
        raise NotApplicable("there is nothing between a send and its answer")
    site = stage.proxied()
    queue = stage.queue()
    sending = _Sending(stage, site, queue)
    each = stage.size(quick=10, full=CASE)
    sending.works()
    no_confirm = sending.alone_amid(lambda proxy: proxy.blackhole(Direction.TO_CLIENT), each)
    no_confirm += sending.amid(lambda proxy: proxy.blackhole(Direction.TO_CLIENT), TIMEOUT, cut_after=TIMEOUT / 2)
    no_message = sending.alone_amid(lambda proxy: proxy.blackhole(Direction.TO_SERVER), each)
    no_connection = sending.amid(_cut, TIMEOUT)
    for what, became in (("confirms", no_confirm), ("messages", no_message), ("connection", no_connection)):
        assert not became[Phase.OK], f"{became[Phase.OK]} of {became.total()} sends succeeded, whose {what} were lost"
    resent = sending.amid(lambda proxy: proxy.blackhole(Direction.TO_CLIENT), LONG, cut_after=TIMEOUT, and_mend=True)
    assert resent == {Phase.OK: CASE}, f"with time to send again, the sends ended {dict(resent)}"
    floors = Floors(confirmed=2 * CASE, unsure=2 * each, connection_faults=2 * each)
    outcome = drain_and_judge(stage, stage.site, queue, nobody_held=True, floors=floors)
    stage.floor("messages that arrived without a confirm", outcome.counts["recovered"], each)
    stage.floor("messages that never arrived", outcome.counts["failed"] + outcome.counts["unsure_lost"], each + CASE)
    return outcome


def _cut(proxy: FaultProxy) -> None:
    proxy.refuse()
    proxy.reset()


class _Sending:
    """One producer, and what becomes of what it sends."""

    def __init__(self, stage: Stage, site: Site, queue: str) -> None:
        self._stage = stage
        self._proxy = site.proxy
        self._queue = queue
        self._ledger = stage.ledger("sender")
        self._producer = site.connect().producer(queue)
        self._next = 0
        self.seconds = 0.0  #: that the last batch took

    def send(self, timeout: float, number: int = CASE) -> Counter[Phase]:
        """One batch: how many ended how. It may not take much longer than *timeout*."""
        counters = range(self._next, self._next + number)
        self._next += number
        begun = time.monotonic()
        became = send_noted(self._ledger, self._producer, self._queue, counters, seed=self._stage.seed, timeout=timeout)
        self.seconds = time.monotonic() - begun
        late = self.seconds - timeout
        assert late < self._stage.seconds(LATE_MAX), f"a send with timeout={timeout:g} took {late:.1f} s more"
        return Counter(became.values())

    def works(self, number: int = CASE) -> None:
        """Sends are confirmed."""
        became = self.send(LONG, number)
        assert became == {Phase.OK: number}, f"without a fault, sends ended {dict(became)}"

    def alone_amid(self, fault: Callable[[FaultProxy], None], unsure: int) -> Counter[Phase]:
        """Send one at a time, each on a connection that works until then, until so many are unsure.

        Of several at once, or one after the other, some may honestly never have left; on a busy machine also of these.
        """
        became: Counter[Phase] = Counter()
        for _ in range(2 * unsure):
            if became[Phase.INFO] < unsure:
                became += self.amid(fault, HASTY, number=1)
        return became

    def amid(
        self,
        fault: Callable[[FaultProxy], None],
        timeout: float,
        *,
        number: int = CASE,
        cut_after: float | None = None,
        and_mend: bool = False,
    ) -> Counter[Phase]:
        """Send a batch amid *fault*, mend it, and see that all works again.

        Args:
            number: How many messages the batch has.
            cut_after: Seconds after which the connection is reset, and nobody can connect, or, with *and_mend*, anybody can.
        """
        proxy = self._proxy
        assert proxy is not None
        self._stage.controller.fault(Fault.CONNECTION, Phase.BEGIN)
        fault(proxy)
        cut = threading.Timer(cut_after or 0.0, proxy.restore if and_mend else lambda: _cut(proxy))
        if cut_after is not None:
            cut.start()
        try:
            became = self.send(timeout, number)
        finally:
            cut.cancel()
            if cut_after is not None:
                cut.join()
            proxy.restore()
        self.works(number)
        self._stage.controller.fault(Fault.CONNECTION, Phase.END)
        return became


@criterion("F9", limit=180)
def a_blocked_producer_waits_then_goes_on(stage: Stage) -> Outcome:
    """The server stands still: a send waits as long as it may, then says so; and once the server goes on, so do the sends."""
    queue = stage.queue()
    sending = _Sending(stage, stage.site, queue)
    sending.works()
    stood = _Standstill(stage.site)
    with stood:
        became = sending.send(BLOCKED_MIN + 0.5)
        assert not became[Phase.OK], f"{became[Phase.OK]} sends were confirmed by a server that stands still"
        stage.floor("seconds that a send was blocked", sending.seconds, BLOCKED_MIN)
    sending.works()
    resuming = threading.Timer(BLOCKED_MIN, stood.end)
    with stood:
        resuming.start()
        became = sending.send(LONG)
        resuming.join()
    assert became == {Phase.OK: CASE}, f"the server stood still for {BLOCKED_MIN:g} s, and sends ended {dict(became)}"
    stage.floor("seconds that a send was blocked", sending.seconds, BLOCKED_MIN * 0.9)
    floors = Floors(confirmed=3 * CASE, deliveries=3 * CASE)
    return drain_and_judge(stage, stage.site, queue, nobody_held=True, ordered=True, floors=floors)


class _Standstill:
    """The server is paused inside of it, at the latest until its end."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._paused = False

    def __enter__(self) -> None:
        self._site.pause()
        self._paused = True

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        if self._paused:
            self._paused = False
            self._site.resume()
