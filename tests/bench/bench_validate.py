"""What `validate` costs at a million rows, and how that grows: `make bench-validate`.

250,000, 500,000 and 1,000,000 rows of short texts with two labels, in a process of its own on two threads: the whole
stage, imports of Great Expectations and Data Docs included, with the suite that text classification brings (11
expectations), and once more with length in tokens by a word-piece tokenizer. Peak memory is the process's own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.paths import Paths
from tasks.recipe import Validate
from tasks.reports import SplitSchema, ValidateReport, read_report, write_report
from tasks.sources import resolve_base
from tasks.splits import split_files, splits_fingerprint
from tests.bench.bench_check import ENVIRONMENT, short_texts
from tests.bench.figures import ROOT, Figure, publish

SIZES = (250_000, 500_000, 1_000_000)
LABELS = ["negative", "positive"]
MOST_SECONDS, MOST_GIBIBYTES = 120, 2
HELD_OUT = 1_000
LIBRARIES = ["great-expectations", "pandas", "pyarrow", "tokenizers"]


def main() -> None:
    """Measure, print and write `benchmarks/validate.json`."""
    wanted = [(rows, "characters") for rows in SIZES] + [(max(SIZES), "tokens")]
    publish("validate", list(figures_of({one: _in_a_process(*one) for one in wanted})), LIBRARIES)


def figures_of(found: Mapping[tuple[int, str], Any]) -> Iterator[Figure]:
    """Return the figures of runs by rows and by what lengths are counted in; the goals are those of a million rows."""
    for (rows, counted), one in found.items():
        name = f"{one['expectations']} expectations on {rows:,} rows"
        name += ", one of them tokens" if counted == "tokens" else ""
        million = rows == max(SIZES) and counted == "characters"
        goals = (f"< {MOST_SECONDS}", f"< {MOST_GIBIBYTES}") if million else (None, None)
        seconds, peak = one["seconds"], one["gibibytes"]
        met = (seconds < MOST_SECONDS, peak < MOST_GIBIBYTES) if million else (None, None)
        yield Figure(name, seconds, "s", rows, goal=goals[0], met=met[0])
        yield Figure(f"{name}, processor time", one["processor_seconds"], "s", rows)
        yield Figure(f"{name}, peak memory", peak, "GiB", rows, goal=goals[1], met=met[1])


def _in_a_process(rows: int, what: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        for part in ("write", "measure"):
            command = [sys.executable, "-m", "tests.bench.bench_validate", part, folder, str(rows), what]
            environment = {**ENVIRONMENT, "RETAIN_HOME": f"{folder}/store"}
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
        print(done.stdout.strip(), file=sys.stderr)
        return json.loads(done.stdout)


def write(paths: Paths, rows: int, what: str) -> None:
    """Write splits of so many training rows, and a base with a word-piece tokenizer where tokens are wanted."""
    counts = {"train": rows - 2 * HELD_OUT, "validation": HELD_OUT, "test": HELD_OUT}
    schema = SplitSchema(
        task="text-classification", labels=LABELS, rows=counts, dropped={}, fingerprint="", source={}
    )
    paths.targets.mkdir(parents=True)
    paths.selection.mkdir(parents=True)
    for seed, (name, count) in enumerate(counts.items()):
        ids = [f"{name}-{row}" for row in range(count)]
        label = np.random.default_rng(seed).integers(0, 2, count)
        columns = {"id": ids, "text": short_texts(count, seed), "label": label, "group": ids}
        pq.write_table(pa.table(columns), getattr(paths, name), compression="zstd")
    files = split_files(paths, schema)
    write_report(paths.schema, schema.model_copy(update={"fingerprint": splits_fingerprint(files)}))
    if what == "tokens":
        from tests.tiny import make_tiny_base

        write_report(paths.base, resolve_base(f"path:{make_tiny_base(paths.root / 'base')}", paths.root))


def measure(paths: Paths, rows: int, what: str) -> None:
    """Run the stage and print what it took."""
    section = Validate(
        min_rows_per_class=50, max_characters=5_000, max_tokens=512 if what == "tokens" else None
    )
    started = time.perf_counter()
    from tasks.validate import validate

    validate(section, paths=paths)
    seconds = time.perf_counter() - started
    report = read_report(paths.validate, ValidateReport)
    if report.rows != rows or report.failed_expectations:
        raise RuntimeError(f"{report.failed_expectations} expectations failed on {report.rows} rows")
    times = os.times()
    print(
        json.dumps(
            {
                "seconds": seconds,
                "processor_seconds": times.user + times.system,
                "gibibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "expectations": len(report.expectations),
            }
        )
    )


if __name__ == "__main__":
    if len(sys.argv) == 5:
        part, folder, rows, what = sys.argv[1:]
        {"write": write, "measure": measure}[part](Paths(Path(folder), "bench"), int(rows), what)
    else:
        main()
