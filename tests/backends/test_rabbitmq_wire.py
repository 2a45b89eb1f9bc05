"""What a message, a queue, a delay and an ack look like to RabbitMQ. No broker is needed."""

import math
import os
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

if os.environ.get("CI"):
    import pika
else:
    pika = pytest.importorskip("pika")

from mqlayer.backends import rabbitmq_wire as wire
from mqlayer.driver import HeaderValue, Outgoing, QueueOptions, Trail
from mqlayer.errors import ArgumentError, HeaderError, RefusedError

NOW = 1_800_000_000.0


def through_pika(properties: "pika.BasicProperties") -> "pika.BasicProperties":
    """As the other side reads them."""
    return pika.BasicProperties().decode(b"".join(properties.encode()))


def there_and_back(message: Outgoing) -> Outgoing:
    return wire.from_wire(through_pika(wire.to_properties(message, NOW)), message.body)


# --- messages -----------------------------------------------------------------------------------------------------------


def test_every_field_that_amqp_has_a_property_for_travels_there() -> None:
    message = Outgoing(
        "id-1",
        b"{}",
        {"tenant": "pbs", "n": 3, "yes": True, "none": None, "raw": b"\xff"},
        content_type="application/json",
        correlation_id="c",
        reply_to="r",
        priority=7,
        sent_at=NOW,
        expires_at=NOW + 60,
    )
    found = through_pika(wire.to_properties(message, NOW))
    assert (found.message_id, found.content_type, found.correlation_id, found.reply_to) == (
        "id-1",
        "application/json",
        "c",
        "r",
    )
    assert (found.priority, found.timestamp, found.expiration, found.delivery_mode) == (7, int(NOW), "60000", 2)
    assert found.headers == {
        "tenant": "pbs",
        "n": 3,
        "yes": True,
        "none": None,
        "raw": b"\xff",
        "mq-expires-at": repr(NOW + 60),
    }


def test_a_message_without_anything_has_no_headers() -> None:
    assert wire.to_properties(Outgoing("a", b""), NOW).headers is None
    assert there_and_back(Outgoing(None, b"x")) == Outgoing(None, b"x")


HEADERS = st.dictionaries(
    st.text(min_size=1, max_size=20).filter(lambda name: not name.lower().startswith(("mq-", "x-", "cc", "bcc"))),
    st.one_of(
        st.text(max_size=50),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.booleans(),
        st.none(),
        st.binary(max_size=50),
    ),
    max_size=8,
)
TEXTS = st.none() | st.text(min_size=1, max_size=63)  # no sender writes an empty one


@given(
    HEADERS,
    TEXTS,
    TEXTS,
    st.none() | st.integers(0, 9),
    st.none() | st.floats(0, 2**33),
    st.none() | st.floats(NOW, NOW * 2),
    st.builds(Trail, *[st.integers(0, 99)] * 3, st.none() | st.floats(1, 2**33), *[TEXTS] * 3, st.integers(0, 99)),
)
def test_there_and_back(
    headers: dict[str, HeaderValue],
    id: str | None,
    text: str | None,
    priority: int | None,
    sent_at: float | None,
    expires_at: float | None,
    trail: Trail,
) -> None:
    message = Outgoing(
        id,
        b"body",
        headers,
        content_type=text,
        correlation_id=text,
        reply_to=text,
        priority=priority,
        group_id=text,
        sent_at=sent_at,
        expires_at=expires_at,
        trail=trail,
    )
    found = there_and_back(message)
    assert found == message._replace(sent_at=None if sent_at is None else float(int(sent_at))), (
        "the property has seconds"
    )
    assert {name: type(value) for name, value in found.headers.items()} == {n: type(v) for n, v in headers.items()}


def test_nan_and_infinity_travel_as_text() -> None:
    found = there_and_back(Outgoing("a", b"", {"nan": math.nan, "inf": -math.inf})).headers
    assert math.isnan(float(found["nan"]))  # type: ignore[arg-type]
    assert found["inf"] == -math.inf


