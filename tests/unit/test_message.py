"""What users send and what they get."""

import dataclasses
from typing import Any

import pytest

from mqlayer.codec import decode
from mqlayer.driver import Outgoing, Trail
from mqlayer.errors import ArgumentError, UndecodableError
from mqlayer.message import Message, ReceivedMessage


@pytest.mark.parametrize(
    "values",
    [
        {"delay": -1},
        {"delay": float("nan")},
        {"delay": float("inf")},
        {"delay": "5"},
        {"delay": None},
        {"ttl": 0},
        {"ttl": -1},
        {"ttl": float("inf")},
        {"ttl": "5"},
        {"ttl": 5, "delay": 5},
        {"ttl": 1, "delay": 5},
        {"priority": -1},
        {"priority": 10},
        {"priority": 1.5},
        {"priority": True},
        *({name: value} for name in ("group_id", "dedup_id", "id", "reply_to") for value in ("", 5, "\ud800")),
        {"content_type": ""},
        {"correlation_id": b"x"},
    ],
)
def test_what_no_broker_could_mean_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        Message("x", **values)


def test_everything_but_the_payload_goes_by_name() -> None:
    with pytest.raises(TypeError):
        Message("x", {"a": 1})  # type: ignore[call-arg]


def test_what_can_be_meant_is_kept() -> None:
    message = Message("x", delay=1, ttl=1.5, priority=9, group_id="é", dedup_id="d", id="i", headers={"a": 1})
    assert (message.payload, message.delay, message.ttl, message.priority) == ("x", 1, 1.5, 9)
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.delay = 5  # type: ignore[misc]


def test_a_received_message_says_what_travelled() -> None:
    trail = Trail(failures=2, resent=1, origin="jobs", reason="bad", deliveries=5)
    outgoing = Outgoing(
        "m1", b'{"a":1}', {"h": 1}, "application/json", "c", "r", 3, "g", "d", 1000.0, 1060.0, 0.0, trail
    )
    message = ReceivedMessage(outgoing, decode)
    assert (message.id, message.body, message.payload, message.headers) == ("m1", b'{"a":1}', {"a": 1}, {"h": 1})
    assert (message.content_type, message.correlation_id, message.reply_to) == ("application/json", "c", "r")
    assert (message.priority, message.group_id, message.dedup_id) == (3, "g", "d")
    assert (message.sent_at, message.expires_at) == (1000.0, 1060.0)
    assert (message.dead_letter_origin, message.dead_letter_reason, message.dead_letter_count) == ("jobs", "bad", 5)
    assert (message.failures, message.resent, message.resent_count) == (2, True, 1)
    assert repr(message) == "ReceivedMessage(id='m1', content_type='application/json', 7 bytes)"


def test_the_payload_is_decoded_once_and_on_first_use() -> None:
    calls: list[bytes] = []

    def once(body: bytes, content_type: str | None) -> Any:
        calls.append(body)
        return None

    message = ReceivedMessage(Outgoing(None, b"x"), once)
    assert calls == []
    assert message.payload is None
    assert message.payload is None
    assert calls == [b"x"]


def test_an_undecodable_body_still_has_its_bytes() -> None:
    message = ReceivedMessage(Outgoing(None, b"{", {}, "application/json"), decode)
    for _ in range(2):
        with pytest.raises(UndecodableError):
            _ = message.payload
    assert message.body == b"{"
    assert message.id is None
    assert not message.resent
    with pytest.raises(TypeError):
        message.headers["a"] = 1  # type: ignore[index]
