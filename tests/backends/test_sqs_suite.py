"""The durability suite over ``sqs://``, on ElasticMQ."""

from mqlayer.testing.harnesses import SQSElasticMQ
from mqlayer.testing.suite import DurabilitySuite


class TestSQSElasticMQ(DurabilitySuite):
    harness = SQSElasticMQ()
