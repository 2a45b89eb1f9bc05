"""The columns of our own backends."""

import os
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from mqlayer.testing.brokers import activemq, artemis, elasticmq, rabbitmq
from mqlayer.testing.harness import BackendHarness, Claims, Deviation
from mqlayer.testing.processes import ProcessServer, ServerError

__all__ = [
    "ALL",
    "ActiveMQ",
    "Artemis",
    "Memory",
    "RabbitMQClassic",
    "RabbitMQQuorum",
    "RabbitMQStomp",
    "SQLite",
    "SQSElasticMQ",
    "SQSElasticMQFifo",
    "SQSElasticMQVolatile",
]


class Memory(BackendHarness):
    """``memory://``, which the suite must see lose everything: its own negative control."""

    name = "memory"
    scope = "process"
    claims = Claims(graceful=False, sigkill=False, power_loss=False, queues=False)

    def url(self, datadir: Path, port: int) -> str:
        return f"memory://{datadir.parent.name}-{datadir.name}"


class SQLite(BackendHarness):
    """``sqlite:///``: one file, shared by processes."""

    name = "sqlite"
    scope = "machine"
    claims = Claims(graceful=True, sigkill=True, power_loss=None, queues=True)

    def url(self, datadir: Path, port: int) -> str:
        return f"sqlite:///{datadir / 'queues.db'}"

    def server_version(self) -> str:
        import sqlite3

        return f"SQLite {sqlite3.sqlite_version}"


class RabbitMQQuorum(BackendHarness):
    """RabbitMQ with quorum queues, the default of ``amqp://``."""

    name = "rabbitmq-quorum"
    configuration = "quorum"
    claims = Claims(graceful=True, sigkill=True, power_loss=None, queues=True)
    quick_options = MappingProxyType({"declare_settle": "0"})

    def start(self, datadir: Path, port: int) -> ProcessServer:
        return rabbitmq.rabbitmq_server(datadir, port)

    def url(self, datadir: Path, port: int) -> str:
        return f"amqp://guest:guest@127.0.0.1:{port}/?queue_type={self.configuration}"

    def available(self) -> str | None:
        try:
            metadata.version("pika")
        except metadata.PackageNotFoundError:
            return 'pika is not installed: pip install "mqlayer[rabbitmq]"'
        if rabbitmq.find_rabbitmq() is None:
            return "RabbitMQ is not installed: mqlayer brokers install rabbitmq"
        return None

    def server_version(self) -> str:
        found = rabbitmq.version()
        if found is None:
            raise ServerError("RabbitMQ is not installed")
        return found

    def client_version(self) -> str:
        return f"pika {metadata.version('pika')}"


class RabbitMQClassic(RabbitMQQuorum):
    """RabbitMQ with classic queues: priorities, but no delivery counts."""

    name = "rabbitmq-classic"
    configuration = "classic"


class SQSElasticMQ(BackendHarness):
    """SQS's protocol with standard queues, over ElasticMQ: Amazon's own service is not ours to kill."""

    name = "sqs-elasticmq"
    configuration = "standard"
    claims = Claims(graceful=True, sigkill=True, power_loss=None, queues=True)

    def register(self) -> None:
        # ElasticMQ takes any credentials, and boto3 signs nothing without some.
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            os.environ.setdefault(name, "elasticmq")

    def start(self, datadir: Path, port: int) -> ProcessServer:
        return elasticmq.elasticmq_server(datadir, port)

    def url(self, datadir: Path, port: int) -> str:
        return f"sqs://elasticmq?endpoint=http://127.0.0.1:{port}"

    def available(self) -> str | None:
        try:
            metadata.version("boto3")
        except metadata.PackageNotFoundError:
            return 'boto3 is not installed: pip install "mqlayer[sqs]"'
        if elasticmq.find_elasticmq() is None:
            return "ElasticMQ is not installed: mqlayer brokers install elasticmq"
        return None

    def server_version(self) -> str:
        found = elasticmq.version()
        if found is None:
            raise ServerError("ElasticMQ is not installed")
        return f"SQS API: {found}"

    def client_version(self) -> str:
        return f"boto3 {metadata.version('boto3')}"


