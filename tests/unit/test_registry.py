"""From a URL to a backend."""

from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeBackend, FakeFactory, FakeOptions, unique

from mqlayer import registry
from mqlayer.clock import SystemClock
from mqlayer.errors import ConfigError, MissingExtraError, UnknownOptionError, UnknownSchemeError
from mqlayer.registry import CommonOptions, backend_factory, open_backend, register_backend, schemes


@pytest.fixture
def scheme() -> str:
    return unique("registry")


def test_the_built_in_backends_are_found_by_entry_point() -> None:
    assert {"memory", "sqlite", "amqp", "amqps"} <= set(schemes())
    assert schemes() == sorted(schemes())
    assert backend_factory("memory").options.__name__ == "MemoryOptions"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("memry://", "unknown scheme memry://; did you mean memory://?"),
        ("rabbitmq://h", "unknown scheme rabbitmq://; "),
        ("zzz://h", "known here: "),
    ],
)
def test_an_unknown_scheme_is_refused_with_the_nearest_match_or_all(url: str, text: str) -> None:
    with pytest.raises(UnknownSchemeError) as caught:
        open_backend(url, clock=SystemClock())
    assert text in str(caught.value)


def test_a_registered_backend_gets_its_url_and_options(scheme: str) -> None:
    factory = FakeFactory(FakeBackend())
    register_backend(scheme.upper(), factory)
    target = open_backend(f"{scheme}://h/p?prefetch=7&declare=never&timeout=2", clock=SystemClock())
    assert factory.given == FakeOptions(prefetch=7)
    assert factory.url is not None
    assert factory.url.path == "/p"
    assert target.prefetch == 7
    assert target.common == CommonOptions(declare="never", timeout=2.0)
    assert scheme in schemes()


def test_registering_again_replaces(scheme: str) -> None:
    first, second = FakeFactory(FakeBackend()), FakeFactory(FakeBackend())
    register_backend(scheme, first)
    register_backend(scheme, second)
    assert backend_factory(scheme) is second


@pytest.mark.parametrize(
    ("query", "error", "text"),
    [
        ("declare=sometimes", ConfigError, "option 'declare' is auto or never, not 'sometimes'"),
        ("require=all", ConfigError, "option 'require' is any or native, not 'all'"),
        ("timeout=0", ConfigError, "option 'timeout' is a positive number of seconds"),
        ("timeout=soon", ConfigError, "option 'timeout' of"),
        ("profil=sqs", UnknownOptionError, "did you mean 'profile'?"),
    ],
)
def test_options_that_every_url_has_are_checked(query: str, error: type[ConfigError], text: str) -> None:
    with pytest.raises(error) as caught:
        open_backend(f"memory://?{query}", clock=SystemClock())
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("extras", "missing", "text"),
    [
        (["acme"], "acme_client.io", 'needs acme_client: pip install "mqlayer[acme]"'),
        ([], "acme_client", "needs acme_client: pip install acme_client"),
        ([], None, "needs its client library"),
    ],
)
def test_a_missing_extra_names_what_mends_it(
    monkeypatch: pytest.MonkeyPatch, extras: list[str], missing: str | None, text: str
) -> None:
    def load() -> Any:
        raise ImportError("no such module", name=missing)

    monkeypatch.setattr(registry, "_installed", lambda: {"acme": SimpleNamespace(load=load, extras=extras)})
    with pytest.raises(MissingExtraError) as caught:
        open_backend("acme://h", clock=SystemClock())
    assert str(caught.value).startswith("acme:// ")
    assert text in str(caught.value)
