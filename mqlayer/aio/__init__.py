"""The asyncio API: the names of the blocking one, awaited.

async with mqlayer.aio.connect(url) as mq, mq.producer("orders") as orders:
    await orders.send({"id": 42})
"""

from mqlayer.aio.api import Connection, Consumer, Delivery, Producer, connect
from mqlayer.aio.worker import run

__all__ = ["Connection", "Consumer", "Delivery", "Producer", "connect", "run"]
