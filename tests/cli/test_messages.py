"""``send``, ``receive``, ``stats``, ``peek``, ``purge``: what they print, and how they end."""

import base64
import json

import pytest

import mqlayer


def body_of(mq, queue="orders"):
    with mq.consumer(queue) as consumer:
        return consumer.receive(timeout=0).message


def test_send_prints_the_id_and_the_message_arrives_as_text(mqlayer_command, shared):
    url, mq = shared
    done = mqlayer_command("send", url, "orders", "hällo")
    assert done.exit_code == 0, done.stderr
    message = body_of(mq)
    assert (message.payload, message.id) == ("hällo", done.stdout.strip())


@pytest.mark.parametrize("dash", [["-"], []])
def test_send_reads_bytes_from_standard_input(mqlayer_command, shared, dash):
    url, mq = shared
    body = bytes(range(256)) + b"\r\n\0"
    done = mqlayer_command("send", url, "orders", *dash, input=body)
    assert done.exit_code == 0, done.stderr
    assert body_of(mq).body == body


def test_send_passes_every_field_on(mqlayer_command, shared):
    url, mq = shared
    fields = [
        "--priority",
        "7",
        "--group-id",
        "g",
        "--correlation-id",
        "c",
        "--reply-to",
        "r",
        "--id",
        "42",
        "--ttl",
        "60",
    ]
    done = mqlayer_command("send", url, "orders", "x", "-H", "a=1", "--header", "b=x=y", *fields, "--json")
    assert json.loads(done.stdout) == {"id": "42", "queue": "orders"}
    message = body_of(mq)
    assert dict(message.headers) == {"a": "1", "b": "x=y"}
    assert (message.priority, message.group_id, message.correlation_id, message.reply_to) == (7, "g", "c", "r")
    assert message.expires_at is not None


def test_json_body_is_checked_and_marked(mqlayer_command, shared):
    url, mq = shared
    refused = mqlayer_command("send", url, "orders", "{'id': 1}", "--json-body")
    assert refused.exit_code == 2
    assert "--json-body" in refused.stderr
    assert mqlayer_command("send", url, "orders", '{"id": 1}', "--json-body").exit_code == 0
    assert body_of(mq).payload == {"id": 1}


def test_receive_prints_each_body_on_a_line_and_acknowledges(mqlayer_command, shared):
    url, mq = shared
    mq.producer("orders").send_many(["one", "two", "three"])
    done = mqlayer_command("receive", url, "orders", "--count", "2", "--timeout", "0")
    assert (done.exit_code, done.stdout) == (0, "one\ntwo\n")
    assert mq.stats("orders").ready == 1
    assert mq.stats("orders").in_flight == 0


def test_receive_raw_writes_exactly_the_bytes(mqlayer_command, shared):
    url, mq = shared
    body = b"\xff\0\x1b[31m\n"
    mq.producer("orders").send(body)
    assert mqlayer_command("receive", url, "orders", "--raw").stdout_bytes == body


def test_receive_takes_what_there_is_and_a_shortfall_is_no_failure(mqlayer_command, shared):
    url, mq = shared
    mq.producer("orders").send("one")
    done = mqlayer_command("receive", url, "orders", "--count", "5", "--timeout", "0")
    assert (done.exit_code, done.stdout) == (0, "one\n")


def test_nothing_received_is_a_negative_result(mqlayer_command, shared):
    url, _ = shared
    done = mqlayer_command("receive", url, "orders", "--timeout", "0")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "nothing received from 'orders'" in done.stderr


def test_receive_json_has_all_there_is_to_know(mqlayer_command, shared):
    url, mq = shared
    with mq.producer("orders") as orders:
        orders.send("text", headers={"n": 1, "raw": b"\xff", "nothing": None}, correlation_id="c")
        orders.send(b"\xff\0")
    done = mqlayer_command("receive", url, "orders", "--count", "2", "--json")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["headers"] == {"n": 1, "raw": {"base64": base64.b64encode(b"\xff").decode()}, "nothing": None}
    assert (first["body"], first["body_encoding"], first["correlation_id"]) == ("text", "utf-8", "c")
    assert (first["queue"], first["delivery_count"], first["redelivered"]) == ("orders", 1, False)
    assert base64.b64decode(second["body"]) == b"\xff\0"
    assert second["body_encoding"] == "base64"
    assert first.keys() == second.keys()


