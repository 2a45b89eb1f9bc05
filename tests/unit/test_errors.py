"""The tree of errors."""

import inspect
import re

import pytest

from mqlayer import errors
from mqlayer.errors import Fate, MQError, SendError

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, Exception)]


def drawn_tree() -> dict[str, tuple[str, int]]:
    """Error → its parent, as drawn in the module's docstring."""
    tree: dict[str, tuple[str, int]] = {}
    above: dict[int, str] = {-1: "MQError"}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ([│├└─ ]*)(\w+Error)\b", line)
        if found and found[2] != "MQError":
            depth = len(found[1]) // 4 - 1
            above[depth] = found[2]
            tree[found[2]] = (above[depth - 1], depth)
    return tree


def test_the_tree_is_as_drawn() -> None:
    drawn = drawn_tree()
    assert set(drawn) == {cls.__name__ for cls in CLASSES} - {"MQError"}
    for cls in CLASSES:
        if cls is not MQError:
            assert cls.__mro__[1].__name__ == drawn[cls.__name__][0], cls


def test_everything_public_is_named_and_documented() -> None:
    assert sorted(errors.__all__) == list(errors.__all__)
    assert {cls.__name__ for cls in CLASSES} | {"Fate"} == set(errors.__all__)
    assert all(cls.__doc__ and cls.__name__.endswith("Error") for cls in CLASSES)


def test_an_unroutable_message_is_both_refused_and_without_a_queue() -> None:
    error = errors.UnroutableError("no queue", message_id="m1")
    assert isinstance(error, errors.RefusedError)
    assert isinstance(error, errors.QueueNotFoundError)
    assert error.fate is Fate.REFUSED
    assert not error.retryable


@pytest.mark.parametrize(
    ("cls", "fate", "retryable"),
    [
        (errors.RefusedError, Fate.REFUSED, False),
        (errors.MessageTooLargeError, Fate.REFUSED, False),
        (errors.HeaderError, Fate.REFUSED, False),
        (errors.EncodeError, Fate.REFUSED, False),
        (errors.NotSentError, Fate.NOT_SENT, True),
        (errors.SendTimeoutError, Fate.NOT_SENT, True),
        (errors.OutcomeUnknownError, Fate.UNKNOWN, True),
    ],
)
def test_each_send_error_says_what_is_known(cls: type[SendError], fate: Fate, retryable: bool) -> None:
    error = cls("text", message_id="m1")
    assert (error.fate, error.retryable, error.message_id, str(error)) == (fate, retryable, "m1", "text")
    assert cls("text").message_id is None


@pytest.mark.parametrize(
    ("name", "retryable"),
    [
        ("ConfigError", False),
        ("ConnectFailedError", True),
        ("AuthenticationError", False),
        ("ConnectionLostError", True),
        ("ThrottledError", True),
        ("QueueNotFoundError", False),
        ("QueueMismatchError", False),
        ("StoreError", True),
        ("UndecodableError", False),
        ("StaleDeliveryError", False),
        ("ClosedError", False),
        ("RequestTimeoutError", True),
    ],
)
def test_retryable_says_whether_the_same_call_may_succeed_later(name: str, retryable: bool) -> None:
    assert getattr(errors, name).retryable is retryable
