"""One Producer/Consumer API over many message brokers, chosen by URL.

>>> import mqlayer
>>> with mqlayer.connect("memory://") as mq, mq.producer("orders") as orders, mq.consumer("orders") as consumer:
...     message_id = orders.send({"id": 42})
...     with consumer.receive(timeout=1) as message:
...         print(message.payload)
{'id': 42}
"""

from mqlayer import errors
from mqlayer.driver import Capabilities, HeaderValue, Stats, Support
from mqlayer.errors import MQError
from mqlayer.message import Message, ReceivedMessage
from mqlayer.needs import Needs
from mqlayer.policy import Retry
from mqlayer.registry import register_backend, schemes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mqlayer import aio
    from mqlayer.api import Connection, Consumer, Delivery, Producer, connect
    from mqlayer.worker import run

__all__ = [
    "Capabilities",
    "Connection",
    "Consumer",
    "Delivery",
    "HeaderValue",
    "MQError",
    "Message",
    "Needs",
    "Producer",
    "ReceivedMessage",
    "Retry",
    "Stats",
    "Support",
    "aio",
    "connect",
    "errors",
    "register_backend",
    "run",
    "schemes",
]

__version__ = "0.1.0"

_LATER = {
    "Connection": "mqlayer.api",
    "Consumer": "mqlayer.api",
    "Delivery": "mqlayer.api",
    "Producer": "mqlayer.api",
    "connect": "mqlayer.api",
    "run": "mqlayer.worker",
}


def __getattr__(name: str) -> object:
    # What needs threads and futures is imported on first use, so that importing mqlayer costs next to nothing.
    from importlib import import_module

    if name == "aio":
        return import_module("mqlayer.aio")
    if name in _LATER:
        value = getattr(import_module(_LATER[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'mqlayer' has no attribute {name!r}")
