"""What a run would do, why, and roughly what it costs: asked of DVC, in-process, without running anything."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.errors import ConfigError, StageError
from tasks.paths import Paths
from tasks.recipe import Recipe, load_recipe, recipe_path
from tasks.stages import STAGES

State = Literal["runs", "may run", "up to date"]


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a recipe, and what a run would do with it."""

    name: str
    state: State
    """`may run`: only if the result of a stage before it changes."""
    why: tuple[str, ...]
    seconds: float | None
    """How long it took when it last ran here; None when it never did."""


@dataclass(frozen=True)
class Plan:
    """The stages of a recipe in their order."""

    recipe: str
    stages: tuple[PlannedStage, ...]

    @property
    def nothing_to_do(self) -> bool:
        """Tell whether every stage is up to date."""
        return all(stage.state == "up to date" for stage in self.stages)

    def seconds(self, *states: State) -> tuple[float, list[str]]:
        """Return the known time of the stages in `states`, and the names of those whose time is unknown."""
        chosen = [stage for stage in self.stages if stage.state in states]
        known = sum(stage.seconds for stage in chosen if stage.seconds is not None)
        return known, [stage.name for stage in chosen if stage.seconds is None]


@dataclass(frozen=True)
class _Step:
    """What DVC knows of one stage."""

    deps: tuple[str, ...]
    outs: tuple[str, ...]
    why: tuple[str, ...]


def make_plan(root: Path, recipe: str, changes: Mapping[str, Any] | None = None) -> Plan:
    """Ask DVC what is out of date; `changes` are recipe fields (`finetune.learning_rate`) and new values.

    Raises:
        ConfigError: the recipe or a change is wrong, or `dvc.yaml` does not build this recipe.
        StageError: DVC cannot tell, for example because another process holds the repository.
    """
    current = load_recipe(recipe_path(root, recipe))
    causes = _causes_of(current, changed_recipe(root, recipe, changes)) if changes else {}
    steps = _ask_dvc(root, recipe)
    planned: dict[str, PlannedStage] = {}
    for name in STAGES:
        step = steps[name]
        direct = (*step.why, *causes.get(name, ()))
        upstream = [
            before
            for before, stage in planned.items()
            if stage.state != "up to date" and _feeds(steps[before], step)
        ]
        state: State = "runs" if direct else "may run" if upstream else "up to date"
        why = direct or tuple(f"if the result of {before} changes" for before in upstream)
        planned[name] = PlannedStage(name, state, why, last_seconds(Paths(root, recipe), name))
    return Plan(recipe, tuple(planned.values()))


def last_seconds(paths: Paths, stage: str) -> float | None:
    """Return how long a stage took when it last ran here, in seconds; None when that is not known."""
    try:
        timing = json.loads((paths.scratch / "timings" / f"{stage}.json").read_text(encoding="utf-8"))
        return float(timing["seconds"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def changed_recipe(root: Path, name: str, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe with `changes` applied, checked as a whole.

    Raises:
        ConfigError: a changed field is unknown or its value is wrong.
    """
    import tempfile

    from flows.workspace import change_recipe

    source = recipe_path(root, name)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / source.name
        copy.write_bytes(source.read_bytes())
        try:
            change_recipe(copy, changes)
        except ConfigError as error:
            problems = error.problems or [error.message]
            raise ConfigError(f"The recipe {name} with these changes has problems:", problems) from None
        return load_recipe(copy)


def _causes_of(current: Recipe, changed: Recipe) -> dict[str, tuple[str, ...]]:
    causes = {}
    for stage, sections in STAGES.items():
        old, new = (_plain(recipe.sections(sections)) for recipe in (current, changed))
        if found := tuple(_differences(old, new)):
            causes[stage] = found
    return causes


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True)
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _feeds(before: _Step, after: _Step) -> bool:
    return any(
        dep == out or dep.startswith(f"{out}/") or out.startswith(f"{dep}/")
        for out in before.outs
        for dep in after.deps
    )


def _ask_dvc(root: Path, recipe: str) -> dict[str, _Step]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    targets = [f"{stage}@{recipe}" for stage in STAGES]
    try:
        # DVC mistakes its own stages for others when the working folder is not its root.
        with contextlib.chdir(root), Repo(str(root)) as repo:
            found = {stage.addressing: stage for stage in repo.index.stages}
            if any(target not in found for target in targets):
                raise ConfigError(
                    f"dvc.yaml does not build {recipe}: add {recipe!r} to `recipes` in params.yaml."
                )
            status = repo.status(targets=targets)
            return {
                stage: _step(found[target], status.get(target, []))
                for stage, target in zip(STAGES, targets, strict=True)
            }
    except DvcException as error:
        raise StageError(f"DVC cannot say what is out of date in {root}: {error}") from None


def _step(stage: Any, status: Sequence[Any]) -> _Step:
    deps = tuple(str(dep) for dep in stage.deps if not hasattr(dep, "params"))
    outs = tuple(str(out) for out in stage.outs)
    return _Step(deps, outs, tuple(dict.fromkeys(_reasons(stage, status))))


def _reasons(stage: Any, status: Sequence[Any]) -> Iterator[str]:
    params = {str(dep): dep for dep in stage.deps if hasattr(dep, "params")}
    if any(dep.hash_info.value is None for dep in params.values()):
        yield "has not run yet"
        return
    for item in status:
        for kind, changes in item.items() if isinstance(item, dict) else [(str(item), {})]:
            if kind == "changed command":
                yield "its command changed"
            elif not isinstance(changes, dict) or not changes:
                yield kind
            for path, change in changes.items() if isinstance(changes, dict) else ():
                if path in params:
                    yield from _param_reasons(params[path], change)
                else:
                    yield _path_reason(path, str(change), kind)


def _path_reason(path: str, change: str, kind: str) -> str:
    if kind == "changed outs":
        return f"{path} is missing" if change in ("deleted", "not in cache") else f"{path} was edited by hand"
    words = {"deleted": "is missing", "modified": "changed", "new": "is new"}
    return f"{path} {words.get(change, change)}"


def _param_reasons(dep: Any, change: Any) -> Iterator[str]:
    if not isinstance(change, dict):
        yield f"{dep} is {change}"
        return
    read = dep.read_params()
    locked = dep.hash_info.value or {}
    for key in change:
        yield from _differences(locked.get(key), read.get(key), key)


def _differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    elif old != new:
        yield f"{place}: {_short(old)} → {_short(new)}"


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"
