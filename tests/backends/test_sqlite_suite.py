"""The durability suite over ``sqlite://``."""

from mqlayer.testing.harnesses import SQLite
from mqlayer.testing.suite import DurabilitySuite


class TestSQLite(DurabilitySuite):
    harness = SQLite()
