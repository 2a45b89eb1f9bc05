"""The command in this process, and a broker in memory that it shares with the test."""

import secrets

import pytest
from typer.testing import CliRunner

import mqlayer
from mqlayer.cli.app import build


@pytest.fixture
def mqlayer_command():
    """Run the command: ``mqlayer_command("send", url, "orders", input=b"…")``."""

    def run(*arguments, input=None):
        return CliRunner().invoke(build(), list(arguments), input=input, prog_name="mqlayer")

    return run


@pytest.fixture
def shared():
    """The URL of a broker in memory, and a connection that keeps it alive between commands."""
    url = f"memory://cli-{secrets.token_hex(4)}"
    with mqlayer.connect(url) as mq:
        yield url, mq
