"""Objects at their end, time without messages, and URLs that are all that changes: C30, C31, C38, C40."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from mqlayer.api import Connection, Consumer, connect
from mqlayer.driver import Capabilities, Support
from mqlayer.errors import (
    AlreadySettledError,
    ClosedError,
    MQError,
    StaleDeliveryError,
    UnknownOptionError,
    UnknownSchemeError,
    UnmetNeedError,
    UnsupportedError,
)
from mqlayer.message import Message
from mqlayer.needs import Needs
from mqlayer.policy import Retry
from mqlayer.testing.sites import Site
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.absence import prove_absent, use
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.deliveries import receive, refusal, silence
from mqlayer.testing.suite.requirements import REFUSABLE
from mqlayer.testing.urls import with_options

__all__ = [
    "closed_objects_say_so_and_let_go",
    "receive_ends_in_time_and_rests",
    "the_url_is_all_that_changes",
    "what_is_absent_is_refused_before_it_leaves",
]

UNBLOCKED = 1.0  #: seconds within which ``close`` ends a waiting call
IDLE_LOAD = 0.1  #: seconds of processor time for each second of waiting, at the most
Call = Callable[[], object]


@criterion("C30", limit=90)
def closed_objects_say_so_and_let_go(stage: Stage) -> Outcome:
    """Each call after close is a ``ClosedError``, closing twice is fine, and whoever waits hears of it within a second."""
    mq = stage.connect()
    queue = stage.queue()
    checked = 0
    producer, consumer = mq.producer(queue), mq.consumer(queue)
    producer.send("held")
    held = receive(stage, consumer)
    producer.close()
    producer.close()
    checked += _all_refused({"send": lambda: producer.send(1), "submit": lambda: producer.submit(1)})
    checked += _all_refused({"send_many": lambda: producer.send_many([1, 2])})
    consumer.close()
    consumer.close()
    checked += _all_refused(_receiving(consumer))
    assert list(consumer) == [], "a closed consumer's iteration does not end"
    for verb in (held.ack, held.nack, lambda: held.reject("too late")):
        refusal(StaleDeliveryError, verb, "settling a closed consumer's delivery")
        checked += 1
    with mq.consumer(queue) as again:
        delivery = receive(stage, again, "what the closed consumer held")
        delivery.ack()
        refusal(AlreadySettledError, delivery.ack, "a second ack")
    slowest = max(_unblocked_by(stage, kind) for kind in ("consumer", "connection"))
    late_producer, late_consumer = mq.producer(queue), mq.consumer(queue)
    mq.close()
    mq.close()
    calls: dict[str, Call] = {
        "send": lambda: late_producer.send(1),
        "submit": lambda: late_producer.submit(1),
        "send_many": lambda: late_producer.send_many([1]),
        "producer": lambda: mq.producer(queue),
        "consumer": lambda: mq.consumer(queue),
        "declare": lambda: mq.declare(queue),
        "delete": lambda: mq.delete(queue),
        "health": mq.health,
    }
    calls |= {f"{name} of the consumer": call for name, call in _receiving(late_consumer).items()}
    questions: dict[str, Callable[[str], object]] = {"stats": mq.stats, "purge": mq.purge, "peek": mq.peek}
    for name, ask in questions.items():
        if getattr(stage.capabilities, name) is not Support.UNSUPPORTED:
            calls[name] = lambda ask=ask: ask(queue)  # type: ignore[misc]
    checked += _all_refused(calls)
    evidence: dict[str, Any] = {"slowest to hear of it": round(slowest, 3)}
    if stage.has_server:
        evidence["close towards a silent server"] = round(_close_while_nobody_answers(stage), 3)
    return Outcome(counts={"checked": checked}, evidence=evidence)


def _receiving(consumer: Consumer) -> dict[str, Call]:
    return {
        "receive": lambda: consumer.receive(),
        "receive at once": lambda: consumer.receive(timeout=0),
        "receive_many": lambda: consumer.receive_many(5, timeout=1.0),
    }


def _all_refused(calls: Mapping[str, Call]) -> int:
    for name, call in calls.items():
        refusal(ClosedError, call, f"{name} after close")
    return len(calls)


def _unblocked_by(stage: Stage, kind: str) -> float:
    """Close the consumer or its connection under three waiting threads. Returns how long the last took to hear of it."""
    mq = stage.connect()
    consumers = [mq.consumer(stage.queue()) for _ in range(3)]
    ended: list[tuple[str, float]] = []

    def wait_in(name: str, call: Call, end: type[MQError] | None) -> None:
        try:
            call()
        except ClosedError:
            told: type[MQError] | None = ClosedError
        else:
            told = None
        ended.append((name if told is end else f"{name} (which ended with {told})", time.monotonic()))

    waiting = [
        threading.Thread(target=wait_in, args=("receive", consumers[0].receive, ClosedError), daemon=True),
        threading.Thread(target=wait_in, args=("receive_many", lambda: consumers[1].receive_many(5), ClosedError)),
        threading.Thread(target=wait_in, args=("iteration", lambda: list(consumers[2]), None), daemon=True),
    ]
    for thread in waiting:
        thread.daemon = True
        thread.start()
    threading.Event().wait(0.2)  # all of them inside their calls
    assert not ended, f"{ended} ended before anything was closed"
    begun = time.monotonic()
    if kind == "connection":
        mq.close()
    else:
        for consumer in consumers:
            consumer.close()
    for thread in waiting:
        thread.join(stage.seconds(10))
    names = sorted(name for name, _ in ended)
    assert names == ["iteration", "receive", "receive_many"], f"closing the {kind} ended, rightly or not: {names}"
    last = max(at for _, at in ended) - begun
    assert last <= stage.seconds(UNBLOCKED), f"closing the {kind}, a waiting call heard of it after {last:.2f} s"
    return last


def _close_while_nobody_answers(stage: Stage) -> float:
    """The server falls silent: close still ends, in about its timeout, and so does whoever waits."""
    site = stage.proxied()
    assert site.proxy is not None
    mq = site.connect()
    consumer = mq.consumer(stage.queue())
    heard = threading.Event()

    def wait() -> None:
        try:
            consumer.receive()
        except ClosedError:
            heard.set()

    threading.Thread(target=wait, daemon=True).start()
    threading.Event().wait(0.2)
    site.proxy.blackhole()
    begun = time.monotonic()
    mq.close(timeout=1.0)
    took = time.monotonic() - begun
    assert took <= stage.seconds(4.0), f"close(timeout=1) towards a silent server took {took:.1f} s"
    assert heard.wait(stage.seconds(1.0)), "towards a silent server close does not end a waiting receive"
    return took


@criterion("C31")
def receive_ends_in_time_and_rests(stage: Stage) -> Outcome:
    """Nothing there: ``None`` after 0, 0.2 or 2 s, neither earlier nor much later, and the processor is idle meanwhile."""
    mq = stage.connect()
    queues = [stage.queue(str(n)) for n in range(3)]
    late: list[float] = []
    with mq.consumer(queues[0]) as one, mq.consumer(*queues) as several:
        for consumer in (one, several):
            for timeout in (0.0, 0.2, 0.2, 0.0):
                late.append(_lateness(lambda t: consumer.receive(timeout=t), timeout))  # noqa: B023
                late.append(_lateness(lambda t: consumer.receive_many(10, timeout=t), timeout))  # noqa: B023
        loads = []
        for consumer in (one, several):
            before = time.process_time()
            late.append(_lateness(lambda t: consumer.receive(timeout=t), 2.0))  # noqa: B023
            loads.append((time.process_time() - before) / 2.0)
        assert max(late) <= stage.seconds(0.5), f"a receive came back {max(late):.2f} s after its timeout"
        assert max(loads) <= IDLE_LOAD, f"waiting for 2 s took {max(loads) * 2:.2f} s of processor time"
        _wakes_at_once(stage, mq, several, queues[1])
    evidence = {"latest by": round(max(late), 3), "load": round(max(loads), 4)}
    return Outcome(counts={"checked": len(late)}, evidence=evidence)


def _lateness(call: Callable[[float], object], timeout: float) -> float:
    begun = time.monotonic()
    came = call(timeout)
    took = time.monotonic() - begun
    assert not came, f"{came!r} came out of an empty queue"
    assert took >= timeout - 0.01, f"receive(timeout={timeout}) came back after {took:.3f} s with nothing"
    return took - timeout


def _wakes_at_once(stage: Stage, mq: Connection, consumer: Consumer, queue: str) -> None:
    """A receive that rests is no deaf one."""
    sender = threading.Timer(0.2, lambda: mq.producer(queue).send("wake up"))
    begun = time.monotonic()
    sender.start()
    receive(stage, consumer, "what was sent during a receive").ack()
    took = time.monotonic() - begun
    sender.join()
    assert took <= stage.seconds(2.0), f"what was sent after 0.2 s was received after {took:.2f} s"


@criterion("C38")
def the_url_is_all_that_changes(stage: Stage) -> Outcome:
    """One script gives the same on ``memory://`` and here; a wrong scheme or option is named, a password never is."""
    here, there = _script(stage, stage.url), _script(stage, "memory://")
    assert here == there, f"the same script saw {here} here, and {there} on memory://"
    scheme = stage.url.partition("://")[0]
    wrong: dict[str, tuple[str, type[MQError], str]] = {
        "scheme": (f"{scheme}x" + stage.url[len(scheme) :], UnknownSchemeError, f"{scheme}x"),
        "option": (with_options(stage.url, {"time_out": 3}), UnknownOptionError, "time_out"),
        "near miss": (with_options(stage.url, {"requir": "native"}), UnknownOptionError, "require"),
    }
    for name, (url, kind, word) in wrong.items():
        text = str(refusal(kind, lambda: connect(url).close(), f"a wrong {name}"))  # noqa: B023
        assert word in text, f"the refusal of a wrong {name} does not name it: {text}"
    if "@" in stage.url:
        password = stage.url.partition("://")[2].partition("@")[0].partition(":")[2]
        shown = repr(stage.connect())
        assert f":{password}@" not in shown, f"a connection shows its password: {shown}"
    return Outcome(counts={"checked": len(here)}, evidence={"transcript": here})


