"""What users can rely on, the same in both APIs and on both kinds of line."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fakes import PATIENCE, FakeSession, all_unknown, failing, in_thread, incoming

import mqlayer
from mqlayer import Message, Needs, Retry
from mqlayer.errors import (
    AlreadySettledError,
    ArgumentError,
    ClosedError,
    EncodeError,
    Fate,
    HeaderError,
    NotSentError,
    OutcomeUnknownError,
    QueueMismatchError,
    QueueNotFoundError,
    RefusedError,
    SendError,
    StaleDeliveryError,
    UndecodableError,
    UnknownOptionError,
    UnknownSchemeError,
    UnmetNeedError,
    UnsupportedError,
)

SOON = 5.0
FAST = Retry(attempts_max=3, delay=0.0)


def receive(consumer: Any, timeout: float = SOON) -> Any:
    delivery = consumer.receive(timeout=timeout)
    assert delivery is not None, "nothing came"
    return delivery


def send(mq: Any, queue: str, *payloads: Any, **fields: Any) -> None:
    with mq.producer(queue) as producer:
        for payload in payloads:
            producer.send(payload, **fields)


class TestConnecting:
    @pytest.mark.parametrize(
        ("url", "error", "text"),
        [
            ("memry://", UnknownSchemeError, "did you mean memory://?"),
            ("memory://?leese=5", UnknownOptionError, "did you mean 'lease'?"),
            ("memory://?timeout=soon", mqlayer.errors.ConfigError, "'timeout'"),
            ("nonsense", mqlayer.errors.ConfigError, "scheme://"),
        ],
    )
    def test_a_bad_url_is_refused(self, api: Any, url: str, error: type[Exception], text: str) -> None:
        with pytest.raises(error) as caught:
            api.connect(url)
        assert text in str(caught.value)

    def test_an_unmet_need_is_refused_and_a_met_one_is_not(self, api: Any, url: str) -> None:
        with pytest.raises(UnmetNeedError, match="durable"):
            api.connect(url, needs=Needs(durable=True, delay=5.0))
        with api.connect(url, needs=Needs(delay=5.0, topics=True)) as mq:
            assert mq.capabilities.delay is mqlayer.Support.NATIVE

    @pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
    def test_a_timeout_that_means_nothing_is_refused(self, api: Any, url: str, timeout: float) -> None:
        with pytest.raises(ArgumentError):
            api.connect(url, timeout=timeout)

    def test_the_password_is_in_no_text(self, api: Any, fake: Any, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        first = FakeSession()
        url, _ = fake(first)
        texts = []
        mq = api.connect(url, timeout=0.3)
        texts += [repr(mq), str(mq.health())]
        with mq.consumer("q") as consumer:
            first.lose("cut")
            consumer.receive(timeout=0)
        first.every("send", all_unknown)
        producer = mq.producer("q")
        texts += [repr(producer), repr(mq.health())]
        mq.close()
        for call in (lambda: mq.producer("r"), lambda: producer.send("x"), lambda: mq.stats("q")):
            with pytest.raises(ClosedError) as caught:
                call()
            texts.append(str(caught.value))
        texts += [record.getMessage() for record in caplog.records]
        assert len(texts) > 5
        assert not [text for text in texts if "hunter2" in text]


class TestSending:
    def test_a_message_comes_as_it_was_sent(self, mq: Any) -> None:
        with mq.producer("q") as producer, mq.consumer("q") as consumer:
            sent = producer.send(
                {"n": 1}, headers={"tenant": "pbs", "n": 1, "b": b"x"}, correlation_id="c", reply_to="r", priority=5
            )
            delivery = receive(consumer)
            with delivery as message:
                assert (message.id, message.payload) == (sent, {"n": 1})
                assert message.headers == {"tenant": "pbs", "n": 1, "b": b"x"}
                assert (message.correlation_id, message.reply_to, message.priority) == ("c", "r", 5)
                assert message.content_type == "application/json"
            assert (delivery.queue, delivery.topic, delivery.delivery_count) == ("q", None, 1)
            assert not delivery.redelivered
            assert delivery.settled

    @pytest.mark.parametrize("payload", ["text", b"\x00", [1, None], {"a": {"b": 1.5}}, None])
    def test_any_payload(self, mq: Any, payload: Any) -> None:
        with mq.producer("q") as producer, mq.consumer("q") as consumer:
            producer.send(Message(payload, id="mine"))
            with receive(consumer) as message:
                assert (message.payload, message.id) == (payload, "mine")

    def test_ids_are_made_and_differ(self, mq: Any) -> None:
        with mq.producer("q") as producer:
            ids = [producer.send("x") for _ in range(100)]
        assert len(set(ids)) == 100
        assert all(ids)

    def test_a_message_with_fields_beside_it_is_refused(self, mq: Any) -> None:
        with mq.producer("q") as producer, pytest.raises(ArgumentError, match="Message"):
            producer.send(Message("x"), delay=5.0)
        assert mq.stats("q").ready == 0

    @pytest.mark.parametrize(
        ("payload", "fields", "error"),
        [
            (object(), {}, EncodeError),
            (float("nan"), {}, EncodeError),
            ("x", {"headers": {"mq-id": "1"}}, HeaderError),
            ("x", {"headers": {"a": [1]}}, HeaderError),
            ("x", {"delay": -1}, ArgumentError),
            ("x", {"ttl": 1, "delay": 1}, ArgumentError),
            ("x", {"priority": 10}, ArgumentError),
            ("x", {"id": ""}, ArgumentError),
            ("x", {"timeout": -1}, ArgumentError),
            ("x", {"timeout": float("inf")}, ArgumentError),
            ("x", {"delay": None}, ArgumentError),
            ("x", {"delay": ""}, ArgumentError),
            ("x", {"group_id": b""}, ArgumentError),
            ("x", {"content_type": 0}, ArgumentError),
            ("x", {"headers": "a"}, HeaderError),
        ],
    )
    def test_what_cannot_travel_is_refused_and_nothing_leaves(
        self, mq: Any, payload: Any, fields: dict[str, Any], error: type[Exception]
    ) -> None:
        with mq.producer("q") as producer:
            with pytest.raises(error) as caught:
                producer.send(payload, **fields)
            if isinstance(caught.value, SendError):
                assert caught.value.message_id
                assert caught.value.fate is Fate.REFUSED
        assert mq.stats("q").ready == 0

    def test_a_time_beyond_all_measure_is_for_ever(self, mq: Any) -> None:
        with mq.producer("q") as producer, mq.consumer("q") as consumer:
            for timeout in (1e18, 2**63, 10**400):
                producer.send("x", timeout=timeout)
                consumer.receive(timeout=timeout).ack()
                assert mq.stats("q", timeout=timeout).ready == 0

    def test_a_missing_queue_is_both_missing_and_a_refusal(self, mq: Any) -> None:
        producer = mq.producer("q")
        mq.delete("q")
        with pytest.raises(QueueNotFoundError) as caught:
            producer.send("x", id="mine")
        assert isinstance(caught.value, RefusedError)
        assert caught.value.message_id == "mine"

    def test_what_the_backend_lacks_is_refused_before_anything_leaves(self, api: Any) -> None:
        with api.connect("memory://?profile=rabbitmq") as mq, mq.producer("q") as producer:
            for field in ({"priority": 1}, {"group_id": "g"}, {"dedup_id": "d"}):
                with pytest.raises(UnsupportedError):
                    producer.send("x", **field)
            assert mq.stats("q").ready == 0

    def test_only_native_features_where_the_url_says_so(self, api: Any) -> None:
        with api.connect("memory://?profile=sqs") as mq:
            assert mq.capabilities.ttl is mqlayer.Support.EMULATED
        with api.connect("memory://?profile=sqs&require=native") as mq, mq.producer("q") as producer:
            assert mq.capabilities.ttl is mqlayer.Support.UNSUPPORTED
            with pytest.raises(UnsupportedError):
                producer.send("x", ttl=5.0)
            with pytest.raises(UnsupportedError):
                producer.send("x", delay=901.0)

    def test_send_many_names_each_by_its_place(self, mq: Any) -> None:
        items = ["a", object(), Message("c", id="third"), Message("d", headers={"mq-x": 1}, id="fourth"), "e"]
        with mq.producer("q") as producer:
            report = producer.send_many(items)
        assert len(report.ids) == 5
        assert all(report.ids)
        assert (report.ids[2], report.ids[3]) == ("third", "fourth")
        assert {place: type(error) for place, error in report.failures.items()} == {1: EncodeError, 3: HeaderError}
        assert [error.message_id for error in report.failures.values()] == [report.ids[1], report.ids[3]]
        assert mq.stats("q").ready == 3

    def test_send_many_of_nothing(self, mq: Any) -> None:
        with mq.producer("q") as producer:
            report = producer.send_many([])
        assert (report.ids, report.failures) == ([], {})

    def test_submit_and_flush(self, mq: Any) -> None:
        with mq.producer("q") as producer:
            futures = [producer.submit(number) for number in range(50)]
            producer.flush()
            assert all(future.done() or future.result(SOON) for future in futures)
            assert len({future.result(SOON) for future in futures}) == 50
        assert mq.stats("q").ready == 50

    def test_flush_tells_of_failures_once(self, mq: Any) -> None:
        producer = mq.producer("q")
        mq.delete("q")
        futures = [producer.submit("x", id=f"m{number}") for number in range(3)]
        with pytest.raises(ExceptionGroup) as caught:
            producer.flush()
        assert [error.message_id for error in caught.value.exceptions] == ["m0", "m1", "m2"]
        producer.flush()
        for future in futures:
            with pytest.raises(QueueNotFoundError):
                future.result(SOON)

    def test_closing_a_producer_flushes_it(self, mq: Any) -> None:
        producer = mq.producer("q")
        for number in range(20):
            producer.submit(number)
        producer.close()
        assert mq.stats("q").ready == 20
        with pytest.raises(ClosedError):
            producer.send("x")
        producer.close()

    def test_order_is_kept(self, mq: Any) -> None:
        with mq.producer("q") as producer, mq.consumer("q") as consumer:
            producer.send_many(range(200))
            got = []
            while len(got) < 200:
                for delivery in consumer.receive_many(50, timeout=SOON):
                    with delivery as message:
                        got.append(message.payload)
        assert got == list(range(200))


class TestFates:
    """On scripted sessions: what a send says when something goes wrong."""

    def test_unknown_in_flight(self, api: Any, fake: Any) -> None:
        session = FakeSession()
        session.every("send", all_unknown)
        url, _ = fake(session)
        with api.connect(url) as mq, mq.producer("q") as producer:
            with pytest.raises(OutcomeUnknownError) as caught:
                producer.send("x", id="mine", timeout=0.2)
            assert caught.value.message_id == "mine"

    def test_a_send_in_flight_that_the_backend_never_answers_is_unknown(
        self, api: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in ("mqlayer.engine.line", "mqlayer.aio.loop"):
            monkeypatch.setattr(f"{module}.GRACE", 0.1)
        session = FakeSession()
        gate = session.gate("send")
        url, _ = fake(session)
        with api.connect(url) as mq:
            producer = mq.producer("q")
            with pytest.raises(OutcomeUnknownError):
                producer.send("x", timeout=0.1)
            gate.open()

    def test_behind_a_stuck_send_it_never_left(self, api: Any, fake: Any) -> None:
        session = FakeSession()
        gate = session.gate("send")
        url, _ = fake(session)
        with api.connect(url) as mq:
            producer = mq.producer("q")
            stuck = producer.submit("first")
            gate.wait_entered()
            with pytest.raises(NotSentError) as caught:
                producer.send("second", id="mine", timeout=0.1)
            assert caught.value.message_id == "mine"
            assert caught.value.fate is Fate.NOT_SENT
            gate.open()
            assert stuck.result(SOON)

    def test_sent_again_under_the_same_id(self, api: Any, fake: Any) -> None:
        first, second = FakeSession(), FakeSession()
        first.on("send", mqlayer.errors.ConnectionLostError("cut"))
        url, _ = fake(first, second)
        with api.connect(url) as mq, mq.producer("q") as producer:
            assert producer.send("x", id="mine") == "mine"
        assert [(message.id, message.trail.resent) for _, message in second.sent] == [("mine", 1)]
        assert [call[0] for call in second.named("declare")] == ["q"]

    def test_a_batch_fails_in_part(self, api: Any, fake: Any) -> None:
        session = FakeSession()
        gate = session.gate("send")
        session.on("send", failing({1: RefusedError("full")}))
        url, _ = fake(session)
        with api.connect(url) as mq, mq.producer("q") as producer:
            producer.submit("holds the line up")
            gate.wait_entered()
            with in_thread(lambda: producer.send_many(["a", "b", "c"])) as sending:
                while len(mq_lines(mq)) < 3:
                    time.sleep(0.001)
                gate.open()
                report = sending.result()
        assert set(report.failures) == {1}
        assert report.failures[1].message_id == report.ids[1]

    def test_a_defect_of_the_backend_leaves_nobody_waiting(
        self, api: Any, fake: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
        sender, receiver = FakeSession(), FakeSession()
        gate = sender.gate("send", ZeroDivisionError("a defect"))
        url, _ = fake(sender, receiver)
        mq = api.connect(url)
        producer, consumer = mq.producer("q"), mq.consumer("q")
        futures = [producer.submit("x") for _ in range(5)]
        gate.wait_entered()
        receiver.on("receive", ZeroDivisionError("a defect"))
        with pytest.raises(mqlayer.errors.ConnectionLostError, match="defect"):
            consumer.receive(timeout=PATIENCE)
        gate.open()
        for future in futures:
            assert isinstance(future.exception(SOON), SendError)
        with pytest.raises(NotSentError, match="defect") as caught:
            producer.send("x", id="mine")
        assert caught.value.message_id == "mine"
        with pytest.raises(mqlayer.errors.ConnectionLostError, match="defect"):
            mq.stats("q")
        mq.close()


def mq_lines(mq: Any) -> Any:
    """What waits in the sender's queue."""
    return getattr(mq, "inner", mq)._core.engine.sender._outbox._queue


