"""prepare: raw data and base model → canonical splits, benchmark halves, `base.json`.

Reads `data/raw/<recipe>/`; writes `splits/`, `selection/`, `report/` and `base.json` below `data/<recipe>/`.
Alone: `python -m tasks prepare <recipe>`.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from tasks import reports
from tasks.errors import DataError
from tasks.files import sha256_of
from tasks.forgetting.halves import write_halves
from tasks.paths import Paths
from tasks.recipe import MIN_ROWS_A_CLASS, REPLAY, SPLITS, Benchmark, Data, Table
from tasks.sources import base_folder, resolve_base
from tasks.splits import first_by_hash, hash_positions, splits_fingerprint
from tasks.tables import has_label_lists, indexed, read_table, write_table

log = logging.getLogger(__name__)


def prepare(task: str, base: str, data: Data, benchmarks: Mapping[str, Benchmark], *, paths: Paths) -> None:
    """Write canonical splits, the two halves of every benchmark, and what the base model is.

    Raises:
        DataError: raw data is unreadable, empty, lacks a column or has an unknown label; the base is no model.
    """
    paths.out.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=paths.out, prefix=".prepare."))
    try:
        _write_splits(task, data, paths, aside / "splits")
        for name, benchmark in benchmarks.items():
            write_halves(name, benchmark, data, paths.raw, aside)
        record = resolve_base(base, paths.root)
        reports.write_report(aside / paths.base.name, record)
        _refuse_missing_heads(benchmarks, base_folder(record, paths.root))
        log.info(
            "base: %s, %s, %d files, %s",
            base,
            record.architecture,
            len(record.files),
            record.fingerprint[:12],
        )
        for name in ("splits", "selection", "report"):
            shutil.rmtree(paths.out / name, ignore_errors=True)
            (aside / name).rename(paths.out / name)
        (aside / paths.base.name).replace(paths.base)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_missing_heads(benchmarks: Mapping[str, Benchmark], folder: Path) -> None:
    """Refuse benchmarks that ask a text base's original head where it has none: better now than after the training."""
    asked = {
        name: benchmark
        for name, benchmark in benchmarks.items()
        if benchmark.kind == "masked-lm" or (benchmark.kind == "head" and benchmark.table.image is None)
    }
    if not asked:
        return
    from tasks import original_heads
    from tasks.models import load_encoder

    encoder = load_encoder(folder, "cpu")
    problems = []
    for name, benchmark in asked.items():
        kind = original_heads.MASKED if benchmark.kind == "masked-lm" else original_heads.CLASSIFIED
        if not encoder.original_kind.endswith(kind):
            problems.append(
                f"benchmarks.{name} asks a head {kind}: the base has {encoder.original_kind or 'none'}"
            )
        elif benchmark.kind == "head" and len(benchmark.labels) != encoder.original.config.num_labels:
            problems.append(
                f"benchmarks.{name}.labels are {len(benchmark.labels)}, the base's head tells "
                f"{encoder.original.config.num_labels} apart: give them in the order of its outputs"
            )
    if problems:
        raise DataError("The base cannot be asked what benchmarks ask of its original head:", problems)


def _write_splits(task: str, data: Data, paths: Paths, folder: Path) -> None:
    frame, dropped_rows = _read("train", data.train, task, data, paths)
    dropped = {"train": dropped_rows}
    share = hash_positions(frame["group"], data.seed)
    test_share = 0.0 if data.test else data.test_share
    tables = {
        "train": frame[share >= test_share + data.validation_share],
        "validation": frame[(share >= test_share) & (share < test_share + data.validation_share)],
        "test": frame[share < test_share],
    }
    others = {"test": data.test, REPLAY: data.replay, **data.targets}
    for name, table in others.items():
        if table is not None:
            tables[name], dropped[name] = _read(name, table, task, data, paths)
    _refuse_thin_splits(tables, data)
    (folder / "targets").mkdir(parents=True)
    files = {
        name: folder / (f"{name}.parquet" if name in (*SPLITS, REPLAY) else f"targets/{name}.parquet")
        for name in tables
    }
    for name, rows in tables.items():
        write_table(indexed(rows, data.labels), files[name])
    schema = reports.SplitSchema(
        task=task,
        labels=data.labels,
        multi_label=data.multi_label,
        rows={name: len(rows) for name, rows in tables.items()},
        dropped=dropped,
        fingerprint=splits_fingerprint(files),
        source={
            path.relative_to(paths.raw).as_posix(): sha256_of(path)
            for path in sorted(paths.raw.rglob("*"))
            if path.is_file()
        },
    )
    reports.write_report(folder / "schema.json", schema)
    log.info("splits: %s", ", ".join(f"{name} {rows}" for name, rows in schema.rows.items()))
    for name, reasons in dropped.items():
        for reason, count in reasons.items():
            log.info("dropped from %s: %d rows, %s", name, count, reason)


def _read(
    name: str, table: Table, task: str, data: Data, paths: Paths
) -> tuple[pd.DataFrame, dict[str, int]]:
    rows, dropped = read_table(table, paths.raw, data.labels, task, data.multi_label)
    if table.group is None and table.id is None and name != "train":
        # Row 5 of this file and row 5 of the training file have nothing in common.
        rows["group"] = f"{name}:" + rows["group"]
    chosen = first_by_hash(rows, table.max_rows, data.seed)
    return chosen, dropped | ({"beyond max_rows": len(rows) - len(chosen)} if len(chosen) < len(rows) else {})


def _rows_with(label: str, rows: pd.DataFrame) -> int:
    if has_label_lists(rows):
        return sum(label in row for row in rows["label"])
    return int((rows["label"] == label).sum())


def _refuse_thin_splits(tables: Mapping[str, pd.DataFrame], data: Data) -> None:
    problems = []
    for name, rows in tables.items():
        if len(rows) < MIN_ROWS_A_CLASS:
            problems.append(f"{name}: {len(rows)} row(s), at least {MIN_ROWS_A_CLASS} are needed")
            continue
        of_target = name in data.targets and data.targets[name].may_lack_labels
        for label in data.labels if name != REPLAY and not of_target else []:
            count = _rows_with(label, rows)
            if data.multi_label and len(rows) - count < MIN_ROWS_A_CLASS:
                problems.append(f"{name}: all but {len(rows) - count} row(s) have the label {label!r}")
            if count < MIN_ROWS_A_CLASS:
                problems.append(
                    f"{name}: label {label!r} has {count} row(s), at least {MIN_ROWS_A_CLASS} are needed"
                )
    if problems:
        problems.append(
            "add rows of these labels, merge labels or take them out of data.labels, or take other shares or another "
            "seed in `data`"
        )
        raise DataError(f"{data.train.file}: a class is too thin to learn from or to measure:", problems)
