"""A broker's URL, taken apart. Knows no scheme.

``amqp://user:pw@a,b:5673,c/vhost?prefetch=20`` → three hosts, one path, one option.
"""

import difflib
import types
import typing
from dataclasses import dataclass, fields
from enum import Enum
from urllib.parse import parse_qsl, quote, unquote

from mqlayer.errors import ConfigError, UnknownOptionError

__all__ = ["BrokerURL", "parse_options", "parse_url", "split_options"]


@dataclass(frozen=True, slots=True)
class BrokerURL:
    """The parts of a URL. ``str()`` and ``repr()`` hide the password.

    Attributes:
        hosts: ``(host, port)`` in the order given; a port that is not given is ``None``.
        path: What follows the hosts, unquoted, with its leading slash; ``""`` where there is none.
        query: The options, as text, in the order given.
    """

    scheme: str
    hosts: tuple[tuple[str, int | None], ...] = ()
    path: str = ""
    username: str | None = None
    password: str | None = None
    query: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        login = ""
        if self.username is not None:
            login = quote(self.username, safe="") + (":***" if self.password is not None else "") + "@"
        hosts = ",".join(_host_text(host) + (f":{port}" if port is not None else "") for host, port in self.hosts)
        query = "&".join(f"{quote(k)}={quote(_shown(k, v), safe='/:*')}" for k, v in self.query)
        return f"{self.scheme}://{login}{hosts}{quote(self.path)}" + (f"?{query}" if query else "")

    def __repr__(self) -> str:
        return f"BrokerURL({str(self)!r})"


def parse_url(text: str) -> BrokerURL:
    """Take *text* apart.

    Raises:
        ConfigError: it is not ``scheme://…``, or a port is not a number. The text is not repeated where it may hold a
            password.
    """
    scheme, separator, rest = text.partition("://") if isinstance(text, str) else ("", "", "")
    plain = scheme.translate({ord(mark): None for mark in "+-."})
    if not separator or not scheme[:1].isalpha() or not (plain.isalnum() and plain.isascii()):
        raise ConfigError("a broker URL looks like scheme://…, for example sqlite:///jobs.db or amqp://localhost/")
    if "#" in rest:
        raise ConfigError(f"a '#' in a {scheme}:// URL is written %23")
    rest, _, query_text = rest.partition("?")
    authority, slash, path = rest.partition("/")
    if authority and "@" in path + query_text:
        # It may be that a password was cut in two, and its second half taken for a host, a path or an option
        raise ConfigError(
            f"in a {scheme}:// URL, '/', '?' and '@' of a user name, password, path or option are written %2F, %3F, %40"
        )
    login, at, hosts_text = authority.rpartition("@")
    username = password = None
    if at:
        user_text, colon, password_text = login.partition(":")
        username = unquote(user_text)
        password = unquote(password_text) if colon else None
    hosts = tuple(_host(part, scheme) for part in hosts_text.split(",")) if hosts_text else ()
    query = tuple(parse_qsl(query_text, keep_blank_values=True))
    return BrokerURL(scheme.lower(), hosts, unquote(slash + path), username, password, query)


def split_options(query: tuple[tuple[str, str], ...], *kinds: type, scheme: str) -> list[object]:
    """Read *query* into one instance of each dataclass in *kinds*.

    Raises:
        UnknownOptionError: an option that none of them has, with the nearest match.
        ConfigError: an option given twice, or a value of the wrong type.
    """
    known: dict[str, type] = {field.name: kind for kind in kinds for field in fields(kind)}
    given: dict[str, str] = {}
    for name, value in query:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has: {', '.join(sorted(known))}"
            raise UnknownOptionError(f"unknown option {name!r} for {scheme}://{hint}")
        if name in given:
            raise ConfigError(f"option {name!r} of {scheme}:// is given twice")
        given[name] = value
    return [
        parse_options(kind, {name: text for name, text in given.items() if known[name] is kind}, scheme=scheme)
        for kind in kinds
    ]


def parse_options(kind: type, given: typing.Mapping[str, str], *, scheme: str) -> object:
    """Make a *kind* (a dataclass) of texts, each read as its field's type says."""
    hints = typing.get_type_hints(kind)
    values = {name: _read(name, text, hints[name], scheme) for name, text in given.items()}
    try:
        return kind(**values)
    except ValueError as exc:  # a dataclass's own check of a value's range
        raise ConfigError(f"{scheme}:// {exc}") from exc


_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})
_SECRET = ("password", "secret", "key", "token")


def _read(name: str, text: str, hint: object, scheme: str) -> object:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    shown = "" if any(word in name for word in _SECRET) else f", not {text!r}"
    if typing.get_origin(hint) is typing.Literal:
        if text in typing.get_args(hint):
            return text
        raise ConfigError(f"option {name!r} of {scheme}:// is one of {', '.join(typing.get_args(hint))}{shown}")
    if isinstance(hint, type) and issubclass(hint, Enum):
        for member in hint:
            if member.value == text:
                return member
        choices = ", ".join(str(member.value) for member in hint)
        raise ConfigError(f"option {name!r} of {scheme}:// is one of {choices}{shown}")
    if hint is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise ConfigError(f"option {name!r} of {scheme}:// is true or false{shown}")
    if hint is int or hint is float:
        try:
            value = hint(text)
        except ValueError as exc:
            kind = "a whole number" if hint is int else "a number"
            raise ConfigError(f"option {name!r} of {scheme}:// is {kind}{shown}") from exc
        if value != value or value in (float("inf"), float("-inf")):
            raise ConfigError(f"option {name!r} of {scheme}:// is a finite number{shown}")
        return value
    return text


def _host(text: str, scheme: str) -> tuple[str, int | None]:
    if text.startswith("["):  # [::1]:5672
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if not port:
        return unquote(host), None
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ConfigError(f"the port of a host in the {scheme}:// URL is not a number from 1 to 65535")
    return unquote(host), int(port)


def _host_text(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host, safe="")


def _shown(name: str, value: str) -> str:
    return "***" if any(word in name for word in _SECRET) else value
