"""``backends``: what can stand before ``://`` here, and what each of them can do."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

import mqlayer
from mqlayer.cli.output import JSON, console, json_line, table
from mqlayer.errors import MissingExtraError
from mqlayer.registry import GROUP, backend_factory
from mqlayer.urls import parse_url

__all__ = ["backends"]

Value = str | bool | int | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One scheme, or one URL that was asked for.

    Attributes:
        extra: The extra of mqlayer that it needs, if any.
        missing: What mends it where its client library is not installed.
        capabilities: ``None``: only a connection can tell.
    """

    name: str
    extra: str | None
    missing: str | None
    capabilities: Mapping[str, Value] | None

    @property
    def state(self) -> str:
        if self.missing is not None:
            return self.missing
        return "connect to see" if self.capabilities is None else "see below"


def backends(
    urls: Annotated[
        list[str] | None, typer.Argument(metavar="URL", help="Brokers to connect to, and to ask what they can do.")
    ] = None,
    *,
    as_json: JSON = False,
) -> None:
    """List the URL schemes, the extras they need, and what they can do: natively, emulated by mqlayer, or not at all.

    What some brokers can do depends on their version: give their URLs to connect and see.
    """
    entries = [_asked(url) for url in urls] if urls else _installed()
    if as_json:
        for each in entries:
            json_line(
                {"name": each.name, "extra": each.extra, "missing": each.missing, "capabilities": each.capabilities}
            )
        return
    rows = [(each.name, each.extra or "none", each.state) for each in entries]
    out = console()
    out.print(table(["scheme", "extra", "what it can do"], rows))
    known = [(each.name, each.capabilities) for each in entries if each.capabilities is not None]
    if known:
        names = list(known[0][1])
        lines = [[_words(name), *(_shown(name, values[name]) for _, values in known)] for name in names]
        out.print(table(["capability", *(name for name, _ in known)], lines))
    if any(each.missing is None and each.capabilities is None for each in entries):
        out.print("connect to see: mqlayer backends amqp://user:password@host/, for example")


def _installed() -> list[Entry]:
    """Every scheme; those whose store is embedded are opened in a folder that goes again."""
    with tempfile.TemporaryDirectory(prefix="mqlayer-backends-") as folder:
        embedded = _embedded_urls(Path(folder))
        return [_entry(scheme, embedded.get(scheme)) for scheme in mqlayer.schemes()]


def _embedded_urls(folder: Path) -> dict[str, str]:
    from mqlayer.testing.harnesses import ALL

    urls = [kind().url(folder, 1) for kind in ALL if kind.scope != "network"]
    return {parse_url(url).scheme: url for url in urls}


def _entry(scheme: str, url: str | None) -> Entry:
    missing = None
    try:
        backend_factory(scheme)
    except MissingExtraError as exc:
        missing = str(exc)
    capabilities = _read(url) if url is not None and missing is None else None
    return Entry(name=f"{scheme}://", extra=_extra(scheme), missing=missing, capabilities=capabilities)


def _asked(url: str) -> Entry:
    parsed = parse_url(url)
    return Entry(name=str(parsed), extra=_extra(parsed.scheme), missing=None, capabilities=_read(url))


def _read(url: str) -> dict[str, Value]:
    with mqlayer.connect(url) as mq:
        found = mq.capabilities
    values = {each.name: getattr(found, each.name) for each in fields(found)}
    return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}


def _extra(scheme: str) -> str | None:
    """The extra that the entry point of a scheme names; a backend registered by hand has none."""
    for point in metadata.entry_points(group=GROUP, name=scheme):
        return next(iter(point.extras), None)
    return None


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shown(name: str, value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "no limit" if "max" in name else "not told"
    return f"{value:,g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
