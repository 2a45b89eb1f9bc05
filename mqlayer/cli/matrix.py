"""``matrix``: the durability suite over our backends, and the compatibility matrix that comes of it."""

import difflib
import shlex
import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mqlayer.cli.failures import ExitCode
from mqlayer.cli.output import JSON, console, line, remark
from mqlayer.errors import ConfigError

if TYPE_CHECKING:
    from mqlayer.cli.suite_run import Watcher
    from mqlayer.testing.harness import BackendHarness
    from mqlayer.testing.records import Document
    from mqlayer.testing.suite.criterion import Check

__all__ = ["matrix"]

JSON_NAME, TEXT_NAME = "compat_matrix.json", "compat_matrix.md"
LEDGERS = "compat"
SCRATCH = Path("build/matrix")


class ProfileName(StrEnum):
    """How much is done."""

    QUICK = "quick"
    FULL = "full"
    SOAK = "soak"


def matrix(
    *,
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", metavar="NAME", help="Only this column. May be repeated. Default: all found here."),
    ] = None,
    profile: Annotated[
        ProfileName, typer.Option(help="quick: a few minutes; full: up to 20 minutes a column; soak: hours.")
    ] = ProfileName.QUICK,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help=f"Where the matrix is; merged into what is there. Default: {SCRATCH}; . for full or --check.",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing: compare with the matrix in DIR, and fail if anything is lost."),
    ] = False,
    criterion: Annotated[
        list[str] | None, typer.Option("--criterion", metavar="ID", help="Only this one. May be repeated.")
    ] = None,
    sabotage: Annotated[
        bool | None,
        typer.Option(
            "--sabotage/--no-sabotage",
            help="Also run broken backends that the suite must catch. Default: in a full run of all columns.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Make the choices of an earlier run again.")] = None,
    as_json: JSON = False,
) -> None:
    """Run the durability suite: servers are started, killed, restarted, and every message is accounted for.

    Writes compat_matrix.md and compat_matrix.json. Exit code 1: something is red, or --check found a loss.
    """
    from mqlayer.cli.suite_run import watching
    from mqlayer.cli.summary import summary_lines, summary_table
    from mqlayer.testing.records import Document
    from mqlayer.testing.runner import is_executed, is_red, new_seed

    chosen = _harnesses(backend)
    checks = _checks(criterion)
    folder = output or (Path() if check or profile is ProfileName.FULL else SCRATCH)
    committed = _read(folder, required=check)
    run = _Run(profile, new_seed() if seed is None else seed, None if check else folder)
    remark(f"{len(checks)} criteria on {', '.join(each.name for each in chosen)}; seed {run.seed}")
    made = Document()
    with watching([each.name for each in chosen], len(checks)) as watcher:
        for harness in chosen:
            made = run.column(harness, checks, watcher, made)
    everything = profile is not ProfileName.QUICK and not backend and not criterion
    if sabotage if sabotage is not None else everything:
        made = run.saboteurs(made)
    findings = _losses(folder, committed, made, whole=not criterion) if check else []
    names = [each.name for each in chosen]
    red = [record for record in made.records if is_red(record)]
    escaped = [mutation for mutation in made.sabotage if not mutation.not_run and not mutation.caught]
    if as_json:
        line(made.to_json().rstrip())
    else:
        out = console()
        out.print(summary_table(names, made.records))
        for text in [*summary_lines(names, made.records, red), *findings]:
            out.print(text)
        if not check:
            out.print(f"Each cell with its evidence: {folder / TEXT_NAME}")
    for finding in findings if as_json else ():
        remark(finding)
    if findings or red or escaped or not any(map(is_executed, made.records)):
        raise typer.Exit(ExitCode.NEGATIVE)


