"""The durability suite: the criteria, and the pytest class that runs them over a backend.

    class TestAcme(DurabilitySuite):
        harness = Harness()

That is the whole test. Criteria are plain functions in the modules of ``MODULES``, grouped by promise; how one is written
is in :mod:`mqlayer.testing.suite.criterion`, what it is given in :mod:`mqlayer.testing.stage`.
"""

import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mqlayer.testing.suite.criterion import Check

if TYPE_CHECKING:
    from mqlayer.testing.harness import BackendHarness
    from mqlayer.testing.runner import Column

__all__ = ["MODULES", "DurabilitySuite", "select"]

MODULES = (
    "contract_basics",
    "contract_bodies",
    "contract_order",
    "contract_settling",
    "contract_batches",
    "contract_poison",
    "contract_topics",
    "contract_lifecycle",
    "contract_queues",
    "contract_features",
    "contract_network",
    "contract_sharing",
    "contract_model",
    "failsafe_kill",
    "failsafe_persist",
    "failsafe_load",
    "failsafe_queues",
    "failsafe_acks",
    "failsafe_resume",
    "failsafe_confirms",
    "failsafe_network",
    "failsafe_delays",
)


def select(ids: Iterable[str] | None = None) -> list[Check]:
    """The checks with these ids, in the catalogue's order; ``None``: all.

    Raises:
        ValueError: there is none with an id, or two modules have the same.
    """
    from mqlayer.testing.catalogue import CATALOGUE

    found: dict[str, Check] = {}
    for name in MODULES:
        for value in vars(import_module(f"{__name__}.{name}")).values():
            if isinstance(value, Check) and found.setdefault(value.id, value) is not value:
                raise ValueError(f"criterion {value.id} is written twice")
    wanted = set(found) if ids is None else set(ids)
    if unknown := sorted(wanted - found.keys()):
        raise ValueError(f"no criterion {', '.join(unknown)}; there are: {', '.join(sorted(found))}")
    return [found[each.id] for each in CATALOGUE if each.id in wanted]


class DurabilitySuite:
    """One test for each criterion, over the backend of ``harness``. The class shares a broker; kills have one of their own.

    The profile is ``MQLAYER_PROFILE`` (``quick``), the seed ``MQLAYER_SEED`` (a new one, shown when a test fails). Where
    the broker is missing the tests are skipped, but fail where ``CI`` is set.

    Attributes:
        criteria: Ids, to run only these; ``None``: all.
    """

    harness: ClassVar["BackendHarness"]
    criteria: ClassVar[Sequence[str] | None] = None
    column: ClassVar["Column"]

    @classmethod
    def setup_class(cls) -> None:
        from mqlayer.testing.runner import Column
        from mqlayer.testing.stage import Profile

        seed = os.environ.get("MQLAYER_SEED")
        profile = Profile(os.environ.get("MQLAYER_PROFILE", Profile.QUICK.value))
        cls.column = Column(cls.harness, profile=profile, seed=int(seed) if seed else None)

    @classmethod
    def teardown_class(cls) -> None:
        cls.column.close()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        if "check" not in metafunc.fixturenames:
            return
        import pytest

        checks = select(self.criteria)
        if not checks:
            raise ValueError(f"{type(self).__name__} has no criterion to run")
        metafunc.config.addinivalue_line("markers", "suite: the durability suite; starts and kills real brokers")
        parameters = [
            pytest.param(check, id=f"{check.id}-{check.criterion.title}", marks=pytest.mark.suite) for check in checks
        ]
        metafunc.parametrize("check", parameters)

    def test_criterion(self, check: Check, tmp_path: Path) -> None:
        """Pass, unsupported with proof and n/a are good; the record says why anything else is not."""
        import pytest

        from mqlayer.testing.records import Verdict
        from mqlayer.testing.runner import is_red

        record = self.column.run(check, keep=tmp_path)
        text = f"{record.verdict.value}: {record.reason} (seed {record.seed}, ledgers in {tmp_path})"
        if is_red(record):
            pytest.fail(text, pytrace=False)
        if record.verdict is Verdict.NOT_RUN:
            pytest.skip(record.reason)
