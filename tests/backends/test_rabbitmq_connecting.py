"""Connecting to what does not answer as a RabbitMQ server does."""

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from mqlayer.errors import ConnectFailedError
from mqlayer.testing.ports import LOOPBACK, free_port

pytest.importorskip("pika")

from mqlayer.backends.rabbitmq_connection import Login, connect  # it needs pika

LOGIN = Login(scheme="amqp", username="guest", password="guest", vhost="/", heartbeat=60, tls=None)
SHORT = (0.005, 0.01, 0.02, 0.03, 0.05) * 2  #: seconds; the hang-up meets different steps of the handshake


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Somebody who accepts, and never says a word."""
    port = free_port()
    listener = socket.create_server((LOOPBACK, port))
    accepted: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                accepted.append(listener.accept()[0])
            except OSError:  # closed: the test is over
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield port
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    for each in accepted:
        each.close()


def test_a_handshake_without_answer_is_a_failed_connect(silent_port: int) -> None:
    for timeout in SHORT:
        with pytest.raises(ConnectFailedError):
            connect([(LOOPBACK, silent_port)], LOGIN, timeout, time.monotonic)


def test_a_given_up_handshake_leaves_no_descriptor(silent_port: int) -> None:
    def try_once() -> None:
        with pytest.raises(ConnectFailedError):
            connect([(LOOPBACK, silent_port)], LOGIN, 0.02, time.monotonic)

    try_once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        try_once()
    # Each accepted socket is in this process, too.
    assert len(os.listdir("/proc/self/fd")) <= before + 10