def test_no_ack_shows_different_messages_and_gives_them_back_uncounted(mqlayer_command, shared):
    url, mq = shared
    mq.producer("orders").send_many(["one", "two"])
    for _ in range(3):
        done = mqlayer_command("receive", url, "orders", "--count", "2", "--no-ack", "--timeout", "0")
        assert sorted(done.stdout.split()) == ["one", "two"]
    with mq.consumer("orders") as consumer:
        deliveries = consumer.receive_many(2, timeout=0)
        assert [delivery.delivery_count for delivery in deliveries] == [1, 1]


def test_a_message_that_could_not_be_printed_is_not_acknowledged(mqlayer_command, shared, monkeypatch):
    url, mq = shared
    mq.producer("orders").send("precious")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mqlayer.cli.messages.write_body", full)
    done = mqlayer_command("receive", url, "orders")
    assert done.exit_code == 2
    assert "No space left" in done.stderr
    with mq.consumer("orders") as consumer:
        delivery = consumer.receive(timeout=0)
        assert (delivery.message.payload, delivery.delivery_count) == ("precious", 1)


def test_stats_as_table_and_as_json(mqlayer_command, shared):
    url, mq = shared
    with mq.producer("orders") as orders:
        orders.send("one")
        orders.send("two", delay=3600.0)
    found = json.loads(mqlayer_command("stats", url, "orders", "--json").stdout)
    assert found == {"queue": "orders", "ready": 1, "in_flight": 0, "delayed": 1, "approximate": False}
    shown = mqlayer_command("stats", url, "orders").stdout
    assert "in flight" in shown
    assert "\x1b" not in shown


def test_peek_changes_nothing(mqlayer_command, shared):
    url, mq = shared
    mq.producer("orders").send_many(["one", "two", "three"])
    done = mqlayer_command("peek", url, "orders", "--count", "2")
    assert (done.exit_code, done.stdout) == (0, "one\ntwo\n")
    (line,) = mqlayer_command("peek", url, "orders", "--count", "1", "--json").stdout.splitlines()
    assert json.loads(line)["body"] == "one"
    assert mq.stats("orders").ready == 3


def test_peek_at_nothing_is_a_negative_result(mqlayer_command, shared):
    url, mq = shared
    mq.declare("orders")
    assert mqlayer_command("peek", url, "orders").exit_code == 1


def test_a_dead_letter_says_where_it_comes_from_and_why(mqlayer_command, shared):
    url, mq = shared
    mq.producer("orders").send("bad")
    with mq.consumer("orders") as consumer:
        consumer.receive(timeout=0).reject("no such customer")
    found = json.loads(mqlayer_command("receive", url, "orders.dead", "--json").stdout)
    assert found["dead_letter"] == {"origin": "orders", "reason": "no such customer", "delivery_count": 1}


def test_purge_says_how_many(mqlayer_command, shared):
    url, mq = shared
    mq.producer("orders").send_many(["one", "two"])
    assert mqlayer_command("purge", url, "orders").stdout == "purged 2 from orders\n"
    assert json.loads(mqlayer_command("purge", url, "orders", "--json").stdout) == {"queue": "orders", "purged": 0}


@pytest.mark.parametrize("command", ["stats", "peek", "purge"])
def test_a_missing_queue_is_a_negative_result(mqlayer_command, shared, command):
    url, _ = shared
    done = mqlayer_command(command, url, "nowhere")
    assert done.exit_code == 1
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_message_received_too_often_can_still_be_looked_at(mqlayer_command, shared):
    url, mq = shared
    mq.producer("orders").send("poison")
    with mq.consumer("orders", retry=mqlayer.Retry(attempts_max=1000, delay=0)) as consumer:
        for _ in range(30):
            consumer.receive(timeout=0).nack()
    assert mqlayer_command("receive", url, "orders", "--timeout", "0").stdout == "poison\n"
