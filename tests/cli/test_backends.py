"""``backends``: every scheme, its extra, and what it can do."""

import json

import pytest

from mqlayer import registry
from mqlayer.backends.memory import MemoryFactory
from mqlayer.cli import backends as command
from mqlayer.errors import MissingExtraError


@pytest.fixture
def found(monkeypatch):
    """Two schemes: one whose store is embedded, one whose client library is missing."""
    factories = {"memory": MemoryFactory}

    def backend_factory(scheme):
        if scheme not in factories:
            raise MissingExtraError('amqp:// needs pika: pip install "mqlayer[rabbitmq]"')
        return factories[scheme]

    monkeypatch.setattr(command.mqlayer, "schemes", lambda: ["amqp", "memory"])
    monkeypatch.setattr(command, "backend_factory", backend_factory)
    return factories


def rows(mqlayer_command, *arguments):
    done = mqlayer_command("backends", *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}


def test_embedded_backends_are_asked_and_a_missing_library_says_what_mends_it(mqlayer_command, found):
    listed = rows(mqlayer_command)
    assert listed["memory://"]["capabilities"]["delay"] == "native"
    assert listed["memory://"]["capabilities"]["durable"] is False
    assert (listed["memory://"]["extra"], listed["memory://"]["missing"]) == (None, None)
    assert 'pip install "mqlayer[rabbitmq]"' in listed["amqp://"]["missing"]
    assert (listed["amqp://"]["extra"], listed["amqp://"]["capabilities"]) == ("rabbitmq", None)


def test_a_backend_with_a_server_says_connect_to_see(mqlayer_command, found):
    found["amqp"] = MemoryFactory
    shown = mqlayer_command("backends").stdout
    assert "connect to see" in shown
    assert "delivery count" in shown
    assert "\x1b" not in shown


def test_a_url_is_connected_to_and_shown_without_its_password(mqlayer_command, shared):
    url, _ = shared
    assert rows(mqlayer_command, url)[url]["capabilities"]["priority"] == "native"
    assert (
        rows(mqlayer_command, "memory://?profile=sqs")["memory://?profile=sqs"]["capabilities"]["priority"]
        == "unsupported"
    )


def test_every_installed_scheme_is_listed(mqlayer_command):
    done = mqlayer_command("backends", "--json")
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == [f"{s}://" for s in registry.schemes()]
