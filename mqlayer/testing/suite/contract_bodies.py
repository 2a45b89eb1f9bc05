"""Bodies of any size and content arrive as they were sent: C06, C07."""

import hashlib

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from mqlayer.errors import MessageTooLargeError
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.deliveries import receive

__all__ = ["arbitrary_bytes_arrive", "large_bodies_arrive_or_are_refused"]

KIB = 1024
BEYOND_MAX = 256 * 1024 * KIB  #: a limit above this is not tried: the test would need more memory than it is worth
MOST_TRIED = 64 * 1024 * KIB  #: a body of the largest size that is said to fit is sent up to this

# What frames end with or are counted by, in the protocols that brokers speak.
_MARKERS = (b"\x00", b"\r\n", b"\n\n", b"\xce", b"\x00\n", b"\xff\xfe", b"]]>", b"\x1b", b"SEND\n", b"\x01\x00\x00")


@criterion("C06", limit=120)
def large_bodies_arrive_or_are_refused(stage: Stage) -> Outcome:
    """Up to 4 MiB, and around sizes that protocols cut at; above the limit it is refused and the connection serves on."""
    sizes = (1, 64 * KIB, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, KIB * KIB, 4 * KIB * KIB)
    mq = stage.connect()
    queue = stage.queue()
    most = mq.capabilities.body_max_bytes
    with mq.producer(queue) as producer, mq.consumer(queue) as consumer:
        fitting = [size for size in sizes if most is None or size <= most]
        if most is not None and max(sizes) < most <= MOST_TRIED:
            fitting.append(most)  # not a byte less than is said
        for size in fitting:
            body = stage.random.randbytes(size)
            id = producer.send(body)
            delivery = receive(stage, consumer, f"a body of {size} bytes")
            same = hashlib.sha256(delivery.message.body).digest() == hashlib.sha256(body).digest()
            assert delivery.message.id == id, f"{delivery.message.id} came instead of {id}"
            assert same, f"of {size} bytes {len(delivery.message.body)} came, or other ones"
            delivery.ack()
        beyond = False
        if most is not None and most < BEYOND_MAX:
            beyond = True
            refusal = None
            try:
                producer.send(bytes(most + 1))
            except MessageTooLargeError as error:
                refusal = error
            assert refusal is not None, f"{most + 1} bytes were taken, and {most} are said to be the most"
            assert refusal.message_id, "the refusal does not say which message it is about"
            producer.send(b"after the refusal")
            delivery = receive(stage, consumer, "what was sent after the refusal")
            assert delivery.message.body == b"after the refusal", "the refused body was stored"
            delivery.ack()
    stage.assert_empty(mq, queue)
    return Outcome(
        counts={"checked": len(fitting)}, evidence={"largest": max(fitting), "refused above": most if beyond else None}
    )


@criterion("C07", limit=180)
def arbitrary_bytes_arrive(stage: Stage) -> Outcome:
    """Whatever bytes a body has, frame ends and lengths among them, the same come back."""
    mq = stage.connect()
    queue = stage.queue()
    examples = stage.size(quick=40, full=200)
    marked = st.lists(st.one_of(st.binary(max_size=64), st.sampled_from(_MARKERS)), max_size=200).map(b"".join)
    tried: list[int] = []
    with mq.producer(queue) as producer, mq.consumer(queue) as consumer:

        @seeded(stage.seed)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(st.one_of(marked, st.binary(max_size=2 * KIB), st.integers(0, 64 * KIB).map(bytes)))
        def body_comes_back(body: bytes) -> None:
            tried.append(len(body))
            producer.send(body)
            delivery = receive(stage, consumer, f"a body of {len(body)} bytes")
            delivery.ack()
            came = delivery.message.body
            assert came == body, f"{body[:80]!r}… ({len(body)} bytes) came as {came[:80]!r}… ({len(came)} bytes)"

        body_comes_back()
    stage.floor("bodies", len(tried), examples)
    return Outcome(counts={"checked": len(tried)}, evidence={"bytes": sum(tried)})
