"""The command as a process of its own: pipes, bytes, signals, exit codes."""

import signal
import subprocess
import sys

import pytest

LIMIT = 60.0
COMMAND = (sys.executable, "-m", "mqlayer")


def run(*arguments, input=b""):
    return subprocess.run([*COMMAND, *arguments], input=input, capture_output=True, timeout=LIMIT, check=False)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/jobs.db"


def test_any_bytes_go_through_standard_input_and_output(url):
    body = bytes(range(256)) * 300 + b"\n\n"
    sent = run("send", url, "orders", input=body)
    assert (sent.returncode, sent.stderr) == (0, b"")
    got = run("receive", url, "orders", "--raw")
    assert (got.returncode, got.stdout, got.stderr) == (0, body, b"")
    assert run("receive", url, "orders", "--timeout", "0").returncode == 1


def test_an_argument_that_is_no_text_is_sent_as_its_bytes(url):
    assert run("send", url, "orders", b"caf\xe9").returncode == 0
    assert run("receive", url, "orders", "--raw").stdout == b"caf\xe9"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nothing_is_lost_when_the_reader_of_the_output_goes_away(url, unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    body = b"x" * 100_000  # more than a pipe holds
    for _ in range(5):
        assert run("send", url, "orders", input=body).returncode == 0
    command = [*COMMAND, "receive", url, "orders", "--count", "5", "--timeout", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        read = process.stdout.read(1000)
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(LIMIT) == 1
    assert read == body[:1000]
    assert said == b""
    assert run("receive", url, "orders", "--count", "9", "--timeout", "0").stdout.count(body) == 5


def test_ctrl_c_ends_a_receive_that_waits(url):
    assert run("send", url, "orders", "first").returncode == 0
    command = [*COMMAND, "receive", url, "orders", "--count", "2", "--timeout", "inf"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that runs the tests in the background has SIGINT ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout.readline() == b"first\n"  # it is settling this one, or waits for the next
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 130
        assert process.stderr.read() == b""


def test_no_broker_is_code_3(url, tmp_path):
    (tmp_path / "jobs.db").write_bytes(b"this is no database" * 100)
    done = run("stats", url, "orders")
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr
    assert b"jobs.db" in done.stderr


def test_what_goes_into_a_pipe_has_no_control_codes(url):
    for arguments in (["--help"], ["backends"], ["brokers", "list"], ["nonsense"], ["send", "--help"]):
        done = run(*arguments)
        assert b"\x1b" not in done.stdout + done.stderr, arguments
