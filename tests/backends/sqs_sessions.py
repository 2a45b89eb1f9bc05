"""Sessions on an ElasticMQ of the test's own, a raw client beside them, and a service by script."""

import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from mqlayer.backends.sqs import SQSBackend, SQSFactory
from mqlayer.backends.sqs_session import SQSSession
from mqlayer.clock import SystemClock
from mqlayer.driver import Ack, Declare, Incoming, Outgoing, QueueOptions
from mqlayer.testing.brokers.elasticmq import elasticmq_server, find_elasticmq
from mqlayer.testing.ports import LOOPBACK, free_port
from mqlayer.urls import parse_url, split_options

T = 20.0  # a timeout that is only used up if something is wrong
PLAIN = QueueOptions()
needs_elasticmq = pytest.mark.skipif(
    find_elasticmq() is None and not os.environ.get("CI"), reason="ElasticMQ is not installed"
)


@contextmanager
def some_credentials() -> Iterator[None]:
    """ElasticMQ takes any; boto3 signs nothing without."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test-secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


class ElasticMQ:
    """The one broker of a module, and the sessions of the test that runs."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.server = elasticmq_server(folder / "data", self.port)
        self.endpoint = f"http://{LOOPBACK}:{self.port}"
        self._sessions: list[SQSSession] = []

    def url(self, options: str = "") -> str:
        return f"sqs://elasticmq?endpoint={self.endpoint}{options}"

    def backend(self, options: str = "") -> SQSBackend:
        return open_backend(self.url(options))

    def session(self, options: str = "", backend: SQSBackend | None = None) -> SQSSession:
        session = (backend or self.backend(options)).session(T, nobody)
        assert isinstance(session, SQSSession)
        self._sessions.append(session)
        return session

    def raw(self) -> Any:
        """boto3's own client."""
        return raw_client(self.endpoint)

    def close_sessions(self) -> None:
        while self._sessions:
            self._sessions.pop().close(1.0)


@contextmanager
def running(folder: Path) -> Iterator[ElasticMQ]:
    broker = ElasticMQ(folder)
    with some_credentials(), broker.server:
        yield broker


def raw_client(endpoint: str) -> Any:
    return boto3.client(
        "sqs", endpoint_url=endpoint, region_name="elasticmq", config=Config(retries={"total_max_attempts": 1})
    )


def open_backend(text: str) -> SQSBackend:
    url = parse_url(text)
    [options] = split_options(url.query, SQSFactory.options, scheme=url.scheme)
    backend = SQSFactory(url, options, clock=SystemClock())
    assert isinstance(backend, SQSBackend)
    return backend


class Counted:
    """Counts the requests of a backend's clients, by action; and can answer in the service's place."""

    def __init__(self, backend: SQSBackend) -> None:
        self.requests: Counter[str] = Counter()
        self.answers: dict[str, Callable[[dict[str, Any]], Any]] = {}
        service = backend._ours()
        for client in (service.client, service.poller):
            client.meta.events.register("before-call.sqs", self._answer)

    def _answer(self, model: Any, params: dict[str, Any], **rest: Any) -> Any:
        self.requests[model.name] += 1
        answer = self.answers.get(model.name)
        return None if answer is None else answer(params)


def refused(status: int, code: str, message: str = "") -> Any:
    """An answer of the service to a whole request."""
    return _Http(status), {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }


def answered(**fields: Any) -> Any:
    return _Http(200), {**fields, "ResponseMetadata": {"HTTPStatusCode": 200}}


class _Http:
    def __init__(self, status: int) -> None:
        self.status_code = status


def nobody(when: float) -> None:
    """A look_again that nobody needs."""


def new_queue(session: SQSSession) -> str:
    name = f"q-{uuid.uuid4().hex[:8]}"
    session.declare(name, PLAIN, Declare.ENSURE, T)
    return name


def messages(*ids: str, **fields: Any) -> list[Outgoing]:
    return [Outgoing(id, b"body", **fields) for id in ids]


def receive(session: SQSSession, count: int, timeout: float = T) -> list[Incoming]:
    """That many deliveries, or fewer if no more come in time."""
    found: list[Incoming] = []
    deadline = time.monotonic() + timeout
    while len(found) < count and time.monotonic() < deadline:
        found += session.receive(count - len(found), max(deadline - time.monotonic(), 0.0))
    return found


def drain(session: SQSSession, queue: str) -> list[Incoming]:
    """All that a queue has, acked."""
    session.subscribe(queue, 100, None, T)
    found: list[Incoming] = []
    while batch := session.receive(100, 1.5):
        assert session.settle([Ack(one) for one in batch], T) == {}
        found += batch
    session.unsubscribe(queue, T)
    return found


def ids(found: Sequence[Incoming]) -> list[str | None]:
    return [incoming.message.id for incoming in found]