class _HandlerFailed(Exception):
    pass


def _script(stage: Stage, url: str) -> list[Any]:
    """Knows a URL and nothing of what is behind it. Returns what it saw."""
    seen: list[Any] = []
    queue, dead = stage.queue("script"), stage.queue("script-dead")
    retry = Retry(attempts_max=2, delay=0.0)
    with connect(url) as mq:
        mq.declare(queue, dead_letter=None)
        with mq.producer(queue) as producer, mq.consumer(queue, retry=retry, dead_letter=dead) as consumer:
            producer.send({"id": 42}, headers={"tenant": "pbs"}, correlation_id="c-1")
            with receive(stage, consumer) as message:
                seen.append((message.payload, dict(message.headers), message.correlation_id, message.content_type))
            report = producer.send_many([Message("one"), Message(b"two"), ["three"]])
            producer.submit("four").result(stage.seconds(10))
            seen.append((len(report.ids), dict(report.failures)))
            four: list[Any] = []
            for _ in range(4):
                with receive(stage, consumer) as message:
                    four.append(message.payload)
            seen.append(four if stage.capabilities.ordered else sorted(four, key=repr))
            producer.send("nacked")
            for _ in range(2):
                delivery = receive(stage, consumer)
                seen.append((delivery.message.payload, delivery.delivery_count, delivery.redelivered))
                if delivery.delivery_count == 1:
                    delivery.nack()
                else:
                    delivery.ack()
            producer.send("rejected")
            receive(stage, consumer).reject("not wanted")
            producer.send("fails")
            for _ in range(2):
                with contextlib.suppress(_HandlerFailed), receive(stage, consumer):
                    raise _HandlerFailed("as ordered")
            silence(consumer, 0.2, "all was settled")
        with mq.consumer(dead) as consumer:
            for _ in range(2):
                with receive(stage, consumer) as message:
                    seen.append((message.payload, message.dead_letter_reason, message.dead_letter_count))
        mq.delete(queue)
        mq.delete(dead)
    return seen


