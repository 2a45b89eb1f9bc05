"""What goes wrong between us and SQS, by a service that answers by script."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqs_sessions import Counted, T, answered, messages, open_backend, refused, some_credentials

import mqlayer
from mqlayer.backends.sqs import SQSBackend
from mqlayer.backends.sqs_service import fate_of, translated
from mqlayer.backends.sqs_session import SQSSession
from mqlayer.driver import Ack, Outgoing
from mqlayer.errors import (
    AuthenticationError,
    ConfigError,
    ConnectFailedError,
    ConnectionLostError,
    MessageTooLargeError,
    MQError,
    NotSentError,
    OutcomeUnknownError,
    QueueNotFoundError,
    RefusedError,
    StaleDeliveryError,
    ThrottledError,
    UnknownOptionError,
    UnroutableError,
)
from mqlayer.testing.ports import LOOPBACK, free_port

SECRET = "test-secret"


@pytest.fixture(autouse=True)
def credentials() -> Iterator[None]:
    with some_credentials():
        yield


def nobody(when: float) -> None:
    """A look_again that nobody needs."""


class Scripted:
    """A backend whose service is not there; its answers are the test's."""

    def __init__(self, options: str = "") -> None:
        self.backend: SQSBackend = open_backend(f"sqs://nowhere?endpoint=http://{LOOPBACK}:{free_port()}{options}")
        self.service = Counted(self.backend)
        self.answers = self.service.answers
        self.answers["ListQueues"] = lambda params: answered()
        self.answers["GetQueueUrl"] = lambda params: answered(QueueUrl=f"http://x/{params['body']}"[:20])

    def session(self) -> SQSSession:
        session = self.backend.session(T, nobody)
        assert isinstance(session, SQSSession)
        return session


def entries_of(params: dict[str, Any]) -> list[str]:
    import json

    return [entry["Id"] for entry in json.loads(params["body"])["Entries"]]


def kinds(failures: Any) -> dict[int, type[MQError]]:
    return {place: type(error) for place, error in failures.items()}


# --- sends -----------------------------------------------------------------------------------------------------------


def test_each_entry_of_a_200_has_its_own_fate() -> None:
    scripted = Scripted()

    def answer(params: dict[str, Any]) -> Any:
        failed = {
            "1": {"SenderFault": True, "Code": "InvalidMessageContents"},
            "2": {"SenderFault": False, "Code": "InternalError"},
            "3": {"SenderFault": True, "Code": "RequestThrottled"},
            "4": None,
        }
        ids = entries_of(params)
        return answered(
            Successful=[{"Id": id} for id in ids if id not in failed],
            Failed=[{"Id": id, **failed[id]} for id in ids if failed.get(id)],
        )

    scripted.answers["SendMessageBatch"] = answer
    failures = scripted.session().send("q", messages(*"abcdef"), T)
    assert kinds(failures) == {1: RefusedError, 2: OutcomeUnknownError, 3: ThrottledError, 4: OutcomeUnknownError}
    assert failures[1].message_id == "b"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "QueueDoesNotExist", UnroutableError),
        (400, "AWS.SimpleQueueService.NonExistentQueue", UnroutableError),
        (400, "ThrottlingException", ThrottledError),
        (403, "RequestThrottled", ThrottledError),
        (429, "TooManyRequests", ThrottledError),
        (403, "AccessDenied", RefusedError),
        (400, "BatchRequestTooLong", MessageTooLargeError),
        (400, "InvalidParameterValue", RefusedError),
        (500, "InternalError", OutcomeUnknownError),
        (503, "ServiceUnavailable", OutcomeUnknownError),
    ],
)
def test_a_refused_request_is_the_fate_of_all_its_messages(status: int, code: str, kind: type[MQError]) -> None:
    scripted = Scripted()
    scripted.answers["SendMessageBatch"] = lambda params: refused(status, code)
    assert kinds(scripted.session().send("q", messages(*"ab"), T)) == {0: kind, 1: kind}


def test_what_could_not_connect_was_not_sent_and_ends_the_session() -> None:
    scripted = Scripted()
    session = scripted.session()
    assert kinds(session.send("q", messages("a"), T)) == {0: NotSentError}
    with pytest.raises(ConnectionLostError):
        session.receive(0, 0.0)
    assert kinds(session.send("q", messages("a"), T)) == {0: NotSentError}


