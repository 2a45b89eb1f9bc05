"""The fault proxy against a small server in this process: each verb, and the counts that prove it happened."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from random import Random

import pytest

from mqlayer.errors import ArgumentError, ClosedError
from mqlayer.testing.ports import LOOPBACK, assert_refused, free_port
from mqlayer.testing.proxy import Direction, FaultProxy

TO_SERVER, TO_CLIENT, BOTH = Direction.TO_SERVER, Direction.TO_CLIENT, Direction.BOTH
LIMIT = 10.0  # no test waits for longer; all end long before
QUIET = 0.15  # what "nothing comes" means


class EchoServer:
    """Sends back what it gets; remembers what it got, and how each connection ended."""

    def __init__(self) -> None:
        self.port = free_port()
        self.got = bytearray()
        self.ends: list[str] = []
        self.links: list[socket.socket] = []
        self.changed = threading.Condition()
        self.listener = socket.create_server((LOOPBACK, self.port))
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:
                return  # closed: the end of the test
            self.links.append(link)
            thread = threading.Thread(target=self._echo, args=(link,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _echo(self, link: socket.socket) -> None:
        end = "fin"
        try:
            while data := link.recv(65536):
                with self.changed:
                    self.got += data
                    self.changed.notify_all()
                link.sendall(data)
        except OSError as exc:
            end = "reset" if isinstance(exc, ConnectionResetError | BrokenPipeError) else "closed here"
        with self.changed:
            self.ends.append(end)
            self.changed.notify_all()
        link.close()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, LIMIT), f"got {bytes(self.got[:99])!r}, ends {self.ends}"

    def close(self) -> None:
        # close() alone would leave the thread waiting in accept().
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for link in self.links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(LIMIT)


@pytest.fixture
def server() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[FaultProxy]:
    with FaultProxy(LOOPBACK, server.port) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: FaultProxy) -> Iterator[Callable[[], socket.socket]]:
    with contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection((LOOPBACK, proxy.port), LIMIT))

        yield connect


@pytest.fixture
def client(connect: Callable[[], socket.socket]) -> socket.socket:
    client = connect()
    assert ask(client, b"hello") == b"hello"
    return client


def take(client: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = client.recv(count - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)


def ask(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return take(client, len(data))


def is_quiet(client: socket.socket) -> bool:
    client.settimeout(QUIET)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(LIMIT)
    return False


class TestForwarding:
    def test_bytes_pass_unchanged_both_ways_and_are_counted(self, proxy: FaultProxy, client: socket.socket) -> None:
        data = Random(1).randbytes(3_000_000)
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        assert take(client, len(data)) == data
        sender.join(LIMIT)
        stats = proxy.stats()
        assert (stats.connections, stats.open) == (1, 1)
        assert stats.bytes_to_server == stats.bytes_to_client == len(data) + 5
        assert stats.dropped_to_server == stats.dropped_to_client == stats.resets == 0

    def test_dozens_of_links_at_once(self, connect: Callable[[], socket.socket]) -> None:
        clients = [connect() for _ in range(40)]
        for number, client in enumerate(clients):
            client.sendall(b"%03d" % number)
        assert [take(client, 3) for client in clients] == [b"%03d" % number for number in range(40)]

    def test_an_end_on_one_side_reaches_the_other(
        self, proxy: FaultProxy, server: EchoServer, client: socket.socket
    ) -> None:
        client.shutdown(socket.SHUT_WR)
        server.wait_for(lambda: server.ends == ["fin"])
        assert client.recv(1) == b""
        assert proxy.stats().resets == 0

    def test_a_receiver_that_does_not_take_holds_the_sender_up(self, proxy: FaultProxy, server: EchoServer) -> None:
        with socket.socket() as client:  # small buffers, so that little is enough
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((LOOPBACK, proxy.port))
            client.settimeout(0.5)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 1 << 30:
                    sent += client.send(bytes(65536))
            stats = proxy.stats()
            assert sent < 1 << 30
            assert stats.bytes_to_server - stats.bytes_to_client < sent < 100_000_000
            proxy.reset()  # else the echo waits for the client for ever

    def test_an_idle_proxy_uses_no_cpu(self, proxy: FaultProxy, client: socket.socket) -> None:
        proxy.stall(TO_CLIENT)
        before = time.process_time()
        assert is_quiet(client)
        assert time.process_time() - before < QUIET / 2

    def test_a_server_that_is_down_closes_the_client_at_once(self) -> None:
        with FaultProxy(LOOPBACK, free_port()) as proxy:
            with socket.create_connection((LOOPBACK, proxy.port), LIMIT) as client:
                assert client.recv(1) == b""
            assert proxy.stats().unreachable == proxy.stats().connections == 1

    def test_the_server_may_go_and_come_back(
        self, server: EchoServer, proxy: FaultProxy, client: socket.socket
    ) -> None:
        server.close()
        assert client.recv(1) == b""
        server.listener = socket.create_server((LOOPBACK, server.port))
        server.threads.append(threading.Thread(target=server._accept, daemon=True))
        server.threads[-1].start()
        with socket.create_connection((LOOPBACK, proxy.port), LIMIT) as again:
            assert ask(again, b"again") == b"again"


class TestEnding:
    def test_close_ends_links_in_good_order(
        self, proxy: FaultProxy, server: EchoServer, connect: Callable[[], socket.socket]
    ) -> None:
        clients = [connect(), connect()]
        for client in clients:
            ask(client, b"x")
        proxy.close()
        assert [client.recv(1) for client in clients] == [b"", b""]
        server.wait_for(lambda: server.ends == ["fin", "fin"])
        assert (proxy.stats().open, proxy.stats().resets) == (0, 0)

    def test_reset_resets_both_sides(self, proxy: FaultProxy, server: EchoServer, client: socket.socket) -> None:
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        server.wait_for(lambda: server.ends == ["reset"])
        assert proxy.stats().resets == 1

    def test_a_reset_by_the_client_reaches_the_server(self, server: EchoServer, client: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        server.wait_for(lambda: server.ends == ["reset"])

    def test_half_close_leaves_the_other_direction_open(
        self, proxy: FaultProxy, server: EchoServer, client: socket.socket
    ) -> None:
        proxy.half_close(TO_CLIENT)
        assert client.recv(1) == b""
        client.sendall(b"still heard")
        server.wait_for(lambda: server.got.endswith(b"still heard"))
        client.close()
        server.wait_for(lambda: server.ends == ["fin"])
        assert proxy.stats().dropped_to_client == len(b"still heard")

    def test_refuse_and_listen_again(self, proxy: FaultProxy, client: socket.socket) -> None:
        proxy.refuse()
        assert_refused(proxy.port)
        assert ask(client, b"old links live") == b"old links live"
        proxy.refuse(False)
        with socket.create_connection((LOOPBACK, proxy.port), LIMIT) as again:
            assert ask(again, b"again") == b"again"

    def test_after_stop_the_port_is_refused_and_verbs_say_so(self, server: EchoServer) -> None:
        proxy = FaultProxy(LOOPBACK, server.port)
        proxy.start()
        with socket.create_connection((LOOPBACK, proxy.port), LIMIT) as client:
            ask(client, b"x")
            proxy.stop()
            assert client.recv(1) == b""
        proxy.stop()
        assert_refused(proxy.port)
        with pytest.raises(ClosedError):
            proxy.reset()
        assert proxy.stats().bytes_to_server == 1


class TestSilence:
    def test_a_blackhole_swallows_counts_and_tells_nobody(
        self, proxy: FaultProxy, server: EchoServer, client: socket.socket
    ) -> None:
        proxy.blackhole(TO_CLIENT)
        client.sendall(b"published")
        server.wait_for(lambda: server.got.endswith(b"published"))  # the other direction passes
        assert is_quiet(client)
        assert proxy.stats().dropped_to_client == len(b"published")
        assert (proxy.stats().open, server.ends) == (1, [])

    def test_a_swallowed_answer_and_then_a_reset(
        self, proxy: FaultProxy, server: EchoServer, client: socket.socket
    ) -> None:
        proxy.blackhole(TO_CLIENT)
        client.sendall(b"published")
        server.wait_for(lambda: server.got.endswith(b"published"))
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert proxy.stats().resets == 1

    def test_a_server_that_dies_behind_a_blackhole_is_not_noticed(
        self, proxy: FaultProxy, server: EchoServer, client: socket.socket
    ) -> None:
        proxy.blackhole()
        server.close()
        client.sendall(b"into the void")
        assert is_quiet(client)
        assert proxy.stats().dropped_to_server == len(b"into the void")

    def test_a_restore_resets_links_that_lost_bytes_and_spares_the_others(
        self, proxy: FaultProxy, connect: Callable[[], socket.socket]
    ) -> None:
        holed, whole = connect(), connect()
        assert ask(holed, b"x") == ask(whole, b"x")
        proxy.blackhole(TO_SERVER)
        holed.sendall(b"lost")
        assert is_quiet(whole)
        proxy.restore()
        with pytest.raises(ConnectionResetError):
            holed.recv(1)
        assert ask(whole, b"whole") == b"whole"

    def test_a_stall_loses_nothing(self, proxy: FaultProxy, server: EchoServer, client: socket.socket) -> None:
        proxy.stall(TO_SERVER)
        client.sendall(b"later")
        assert is_quiet(client)
        assert server.got == b"hello"
        proxy.restore()
        assert take(client, 5) == b"later"
        assert proxy.stats().dropped_to_server == proxy.stats().resets == 0


class TestSlowness:
    def test_delay_holds_each_byte_that_long(self, proxy: FaultProxy, client: socket.socket) -> None:
        proxy.delay(0.1)
        started = time.monotonic()
        assert ask(client, b"x") == b"x"
        assert time.monotonic() - started >= 0.2  # there and back

    def test_delay_is_a_latency_not_a_rate(self, proxy: FaultProxy, client: socket.socket) -> None:
        proxy.delay(0.2, TO_SERVER)
        started = time.monotonic()
        for _ in range(20):
            client.sendall(b"x")
            threading.Event().wait(0.01)  # so that they are read apart
        assert take(client, 20) == b"x" * 20
        assert time.monotonic() - started < 3.0  # one after the other they would take 4 s

    def test_rate_is_a_limit(self, proxy: FaultProxy, client: socket.socket) -> None:
        proxy.rate(100_000, TO_SERVER)
        started = time.monotonic()
        assert ask(client, bytes(30_000)) == bytes(30_000)
        assert time.monotonic() - started >= 0.25  # 0.3 s, less what the first tick may catch up

    def test_slices_arrive_whole(self, proxy: FaultProxy, server: EchoServer, client: socket.socket) -> None:
        proxy.slice(1)
        proxy.rate(20_000)
        data = Random(2).randbytes(2000)
        assert ask(client, data) == data
        assert proxy.stats().bytes_to_server == len(data) + 5

    @pytest.mark.parametrize("wrong", [lambda p: p.rate(0), lambda p: p.slice(0), lambda p: p.delay(-1)])
    def test_impossible_figures_are_refused(self, proxy: FaultProxy, wrong: Callable[[FaultProxy], None]) -> None:
        with pytest.raises(ArgumentError):
            wrong(proxy)


class TestExactly:
    def test_on_bytes_is_called_before_the_byte_after(
        self, proxy: FaultProxy, server: EchoServer, client: socket.socket
    ) -> None:
        seen: list[tuple[int, int]] = []

        def look() -> None:
            stats = proxy.stats()
            threading.Event().wait(QUIET)  # time enough for a byte too many to arrive
            seen.append((stats.bytes_to_server, len(server.got)))

        proxy.on_bytes(7, TO_SERVER, look)
        assert ask(client, b"0123456789") == b"0123456789"
        assert seen == [(5 + 7, 5 + 7)]
        assert proxy.stats().triggered == 1

    def test_on_no_bytes_is_called_before_the_next(
        self, proxy: FaultProxy, server: EchoServer, client: socket.socket
    ) -> None:
        proxy.on_bytes(0, TO_CLIENT, proxy.reset)
        client.sendall(b"published")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert server.got.endswith(b"published")
        assert proxy.stats().bytes_to_client == 5

    def test_counts_run_over_all_links_together(self, proxy: FaultProxy, connect: Callable[[], socket.socket]) -> None:
        called = threading.Event()
        one, two = connect(), connect()
        proxy.on_bytes(4, TO_SERVER, called.set)
        assert ask(one, b"12") == b"12"
        assert not called.is_set()
        assert ask(two, b"34") == b"34"
        assert called.is_set()

    def test_both_directions_count(self, proxy: FaultProxy, client: socket.socket) -> None:
        called = threading.Event()
        proxy.on_bytes(6, BOTH, called.set)
        assert ask(client, b"ab") == b"ab"
        assert not called.is_set()
        assert ask(client, b"c") == b"c"
        assert called.wait(LIMIT)

    def test_a_cut_in_mid_frame(self, proxy: FaultProxy, server: EchoServer, client: socket.socket) -> None:
        proxy.on_bytes(3, TO_SERVER, proxy.close)
        client.sendall(b"frame")
        server.wait_for(lambda: server.ends == ["fin"])
        assert server.got == b"hellofra"
        assert proxy.stats().dropped_to_server == 2

    def test_drop_after_swallows_the_rest(self, proxy: FaultProxy, server: EchoServer, client: socket.socket) -> None:
        proxy.drop_after(3, TO_SERVER)
        client.sendall(b"frame")
        assert take(client, 3) == b"fra"
        assert is_quiet(client)
        assert (server.got, proxy.stats().dropped_to_server) == (b"hellofra", 2)

    def test_restore_disarms(self, proxy: FaultProxy, client: socket.socket) -> None:
        proxy.on_bytes(1, TO_SERVER, proxy.reset)
        proxy.restore()
        assert ask(client, b"x") == b"x"
        assert proxy.stats().triggered == 0

    def test_what_a_callback_raises_is_raised_by_stop(self, server: EchoServer) -> None:
        def fail() -> None:
            raise RuntimeError("the assertion in the callback")

        proxy = FaultProxy(LOOPBACK, server.port)
        proxy.start()
        proxy.on_bytes(1, TO_SERVER, fail)
        with socket.create_connection((LOOPBACK, proxy.port), LIMIT) as client:
            assert ask(client, b"on it goes") == b"on it goes"
        with pytest.raises(ExceptionGroup) as caught:
            proxy.stop()
        assert caught.group_contains(RuntimeError, match="the assertion")
