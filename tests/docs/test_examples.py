"""Every python example of the documentation runs.

A section's blocks run in order with the same names, in a folder of their own. On some pages (``guide.md``) the first
block comes before each section, once with each URL that the page promises to be true of. A block with ``>>>`` is a
doctest; one that defines pytest functions has them called with the fixtures of the plugin; anything else is executed. A
block that cannot run here says so in its first line, where readers see it too.
"""

import ast
import sys

import pytest

import examples
from examples import Block, Section, defined_tests, pages, run_block, sections
from mqlayer.testing import Faults, ManualClock, Sent, memory

SAVED = {"write-a-backend.md"}  #: pages whose blocks are files; ``test_write_a_backend.py`` runs them
PREAMBLE = {"guide.md"}  #: pages whose first block comes before each of their sections
URLS = {
    "guide.md": ("memory://", "sqlite:///guide.db"),
    "README.md": ("memory://examples", "sqlite:///readme.db"),
}  #: used in turn
SECTIONS = [section for page in pages() for section in sections(page)]


def place_order(mq, order):
    """What the README's unit test tests."""
    mq.producer("mails").send({"to": "customer", "order": order["id"]})


GIVEN = {"README.md": {"place_order": place_order}}  #: what an example takes from its reader's own program


def runnable(section: Section) -> bool:
    return section.page.name not in SAVED and any(block.reason is None for block in section.blocks)


def runs():
    """Each section with each URL that its page is to be true of."""
    for section in filter(runnable, SECTIONS):
        for url in URLS.get(section.page.name, ("memory://examples",)):
            yield pytest.param(section, url, id=f"{section.name} [{url}]")


@pytest.mark.parametrize(("section", "url"), list(runs()))
def test_examples_run(section, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["orders.py", url])
    page = section.page
    names = {"__name__": "example", **GIVEN.get(page.name, {})}
    preamble = sections(page)[0].blocks[0] if page.name in PREAMBLE else None
    blocks = [block for block in section.blocks if block.reason is None and block != preamble]
    try:
        if preamble is not None:
            assert '"memory://"' in preamble.text
            run_block(Block(preamble.text.replace("memory://", url), preamble.line), page, names)
        for block in blocks:
            before = set(names)
            run_block(block, page, names)
            for function, fixtures in defined_tests(names, before):
                _call(function, fixtures)
    finally:
        mq = names.get("mq")
        if mq is not None:
            mq.close()


def _call(function, fixtures):
    """Call a test as pytest would, with fixtures of its own."""
    clock, faults, sent = ManualClock(), Faults(), Sent()
    with memory(clock=clock, faults=faults, sent=sent) as mq:
        given = {"mq": mq, "mq_clock": clock, "mq_faults": faults, "mq_sent": sent}
        function(**{name: given[name] for name in fixtures})


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_a_block_that_is_not_run_says_why_and_is_python_at_least(section):
    for block in section.blocks:
        if block.reason is not None:
            assert len(block.reason) > 10, f"{section.name}: give the reason"
            ast.parse(block.text)


def test_examples_were_found():
    """The pages cannot lose their examples unnoticed: a broken fence would hide all that follow it."""
    found = {
        str(page.relative_to(examples.ROOT)): sum(len(section.blocks) for section in sections(page)) for page in pages()
    }
    assert found["README.md"] >= 3
    assert found["docs/guide.md"] >= 20
    assert found["docs/write-a-backend.md"] >= 3


class TestTheRunnerItself:
    def test_a_wrong_output_fails(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("# Page\n\n```python\n>>> 1 + 1\n3\n\n```\n")
        (section,) = sections(page)
        with pytest.raises(AssertionError, match="Expected"):
            run_block(section.blocks[0], page, {})

    def test_a_failing_block_fails_with_its_line(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("# Page\n\ntext\n\n```python\nx = 1\nassert x == 2\n```\n")
        (section,) = sections(page)
        with pytest.raises(AssertionError) as caught:
            run_block(section.blocks[0], page, {})
        assert caught.traceback[-1].lineno + 1 == 7

    def test_headings_inside_blocks_are_code(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("# Page\n\n```console\n# a comment\n```\n\n## Two\n\n```python\nx = 1\n```\n")
        assert [section.title for section in sections(page)] == ["Two"]

    def test_a_block_may_say_that_it_is_not_run(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text(f"# Page\n\n```python\n{examples.NOT_RUN}needs a server\n1 / 0\n```\n")
        (section,) = sections(page)
        assert section.blocks[0].reason == "needs a server"
        assert not runnable(section)
