"""The columns of our own backends."""

from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from mqlayer.testing.brokers import rabbitmq
from mqlayer.testing.harness import BackendHarness, Claims
from mqlayer.testing.processes import ProcessServer, ServerError

__all__ = ["ALL", "Memory", "RabbitMQClassic", "RabbitMQQuorum", "SQLite"]


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


ALL: tuple[type[BackendHarness], ...] = (Memory, SQLite, RabbitMQQuorum, RabbitMQClassic)
