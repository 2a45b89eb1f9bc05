"""The suite on a store in memory whose sessions have threads of their own: what is abandoned there must be as dead as a
killed process, though its threads are the suite's."""

import pytest
from threaded_memory import ThreadedMemory

from mqlayer.testing.records import Verdict
from mqlayer.testing.runner import Column
from mqlayer.testing.stage import Profile
from mqlayer.testing.suite import select


@pytest.mark.parametrize("criterion", ["C14", "C33", "C41"])
def test_a_crash_is_one(criterion: str) -> None:
    (check,) = select([criterion])
    with Column(ThreadedMemory(), profile=Profile.QUICK) as column:
        record = column.run(check)
    assert record.verdict is Verdict.PASS, record.reason
