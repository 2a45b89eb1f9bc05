"""The durability suite over ``memory://``."""

from mqlayer.testing.harnesses import Memory
from mqlayer.testing.suite import DurabilitySuite


class TestMemory(DurabilitySuite):
    harness = Memory()
