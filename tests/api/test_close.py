"""The end of consumers and connections: what is settled, what goes back, who is told."""

import asyncio
import logging
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest
from fakes import PATIENCE, FakeBackend, FakeSession, all_unknown, in_thread, incoming

import mqlayer
from mqlayer.clock import ManualClock
from mqlayer.engine import HOLDERS_TIMEOUT
from mqlayer.engine import engine as engine_module
from mqlayer.errors import ClosedError, Fate, NotSentError, SendError, StaleDeliveryError
from mqlayer.policy import Retry
from mqlayer.registry import CommonOptions, Target
from mqlayer.urls import BrokerURL


def receive(consumer: Any) -> Any:
    delivery = consumer.receive(timeout=PATIENCE)
    assert delivery is not None
    return delivery


def send(mq: Any, queue: str, *payloads: Any) -> None:
    with mq.producer(queue) as producer:
        producer.send_many(payloads)


class TestHolders:
    """A consumer that closes lets other threads finish what they have begun."""

    @pytest.mark.parametrize("how", ["consumer", "connection"])
    def test_another_thread_may_still_settle(self, url: str, how: str) -> None:
        mq = mqlayer.connect(url)
        watching = mqlayer.connect(url)
        send(mq, "q", "x")
        consumer = mq.consumer("q")
        begun, go_on = threading.Event(), threading.Event()

        def handle() -> None:
            with receive(consumer):
                begun.set()
                assert go_on.wait(PATIENCE)

        with in_thread(handle) as handling:
            assert begun.wait(PATIENCE)
            with in_thread(consumer.close if how == "consumer" else mq.close) as closing:
                with pytest.raises(ClosedError):
                    consumer.receive(timeout=PATIENCE)
                assert closing.thread.is_alive()
                go_on.set()
                closing.result()
            handling.result()
        assert watching.stats("q").ready == watching.stats("q").in_flight == 0
        mq.close()
        watching.close()

    def test_what_the_closing_thread_holds_goes_back_at_once(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mqlayer.core.consuming.HOLDERS_TIMEOUT", 3600.0)
        with mqlayer.connect(url) as mq:
            send(mq, "q", "x")
            consumer = mq.consumer("q")
            delivery = receive(consumer)
            with in_thread(consumer.close), pytest.raises(StaleDeliveryError):
                # closed elsewhere: this thread is the holder then, and lets go
                settle_late(consumer, delivery)
            assert delivery.settled or mq.stats("q").ready == 1

    def test_closing_inside_ones_own_block(self, url: str) -> None:
        with mqlayer.connect(url) as mq:
            send(mq, "q", "x")
            consumer = mq.consumer("q")
            with receive(consumer):
                consumer.close()
            assert mq.stats("q").ready == 1

    def test_a_holder_that_has_ended_is_not_waited_for(self, url: str) -> None:
        with mqlayer.connect(url) as mq:
            send(mq, "q", "x")
            consumer = mq.consumer("q")
            with in_thread(lambda: receive(consumer)):
                pass_by()
            consumer.close()
            assert mq.stats("q").ready == 1

    def test_a_handler_that_does_not_end_is_not_waited_for_for_ever(
        self, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with mqlayer.connect(url) as mq:
            send(mq, "q", "x")
            consumer = mq.consumer("q")
            begun, go_on = threading.Event(), threading.Event()

            def handle() -> Any:
                delivery = receive(consumer)
                begun.set()
                assert go_on.wait(PATIENCE)
                delivery.ack()

            with in_thread(handle) as handling:
                assert begun.wait(PATIENCE)
                consumer.close(timeout=0.1)
                assert "1 deliveries are still being handled" in caplog.text
                assert mq.stats("q").ready == 1
                go_on.set()
                with pytest.raises(StaleDeliveryError):
                    handling.result()

    def test_a_delivery_is_its_handlers_and_not_its_receivers(self, url: str) -> None:
        with mqlayer.connect(url) as mq:
            send(mq, "q", "x")
            consumer = mq.consumer("q")
            delivery = receive(consumer)
            begun, go_on = threading.Event(), threading.Event()

            def handle() -> None:
                with delivery:
                    begun.set()
                    assert go_on.wait(PATIENCE)

            with in_thread(handle) as handling:
                assert begun.wait(PATIENCE)
                threading.Timer(0.05, go_on.set).start()
                consumer.close()
                handling.result()
            assert mq.stats("q").ready == mq.stats("q").in_flight == 0


def settle_late(consumer: Any, delivery: Any) -> None:
    while True:
        try:
            consumer.receive(timeout=PATIENCE)
        except ClosedError:
            break
    delivery.ack()  # while the other thread waits for it
    raise StaleDeliveryError("settled in time")


def pass_by() -> None:
    """Nothing to do meanwhile."""


class TestConnection:
    def test_everything_queued_is_sent(self, api: Any, url: str) -> None:
        watching = api.connect(url)
        mq = api.connect(url)
        producer = mq.producer("q")
        futures = [producer.submit(number) for number in range(200)]
        mq.close()
        assert len({future.result(PATIENCE) for future in futures}) == 200
        assert watching.stats("q").ready == 200
        watching.close()

    def test_prefetched_goes_back_uncounted(self, api: Any, url: str) -> None:
        watching = api.connect(url)
        mq = api.connect(url)
        send(mq, "q", *range(10))
        consumer = mq.consumer("q", prefetch=8)
        receive(consumer).ack()
        held = receive(consumer)
        mq.close()
        with pytest.raises(StaleDeliveryError):
            held.ack()
        assert watching.stats("q").ready == 9
        with watching.consumer("q") as other:
            counts = []
            for _ in range(9):
                delivery = receive(other)
                counts.append(delivery.delivery_count)
                delivery.ack()
        assert counts == [1] * 9
        watching.close()

    def test_calls_after_close_say_so(self, api: Any, url: str) -> None:
        mq = api.connect(url)
        producer, consumer = mq.producer("q"), mq.consumer("q")
        mq.close()
        mq.close()
        calls = [
            lambda: mq.producer("q"),
            lambda: mq.consumer("q"),
            lambda: mq.declare("q"),
            lambda: mq.stats("q"),
            lambda: mq.health(),
            lambda: producer.send("x"),
            lambda: producer.submit("x"),
            lambda: producer.send_many(["x"]),
            lambda: consumer.receive(timeout=0),
            lambda: consumer.receive_many(5, timeout=0),
        ]
        for call in calls:
            with pytest.raises(ClosedError):
                call()
        consumer.close()
        producer.close()

    def test_queued_and_in_flight_get_their_fate(self, api: Any, fake: Any, caplog: pytest.LogCaptureFixture) -> None:
        session = FakeSession()
        flying = threading.Event()

        def until_aborted(name: str, batch: Any, timeout: float) -> Any:
            flying.set()
            session.until(lambda: session.aborted)
            return all_unknown(name, batch, timeout)

        session.every("send", until_aborted)
        url, backend = fake(session)
        mq = api.connect(url)
        producer = mq.producer("q")
        first = producer.submit("in flight", timeout=60)
        assert flying.wait(PATIENCE)
        second = producer.submit("queued", timeout=60)
        with caplog.at_level(logging.WARNING, "mqlayer"):
            mq.close(timeout=0.1)
        errors = [future.exception(PATIENCE) for future in (first, second)]
        assert all(isinstance(error, SendError) and error.message_id for error in errors)
        assert [error.fate for error in errors if isinstance(error, SendError)] == [Fate.UNKNOWN, Fate.NOT_SENT]
        assert "not known to be safe" in caplog.text
        assert backend.closed
        assert session.closed

    def test_a_sender_without_room_hears_of_the_end(self, api: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mqlayer.engine.outbox.SEND_WINDOW", 2)
        session = FakeSession()
        gate = session.gate("send")
        url, _ = fake(session)
        mq = api.connect(url)
        producer = mq.producer("q")
        futures = [producer.submit("in flight")]
        gate.wait_entered()
        futures += [producer.submit("queued") for _ in range(2)]
        with pytest.raises(NotSentError):
            producer.submit("no room", timeout=0.05)
        with in_thread(lambda: producer.send("no room either")) as sending, in_thread(mq.close):
            with pytest.raises((ClosedError, NotSentError)):
                sending.result()
            gate.open()
        assert all(future.result(PATIENCE) for future in futures)

    def test_room_lets_the_next_one_in(self, api: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mqlayer.engine.outbox.SEND_WINDOW", 2)
        session = FakeSession()
        gate = session.gate("send")
        url, _ = fake(session)
        with api.connect(url) as mq:
            producer = mq.producer("q")
            producer.submit("in flight")
            gate.wait_entered()
            for _ in range(2):
                producer.submit("queued")
            with in_thread(lambda: producer.submit("waits for room")) as waiting:
                waiting.thread.join(0.05)
                assert waiting.thread.is_alive()
                gate.open()
                assert waiting.result().result(PATIENCE)

    def test_closing_from_several_threads_at_once(self, api: Any, url: str) -> None:
        mq = api.connect(url)
        send(mq, "q", "x")
        consumer = mq.consumer("q")
        with in_thread(mq.close) as one, in_thread(consumer.close) as two, in_thread(mq.close) as three:
            for closing in (one, two, three):
                closing.result()

    def test_a_failed_connect_closes_its_backend(self, api: Any, fake: Any) -> None:
        url, backend = fake(mqlayer.errors.ConnectFailedError("nobody listens"))
        with pytest.raises(mqlayer.errors.ConnectFailedError):
            api.connect(url)
        assert backend.closed

    def test_a_consumer_that_never_was_is_let_go(self, api: Any, fake: Any) -> None:
        sender = FakeSession()
        url, _ = fake(sender)
        with api.connect(url) as mq:
            sender.on("declare", mqlayer.errors.QueueNotFoundError("no"))
            with pytest.raises(mqlayer.errors.QueueNotFoundError):
                mq.consumer("q")
            assert mq.health().connected

    def test_a_forgotten_connection_closes_itself(self, url: str) -> None:
        watching = mqlayer.connect(url)
        mq = mqlayer.connect(url)
        send(mq, "q", "x")
        consumer = mq.consumer("q", retry=Retry())
        receive(consumer)
        del mq, consumer
        deadline = threading.Event()
        for _ in range(1000):
            if watching.stats("q").ready == 1:
                break
            deadline.wait(0.01)
        assert watching.stats("q").ready == 1
        watching.close()

    def test_a_forgotten_connection_does_not_keep_its_event_loop(self, url: str) -> None:
        async def forget() -> None:
            mq = await mqlayer.aio.connect(url)
            async with mq.producer("q") as producer:
                await producer.send("x")
            consumer = await mq.consumer("q")
            assert await consumer.receive(timeout=PATIENCE)  # this task holds it, and goes on without it

        async def until_then() -> float:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await forget()
            return loop.time() - began

        watching = mqlayer.connect(url)
        assert asyncio.run(until_then()) < HOLDERS_TIMEOUT / 5
        assert watching.stats("q").ready == 1
        watching.close()


class TestLeases:
    def test_an_ack_after_the_lease_never_reaches_the_session(self) -> None:
        """It could meet another consumer's copy there."""
        clock = ManualClock()
        session = FakeSession(clock=clock)
        target = Target(BrokerURL("fake"), FakeBackend(FakeSession(), session), CommonOptions(), None)
        mq = mqlayer.Connection(target, needs=None, timeout=30.0, clock=clock)
        consumer = mq.consumer("q", hold_max=0)
        session.deliver(incoming("m1", lease_until=20.0), incoming("m2", lease_until=20.0))
        by_hand, in_block = receive(consumer), receive(consumer)
        clock.advance(19.5)  # the last second is a margin
        with pytest.raises(StaleDeliveryError, match="lease"):
            by_hand.ack()
        with in_block:
            pass_by()
        consumer.close()
        assert session.settled == []
        assert mq.health().settle_failures == 1
        mq.close()


class TestHealth:
    def test_a_consumer_that_cannot_connect_is_told(self, api: Any, fake: Any) -> None:
        down = mqlayer.errors.ConnectFailedError("nobody listens")
        url, _ = fake(FakeSession(), *[down] * 100)
        with api.connect(url) as mq:
            assert mq.health().connected
            with mq.consumer("q") as consumer:
                assert consumer.receive(timeout=0.2) is None
                health = mq.health()
                assert not health.connected
                assert "nobody listens" in health.last_error

    def test_counts_outlive_their_consumer(self, mq: Any) -> None:
        send(mq, "q", "a", "b")
        with mq.consumer("q") as consumer:
            receive(consumer).ack()
            held = receive(consumer)
            assert (mq.health().held, mq.health().received) == (1, 2)
            held.ack()
        health = mq.health()
        assert (health.sent, health.received, health.settled, health.held) == (2, 2, 2, 0)


class TestExit:
    """When the interpreter ends."""

    def run(self, program: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=True
        )

    def test_what_was_submitted_is_sent_and_what_was_not_is_logged(self) -> None:
        done = self.run(
            f"""
            import sys
            sys.path[:0] = [{str(__file__).rsplit("/", 2)[0]!r}]
            from fakes import FakeBackend, FakeFactory, FakeSession, all_unknown
            import logging, mqlayer
            from mqlayer.core import connecting
            logging.basicConfig(format="%(message)s", stream=sys.stdout)
            session = FakeSession()
            def until_aborted(name, batch, timeout):
                session.until(lambda: session.aborted)
                return all_unknown(name, batch, timeout)
            mqlayer.register_backend("scripted", FakeFactory(FakeBackend(session)))
            mq = mqlayer.connect("scripted://h")
            mq._core._finalizer.detach()
            import weakref
            weakref.finalize(mq._core, mq._core.engine.close, 0.2)
            producer = mq.producer("q")
            producer.submit("sent").result()
            session.every("send", until_aborted)
            for _ in range(3):
                producer.submit("not safe")
            """
        )
        assert "messages are not known to be safe" in done.stdout
        assert done.stderr == ""

    def test_an_open_connection_does_not_keep_the_process(self) -> None:
        done = self.run(
            """
            import mqlayer, threading
            mq = mqlayer.connect("memory://")
            producer, consumer = mq.producer("q"), mq.consumer("q")
            producer.send("x")
            held = consumer.receive()
            threading.Thread(target=consumer.receive, daemon=True).start()
            """
        )
        assert done.stderr == ""


def test_the_bounds_have_names() -> None:
    assert engine_module.HOLDERS_TIMEOUT == 10.0
