"""The pytest plugin: a private broker in memory, its clock, its faults, and what was sent. Loaded by entry point."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # a test run that uses none of the fixtures pays for none of it
    from mqlayer.api import Connection
    from mqlayer.backends.memory_faults import Faults
    from mqlayer.clock import ManualClock
    from mqlayer.testing.in_memory import Sent

__all__ = ["mq", "mq_clock", "mq_faults", "mq_sent"]


@pytest.fixture
def mq_clock() -> "ManualClock":
    """The clock of ``mq``; ``mq_clock.advance(seconds)`` moves it."""
    from mqlayer.clock import ManualClock

    return ManualClock()


@pytest.fixture
def mq_faults() -> "Faults":
    """What goes wrong in ``mq``: ``refuse``, ``lose_connection``, ``delay``, ``duplicate``."""
    from mqlayer.backends.memory_faults import Faults

    return Faults()


@pytest.fixture
def mq_sent() -> "Sent":
    """What was sent through ``mq``."""
    from mqlayer.testing.in_memory import Sent

    return Sent()


@pytest.fixture
def mq(mq_clock: "ManualClock", mq_faults: "Faults", mq_sent: "Sent") -> "Iterator[Connection]":
    """A connection to a broker in memory of the test's own."""
    from mqlayer.testing.in_memory import memory

    with memory(clock=mq_clock, faults=mq_faults, sent=mq_sent) as connection:
        yield connection