class TestReceiving:
    def test_nothing_there(self, mq: Any) -> None:
        with mq.consumer("q") as consumer:
            assert consumer.receive(timeout=0) is None
            assert consumer.receive(timeout=0.01) is None
            assert consumer.receive_many(5, timeout=0) == []

    def test_zero_asks_once(self, mq: Any) -> None:
        send(mq, "q", "x")
        with mq.consumer("q") as consumer:
            with receive(consumer, 0) as message:
                assert message.payload == "x"
            assert consumer.receive(timeout=0) is None

    def test_it_waits_for_what_comes(self, mq: Any) -> None:
        with mq.consumer("q") as consumer, in_thread(lambda: consumer.receive()) as waiting:
            send(mq, "q", "x")
            with waiting.result() as message:
                assert message.payload == "x"

    def test_many_come_as_soon_as_one_is_there(self, mq: Any) -> None:
        with mq.consumer("q") as consumer:
            send(mq, "q", "a")
            first = consumer.receive_many(100, timeout=SOON)
            assert [delivery.message.payload for delivery in first] == ["a"]

    @pytest.mark.parametrize("limit", [0, -1, 10_001, 1.5, True, "3"])
    def test_a_limit_that_means_nothing_is_refused(self, mq: Any, limit: Any) -> None:
        with mq.consumer("q") as consumer, pytest.raises(ArgumentError):
            consumer.receive_many(limit, timeout=0)

    @pytest.mark.parametrize("timeout", [-1, float("nan"), "1"])
    def test_a_timeout_that_means_nothing_is_refused(self, mq: Any, timeout: float) -> None:
        with mq.consumer("q") as consumer, pytest.raises(ArgumentError):
            consumer.receive(timeout=timeout)

    def test_iteration_ends_when_the_consumer_closes(self, mq: Any) -> None:
        send(mq, "q", *range(3))
        consumer = mq.consumer("q")
        seen: list[int] = []
        third = threading.Event()

        def consume() -> None:
            for delivery in consumer:
                with delivery as message:
                    seen.append(message.payload)
                if len(seen) == 3:
                    third.set()

        with in_thread(consume) as consuming:
            assert third.wait(PATIENCE)
            before = time.monotonic()
            consumer.close()
            consuming.thread.join(PATIENCE)
            assert time.monotonic() - before < 5.0  # a second is the promise; a busy machine gets more
        assert seen == [0, 1, 2]

    @pytest.mark.parametrize("how", ["consumer", "connection", "stop"])
    def test_a_waiting_receive_hears_of_the_end(self, api: Any, url: str, how: str) -> None:
        mq = api.connect(url)
        consumer = mq.consumer("q")
        with in_thread(lambda: consumer.receive()) as waiting:
            {"consumer": consumer.close, "connection": mq.close, "stop": consumer.stop}[how]()
            with pytest.raises(ClosedError):
                waiting.result()
        with pytest.raises(ClosedError):
            consumer.receive(timeout=0)
        mq.close()

    def test_several_queues(self, mq: Any) -> None:
        with mq.consumer("busy", "idle", "other") as consumer:
            send(mq, "busy", *range(20))
            send(mq, "other", "o")
            got = []
            while len(got) < 21:
                with receive(consumer) as message:
                    got.append(message.payload)
            assert sorted(got, key=str) == sorted([*range(20), "o"], key=str)
            assert [payload for payload in got if payload != "o"] == list(range(20))

    @pytest.mark.parametrize(
        "arguments",
        [
            ((), {}),
            (("q", "q"), {}),
            (("q",), {"topic": "t"}),
            (("q",), {"group": "g"}),
            ((), {"topic": "t", "group": ""}),
            (("",), {}),
            (("q",), {"prefetch": 0}),
            (("q",), {"lease": 0}),
            (("q",), {"hold_max": -1}),
            (("q",), {"dead_letter": "q"}),
            (("q",), {"dead_letter": ""}),
            (("q",), {"dead_letter": b"dead"}),
            (("q",), {"retry": 5}),
            (("q",), {"lease": "1"}),
            (("q",), {"hold_max": None}),
        ],
    )
    def test_a_consumer_that_means_nothing_is_refused(self, mq: Any, arguments: Any) -> None:
        queues, options = arguments
        with pytest.raises(ArgumentError):
            mq.consumer(*queues, **options)


