"""The commands about releases: register, releases, promote, rollback, predict."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import find_root, say, say_json, say_table
from tasks.errors import ConfigError, DataError, RegistryError, StageError

if TYPE_CHECKING:
    from tasks.registry import Registry
    from tasks.summary import Summary

ReleaseName = Annotated[str, typer.Argument(metavar="NAME", help="The release's name in the registry.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, one line a thing.")]
BATCH = 256
"""Lines of standard input that are classified at once."""


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (register, releases, promote, rollback, predict):
        app.command()(command)


def champion(root: Path, name: str) -> str:
    """Return the version that `champion` names, as text; `–` when there is none."""
    alias = _registry(root).alias(name, "champion")
    return "–" if alias is None else str(alias.version)


def register(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name of a file in recipes/, without .yaml.")
    ],
    promote: Annotated[
        bool | None,
        typer.Option("--promote/--no-promote", help="Make it the champion; else as the recipe says."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish the model that a recipe's last run decided on, if the decision is PASS. Repeating it changes nothing."""
    from flows.workspace import commit_of
    from tasks.paths import Paths, registry_root
    from tasks.recipe import load_recipe, recipe_path
    from tasks.register import register as register_model

    root = find_root()
    loaded = load_recipe(recipe_path(root, recipe))
    _must_be_current(root, recipe)
    receipt = register_model(
        recipe,
        loaded.register_,
        paths=Paths(root, recipe),
        registry_location=registry_root(root),
        promote=loaded.register_.promote if promote is None else promote,
        run_id="command-line",
        git_commit=commit_of(root),
    )
    if as_json:
        say_json(vars(receipt))
        return
    state = "released" if receipt.created else "was released before"
    crown = ", now the champion" if receipt.promoted else f"; the champion is {receipt.champion or 'none'}"
    say(f"{receipt.name} version {receipt.version} {state}{crown}.")


