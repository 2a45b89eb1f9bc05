"""Publish and subscribe: a copy for each group: C43."""

import time
from typing import Any

from mqlayer.api import Connection, Consumer
from mqlayer.driver import Support
from mqlayer.errors import QueueNotFoundError, RefusedError
from mqlayer.message import Message, ReceivedMessage
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.deliveries import PATIENCE, receive, silence

__all__ = ["each_group_of_a_topic_gets_a_copy"]

EACH = 20  #: messages of each of the three rounds
QUIET = 0.3
DELAY = 1.5


@criterion("C43", limit=90)
def each_group_of_a_topic_gets_a_copy(stage: Stage) -> Outcome:
    """Two groups and a temporary subscription get one copy each; a group also gets what was sent while it was away, and
    of the temporary one nothing is left."""
    topic, other = stage.queue("topic"), stage.queue("other-topic")
    mq = stage.connect()
    with mq.producer(topic=topic) as producer:
        assert not producer.send_many(["nobody subscribes"] * 3).failures, "a topic without groups refuses messages"
        producer.send("nobody subscribes")
        with (
            mq.consumer(topic=topic, group="mailer") as mailer,
            mq.consumer(topic=topic, group="audit") as audit,
            mq.consumer(topic=topic) as temporary,
            mq.consumer(topic=other, group="mailer") as stranger,
        ):
            first = _publish(mq, topic, 0)
            consumers = {"mailer": mailer, "audit": audit, "the temporary one": temporary}
            queues = {name: _take(stage, consumer, name, first) for name, consumer in consumers.items()}
            silence(stranger, QUIET, "nothing was sent to the other topic")
            assert mailer.receive(timeout=0) is None, "a group got more than one copy"
        second = _publish(mq, topic, EACH)
    _is_gone(stage, queues["the temporary one"])
    elsewhere = stage.connect()
    with elsewhere.consumer(topic=topic) as newcomer:
        silence(newcomer, QUIET, "a temporary subscription begins now")
    with elsewhere.consumer(topic=topic, group="audit") as audit:
        _take(stage, audit, "audit, once it is back,", second)
    _share(stage, topic, second)
    with elsewhere.consumer(topic=topic, group="mailer") as mailer:
        silence(mailer, QUIET, "the group has had its copies")
    _names_are_kept_apart(stage)
    _copies_are_complete(stage)
    return Outcome(counts={"checked": 3 * EACH}, evidence={"copies": 7 * EACH})


