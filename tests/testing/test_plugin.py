"""The fixtures that users get."""

import pytest

from mqlayer.errors import OutcomeUnknownError, RefusedError
from mqlayer.policy import Retry


def test_what_was_sent_is_captured_in_order(mq, mq_sent):
    with mq.producer("orders") as orders, mq.producer("mails") as mails:
        orders.send({"id": 1}, headers={"tenant": "a"})
        mails.send("hello")
        orders.send({"id": 2}, delay=5.0)
    mq_sent.assert_exactly({"orders": [{"id": 1}, {"id": 2}], "mails": ["hello"]})
    assert mq_sent.to("orders") == [{"id": 1}, {"id": 2}]
    assert mq_sent[0].headers == {"tenant": "a"}
    assert mq_sent[2].delay == 5.0
    with pytest.raises(AssertionError, match="expected"):
        mq_sent.assert_exactly({"orders": [{"id": 2}, {"id": 1}], "mails": ["hello"]})


def test_a_refused_message_was_not_sent(mq, mq_faults, mq_sent):
    mq_faults.refuse()
    with mq.producer("orders") as orders:
        with pytest.raises(RefusedError):
            orders.send("first")
        orders.send("second")
    mq_sent.assert_exactly({"orders": ["second"]})


def test_a_lost_connection_is_made_again_and_the_copy_is_marked(mq, mq_clock, mq_faults):
    mq_faults.lose_connection(stored=True)
    with mq.producer("orders") as orders, pytest.raises(OutcomeUnknownError):
        orders.send("first", timeout=0)
    with mq.consumer("orders") as consumer:
        consumer.receive(timeout=0).ack()


def test_time_moves_only_when_told(mq, mq_clock):
    with mq.producer("orders") as orders, mq.consumer("orders") as consumer:
        orders.send("later", delay=60.0)
        assert consumer.receive(timeout=0) is None
        mq_clock.advance(59.0)
        assert consumer.receive(timeout=0) is None
        mq_clock.advance(1.5)
        consumer.receive(timeout=0).ack()


def test_unsettled_deliveries_are_found(mq, mq_sent):
    with mq.producer("orders") as orders, mq.consumer("orders") as consumer:
        orders.send("x")
        delivery = consumer.receive(timeout=0)
        with pytest.raises(AssertionError, match="unsettled"):
            mq_sent.assert_settled()
        delivery.ack()
        mq_sent.assert_settled()
        mq_sent.assert_drained()


def test_retries_need_no_waiting(mq, mq_clock):
    with (
        mq.producer("orders") as orders,
        mq.consumer("orders", retry=Retry(attempts_max=2, delay=10.0, jitter=0)) as consumer,
        mq.consumer("orders.dead") as dead,
    ):
        orders.send("bad")
        for _ in range(2):
            with pytest.raises(ValueError, match="boom"), consumer.receive(timeout=0):
                raise ValueError("boom")
            mq_clock.advance(10.0)
        message = dead.receive(timeout=0).message
        assert (message.payload, message.dead_letter_origin, message.dead_letter_count) == ("bad", "orders", 2)
        assert message.dead_letter_reason == "ValueError: boom"
