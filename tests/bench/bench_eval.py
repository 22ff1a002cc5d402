"""Likelihood benchmarks by our engine and by lm-evaluation-harness's own, on real weights: results and speed.

`make bench-eval` asks SmolLM2-135M the first questions of ARC-easy, HellaSwag and PIQA (`$RETAIN_DATA`) through the same
harness calls (`simple_evaluate` with samples, a task YAML over local files), once with the harness's own model
(`HFLM`, at the fastest of several batch sizes for each task) and once with `Scorer`. Only the scoring is timed: loading
the model, the data and the task is the same for both and left out. Runs alternate; ratios are medians over pairs.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tasks.forgetting.likelihood import Scorer
from tasks.forgetting.lm_tasks import harness_model
from tasks.forgetting.suites import TOKENS_A_BATCH
from tasks.models import load_tokenizer, load_weights
from tasks.recipe import load_recipe, recipe_path
from tasks.sources import base_folder, resolve_base
from tests.bench.figures import ROOT, Figure, publish

REPEATS = 5
BATCH_SIZES = (1, 8, 16, 32)
MAX_LENGTH = 512
SAME = 1e-4
"""Nats: log-likelihoods differ by no more; answers only where the margin between the best two is below it."""
GOAL = 2.0


@dataclass(frozen=True)
class Asked:
    """One task: its data under `$RETAIN_DATA`, what comes before a choice, and how many questions are asked."""

    name: str
    prompt: str
    questions: int


TASKS = (
    Asked("arc_easy", "{{query}}\nAnswer:", 40),
    Asked("hellaswag", "{{query}}", 24),
    Asked("piqa", "{{query}}Answer:", 40),
)


@dataclass
class Timed:
    """A model of the harness whose scoring is timed."""

    model: Any
    seconds: float = 0.0
    _score: Any = field(init=False)

    def __post_init__(self) -> None:
        self._score = self.model.loglikelihood
        self.model.loglikelihood = self._timed

    def _timed(self, requests: list[Any], **settings: Any) -> Any:
        begun = time.perf_counter()
        try:
            return self._score(requests, **settings)
        finally:
            self.seconds = time.perf_counter() - begun


def main() -> None:
    """Print and write the ratio of speeds and the differences of results, a task each."""
    data = Path(os.environ.get("RETAIN_DATA", ""))
    if not (data / "bench_arc_easy").is_dir():
        sys.exit("RETAIN_DATA names no folder with bench_arc_easy/: see docs/datasets.md")
    os.environ["TQDM_DISABLE"] = "1"
    network, tokenizer = _model()
    with tempfile.TemporaryDirectory() as folder:
        figures = [
            figure for asked in TASKS for figure in _task(asked, data, Path(folder), network, tokenizer)
        ]
    publish("eval", figures, ["torch", "transformers", "lm-eval"])


def _model() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    recipe = load_recipe(recipe_path(ROOT, "support-chat"))
    folder = base_folder(resolve_base(recipe.base, ROOT), ROOT)
    return load_weights(AutoModelForCausalLM, folder).eval(), load_tokenizer(folder)


def _task(asked: Asked, data: Path, folder: Path, network: Any, tokenizer: Any) -> Iterator[Figure]:
    from lm_eval.models.huggingface import HFLM

    file = _write_task(asked, data, folder)
    stock = {
        size: Timed(HFLM(pretrained=network, tokenizer=tokenizer, batch_size=size, max_length=MAX_LENGTH))
        for size in BATCH_SIZES
    }
    ours = Timed(harness_model(Scorer(network, tokenizer, MAX_LENGTH, "cpu", TOKENS_A_BATCH["cpu"])))
    _ask(ours, file, asked)  # what the model can do is tried once, and counts as starting up
    tried = {size: _seconds(timed, file, asked) for size, timed in stock.items()}
    best = min(tried, key=lambda size: tried[size])
    pairs = []
    for _ in range(REPEATS):
        theirs, mine = _ask(stock[best], file, asked), _ask(ours, file, asked)
        pairs.append((stock[best].seconds, ours.seconds))
    ratios = [theirs_s / mine_s for theirs_s, mine_s in pairs]
    speed = statistics.median(ratios)
    label = f"{asked.name}, harness at batch size {best}"
    yield Figure(
        f"{label}: times its speed",
        speed,
        "×",
        asked.questions,
        REPEATS,
        (min(ratios), max(ratios)),
        f">= {GOAL:g}",
        speed >= GOAL,
    )
    yield from _differences(asked, theirs, mine)


def _write_task(asked: Asked, data: Path, folder: Path) -> Path:
    lines = (data / f"bench_{asked.name}" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / f"{asked.name}.jsonl").write_text("\n".join(lines[: asked.questions]) + "\n", encoding="utf-8")
    task = {
        "task": f"asked_{asked.name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{asked.name}.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": asked.prompt,
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    }
    file = folder / f"{asked.name}.yaml"
    file.write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    return file


def _ask(timed: Timed, file: Path, asked: Asked) -> list[np.ndarray]:
    """Return the log-likelihoods of each question's choices, in the order of the questions."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        results = simple_evaluate(
            model=timed.model,
            tasks=[str(file)],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
        )
    samples = sorted(results["samples"][f"asked_{asked.name}"], key=lambda sample: sample["doc_id"])
    return [np.array([answer[0] for answer in sample["filtered_resps"]]) for sample in samples]


def _seconds(timed: Timed, file: Path, asked: Asked) -> float:
    _ask(timed, file, asked)
    return timed.seconds


def _differences(asked: Asked, theirs: list[np.ndarray], ours: list[np.ndarray]) -> Iterator[Figure]:
    most = max(float(np.abs(a - b).max()) for a, b in zip(theirs, ours, strict=True))
    others = sum(
        bool(a.argmax() != b.argmax() and np.diff(np.sort(a)[-2:])[0] >= SAME)
        for a, b in zip(theirs, ours, strict=True)
    )
    name = asked.name
    yield Figure(
        f"{name}: largest difference of a log-likelihood",
        most,
        "nats",
        asked.questions,
        goal=f"<= {SAME:g}",
        met=most <= SAME,
    )
    yield Figure(
        f"{name}: other answers, where the margin is above {SAME:g}",
        others,
        "",
        asked.questions,
        goal="0",
        met=others == 0,
    )


if __name__ == "__main__":
    main()
