"""A real RabbitMQ under control: ready when it serves, dead when killed, and what it had confirmed is there afterwards."""

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mqlayer.errors import ConfigError
from mqlayer.testing.brokers.catalogue import BROKERS, find_broker
from mqlayer.testing.brokers.rabbitmq import (
    TLSListener,
    find_rabbitmq,
    probe,
    rabbitmq_server,
    rabbitmqctl,
    version,
)
from mqlayer.testing.certificates import make_certificates
from mqlayer.testing.ports import LOOPBACK, answers, free_port
from mqlayer.testing.process_tree import wait_dead
from mqlayer.testing.processes import ProcessServer, ServerError

pika = pytest.importorskip("pika")
AMQPConnectorException = pytest.importorskip("pika.adapters.utils.connection_workflow").AMQPConnectorException

# A queue that is killed within about a second of its first declare may come back dead; this is past that.
DECLARE_SETTLE = 2.5
LIMIT = 30.0

if find_rabbitmq() is None and not os.environ.get("CI"):
    pytest.skip("RabbitMQ is not installed: apt-get install rabbitmq-server", allow_module_level=True)


class Rabbit:
    """The one broker of this module, running or not as the test before left it."""

    def __init__(self, folder: Path) -> None:
        self.datadir = folder / "data"
        self.port = free_port()
        self.tls = TLSListener(port=free_port(), certificates=make_certificates(folder / "certificates"))
        self.server = rabbitmq_server(self.datadir, self.port, tls=self.tls)


@pytest.fixture(scope="module")
def the_rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbit]:
    rabbit = Rabbit(tmp_path_factory.mktemp("rabbitmq"))
    with rabbit.server:
        yield rabbit


@pytest.fixture
def rabbit(the_rabbit: Rabbit) -> Rabbit:
    if not the_rabbit.server.alive:
        the_rabbit.server.restart()
    return the_rabbit


def commands_of(server: ProcessServer) -> dict[str, int]:
    return {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in server.pids()}


def publish(port: int, queue: str, kind: str, count: int) -> None:
    with pika.BlockingConnection(pika.ConnectionParameters(LOOPBACK, port)) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
        threading.Event().wait(DECLARE_SETTLE)
        channel.confirm_delivery()
        for number in range(count):
            persistent = pika.BasicProperties(delivery_mode=2)
            channel.basic_publish("", queue, str(number).encode(), persistent, mandatory=True)


def drain(port: int, queue: str) -> list[int]:
    """What the queue holds. Passive: a queue that did not survive is an error, not an empty queue."""
    with pika.BlockingConnection(pika.ConnectionParameters(LOOPBACK, port)) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, passive=True)
        numbers = []
        while True:
            method, _, body = channel.basic_get(queue)
            if method is None:
                return numbers
            numbers.append(int(body))
            channel.basic_ack(method.delivery_tag)


