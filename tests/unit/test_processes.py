"""Process control against small trees of Python processes: nothing survives, and the records say what happened."""

import atexit
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mqlayer.testing.ports import LOOPBACK, answers, free_port
from mqlayer.testing.process_tree import wait_dead
from mqlayer.testing.processes import ProcessServer, ServerError

# Starts a daemon that has a session and a parent of its own, as RabbitMQ's name server does, and a plain child; writes
# their numbers; then listens, if given a port, until it is told to end.
TREE = """
import os, signal, socket, subprocess, sys, time
folder, port, deaf = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "deaf"
nap = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
child = subprocess.Popen(nap)
if os.fork() == 0:
    os.setsid()
    daemon = subprocess.Popen(nap, start_new_session=True)
    open(folder + "/daemon", "w").write(str(daemon.pid))
    os._exit(0)
os.wait()
if deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    def end(*_):
        child.kill()
        child.wait()
        sys.exit(3)
    signal.signal(signal.SIGTERM, end)
if port:
    listener = socket.create_server(("127.0.0.1", port))
print("ready", flush=True)
open(folder + "/ready", "a").write(f"{os.getpid()}\\n")
while True:
    if port:
        link, _ = listener.accept()
        link.sendall(b"served")
        link.close()
    else:
        time.sleep(600)
"""


def alive(pid: int) -> bool:
    return bool(wait_dead([pid], 0))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., ProcessServer]]:
    made: list[ProcessServer] = []

    def make(*, port: int = 0, deaf: bool = False) -> ProcessServer:
        def probe() -> None:
            if port:
                with socket.create_connection((LOOPBACK, port), 5) as link:
                    assert link.recv(6) == b"served"
            elif str(server.pid) not in (tmp_path / "ready").read_text():
                raise AssertionError("not yet")

        script = [sys.executable, "-S", "-c", TREE, tmp_path, str(port), "deaf" if deaf else "polite"]
        server = ProcessServer(script, log=tmp_path / "log", probe=probe, port=port or None, ready_timeout=30.0)
        made.append(server)
        return server

    yield make
    for server in made:
        if server.pids():
            server.kill()


def daemon_of(tmp_path: Path) -> int:
    return int((tmp_path / "daemon").read_text())


class TestKill:
    def test_kill_takes_the_whole_tree_and_says_so(self, make: Callable[..., ProcessServer], tmp_path: Path) -> None:
        server = make(port=free_port())
        server.start()
        pids, daemon = server.pids(), daemon_of(tmp_path)
        assert pids[0] == server.pid
        assert daemon in pids
        assert len(pids) == 3
        ending = server.kill()
        assert not any(alive(pid) for pid in pids)
        assert ending.pids == pids
        assert (ending.signal, ending.exit_status, ending.by_itself) == (signal.SIGKILL, -9, False)
        assert ending.port_refused is True
        assert ending.began_at < ending.ended_at
        assert server.endings == (ending,)
        assert (server.alive, server.returncode, server.pids()) == (False, -9, ())

    def test_a_dead_server_is_not_killed_twice(self, make: Callable[..., ProcessServer]) -> None:
        server = make()
        with pytest.raises(ServerError, match="never started"):
            server.kill()
        server.start()
        server.kill()
        with pytest.raises(ServerError, match="ended already"):
            server.kill()

    def test_another_signal_that_is_survived_is_an_error(self, make: Callable[..., ProcessServer]) -> None:
        server = make(deaf=True)
        server.start()
        with pytest.raises(ServerError, match="survived SIGTERM"):
            server.kill(signal.SIGTERM, timeout=0.2)
        assert server.kill().exit_status == -9

    def test_a_paused_server_is_silent_until_resumed_and_can_be_killed(
        self, make: Callable[..., ProcessServer]
    ) -> None:
        server = make(port=free_port())
        server.start()
        assert server.pause() == server.pids()
        with socket.create_connection((LOOPBACK, server.port or 0), 0.2) as link, pytest.raises(TimeoutError):
            link.recv(6)
        server.resume()
        server.probe()
        server.pause()
        assert server.kill().exit_status == -9

    def test_a_thread_may_kill_while_another_waits_for_the_start(self, tmp_path: Path) -> None:
        probed = threading.Event()

        def never_ready() -> None:
            probed.set()
            raise AssertionError("never ready")

        server = ProcessServer([sys.executable, "-c", "import time; time.sleep(600)"], probe=never_ready)
        killer = threading.Thread(target=lambda: probed.wait(30) and server.kill())
        killer.start()
        with pytest.raises(ServerError, match="exit status -9"):
            server.start()
        killer.join()
        assert len(server.endings) == 1


