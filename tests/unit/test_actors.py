"""Actors and sites: what they write down, and that a kill is one. In memory, over a file, and over a make-believe server."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mqlayer.errors import ClosedError, OutcomeUnknownError, RefusedError, RequestTimeoutError, SendTimeoutError
from mqlayer.testing.actor import EXIT_BROKEN, EXIT_DEFECT, Order
from mqlayer.testing.catalogue import Criterion
from mqlayer.testing.checker import Expect, Floors
from mqlayer.testing.harness import HarnessError
from mqlayer.testing.harnesses import Memory, SQLite
from mqlayer.testing.ledger import EventType, Fault, Phase, read_ledgers
from mqlayer.testing.processes import ProcessServer
from mqlayer.testing.records import Record, Verdict
from mqlayer.testing.roles.producing import fate_of
from mqlayer.testing.runner import Column
from mqlayer.testing.stage import Profile, Stage
from mqlayer.testing.suite.criterion import Check, Outcome

HERE = __name__

LISTEN = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    listener.accept()[0].close()
"""


class Served(SQLite):
    """A file, and a server beside it that has nothing to do with it but can be killed."""

    name = "served"

    def start(self, datadir: Path, port: int) -> ProcessServer:
        return ProcessServer([sys.executable, "-c", LISTEN, str(port)], port=port)


class Immortal(ProcessServer):
    """Only its owner can end it; what a test kills goes on."""

    def kill(self, number=signal.SIGKILL, *, timeout=15.0):
        return SimpleNamespace(exit_status=0)

    def __exit__(self, *_: object) -> None:
        super().kill()


class FakeKill(Served):
    """Its kill does nothing."""

    name = "fake-kill"

    def start(self, datadir, port):
        return Immortal([sys.executable, "-c", LISTEN, str(port)], port=port)


def run(harness, function, *, requires: str = "", keep: Path | None = None) -> Record:
    check = Check(Criterion("X1", "a test", "group", requires), function, 60.0)
    with Column(harness, profile=Profile.QUICK, seed=3) as column:
        return column.run(check, keep)


def passed(record: Record) -> Record:
    assert record.verdict is Verdict.PASS, record.reason
    return record


# ---- what actors call; in their process ----


def say_hello(work, name):
    work.say("waiting")
    return f"hello {name} from {work.name}"


def break_an_assertion(work):
    raise AssertionError("2 is not 3")


def have_a_typo(work):
    raise NameError("typo")


# ---- roles ----


@pytest.mark.parametrize("how", ["send", "submit", "send_many"])
@pytest.mark.parametrize("harness", [Memory, SQLite])
def test_what_is_produced_is_drained_and_accounted_for(harness, how):
    def function(stage: Stage) -> Outcome:
        queue = stage.queue()
        said = stage.actor("produce", queue=queue, count=25, how=how, batch=10, window=5).finish()
        assert said["ok"] == said["sent"] == 25
        end = stage.drain(stage.site, queue, quiet=0.3)
        assert (end.drained, end.queue_empty, end.received) == (True, True, 25)
        return stage.judge(
            Expect(drained=end.drained, queue_empty=end.queue_empty, ordered=True, floors=Floors(confirmed=25))
        )

    record = passed(run(harness(), function))
    assert record.counts["confirmed"] == record.counts["deliveries"] == 25


def test_a_producer_goes_on_until_it_is_stopped_and_keeps_its_rate():
    def function(stage: Stage) -> None:
        producer = stage.actor("produce", queue=stage.queue(), rate=50, first=100)
        stage.wait_until(lambda: len(stage.history()) >= 6, "three messages are sent")
        said = producer.stop()
        ids = [event.id for event in stage.history() if event.phase is Phase.OK]
        assert ids[:3] == [f"{producer.name}:{counter}" for counter in (100, 101, 102)]
        assert said["ok"] == len(ids)

    passed(run(Memory(), function))


def test_a_consumer_nacks_rejects_and_acks_as_told():
    def function(stage: Stage) -> None:
        queue = stage.queue()
        mq = stage.connect()
        stage.actor("produce", queue=queue, count=9).finish()
        consumer = stage.actor("consume", queues=[queue], nack_every=3, dead_letter=f"{queue}-dead", limit=12)
        assert consumer.finish() == {"received": 12, "acked": 9}
        stage.actor("produce", queue=queue, count=4).finish()
        stage.actor("consume", queues=[queue], reject_every=2, dead_letter=f"{queue}-dead", limit=4).finish()
        assert mq.stats(f"{queue}-dead").ready == 2
        kinds = [event.type for event in stage.history() if event.phase is Phase.INVOKE]
        assert (kinds.count(EventType.NACK), kinds.count(EventType.REJECT), kinds.count(EventType.ACK)) == (3, 2, 11)

    passed(run(Memory(), function))


