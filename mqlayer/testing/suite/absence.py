"""Proof that a backend lacks what it says that it lacks: the call is refused, and nothing came of it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from mqlayer.errors import UnsupportedError
from mqlayer.testing.outcome import PromiseBroken, ProvedAbsent

if TYPE_CHECKING:
    from mqlayer.api import Connection, Producer
    from mqlayer.testing.stage import Stage

__all__ = ["absent", "prove_absent", "use"]

Use = Callable[["Connection", "Producer", str], object]
_BODY = b"should have been refused"

_USES: Mapping[str, Use] = MappingProxyType(
    {
        "delay": lambda mq, producer, queue: producer.send(_BODY, delay=0.01),
        "priority": lambda mq, producer, queue: producer.send(_BODY, priority=5),
        "ttl": lambda mq, producer, queue: producer.send(_BODY, ttl=60.0),
        "group_id": lambda mq, producer, queue: producer.send(_BODY, group_id="group"),
        "dedup_id": lambda mq, producer, queue: producer.send(_BODY, dedup_id="once"),
        "topics": lambda mq, producer, queue: mq.producer(topic=queue).send(_BODY),
        "peek": lambda mq, producer, queue: mq.peek(queue, 1),
        "purge": lambda mq, producer, queue: mq.purge(queue),
        "stats": lambda mq, producer, queue: mq.stats(queue),
    }
)


def use(capability: str, mq: "Connection", producer: "Producer", queue: str) -> None:
    """Use a capability on a queue of the producer's."""
    _USES[capability](mq, producer, queue)


def prove_absent(stage: "Stage", capability: str, **query: str) -> str:
    """Use what the backend says that it lacks. Returns the refusal's text.

    A queue is made first, with one message in it; after the refusal that message, and no other, is there, and the
    connection still serves. *query*: options of the URL that make it absent.

    Raises:
        PromiseBroken: the call worked, or left something behind: a capability is there that is said to be absent.
    """
    mq = stage.connect(needs=None, **query)
    queue = stage.queue(capability)
    producer = mq.producer(queue)
    producer.send(b"before")
    try:
        use(capability, mq, producer, queue)
    except UnsupportedError as refusal:
        text = str(refusal)
    else:
        raise PromiseBroken(f"unexpected pass: {capability} is said to be absent, and the call went through")
    producer.send(b"after")
    with mq.consumer(queue) as consumer:
        for expected in (b"before", b"after"):
            delivery = consumer.receive(timeout=stage.seconds(10))
            assert delivery is not None, f"after a refused {capability} the queue serves no more: no {expected!r}"
            with delivery as message:
                assert message.body in (b"before", b"after"), f"a refused {capability} left {message.body!r} behind"
        more = consumer.receive(timeout=stage.seconds(0.2))
        assert more is None, f"a refused {capability} left {more!r} behind"
    return text


def absent(stage: "Stage", capability: str) -> None:
    """End a criterion as ``unsupported``, once the absence is proved. Never returns."""
    raise ProvedAbsent(prove_absent(stage, capability))
