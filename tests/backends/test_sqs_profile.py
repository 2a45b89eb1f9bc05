"""``memory://?profile=sqs`` refuses what the real server refuses, and takes what it takes."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqs_sessions import ElasticMQ, needs_elasticmq, running

import mqlayer
from mqlayer import Message
from mqlayer.errors import MQError

pytestmark = needs_elasticmq
KIB = 1024
Try = Callable[[mqlayer.Connection, str], Any]

TRIES: dict[str, Try] = {
    "plain": lambda mq, queue: mq.producer(queue).send("x"),
    "empty body": lambda mq, queue: mq.producer(queue).send(b""),
    "nul": lambda mq, queue: mq.producer(queue).send(b"\0"),
    "characters that SQS refuses": lambda mq, queue: mq.producer(queue).send("\ufffe\x1b"),
    "the largest body": lambda mq, queue: mq.producer(queue).send(b"x" * 1008 * KIB),
    "the largest binary body": lambda mq, queue: mq.producer(queue).send(b"\0" * 1008 * KIB),
    "an oversized body": lambda mq, queue: mq.producer(queue).send(b"x" * (1008 * KIB + 1)),
    "oversized headers": lambda mq, queue: mq.producer(queue).send(b"x", headers={"x": "y" * 1024 * KIB}),
    "64 headers": lambda mq, queue: mq.producer(queue).send(b"x", headers={f"h-{n}": n for n in range(64)}),
    "a reserved attribute": lambda mq, queue: mq.producer(queue).send(b"x", headers={"AWS.trace": "x"}),
    "an odd header": lambda mq, queue: mq.producer(queue).send(b"x", headers={"größe 1": "\0", "": "x"}),
    "a header without a name": lambda mq, queue: mq.producer(queue).send(b"x", headers={" ": ""}),
    "a number of 65 bits": lambda mq, queue: mq.producer(queue).send(b"x", headers={"n": 2**64}),
    "delay": lambda mq, queue: mq.producer(queue).send(b"x", delay=0.01),
    "delay of 900 s": lambda mq, queue: mq.producer(queue).send(b"x", delay=900.0),
    "delay of 901 s": lambda mq, queue: mq.producer(queue).send(b"x", delay=901.0),
    "priority": lambda mq, queue: mq.producer(queue).send(b"x", priority=3),
    "ttl": lambda mq, queue: mq.producer(queue).send(b"x", ttl=60.0),
    "group": lambda mq, queue: mq.producer(queue).send(b"x", group_id="g h"),
    "dedup": lambda mq, queue: mq.producer(queue).send(b"x", dedup_id="d"),
    "a batch of 25": lambda mq, queue: sorted(mq.producer(queue).send_many([b"x"] * 25).failures),
    "a batch with one oversized": lambda mq, queue: sorted(
        mq.producer(queue).send_many([Message(b"x" * (1024 * KIB if n == 3 else 1)) for n in range(10)]).failures
    ),
    "a name of 75": lambda mq, queue: mq.declare("n" * 75),
    "a name of 80": lambda mq, queue: mq.declare("n" * 80),
    "a name of 81": lambda mq, queue: mq.declare("n" * 81),
    "a name with dots": lambda mq, queue: mq.declare("a.b"),
    "too many dots": lambda mq, queue: mq.declare("a." * 30),
    "no name": lambda mq, queue: mq.declare(""),
    "a name that ends in .fifo": lambda mq, queue: mq.declare("orders.fifo"),
    "a missing queue": lambda mq, queue: mq.stats("never-declared"),
    "topics": lambda mq, queue: mq.producer(topic="t").send(b"x"),
    "peek": lambda mq, queue: mq.peek(queue, 1),
    "purge": lambda mq, queue: mq.purge(queue) is not None,
    "a lease beyond 12 hours": lambda mq, queue: mq.consumer(queue, lease=43_201.0).receive(timeout=0.3),
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ElasticMQ]:
    with running(tmp_path_factory.mktemp("elasticmq")) as broker:
        yield broker


def outcomes(url: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with mqlayer.connect(url) as mq:
        for name, attempt in TRIES.items():
            queue = f"q-{uuid.uuid4().hex[:8]}"
            mq.declare(queue)
            try:
                came = attempt(mq, queue)
            except MQError as error:
                found[name] = type(error).__name__
            else:
                found[name] = came if isinstance(came, (list, bool)) else "taken"
    return found


@pytest.mark.parametrize(
    ("options", "profile"), [("", "sqs"), ("&fifo=true", "sqs-fifo"), ("&require=native", "sqs&require=native")]
)
def test_the_profile_refuses_what_the_server_refuses(broker: ElasticMQ, options: str, profile: str) -> None:
    real, ours = outcomes(broker.url(options)), outcomes(f"memory://?profile={profile}")
    assert ours == real
    assert "MessageTooLargeError" in real.values()
    assert real["empty body"] == "taken"