class _Run:
    """What all columns of one run share.

    Attributes:
        folder: Where the matrix and the ledgers go; ``None``: nowhere.
    """

    def __init__(self, profile: ProfileName, seed: int, folder: Path | None) -> None:
        self.profile = profile
        self.seed = seed
        self.folder = folder

    def column(
        self, harness: "BackendHarness", checks: "list[Check]", watcher: "Watcher", so_far: "Document"
    ) -> "Document":
        """Run one column and write the matrix with it: what is done stays done, whatever happens to the next column."""
        from mqlayer.testing.matrix import merge
        from mqlayer.testing.records import Document
        from mqlayer.testing.runner import Column
        from mqlayer.testing.stage import Profile

        records = []
        with Column(harness, profile=Profile(self.profile.value), seed=self.seed) as column:
            for check in checks:
                watcher.begins(harness.name, check)
                records.append(column.run(check, keep=self._ledgers(harness.name, check.id)))
                watcher.ended(records[-1])
            started = column.broken is None and column.missing is None
            described = (column.describe(self._command()),) if started else ()
        ran = Document(records=tuple(records), columns=described)
        if self.folder is not None:
            _write(self.folder, merge(_read(self.folder, required=False), ran))
        return merge(so_far, ran)

    def saboteurs(self, so_far: "Document") -> "Document":
        """Send the saboteurs in, and note who was caught."""
        from mqlayer.testing.matrix import merge
        from mqlayer.testing.records import Document, Mutation
        from mqlayer.testing.sabotage.mutation import not_run, run_saboteurs

        def said(mutation: Mutation, seconds: float) -> None:
            fate = mutation.not_run or ("caught" if mutation.caught else "ESCAPED")
            remark(f"saboteur {mutation.saboteur} {mutation.title}: {fate} ({seconds:.0f} s)")

        ran = Document(sabotage=(*run_saboteurs(progress=said), *not_run()))
        if self.folder is not None:
            _write(self.folder, merge(_read(self.folder, required=False), ran))
        return merge(so_far, ran)

    def _ledgers(self, column: str, criterion: str) -> Path | None:
        """An empty place for the ledgers of one criterion."""
        if self.folder is None:
            return None
        place = self.folder / LEDGERS / column / criterion
        shutil.rmtree(place, ignore_errors=True)
        return place

    def _command(self) -> str:
        return shlex.join(["mqlayer", "matrix", "--profile", self.profile.value])


def _harnesses(names: list[str] | None) -> "list[BackendHarness]":
    """The columns that are asked for, in our order.

    Raises:
        ConfigError: there is no such column, or it cannot be run here; in CI also if none was asked for by name.
    """
    from mqlayer.testing.harnesses import ALL
    from mqlayer.testing.runner import in_ci

    known = {kind.name: kind for kind in ALL}
    for name in names or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise ConfigError(f"no backend is called {name!r}; {hint}")
    found = []
    for name, kind in known.items():
        if names and name not in names:
            continue
        harness = kind()
        missing = harness.available()
        if missing is None:
            found.append(harness)
        elif names or in_ci():
            raise ConfigError(f"{name} cannot be run here: {missing}")
        else:
            remark(f"left out {name}: {missing}")
    return found


def _checks(ids: list[str] | None) -> "list[Check]":
    from mqlayer.testing.suite import select

    try:
        return select(ids or None)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc


def _read(folder: Path, *, required: bool) -> "Document":
    """The matrix in *folder*; an empty one if there is none.

    Raises:
        ConfigError: it cannot be read, or is *required* and not there.
    """
    from mqlayer.testing.records import Document

    path = folder / JSON_NAME
    if not path.exists() and not required:
        return Document()
    try:
        return Document.from_json(path.read_text())
    except FileNotFoundError as exc:
        raise ConfigError(
            f"there is no {path} to compare with; make it with: mqlayer matrix --output {folder}"
        ) from exc
    except ValueError as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def _write(folder: Path, document: "Document") -> None:
    from mqlayer.testing.matrix import render

    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON_NAME).write_text(document.to_json())
    (folder / TEXT_NAME).write_text(render(document))


def _losses(folder: Path, committed: "Document", made: "Document", *, whole: bool) -> list[str]:
    """What is worse than in the committed matrix. Unless *whole* columns were run, the rest counts as it was."""
    from mqlayer.testing.matrix import check_drift, merge

    try:
        text = (folder / TEXT_NAME).read_text()
    except FileNotFoundError:
        return [f"there is no {folder / TEXT_NAME}"]
    return check_drift(text, (folder / JSON_NAME).read_text(), made if whole else merge(committed, made))