@criterion("C40", limit=90)
def what_is_absent_is_refused_before_it_leaves(stage: Stage) -> Outcome:
    """What is declared absent is refused when used, with not a byte on the wire, and when needed, at connect. The
    connection and the harness say the same of durability."""
    told, claimed = stage.capabilities.durable, stage.harness.claims.sigkill
    assert claimed in (None, told), f"the connection says durable={told}, and the harness claims sigkill={claimed}"
    refused: dict[str, str] = {}
    native = stage.connect(require="native").capabilities
    site = stage.proxied() if stage.has_server else None
    for name in sorted(REFUSABLE):
        if getattr(stage.capabilities, name) is Support.UNSUPPORTED:
            refused[name] = prove_absent(stage, name)
            if site is not None:
                _refused_in_silence(stage, site, name)
        elif getattr(native, name) is Support.UNSUPPORTED:
            refused[f"{name}, natively"] = prove_absent(stage, name, require="native")
    refused |= _limits(stage)
    unmet = _unmet(stage)
    assert refused or unmet, "nothing is absent, and nothing was refused"
    return Outcome(counts={"checked": len(refused) + len(unmet)}, evidence={"refused": refused, "unmet": unmet})


def _refused_in_silence(stage: Stage, site: Site, name: str) -> None:
    """The refused call writes nothing. Heartbeats may fall between, so one silent try in three is enough."""
    mq = site.connect()
    queue = stage.queue(name)
    producer = mq.producer(queue)
    assert site.proxy is not None
    written = 0
    for _ in range(3):
        before = site.proxy.stats().bytes_to_server
        refusal(UnsupportedError, lambda: use(name, mq, producer, queue), f"{name}, said to be absent")
        written = site.proxy.stats().bytes_to_server - before
        if not written:
            return
    raise AssertionError(f"the refusal of {name} came after {written} bytes were on their way")