@pytest.mark.parametrize("harness", [Memory, SQLite])
def test_what_a_killed_consumer_held_comes_back(harness):
    def function(stage: Stage) -> Outcome:
        queue = stage.queue()
        stage.actor("produce", queue=queue, count=6).finish()
        holder = stage.actor("consume", queues=[queue], hold=True, limit=3, lease=1.0)
        assert holder.wait_for("holding")["held"] == 3
        holder.kill()
        crasher = stage.actor("consume", queues=[queue], crash_at=2, lease=1.0)
        crasher.died()
        end = stage.drain(stage.site, queue, quiet=1.5)
        floors = Floors(actor_kills=2, in_flight=4)
        return stage.judge(Expect(drained=end.drained, queue_empty=end.queue_empty, floors=floors))

    record = passed(run(harness(), function))
    assert record.duplicates["by_cause"]["consumer_crash"] == 4


def test_a_consumer_that_closes_gives_back_what_it_holds():
    def function(stage: Stage) -> Outcome:
        queue = stage.queue()
        stage.actor("produce", queue=queue, count=3).finish()
        holder = stage.actor("consume", queues=[queue], hold=True, limit=2)
        holder.wait_for("holding")
        holder.stop()
        end = stage.drain(stage.site, queue, quiet=0.3)
        return stage.judge(Expect(drained=end.drained, queue_empty=end.queue_empty))

    assert passed(run(Memory(), function)).duplicates["by_cause"]["given_back"] == 2


def test_a_drain_cannot_say_lost_while_something_is_held():
    def function(stage: Stage) -> Outcome:
        queue = stage.queue()
        stage.actor("produce", queue=queue, count=3).finish()
        held = stage.connect().consumer(queue).receive_many(1)
        assert held
        end = stage.drain(stage.site, queue, quiet=0.2, deadline=0.5)
        assert (end.drained, end.queue_empty, end.received) == (False, False, 2)
        return stage.judge(Expect(drained=end.drained, queue_empty=end.queue_empty))

    assert run(Memory(), function).verdict is Verdict.UNKNOWN


def test_a_declare_check_makes_nothing():
    def function(stage: Stage) -> None:
        there, missing = stage.queue("there"), stage.queue("missing")
        stage.connect().declare(there, ordered=True)
        queues = {there: {"ordered": True}, missing: {}}
        for _ in range(2):
            said = stage.actor("declare-check", queues=queues, compare=True).finish()
            assert said == {"missing": [missing], "mismatched": {}, "unserved": {}, "checked": 2}
        said = stage.actor("declare-check", queues={there: {}}, compare=True).finish()
        assert list(said["mismatched"]) == [there]

    passed(run(Memory(), function))


def test_a_function_can_be_called_in_an_actor():
    def function(stage: Stage) -> None:
        actor = stage.actor("call", "caller", function=f"{HERE}:say_hello", arguments={"name": "you"})
        actor.wait_for("waiting")
        assert actor.finish()["returned"] == "hello you from caller"

    for harness in (Memory, SQLite):
        passed(run(harness(), function))


@pytest.mark.parametrize("harness", [Memory, SQLite])
@pytest.mark.parametrize(
    ("function_name", "verdict"), [("break_an_assertion", Verdict.FAIL), ("have_a_typo", Verdict.ERROR)]
)
@pytest.mark.parametrize("asked", [True, False])
def test_an_actor_that_fails_is_heard_of_whether_asked_or_not(harness, function_name, verdict, asked):
    def function(stage: Stage) -> None:
        actor = stage.actor("call", function=f"{HERE}:{function_name}")
        if asked:
            actor.finish()
        stage.wait_until(lambda: not actor.alive, "the actor ends")

    record = run(harness(), function)
    assert record.verdict is verdict
    assert "call-1" in record.reason


def test_a_wrong_job_is_refused_before_anything_starts():
    def function(stage: Stage) -> None:
        with pytest.raises(HarnessError, match=r"its fields are: .*prefetch"):
            stage.actor("consume", queue="q")
        with pytest.raises(HarnessError, match="there are: produce"):
            stage.actor("prduce")

    passed(run(SQLite(), function))


@pytest.mark.parametrize(
    ("error", "phase"),
    [
        (None, Phase.OK),
        (RefusedError("no"), Phase.FAIL),
        (SendTimeoutError("late"), Phase.FAIL),
        (ClosedError("closed"), Phase.FAIL),
        (OutcomeUnknownError("?"), Phase.INFO),
        (RequestTimeoutError("?"), Phase.INFO),
        (OSError("?"), Phase.INFO),
    ],
)
def test_a_failed_publish_is_one_only_if_it_certainly_is(error, phase):
    assert fate_of(error) is phase


# ---- the process ----


