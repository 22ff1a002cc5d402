"""prepare: raw data and base model → canonical splits, benchmark halves, `base.json`.

Reads `data/raw/<recipe>/`; writes `splits/`, `selection/`, `report/` and `base.json` below `data/<recipe>/`.
Alone: `python -m tasks prepare <recipe>`.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tasks import reports
from tasks.errors import DataError
from tasks.files import fingerprint, sha256_of
from tasks.paths import Paths
from tasks.recipe import Benchmark, Data, FeatureBenchmark, RetrievalBenchmark
from tasks.sources import resolve_base
from tasks.splits import first_by_hash, hash_positions, splits_fingerprint
from tasks.tables import read_table, read_text, write_table

log = logging.getLogger(__name__)

COLUMNS = ["id", "text", "label", "group"]
MIN_ROWS_A_CLASS = 2


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
            _write_benchmark(name, benchmark, data, paths, aside)
        record = resolve_base(base, paths.root)
        reports.write_report(aside / paths.base.name, record)
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


def _write_splits(task: str, data: Data, paths: Paths, folder: Path) -> None:
    frame, dropped_rows = read_table(data.train, paths.raw, data.labels)
    dropped = {data.train.file: dropped_rows}
    share = hash_positions(frame["group"], data.seed)
    test_share = 0.0 if data.test else data.test_share
    tables = {
        "train": frame[share >= test_share + data.validation_share],
        "validation": frame[(share >= test_share) & (share < test_share + data.validation_share)],
        "test": frame[share < test_share],
    }
    if data.test:
        tables["test"], dropped[data.test.file] = read_table(data.test, paths.raw, data.labels)
    _refuse_thin_classes(tables, data)
    targets = {}
    for name, table in data.targets.items():
        targets[name], dropped[table.file] = read_table(table, paths.raw, data.labels)
    written = {f"{name}.parquet": rows for name, rows in tables.items()}
    written |= {f"targets/{name}.parquet": rows for name, rows in targets.items()}
    (folder / "targets").mkdir(parents=True)
    for name, rows in written.items():
        write_table(_indexed(rows, data.labels), folder / name)
    schema = reports.SplitSchema(
        task=task,
        labels=data.labels,
        rows={name: len(rows) for name, rows in (tables | targets).items()},
        dropped=dropped,
        fingerprint=splits_fingerprint({Path(name).stem: folder / name for name in written}),
        source={
            path.relative_to(paths.raw).as_posix(): sha256_of(path)
            for path in sorted(paths.raw.rglob("*"))
            if path.is_file()
        },
    )
    reports.write_report(folder / "schema.json", schema)
    log.info("splits: %s", ", ".join(f"{name} {rows}" for name, rows in schema.rows.items()))
    for file, reasons in dropped.items():
        for reason, count in reasons.items():
            log.info("dropped from %s: %d rows, %s", file, count, reason)


def _refuse_thin_classes(tables: Mapping[str, pd.DataFrame], data: Data) -> None:
    problems = []
    for name, rows in tables.items():
        counts = rows["label"].value_counts()
        for label in data.labels:
            count = int(counts.get(label, 0))
            if count < MIN_ROWS_A_CLASS:
                problems.append(
                    f"{name}: label {label!r} has {count} row(s), at least {MIN_ROWS_A_CLASS} are needed"
                )
    if problems:
        problems.append(
            "add rows of these labels, merge labels, or take other shares or another seed in `data`"
        )
        raise DataError(f"{data.train.file}: a class is too thin to learn from or to measure:", problems)


def _indexed(rows: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    index = {label: number for number, label in enumerate(labels)}
    return rows.assign(label=rows["label"].map(index).astype("int64"))[COLUMNS]


def _write_benchmark(name: str, benchmark: Benchmark, data: Data, paths: Paths, folder: Path) -> None:
    """Write the selection and the report half of one benchmark; a group is in one of them only."""
    if isinstance(benchmark, RetrievalBenchmark):
        examples, extra = _retrieval(name, benchmark, paths.raw)
        extra_name, bounds = "corpus", (0.0, 0.5)
    else:
        rows, dropped = read_table(benchmark.table, paths.raw, data.labels)
        log.info("benchmark %s: %d rows dropped by rule", name, sum(dropped.values()))
        rows = first_by_hash(_indexed(rows, data.labels), benchmark.max_rows, data.seed)
        position = hash_positions(rows["group"], data.seed)
        extra, examples = rows[position < 1 / 3], rows[position >= 1 / 3]
        extra_name, bounds = "fit", (1 / 3, 2 / 3)
    share = hash_positions(examples["group"], data.seed)
    halves = {"selection": examples[share < bounds[1]], "report": examples[share >= bounds[1]]}
    parts = {**halves, extra_name: extra}
    if empty := [part for part, rows in parts.items() if rows.empty]:
        raise DataError(
            f"benchmark {name}: too few groups to split: {sum(map(len, parts.values()))} rows leave nothing for "
            f"{', '.join(empty)}. Give it more rows, or another `data.seed`."
        )
    if extra_name == "fit" and extra["label"].nunique() < 2:
        raise DataError(f"benchmark {name}: its fitting part has one class only; give it rows of the others.")
    for half, rows in halves.items():
        _write_half(folder / half / name, name, benchmark, rows, extra_name, extra)
    log.info("benchmark %s: %s", name, ", ".join(f"{half} {len(rows)}" for half, rows in halves.items()))


def _write_half(
    folder: Path, name: str, benchmark: Benchmark, rows: pd.DataFrame, extra_name: str, extra: pd.DataFrame
) -> None:
    folder.mkdir(parents=True)
    tables = {"examples.parquet": rows, f"{extra_name}.parquet": extra}
    for file, table in tables.items():
        write_table(table, folder / file)
    info = reports.BenchmarkInfo(
        name=name,
        kind=benchmark.kind,
        metric="mrr" if benchmark.kind == "retrieval" else "accuracy",
        examples=len(rows),
        fingerprint=fingerprint([(file, sha256_of(folder / file)) for file in tables]),
        neighbours=benchmark.neighbours
        if isinstance(benchmark, FeatureBenchmark) and benchmark.kind == "knn"
        else None,
    )
    reports.write_report(folder / "benchmark.json", info)


def _retrieval(name: str, benchmark: RetrievalBenchmark, raw: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return examples (id, query, document_id, group) and the corpus (id, text), without duplicates."""
    files = sorted(raw.glob(benchmark.file))
    if not files:
        raise DataError(f"benchmark {name}: no file {raw / benchmark.file}.")
    pairs = [pair for file in files for pair in _pairs(benchmark, file)]
    documents: dict[str, str] = {}
    queries: dict[str, tuple[str, str]] = {}
    ambiguous = empty = 0
    for query, document in pairs:
        query_key, document_key = _normal(query), _normal(document)
        if not query_key or not document_key:
            empty += 1
            continue
        documents.setdefault(document_key, document)
        ambiguous += query_key in queries
        queries.setdefault(query_key, (query, document_key))
    log.info(
        "benchmark %s: %d pairs, %d of them dropped as empty, %d queries with more than one answer (the first counts)",
        name,
        len(pairs),
        empty,
        ambiguous,
    )
    identifiers = {key: f"d{number:05d}" for number, key in enumerate(documents)}
    corpus = pd.DataFrame({"id": list(identifiers.values()), "text": list(documents.values())})
    examples = pd.DataFrame(
        [
            {
                "id": f"q{number:05d}",
                "query": query,
                "document_id": identifiers[key],
                "group": identifiers[key],
            }
            for number, (query, key) in enumerate(queries.values())
        ],
        columns=["id", "query", "document_id", "group"],
    )
    return examples, corpus


def _pairs(benchmark: RetrievalBenchmark, file: Path) -> list[tuple[str, str]]:
    text = read_text(file)
    try:
        if benchmark.format == "conversations":
            dialogues = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["conversations"]
            return [(_words(turns[0]), _words(turns[1])) for turns in dialogues if len(turns) >= 2]
        rows: list[Any] = (
            json.loads(text)
            if benchmark.format == "json"
            else [json.loads(line) for line in text.split("\n") if line.strip()]
        )
        return [(_words(row[benchmark.query]), _words(row[benchmark.document])) for row in rows]
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: it is not of the form {benchmark.format} with {benchmark.query!r} and {benchmark.document!r} "
            f"({type(error).__name__}: {error})."
        ) from None


def _words(value: object) -> str:
    return "" if value is None else str(value)


def _normal(text: str) -> str:
    """Normal form for equality: compatibility characters, case and white space folded."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
