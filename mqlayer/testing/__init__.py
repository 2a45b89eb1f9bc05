"""Tests for those who use mqlayer, and for those who write a backend: helpers, real brokers, faults, the durability suite.

For unit tests: ``memory``, ``ManualClock``, ``Faults``, and the pytest fixtures of ``plugin``. For a backend of your own:
``BackendHarness``, ``Claims``, ``ProcessServer`` here, and ``mqlayer.testing.suite.DurabilitySuite``. Nothing is imported
before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mqlayer.backends.memory_faults import Faults
    from mqlayer.clock import ManualClock
    from mqlayer.testing.harness import BackendHarness, Claims
    from mqlayer.testing.in_memory import Sent, memory
    from mqlayer.testing.processes import ProcessServer

__all__ = ["BackendHarness", "Claims", "Faults", "ManualClock", "ProcessServer", "Sent", "memory"]

_LATER = {
    "BackendHarness": "mqlayer.testing.harness",
    "Claims": "mqlayer.testing.harness",
    "Faults": "mqlayer.backends.memory_faults",
    "ManualClock": "mqlayer.clock",
    "ProcessServer": "mqlayer.testing.processes",
    "Sent": "mqlayer.testing.in_memory",
    "memory": "mqlayer.testing.in_memory",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module 'mqlayer.testing' has no attribute {name!r}")
    value = getattr(import_module(_LATER[name]), name)
    globals()[name] = value
    return value
