"""The python examples of a page of documentation: found, and run section by section."""

import doctest
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOT_RUN = "# not run by the tests: "
_FENCE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_FILE = re.compile(r"^`(\w+\.py)`$")
_ANY_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


@dataclass
class Block:
    """One fenced block, and the line of the page on which its code begins."""

    text: str
    line: int

    @property
    def reason(self) -> str | None:
        """Why it says of itself that it is not run; ``None``: it is."""
        first = self.text.partition("\n")[0]
        return first.removeprefix(NOT_RUN) if first.startswith(NOT_RUN) else None

    @property
    def is_doctest(self) -> bool:
        return self.text.lstrip().startswith(">>> ")


@dataclass
class Section:
    """A heading and the blocks below it, up to the next heading of any level."""

    page: Path
    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def file(self) -> str | None:
        """The name under which its block is to be saved, where the title is a file's."""
        match = _FILE.match(self.title)
        return match[1] if match else None

    @property
    def name(self) -> str:
        return f"{self.page.name}: {self.title}"


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def sections(page: Path) -> list[Section]:
    """The sections of a page that have python blocks."""
    text = page.read_text(encoding="utf-8")
    fences = [match.span() for match in _ANY_FENCE.finditer(text)]
    headings = [
        match for match in _HEADING.finditer(text) if not any(start <= match.start() < end for start, end in fences)
    ]
    found = [(match.start(), Section(page, match[1])) for match in headings]
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start(1)) + 1
        owner = [section for start, section in found if start < match.start()][-1]
        owner.blocks.append(Block(match[1], line))
    return [section for _, section in found if section.blocks]


def saved_files(page: Path) -> dict[str, str]:
    """The files that a page has its reader write."""
    return {section.file: section.blocks[0].text for section in sections(page) if section.file is not None}


def run_block(block: Block, page: Path, names: dict[str, Any]) -> None:
    """Run a block with *names*, to which it adds its own. A doctest's outputs are compared."""
    if not block.is_doctest:
        padded = "\n" * (block.line - 1) + block.text  # so that a traceback has the page's own line
        exec(compile(padded, str(page), "exec"), names)
        return
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    test = doctest.DocTestParser().get_doctest(block.text, names, page.name, str(page), block.line - 1)
    runner = doctest.DocTestRunner(optionflags=options)
    said: list[str] = []
    outcome = runner.run(test, out=said.append, clear_globs=False)
    assert not outcome.failed, "".join(said)
    names.update(test.globs)


def defined_tests(names: dict[str, Any], before: set[str]) -> Iterator[tuple[Callable[..., object], list[str]]]:
    """The pytest functions that a block has defined, with the fixtures that they ask for."""
    for name in sorted(set(names) - before):
        if name.startswith("test_") and callable(names[name]):
            yield names[name], list(inspect.signature(names[name]).parameters)