def _limits(stage: Stage) -> dict[str, str]:
    """Above the limits that are declared, too."""
    told = stage.capabilities
    queue = stage.queue("limits")
    mq = stage.connect()
    refused: dict[str, str] = {}
    with mq.producer(queue) as producer, mq.consumer(queue) as consumer:
        if told.delay is not Support.UNSUPPORTED and (longest := told.delay_max) is not None:
            refused["more than delay_max"] = str(
                refusal(UnsupportedError, lambda: producer.send(b"late", delay=longest + 1.0), "more than delay_max")
            )
        producer.send(b"after")
        assert receive(stage, consumer).message.body == b"after", "what was refused came"
    return refused


def _unmet(stage: Stage) -> list[str]:
    """Needs that are not met are named at connect; all that are met together are no reason against it."""
    met: dict[str, Any] = {}
    absent: list[str] = []
    known = {each.name for each in fields(Needs)} & {each.name for each in fields(Capabilities)} - {"delay"}
    for name in sorted(known):
        value = getattr(stage.capabilities, name)
        if value is False or value is Support.UNSUPPORTED:
            absent.append(name)
        else:
            met[name] = True
    stage.connect(needs=Needs(**met))
    for name in absent:
        needs = Needs(**{name: True})
        text = str(refusal(UnmetNeedError, lambda: stage.connect(needs=needs), f"{name} is needed and absent"))  # noqa: B023
        assert name in text, f"the refusal does not name {name}: {text}"
    return absent