def test_what_has_no_answer_in_time_is_unknown_and_what_had_not_begun_was_not_sent() -> None:
    scripted = Scripted("&fifo=true")
    gate = threading.Event()

    def answer(params: dict[str, Any]) -> Any:
        gate.wait(T)
        return answered(Successful=[{"Id": id} for id in entries_of(params)])

    scripted.answers["SendMessageBatch"] = answer
    session = scripted.session()
    failures = session.send("q", [Outgoing(str(n), b"x", group_id="g") for n in range(25)], 0.3)
    gate.set()
    assert kinds(failures) == {
        **dict.fromkeys(range(10), OutcomeUnknownError),
        **dict.fromkeys(range(10, 25), NotSentError),
    }


def test_a_group_does_not_overtake_itself() -> None:
    scripted = Scripted("&fifo=true")
    scripted.answers["SendMessageBatch"] = lambda params: refused(400, "ThrottlingException")
    failures = scripted.session().send("q", [Outgoing(str(n), b"x", group_id="g") for n in range(25)], T)
    assert kinds(failures) == {**dict.fromkeys(range(10), ThrottledError), **dict.fromkeys(range(10, 25), NotSentError)}
    assert scripted.service.requests["SendMessageBatch"] == 1


def test_a_throttled_send_waits_and_goes_on() -> None:
    scripted = Scripted()
    answers = [refused(400, "ThrottlingException")] * 3

    def answer(params: dict[str, Any]) -> Any:
        return answers.pop() if answers else answered(Successful=[{"Id": id} for id in entries_of(params)])

    scripted.answers["SendMessageBatch"] = answer
    with connected(scripted) as mq:
        begun = time.monotonic()
        mq.producer("q").send("x")
        assert time.monotonic() - begun > 0.1
        assert scripted.service.requests["SendMessageBatch"] == 4


def connected(scripted: Scripted) -> mqlayer.Connection:
    class Factory:
        options = type(scripted.backend._options)

        def __new__(cls, url: object, options: object, *, clock: object) -> Any:  # type: ignore[misc]
            return scripted.backend

    mqlayer.register_backend("scripted", Factory)  # type: ignore[arg-type]
    return mqlayer.connect("scripted://x")


# --- receives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [(400, "ThrottlingException"), (400, "OverLimit"), (500, "InternalError")])
def test_a_poll_that_is_throttled_is_made_again_later(status: int, code: str) -> None:
    scripted = Scripted()
    answers = [refused(status, code)] * 2

    def answer(params: dict[str, Any]) -> Any:
        return answers.pop() if answers else answered(Messages=[message("a")])

    scripted.answers["ReceiveMessage"] = answer
    scripted.answers["DeleteMessageBatch"] = lambda params: answered(
        Successful=[{"Id": id} for id in entries_of(params)]
    )
    with connected(scripted) as mq, mq.consumer("q") as consumer:
        delivery = consumer.receive(timeout=T)
        assert delivery is not None
        answers.extend([refused(400, "ThrottlingException")] * 50)
        delivery.ack()
        assert scripted.service.requests["ReceiveMessage"] <= 4


def message(id: str) -> dict[str, Any]:
    return {"MessageId": id, "ReceiptHandle": f"r-{id}", "Body": id, "Attributes": {"ApproximateReceiveCount": "1"}}


def test_a_refused_poll_says_why() -> None:
    scripted = Scripted()
    scripted.answers["ReceiveMessage"] = lambda params: refused(403, "AccessDenied")
    session = scripted.session()
    session.subscribe("q", 1, None, T)
    with pytest.raises(AuthenticationError):
        session.receive(1, T)


def test_a_queue_that_is_gone_is_told() -> None:
    scripted = Scripted()
    scripted.answers["ReceiveMessage"] = lambda params: refused(400, "QueueDoesNotExist")
    session = scripted.session()
    session.subscribe("q", 1, None, T)
    with pytest.raises(QueueNotFoundError):
        session.receive(1, T)


