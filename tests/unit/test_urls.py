"""URLs and their options."""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqlayer.errors import ConfigError, UnknownOptionError
from mqlayer.urls import BrokerURL, parse_url, split_options


class Kind(Enum):
    QUORUM = "quorum"
    CLASSIC = "classic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    prefetch: int | None = None
    heartbeat: float = 60.0
    fifo: bool = False
    queue_type: Kind = Kind.QUORUM
    mode: Literal["a", "b"] = "a"
    endpoint: str = ""
    curve_server_key: int = 0

    def __post_init__(self) -> None:
        if self.prefetch is not None and self.prefetch < 1:
            raise ValueError("option 'prefetch' is a whole number from 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class More:
    timeout: float | None = None


class TestParse:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("memory://", BrokerURL("memory")),
            ("memory://jobs", BrokerURL("memory", (("jobs", None),))),
            ("sqlite:///relative.db", BrokerURL("sqlite", (), "/relative.db")),
            ("sqlite:////tmp/a%20b.db", BrokerURL("sqlite", (), "//tmp/a b.db")),
            ("sqlite:////home/me@home/a.db", BrokerURL("sqlite", (), "//home/me@home/a.db")),
            ("amqp://h", BrokerURL("amqp", (("h", None),))),
            ("amqp://h/", BrokerURL("amqp", (("h", None),), "/")),
            ("AMQPS://h:5671/v%2Fh", BrokerURL("amqps", (("h", 5671),), "/v/h")),
            ("amqp://a,b:5673,c/v", BrokerURL("amqp", (("a", None), ("b", 5673), ("c", None)), "/v")),
            ("amqp://[::1]:5672/", BrokerURL("amqp", (("::1", 5672),), "/")),
            ("amqp://[::1],b/", BrokerURL("amqp", (("::1", None), ("b", None)), "/")),
            ("amqp://u:p%40%2F%3A@h/", BrokerURL("amqp", (("h", None),), "/", "u", "p@/:")),
            ("amqp://u@h/", BrokerURL("amqp", (("h", None),), "/", "u", None)),
            ("amqp://u:@h/", BrokerURL("amqp", (("h", None),), "/", "u", "")),
            ("amqp://u:p@w@h/", BrokerURL("amqp", (("h", None),), "/", "u", "p@w")),
            ("kombu+redis://h", BrokerURL("kombu+redis", (("h", None),))),
            (
                "sqs://eu?endpoint=http://127.0.0.1:9324&fifo=1",
                BrokerURL(
                    "sqs", (("eu", None),), "", None, None, (("endpoint", "http://127.0.0.1:9324"), ("fifo", "1"))
                ),
            ),
        ],
    )
    def test_table(self, text: str, expected: BrokerURL) -> None:
        assert parse_url(text) == expected

    @pytest.mark.parametrize(
        "text",
        [
            *("", "localhost", "amqp:/h", "://h", "1a://h", "a b://h", "s3cret@h://x", "é://h"),
            *("amqp://h:0/", "amqp://h:65536/", "amqp://h:x/", "amqp://h:²/", "amqp://h:5672:1/"),
            *("amqp://h/#frag", "amqp://u:pa#ss@h/", "amqp://u:pa/s3cret@h/", "amqp://u:12?s3cret@h/"),
            *("amqp://u:p@a/s3cret@h/", "amqp://u:p@s3cret?x@h/", "amqp://u:p@s3cret/x@h/v"),
            None,
        ],
    )
    def test_what_is_no_broker_url_is_refused_without_repeating_it(self, text: Any) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_url(text)
        assert "s3cret" not in str(caught.value)
        assert "ss@" not in str(caught.value)

    @given(st.text())
    def test_any_text_is_a_url_or_a_config_error(self, text: str) -> None:
        for candidate in (text, "amqp://" + text):
            try:
                url = parse_url(candidate)
            except ConfigError:
                continue
            assert repr(url)

    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=6))
    def test_the_password_is_in_no_text(self, password: str) -> None:
        url = BrokerURL("amqp", (("h", 1),), "/v", "user", password, (("token", password),))
        shown = BrokerURL("amqp", (("h", 1),), "/v", "user", "x", (("token", "x"),))
        assert str(url) == str(shown)
        assert repr(url) == repr(shown)
        assert str(url) == "amqp://user:***@h:1/v?token=***"

    @pytest.mark.parametrize("text", ["amqp://u:***@[::1]:5672,b/v%20h?prefetch=20", "memory://", "sqlite:////a/b.db"])
    def test_the_text_is_the_url(self, text: str) -> None:
        assert str(parse_url(text)) == text
        assert repr(parse_url(text)) == f"BrokerURL({text!r})"


def read(query: str) -> Any:
    return split_options(parse_url(f"amqp://h?{query}").query, Options, More, scheme="amqp")


class TestOptions:
    @pytest.mark.parametrize(
        ("query", "options", "more"),
        [
            ("", Options(), More()),
            ("prefetch=20&timeout=1.5", Options(prefetch=20), More(timeout=1.5)),
            ("heartbeat=5", Options(heartbeat=5.0), More()),
            ("fifo=TRUE", Options(fifo=True), More()),
            ("fifo=off", Options(), More()),
            ("queue_type=classic&mode=b", Options(queue_type=Kind.CLASSIC, mode="b"), More()),
            ("endpoint=http%3A%2F%2Fx%3A1", Options(endpoint="http://x:1"), More()),
        ],
    )
    def test_each_text_is_read_as_its_type_says(self, query: str, options: Options, more: More) -> None:
        assert read(query) == [options, more]

    @pytest.mark.parametrize(
        ("query", "text"),
        [
            ("prefetchh=1", "unknown option 'prefetchh' for amqp://; did you mean 'prefetch'?"),
            ("Prefetch=1", "did you mean 'prefetch'?"),
            ("timeoutt=1", "did you mean 'timeout'?"),
            ("zzz=1", "it has: curve_server_key, endpoint, fifo, heartbeat, mode, prefetch, queue_type, timeout"),
        ],
    )
    def test_an_unknown_option_is_refused_with_the_nearest_match(self, query: str, text: str) -> None:
        with pytest.raises(UnknownOptionError) as caught:
            read(query)
        assert text in str(caught.value)

    @pytest.mark.parametrize(
        ("query", "text"),
        [
            ("prefetch=many", "option 'prefetch' of amqp:// is a whole number, not 'many'"),
            ("prefetch=", "option 'prefetch' of amqp:// is a whole number, not ''"),
            ("prefetch=1.5", "is a whole number"),
            ("prefetch=0", "amqp:// option 'prefetch' is a whole number from 1"),
            ("heartbeat=soon", "option 'heartbeat' of amqp:// is a number, not 'soon'"),
            ("heartbeat=nan", "is a finite number"),
            ("heartbeat=inf", "is a finite number"),
            ("fifo=perhaps", "option 'fifo' of amqp:// is true or false, not 'perhaps'"),
            ("queue_type=fast", "option 'queue_type' of amqp:// is one of quorum, classic, not 'fast'"),
            ("mode=c", "option 'mode' of amqp:// is one of a, b, not 'c'"),
            ("fifo=1&fifo=0", "option 'fifo' of amqp:// is given twice"),
        ],
    )
    def test_a_bad_value_is_refused_by_name(self, query: str, text: str) -> None:
        with pytest.raises(ConfigError) as caught:
            read(query)
        assert text in str(caught.value)

    def test_a_bad_secret_is_not_repeated(self) -> None:
        with pytest.raises(ConfigError) as caught:
            read("curve_server_key=hunter2")
        assert "hunter2" not in str(caught.value)