class TestSettling:
    def test_a_clean_exit_acks(self, mq: Any) -> None:
        send(mq, "q", "x")
        with mq.consumer("q") as consumer:
            with receive(consumer):
                pass_by()
            assert (mq.stats("q").ready, mq.stats("q").in_flight) == (0, 0)
            assert mq.health().settled == 1

    def test_an_error_gives_back_and_is_raised(self, mq: Any, caplog: pytest.LogCaptureFixture) -> None:
        send(mq, "q", "x")
        with mq.consumer("q", retry=FAST) as consumer:
            with pytest.raises(ZeroDivisionError), receive(consumer):
                raise ZeroDivisionError("oh")
            again = receive(consumer)
            assert (again.delivery_count, again.redelivered, again.message.failures) == (2, True, 1)
            assert not again.suspect
            again.ack()
        failed = [record for record in caplog.records if "failed" in record.getMessage()]
        assert failed[0].exc_info is not None

    def test_exhausted_goes_to_the_dead_letters_whole(self, mq: Any) -> None:
        send(mq, "q", Message({"n": 1}, id="mine", headers={"h": 1}, correlation_id="c", dedup_id="d", ttl=3600))
        with mq.consumer("q", retry=FAST) as consumer, mq.consumer("q.dead", retry=FAST) as dead:
            for _ in range(3):
                with pytest.raises(ValueError, match="bad"), receive(consumer):
                    raise ValueError("bad")
            assert consumer.receive(timeout=0) is None
            delivery = receive(dead)
            message = delivery.message
            assert (message.id, message.payload, message.headers) == ("mine", {"n": 1}, {"h": 1})
            assert (message.correlation_id, message.expires_at) == ("c", None)
            assert (message.dead_letter_reason, message.dead_letter_origin) == ("ValueError: bad", "q")
            assert (message.dead_letter_count, delivery.delivery_count) == (3, 1)
            delivery.ack()

    @pytest.mark.parametrize("by", ["consumer", "queue", "default"])
    def test_where_dead_letters_go(self, mq: Any, by: str) -> None:
        mq.declare("q", dead_letter="of-queue" if by == "queue" else None)
        options = {"dead_letter": "of-consumer"} if by == "consumer" else {}
        target = {"consumer": "of-consumer", "queue": "of-queue", "default": "q.dead"}[by]
        send(mq, "q", "x")
        with mq.consumer("q", **options) as consumer:
            receive(consumer).reject("no use")
        with mq.consumer(target) as dead:
            assert receive(dead).message.dead_letter_reason == "no use"

    def test_without_dead_letters_nothing_is_dropped(self, mq: Any) -> None:
        send(mq, "q", "x")
        retry = Retry(attempts_max=1, delay=0.0, delay_max=0.05)
        with mq.consumer("q", retry=retry, dead_letter=None) as consumer:
            for count in range(1, 4):
                delivery = receive(consumer)
                assert delivery.delivery_count == count
                with pytest.raises(ValueError, match="bad"), delivery:
                    raise ValueError("bad")
            receive(consumer).reject("no use")
            receive(consumer).ack()

    def test_a_dead_letter_that_cannot_be_made_is_tried_again_after_a_pause(self, api: Any, url: str) -> None:
        with api.connect(f"{url}?declare=never") as mq:
            mq.declare("q")
            send(mq, "q", "x")
            with mq.consumer("q", retry=Retry(attempts_max=1)) as consumer:
                with pytest.raises(ValueError, match="bad"), receive(consumer):
                    raise ValueError("bad")  # and q.dead is missing
                assert consumer.receive(timeout=0.05) is None
                assert mq.stats("q").delayed == 1

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_a_shutdown_counts_no_failure(self, mq: Any, error: type[BaseException]) -> None:
        send(mq, "q", "x")
        with mq.consumer("q") as consumer:
            with pytest.raises(error), receive(consumer):
                raise error
            again = receive(consumer)
            assert (again.delivery_count, again.message.failures) == (1, 0)
            again.ack()

    def test_settled_by_hand_the_exit_does_nothing(self, mq: Any) -> None:
        send(mq, "q", "x")
        with mq.consumer("q") as consumer:
            delivery = receive(consumer)
            with pytest.raises(ZeroDivisionError), delivery:
                fail(delivery.ack)
            assert mq.stats("q").ready == mq.stats("q").in_flight == 0
            assert mq.health().settled == 1

    @pytest.mark.parametrize("second", ["ack", "nack", "reject", "extend"])
    def test_twice_is_an_error(self, mq: Any, second: str) -> None:
        send(mq, "q", "x")
        with mq.consumer("q") as consumer:
            delivery = receive(consumer)
            delivery.ack()
            arguments = {"reject": ["why"], "extend": [5.0]}.get(second, [])
            with pytest.raises(AlreadySettledError):
                getattr(delivery, second)(*arguments)

    def test_of_many_threads_one_settles(self, url: str) -> None:
        with mqlayer.connect(url) as mq, mq.producer("q") as producer, mq.consumer("q") as consumer:
            for _ in range(50):
                producer.send("x")
                delivery = consumer.receive(timeout=SOON)
                assert delivery is not None
                start = threading.Barrier(4)

                def ack(delivery: mqlayer.Delivery = delivery, start: threading.Barrier = start) -> str:
                    start.wait()
                    try:
                        delivery.ack()
                    except AlreadySettledError as error:
                        return type(error).__name__
                    return ""

                with ThreadPoolExecutor(4) as pool:
                    outcomes = sorted(future.result() for future in [pool.submit(ack) for _ in range(4)])
                assert outcomes == ["", *["AlreadySettledError"] * 3]
            assert mq.health().settled == 50

    def test_an_undecodable_body_is_rejected_at_once(self, mq: Any) -> None:
        send(mq, "q", b"{", content_type="application/json")
        with mq.consumer("q") as consumer, mq.consumer("q.dead") as dead:
            with pytest.raises(UndecodableError), receive(consumer) as message:
                _ = message.payload
            delivery = receive(dead)
            assert delivery.message.body == b"{"
            assert "UndecodableError" in delivery.message.dead_letter_reason
            delivery.ack()

    def test_a_reason_of_any_length_travels_in_one_line(self, mq: Any) -> None:
        send(mq, "q", "x")
        with mq.consumer("q") as consumer:
            delivery = receive(consumer)
            with pytest.raises(ArgumentError):
                delivery.reject(b"bad")
            delivery.reject("bad\ud800\n" + "very " * 100_000)
        (dead,) = mq.peek("q.dead")
        assert dead.dead_letter_reason.startswith("bad? very very")
        assert len(dead.dead_letter_reason) == 500

    def test_nack_by_hand_always_goes_back(self, mq: Any) -> None:
        send(mq, "q", "x")
        with mq.consumer("q", retry=Retry(attempts_max=1), dead_letter=None) as consumer:
            for count in range(1, 5):
                delivery = receive(consumer)
                assert delivery.delivery_count == count
                delivery.nack()
            receive(consumer).ack()

    def test_nack_waits_on_the_broker(self, mq: Any) -> None:
        send(mq, "q", "x")
        with mq.consumer("q") as consumer:
            receive(consumer).nack(delay=0.2)
            assert consumer.receive(timeout=0.05) is None
            assert mq.stats("q").delayed == 1
            receive(consumer).ack()

    @pytest.mark.parametrize(("verb", "value"), [("nack", -1), ("nack", float("nan")), ("extend", 0), ("extend", -1)])
    def test_a_time_that_means_nothing_is_refused_and_nothing_is_settled(
        self, mq: Any, verb: str, value: float
    ) -> None:
        send(mq, "q", "x")
        with mq.consumer("q") as consumer:
            delivery = receive(consumer)
            with pytest.raises(ArgumentError):
                delivery.nack(delay=value) if verb == "nack" else delivery.extend(value)
            delivery.extend(60.0)
            delivery.ack()

    def test_a_stale_ack_never_reaches_another_consumers_copy(self, api: Any, url: str) -> None:
        with api.connect(url) as mq:
            send(mq, "q", "x")
            with mq.consumer("q", lease=0.15, hold_max=0) as first, mq.consumer("q") as second:
                lost = receive(first)
                first.stop()  # else it may be handed the message once more
                found = receive(second)
                with pytest.raises(StaleDeliveryError):
                    lost.ack()
                assert found.delivery_count == 2
                assert found.suspect
                found.ack()
                assert mq.stats("q").in_flight == 0

    def test_a_stale_delivery_at_the_end_of_its_block_is_logged_and_counted_once(
        self, api: Any, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with api.connect(url) as mq:
            send(mq, "q", "x")
            with mq.consumer("q", lease=0.1, hold_max=0) as first, mq.consumer("q") as second:
                lost = receive(first)
                first.stop()
                with lost:
                    receive(second).ack()
                assert mq.health().settle_failures == 1
            assert "not settled" in caplog.text

    def test_a_handlers_error_is_raised_though_it_cannot_be_settled(self, api: Any, url: str) -> None:
        with api.connect(url) as mq:
            send(mq, "q", "x")
            with mq.consumer("q", lease=0.1, hold_max=0) as first, mq.consumer("q") as second:
                lost = receive(first)
                first.stop()
                with pytest.raises(ZeroDivisionError), lost:
                    fail(lambda: receive(second).ack())
                assert mq.health().settle_failures == 1

    def test_a_settlement_after_the_consumer_closed_is_counted(self, mq: Any) -> None:
        send(mq, "q", "x")
        consumer = mq.consumer("q")
        delivery = receive(consumer)
        consumer.close(timeout=0.1)
        with delivery:
            pass_by()
        assert mq.health().settle_failures == 1

    def test_a_settlement_that_the_broker_refuses_is_counted_once(self, api: Any, fake: Any) -> None:
        from fakes import incoming

        session = FakeSession()
        url, _ = fake(FakeSession(), session)
        with api.connect(url) as mq, mq.consumer("q") as consumer:
            session.deliver(incoming("m1", lease_until=time.monotonic() + 60))
            delivery = receive(consumer)
            session.on("settle", failing({0: StaleDeliveryError("gone")}))
            with delivery:
                pass_by()
            assert mq.health().settle_failures == 1

    def test_after_the_consumer_closed_everything_is_stale(self, mq: Any) -> None:
        send(mq, "q", "x")
        consumer = mq.consumer("q")
        delivery = receive(consumer)
        consumer.close()
        with pytest.raises(StaleDeliveryError):
            delivery.ack()
        assert mq.stats("q").ready == 1
        with mq.consumer("q") as other:
            receive(other).ack()

    def test_a_lease_is_renewed_by_itself(self, api: Any, url: str) -> None:
        with api.connect(url) as mq:
            send(mq, "q", "x")
            with mq.consumer("q", lease=0.3) as first, mq.consumer("q") as second:
                held = receive(first)
                assert second.receive(timeout=0.8) is None
                held.ack()

    def test_a_delivery_says_what_it_is(self, mq: Any) -> None:
        send(mq, "q", Message("x", id="mine"))
        with mq.consumer("q") as consumer:
            delivery = receive(consumer)
            assert repr(delivery) == "<delivery 1 of message mine from 'q'>"
            assert not delivery.settled
            delivery.ack()


def fail(first: Any) -> None:
    """A handler that does something, and then fails."""
    first()
    raise ZeroDivisionError


def pass_by() -> None:
    """A handler with nothing to do."""


class TestPoison:
    def test_what_keeps_taking_its_worker_down_is_not_handed_over_again(self, api: Any, url: str) -> None:
        with api.connect(url) as mq:
            send(mq, "q", "poison")
            for count in range(1, 4):
                crashing = api.connect(url)
                consumer = crashing.consumer("q", retry=FAST)
                assert receive(consumer).delivery_count == count
                crash(consumer)
                assert mq.stats("q").ready == 1
                crashing.close()
            with mq.consumer("q", retry=FAST) as consumer, mq.consumer("q.dead") as dead:
                assert consumer.receive(timeout=0.1) is None
                delivery = receive(dead)
                assert (
                    delivery.message.dead_letter_count >= 3
                )  # each lease that ended may have been followed by another
                assert "times without an answer" in delivery.message.dead_letter_reason
                delivery.ack()

    def test_without_dead_letters_it_waits_its_longest(self, api: Any, url: str) -> None:
        retry = Retry(attempts_max=1, delay_max=0.2)
        with api.connect(url) as mq:
            send(mq, "q", "poison")
            crashing = api.connect(url)
            consumer = crashing.consumer("q")
            receive(consumer)
            crash(consumer)
            crashing.close()
            with mq.consumer("q", retry=retry, dead_letter=None) as consumer:
                assert consumer.receive(timeout=0.05) is None
                assert mq.stats("q").delayed == 1
                receive(consumer).ack()

    def test_one_that_goes_to_the_dead_letters_keeps_nobody_from_what_came_with_it(self, api: Any, fake: Any) -> None:
        session = FakeSession()
        url, _ = fake(FakeSession(), session)
        session.deliver(incoming("poison", "q", count=3), incoming("fine", "r"))
        gate = session.gate("unsubscribe")  # the owner has seen that one is too many, and has not given it back
        with api.connect(url) as mq, mq.consumer("q", "r", retry=Retry(attempts_max=1)) as consumer:
            began = time.monotonic()
            try:
                assert receive(consumer).message.id == "fine"
                assert time.monotonic() - began < SOON / 2, "found at the end of its timeout only"
            finally:
                gate.open()


def crash(consumer: Any) -> None:
    """The consumer's connection is cut, as when its process dies: what it holds goes back, and the broker counts it."""
    getattr(consumer, "inner", consumer)._core.line._session.abort()


class TestQueues:
    def test_what_a_queue_holds(self, mq: Any) -> None:
        send(mq, "q", "a", "b")
        send(mq, "q", "late", delay=60.0)
        with mq.consumer("q") as consumer:
            delivery = receive(consumer)
            assert mq.stats("q") == mqlayer.Stats(ready=1, in_flight=1, delayed=1)
            delivery.ack()

    def test_peek_changes_nothing(self, mq: Any) -> None:
        send(mq, "q", "a", "b", "c")
        assert [message.payload for message in mq.peek("q", 2)] == ["a", "b"]
        assert mq.stats("q").ready == 3
        with mq.consumer("q") as consumer:
            delivery = receive(consumer)
            assert (delivery.message.payload, delivery.delivery_count) == ("a", 1)
            delivery.ack()

    def test_purge_and_delete(self, mq: Any) -> None:
        send(mq, "q", "a", "b")
        assert mq.purge("q") == 2
        assert mq.stats("q").ready == 0
        mq.delete("q")
        mq.delete("q")
        with pytest.raises(QueueNotFoundError):
            mq.stats("q")

    def test_declare_compares_and_the_others_do_not(self, mq: Any) -> None:
        mq.declare("q", dead_letter="d", ordered=True)
        mq.declare("q", dead_letter="d", ordered=True)
        with pytest.raises(QueueMismatchError):
            mq.declare("q")
        mq.producer("q")
        mq.consumer("q").close()

    def test_declare_never_makes_nothing(self, api: Any, url: str) -> None:
        with api.connect(f"{url}?declare=never") as mq:
            for call in (mq.producer, mq.consumer):
                with pytest.raises(QueueNotFoundError):
                    call("missing")
            mq.declare("q")
            mq.producer("q").send("x")

    def test_a_temporary_queue_goes_with_its_connection(self, api: Any, url: str) -> None:
        with api.connect(url) as watching:
            with api.connect(url) as mq:
                mq.declare("q", temporary=True)
                assert watching.stats("q").ready == 0
            with pytest.raises(QueueNotFoundError):
                watching.stats("q")

    @pytest.mark.parametrize("name", ["", None, 5, "\ud800"])
    def test_a_name_that_nobody_can_have_is_refused(self, mq: Any, name: Any) -> None:
        for call in (mq.producer, mq.consumer, mq.declare, mq.stats, mq.peek, mq.purge, mq.delete):
            with pytest.raises(ArgumentError):
                call(name)

    def test_a_queue_deleted_under_a_consumer_is_no_hang(self, mq: Any) -> None:
        with mq.consumer("q") as consumer:
            mq.delete("q")
            try:
                assert consumer.receive(timeout=0.05) is None
            except QueueNotFoundError:
                assert mq.capabilities.checks_queues


class TestTopics:
    def test_each_group_gets_a_copy(self, mq: Any) -> None:
        with mq.consumer(topic="news", group="a") as a, mq.consumer(topic="news", group="b") as b:
            with mq.producer(topic="news") as producer:
                producer.send("x")
            for consumer in (a, b):
                delivery = receive(consumer)
                assert (delivery.topic, delivery.message.payload) == ("news", "x")
                delivery.ack()

    def test_a_group_is_durable_and_shared(self, mq: Any) -> None:
        mq.consumer(topic="news", group="a").close()
        with mq.producer(topic="news") as producer:
            producer.send_many(["x", "y"])
        with mq.consumer(topic="news", group="a") as one, mq.consumer(topic="news", group="a") as two:
            first, second = receive(one), receive(two)
            assert {first.message.payload, second.message.payload} == {"x", "y"}
            first.ack()
            second.ack()

    def test_without_a_group_it_begins_now_and_goes_with_the_consumer(self, mq: Any) -> None:
        with mq.producer(topic="news") as producer:
            producer.send("nobody listens")
            with mq.consumer(topic="news") as consumer:
                producer.send("x")
                delivery = receive(consumer)
                assert delivery.message.payload == "x"
                delivery.ack()
                queue = delivery.queue
            with pytest.raises(QueueNotFoundError):
                mq.stats(queue)

    @pytest.mark.parametrize("arguments", [((), {}), (("q",), {"topic": "t"}), ((), {"topic": ""})])
    def test_a_producer_of_neither_or_both_is_refused(self, mq: Any, arguments: Any) -> None:
        names, options = arguments
        with pytest.raises(ArgumentError):
            mq.producer(*names, **options)


class TestThreads:
    def test_eight_threads_share_one_producer_and_one_consumer(self, mq: Any) -> None:
        each, threads = 60, 8
        producer, consumer = mq.producer("q"), mq.consumer("q", prefetch=16)
        seen: list[str] = []
        done = threading.Event()

        def produce(worker: int) -> list[str]:
            ids = [producer.send(number) for number in range(each // 3)]
            ids += [future.result(SOON) for future in [producer.submit(number) for number in range(each // 3)]]
            return ids + producer.send_many(range(each // 3)).ids

        def consume(worker: int) -> None:
            while not done.is_set():
                for delivery in consumer.receive_many(1 + worker, timeout=0.05):
                    with delivery as message:
                        seen.append(message.id)
                if len(seen) >= each * threads:
                    done.set()

        with ThreadPoolExecutor(2 * threads) as pool:
            sending = [pool.submit(produce, worker) for worker in range(threads)]
            receiving = [pool.submit(consume, worker) for worker in range(threads)]
            sent = [message_id for future in sending for message_id in future.result(60)]
            for future in receiving:
                future.result(60)
        assert sorted(seen) == sorted(sent)
        assert mq.stats("q").ready == mq.stats("q").in_flight == 0
