"""The roles that take a few lines: look whether queues are there, have the store open, call a function."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mqlayer.api import Connection
from mqlayer.errors import MQError, QueueMismatchError, QueueNotFoundError
from mqlayer.testing.roles.work import Result, Work

__all__ = ["Call", "DeclareCheck", "Idle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclareCheck:
    """Say which queues are missing, differ or do not serve, without ever making one.

    Attributes:
        queues: Name → options as for ``Connection.declare``. With *compare*, those that are there are compared.
        serve: Send, receive and ack one message through each, behind whatever it holds.
    """

    queues: Mapping[str, Mapping[str, Any]]
    serve: bool = True
    compare: bool = False
    timeout: float = 30.0
    query: Mapping[str, Any] = field(default_factory=dict)

    def run(self, work: Work) -> Result:
        mq = work.connect(declare="never", **self.query)
        work.say("ready")
        missing: list[str] = []
        mismatched: dict[str, str] = {}
        unserved: dict[str, str] = {}
        for queue, options in self.queues.items():
            work.check()
            try:
                self._look(mq, queue, options)
            except QueueNotFoundError:
                missing.append(queue)
            except QueueMismatchError as error:
                mismatched[queue] = str(error)
            except (MQError, _NotServed) as error:
                unserved[queue] = f"{type(error).__name__}: {error}"
        return {"missing": missing, "mismatched": mismatched, "unserved": unserved, "checked": len(self.queues)}

    def _look(self, mq: Connection, queue: str, options: Mapping[str, Any]) -> None:
        producer = mq.producer(queue, timeout=self.timeout)
        if self.compare:
            mq.declare(queue, **options, timeout=self.timeout)
        if not self.serve:
            return
        body = f"does {queue} serve?".encode()
        producer.send(body, timeout=self.timeout)
        with mq.consumer(queue, timeout=self.timeout) as consumer:
            behind = []  # given back, unsettled, when the consumer closes
            while (delivery := consumer.receive(timeout=self.timeout)) is not None:
                if delivery.message.body == body:
                    delivery.ack()
                    return
                behind.append(delivery)
        raise _NotServed(f"what was sent did not come, {len(behind)} others did")


class _NotServed(Exception):
    """The queue is there, and dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Have the store open, and wait for the stop."""

    query: Mapping[str, Any] = field(default_factory=dict)

    def run(self, work: Work) -> Result:
        work.connect(**self.query)
        work.say("ready")
        work.pause(None)
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Call ``module:function`` with the actor's ``Work`` and *arguments*. What it returns is said, so it fits into JSON."""

    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def run(self, work: Work) -> Result:
        module, _, name = self.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        return {"returned": function(work, **self.arguments)}
