"""Read the canonical splits that `prepare` wrote: one table a split, and one for each target sample."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import DataError, StageError
from tasks.files import sha256_of
from tasks.paths import Paths
from tasks.recipe import REPLAY, SPLITS
from tasks.reports import SplitSchema, read_report

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "text", "group")


def split_files(paths: Paths, schema: SplitSchema) -> dict[str, Path]:
    """Return the file of each split and target, in the schema's order.

    Raises:
        StageError: a file that the schema names is missing, or one lies there that it does not name.
    """
    known = {"train": paths.train, "validation": paths.validation, "test": paths.test, REPLAY: paths.replay}
    files = {name: known.get(name, paths.targets / f"{name}.parquet") for name in schema.rows}
    problems = [f"{name}: {path} is missing" for name, path in files.items() if not path.is_file()]
    problems += [f"{name}: not in {paths.schema}" for name in SPLITS if name not in files]
    if REPLAY not in files and paths.replay.exists():
        problems.append(f"{paths.replay} is not in {paths.schema}")
    problems += [
        f"{p} is not in {paths.schema}"
        for p in sorted(paths.targets.glob("*.parquet"))
        if p not in files.values()
    ]
    if problems:
        raise StageError(
            "The splits and their schema do not belong together; run `prepare` again (`dvc repro`):", problems
        )
    return files


def read_splits(paths: Paths) -> tuple[SplitSchema, dict[str, pd.DataFrame]]:
    """Read the schema and every table: columns id, text, group, label (an index) where there are labels, and the task's.

    Raises:
        StageError: a file is missing.
        DataError: a table is unreadable or has other columns or another number of rows than the schema says.
    """
    import pandas as pd
    import pyarrow as pa

    schema = read_report(paths.schema, SplitSchema)
    tables: dict[str, pd.DataFrame] = {}
    problems = []
    for name, path in split_files(paths, schema).items():
        try:
            table = pd.read_parquet(path)
        except (OSError, pa.ArrowException) as error:
            problems.append(f"{path} is no Parquet file: {error}")
            continue
        needed = (*COLUMNS, "label") if schema.labels else COLUMNS
        if missing := [column for column in needed if column not in table]:
            problems.append(f"{path} lacks the column(s) {', '.join(missing)}")
        elif len(table) != schema.rows[name]:
            problems.append(f"{path} has {len(table)} rows, the schema says {schema.rows[name]}")
        tables[name] = table
    if problems:
        raise DataError("The splits cannot be used; run `prepare` again (`dvc repro`):", problems)
    return schema, tables


def target_names(schema: SplitSchema) -> list[str]:
    """Return the names of the samples of where the model will be used."""
    return [name for name in schema.rows if name not in (*SPLITS, REPLAY)]


def splits_fingerprint(files: Mapping[str, Path]) -> str:
    """Return `SplitSchema.fingerprint`: sha256 over sorted lines `<name> <sha256 of the file>`."""
    lines = "".join(f"{name} {sha256_of(files[name])}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def hash_positions(groups: pd.Series, seed: int, purpose: str = "") -> pd.Series:
    """Map each group to [0, 1) by a hash, so that where a row goes does not depend on the other rows.

    Another `purpose` gives positions that have nothing to do with those of this one.
    """
    prefix = f"{purpose}:{seed}" if purpose else str(seed)

    def position(group: str) -> float:
        return int.from_bytes(hashlib.sha256(f"{prefix}:{group}".encode()).digest()[:8], "big") / 2**64

    return groups.map({group: position(group) for group in groups.unique()})


def first_by_hash(rows: pd.DataFrame, most: int | None, seed: int) -> pd.DataFrame:
    """Return at most `most` rows, those whose groups hash first, in their old order; None returns all."""
    if most is None or len(rows) <= most:
        return rows
    position = hash_positions(rows["group"], seed, "sample")
    return rows.loc[position.sort_values(kind="stable").index[:most].sort_values()]
