"""Which margins the original benchmarks of a small language model carry, from real paired outcomes.

Tunes SmolLM2-135M on support dialogues, and asks base and tuned model the report halves of ARC-easy, HellaSwag, PIQA,
LAMBADA and WikiText-2. The spread of the paired differences is what a margin must pay for; of text, also how much the
worst block lost: the rule takes what it did not see to have lost a nat a token at the most. `RETAIN_DATA` names the
data (docs/datasets.md); `make bench-margins` runs it where it is set.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from tasks import reports
from tasks.__main__ import run_stage
from tasks.families import family
from tasks.forgetting.measure import Subject, reference, suite_loss
from tasks.forgetting.rule import PairedLoss
from tasks.forgetting.suites import read_suites
from tasks.paths import Paths
from tasks.recipe import Finetune, Recipe, load_recipe, recipe_path
from tasks.sources import base_folder, fetch_raw
from tasks.splits import read_splits
from tasks.training.run import train_model
from tests.bench.bench_margins import carried
from tests.bench.figures import ROOT, Figure, publish

RECIPE = "support-chat"
EXAMPLES = 400
"""Of each benchmark; half of them are the report half."""
ROWS = 120
"""Dialogues that are learned from."""
RATES = {"one epoch at 1e-4": 1e-4, "one epoch at 3e-4": 3e-4}


@dataclass(frozen=True)
class Losses:
    """The paired losses of one tuned model, a suite each."""

    name: str
    suites: Mapping[str, PairedLoss]


def main() -> None:
    """Train, measure, print and write."""
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory(prefix="bench-margins-") as name:
        paths = _prepared(Path(name))
        recipe = load_recipe(recipe_path(paths.root, RECIPE))
        losses = [_losses(paths, recipe, name, rate) for name, rate in RATES.items()]
        figures = [figure for one in losses for figure in _figures(one, recipe)]
    publish("margins-language", figures, ["numpy", "scipy", "torch", "transformers"])


def _prepared(folder: Path) -> Paths:
    """Write the splits and the halves, with HellaSwag beside the recipe's own benchmarks."""
    document = yaml.safe_load(recipe_path(ROOT, RECIPE).read_text(encoding="utf-8"))
    document["data"]["source"]["hellaswag.jsonl"] = "path:$RETAIN_DATA/bench_hellaswag/test.jsonl"
    document["data"]["train"]["max_rows"] = ROWS
    document["data"]["test"]["max_rows"] = 40
    benchmarks = document["benchmarks"]
    benchmarks["hellaswag"] = {"kind": "choices", "file": "hellaswag.jsonl", "prompt": "{query}"}
    document["budget"]["hellaswag"] = {"informative": True}
    for benchmark in benchmarks.values():
        most = "max_blocks" if benchmark["kind"] == "perplexity" else "max_examples"
        benchmark[most] = EXAMPLES
    path = recipe_path(folder, RECIPE)
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    paths = Paths(folder, RECIPE)
    fetch_raw(load_recipe(path), paths)
    run_stage("prepare", RECIPE, folder)
    return paths


def _losses(paths: Paths, recipe: Recipe, name: str, rate: float) -> Losses:
    schema, tables = read_splits(paths)
    base = reports.read_report(paths.base, reports.Base)
    kind, folder = family(schema.task), base_folder(base, paths.root)
    changes: dict[str, Any] = {"learning_rate": rate, "max_length": 128, "force_learning_rate": True}
    section = Finetune.model_validate(recipe.finetune.model_dump(mode="json") | changes)
    torch.manual_seed(section.seed)
    model = kind.begin(folder, section, schema.labels, tables["train"], tables["validation"], "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        train_model(model, section, tables["train"], tables["validation"], Path(scratch))
    start = kind.load_base(folder, "cpu")
    before = reference(base, schema.task, start, recipe.evaluate, paths.root)
    after = Subject(model, recipe.evaluate)
    suites = read_suites(paths.report_half, list(recipe.budget))
    return Losses(
        name,
        {suite.name: suite_loss(suite, before, after) for suite in suites},
    )


def _figures(losses: Losses, recipe: Recipe) -> Iterator[Figure]:
    confidence, power = recipe.decide.confidence, recipe.decide.power
    for name, loss in losses.suites.items():
        unit = "accuracy" if loss.binary else "nats"
        size, label = len(loss.values), f"{losses.name}: {name}"
        bounds = (loss.lower(confidence), loss.upper(confidence))
        yield Figure(f"{label}: loss", loss.mean, unit, size, interval=bounds)
        yield Figure(f"{label}: margin carried", carried(loss, confidence, power), unit, size)
        if not loss.binary:
            yield Figure(f"{label}: most lost of a block", float(loss.values.max()), unit, size)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
