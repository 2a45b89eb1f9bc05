"""``backends.md`` says of options and capabilities what the code says."""

import re
from dataclasses import MISSING, fields
from enum import Enum

import pytest
from capability_table import columns, shown, table

from examples import ROOT
from mqlayer.backends.memory_profiles import PROFILES
from mqlayer.backends.rabbitmq_wire import DELAY_STEPS, NAME_MAX_BYTES, queue_arguments
from mqlayer.codec import to_headers
from mqlayer.driver import Outgoing, QueueOptions, Support, Trail
from mqlayer.registry import CommonOptions, backend_factory, schemes

BACKENDS = (ROOT / "docs" / "backends.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()
_ROW = re.compile(r"^\| `(\w+)` \| (.+?) \|", re.MULTILINE)


def documented(page, title):
    """Option → default, as text, of the table below a heading."""
    _, found, rest = page.partition(f"### {title}\n")
    assert found, f"no section {title!r}"
    section = re.split(r"^#", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return dict(_ROW.findall(section))


def declared(options):
    return {each.name: _shown(each.default) for each in fields(options)}


def _shown(default):
    assert default is not MISSING
    if default is None:
        return "–"
    return f"`{default.value if isinstance(default, Enum) else default}`"


@pytest.mark.parametrize("scheme", ["memory", "sqlite", "amqp", "sqs", "stomp"])
def test_options_and_defaults(scheme):
    assert documented(BACKENDS, f"Options of `{scheme}://`") == declared(backend_factory(scheme).options)


def test_common_options():
    common = declared(CommonOptions)
    common["require"] = "`any`"
    assert documented(GUIDE, "Options of every URL") == common


def test_every_installed_scheme_is_there():
    ours = {"memory", "sqlite", "amqp", "amqps", "sqs", "stomp", "stomp+ssl"}
    assert ours <= set(schemes())
    for scheme in ours:
        assert f"`{scheme}://" in BACKENDS


def test_capabilities():
    between = re.search(r"<!-- capabilities.*?-->\n(.*?)<!-- end of capabilities -->", BACKENDS, re.DOTALL)
    assert between is not None
    assert between[1] == table(columns()), "run: python tests/docs/capability_table.py"


def test_profiles():
    rows = {
        row[0]: row[1:]
        for row in re.findall(r"^\| `([\w-]+)` \|(.*)\|(.*)\|(.*)\|(.*)\|(.*)\|(.*)\|(.*)\|$", BACKENDS, re.M)
    }
    for name, profile in PROFILES.items():
        can = profile.capabilities
        _, priority, groups, peek, counted, _, size = (cell.strip() for cell in rows[name.value])
        assert priority == _word(can.priority)
        assert peek == _word(can.peek)
        assert counted == _word(can.stats)
        assert (groups == "–") == (can.group_id is Support.UNSUPPORTED)
        assert size.startswith(shown("body_max_bytes", can.body_max_bytes))


def _word(support):
    return "native" if support is Support.NATIVE else "–"


def test_what_rabbitmq_gets():
    for kind in ("quorum", "classic"):
        for options in (QueueOptions(), QueueOptions(ordered=True, temporary=True)):
            for name, value in queue_arguments(kind, options).items():
                assert name in BACKENDS
                assert value is True or f"{name}={value}" in BACKENDS
    assert f"of {len(DELAY_STEPS)} steps" in BACKENDS
    assert f"Names have {NAME_MAX_BYTES} bytes" in BACKENDS


def test_headers_that_a_raw_client_sees():
    trail = Trail(1, 1, 1, 1.0, "place", "queue", "reason", 1)
    native = frozenset(
        {"id", "content_type", "correlation_id", "reply_to", "priority", "group_id", "dedup_id", "sent_at"}
    )
    for name in to_headers(Outgoing("1", b"", expires_at=1.0, sent_at=1.5, trail=trail), native=native):
        assert f"`{name}`" in BACKENDS
