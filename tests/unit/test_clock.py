"""The manual clock: nobody sleeps, nobody misses an advance."""

import threading

import pytest
from fakes import in_thread

from mqlayer.clock import ManualClock, SystemClock


def test_it_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(1000.0)
    assert (clock.time(), clock.monotonic()) == (1000.0, 0.0)
    clock.advance(2.5)
    assert (clock.time(), clock.monotonic()) == (1002.5, 2.5)


def test_it_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="cannot be advanced"):
        ManualClock().advance(-1)


def test_an_advance_ends_a_wait_that_is_due() -> None:
    clock, condition = ManualClock(), threading.Condition()
    reached = threading.Event()

    def wait() -> bool:
        with condition:
            reached.set()
            while clock.monotonic() < 5:
                clock.wait(condition, 5 - clock.monotonic())
        return True

    with in_thread(wait) as waiting:
        reached.wait()
        clock.advance(2)
        assert waiting.thread.is_alive()
        clock.advance(3)
        assert waiting.result()


def test_a_notification_ends_a_wait() -> None:
    clock, condition = ManualClock(), threading.Condition()
    done: list[int] = []

    def wait() -> bool:
        with condition:
            while not done:
                assert clock.wait(condition, 5)
        return True

    with in_thread(wait) as waiting, condition:
        done.append(1)
        condition.notify_all()
    assert waiting.result()


def test_a_wait_that_nobody_ends_says_so() -> None:
    clock, condition = ManualClock(patience=0.01), threading.Condition()
    with condition, pytest.raises(TimeoutError, match="nobody advanced"):
        clock.wait(condition, 5)


@pytest.mark.parametrize("clock", [ManualClock(), SystemClock()])
def test_no_time_is_no_wait(clock: ManualClock | SystemClock) -> None:
    condition = threading.Condition()
    with condition:
        assert clock.wait(condition, 0) is False
        assert clock.wait(condition, -1) is False


def test_watchers_hear_of_a_jump_until_they_end_it() -> None:
    clock = ManualClock()
    heard: list[float] = []
    end = clock.watch(lambda: heard.append(clock.monotonic()))
    clock.advance(1)
    end()
    clock.advance(1)
    assert heard == [1.0]


def test_the_system_clock_takes_any_timeout() -> None:
    condition = threading.Condition()
    with condition:
        threading.Timer(0.01, lambda: _notify(condition)).start()
        assert SystemClock().wait(condition, float("inf"))


def _notify(condition: threading.Condition) -> None:
    with condition:
        condition.notify_all()
