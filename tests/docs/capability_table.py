"""The table of capabilities of ``backends.md``, from the capability objects themselves. Run it to print the table."""

import tempfile
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path

import mqlayer
from mqlayer.backends.rabbitmq_session import capabilities as rabbitmq_capabilities
from mqlayer.backends.sqs_session import capabilities as sqs_capabilities
from mqlayer.backends.sqs_wire import SIZE_MAX
from mqlayer.backends.stomp_dialects import ACTIVEMQ, ARTEMIS, RABBITMQ
from mqlayer.driver import Capabilities
from mqlayer.layers.emulated import emulated_capabilities

RABBITMQ_VERSION = "3.13.0"  #: what depends on the server's version is said below the table


def columns() -> dict[str, Capabilities]:
    """What a user's connection says. RabbitMQ's are a function of its version; no server is asked."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for name, url in (("memory", "memory://"), ("sqlite", f"sqlite:///{Path(folder) / 'queues.db'}")):
            with mqlayer.connect(url) as mq:
                found[name] = mq.capabilities
    for kind in ("quorum", "classic"):
        native = rabbitmq_capabilities(kind, RABBITMQ_VERSION)
        found[f"RabbitMQ {kind}"] = emulated_capabilities(native)
    for title, fifo in (("SQS standard", False), ("SQS FIFO", True)):
        found[title] = emulated_capabilities(sqs_capabilities(fifo=fifo, size_max=SIZE_MAX))
    for name, dialect in (("ActiveMQ", ACTIVEMQ), ("Artemis", ARTEMIS), ("RabbitMQ STOMP", RABBITMQ)):
        found[name] = emulated_capabilities(dialect.capabilities)
    return found


def table(found: Mapping[str, Capabilities]) -> str:
    lines = [f"| | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for each in fields(Capabilities):
        values = [shown(each.name, getattr(one, each.name)) for one in found.values()]
        lines.append(f"| `{each.name}` | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def shown(name: str, value: object) -> str:
    if value is None:
        return "no limit" if name.endswith(("_max", "_max_bytes")) else "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Enum):
        return str(value.value)
    if name.endswith("_bytes") and isinstance(value, int) and value % 2**20 == 0:
        return f"{value // 2**20} MiB"
    if name.endswith("_bytes") and isinstance(value, int) and value % 2**10 == 0:
        return f"{value // 2**10} KiB"
    return f"{value:g} s" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(table(columns()))  # noqa: T201