@pytest.mark.parametrize(
    "name",
    ["x-death", "x-delivery-count", "x-first-death-queue", "x-last-death-reason", "CC", "BCC", "x-stream-offset"],
)
@pytest.mark.parametrize("value", ["text", 1.5, 1])
def test_rabbitmqs_own_headers_are_refused_and_never_copied(name: str, value: HeaderValue) -> None:
    with pytest.raises(HeaderError, match=name):
        wire.to_properties(Outgoing("a", b"", {name: value}), NOW)
    broker_written = pika.BasicProperties(headers={name: "by the broker", "x-request-id": "the user's"})
    assert wire.from_wire(through_pika(broker_written), b"").headers == {"x-request-id": "the user's"}


class Seconds(float):
    """A float that is not one."""


@pytest.mark.parametrize(
    ("headers", "wrong"),
    [
        ({"n" * 256: "x"}, "longer than 255"),
        ({"n" * 256: 1.5}, "longer than 255"),
        ({"ü" * 128: "x"}, "longer than 255"),
        ({"n": 2**63}, "64 bits"),
        ({"n": -(2**63) - 1}, "64 bits"),
        ({"n": Seconds(1)}, "Seconds"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(headers: dict[str, HeaderValue], wrong: str) -> None:
    with pytest.raises(HeaderError, match=wrong):
        wire.to_properties(Outgoing("a", b"", headers), NOW)
    assert there_and_back(Outgoing("a", b"", {"n" * 255: "x", "ü" * 127: 1.5})).headers != {}


@pytest.mark.parametrize("field", ["id", "content_type", "correlation_id", "reply_to"])
def test_a_property_that_does_not_fit_is_refused_by_name(field: str) -> None:
    assert getattr(there_and_back(Outgoing("a", b"")._replace(**{field: "x" * 255})), field) == "x" * 255
    for text in ("x" * 256, "ü" * 128):
        with pytest.raises(RefusedError, match=field):
            wire.to_properties(Outgoing("a", b"")._replace(**{field: text}), NOW)


@pytest.mark.parametrize(
    ("expires_at", "delay", "expiration"),
    [
        (None, 0.0, None),
        (NOW + 1.5, 0.0, "1500"),
        (NOW - 5, 0.0, "0"),
        (NOW + 5, 2.0, None),  # it would end the wait in the delay queue
        (NOW + 2**32 / 1000 - 1, 0.0, str(2**32 - 1000)),
        (NOW + 2**32 / 1000 + 1, 0.0, None),  # the broker would refuse it
    ],
)
def test_the_expiration_is_what_is_left(expires_at: float | None, delay: float, expiration: str | None) -> None:
    message = Outgoing("a", b"", expires_at=expires_at, delay=delay)
    found = through_pika(wire.to_properties(message, NOW))
    assert found.expiration == expiration
    assert wire.from_wire(found, b"").expires_at == expires_at


def test_a_foreign_message_is_taken_as_it_is() -> None:
    when = datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC)
    properties = pika.BasicProperties(
        content_type="text/x",
        headers={
            "table": {"a": [1, {"b": "c"}]},
            "list": ["x", 2],
            "when": when,
            "price": Decimal("1.25"),
            "big": 2**40,
            "mq-group-id": "g",
            "mq-priority": "not a number",
            "mq-unknown": "x",
        },
    )
    found = wire.from_wire(through_pika(properties), b"\x00")
    assert found.headers["table"] == '{"a": [1, {"b": "c"}]}'
    assert found.headers["list"] == '["x", 2]'
    assert str(found.headers["when"]).startswith("2026-11-24T01:02:03")
    assert found.headers["price"] == "1.25"
    assert (found.headers["big"], type(found.headers["big"])) == (2**40, int)
    assert set(found.headers) == {"table", "list", "when", "price", "big"}
    assert (found.id, found.group_id, found.priority, found.content_type) == (None, "g", None, "text/x")
    assert wire.from_wire(through_pika(pika.BasicProperties()), b"") == Outgoing(None, b"")
    assert there_and_back(found).headers == found.headers, "a copy can be made of it"


def test_text_that_is_no_text_is_delivered_all_the_same() -> None:
    properties = pika.BasicProperties(message_id=b"\xff", content_type=b"a\xfe", headers={"h": "x"})  # type: ignore[arg-type]
    found = wire.from_wire(properties, b"")
    assert found.id == "\ufffd"
    assert found.content_type == "a\ufffd"


@pytest.mark.parametrize(
    "properties",
    [
        pika.BasicProperties(headers={"mq-id": "i" * 300, "mq-content-type": "c" * 300, "mq-reply-to": "r" * 300}),
        pika.BasicProperties(headers={"mq-priority": 10**15, "mq-sent-at": "1e18"}),
        pika.BasicProperties(headers={"a": "9" * 100, "mq-types": '{"a":"i"}'}),
        pika.BasicProperties(timestamp=2**64 - 1),
        pika.BasicProperties(headers={"a": int(1e300), "b": int(-1e19)}),  # what pika leaves of a double
        pika.BasicProperties(message_id=b"\xff" * 255, headers={b"\xfe" * 255: "x"}),  # type: ignore[arg-type,dict-item]
    ],
)
def test_a_copy_can_be_made_of_any_foreign_message(properties: pika.BasicProperties) -> None:
    found = wire.from_wire(properties, b"")
    copy = wire.to_properties(found, 0.0)
    copy.encode()
    assert wire.from_wire(copy, b"").headers == found.headers


def test_a_field_that_amqp_has_a_property_for_is_read_there_alone() -> None:
    found = wire.from_wire(
        pika.BasicProperties(message_id="mine", headers={"mq-id": "forged", "mq-priority": "7"}), b""
    )
    assert (found.id, found.priority, found.headers) == ("mine", None, {})


def test_an_empty_property_is_none() -> None:
    properties = pika.BasicProperties(message_id="", content_type="", correlation_id="", reply_to="")
    assert wire.from_wire(properties, b"") == Outgoing(None, b"")


@pytest.mark.parametrize(
    ("headers", "count"),
    [(None, 1), ({}, 1), ({"x-delivery-count": 0}, 1), ({"x-delivery-count": 3}, 4), ({"x-delivery-count": "x"}, 1)],
)
def test_a_quorum_queue_counts_from_the_second_delivery_on(headers: dict[str, object] | None, count: int) -> None:
    assert wire.broker_count(pika.BasicProperties(headers=headers), True) == count
    assert wire.broker_count(pika.BasicProperties(headers=headers), False) == 1, "another client wrote it"


# --- names and arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "amq.gen-1", "q" * 256, "ü" * 128, "\ud800", "a\nb", "a\r"])
def test_a_name_that_no_queue_can_have_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError):
        wire.check_queue(name)


@pytest.mark.parametrize("name", ["q", "a.b-c d/ü", "q" * 255, "mq"])
def test_a_name_that_a_queue_can_have(name: str) -> None:
    assert wire.check_queue(name) == name


def test_topics_and_groups_whose_names_are_too_long_or_no_text_are_refused() -> None:
    for name in ("t" * 256, "\ud800", "a\nb"):
        with pytest.raises(ArgumentError):
            wire.topic_exchange(name)
        with pytest.raises(ArgumentError):
            wire.group_queue(name, "g")
        with pytest.raises(ArgumentError):
            wire.group_queue("t", name)


NAMES = st.text(st.sampled_from("ab.%2E5"), min_size=1, max_size=5)


@given(NAMES, NAMES, NAMES, NAMES)
def test_no_two_groups_share_a_queue(topic: str, group: str, other_topic: str, other_group: str) -> None:
    same = (topic, group) == (other_topic, other_group)
    assert (wire.group_queue(topic, group) == wire.group_queue(other_topic, other_group)) is same


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_no_two_queues_share_a_memory(queue: str, other: str) -> None:
    assert (wire.memory_exchange(queue) == wire.memory_exchange(other)) is (queue == other)
    assert len(wire.memory_exchange(queue).encode()) <= 60


def test_work_queues_never_dead_letter_by_themselves() -> None:
    quorum, classic = (wire.queue_arguments(kind, QueueOptions(dead_letter="d")) for kind in ("quorum", "classic"))
    assert quorum == {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
    assert classic == {"x-max-priority": 9}
    assert wire.queue_arguments("quorum", QueueOptions(temporary=True, ordered=True)) == quorum | {
        "x-single-active-consumer": True,
        "x-expires": 60_000,
    }


COMPLAINT = (
    "PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for exchange 'mq.dead-letter.{}' in vhost '/': "
)


@pytest.mark.parametrize(
    ("ending", "dead_letter"),
    [
        ("received 'not 1' but current is 'dead'", "dead"),
        ("received 'not 1' but current is 'it's ü'", "it's ü"),
        ("received 'not 1' but current is 'a but current is 'b''", "a but current is 'b'"),
        ("received the value 'not 1' of type 'longstr' but current is the value 'dead' of type 'longstr'", "dead"),
        ("received the value 'not 1' of type 'longstr' but current is none", None),
        ("received 'not 1' but current is 'dddddddddddd...", None),
        ("received 'not 1' but current is '", None),
        ("something else", None),
    ],
)
@pytest.mark.parametrize("queue", ["q", "a' but current is 'b"])
def test_the_dead_letter_queue_that_a_complaint_names(queue: str, ending: str, dead_letter: str | None) -> None:
    assert wire.remembered_dead_letter(COMPLAINT.format(queue) + ending, "not 1") == dead_letter


# --- delays -------------------------------------------------------------------------------------------------------------


@given(st.floats(0.0001, wire.DELAY_MAX))
def test_a_delay_is_rounded_up_by_a_tenth_or_a_tenth_of_a_second(delay: float) -> None:
    step = wire.delay_step(delay) / 1000
    assert delay - 1e-6 <= step
    assert step - delay <= max(0.1, delay * 0.1)


def test_there_are_few_delay_queues() -> None:
    assert len(wire.DELAY_STEPS) <= 168
    assert list(wire.DELAY_STEPS) == sorted(set(wire.DELAY_STEPS))
    assert wire.delay_step(wire.DELAY_MAX) == wire.DELAY_STEPS[-1]
    for seconds in (0.05, 0.3, 1.0, 86_400.0):
        assert wire.delay_step(seconds) == seconds * 1000


def test_a_delay_queue_hands_over_at_least_once_to_the_queue_named_by_the_key() -> None:
    assert wire.delay_arguments(300) == {
        "x-queue-type": "quorum",
        "x-message-ttl": 300,
        "x-dead-letter-exchange": "",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    assert wire.delay_name(300) == "mq.delay.300"


# --- acks ---------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 30), st.data())
def test_every_tag_is_acked_once_and_nothing_else(count: int, data: st.DataObject) -> None:
    """Simulates the broker: what each frame settles must be what was just finished, all of it and nothing more."""
    order = data.draw(st.permutations(range(1, count + 1)))
    given_back = data.draw(st.sets(st.integers(1, max(count, 1))))
    marks = wire.AckWatermark()
    unsettled = set(range(1, count + 1))
    while order:
        size = data.draw(st.integers(1, len(order)))
        batch, order = order[:size], order[size:]
        for tag in batch:
            if tag in given_back:
                unsettled.discard(tag)
                marks.settled(tag)
        finished = [tag for tag in batch if tag not in given_back]
        settled: set[int] = set()
        for tag, multiple in marks.acks(finished) if finished else []:
            covered = {each for each in unsettled if each <= tag} if multiple else {tag}
            assert tag in unsettled, "RabbitMQ closes the channel for a tag that it does not know any more"
            assert covered <= unsettled
            unsettled -= covered
            settled |= covered
        assert settled == set(finished)
    assert unsettled == set()


def test_a_run_without_a_gap_is_one_frame() -> None:
    marks = wire.AckWatermark()
    assert marks.acks([2, 1, 3]) == [(3, True)]
    assert marks.acks([5, 6]) == [(5, False), (6, False)]
    assert marks.acks([4]) == [(4, False)]
    marks.settled(7)
    assert marks.acks([8, 9]) == [(9, True)]
