"""pin: what this candidate is compared with, resolved once. The only stage that looks outside.

Reads `base.json`, `merge.json`, the report halves' fingerprints and the registry; writes `pin.json`: the champion, the
ledger (the first base and the benchmarks that the releases of this name began with), and which attempt on each report
half this candidate is. It counts the attempt in the registry, before the half is looked at. It runs when there is a new
candidate, so that a fresh clone, which has none, has nothing to do; `register` refuses when the champion has moved
since. Alone: `python -m tasks pin <recipe>`.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow.parquet as pq

from tasks import reports
from tasks.forgetting.ledger import read_ledger
from tasks.forgetting.slices import SLICE
from tasks.paths import Paths, registry_root
from tasks.recipe import Evaluate
from tasks.registry import open_registry

log = logging.getLogger(__name__)


def pin(name: str, section: Evaluate, *, paths: Paths) -> None:
    """Write the champion of the release `name`, its ledger, and which attempt this is.

    Raises:
        RegistryError: the registry cannot be read, or an attempt cannot be counted there.
    """
    base = reports.read_report(paths.base, reports.Base)
    candidate = reports.read_report(paths.merge, reports.MergeReport).model
    registry = open_registry(registry_root(paths.root))
    champion = registry.alias(name, "champion")
    model = registry.resolve(name, str(champion.version)).model_fingerprint if champion else None
    halves = _report_halves(paths)
    benchmarks = {suite: half.fingerprint for suite, half in halves.items()}
    report = reports.Pin(
        registry_name=name,
        champion=champion.version if champion else None,
        champion_model=model,
        candidate_model=candidate,
        first_base=base.first_base,
        ledger=read_ledger(registry, name),
        benchmarks=benchmarks,
        asked={suite: _asked(half, section, paths.report_half / suite) for suite, half in halves.items()},
        attempts={suite: registry.count_attempt(name, half, candidate) for suite, half in benchmarks.items()},
    )
    log.info("champion of %s: %s", name, f"version {champion.version}" if champion else "none yet")
    log.info("attempt on each report half: %s", report.attempts)
    reports.write_report(paths.pin, report)


def _report_halves(paths: Paths) -> dict[str, reports.BenchmarkInfo]:
    return {
        folder.name: reports.read_report(folder / "benchmark.json", reports.BenchmarkInfo)
        for folder in sorted(paths.report_half.iterdir())
        if folder.is_dir()
    }


def _asked(half: reports.BenchmarkInfo, section: Evaluate, folder: Path) -> reports.Asked:
    """Say how a benchmark is asked: the same examples under another prompt or metric measure something else.

    So they do where less of a text is read, which hides what is lost further on, and in another arithmetic. An image is
    read whole.
    """
    asked = {name: value for name, value in half.settings.items() if name != SLICE}
    read: reports.Asked = {"precision": section.precision}
    if "image" not in pq.read_schema(folder / "examples.parquet").names:
        read["max_length"] = section.max_length
    return {"kind": half.kind, "metric": half.metric, **asked, **read}