@pytest.mark.parametrize(
    ("failed", "kind"),
    [
        ({"SenderFault": True, "Code": "ReceiptHandleIsInvalid"}, StaleDeliveryError),
        ({"SenderFault": True, "Code": "InvalidParameterValue"}, StaleDeliveryError),
        ({"SenderFault": False, "Code": "InternalError"}, MQError),
        ({"SenderFault": True, "Code": "RequestThrottled"}, ThrottledError),
    ],
)
def test_each_ack_has_its_own_fate(failed: dict[str, Any], kind: type[MQError]) -> None:
    scripted = Scripted()
    polls = [answered(Messages=[message("a"), message("b")])]
    scripted.answers["ReceiveMessage"] = lambda params: polls.pop() if polls else answered()
    scripted.answers["DeleteMessageBatch"] = lambda params: answered(
        Successful=[{"Id": "0"}], Failed=[{"Id": "1", **failed}]
    )
    session = scripted.session()
    session.subscribe("q", 10, None, T)
    held = session.receive(10, T)
    failures = session.settle([Ack(one) for one in held], T)
    assert list(failures) == [1]
    assert isinstance(failures[1], kind)
    assert isinstance(session.settle([Ack(held[0])], T)[0], StaleDeliveryError), "it was settled before"


# --- connecting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "InvalidClientTokenId", AuthenticationError),
        (403, "SignatureDoesNotMatch", AuthenticationError),
        (403, "ExpiredToken", AuthenticationError),
        (500, "InternalError", ConnectFailedError),
        (403, "AccessDenied", None),
    ],
)
def test_connecting_tells_who_is_unknown_from_who_may_not_list(
    status: int, code: str, kind: type[MQError] | None
) -> None:
    scripted = Scripted()
    scripted.answers["ListQueues"] = lambda params: refused(status, code, f"signed with {SECRET}")
    if kind is None:
        scripted.session()
        return
    with pytest.raises(kind) as caught:
        scripted.session()
    assert SECRET not in str(caught.value) or kind is ConnectFailedError


def test_nobody_there_is_a_failed_connection() -> None:
    with pytest.raises(ConnectFailedError) as caught:
        mqlayer.connect(f"sqs://x?endpoint=http://{LOOPBACK}:{free_port()}").close()
    assert SECRET not in repr(caught.value)


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(AuthenticationError, match="AWS_ACCESS_KEY_ID"):
        mqlayer.connect("sqs://eu-central-1").close()


@pytest.mark.parametrize(
    ("url", "error", "word"),
    [
        ("sqs://user:password@eu-central-1", ConfigError, "credentials"),
        ("sqs://", ConfigError, "region"),
        ("sqs://a,b", ConfigError, "region"),
        ("sqs://eu-central-1:80", ConfigError, "region"),
        ("sqs://eu-central-1/queue", ConfigError, "region"),
        ("sqs://eu-central-1?wait=21", ConfigError, "wait"),
        ("sqs://eu-central-1?lease=0", ConfigError, "lease"),
        ("sqs://eu-central-1?lease=43201", ConfigError, "lease"),
        ("sqs://eu-central-1?endpoint=localhost:9324", ConfigError, "endpoint"),
        ("sqs://eu-central-1?size_max=1", ConfigError, "size_max"),
        ("sqs://eu-central-1?endpont=x", UnknownOptionError, "endpoint"),
    ],
)
def test_wrong_urls(url: str, error: type[MQError], word: str) -> None:
    with pytest.raises(error, match=word) as caught:
        mqlayer.connect(url).close()
    assert "password" not in str(caught.value) or word == "credentials"


def test_an_error_holds_neither_a_request_nor_a_connection() -> None:
    from botocore.exceptions import ConnectionClosedError

    def fail() -> None:
        raise ConnectionClosedError(request={"Authorization": SECRET}, endpoint_url="http://x")

    with pytest.raises(ConnectionLostError) as caught:
        translated("testing", fail)
    assert type(caught.value.__cause__) is ConnectionError
    assert caught.value.__context__ is None


def test_a_fate_keeps_its_cause() -> None:
    error = ConnectFailedError("no")
    assert fate_of(error, "i").__cause__ is error