class TestStop:
    def test_stop_waits_for_the_exit_and_clears_daemons_away(
        self, make: Callable[..., ProcessServer], tmp_path: Path
    ) -> None:
        server = make()
        server.start()
        daemon = daemon_of(tmp_path)
        ending = server.stop()
        assert (ending.signal, ending.exit_status, ending.by_itself) == (signal.SIGTERM, 3, True)
        assert ending.leftovers == (daemon,)
        assert ending.port_refused is None
        assert not alive(daemon)

    def test_stop_kills_what_does_not_listen_and_admits_it(self, make: Callable[..., ProcessServer]) -> None:
        server = make(deaf=True)
        server.start()
        ending = server.stop(timeout=0.2)
        assert (ending.exit_status, ending.by_itself) == (-9, False)
        assert not any(alive(pid) for pid in ending.pids)

    def test_a_paused_server_can_stop(self, make: Callable[..., ProcessServer]) -> None:
        server = make()
        server.start()
        server.pause()
        assert server.stop().by_itself

    def test_an_end_of_its_own_is_seen(self, tmp_path: Path) -> None:
        server = ProcessServer([sys.executable, "-c", "input(); raise SystemExit(7)"], log=tmp_path / "log")
        server.start()
        server.wait_dead()
        ending = server.kill()
        assert (ending.signal, ending.by_itself) == (None, True)
        assert ending.exit_status == 1  # standard input is closed


class TestStart:
    def test_restart_is_a_new_process_on_the_same_folder(
        self, make: Callable[..., ProcessServer], tmp_path: Path
    ) -> None:
        server = make(port=free_port())
        with pytest.raises(ServerError, match="never started"):
            server.restart()
        server.start()
        with pytest.raises(ServerError, match="runs already"):
            server.restart()
        first, first_daemon = server.pid, daemon_of(tmp_path)
        server.kill()
        server.restart()
        assert server.pid != first
        assert first_daemon not in server.pids()
        one, two = server.beginnings
        assert [one.pid, two.pid] == [first, server.pid]
        assert one.began_at < one.ready_at < server.endings[0].ended_at < two.began_at == server.started_at
        assert (tmp_path / "ready").read_text().split() == [str(first), str(server.pid)]

    def test_what_a_crashed_server_left_is_cleared_before_the_next_start(
        self, make: Callable[..., ProcessServer], tmp_path: Path
    ) -> None:
        server = make()
        server.start()
        daemon = daemon_of(tmp_path)
        os.kill(server.pid or 0, signal.SIGKILL)
        assert wait_dead([server.pid or 0], 10) == []
        assert alive(daemon)
        server.start()
        assert not alive(daemon)
        assert server.endings[0].signal is None

    def test_an_exit_before_it_is_ready_fails_at_once_with_the_log(self, tmp_path: Path) -> None:
        def never_ready() -> None:
            raise AssertionError("never ready")

        complain = [sys.executable, "-c", "print('no such option'); raise SystemExit(4)"]
        server = ProcessServer(complain, log=tmp_path / "log", probe=never_ready, ready_timeout=600.0)
        with pytest.raises(ServerError, match=r"(?s)exit status 4.*never ready.*no such option"):
            server.start()
        assert server.endings[0].exit_status == 4

    def test_a_server_that_never_gets_ready_is_killed(self, tmp_path: Path) -> None:
        def never_ready() -> None:
            raise AssertionError("never ready")

        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        server = ProcessServer(sleep, probe=never_ready, ready_timeout=0.2)
        with pytest.raises(ServerError, match=r"was not ready in 0\.2 s"):
            server.start()
        assert not server.alive
        assert server.endings[0].exit_status == -9

    def test_a_port_that_somebody_else_serves_is_refused(self, make: Callable[..., ProcessServer]) -> None:
        port = free_port()
        with socket.create_server((LOOPBACK, port)), pytest.raises(ServerError, match=f"port {port} answers before"):
            make(port=port).start()

    def test_a_missing_command_is_named(self) -> None:
        with pytest.raises(ServerError, match="/nonexistent/broker"):
            ProcessServer(["/nonexistent/broker"]).start()

    def test_the_environment_is_the_given_one(self, tmp_path: Path) -> None:
        show = [sys.executable, "-c", "import os; print(sorted(os.environ))"]
        server = ProcessServer(show, log=tmp_path / "log", env={"ONLY": "this"})
        server.start()
        server.wait_dead()
        server.kill()
        assert re.search(r"\['(LC_CTYPE', ')?MQLAYER_SERVER_\w+', 'ONLY'\]", server.log_tail())

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else; others keep their identity")
    def test_root_becomes_the_named_user(self, tmp_path: Path) -> None:
        server = ProcessServer(["/bin/sh", "-c", "id -un"], log=tmp_path / "log", cwd=Path("/"), user="nobody")
        server.start()
        server.wait_dead()
        server.kill()
        assert server.log_tail() == "nobody"


