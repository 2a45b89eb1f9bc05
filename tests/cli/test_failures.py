"""Which error leads to which exit code, and what is said of it."""

import logging
import subprocess
import sys

import pytest

import mqlayer
from mqlayer import errors
from mqlayer.cli import messages
from mqlayer.cli.failures import ExitCode, exit_code, hide_passwords


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UnknownSchemeError("x"), 2),
        (errors.MissingExtraError("x"), 2),
        (errors.UnsupportedError("x"), 2),
        (errors.ArgumentError("x"), 2),
        (errors.AuthenticationError("x"), 2),
        (errors.MessageTooLargeError("x"), 2),
        (errors.HeaderError("x"), 2),
        (errors.ConnectFailedError("x"), 3),
        (errors.ConnectionLostError("x"), 3),
        (errors.StoreError("x"), 3),
        (errors.SendTimeoutError("x"), 3),
        (errors.OutcomeUnknownError("x"), 4),
        (errors.RequestTimeoutError("x"), 4),
        (errors.StaleDeliveryError("x"), 4),
        (errors.QueueNotFoundError("x"), 1),
        (errors.UnroutableError("x"), 1),
        (errors.RefusedError("x"), 1),
        (errors.UndecodableError("x"), 1),
        (BrokenPipeError(), 1),
        (PermissionError(13, "x"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error, code):
    assert exit_code(error) == code


def test_every_error_of_ours_has_a_code():
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, errors.MQError):
            assert exit_code(kind("x")) in set(ExitCode), name


def test_a_defect_has_no_code():
    assert exit_code(ZeroDivisionError()) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amqp://me:s3cret@host/ is down", "amqp://me:***@host/ is down"),
        ("amqp://me:s3@cret:x@host,other/", "amqp://me:***@host,other/"),
        ("stomp+ssl://me:s3cret@host:61613", "stomp+ssl://me:***@host:61613"),
        ("amqp://:s3cret@host", "amqp://:***@host"),
        ("amqp://host:5672/a@b", "amqp://host:5672/a@b"),
        ("sqlite:///jobs.db at 10:30 by me@here", "sqlite:///jobs.db at 10:30 by me@here"),
    ],
)
def test_passwords_are_hidden(text, shown):
    assert hide_passwords(text) == shown


def failing(error):
    def connect(*_, **__):
        raise error

    return connect


@pytest.mark.parametrize("verbose", [False, True])
def test_a_traceback_shows_only_when_asked_for_and_never_a_password(mqlayer_command, monkeypatch, verbose):
    error = errors.ConnectFailedError("no broker at amqp://me:s3cret@host/")
    monkeypatch.setattr(messages.mqlayer, "connect", failing(error))
    done = mqlayer_command(*["--verbose"] * verbose, "stats", "amqp://me:s3cret@host/", "orders")
    assert done.exit_code == 3
    assert done.stderr.endswith("mqlayer: no broker at amqp://me:***@host/\n")
    assert ("Traceback" in done.stderr) is verbose
    assert "s3cret" not in done.output


def test_an_unknown_outcome_names_the_message(mqlayer_command, monkeypatch):
    error = errors.OutcomeUnknownError("the connection ended", message_id="a-1")
    monkeypatch.setattr(messages.mqlayer, "connect", failing(error))
    done = mqlayer_command("send", "memory://", "orders", "x")
    assert done.exit_code == 4
    assert "(message a-1: unknown)" in done.stderr


def test_ctrl_c_is_130_and_says_nothing(mqlayer_command, monkeypatch):
    monkeypatch.setattr(messages.mqlayer, "connect", failing(KeyboardInterrupt()))
    done = mqlayer_command("receive", "memory://", "orders")
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "")


def test_a_defect_keeps_its_traceback(mqlayer_command, monkeypatch):
    monkeypatch.setattr(messages.mqlayer, "connect", failing(ZeroDivisionError("a defect")))
    done = mqlayer_command("stats", "memory://", "orders")
    assert isinstance(done.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "arguments",
    [
        ["amqp://me:s3cret@host/"],
        ["stats", "orders", "more", "amqp://me:s3cret@host/"],
        ["receive", "memory://", "orders", "--count", "0"],
        ["receive", "memory://", "orders", "--timeout", "soon"],
        ["send", "memory://", "orders", "x", "--header", "no-value"],
        ["send", "memory://", "orders", "x", "--ttl", "1", "--delay", "2"],
        ["send", "memory://", "orders", "x", "--priority", "10"],
        ["send", "memory://?profile=sqs", "orders", "x", "--priority", "1"],
        ["stats", "no-url", "orders"],
        ["stats", "memory://?leese=3", "orders"],
        ["stats", "amqqp://me:s3cret@host/", "orders"],
        ["stats", "memory://", ""],
    ],
)
def test_a_users_mistake_is_one_sentence_and_code_2(mqlayer_command, arguments):
    done = mqlayer_command(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr
    assert done.stderr.strip()


def test_warnings_of_ours_show_and_those_of_libraries_only_with_verbose(mqlayer_command, monkeypatch):
    def connect(*_, **__):
        logging.getLogger("mqlayer").warning("connection to amqp://me:s3cret@host/ lost")
        logging.getLogger("some.library").error("refused")
        raise errors.ConnectionLostError("gone")

    monkeypatch.setattr(messages.mqlayer, "connect", connect)
    before = list(logging.getLogger().handlers)
    quiet = mqlayer_command("stats", "memory://", "orders").stderr
    assert quiet == "mqlayer: connection to amqp://me:***@host/ lost\nmqlayer: gone\n"
    loud = mqlayer_command("--verbose", "stats", "memory://", "orders").stderr
    assert "ERROR some.library: refused" in loud
    assert logging.getLogger().handlers == before


def test_version(mqlayer_command):
    done = mqlayer_command("--version")
    assert (done.exit_code, done.stdout) == (0, f"mqlayer {mqlayer.__version__}\n")


def test_without_typer_the_command_says_what_to_install():
    program = "import sys; sys.modules['typer'] = None; from mqlayer.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert 'pip install "mqlayer[cli]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_the_entry_point_imports_nothing_heavy():
    program = (
        "import sys, mqlayer.__main__; print([m for m in ('typer', 'rich', 'mqlayer.testing') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
