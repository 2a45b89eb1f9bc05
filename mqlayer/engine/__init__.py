"""Threads, batches, windows, leases: what stands between the public API and a session."""

from mqlayer.engine.engine import Engine
from mqlayer.engine.intake import Held
from mqlayer.engine.line import Line
from mqlayer.engine.parcel import GRACE, Parcel, Tally, Target, no_room, no_word
from mqlayer.engine.process import PROCESS
from mqlayer.engine.waiting import Signal

__all__ = ["GRACE", "PROCESS", "Engine", "Held", "Line", "Parcel", "Signal", "Tally", "Target", "no_room", "no_word"]
