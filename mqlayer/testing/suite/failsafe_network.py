"""The way to the server is reset, silent, cut in one direction, or slow: F12a to F12d."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from mqlayer.api import Connection, Consumer
from mqlayer.errors import UnknownOptionError
from mqlayer.testing.checker import Floors
from mqlayer.testing.ledger import EventType, Fault, Ledger, Phase
from mqlayer.testing.proxy import Direction, FaultProxy
from mqlayer.testing.roles.consuming import note_delivery, settle
from mqlayer.testing.sites import Site
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.deliveries import receive
from mqlayer.testing.suite.survival import Load, Progress, drain_and_judge, lease, send_noted

__all__ = [
    "a_partition_loses_nothing",
    "a_slow_link_delivers_everything",
    "resets_lose_nothing",
    "silent_connections_are_noticed",
]

HEARTBEAT = 1
# A heartbeat is counted in whole seconds and may be one late; client libraries add a grace of their own, pika five seconds.
NOTICED_MAX = 2 * (HEARTBEAT + 5) + 5.0
RESUME_MAX = 20.0
CUT = 2.5  #: seconds of a partition, longer than the timeout of the hasty producer
HASTY = 1.0


@criterion("F12a", limit=240)
def resets_lose_nothing(stage: Stage) -> Outcome:
    """Connections are reset at random moments under load: all go on by themselves, and every message is accounted for."""
    resets = stage.size(quick=3, full=10)
    return _under_load(stage, [lambda proxy: proxy.reset()] * resets, number=stage.size(quick=300, full=500), least=1)


@criterion("F12c", limit=240)
def a_partition_loses_nothing(stage: Stage) -> Outcome:
    """For seconds nothing gets through, in one direction or the other: no confirm is false, nothing is lost."""

    def cut(direction: Direction) -> Callable[[FaultProxy], None]:
        def do(proxy: FaultProxy) -> None:
            proxy.blackhole(direction)
            threading.Event().wait(CUT)
            proxy.restore()

        return do

    rounds = stage.size(quick=1, full=3)
    faults = [cut(Direction.TO_SERVER), cut(Direction.TO_CLIENT)] * rounds
    return _under_load(stage, faults, number=stage.size(quick=300, full=500), least=2)


def _under_load(stage: Stage, faults: Sequence[Callable[[FaultProxy], None]], *, number: int, least: int) -> Outcome:
    """Two producers and a consumer behind the proxy; between any two faults they all get on."""
    site = stage.proxied()
    proxy = _proxy(site)
    queue = stage.queue()
    sending = {"queue": queue, "rate": 100, "how": "submit"}
    jobs: list[tuple[str, dict[str, Any]]] = [("produce", sending), ("produce", sending | {"timeout": HASTY})]
    load = Load(site, [*jobs, ("consume", {"queues": [queue], "ack_after": 0.001} | lease(stage))])
    progress = Progress(stage.ledgers)
    load.revive()
    _get_on(stage, progress)
    for fault in faults:
        stage.controller.fault(Fault.CONNECTION, Phase.BEGIN)
        fault(proxy)
        _get_on(stage, progress)
        stage.controller.fault(Fault.CONNECTION, Phase.END)
        threading.Event().wait(stage.random.uniform(0.0, 0.3))
    stage.wait_until(lambda: progress.confirmed >= number, f"{number} messages are confirmed")
    load.stop()
    stage.floor("resets", proxy.stats().resets, least)
    floors = Floors(confirmed=number, deliveries=number // 2, connection_faults=len(faults))
    return drain_and_judge(stage, stage.site, queue, floors=floors)


def _get_on(stage: Stage, progress: Progress) -> None:
    confirmed, delivered = progress.confirmed, progress.delivered

    def both() -> bool:
        return progress.confirmed >= confirmed + 20 and progress.delivered >= delivered + 20

    stage.wait_until(both, "sends are confirmed and deliveries come again", timeout=RESUME_MAX)


def _proxy(site: Site) -> FaultProxy:
    assert site.proxy is not None
    return site.proxy


@criterion("F12b", limit=180)
def silent_connections_are_noticed(stage: Stage) -> Outcome:
    """Nothing comes any more and nobody says why: server and client both give the connection up, and then the work goes on."""
    site = stage.proxied()
    proxy = _proxy(site)
    queue = stage.queue()
    ledger, other_ledger = stage.ledger("silenced"), stage.ledger("other")
    direct = stage.connect()
    sender = direct.producer(queue)
    half = stage.size(quick=20, full=100)
    send_noted(ledger, sender, queue, range(half), seed=stage.seed)
    mq = _with_heartbeat(site)
    with mq.consumer(queue, **lease(stage)) as consumer:
        for _ in range(half // 2):
            _take(stage, ledger, consumer)
        held = receive(stage, consumer)
        id = note_delivery(ledger, held)
        lost_before = mq.health().connections_lost
        stage.controller.fault(Fault.CONNECTION, Phase.BEGIN)
        proxy.blackhole()
        silent = time.monotonic()
        # Whoever else consumes gets what it held: the server has noticed.
        with direct.consumer(queue) as other:
            end = silent + stage.seconds(NOTICED_MAX)
            while id != (came := _take(stage, other_ledger, other, timeout=max(end - time.monotonic(), 0.1))):
                assert came is not None
        server_noticed = time.monotonic() - silent
        stage.wait_until(
            lambda: mq.health().connections_lost > lost_before,
            "the client has given its connection up",
            timeout=max(NOTICED_MAX - server_noticed, 1.0),
        )
        client_noticed = time.monotonic() - silent
        dropped = proxy.stats().dropped_to_client + proxy.stats().dropped_to_server
        proxy.restore()
        send_noted(ledger, sender, queue, range(half, 2 * half), seed=stage.seed)
        _take(stage, ledger, consumer, timeout=RESUME_MAX)  # the same object, without any help
        stage.controller.fault(Fault.CONNECTION, Phase.END)
        for _ in range(half // 2):
            _take(stage, ledger, consumer)
        ledger.fault(Fault.CLOSE, Phase.BEGIN, target=ledger.actor)
    ledger.fault(Fault.CLOSE, Phase.END, target=ledger.actor)
    stage.floor("bytes that were swallowed", dropped, 1)
    floors = Floors(confirmed=2 * half, connection_faults=1, in_flight=0)
    noticed = {"server": round(server_noticed, 2), "client": round(client_noticed, 2)}
    return drain_and_judge(stage, stage.site, queue, floors=floors, seconds_to_notice=noticed)


def _with_heartbeat(site: Site) -> Connection:
    """A connection with a short one; as it is, where there is nothing to set."""
    try:
        return site.connect(heartbeat=HEARTBEAT)
    except UnknownOptionError:
        return site.connect()


def _take(stage: Stage, ledger: Ledger, consumer: Consumer, *, timeout: float = 15.0) -> str | None:
    delivery = receive(stage, consumer, timeout=timeout)
    id = note_delivery(ledger, delivery)
    settle(ledger, EventType.ACK, id, delivery, delivery.ack)
    return id


@criterion("F12d", limit=240)
def a_slow_link_delivers_everything(stage: Stage) -> Outcome:
    """Byte by byte, slowly and late, there and back: every message arrives, and nobody loses patience or the thread."""
    number = stage.size(quick=20, full=200)
    site = stage.proxied()
    proxy = _proxy(site)
    queue = stage.queue()
    proxy.rate(20_000)
    proxy.delay(0.2)
    proxy.slice(1)
    site.actor("produce", queue=queue, count=number, how="submit").finish(90.0)
    consumer = site.actor("consume", queues=[queue], limit=number, **lease(stage))
    consumer.finish(90.0)
    proxy.restore()
    stage.floor("bytes forwarded", proxy.stats().bytes_to_client, number)
    floors = Floors(confirmed=number, deliveries=number, acked=number)
    return drain_and_judge(stage, stage.site, queue, floors=floors)