class TestNothingIsLeft:
    """The user of a server goes, and does not say goodbye to it."""

    USER = """
import os, signal, sys
from pathlib import Path
from mqlayer.testing.processes import ProcessServer
folder, how = Path(sys.argv[1]), sys.argv[2]
def probe():
    assert (folder / "ready").exists()
server = ProcessServer([sys.executable, "-S", "-c", sys.argv[3], folder, "0", "deaf"], probe=probe)
server.start()
print(*server.pids(), flush=True)
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "forgotten":
    del server
    print("gone", flush=True)
    sys.stdin.read()
if how == "raising":
    raise KeyboardInterrupt
"""

    @pytest.mark.parametrize("how", ["killed", "raising", "ending"])
    def test_after_the_users_process(self, tmp_path: Path, how: str) -> None:
        user = subprocess.run([sys.executable, "-c", self.USER, tmp_path, how, TREE], capture_output=True, timeout=60)
        pids = [int(pid) for pid in user.stdout.split()]
        assert len(pids) == 3
        assert wait_dead(pids, 10) == []

    def test_after_the_object(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", self.USER, tmp_path, "forgotten", TREE]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
            assert user.stdout is not None
            pids = [int(pid) for pid in user.stdout.readline().split()]
            assert user.stdout.readline() == b"gone\n"
            assert [pid for pid in pids if alive(pid)] == []
            assert user.poll() is None

    def test_a_fork_of_the_user_ends_nothing(self, make: Callable[..., ProcessServer]) -> None:
        server = make()
        server.start()
        if (child := os.fork()) == 0:
            atexit._run_exitfuncs()  # as an interpreter does that ends in good order
            os._exit(0)
        os.waitpid(child, 0)
        assert server.alive
        assert server.kill().exit_status == -9

    def test_the_context_manager_kills(self, make: Callable[..., ProcessServer]) -> None:
        with make() as server:
            pids = server.pids()
        assert not any(alive(pid) for pid in pids)
        assert server.endings[0].exit_status == -9

    def test_guardians_go_with_their_server(self, make: Callable[..., ProcessServer]) -> None:
        server = make()
        server.start()
        children = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children"
        with_guardian = Path(children).read_text().split()
        server.kill()
        left = Path(children).read_text().split()
        assert len(with_guardian) - len(left) == 2  # the server and its guardian


def test_the_start_takes_no_longer_than_the_server(make: Callable[..., ProcessServer]) -> None:
    server = make(port=free_port())
    started = time.monotonic()
    server.start()
    assert server.beginnings[0].ready_at - started < 20.0
    assert answers(server.port or 0)
