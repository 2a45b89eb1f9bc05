"""A forked child: it opens anew, or says that it cannot; the parent does not notice."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mqlayer
from mqlayer.errors import ClosedError, ForkedError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def in_child(call: Callable[[], Any]) -> None:
    """Do *call* in a forked child; an error there fails the test here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of ours do not hold the locks of the child
        child = os.fork()
    if child == 0:
        status = 1
        try:
            call()
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "the child failed; its traceback is above"


def raises(error: type[Exception], *calls: Callable[[], Any]) -> None:
    for call in calls:
        with pytest.raises(error):
            call()


def test_memory_cannot_follow() -> None:
    with mqlayer.connect("memory://") as mq:
        producer, consumer = mq.producer("q"), mq.consumer("q")
        producer.send("x")
        delivery = consumer.receive(timeout=0)
        assert delivery is not None

        def child() -> None:
            raises(
                ForkedError,
                lambda: producer.send("y"),
                lambda: producer.submit("y"),
                lambda: consumer.receive(timeout=0),
                lambda: mq.stats("q"),
                lambda: mq.producer("q"),
                delivery.ack,
                lambda: delivery.nack(),
                lambda: delivery.reject("no"),
            )
            consumer.close()
            mq.close()

        in_child(child)
        delivery.ack()
        producer.send("z")
        assert mq.stats("q").ready == 1


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


def test_sqlite_opens_anew(url: str) -> None:
    with mqlayer.connect(url) as mq:
        producer, consumer = mq.producer("q"), mq.consumer("q")
        producer.send("first")
        delivery = consumer.receive(timeout=5)
        assert delivery is not None
        ids = [producer.send("parent's")]

        def child() -> None:
            raises(ForkedError, delivery.ack, lambda: delivery.nack())
            assert producer.send("child's") not in ids
            producer.submit("child's").result(5)
            producer.flush()
            payloads = set()
            for _ in range(2):
                with consumer.receive(timeout=5) as message:  # type: ignore[union-attr]
                    payloads.add(message.payload)
            assert "parent's" in payloads
            raises(ForkedError, delivery.ack)
            assert mq.health().connected
            mq.close()
            raises(ClosedError, lambda: producer.send("y"), lambda: mq.stats("q"))

        in_child(child)
        delivery.ack()
        with consumer.receive(timeout=5) as message:  # type: ignore[union-attr]
            assert message.payload == "child's"
        assert mq.stats("q").ready == 0


def test_a_child_that_only_closes_takes_nothing_from_its_parent(url: str) -> None:
    with mqlayer.connect(url) as mq:
        producer = mq.producer("q")
        producer.send("x")

        def child() -> None:
            mq.close()
            raises(ClosedError, lambda: producer.send("y"), lambda: mq.stats("q"))

        in_child(child)
        producer.send("y")
        assert mq.stats("q").ready == 2


def test_what_the_parent_submitted_is_the_parents_to_flush(url: str) -> None:
    with mqlayer.connect(url) as mq:
        producer = mq.producer("q")
        producer.submit("x")
        in_child(lambda: producer.flush(timeout=5))
        producer.flush()
        assert mq.stats("q").ready == 1
