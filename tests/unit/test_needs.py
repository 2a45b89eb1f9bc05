"""What a program cannot go without."""

from dataclasses import fields, replace

import pytest
from fakes import NATIVE

from mqlayer.driver import Capabilities, Support
from mqlayer.needs import Needs, unmet


@pytest.mark.parametrize("name", [field.name for field in fields(Needs) if field.name not in ("delay", "body_bytes")])
def test_each_need_is_refused_where_it_is_not_met_and_only_there(name: str) -> None:
    needs = Needs(**{name: True})  # type: ignore[arg-type]
    kind = bool if isinstance(getattr(NATIVE, name), bool) else Support
    has, lacks = (True, False) if kind is bool else (Support.NATIVE, Support.UNSUPPORTED)
    assert unmet(needs, replace(NATIVE, **{name: has})) == []
    assert unmet(needs, replace(NATIVE, **{name: lacks})) == [name]
    assert unmet(Needs(), replace(NATIVE, **{name: lacks})) == []
    if kind is Support:
        assert unmet(needs, replace(NATIVE, **{name: Support.EMULATED})) == []


def test_there_is_a_need_for_every_capability() -> None:
    asked = {field.name for field in fields(Needs)} - {"body_bytes"}
    offered = {field.name for field in fields(Capabilities) if not field.name.endswith(("_max", "_bytes", "_window"))}
    assert asked == offered - {"counts", "returns_count"}


def test_a_delay_and_a_body_have_a_size() -> None:
    limited = replace(NATIVE, delay_max=900.0, body_max_bytes=1000)
    assert unmet(Needs(delay=900.0, body_bytes=1000), limited) == []
    assert unmet(Needs(delay=901.0, body_bytes=1001), limited) == [
        "a delay of 901 s (it has 900)",
        "bodies of 1001 bytes (it takes 1000)",
    ]
    assert unmet(Needs(delay=1.0), replace(NATIVE, delay=Support.UNSUPPORTED)) == ["delay"]
    assert unmet(Needs(delay=1e9, body_bytes=10**12), NATIVE) == []
