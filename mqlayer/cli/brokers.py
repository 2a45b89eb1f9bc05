"""``brokers list|install|run``: brokers as child processes, for trying things out and for tests."""

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from mqlayer.cli.failures import ExitCode
from mqlayer.cli.output import JSON, console, json_line, line, remark, table
from mqlayer.errors import ConfigError

if TYPE_CHECKING:
    from mqlayer.testing.brokers.catalogue import Broker
    from mqlayer.testing.processes import ProcessServer

__all__ = ["install", "run", "show"]

STOP_TIMEOUT = 60.0  #: seconds that a broker has to end in order before it is killed

Name = Annotated[str, typer.Argument(metavar="NAME", help="A broker's name, from: mqlayer brokers list")]


def show(*, as_json: JSON = False) -> None:
    """List the brokers that can be started here, and which are installed."""
    from mqlayer.testing.brokers.catalogue import BROKERS

    found = [(broker, broker.find()) for broker in BROKERS]
    if as_json:
        for broker, version in found:
            install_commands = [list(command) for command in broker.install]
            json_line(
                {
                    "name": broker.name,
                    "title": broker.title,
                    "schemes": list(broker.schemes),
                    "version": version,
                    "install": install_commands,
                    "install_needs_root": broker.needs_root,
                }
            )
        return
    rows = [
        (broker.name, ", ".join(f"{scheme}://" for scheme in broker.schemes), version or f"no: {_install_hint(broker)}")
        for broker, version in found
    ]
    console().print(table(["name", "schemes", "installed"], rows))
    console().print("Embedded backends need no broker; see: mqlayer backends")


def install(
    name: Name, *, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the commands.")] = False
) -> None:
    """Install a broker with the system's own package manager, saying each command before it runs.

    Without root, and with --dry-run, the commands are only printed.
    """
    from mqlayer.testing.brokers.catalogue import find_broker

    broker = find_broker(name)
    version = broker.find()
    if version is not None and not dry_run:
        line(f"{version} is installed already")
        return
    if dry_run or (broker.needs_root and os.geteuid() != 0):
        for command in broker.install:
            line(shlex.join(command))
        if not dry_run:
            remark("These commands need root. Run them, then look at: mqlayer brokers list")
            raise typer.Exit(ExitCode.NEGATIVE)
        return
    for command in broker.install:
        remark(f"+ {shlex.join(command)}")
        _execute(command)
    version = broker.find()
    if version is None:
        remark(f"the commands succeeded, and {broker.title} is still not found")
        raise typer.Exit(ExitCode.NEGATIVE)
    line(f"{version} is installed")


def run(
    name: Name,
    *,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, metavar="PORT", help="Default: a free one of 20000-29999.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where it keeps its data. Default: a folder that goes in the end."),
    ] = None,
    as_json: JSON = False,
) -> None:
    """Start a broker on this machine, print its URL when it is ready, and stop it on Ctrl-C or SIGTERM.

    It listens on the loopback interface alone. With --data, what it stored is there the next time.
    """
    from mqlayer.testing.brokers.catalogue import find_broker
    from mqlayer.testing.ports import free_port

    broker = find_broker(name)
    if broker.find() is None:
        raise ConfigError(f"{broker.title} is not installed: {_install_hint(broker)}")
    with _data_folder(data) as folder, _ended_by_sigterm():
        port = port or free_port()
        remark(f"starting {broker.title} in {folder} …")
        server = broker.start(folder, port)
        server.start()
        try:
            url = broker.url(port)
            if as_json:
                json_line({"name": broker.name, "url": url, "port": port, "pid": server.pid, "data": str(folder)})
            else:
                line(url)
            remark("ready; Ctrl-C stops it")
            _wait_for_end(server)
        finally:
            _stop(server, broker)
    remark(f"{broker.title} ended by itself:\n{server.log_tail()}")
    raise typer.Exit(ExitCode.NEGATIVE)


def _install_hint(broker: "Broker") -> str:
    return f"mqlayer brokers install {broker.name}"


def _execute(command: tuple[str, ...]) -> None:
    """Run one command of an installation, with its output as it comes.

    Raises:
        ConfigError: it is not there, or failed.
    """
    try:
        done = subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, check=False)
    except OSError as exc:
        raise ConfigError(f"cannot run {command[0]}: {exc.strerror}; is this a Debian system?") from exc
    if done.returncode:
        raise ConfigError(f"{shlex.join(command)} failed with exit status {done.returncode}")


@contextlib.contextmanager
def _data_folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="mqlayer-broker-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, but with exit code 0: whoever runs services asks in this way."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(int(ExitCode.DONE))

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _wait_for_end(server: "ProcessServer") -> None:
    """Return when the server's own process is gone. Signals come in between."""
    from mqlayer.testing.process_tree import wait_dead

    hour = 3600.0
    while server.pid is not None and wait_dead([server.pid], hour):
        continue


def _stop(server: "ProcessServer", broker: "Broker") -> None:
    if server.alive:
        remark(f"stopping {broker.title} …")
    try:
        server.stop(timeout=STOP_TIMEOUT)
    except BaseException:
        if server.alive:
            server.kill()  # a second Ctrl-C: at once, then
        raise