class SQSElasticMQFifo(SQSElasticMQ):
    """… with FIFO queues. Not among ``ALL`` yet: see "The server of the tests" in ``docs/backends.md``."""

    name = "sqs-elasticmq-fifo"
    configuration = "fifo"
    deviations = MappingProxyType(
        {
            "F5": Deviation(
                behaviour="ElasticMQ forgets at its end which deduplication ids it has seen, of messages that are deleted",
                seen=r"^sent with the dedup_ids of .* which were acked before the kill",
            )
        }
    )

    def url(self, datadir: Path, port: int) -> str:
        return f"{super().url(datadir, port)}&fifo=true"


class SQSElasticMQVolatile(SQSElasticMQ):
    """ElasticMQ as it comes, which writes half a second late: a kill loses what was answered. A negative control."""

    name = "sqs-elasticmq-volatile"
    configuration = "standard, H2's WRITE_DELAY"
    claims = Claims(graceful=True, sigkill=False, power_loss=False, queues=None)

    def start(self, datadir: Path, port: int) -> ProcessServer:
        return elasticmq.elasticmq_server(datadir, port, write_delay=True)


class ActiveMQ(BackendHarness):
    """ActiveMQ Classic over ``stomp://``."""

    name = "activemq"
    # A server that was killed, and one that was stopped, has forgotten what it had flagged as redelivered
    claims = Claims(graceful=True, sigkill=True, power_loss=None, queues=True, counts=False)

    def start(self, datadir: Path, port: int) -> ProcessServer:
        return activemq.activemq_server(datadir, port)

    def url(self, datadir: Path, port: int) -> str:
        return f"stomp://127.0.0.1:{port}"

    def available(self) -> str | None:
        if activemq.find_activemq() is None:
            return "ActiveMQ is not installed: mqlayer brokers install activemq"
        return _without_stomp()

    def server_version(self) -> str:
        return _installed(activemq.version(), "ActiveMQ")

    def client_version(self) -> str:
        return f"stomp.py {metadata.version('stomp.py')}"


class Artemis(ActiveMQ):
    """Artemis over ``stomp://``."""

    name = "artemis"

    def start(self, datadir: Path, port: int) -> ProcessServer:
        return artemis.artemis_server(datadir, port)

    def available(self) -> str | None:
        if artemis.find_artemis() is None:
            return "Artemis is not installed: mqlayer brokers install artemis"
        return _without_stomp()

    def server_version(self) -> str:
        return _installed(artemis.version(), "Artemis")


class RabbitMQStomp(ActiveMQ):
    """RabbitMQ's STOMP plugin, over ``stomp://``. Not among ``ALL`` yet: it does not keep everything, see ``docs/backends.md``."""

    name = "rabbitmq-stomp"
    configuration = "STOMP plugin"
    # STOMP makes a queue with its first message, and cannot wait for it: a queue whose server is killed within about a
    # second of that can be gone with all it had confirmed. amqp:// waits, see its option declare_settle.
    claims = Claims(graceful=True, sigkill=None, power_loss=None, queues=None)

    def start(self, datadir: Path, port: int) -> ProcessServer:
        return rabbitmq.rabbitmq_stomp_server(datadir, port)

    def url(self, datadir: Path, port: int) -> str:
        return f"stomp://guest:guest@127.0.0.1:{port}"

    def available(self) -> str | None:
        if rabbitmq.find_rabbitmq() is None:
            return "RabbitMQ is not installed: mqlayer brokers install rabbitmq"
        return _without_stomp()

    def server_version(self) -> str:
        return _installed(rabbitmq.version(), "RabbitMQ")


def _without_stomp() -> str | None:
    try:
        metadata.version("stomp.py")
    except metadata.PackageNotFoundError:
        return 'stomp.py is not installed: pip install "mqlayer[activemq]"'
    return None


def _installed(version: str | None, title: str) -> str:
    if version is None:
        raise ServerError(f"{title} is not installed")
    return version


ALL: tuple[type[BackendHarness], ...] = (
    Memory,
    SQLite,
    RabbitMQQuorum,
    RabbitMQClassic,
    SQSElasticMQ,
    ActiveMQ,
    Artemis,
)
