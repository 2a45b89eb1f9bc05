"""Ports: in the range, not given out twice, not in use."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from random import Random

import pytest

from mqlayer.testing.ports import LOOPBACK, PORT_FIRST, PORT_LAST, PortError, answers, assert_refused, free_port


@pytest.fixture
def own_reservations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What others have reserved is out of the way, so that a seed decides alone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"mqlayer-ports-{os.getuid()}"


def test_ports_are_in_the_range_and_not_repeated() -> None:
    ports = [free_port() for _ in range(100)]
    assert len(set(ports)) == 100
    assert all(PORT_FIRST <= port <= PORT_LAST for port in ports)


def test_the_range_lies_below_the_ports_of_clients() -> None:
    first, _last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert int(first) > PORT_LAST


def test_the_same_seed_does_not_give_the_same_port_twice(own_reservations: Path) -> None:
    first, second = free_port(Random(7)), free_port(Random(7))
    own_reservations.unlink()
    assert first != second
    assert (free_port(Random(7)), free_port(Random(7))) == (first, second)


def test_a_port_in_use_is_passed_over(own_reservations: Path) -> None:
    wanted = free_port(Random(7))
    own_reservations.unlink()
    with socket.create_server((LOOPBACK, wanted)):
        assert free_port(Random(7)) != wanted


def test_another_process_gets_another_port(own_reservations: Path) -> None:
    mine = free_port(Random(7))
    script = "import random, mqlayer.testing.ports as p; print(p.free_port(random.Random(7)))"
    environment = {**os.environ, "TMPDIR": str(own_reservations.parent)}
    ask = [sys.executable, "-c", script]
    first, second = (int(subprocess.run(ask, env=environment, capture_output=True, check=True).stdout) for _ in "ab")
    assert first != mine
    assert second == first  # the first asker is dead, and its reservation with it


def test_threads_get_different_ports() -> None:
    ports: list[int] = []
    threads = [threading.Thread(target=lambda: ports.append(free_port())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ports)) == 16


def test_a_guessable_file_is_not_followed(own_reservations: Path) -> None:
    target = own_reservations.with_name("precious")
    target.write_text("precious")
    own_reservations.symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        free_port()
    assert target.read_text() == "precious"


def test_assert_refused_waits_for_the_end_of_a_listener() -> None:
    port = free_port()
    assert_refused(port)
    listener = socket.create_server((LOOPBACK, port))
    assert answers(port)
    with pytest.raises(PortError, match=str(port)):
        assert_refused(port, timeout=0.1)
    closer = threading.Timer(0.1, listener.close)
    closer.start()
    assert_refused(port)
    closer.join()
    assert not answers(port)
