"""How we write, as far as a test can see it."""

import ast

import pytest
from sources import SOURCES, Source

FILE_LINES_MAX, FUNCTION_LINES_MAX, BACKEND_LINES_MAX = 450, 70, 320
PASSES_KEYWORDS_ALONG = {
    # typed by a ParamSpec: the store's verbs have nine signatures, and this is how each of them gets the lock
    "mqlayer.backends.memory_session": {"do"},
    "mqlayer.cli.app": {"make_context"},  # overrides one of the command-line library's, whose signature it has to keep
}

# What users install and import; the suite and the command have words of their own
PRODUCT = [source for source in SOURCES if source.name.split(".")[1:2] not in (["testing"], ["cli"])]

each_of_the_product = pytest.mark.parametrize("source", PRODUCT, ids=lambda source: source.name)
each = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)


def order(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


def defined(source: Source) -> dict[str, ast.stmt]:
    return {
        node.name: node
        for node in source.tree.body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    }


@each
def test_all_is_sorted_and_complete(source: Source) -> None:
    public = source.public
    if public is None:
        assert not [name for name in defined(source) if not name.startswith("_")], "it has no __all__"
        return
    assert sorted(public) == public or sorted(public, key=order) == public
    assert len(set(public)) == len(public)


@each_of_the_product
def test_a_module_and_what_it_offers_is_documented(source: Source) -> None:
    if source.tree.body:
        assert ast.get_docstring(source.tree), "it has no docstring"
    for name, node in defined(source).items():
        if name in (source.public or ()):
            assert ast.get_docstring(node), name  # type: ignore[arg-type]


@each_of_the_product
def test_the_names_of_errors_end_in_error(source: Source) -> None:
    for node in source.classes():
        bases = {getattr(base, "id", getattr(base, "attr", "")) for base in node.bases}
        if any(base.endswith(("Error", "Exception")) for base in bases):
            assert node.name.endswith("Error"), node.name


@each
def test_nobody_sleeps(source: Source) -> None:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr == "sleep":
            assert getattr(node.value, "id", "") not in ("time", "_time"), f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            assert "sleep" not in {alias.name for alias in node.names}, f"line {node.lineno}"


@each
def test_keyword_arguments_are_not_passed_along(source: Source) -> None:
    for function in source.functions():
        if source.name.startswith("mqlayer.testing.") or function.args.kwarg is None:
            continue  # the suite builds URLs of whatever options a harness has
        if function.name in PASSES_KEYWORDS_ALONG.get(source.name, ()):
            continue
        for call in ast.walk(function):
            if isinstance(call, ast.Call):
                passed = {getattr(word.value, "id", "") for word in call.keywords if word.arg is None}
                assert function.args.kwarg.arg not in passed, function.name


@each
def test_no_error_vanishes(source: Source) -> None:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            assert not (len(node.body) == 1 and isinstance(node.body[0], ast.Pass)), f"line {node.lineno}"
            assert node.type is not None, f"line {node.lineno}: a bare except"


@each
def test_files_and_functions_are_short(source: Source) -> None:
    stem = source.path.stem
    is_backend = source.path.parent.name == "backends" and "_" not in stem
    assert source.lines <= (BACKEND_LINES_MAX if is_backend else FILE_LINES_MAX)
    for function in source.functions():
        # a command's options are its signature
        first = function.body[0].lineno if source.name.startswith("mqlayer.cli.") else function.lineno
        length = (function.end_lineno or 0) - first + 1
        assert length <= FUNCTION_LINES_MAX, f"{function.name} has {length} lines"


@each
def test_lines_are_not_too_long(source: Source) -> None:
    assert not [number for number, line in enumerate(source.text.splitlines(), 1) if len(line) > 132]


@each
def test_nothing_is_called_a_helper(source: Source) -> None:
    for node in source.classes():
        assert not node.name.endswith(("Manager", "Helper", "Utils", "Util")), node.name
    assert source.path.stem not in ("utils", "util", "helpers", "common", "misc")