def _publish(mq: Connection, topic: str, first: int) -> list[int]:
    numbers = list(range(first, first + EACH))
    with mq.producer(topic=topic) as producer:
        messages = [Message(number, headers={"number": number}, correlation_id=f"c-{number}") for number in numbers]
        for message in messages[: EACH // 2]:
            producer.send(message)
        failures = producer.send_many(messages[EACH // 2 :]).failures
    assert not failures, f"publishing failed: {failures}"
    return numbers


def _take(stage: Stage, consumer: Consumer, name: str, expected: list[int]) -> str:
    """Returns the queue that they came from."""
    came: list[int] = []
    for number in expected:
        delivery = receive(stage, consumer, f"copy {number} for {name}")
        assert delivery.topic is not None, "a delivery of a topic does not say of which"
        message = delivery.message
        came.append(message.payload)
        own = dict(message.headers), message.correlation_id
        wanted = {"number": message.payload}, f"c-{message.payload}"
        assert own == wanted, f"{name} got {message.payload!r} with {own}"
        delivery.ack()
    assert sorted(came) == expected, f"{name} got {came}, not {expected}"
    silence(consumer, QUIET, f"{name} has had a copy of each")
    return delivery.queue


def _is_gone(stage: Stage, queue: str) -> None:
    """The queue of a temporary subscription went with it: else each of them would collect messages for ever."""
    if not stage.capabilities.checks_queues:
        return
    mq = stage.connect(declare="never")

    def is_missing() -> bool:
        try:
            mq.consumer(queue).close()
        except QueueNotFoundError:
            return True
        return False

    stage.wait_until(is_missing, f"{queue}, of a temporary subscription that has ended, is gone", timeout=10.0)


def _names_are_kept_apart(stage: Stage) -> None:
    """Wherever topic ends and group begins: they are two names, not one text."""
    mq = stage.connect()
    topic = stage.queue("names")
    pairs = ((topic, "a.b"), (f"{topic}.a", "b"), (f"{topic}%2Ea", "b"))
    consumers = [mq.consumer(topic=name, group=group) for name, group in pairs]
    for name, group in pairs:
        mq.producer(topic=name).send(f"{name} {group}")
    for (name, group), consumer in zip(pairs, consumers, strict=True):
        came = [receive(stage, consumer, f"the copy for group {group} of {name}").message.payload]
        came += [delivery.message.payload for delivery in consumer.receive_many(5, timeout=0.1)]
        assert came == [f"{name} {group}"], f"group {group} of {name} got {came}"


def _copies_are_complete(stage: Stage) -> None:
    """A copy has the id and all else of what was sent, waits as long and lives as long. A queue that is named like the
    topic is another thing."""
    mq = stage.connect()
    topic = stage.queue("complete")
    mq.declare(topic)
    groups = ("one", "two")
    for group in groups:
        mq.consumer(topic=topic, group=group).close()
    told = stage.capabilities
    with mq.producer(topic=topic) as producer:
        fields: dict[str, Any] = {"reply_to": "answers", "content_type": "text/csv"}
        if told.ttl is not Support.UNSUPPORTED:
            producer.send("mortal", ttl=0.3)
        if told.priority is not Support.UNSUPPORTED:
            fields["priority"] = 7
        id = producer.send("a,b", **fields)
        begun = time.monotonic()
        delayed = told.delay is not Support.UNSUPPORTED
        if delayed:
            try:
                producer.send("later", delay=DELAY)
            except RefusedError:  # some delay only what goes to one queue
                delayed = False
        stage.wait_until(lambda: time.monotonic() > begun + 0.4, "the time to live is over")
    expected = (id, "a,b", "text/csv", "answers", fields.get("priority"))
    for group in groups:
        with mq.consumer(topic=topic, group=group) as consumer:
            message = _settled(stage, consumer, f"the copy for {group}")
            came = message.id, message.payload, message.content_type, message.reply_to, message.priority
            assert came == expected, f"{group} got {came}, not {expected}"
            if delayed:
                payload = _settled(stage, consumer, f"the delayed copy for {group}").payload
                early = begun + DELAY - time.monotonic()
                assert payload == "later", f"{group} got {payload!r}"
                assert early <= 0.05, f"delayed by {DELAY} s, the copy for {group} came {early:.2f} s early"
            silence(consumer, QUIET, f"{group} has had a copy of each")
    stage.assert_empty(mq, topic)


def _settled(stage: Stage, consumer: Consumer, what: str) -> ReceivedMessage:
    delivery = receive(stage, consumer, what)
    delivery.ack()
    return delivery.message


def _share(stage: Stage, topic: str, waiting: list[int]) -> None:
    """Two consumers of one group share its copies: what waits for it, and what comes."""
    one, two = stage.connect(), stage.connect()
    with one.consumer(topic=topic, group="mailer") as first, two.consumer(topic=topic, group="mailer") as second:
        third = _publish(one, topic, 2 * EACH)
        came: list[int] = []
        pair = (first, second)
        end = time.monotonic() + stage.seconds(PATIENCE)
        while len(came) < len(waiting) + len(third):
            assert time.monotonic() < end, f"{len(came)} copies came for the two mailers, then none"
            for consumer in pair:  # either may have fetched the next one
                for delivery in consumer.receive_many(EACH, timeout=0.02):
                    came.append(delivery.message.payload)
                    delivery.ack()
        assert sorted(came) == sorted(waiting + third), f"the two of one group together got {sorted(came)}"
        for consumer in pair:
            silence(consumer, QUIET, "the group has had a copy of each")
