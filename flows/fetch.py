"""Raw data, under DVC: fetched from the recipe's sources once, pinned, and taken from the cache or remote later."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flows.build import dvc_errors
from tasks.errors import DataError
from tasks.files import write_text
from tasks.paths import Paths
from tasks.recipe import Recipe
from tasks.sources import fetch_raw

if TYPE_CHECKING:
    from dvc.repo import Repo


def fetch_data(repo: Repo, recipe: Recipe, paths: Paths) -> str:
    """Have the recipe's raw data in place and pinned by `data/raw/<recipe>.dvc`; return in a word what was done.

    Raises:
        DataError: the data or their sources are not what was pinned, or cannot be had.
    """
    pointer = pointer_of(paths)
    with dvc_errors(f"fetch {paths.recipe}"):
        if not pointer.exists():
            return _first_fetch(repo, recipe, paths)
        _check_sources(repo, recipe, paths)
        if not (difference := _difference(repo, paths)):
            return "unchanged"
        if not paths.raw.exists():
            return _restore(repo, recipe, paths)
        if difference != "not in cache":
            raise _changed(paths)
        _cache_if_pinned(repo, paths)
        return "cached"


def pointer_of(paths: Paths) -> Path:
    """Return the DVC file that pins the recipe's raw data."""
    return paths.raw.with_name(f"{paths.raw.name}.dvc")


def _first_fetch(repo: Repo, recipe: Recipe, paths: Paths) -> str:
    fetched = fetch_raw(recipe, paths)
    (stage,) = repo.add(str(paths.raw))
    # The pointer says where the data came from, so that a recipe with other sources is noticed.
    stage.meta = {"source": recipe.data.source}
    stage.dump()
    repo._reset()
    return "fetched" if fetched else "pinned"


def _restore(repo: Repo, recipe: Recipe, paths: Paths) -> str:
    from dvc.exceptions import DvcException

    pointer = str(pointer_of(paths))
    for way, call in (("restored", repo.checkout), ("pulled", repo.pull)):
        try:
            call(targets=[pointer])
        except DvcException:  # not in the cache, or no such remote: the next way
            continue
        if not _difference(repo, paths):
            return way
    shutil.rmtree(paths.raw, ignore_errors=True)  # a part of the data would pass for all of it
    fetch_raw(recipe, paths)
    _cache_if_pinned(repo, paths)
    return "fetched"


def _cache_if_pinned(repo: Repo, paths: Paths) -> None:
    """Put the raw data into the cache, if they are what is pinned; DVC itself would pin whatever is there."""
    pointer = pointer_of(paths)
    before = pointer.read_text(encoding="utf-8")
    repo.commit(str(pointer), force=True)
    repo._reset()
    if _pinned(pointer.read_text(encoding="utf-8")) != _pinned(before):
        write_text(pointer, before)
        raise _changed(paths)


def _pinned(pointer: str) -> list[str]:
    return [str(out["md5"]) for out in yaml.safe_load(pointer)["outs"]]


def _difference(repo: Repo, paths: Paths) -> str | None:
    """Return how the data differ from the pinned: `modified`, `deleted`, …; None when they do not."""
    repo._reset()
    status: dict[str, Any] = repo.status(targets=[str(pointer_of(paths))])
    for changes in status.values():
        for change in changes:
            if isinstance(change, dict):
                for differences in change.values():
                    for difference in differences.values():
                        return str(difference)
    return None


def _check_sources(repo: Repo, recipe: Recipe, paths: Paths) -> None:
    (stage,) = repo.stage.load_file(str(pointer_of(paths)))
    pinned = (stage.meta or {}).get("source")
    if pinned is not None and pinned != recipe.data.source:
        before = pinned if isinstance(pinned, dict) else {"source": pinned}
        now = recipe.data.source if isinstance(recipe.data.source, dict) else {"source": recipe.data.source}
        names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        raise DataError(
            f"data.source of {paths.recipe} is not what {_shown(pointer_of(paths), paths)} was pinned from. "
            f"To take the new data: rm -r {_shown(paths.raw, paths)} {_shown(pointer_of(paths), paths)}, and run again.",
            [
                f"{name}: pinned from {before.get(name, 'nothing')}, the recipe says {now.get(name, 'nothing')}"
                for name in names
            ],
        )


def _changed(paths: Paths) -> DataError:
    raw, pointer = _shown(paths.raw, paths), _shown(pointer_of(paths), paths)
    return DataError(
        f"{raw} has changed since {pointer} was pinned. Take the change with `dvc add {raw}`, "
        f"or put the pinned data back with `dvc checkout --force {pointer}`."
    )


def _shown(path: Path, paths: Paths) -> str:
    return str(path.relative_to(paths.root))
