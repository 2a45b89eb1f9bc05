"""Faults that a user's unit test can order: the API goes on by itself, and says what it must."""

from typing import Any

import pytest
from fakes import PATIENCE, in_thread

from mqlayer import Connection, Retry
from mqlayer.backends.memory_faults import Faults
from mqlayer.clock import ManualClock
from mqlayer.errors import ConnectionLostError, MQError, OutcomeUnknownError, RefusedError, StaleDeliveryError


def receive(consumer: Any, timeout: float = PATIENCE) -> Any:
    delivery = consumer.receive(timeout=timeout)
    assert delivery is not None, "nothing came"
    return delivery


@pytest.mark.parametrize("stored", [False, True])
def test_a_connection_lost_on_a_send_is_made_again(mq: Connection, mq_faults: Faults, stored: bool) -> None:
    producer, consumer = mq.producer("q"), mq.consumer("q")
    mq_faults.lose_connection(on="send", stored=stored)
    sent = producer.send("x")
    got = [consumer.receive(timeout=0) for _ in range(1 + stored)]
    assert [delivery.message.id for delivery in got if delivery] == [sent] * (1 + stored)
    assert got[-1] is not None
    assert got[-1].message.resent
    assert consumer.receive(timeout=0) is None


def test_a_refusal_after_an_unknown_attempt_stays_unknown(
    mq: Connection, mq_faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = mq.producer("q")
    lose = mq_faults.take_loss

    def lose_then_refuse(on: Any) -> bool | None:
        lost = lose(on)
        if lost is not None:
            mq_faults.refuse()  # the second attempt, on the new connection
        return lost

    monkeypatch.setattr(mq_faults, "take_loss", lose_then_refuse)
    mq_faults.lose_connection(on="send")
    with pytest.raises(OutcomeUnknownError):
        producer.send("x")
    assert producer.send("fine")


def test_a_refusal_is_the_senders(mq: Connection, mq_faults: Faults) -> None:
    producer = mq.producer("q")
    mq_faults.refuse()
    with pytest.raises(RefusedError):
        producer.send("x")
    producer.send("x")
    assert mq.stats("q").ready == 1


@pytest.mark.parametrize("stored", [False, True])
def test_a_connection_lost_on_a_receive_is_made_again(mq: Connection, mq_faults: Faults, stored: bool) -> None:
    with mq.producer("q") as producer, mq.consumer("q") as consumer:
        producer.send("x")
        mq_faults.lose_connection(on="receive", stored=stored)
        delivery = receive(consumer)
        assert delivery.delivery_count == 1 + stored
        delivery.ack()
        assert mq.health().connections_lost >= 1
        assert mq.health().connected


def test_a_receive_that_waits_goes_on_waiting_on_the_new_connection(mq: Connection, mq_faults: Faults) -> None:
    with mq.producer("q") as producer, mq.consumer("q") as consumer:
        mq_faults.lose_connection(on="receive")
        with in_thread(lambda: consumer.receive()) as waiting:
            producer.send("x")
            waiting.result().ack()


def test_a_connection_lost_on_an_ack_gives_the_message_back(mq: Connection, mq_faults: Faults) -> None:
    with mq.producer("q") as producer, mq.consumer("q") as consumer:
        producer.send("x")
        delivery = consumer.receive(timeout=0)
        assert delivery is not None
        mq_faults.lose_connection(on="settle")
        with pytest.raises((ConnectionLostError, StaleDeliveryError)):
            delivery.ack()
        again = receive(consumer)
        assert again.delivery_count == 2
        again.ack()


def test_the_end_of_a_block_does_not_raise_for_it(mq: Connection, mq_faults: Faults) -> None:
    with mq.producer("q") as producer, mq.consumer("q") as consumer:
        producer.send("x")
        delivery = consumer.receive(timeout=0)
        assert delivery is not None
        mq_faults.lose_connection(on="settle")
        with delivery:
            handled = delivery.message.payload
        assert handled == "x"
        assert mq.health().settle_failures == 1


def test_a_duplicate_comes_twice(mq: Connection, mq_faults: Faults) -> None:
    with mq.producer("q") as producer, mq.consumer("q") as consumer:
        mq_faults.duplicate()
        sent = producer.send("x")
        assert [receive(consumer).message.id for _ in range(2)] == [sent] * 2


def test_time_is_the_tests(mq: Connection, mq_clock: ManualClock) -> None:
    retry = Retry(attempts_max=3, delay=10.0, jitter=0.0)
    with mq.producer("q") as producer, mq.consumer("q", retry=retry) as consumer:
        producer.send("x", delay=60.0)
        assert consumer.receive(timeout=0) is None
        mq_clock.advance(60.0)
        for wait in (10.0, 20.0):
            delivery = consumer.receive(timeout=0)
            assert delivery is not None
            with pytest.raises(ZeroDivisionError), delivery:
                raise ZeroDivisionError
            mq_clock.advance(wait - 0.1)
            assert consumer.receive(timeout=0) is None
            mq_clock.advance(0.1)
        delivery = consumer.receive(timeout=0)
        assert delivery is not None
        with pytest.raises(ZeroDivisionError), delivery:
            raise ZeroDivisionError
    assert mq.stats("q.dead").ready == 1


def test_every_error_is_ours(mq: Connection, mq_faults: Faults) -> None:
    producer, consumer = mq.producer("q"), mq.consumer("q")
    for on in ("send", "receive", "settle"):
        mq_faults.lose_connection(times=2, on=on)  # type: ignore[arg-type]
    for _ in range(10):
        try:
            producer.send("x")
            delivery = consumer.receive(timeout=0)
            if delivery is not None:
                delivery.ack()
        except MQError:
            continue
    mq_faults.clear()
    assert producer.send("x")
