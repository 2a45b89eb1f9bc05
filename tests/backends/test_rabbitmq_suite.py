"""The durability suite over ``amqp://``, on servers of its own."""

from mqlayer.testing.harnesses import RabbitMQClassic, RabbitMQQuorum
from mqlayer.testing.suite import DurabilitySuite


class TestRabbitMQQuorum(DurabilitySuite):
    harness = RabbitMQQuorum()


class TestRabbitMQClassic(DurabilitySuite):
    harness = RabbitMQClassic()
