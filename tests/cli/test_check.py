"""``check URL``: the contract over the user's own broker, with queues that are gone afterwards."""

import json
import os
import sqlite3

import pytest

from mqlayer.cli import user_broker
from mqlayer.registry import backend_factory
from mqlayer.testing import suite
from mqlayer.testing.catalogue import CATALOGUE, by_id
from mqlayer.testing.suite.criterion import Check


def uses_queues(stage):
    mq = stage.connect()
    queue = stage.queue()
    mq.producer(queue).send("x")
    with mq.consumer(queue) as consumer:
        consumer.receive(timeout=5).reject("bad")
    mq.consumer(topic=stage.queue(), group="group").close()


def fails(stage):
    raise AssertionError("not kept")


@pytest.fixture
def criteria(monkeypatch):
    catalogue = by_id(CATALOGUE)

    def set_criteria(**functions):
        checks = [Check(catalogue[id], function, 30.0) for id, function in functions.items()]
        monkeypatch.setattr(suite, "select", lambda ids=None: checks)

    return set_criteria


def test_a_good_broker_passes_and_nothing_is_left_on_it(mqlayer_command, criteria, tmp_path):
    criteria(C01=uses_queues, F1a=fails, C34=fails)
    url = f"sqlite:///{tmp_path}/jobs.db"
    mqlayer_command("send", url, "mine", "precious")
    done = mqlayer_command("check", url)
    assert done.exit_code == 0, done.output
    assert "Nothing is red" in done.stdout
    assert "deleted 3 queues of its own" in done.stderr
    with sqlite3.connect(tmp_path / "jobs.db") as database:
        assert [name for (name,) in database.execute("SELECT name FROM mqlayer_queues")] == ["mine"]
    assert mqlayer_command("receive", url, "mine").stdout == "precious\n"


def test_nothing_of_it_stays_in_the_process(mqlayer_command, criteria, tmp_path):
    criteria(C01=uses_queues)
    before = backend_factory("sqlite")
    mqlayer_command("check", f"sqlite:///{tmp_path}/jobs.db")
    assert backend_factory("sqlite") is before
    assert user_broker.NOTES not in os.environ


def test_a_broken_promise_is_a_negative_result_and_queues_go_all_the_same(mqlayer_command, criteria, tmp_path):
    criteria(C01=uses_queues, C11=fails)
    done = mqlayer_command("check", f"sqlite:///{tmp_path}/jobs.db", "--json")
    assert done.exit_code == 1
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(record["criterion"], record["verdict"]) for record in records] == [("C01", "pass"), ("C11", "fail")]
    assert "deleted 3 queues" in done.stderr


def test_one_criterion_may_be_chosen_but_none_that_kills(mqlayer_command, criteria, shared):
    criteria(C01=uses_queues, C11=fails, F1a=fails)
    url, _ = shared
    assert mqlayer_command("check", url, "--criterion", "C01").exit_code == 0
    refused = mqlayer_command("check", url, "--criterion", "F1a")
    assert refused.exit_code == 2
    assert "no criterion F1a here" in refused.stderr


def test_a_broker_that_nobody_else_can_share_is_refused(mqlayer_command):
    done = mqlayer_command("check", "memory://")
    assert done.exit_code == 2
    assert "memory://check" in done.stderr


def test_only_names_of_the_suite_are_ever_deleted(shared, tmp_path):
    url, mq = shared
    mq.declare("mine")
    mq.declare("test-1")
    notes = tmp_path / "notes"
    notes.write_text('"mine"\n"test-1"\n"test-torn')
    assert user_broker.delete_noted(url, notes) == (1, {})
    assert mq.stats("mine").ready == 0
