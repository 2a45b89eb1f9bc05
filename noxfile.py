"""The project's chores. ``nox`` runs the test suite; ``nox -l`` lists the rest.

A broker that is not installed skips its tests here, and fails them where ``CI`` is set. ``mqlayer brokers install``
says how to install each.
"""

import nox

nox.options.sessions = ["lint", "types", "unit", "suite"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    session.install("ruff>=0.9")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict over the package."""
    session.install("-e", ".[dev]")
    session.run("mypy")


@nox.session
def unit(session: nox.Session) -> None:
    """Everything that is not the durability suite."""
    session.install("-e", ".[dev]")
    session.run("pytest", "tests", "-m", "not suite", *session.posargs)


@nox.session
def suite(session: nox.Session) -> None:
    """The durability suite, profile quick, on every column, three at a time; each server is really killed."""
    session.install("-e", ".[dev]")
    # A column waits most of its time for servers to start, for leases to end, or to be sure that nothing more comes.
    together = ("-n", "3", "--dist", "loadscope")
    session.run("pytest", "tests", "-m", "suite", *together, *session.posargs, env={"MQLAYER_PROFILE": "quick"})


@nox.session
def matrix(session: nox.Session) -> None:
    """The durability suite, profile full: writes compat_matrix.md and compat_matrix.json. Up to 20 minutes a column."""
    session.install("-e", ".[all]")
    session.run("mqlayer", "matrix", "--profile", "full", "--output", ".", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks, interleaved with the peers: writes docs/performance.md."""
    session.install("-e", ".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)
