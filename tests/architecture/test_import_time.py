"""What ``import mqlayer`` costs: not in milliseconds, which a busy machine blurs, but in what it imports."""

import subprocess
import sys

import pytest

NOT_YET = {
    *("pika", "msgspec", "typer", "rich", "click", "pytest", "hypothesis", "sqlite3"),
    *("asyncio", "concurrent.futures", "importlib.metadata", "logging", "random", "uuid", "json", "ssl", "socket"),
}
LATER = {"api", "aio", "backends", "core", "engine", "layers", "testing", "worker"}


def imported_by(statement: str) -> set[str]:
    program = f"import sys\nbefore = set(sys.modules)\n{statement}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_importing_the_package_imports_little() -> None:
    found = imported_by("import mqlayer")
    assert "mqlayer" in found
    assert not found & NOT_YET, "import it where it is used"
    assert not {name for name in found if name.startswith("mqlayer.") and name.split(".")[1] in LATER}


@pytest.mark.parametrize("name", ["aio", "connect", "run"])
def test_what_it_offers_is_imported_on_first_use(name: str) -> None:
    found = imported_by(f"import mqlayer\nmqlayer.{name}")
    assert "mqlayer.engine" in found
    assert not found & {"pika", "msgspec", "sqlite3", "typer", "rich", "pytest", "hypothesis"}
    assert ("asyncio" in found) == (name == "aio")


def test_a_memory_connection_needs_no_client_library() -> None:
    found = imported_by('import mqlayer\nmqlayer.connect("memory://").producer("q").send(b"x")')
    assert not found & {"pika", "sqlite3", "asyncio", "msgspec"}


def test_everything_it_names_is_there() -> None:
    import mqlayer

    for name in mqlayer.__all__:
        assert getattr(mqlayer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mqlayer.nonsense  # type: ignore[attr-defined]