def until_it_has_a_leader(act: Callable[[], list[int]]) -> list[int]:
    """A quorum queue has no leader for a moment after a restart, and the broker closes the connection with 541."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            return act()
        except pika.exceptions.AMQPError:
            if time.monotonic() > deadline:
                raise
            threading.Event().wait(0.2)


def test_it_is_ready_when_started_and_alone(rabbit: Rabbit) -> None:
    rabbit.server.probe()
    commands = commands_of(rabbit.server)
    assert commands["beam.smp"] == rabbit.server.pid
    assert "epmd" in commands
    assert [path for path in rabbit.datadir.parent.iterdir() if path.name not in ("data", "certificates")] == []
    assert rabbit.datadir.joinpath(".erlang.cookie").stat().st_mode & 0o777 == 0o400


def test_everything_listens_on_this_machine_only(rabbit: Rabbit) -> None:
    ports = {rabbit.port, rabbit.tls.port, *json.loads((rabbit.datadir / "ports.json").read_text()).values()}
    listening: dict[int, set[str]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, port = local.partition(":")
            if state == "0A" and int(port, 16) in ports:
                listening.setdefault(int(port, 16), set()).add(address)
    assert listening.keys() == ports
    loopback = {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1, as the kernel writes them
    assert set().union(*listening.values()) <= loopback


def test_confirmed_messages_survive_kill(rabbit: Rabbit) -> None:
    publish(rabbit.port, "kept-classic", "classic", 100)
    publish(rabbit.port, "kept-quorum", "quorum", 100)
    first, pids = rabbit.server.pid, rabbit.server.pids()

    ending = rabbit.server.kill()
    assert (ending.signal, ending.exit_status, ending.by_itself) == (signal.SIGKILL, -9, False)
    assert ending.port_refused
    assert set(pids) <= set(ending.pids)
    assert wait_dead(ending.pids, 0) == []
    with pytest.raises(ConnectionRefusedError):
        probe(rabbit.port)

    rabbit.server.restart()
    assert rabbit.server.pid != first
    for queue in ("kept-classic", "kept-quorum"):
        kept: list[int] = []
        while part := until_it_has_a_leader(lambda queue=queue: drain(rabbit.port, queue)):
            kept += part
        assert sorted(set(kept)) == list(range(100)), queue


def test_a_graceful_stop_exits_by_itself_and_leaves_nothing(rabbit: Rabbit) -> None:
    daemon = commands_of(rabbit.server)["epmd"]
    ending = rabbit.server.stop()
    assert (ending.signal, ending.exit_status, ending.by_itself) == (signal.SIGTERM, 0, True)
    assert daemon in ending.leftovers
    assert wait_dead(ending.pids, 0) == []
    assert not answers(rabbit.port)


def test_another_server_object_finds_the_same_data_on_another_port(rabbit: Rabbit) -> None:
    publish(rabbit.port, "moved", "classic", 3)
    rabbit.server.stop()
    with rabbitmq_server(rabbit.datadir, port := free_port()) as moved:
        assert drain(port, "moved") == [0, 1, 2]
        moved.stop()
    # The files describe the latest server; make the module's own current again.
    rabbit.server = rabbitmq_server(rabbit.datadir, rabbit.port, tls=rabbit.tls)
    rabbit.server.start()


def test_a_paused_broker_does_not_answer_and_goes_on(rabbit: Rabbit) -> None:
    rabbit.server.pause()
    try:
        with pytest.raises(AMQPConnectorException, match="Timeout"):
            probe(rabbit.port)
    finally:
        rabbit.server.resume()
    rabbit.server.probe()


def test_amqps_with_our_authority(rabbit: Rabbit) -> None:
    trusting = ssl.create_default_context(cafile=rabbit.tls.certificates.authority)
    options = pika.SSLOptions(trusting, "localhost")
    parameters = pika.ConnectionParameters(LOOPBACK, rabbit.tls.port, ssl_options=options)
    with pika.BlockingConnection(parameters) as connection:
        assert connection.channel().is_open
    distrusting = pika.SSLOptions(ssl.create_default_context(), "localhost")
    with pytest.raises(ssl.SSLError):
        pika.BlockingConnection(pika.ConnectionParameters(LOOPBACK, rabbit.tls.port, ssl_options=distrusting))


def test_the_tools_speak_to_this_broker_and_say_when_it_is_down(rabbit: Rabbit) -> None:
    publish(rabbit.port, "counted", "classic", 2)
    rows = rabbitmqctl(rabbit.datadir, "list_queues", "--no-table-headers", "name", "messages").splitlines()
    assert "counted\t2" in rows
    with pytest.raises(ServerError, match="no_such_command"):
        rabbitmqctl(rabbit.datadir, "no_such_command")
    rabbit.server.kill()
    with pytest.raises(ServerError, match="does not run"):
        rabbitmqctl(rabbit.datadir, "list_queues")
    assert rabbit.server.pids() == ()


def test_plugins_are_enabled(tmp_path: Path) -> None:
    stomp = free_port()
    config = f"stomp.listeners.tcp.1 = {LOOPBACK}:{stomp}"
    with rabbitmq_server(tmp_path, free_port(), plugins=["rabbitmq_stomp"], config=config):
        assert answers(stomp)


def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    server = rabbitmq_server(tmp_path, free_port(), config="no_such_setting = 1")
    with pytest.raises(ServerError, match=r"(?s)before it was ready.*no_such_setting"):
        server.start()
    assert server.pids() == ()


class TestFinding:
    def test_the_version_is_told(self) -> None:
        name, separator, erlang = (version() or "").partition("/Erlang ")
        assert name.startswith("RabbitMQ ")
        assert separator
        assert erlang.isdigit()

    def test_a_given_home_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "sbin").mkdir()
        monkeypatch.setenv("RABBITMQ_HOME", str(tmp_path))
        assert find_rabbitmq() != tmp_path / "sbin"  # nothing in it
        (tmp_path / "sbin" / "rabbitmq-env").touch()
        assert find_rabbitmq() == tmp_path / "sbin"

    def test_without_erlang_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nonexistent")
        assert find_rabbitmq() is None
        assert version() is None

    def test_the_catalogue(self) -> None:
        broker = find_broker("rabbitmq")
        assert broker in BROKERS
        assert broker.find() == version()
        assert broker.url(5672) == "amqp://guest:guest@127.0.0.1:5672/"
        assert broker.install[-1][-1] == "rabbitmq-server"
        with pytest.raises(ConfigError, match="did you mean 'rabbitmq'"):
            find_broker("rabitmq")

    def test_asking_does_not_import_the_client(self) -> None:
        script = (
            "import sys, mqlayer.testing.brokers.catalogue as c; c.BROKERS[0].find(); sys.exit('pika' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
