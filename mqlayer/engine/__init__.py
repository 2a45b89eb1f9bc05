"""Threads, batches, windows, leases: what stands between the public API and a session."""

from mqlayer.engine.engine import CLOSE_MIN, HOLDERS_TIMEOUT, Engine
from mqlayer.engine.held import Held, Holder
from mqlayer.engine.parcel import GRACE, Parcel, Tally, Target, no_room, no_word
from mqlayer.engine.process import PROCESS
from mqlayer.engine.protocol import Line
from mqlayer.engine.waiting import Signal

__all__ = [
    "CLOSE_MIN",
    "GRACE",
    "HOLDERS_TIMEOUT",
    "PROCESS",
    "Engine",
    "Held",
    "Holder",
    "Line",
    "Parcel",
    "Signal",
    "Tally",
    "Target",
    "no_room",
    "no_word",
]