def start_process(tmp_path: Path, role: str, **job: object) -> subprocess.Popen[str]:
    order = Order(
        harness="mqlayer.testing.harnesses:SQLite",
        name="actor",
        role=role,
        url=f"sqlite:///{tmp_path}/queues.db",
        ledgers=str(tmp_path),
        job=job,
    )
    return subprocess.Popen(
        [sys.executable, "-m", "mqlayer.testing.actor", order.to_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )


def test_an_actor_ends_when_whoever_started_it_does(tmp_path):
    process = start_process(tmp_path, "consume", queues=["q"])
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"actor": "actor", "status": "ready"}
    rest, _ = process.communicate(timeout=30)  # closes its standard input
    assert json.loads(rest)["status"] == "finished"
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("function_name", "status"), [("break_an_assertion", EXIT_DEFECT), ("have_a_typo", EXIT_BROKEN), ("say_hello", 70)]
)
def test_the_exit_status_tells_defects_of_the_tested_from_those_of_the_test(tmp_path, function_name, status):
    process = start_process(tmp_path, "call", function=f"{HERE}:{function_name}")
    out, _ = process.communicate(timeout=30)
    assert process.returncode == status
    assert json.loads(out.splitlines()[-1])["status"] == "failed"


# ---- sites ----


def one_kill(stage: Stage, **options: object) -> Outcome:
    site = stage.own_server(**options)
    queue = stage.queue()
    site.actor("produce", queue=queue, count=20).finish()
    ended = site.kill(during="idle")
    site.restart()
    end = stage.drain(site, queue, quiet=0.3)
    return stage.judge(
        Expect(drained=end.drained, queue_empty=end.queue_empty, floors=Floors(kills=1, confirmed=20)), exit=ended.exit
    )


def test_a_store_in_memory_dies_with_its_process():
    record = run(Memory(), one_kill)
    assert record.verdict is Verdict.FAIL
    assert record.counts["lost"] == 20
    assert record.evidence["exit"] == -9
    assert record.evidence["successors"] != record.evidence["ended_pids"]
    assert run(Memory(), one_kill, requires="sigkill").verdict is Verdict.UNSUPPORTED


def test_a_file_outlives_a_process_that_has_it_open():
    record = passed(run(SQLite(), one_kill))
    assert record.evidence["exits"] == [-9]
    assert record.evidence["kills"] == 1


def test_a_killed_server_was_refused_and_came_back_as_another_process(tmp_path):
    record = passed(run(Served(), one_kill, keep=tmp_path))
    assert record.evidence["port_refused"] == [True]
    assert record.evidence["signals"] == ["SIGKILL"]
    old, new = record.evidence["ended_pids"], record.evidence["successors"]
    assert old != new
    faults = [event for event in read_ledgers(tmp_path) if event.detail.get("fault") == Fault.SERVER_KILL.value]
    assert [event.detail.get("pid") for event in faults] == [*old, *new]
    assert faults[0].detail["during"] == "idle"
    assert record.history == "served/X1"


def test_a_kill_that_kills_nothing_is_unknown_never_a_pass():
    record = run(FakeKill(), one_kill)
    assert record.verdict is Verdict.UNKNOWN
    assert "kills 0 of at least 1" in record.reason


def test_a_stop_is_not_a_kill():
    def function(stage: Stage) -> Outcome:
        site = stage.own_server()
        queue = stage.queue()
        site.actor("produce", queue=queue, count=5).finish()
        ended = site.stop()
        site.restart()
        end = stage.drain(site, queue, quiet=0.3)
        assert ended.exit == 0
        return stage.judge(Expect(drained=end.drained, queue_empty=end.queue_empty, floors=Floors(stops=1)))

    assert passed(run(SQLite(), function)).evidence["kills"] == 0


def test_the_others_go_on_when_one_user_of_a_file_is_killed():
    def function(stage: Stage) -> Outcome:
        site = stage.own_server()
        queue = stage.queue()
        producers = [site.actor("produce", queue=queue, rate=100) for _ in range(2)]
        for producer in producers:
            producer.ready()
        stage.wait_until(lambda: len(stage.history()) > 20, "both send")
        site.kill(during="publish")
        living = [producer for producer in producers if producer.alive]
        assert len(living) == 1
        before = len(stage.history())
        stage.wait_until(lambda: len(stage.history()) > before + 10, "the other one goes on")
        living[0].stop()
        end = stage.drain(site, queue, quiet=0.3)
        floors = Floors(kills=1, kills_in_publish=1, kills_with_traffic=1)
        return stage.judge(Expect(drained=end.drained, queue_empty=end.queue_empty, floors=floors))

    passed(run(SQLite(), function))


def test_a_proxy_needs_a_server_and_the_clients_go_through_it():
    def function(stage: Stage) -> None:
        site = stage.proxied()
        assert site.proxy is not None
        assert site.proxy.port != site.broker.port

    passed(run(Served(), function))
    assert run(SQLite(), function).verdict is Verdict.NOT_RUN


def test_the_shared_broker_is_not_to_be_killed():
    assert run(SQLite(), lambda stage: stage.site.kill()).verdict is Verdict.ERROR


def test_a_store_in_a_child_process_is_for_actors_alone():
    assert run(Memory(), lambda stage: stage.own_server().connect()).verdict is Verdict.ERROR
