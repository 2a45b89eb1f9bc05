"""``brokers list|install|run``: what they say, what they start, and that nothing of it is left."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mqlayer.cli import brokers as command
from mqlayer.testing.brokers import catalogue
from mqlayer.testing.brokers.catalogue import Broker
from mqlayer.testing.brokers.rabbitmq import find_rabbitmq, probe
from mqlayer.testing.ports import answers, assert_refused, free_port
from mqlayer.testing.processes import ProcessServer

LIMIT = 90.0

# A broker that accepts connections, writes into its data folder, and can be told to end by itself.
LISTEN = """
import socket, sys
from pathlib import Path
Path(sys.argv[2], "data").write_text("kept")
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
while server.accept()[0].recv(4) != b"quit":
    pass
"""


def start(datadir: Path, port: int) -> ProcessServer:
    def ready() -> None:
        if not answers(port):
            raise ConnectionError("not yet")

    return ProcessServer([sys.executable, "-c", LISTEN, str(port), str(datadir)], probe=ready, port=port)


def toy(find=lambda: "Toy 1.0", install=(("true",),), needs_root=False) -> Broker:
    return Broker(
        name="toy",
        title="Toy",
        schemes=("toy",),
        find=find,
        install=install,
        needs_root=needs_root,
        start=start,
        url=lambda port: f"toy://127.0.0.1:{port}/",
    )


@pytest.fixture
def known(monkeypatch):
    """Make this the only broker that can be run."""
    return lambda broker: monkeypatch.setattr(catalogue, "BROKERS", (broker,))


def test_list_says_what_is_installed_and_what_would_install_it(mqlayer_command, known):
    known(toy(find=lambda: None))
    shown = mqlayer_command("brokers", "list").stdout
    assert "toy://" in shown
    assert "mqlayer brokers install toy" in shown
    found = json.loads(mqlayer_command("brokers", "list", "--json").stdout)
    assert (found["name"], found["version"], found["install"]) == ("toy", None, [["true"]])


def test_an_unknown_broker_is_refused_with_the_nearest_match(mqlayer_command):
    done = mqlayer_command("brokers", "run", "rabitmq")
    assert done.exit_code == 2
    assert "did you mean 'rabbitmq'?" in done.stderr


def test_install_without_root_only_prints(mqlayer_command, known, monkeypatch):
    known(toy(find=lambda: None, install=(("touch", "a file"), ("false",)), needs_root=True))
    monkeypatch.setattr(command.os, "geteuid", lambda: 1000)
    done = mqlayer_command("brokers", "install", "toy")
    assert (done.exit_code, done.stdout) == (1, "touch 'a file'\nfalse\n")
    assert "need root" in done.stderr


def test_a_dry_run_runs_nothing(mqlayer_command, known, tmp_path):
    known(toy(find=lambda: None, install=(("touch", f"{tmp_path}/made"),)))
    done = mqlayer_command("brokers", "install", "toy", "--dry-run")
    assert (done.exit_code, done.stdout) == (0, f"touch {tmp_path}/made\n")
    assert not (tmp_path / "made").exists()


def test_install_says_each_command_and_runs_it(mqlayer_command, known, tmp_path):
    made = tmp_path / "made"
    known(toy(find=lambda: "Toy 1.0" if made.exists() else None, install=(("touch", str(made)),)))
    done = mqlayer_command("brokers", "install", "toy")
    assert (done.exit_code, done.stdout) == (0, "Toy 1.0 is installed\n")
    assert f"+ touch {made}" in done.stderr
    assert mqlayer_command("brokers", "install", "toy").stdout == "Toy 1.0 is installed already\n"


@pytest.mark.parametrize(
    ("install", "code", "said"),
    [
        ((("false",),), 2, "false failed with exit status 1"),
        ((("no-such-program-here",),), 2, "cannot run no-such-program-here"),
        ((("true",),), 1, "still not found"),
    ],
)
def test_an_installation_that_fails_says_so(mqlayer_command, known, install, code, said):
    known(toy(find=lambda: None, install=install))
    done = mqlayer_command("brokers", "install", "toy")
    assert done.exit_code == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_run_of_what_is_not_installed_says_how_to_install_it(mqlayer_command, known):
    known(toy(find=lambda: None))
    done = mqlayer_command("brokers", "run", "toy")
    assert done.exit_code == 2
    assert "mqlayer brokers install toy" in done.stderr


@contextmanager
def running(*arguments: str, program: list[str]) -> Iterator[subprocess.Popen[str]]:
    """``brokers run`` as a process of its own, which is gone afterwards."""
    process = subprocess.Popen(
        [*program, "brokers", "run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        # A shell that runs the tests in the background has SIGINT ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def toy_program() -> list[str]:
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_brokers as t;"
        "t.catalogue.BROKERS = (t.toy(),); from mqlayer.__main__ import main; sys.exit(main())"
    )
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_run_prints_the_url_and_ends_with_the_broker_on_a_signal(number, code):
    with running("toy", "--json", program=toy_program()) as process:
        ready = json.loads(process.stdout.readline())
        assert ready["url"] == f"toy://127.0.0.1:{ready['port']}/"
        assert answers(ready["port"])
        process.send_signal(number)
        _, said = process.communicate(timeout=LIMIT)
        assert process.returncode == code, said
        assert "stopping Toy" in said
        assert "Traceback" not in said
        assert_refused(ready["port"])
        assert not Path(ready["data"]).exists()


def test_run_in_a_folder_of_the_users_keeps_what_is_in_it(tmp_path):
    port = free_port()
    data = tmp_path / "some" / "where"
    with running("toy", "--port", str(port), "--data", str(data), program=toy_program()) as process:
        assert process.stdout.readline() == f"toy://127.0.0.1:{port}/\n"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT)
    assert (data / "data").read_text() == "kept"


def test_run_ends_when_the_broker_does(tmp_path):
    import socket

    with running("toy", "--json", program=toy_program()) as process:
        port = json.loads(process.stdout.readline())["port"]
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"quit")
        _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert "ended by itself" in said
    assert "listening" in said


@pytest.mark.skipif(find_rabbitmq() is None and not os.environ.get("CI"), reason="RabbitMQ is not installed")
def test_run_starts_a_rabbitmq_that_works_and_stops_it_on_ctrl_c():
    with running("rabbitmq", "--json", program=[sys.executable, "-m", "mqlayer"]) as process:
        ready = json.loads(process.stdout.readline() or "null")
        assert ready, process.communicate()[1]
        assert ready["url"].startswith("amqp://")
        probe(ready["port"])
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=LIMIT)
        assert process.returncode == 130, said
        assert_refused(ready["port"])
        assert not Path(ready["data"]).exists()
