"""register: publish the chosen model of a recipe that passed, and move the alias. Runs after DVC; touches the world.

Reads `decision.json`, the other reports and `chosen/`; writes a version in the registry. Idempotent: the same content
is published once, and a model that is the champion already stays what it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks import reports
from tasks.errors import Refused, RegistryError, StageError
from tasks.files import folder_fingerprint, write_text
from tasks.forgetting.ledger import moved, read_ledger
from tasks.paths import Paths
from tasks.recipe import Register, recipe_path
from tasks.registry import Registry, open_registry
from tasks.sources import KEPT_FIRST_BASE, first_base_folder, note_first_base

CHAMPION, CHALLENGER = "champion", "challenger"
REPORTS = (
    "base",
    "schema",
    "validate",
    "check",
    "gate",
    "finetune",
    "merge",
    "pin",
    "evaluate",
    "decision",
    "history",
)
"""What a release carries besides its model, by the names that `Paths` has for them."""
BENCHMARKS = "benchmarks/"
"""How the names of the files begin that hold the halves of the gating benchmarks: `benchmarks/<name>/<half>/<file>`."""


@dataclass(frozen=True)
class Receipt:
    """What registering came to."""

    name: str
    version: int
    created: bool
    """Whether this call made the version."""
    promoted: bool
    """Whether this call made it the champion."""
    champion: int | None
    """The champion now."""
    verdict: str


def register(
    recipe: str,
    registration: Register,
    *,
    paths: Paths,
    registry_location: str,
    promote: bool,
    run_id: str,
    git_commit: str,
) -> Receipt:
    """Publish the chosen model if its decision is PASS, and make it champion or challenger.

    Raises:
        Refused: the decision is not PASS, the champion or the ledger moved since the candidate was compared with it, or
            someone took this very model away from `champion`.
        StageError: the model or a report is not the one that was decided on.
        RegistryError: the registry cannot be used.
    """
    decision, pin = _what_passed(recipe, registration, paths)
    registry = open_registry(registry_location)
    version = _champion_of_this_model(registry, registration.name, decision.model)
    created = False
    if version is None:
        _champion_must_be_pinned(registry, pin, recipe)
        _ledger_must_hold(registry, pin, decision, recipe)
        if promote:
            _must_not_be_withdrawn(registry, registration.name, decision.model)
        published = registry.publish(
            registration.name,
            paths.chosen,
            metrics=json.loads(paths.metrics.read_text(encoding="utf-8")),
            lineage=_lineage(paths, pin, decision),
            reports=_files_beside(paths, decision, registration),
            run_id=run_id,
            git_commit=git_commit,
        )
        version, created = published.version, published.created
    first = pin.first_base
    note_first_base(first.fingerprint, f"{first.source}: {registration.name} in {registry_location}")
    pointed = _point(registry, registration.name, CHAMPION if promote else CHALLENGER, version, pin, run_id)
    champion = registry.alias(registration.name, CHAMPION)
    receipt = Receipt(
        name=registration.name,
        version=version,
        created=created,
        promoted=promote and pointed,
        champion=champion.version if champion else None,
        verdict=decision.verdict,
    )
    write_text(paths.scratch / "receipt.json", json.dumps(vars(receipt), indent=2) + "\n")
    return receipt


def _what_passed(
    recipe: str, registration: Register, paths: Paths
) -> tuple[reports.DecideReport, reports.Pin]:
    """Return the decision and what the candidate was compared with; both are about the model that lies here."""
    decision = reports.read_report(paths.decision, reports.DecideReport)
    if decision.verdict != "PASS":
        raise Refused(f"{decision.verdict}: {recipe} must not ship.", decision.reasons)
    pin = reports.read_report(paths.pin, reports.Pin)
    _must_be_decided_on(decision, pin, registration, paths)
    return decision, pin


def _must_be_decided_on(
    decision: reports.DecideReport, pin: reports.Pin, registration: Register, paths: Paths
) -> None:
    problems = []
    if not paths.chosen.is_dir():
        problems.append(f"{paths.chosen} is missing: `dvc pull` or `dvc repro` brings it")
    elif folder_fingerprint(paths.chosen) != decision.model:
        problems.append(f"{paths.chosen} is not the model that decision.json is about")
    if pin.registry_name != registration.name:
        problems.append(
            f"pin.json is about {pin.registry_name!r}, the recipe registers {registration.name!r}"
        )
    if decision.champion != pin.champion:
        problems.append(f"decision.json knows champion {decision.champion}, pin.json {pin.champion}")
    if problems:
        raise StageError(
            "What would be registered is not what was decided on; run the stages again:", problems
        )


def _champion_of_this_model(registry: Registry, name: str, model: str) -> int | None:
    champion = registry.alias(name, CHAMPION)
    if champion is None or registry.resolve(name, champion.version).model_fingerprint != model:
        return None
    return champion.version


def _champion_must_be_pinned(registry: Registry, pin: reports.Pin, recipe: str) -> None:
    champion = registry.alias(pin.registry_name, CHAMPION)
    now = champion.version if champion else None
    if now != pin.champion:
        raise Refused(
            f"The champion of {pin.registry_name} is {_words(now)}, but this candidate was compared with "
            f"{_words(pin.champion)}. Compare again: `retain run {recipe} --repin`."
        )


def _ledger_must_hold(
    registry: Registry, pin: reports.Pin, decision: reports.DecideReport, recipe: str
) -> None:
    """Refuse what is measured from elsewhere than a release that was made since the candidate was judged."""
    now = read_ledger(registry, pin.registry_name)
    if now is None or now == pin.ledger:
        return
    if changed := moved(pin, now, _gating(decision)):
        raise Refused(
            f"{pin.registry_name} has releases that this candidate was not judged by, since version {now.version}: "
            f"{'; '.join(changed)}. Judge it again: `retain run {recipe} --repin`."
        )


def _must_not_be_withdrawn(registry: Registry, name: str, model: str) -> None:
    """Leave a rollback in force: a scheduled run that finds nothing new must not undo what a person did."""
    champion = registry.alias(name, CHAMPION)
    for version, move in champion.withdrawn.items() if champion else ():
        if registry.resolve(name, version).model_fingerprint == model:
            raise Refused(
                f"This model is version {version} of {name}, which was taken back from {CHAMPION} at {move.at} "
                f"({move.reason}). Runs do not undo that; `retain promote {name} {version}` does."
            )


def _point(registry: Registry, name: str, alias: str, version: int, pin: reports.Pin, run_id: str) -> bool:
    """Move an alias to the version; say whether it had to."""
    current = registry.alias(name, alias)
    if current is not None and current.version == version:
        return False
    champion = registry.alias(name, CHAMPION)
    if alias == CHALLENGER and champion is not None and champion.version == version:
        return False  # it has won already
    expected = pin.champion if alias == CHAMPION else (current.version if current else None)
    try:
        registry.move_alias(
            name, alias, version, expected=expected, reason="passed the release rule", run_id=run_id
        )
    except RegistryError as error:
        now = registry.alias(name, alias)
        if now is not None and now.version == version:
            return False  # another run of the same content was faster
        raise Refused(f"Version {version} was published, but is not the {alias}: {error}") from None
    return True


def _lineage(paths: Paths, pin: reports.Pin, decision: reports.DecideReport) -> dict[str, Any]:
    base, schema = (
        reports.read_report(paths.base, reports.Base),
        reports.read_report(paths.schema, reports.SplitSchema),
    )
    gating = _gating(decision)
    return {
        "recipe": paths.recipe,
        "task": schema.task,
        "labels": schema.labels,
        "first_base": base.first_base.model_dump(),
        "benchmarks": {name: pin.benchmarks[name] for name in gating},
        "asked": {name: pin.asked[name] for name in gating if name in pin.asked},
        "margins": {suite.name: suite.margin for suite in decision.suites if suite.margin},
        "rebase": decision.rebase,
        "base": {"source": base.source, "resolved": base.resolved, "fingerprint": base.fingerprint},
        "splits": schema.fingerprint,
        "raw_files": schema.source,
        "alpha": reports.read_report(paths.merge, reports.MergeReport).alpha,
        "compared_with": pin.champion,
        "verdict": decision.verdict,
        "lock": _locked(paths),
    }


def _locked(paths: Paths) -> dict[str, Any]:
    """Return what `dvc.lock` says of this recipe's stages: the hashes of all they read and wrote."""
    try:
        lock = yaml.safe_load((paths.root / "dvc.lock").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    ours = {
        name: stage for name, stage in lock.get("stages", {}).items() if name.endswith(f"@{paths.recipe}")
    }
    return json.loads(json.dumps(ours, sort_keys=True, default=str))  # type: ignore[no-any-return]


def _report_files(paths: Paths) -> dict[str, Path]:
    files = {name: getattr(paths, name) for name in REPORTS}
    files["recipe"] = recipe_path(paths.root, paths.recipe)
    if missing := [str(path) for path in files.values() if not path.is_file()]:
        raise StageError(
            "A release needs all of its reports; `dvc pull` or `dvc repro` brings these:", missing
        )
    return files


def _gating(decision: reports.DecideReport) -> list[str]:
    """Return the benchmarks that decided."""
    return [suite.name for suite in decision.suites if suite.margin]


def _files_beside(paths: Paths, decision: reports.DecideReport, registration: Register) -> dict[str, Path]:
    """Return what a release carries besides its model, by name."""
    first_base = _first_base_files(paths) if registration.keep_first_base else {}
    return {**_report_files(paths), **_benchmark_files(paths, decision), **first_base}


def _benchmark_files(paths: Paths, decision: reports.DecideReport) -> dict[str, Path]:
    """Return the files of both halves of the gating benchmarks: later releases are measured on the same examples."""
    folders = {
        f"{BENCHMARKS}{name}/{half.name}/": half / name
        for name in _gating(decision)
        for half in (paths.selection, paths.report_half)
    }
    if missing := [str(folder) for folder in folders.values() if not folder.is_dir()]:
        raise StageError("A release keeps its benchmarks; `dvc pull` or `dvc repro` brings these:", missing)
    return {key + file.name: file for key, folder in folders.items() for file in sorted(folder.iterdir())}


def _first_base_files(paths: Paths) -> dict[str, Path]:
    """Return the files of the first base, by the names under which a release keeps them."""
    folder = first_base_folder(reports.read_report(paths.base, reports.Base), paths.root)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {KEPT_FIRST_BASE + path.relative_to(folder).as_posix(): path for path in files}


def _words(version: int | None) -> str:
    return "none" if version is None else f"version {version}"
