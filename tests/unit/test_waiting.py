"""Signals: no notification between a look and a wait is lost."""

import threading

import pytest
from fakes import PATIENCE, in_thread

from mqlayer.clock import ManualClock, SystemClock
from mqlayer.engine.waiting import Signal


@pytest.fixture
def signal() -> Signal:
    return Signal(SystemClock())


def test_a_notification_between_look_and_wait_is_not_lost(signal: Signal) -> None:
    version = signal.version
    signal.notify()
    signal.wait(version, None)  # would wait for ever otherwise


def test_a_notification_ends_a_wait(signal: Signal) -> None:
    version = signal.version
    with in_thread(lambda: signal.wait(version, PATIENCE)) as waiting:
        signal.notify()
        waiting.result()
    assert signal.version == version + 1


def test_everybody_who_waits_is_told(signal: Signal) -> None:
    version = signal.version
    with in_thread(lambda: signal.wait(version, None)), in_thread(lambda: signal.wait(version, None)):
        signal.notify()


def test_a_wait_ends_when_something_is_due() -> None:
    clock = ManualClock()
    signal = Signal(clock)
    signal.look_again(5.0)
    version = signal.version
    assert signal.until_due(None) == 5.0
    assert signal.until_due(3.0) == 3.0
    with in_thread(lambda: signal.wait(version, None)) as waiting:
        clock.advance(5.0)
        waiting.result()


def test_an_earlier_time_counts_and_a_later_one_does_not() -> None:
    signal = Signal(ManualClock())
    for when in (5.0, 9.0, 3.0):
        signal.look_again(when)
    assert signal.due == 3.0


def test_a_time_that_has_passed_keeps_no_later_one_out() -> None:
    clock = ManualClock()
    signal = Signal(clock)
    signal.look_again(1.0)
    clock.advance(2.0)
    signal.look_again(9.0)
    assert signal.due == 9.0


def test_nothing_due_leaves_the_timeout(signal: Signal) -> None:
    assert signal.until_due(None) is None
    assert signal.until_due(7.0) == 7.0


class TestCallbacks:
    def test_called_once_without_the_lock(self, signal: Signal) -> None:
        free: list[bool] = []

        def callback() -> None:
            got = threading.Event()

            def try_it() -> None:
                with signal.lock:
                    got.set()

            threading.Thread(target=try_it, daemon=True).start()
            free.append(got.wait(PATIENCE))

        assert signal.when(signal.version, callback)
        signal.notify()
        signal.notify()
        assert free == [True]

    def test_too_late_is_told_at_once(self, signal: Signal) -> None:
        version = signal.version
        signal.notify()
        assert not signal.when(version, lambda: pytest.fail("nobody should call"))

    def test_who_waits_no_longer_is_not_called(self, signal: Signal) -> None:
        called: list[int] = []

        def callback() -> None:
            called.append(1)

        signal.when(signal.version, callback)
        signal.forget(callback)
        signal.forget(callback)
        signal.notify()
        assert called == []
