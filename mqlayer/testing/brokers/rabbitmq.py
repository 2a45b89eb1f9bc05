"""RabbitMQ as a child process: alone in its folder, beside others of its kind, as any user, and killable.

The ``rabbitmq-server`` on Debian's PATH is a wrapper that needs root and works in ``/var/lib``; the script it hides runs
anywhere. Everything of one broker is under its data folder: store, logs, cookie, configuration, the ports it chose.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mqlayer.errors import MissingExtraError
from mqlayer.testing.brokers.stomp_probe import probe_stomp
from mqlayer.testing.certificates import Certificates
from mqlayer.testing.ports import LOOPBACK, answers, free_port
from mqlayer.testing.process_tree import kill_tree
from mqlayer.testing.processes import ProcessServer, ServerError

if TYPE_CHECKING:
    from pika.adapters.blocking_connection import BlockingChannel

__all__ = [
    "TLSListener",
    "find_rabbitmq",
    "probe",
    "rabbitmq_server",
    "rabbitmq_stomp_server",
    "rabbitmqctl",
    "version",
]

# The same in every folder: each broker has a name server (epmd) of its own, so names cannot meet, and the store, which
# carries the name, can be started again by anybody.
_NODE = "mqlayer@localhost"
_PORTS_FILE = "ports.json"
_READY_TIMEOUT = 90.0
_COMMAND_TIMEOUT = 60.0
_PROBE_TIMEOUT = 5.0
_LOOPBACK_ONLY = "-kernel inet_dist_use_interface {127,0,0,1}"
# Two schedulers, none of them spinning: a test machine has few cores and other brokers to run.
_SMALL = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSListener:
    """A second port, for ``amqps``.

    Attributes:
        verify_client: Refuse clients without a certificate of the same authority.
    """

    port: int
    certificates: Certificates
    verify_client: bool = False


def find_rabbitmq() -> Path | None:
    """The folder of RabbitMQ's own scripts; ``None`` if it, or Erlang, is not installed.

    ``RABBITMQ_HOME`` comes first, then the newest of the packaged ones, then an unpacked archive on the PATH.
    """
    if shutil.which("erl") is None:
        return None
    home = os.environ.get("RABBITMQ_HOME")
    packaged = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin"), key=_version_key, reverse=True)
    on_path = shutil.which("rabbitmq-server")
    candidates = [
        *([Path(home) / "sbin"] if home else []),
        *packaged,
        *([Path(on_path).resolve().parent] if on_path else []),
    ]
    # Only the real scripts have rabbitmq-env beside them; distributions' wrappers do not.
    return next((folder for folder in candidates if (folder / "rabbitmq-env").is_file()), None)


def version() -> str | None:
    """Such as ``RabbitMQ 3.10.8/Erlang 25``; ``None`` if it is not installed."""
    scripts = find_rabbitmq()
    if scripts is None:
        return None
    applications = [path.name for path in (scripts.parent / "plugins").glob("rabbit-[0-9]*")]
    release = applications[0].removeprefix("rabbit-").removesuffix(".ez") if applications else "of unknown version"
    ask = "io:put_chars(erlang:system_info(otp_release)), halt()."
    try:
        erlang = subprocess.run(
            ["erl", "-noshell", "-eval", ask], capture_output=True, text=True, timeout=_COMMAND_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise ServerError(f"erl does not tell its version: {exc}") from exc
    return f"RabbitMQ {release}/Erlang {erlang.stdout.strip()}"


def rabbitmq_server(
    datadir: Path,
    port: int,
    *,
    plugins: Sequence[str] = (),
    config: str = "",
    tls: TLSListener | None = None,
) -> ProcessServer:
    """Make a broker of *datadir* that will listen on *port*. It is not started yet.

    The same folder may be given again, with the same or another port: its queues and messages are what it finds there.
    One broker at a time.

    Args:
        plugins: Such as ``rabbitmq_stomp``. Leave out ``rabbitmq_management``: it makes each stop five seconds longer.
        config: More lines for ``rabbitmq.conf``.

    Raises:
        ServerError: RabbitMQ is not installed.
    """
    scripts = _scripts()
    datadir = datadir.resolve()
    for folder in (datadir, datadir / "store", datadir / "log"):
        folder.mkdir(parents=True, exist_ok=True)
    _write_cookie(datadir / ".erlang.cookie")
    _choose_ports(datadir)
    (datadir / "rabbitmq.conf").write_text(_configuration(datadir, port, tls, config))
    (datadir / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")
    return ProcessServer(
        [(scripts if plugins else _without_plugins(datadir / "home", scripts)) / "rabbitmq-server"],
        log=datadir / "server.log",
        env=_environment(datadir),
        cwd=datadir,
        probe=lambda: probe(port),
        port=port,
        ready_timeout=_READY_TIMEOUT,
    )


def rabbitmq_stomp_server(datadir: Path, port: int) -> ProcessServer:
    """The same with RabbitMQ's STOMP plugin on *port*; AMQP is on a port of its own choice.

    Raises:
        ServerError: RabbitMQ is not installed.
    """
    server = rabbitmq_server(
        datadir,
        _amqp_port(datadir.resolve()),
        plugins=("rabbitmq_stomp",),
        config=f"stomp.listeners.tcp.1 = {LOOPBACK}:{port}",
    )
    return ProcessServer(
        server.command,
        log=datadir.resolve() / "server.log",
        env=_environment(datadir.resolve()),
        cwd=datadir.resolve(),
        probe=lambda: probe_stomp(port, "/topic/mqlayer.probe", login="guest"),
        port=port,
        ready_timeout=_READY_TIMEOUT,
    )


def rabbitmqctl(datadir: Path, *arguments: str, tool: str = "rabbitmqctl", timeout: float = _COMMAND_TIMEOUT) -> str:
    """Run *tool* against the broker of *datadir* and return what it prints. About a second a call.

    Raises:
        ServerError: it failed; the text has its output.
    """
    environment = _environment(datadir.resolve())
    if not answers(int(environment["ERL_EPMD_PORT"])):
        raise ServerError(f"the RabbitMQ server of {datadir} does not run")
    own_port = str(free_port())
    marker = f"MQLAYER_TOOL_{uuid.uuid4().hex}"
    environment |= {
        marker: "1",
        "RABBITMQ_CTL_ERL_ARGS": _LOOPBACK_ONLY,
        "RABBITMQ_CTL_DIST_PORT_MIN": own_port,
        "RABBITMQ_CTL_DIST_PORT_MAX": own_port,
    }
    command = [str(_scripts() / tool), "--quiet", "--node", _NODE, *arguments]
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=datadir,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as exc:
        raise ServerError(f"{tool} {' '.join(arguments)} gave no answer in {timeout:g} s") from exc
    finally:
        # If the broker dies under the call, the tool starts a name server and leaves it behind.
        kill_tree(marker, None, timeout)
    if done.returncode:
        raise ServerError(
            f"{tool} {' '.join(arguments)} failed ({done.returncode}):\n{done.stdout}{done.stderr}".rstrip()
        )
    return done.stdout


def probe(port: int) -> None:
    """One round trip through a queue of its own: declared, published to with a confirm, read, acked, deleted.

    Raises whatever went wrong. Queues that the broker is still recovering may need a moment more: a quorum queue has no
    leader at first, and answers 541 to a consumer.
    """
    # Not the test of readiness, only a cheap way out of it: pika logs a traceback for each refused connection.
    socket.create_connection((LOOPBACK, port), timeout=_PROBE_TIMEOUT).close()
    try:
        import pika
    except ImportError as exc:
        raise MissingExtraError('a RabbitMQ server is probed with pika: pip install "mqlayer[rabbitmq]"') from exc
    parameters = pika.ConnectionParameters(
        LOOPBACK,
        port,
        connection_attempts=1,
        socket_timeout=_PROBE_TIMEOUT,
        stack_timeout=_PROBE_TIMEOUT,
        blocked_connection_timeout=_PROBE_TIMEOUT,
        # A broker may hang where it should answer. With a heartbeat pika gives it up after some twelve seconds.
        heartbeat=1,
    )
    connection = pika.BlockingConnection(parameters)
    try:
        _round_trip(connection.channel())
    finally:
        if connection.is_open:
            connection.close()


def _round_trip(channel: "BlockingChannel") -> None:
    queue = f"mqlayer.probe.{uuid.uuid4().hex}"
    # Exclusive and transient: it goes with the connection, and a kill in the middle leaves nothing to recover.
    channel.queue_declare(queue, exclusive=True, auto_delete=True)
    channel.confirm_delivery()
    body = queue.encode()
    channel.basic_publish("", queue, body, mandatory=True)
    method, _properties, got = channel.basic_get(queue)
    if method is None or method.delivery_tag is None or got != body:
        raise ServerError("the broker confirmed a message and does not have it")
    channel.basic_ack(method.delivery_tag)
    channel.queue_delete(queue)


def _scripts() -> Path:
    scripts = find_rabbitmq()
    if scripts is None:
        raise ServerError("RabbitMQ is not installed: apt-get install rabbitmq-server, or set RABBITMQ_HOME")
    return scripts


def _without_plugins(home: Path, scripts: Path) -> Path:
    """Make *home* an installation without the plugins; returns its scripts.

    At each start the broker reads the modules of every plugin, enabled or not: a third of its time.
    """
    if home.exists():
        shutil.rmtree(home)  # links only, perhaps to another version
    plugins = home / "plugins"
    plugins.mkdir(parents=True)
    wanted = [path for path in scripts.parent.iterdir() if path.name != "plugins"]
    libraries = [path for path in (scripts.parent / "plugins").iterdir() if not _is_plugin(path)]
    for folder, paths in ((home, wanted), (plugins, libraries)):
        for path in paths:
            (folder / path.name).symlink_to(path)
    return home / scripts.name


def _is_plugin(path: Path) -> bool:
    return path.name.startswith("rabbitmq_") and not path.name.startswith("rabbitmq_prelaunch")


def _version_key(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.parent.name)]


def _write_cookie(path: Path) -> None:
    if not path.exists():
        path.write_text(secrets.token_hex(16))
    path.chmod(0o400)  # Erlang refuses a cookie that others can read


def _choose_ports(datadir: Path) -> None:
    """Keep the ports of the name server and of the node in *datadir*, so that its tools find it; new ones if taken."""
    path = datadir / _PORTS_FILE
    if path.exists() and not any(answers(port) for port in json.loads(path.read_text()).values()):
        return
    path.write_text(json.dumps({"names": free_port(), "node": free_port()}))


def _amqp_port(datadir: Path) -> int:
    """Where the broker of *datadir* speaks AMQP beside STOMP; a new one if somebody else is there."""
    path = datadir / "amqp-port"
    port = int(path.read_text()) if path.exists() else free_port()
    if answers(port):
        port = free_port()
    datadir.mkdir(parents=True, exist_ok=True)
    path.write_text(str(port))
    return port


def _configuration(datadir: Path, port: int, tls: TLSListener | None, more: str) -> str:
    lines = [
        f"listeners.tcp.1 = {LOOPBACK}:{port}",
        "loopback_users = none",
        "vm_memory_high_watermark.absolute = 512MiB",
        "disk_free_limit.absolute = 50MB",
        "log.console = false",
        "log.file = node.log",
        "log.file.level = info",
    ]
    if tls:
        lines += [
            f"listeners.ssl.1 = {LOOPBACK}:{tls.port}",
            f"ssl_options.cacertfile = {tls.certificates.authority}",
            f"ssl_options.certfile = {tls.certificates.certificate}",
            f"ssl_options.keyfile = {tls.certificates.key}",
            f"ssl_options.verify = {'verify_peer' if tls.verify_client else 'verify_none'}",
            f"ssl_options.fail_if_no_peer_cert = {'true' if tls.verify_client else 'false'}",
        ]
    return "\n".join([*lines, more, ""])


def _environment(datadir: Path) -> dict[str, str]:
    """The whole environment, for the server and its tools. Nothing of the caller's: its RABBITMQ_… would lead astray."""
    try:
        ports = json.loads((datadir / _PORTS_FILE).read_text())
    except OSError as exc:
        raise ServerError(f"no RabbitMQ server was ever made in {datadir}") from exc
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": str(datadir),  # the cookie is read from here
        "RUNNING_UNDER_SYSTEMD": "true",  # the script then becomes the Erlang machine instead of waiting beside it
        "RABBITMQ_NODENAME": _NODE,
        "RABBITMQ_MNESIA_BASE": str(datadir / "store"),
        "RABBITMQ_LOG_BASE": str(datadir / "log"),
        "RABBITMQ_CONFIG_FILE": str(datadir / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(datadir / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(datadir / "enabled_plugins"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",  # not the machine's /etc/rabbitmq/rabbitmq-env.conf
        "RABBITMQ_PID_FILE": str(datadir / "node.pid"),
        "RABBITMQ_DIST_PORT": str(ports["node"]),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{_LOOPBACK_ONLY} {_SMALL}",
        "ERL_EPMD_PORT": str(ports["names"]),
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "ERL_CRASH_DUMP": str(datadir / "erl_crash.dump"),
    }
