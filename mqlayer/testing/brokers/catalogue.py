"""The brokers that can be started here: how each is found, installed, started and reached.

A table and nothing more. It runs no installer: ``install`` is what an administrator, or the command line, would run.
Embedded backends need no server and are not here.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mqlayer.errors import ConfigError
from mqlayer.testing.brokers import activemq, artemis, elasticmq, rabbitmq
from mqlayer.testing.processes import ProcessServer

__all__ = ["BROKERS", "Broker", "find_broker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """One broker that can run as a child process.

    Attributes:
        schemes: The URL schemes that reach it.
        find: The version installed here, ``None`` if there is none.
        install: The commands that install it on Debian, each as its arguments. ElasticMQ and Artemis, which Debian does not
            have, need Maven and Java.
        needs_root: Whether those commands need root. Running the broker never does.
        start: Makes a server of a data folder and a port, not started yet.
        url: What to connect to when it listens on that port.
    """

    name: str
    title: str
    schemes: tuple[str, ...]
    find: Callable[[], str | None]
    install: tuple[tuple[str, ...], ...]
    needs_root: bool
    start: Callable[[Path, int], ProcessServer]
    url: Callable[[int], str]


def _start_rabbitmq(datadir: Path, port: int) -> ProcessServer:
    return rabbitmq.rabbitmq_server(datadir, port)


def _rabbitmq_url(port: int) -> str:
    return f"amqp://guest:guest@127.0.0.1:{port}/"


def _start_elasticmq(datadir: Path, port: int) -> ProcessServer:
    return elasticmq.elasticmq_server(datadir, port)


def _elasticmq_url(port: int) -> str:
    return f"sqs://elasticmq?endpoint=http://127.0.0.1:{port}"


def _start_activemq(datadir: Path, port: int) -> ProcessServer:
    return activemq.activemq_server(datadir, port)


def _start_artemis(datadir: Path, port: int) -> ProcessServer:
    return artemis.artemis_server(datadir, port)


def _start_rabbitmq_stomp(datadir: Path, port: int) -> ProcessServer:
    return rabbitmq.rabbitmq_stomp_server(datadir, port)


def _stomp_url(port: int) -> str:
    return f"stomp://127.0.0.1:{port}"


_RABBITMQ_INSTALL = (
    ("apt-get", "update"),
    ("apt-get", "install", "--yes", "--no-install-recommends", "rabbitmq-server"),
)

BROKERS: tuple[Broker, ...] = (
    Broker(
        name="rabbitmq",
        title="RabbitMQ",
        schemes=("amqp", "amqps"),
        find=rabbitmq.version,
        install=_RABBITMQ_INSTALL,
        needs_root=True,
        start=_start_rabbitmq,
        url=_rabbitmq_url,
    ),
    Broker(
        name="elasticmq",
        title="ElasticMQ",
        schemes=("sqs",),
        find=elasticmq.version,
        install=(elasticmq.INSTALL,),
        needs_root=False,
        start=_start_elasticmq,
        url=_elasticmq_url,
    ),
    Broker(
        name="rabbitmq-stomp",
        title="RabbitMQ with its STOMP plugin",
        schemes=("stomp",),
        find=rabbitmq.version,
        install=_RABBITMQ_INSTALL,
        needs_root=True,
        start=_start_rabbitmq_stomp,
        url=lambda port: f"stomp://guest:guest@127.0.0.1:{port}",
    ),
    Broker(
        name="activemq",
        title="ActiveMQ Classic",
        schemes=("stomp", "stomp+ssl"),
        find=activemq.version,
        install=(
            ("apt-get", "update"),
            ("apt-get", "install", "--yes", "--no-install-recommends", "activemq"),
        ),
        needs_root=True,
        start=_start_activemq,
        url=_stomp_url,
    ),
    Broker(
        name="artemis",
        title="Artemis",
        schemes=("stomp", "stomp+ssl"),
        find=artemis.version,
        install=artemis.install_commands(),
        needs_root=False,
        start=_start_artemis,
        url=_stomp_url,
    ),
)


def find_broker(name: str) -> Broker:
    """The broker called *name*.

    Raises:
        ConfigError: there is none, with the nearest match.
    """
    for broker in BROKERS:
        if broker.name == name:
            return broker
    names = [broker.name for broker in BROKERS]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there is: {', '.join(names)}"
    raise ConfigError(f"no broker is called {name!r}; {hint}")
