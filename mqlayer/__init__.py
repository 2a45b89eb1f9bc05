"""One Producer/Consumer API over many message brokers, chosen by URL.

>>> import mqlayer
>>> with mqlayer.connect("memory://") as mq, mq.producer("orders") as orders, mq.consumer("orders") as consumer:
...     message_id = orders.send({"id": 42})
...     with consumer.receive(timeout=1) as message:
...         print(message.payload)
{'id': 42}
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mqlayer import aio, errors
    from mqlayer.api import Connection, Consumer, Delivery, Producer, connect
    from mqlayer.driver import Capabilities, HeaderValue, Stats, Support
    from mqlayer.errors import MQError
    from mqlayer.message import Message, ReceivedMessage
    from mqlayer.needs import Needs
    from mqlayer.policy import Retry
    from mqlayer.registry import register_backend, schemes
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
    "Capabilities": "driver",
    "Connection": "api",
    "Consumer": "api",
    "Delivery": "api",
    "HeaderValue": "driver",
    "MQError": "errors",
    "Message": "message",
    "Needs": "needs",
    "Producer": "api",
    "ReceivedMessage": "message",
    "Retry": "policy",
    "Stats": "driver",
    "Support": "driver",
    "connect": "api",
    "register_backend": "registry",
    "run": "worker",
    "schemes": "registry",
}


def __getattr__(name: str) -> object:
    # Each name is imported on first use, so that importing mqlayer costs next to nothing.
    from importlib import import_module

    if name in ("aio", "errors"):
        return import_module(f"mqlayer.{name}")
    if name in _LATER:
        value = getattr(import_module(f"mqlayer.{_LATER[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'mqlayer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
