"""The tree of commands, and what all of them share: ``--version``, ``--verbose``, errors that become exit codes."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import mqlayer
from mqlayer.cli import backends, brokers, check, matrix, messages
from mqlayer.cli.failures import exit_code, hide_passwords, report

__all__ = ["build", "run"]

HELP = """One Producer/Consumer API over many brokers, chosen by URL.

Try it without a broker: mqlayer send sqlite:///jobs.db orders hello, then mqlayer receive sqlite:///jobs.db orders.

Exit codes: 0 done, 1 negative result, 2 usage or configuration, 3 broker unreachable, 4 outcome unknown, 130 Ctrl-C."""


class Commands(TyperGroup):
    """A group whose commands end with a code and a sentence, never with a traceback for a user's mistake."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        with _passwords_hidden():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what is raised by the way becomes text on standard error and an exit code.

        A defect of ours keeps its traceback.
        """
        try:
            with _passwords_hidden():
                return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            code = exit_code(error)
            if code is None:
                raise
            report(error, verbose=bool(ctx.params.get("verbose")))
            raise typer.Exit(int(code)) from error


@contextmanager
def _passwords_hidden() -> Iterator[None]:
    """Complaints about arguments quote them, and an argument may be a URL."""
    try:
        yield
    except Exception as error:
        text = getattr(error, "message", None)
        if isinstance(text, str):
            error.message = hide_passwords(text)  # type: ignore[attr-defined]
        raise


def build(*, pretty: bool = False) -> typer.Typer:
    """The command as a typer application. *pretty*: help and complaints with colours and frames."""
    markup: Any = "rich" if pretty else None
    shared: dict[str, Any] = {"rich_markup_mode": markup, "no_args_is_help": True}
    app = typer.Typer(
        name="mqlayer", cls=Commands, help=HELP, add_completion=False, pretty_exceptions_enable=False, **shared
    )
    app.callback()(_prepare)
    app.command()(messages.send)
    app.command()(messages.receive)
    app.command()(messages.stats)
    app.command()(messages.peek)
    app.command()(messages.purge)
    app.command()(check.check)
    app.command()(matrix.matrix)
    app.command("backends")(backends.backends)
    group = typer.Typer(help="Brokers that can be started here, without Docker and without root.", **shared)
    group.command("list")(brokers.show)
    group.command("install")(brokers.install)
    group.command("run")(brokers.run)
    app.add_typer(group, name="brokers")
    return app


def run() -> int:
    """Run the command with the process's arguments; returns its exit code."""
    try:
        build(pretty=sys.stdout.isatty() and sys.stderr.isatty())(prog_name="mqlayer")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    return 0


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mqlayer {mqlayer.__version__}")
        raise typer.Exit


def _prepare(
    context: typer.Context,
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show log lines, and tracebacks of errors.")] = False,
) -> None:
    root = logging.getLogger()
    handler = logging.StreamHandler()
    handler.setFormatter(_LogText(verbose))
    # Client libraries log each refused connection with its traceback; without --verbose only our own warnings show.
    handler.addFilter(lambda record: verbose or record.name.partition(".")[0] == "mqlayer")
    root.addHandler(handler)
    level = root.level
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    context.call_on_close(lambda: root.removeHandler(handler))
    context.call_on_close(lambda: root.setLevel(level))


class _LogText(logging.Formatter):
    """A log line as the command shows it: without passwords, and without a traceback unless that is asked for."""

    def __init__(self, verbose: bool) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._verbose = verbose

    def format(self, record: logging.LogRecord) -> str:
        return hide_passwords(super().format(record) if self._verbose else f"mqlayer: {record.getMessage()}")
