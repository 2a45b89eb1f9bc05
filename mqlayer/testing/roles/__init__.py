"""What actors do. A role is a frozen dataclass of its job's fields and a ``run`` that carries it out; ``ROLES`` has them all."""

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from mqlayer.testing.harness import HarnessError
from mqlayer.testing.roles.consuming import Consume
from mqlayer.testing.roles.draining import Drain
from mqlayer.testing.roles.producing import Produce
from mqlayer.testing.roles.small import Call, DeclareCheck, Idle
from mqlayer.testing.roles.work import Abandoned, Role, Work

__all__ = ["ROLES", "Abandoned", "Role", "Work", "make_role"]

ROLES: Mapping[str, type[Role]] = MappingProxyType(
    {"produce": Produce, "consume": Consume, "drain": Drain, "declare-check": DeclareCheck, "idle": Idle, "call": Call}
)


def make_role(name: str, job: Mapping[str, Any]) -> Role:
    """The role *name* with the fields of its job.

    Raises:
        HarnessError: there is no such role, or it has no such field, or needs another.
    """
    kind = ROLES.get(name)
    if kind is None:
        raise HarnessError(f"no role {name!r}; there are: {', '.join(ROLES)}")
    try:
        return kind(**job)
    except TypeError as exc:
        known = ", ".join(each.name for each in fields(kind))  # type: ignore[arg-type]
        raise HarnessError(f"a job for {name!r}: {exc}; its fields are: {known}") from exc
