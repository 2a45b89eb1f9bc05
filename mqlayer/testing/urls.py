"""A URL with other options. Plain text in, plain text out."""

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

__all__ = ["with_options"]


def with_options(url: str, options: Mapping[str, object]) -> str:
    """*url* with *options* in place of its own ones of the same name; those that are ``None`` are taken out."""
    if not options:
        return url
    base, _, query = url.partition("?")
    merged: dict[str, object] = dict(parse_qsl(query, keep_blank_values=True)) | dict(options)
    text = urlencode({name: _text(value) for name, value in merged.items() if value is not None})
    return f"{base}?{text}" if text else base


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