def releases(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One release; all when absent.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the releases in the registry: versions, aliases, what they gained and lost."""
    registry = _registry(find_root())
    names = registry.names() if name is None else [name]
    if name is not None and name not in registry.names():
        known = ", ".join(registry.names()) or "none"
        raise RegistryError(f"{registry.storage.place} has no release {name!r}. Releases: {known}.")
    rows = [row for each in names for row in _versions(registry, each)]
    if as_json:
        for row in rows:
            say_json(row)
        return
    if not rows:
        say(f"No releases in {registry.storage.place} yet: `retain run RECIPE` makes the first.")
        return
    header = ("NAME", "VERSION", "ALIASES", "ACCURACY", "GAIN", "WORST LOSS", "MADE", "RUN")
    say_table(header, [_cells(row) for row in rows])


def promote(
    name: ReleaseName,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="The version that becomes the champion.")],
    reason: Annotated[
        str, typer.Option("--reason", help="Why, for the alias's history.")
    ] = "promoted by hand",
) -> None:
    """Make a version the champion."""
    registry = _registry(find_root())
    current = registry.alias(name, "champion")
    if current is not None and current.version == version:
        say(f"Version {version} of {name} is the champion already.")
        return
    registry.move_alias(
        name,
        "champion",
        version,
        expected=current.version if current else None,
        reason=reason,
        run_id="command-line",
    )
    was = f"; it was version {current.version}" if current else ""
    say(f"Version {version} of {name} is the champion now{was}.")


def rollback(
    name: ReleaseName,
    reason: Annotated[
        str, typer.Option("--reason", help="Why, for the alias's history.")
    ] = "rolled back by hand",
) -> None:
    """Make the champion before this one the champion again."""
    made = _registry(find_root()).rollback(name, reason=reason, run_id="command-line")
    say(f"Version {made.version} of {name} is the champion again.")


def predict(
    release: Annotated[
        str,
        typer.Argument(metavar="NAME[@REF]", help="A release; REF is an alias or a version, else champion."),
    ],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Texts; else one a line from standard input."),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Take the lines of this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Use a release on texts (classify, answer, embed), after verifying every file of it."""
    if file is not None and texts:
        raise ConfigError("Give texts, or --file with one a line; not both.")
    if file is not None and not file.is_file():
        raise ConfigError(f"--file {file}: there is no such file.")
    from tasks.paths import registry_root
    from tasks.predict import load_release

    loaded = load_release(registry_root(find_root()), *name_and_reference(release))
    for batch in _batches(texts, file):
        for content, answer in zip(batch, loaded.answer(batch), strict=True):
            _say_answer(content, answer, as_json)


def name_and_reference(release: str) -> tuple[str, str]:
    """Split `NAME[@REF]`; a name alone means its champion."""
    name, _, reference = release.partition("@")
    return name, reference or "champion"


def release_summary(root: Path, what: str) -> Summary:
    """Return the summary of a release, `NAME@REF`, from the reports that it carries."""
    import tempfile

    from tasks.paths import Paths
    from tasks.recipe import NAME_PATTERN
    from tasks.register import REPORTS
    from tasks.summary import read_reports, summarize

    registry = _registry(root)
    name, reference = name_and_reference(what)
    manifest = registry.resolve(name, reference)
    recipe = str(manifest.lineage.get("recipe", ""))
    if not NAME_PATTERN.fullmatch(recipe):
        raise RegistryError(
            f"{what}: its lineage names no recipe ({recipe!r}): `retain register` did not make it."
        )
    with tempfile.TemporaryDirectory() as folder:
        paths = Paths(Path(folder), recipe)
        for report in [known for known in REPORTS if known in manifest.reports]:
            target: Path = getattr(paths, report)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(registry.read_report(name, manifest.version, report))
        lineage = {
            "Release": f"{name} version {manifest.version}",
            "Made": manifest.created_at,
            "Run": manifest.run_id,
            "Commit": manifest.git_commit or "–",
        }
        return summarize(read_reports(paths), recipe, lineage=lineage)


def write_benchmarks(root: Path, what: str, folder: Path) -> list[str]:
    """Write the halves of the benchmarks that gated a release, `NAME@REF`, as it carries them; return their names.

    Raises:
        RegistryError: there is no such release, it was made before releases kept their benchmarks, or one is damaged.
        ConfigError: the folder holds something.
    """
    from tasks.register import BENCHMARKS

    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--benchmarks {folder} holds something: name a new folder.")
    registry = _registry(root)
    name, reference = name_and_reference(what)
    version = registry.resolve(name, reference).version
    written = registry.download_reports(name, version, BENCHMARKS, folder)
    if not written:
        raise RegistryError(f"{what} was made before releases kept their benchmarks.")
    return sorted({path.split("/")[0] for path in written})


def _registry(root: Path) -> Registry:
    from tasks.paths import registry_root
    from tasks.registry import open_registry

    return open_registry(registry_root(root))


def _must_be_current(root: Path, recipe: str) -> None:
    """Refuse to publish what the working tree no longer says.

    Raises:
        StageError: DVC has something to do for this recipe.
    """
    from flows.build import check_listed, is_current, open_repo
    from tasks.stages import STAGES

    with open_repo(root) as repo:
        check_listed(repo, recipe)
        if stale := [stage for stage in STAGES if not is_current(repo, recipe, stage)]:
            raise StageError(
                f"{recipe} is not up to date ({', '.join(stale)}): `retain run {recipe}` or `dvc repro` first."
            )


def _versions(registry: Registry, name: str) -> Iterator[dict[str, Any]]:
    aliases = {alias: registry.alias(name, alias) for alias in ("champion", "challenger")}
    for version in registry.versions(name):
        manifest = registry.resolve(name, version)
        test = manifest.metrics.get("task", {}).get("test", {})
        losses = [suite["loss"] for suite in manifest.metrics.get("forgetting", {}).values()]
        yield {
            "name": name,
            "version": version,
            "aliases": [alias for alias, found in aliases.items() if found and found.version == version],
            "accuracy": test.get("accuracy"),
            "gain": test.get("gain"),
            "worst_loss": max(losses, default=None),
            "created_at": manifest.created_at,
            "run_id": manifest.run_id,
            "model": manifest.model_fingerprint,
        }


def _cells(row: dict[str, Any]) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    return [
        row["name"],
        str(row["version"]),
        ", ".join(row["aliases"]) or "–",
        number(row["accuracy"], ".3f"),
        number(row["gain"], "+.3f"),
        number(row["worst_loss"], "+.3f"),
        row["created_at"],
        row["run_id"],
    ]


def _batches(texts: list[str] | None, file: Path | None) -> Iterator[list[str]]:
    if texts:
        yield texts
        return
    if file is None and sys.stdin.isatty():
        raise ConfigError("Give texts as arguments, with --file, or one a line on standard input.")
    blank = 0
    batch: list[str] = []
    for line in _lines(file):
        if line.strip():
            batch.append(line.strip())
        else:
            blank += 1
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
    if blank:
        print(f"retain: {blank} blank lines were left out.", file=sys.stderr)


def _lines(file: Path | None) -> Iterator[str]:
    place = str(file) if file else "Standard input"
    with file.open(encoding="utf-8-sig") if file else contextlib.nullcontext(sys.stdin) as lines:
        try:
            yield from lines
        except UnicodeDecodeError as error:
            raise DataError(f"{place} is no UTF-8 text ({error}): convert it first.") from None


def _say_answer(text: str, answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        say_json({"text": text, **answer})
    elif "reply" in answer:
        say(answer["reply"])
    elif "labels" in answer:
        chances = [f"{label} {answer['probabilities'][label]:.3f}" for label in answer["labels"]]
        say(f"{', '.join(chances) or 'no label'}  {text}")
    elif "label" in answer:
        say(f"{answer['label']}  {answer.get('probability', answer.get('cosine', 0.0)):.3f}  {text}")
    else:
        say(f"{' '.join(f'{value:.4f}' for value in answer['vector'])}")
