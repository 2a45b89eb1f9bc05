"""Imports point downwards, and there is no cycle; also in functions and for type checking."""

import graphlib
import sys

import pytest
from sources import NAMES, SOURCES, Source

LEVELS = [
    {"errors", "clock"},
    {"driver", "message", "policy", "needs", "urls"},
    {"codec", "registry"},
    {"layers", "backends"},
    {"engine"},
    {"core"},
    {"api", "delivery"},
    {"worker", "aio", "testing", "contrib"},
    {"cli", "__main__"},
]
LEVEL = {part: number for number, parts in enumerate(LEVELS) for part in parts}
BACKENDS_MAY_IMPORT = {"mqlayer.driver", "mqlayer.errors", "mqlayer.codec", "mqlayer.clock", "mqlayer.urls"}
CLIENT_LIBRARY = {"rabbitmq": {"pika"}, "sqs": {"boto3", "botocore", "mypy_boto3_sqs"}, "stomp": {"stomp"}}
OPTIONAL = {  # third-party libraries outside the backends, and who may import them
    "msgspec": {"codec"},
    "pika": {"testing"},  # to see whether a server that was started answers
    "pytest": {"testing"},
    "hypothesis": {"testing"},
    "typer": {"cli", "__main__"},
    "click": {"cli", "__main__"},
    "rich": {"cli", "__main__"},
}


def part(name: str) -> str:
    """``mqlayer.engine.line`` → ``engine``."""
    return name.split(".")[1] if "." in name else ""


def inner() -> list[Source]:
    """All but the package's own ``__init__``, which names what users may import."""
    return [source for source in SOURCES if source.name != "mqlayer"]


@pytest.mark.parametrize("source", inner(), ids=lambda source: source.name)
class TestEach:
    def test_it_has_its_level(self, source: Source) -> None:
        assert part(source.name) in LEVEL, "say in LEVELS where it stands"

    def test_it_imports_nothing_above_it(self, source: Source) -> None:
        own = LEVEL[part(source.name)]
        if own < LEVEL["testing"]:
            assert "mqlayer" not in source.ours, "the package itself is for users"
        above = {name for name in source.ours if part(name) and LEVEL[part(name)] > own}
        assert not above

    def test_testing_is_imported_by_the_command_alone(self, source: Source) -> None:
        if part(source.name) not in ("testing", "cli", "__main__"):
            assert not {name for name in source.ours if part(name) == "testing"}

    def test_backends_are_found_by_entry_point(self, source: Source) -> None:
        if part(source.name) not in ("testing", "backends"):
            assert not {name for name in source.ours if part(name) == "backends"}

    def test_third_party_libraries_stay_where_they_belong(self, source: Source) -> None:
        foreign = {name.partition(".")[0] for name in source.imported} - sys.stdlib_module_names - {"mqlayer"}
        if part(source.name) == "backends":
            stem = source.name.rpartition(".")[2].partition("_")[0]
            assert foreign <= CLIENT_LIBRARY.get(stem, set())
        else:
            for library in foreign:
                assert part(source.name) in OPTIONAL.get(library, set()), library


@pytest.mark.parametrize(
    "source", [one for one in SOURCES if part(one.name) == "backends" and not one.is_package], ids=lambda one: one.name
)
def test_a_backend_knows_the_driver_and_its_own_siblings(source: Source) -> None:
    prefix = "mqlayer.backends." + source.name.rpartition(".")[2].partition("_")[0]
    others = {
        name for name in source.ours - BACKENDS_MAY_IMPORT if name != prefix and not name.startswith(prefix + "_")
    }
    assert not others


def test_there_is_no_cycle() -> None:
    graph = {source.name: {name for name in source.ours if name in NAMES and name != source.name} for source in SOURCES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_a_scheme_is_named_in_no_core_module() -> None:
    """The core asks capabilities; a scheme in a sentence of a docstring or an example in an error is fine."""
    core = {"engine", "core", "layers", "policy", "api", "aio", "worker", "delivery", "codec", "needs"}
    for source in inner():
        if part(source.name) in core:
            assert "url.scheme ==" not in source.text, source.name
            assert "scheme in (" not in source.text, source.name
