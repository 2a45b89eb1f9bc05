"""Links within the project lead somewhere: to a file that is there, and to a heading that the page has."""

import re

import pytest

from examples import ROOT, pages

PAGES = [*pages(), ROOT / "CHANGELOG.md"]
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def links(page):
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [link for link in _LINK.findall(text) if "://" not in link and not link.startswith("mailto:")]


def anchors(page):
    """The names that GitHub gives to a page's headings."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return {anchor(title) for title in _HEADING.findall(text)}


def anchor(title):
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    broken = []
    for link in links(page):
        path, _, name = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (name and name not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_pages_have_links():
    found = {str(page.relative_to(ROOT)): len(links(page)) for page in pages()}
    assert found["README.md"] >= 5
    assert found["docs/guide.md"] >= 15


def test_every_decision_is_in_the_index():
    folder = ROOT / "docs" / "decisions"
    written = {path.name for path in folder.glob("[0-9]*.md")}
    assert written == set(links(folder / "README.md"))


def test_decisions_are_short_and_say_what_they_must():
    for path in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
        text = path.read_text()
        assert len(text.splitlines()) <= 40, path.name
        places = [text.find(f"\n## {title}\n") for title in ("Context", "Decision", "Consequences")]
        assert -1 not in places, path.name
        assert places == sorted(places), path.name


@pytest.mark.parametrize(
    ("title", "expected"),
    [("Delay, expiry", "delay-expiry"), ("`acme_list.py`", "acme_listpy"), ("Options of `amqp://`", "options-of-amqp")],
)
def test_anchors_are_made_as_github_makes_them(title, expected):
    assert anchor(title) == expected
