"""The package's own source, read as text and as syntax trees; nothing is imported."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2] / "mqlayer"


@dataclass(frozen=True)
class Source:
    """One file of the package."""

    path: Path

    @property
    def name(self) -> str:
        """``mqlayer.engine.line``; a package's ``__init__`` has the package's name."""
        parts = ["mqlayer", *self.path.relative_to(ROOT).with_suffix("").parts]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @cached_property
    def text(self) -> str:
        return self.path.read_text("utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))

    def classes(self) -> Iterator[ast.ClassDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))

    @cached_property
    def public(self) -> list[str] | None:
        """``__all__``; ``None`` where there is none."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
                return [ast.literal_eval(item) for item in node.value.elts]  # type: ignore[attr-defined]
        return None

    @cached_property
    def imported(self) -> set[str]:
        """Every module that is imported anywhere in the file: in functions and for type checking too."""
        return _imports(self.tree)

    @property
    def ours(self) -> set[str]:
        """The imported modules of the package."""
        return {name for name in self.imported if name.partition(".")[0] == "mqlayer"}


def _imports(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & NAMES
            found |= submodules
            if len(submodules) < len(node.names):
                found.add(node.module)
    return found


SOURCES = [Source(path) for path in sorted(ROOT.rglob("*.py"))]
NAMES = frozenset(source.name for source in SOURCES)
