"""The durability suite over ``stomp://``, on servers of its own."""

from mqlayer.testing.harnesses import ActiveMQ, Artemis
from mqlayer.testing.suite import DurabilitySuite


class TestActiveMQ(DurabilitySuite):
    harness = ActiveMQ()


class TestArtemis(DurabilitySuite):
    harness = Artemis()
