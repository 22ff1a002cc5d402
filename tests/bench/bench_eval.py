"""Likelihood benchmarks by our engine and by lm-evaluation-harness's own, on real weights: results and speed.

`make bench-eval` asks SmolLM2-135M the first questions of ARC-easy, HellaSwag and PIQA (`$RETAIN_DATA`) through the same
harness calls (`simple_evaluate` with samples, a task YAML over local files), once with the harness's own model
(`HFLM`, at the fastest of several batch sizes for each task) and once with `Scorer`. Only the scoring is timed: loading
the model, the data and the task is the same for both and left out. Runs alternate; ratios are medians over pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tasks.files import write_text
from tasks.forgetting.likelihood import Scorer
from tasks.forgetting.suites import TOKENS_A_BATCH
from tasks.models import load_tokenizer, load_weights
from tasks.recipe import load_recipe, recipe_path
from tasks.sources import base_folder, resolve_base
from tests.bench.figures import ROOT, Figure, publish
from tests.harness import harness_model

REPEATS = 5
BATCH_SIZES = (1, 8, 16, 32)
MAX_LENGTH = 512
SAME = 1e-4
"""Nats: log-likelihoods differ by no more; answers only where the margin between the best two is below it."""
GOAL = 2.0


Scores = list[list[float]]
"""Log-likelihoods of each question's choices."""


@dataclass(frozen=True)
class Asked:
    """One task: its data under `$RETAIN_DATA`, what comes before a choice, and how many questions are asked."""

    name: str
    prompt: str
    questions: int


TASKS = (
    Asked("arc_easy", "{{query}}\nAnswer:", 24),
    Asked("hellaswag", "{{query}}", 16),
    Asked("piqa", "{{query}}Answer:", 24),
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


@dataclass(frozen=True)
class Race:
    """One task asked by both, run after run."""

    asked: Asked
    batch_size: int
    """At which the harness was fastest."""
    seconds: list[tuple[float, float]]
    """The harness's and ours, a run each."""
    theirs: Scores
    ours: Scores


def main() -> None:
    """Print and write the ratio of speeds and the differences of results, a task each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=[asked.name for asked in TASKS], help="this one only, with --kept")
    parser.add_argument("--questions", type=int, help="ask so many of each instead")
    parser.add_argument("--kept", type=Path, help="file of tasks that are done; they are not asked again")
    given = parser.parse_args()
    data = Path(os.environ.get("RETAIN_DATA", ""))
    if not (data / "bench_arc_easy").is_dir():
        sys.exit("RETAIN_DATA names no folder with bench_arc_easy/: see docs/datasets.md")
    os.environ["TQDM_DISABLE"] = "1"
    asked = [replace(task, questions=given.questions or task.questions) for task in TASKS]
    done = _read_kept(given.kept)
    missing = [task for task in asked if task.name not in done and given.task in (None, task.name)]
    if missing:
        network, tokenizer = _model()
        with tempfile.TemporaryDirectory() as folder:
            for task in missing:
                done[task.name] = _race(task, data, Path(folder), network, tokenizer)
                _keep(given.kept, done)
    if len(done) == len(asked):
        _publish([done[task.name] for task in asked])


def _publish(races: Sequence[Race]) -> None:
    figures = [figure for race in races for figure in _figures(race)]
    sums = [[sum(race.seconds[run][side] for race in races) for side in (0, 1)] for run in range(REPEATS)]
    together = [theirs / ours for theirs, ours in sums]
    figures.append(_speed("all three together", together, sum(race.asked.questions for race in races)))
    publish("eval", figures, ["torch", "transformers", "lm-eval"])


def _read_kept(path: Path | None) -> dict[str, Race]:
    if path is None or not path.is_file():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    return {row["asked"]["name"]: Race(**{**row, "asked": Asked(**row["asked"])}) for row in kept}


def _keep(path: Path | None, races: dict[str, Race]) -> None:
    if path is not None:
        write_text(path, json.dumps([asdict(race) for race in races.values()]))


def _model() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    recipe = load_recipe(recipe_path(ROOT, "support-chat"))
    folder = base_folder(resolve_base(recipe.base, ROOT), ROOT)
    return load_weights(AutoModelForCausalLM, folder).eval(), load_tokenizer(folder)


def _race(asked: Asked, data: Path, folder: Path, network: Any, tokenizer: Any) -> Race:
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
    seconds = []
    for _ in range(REPEATS):
        theirs, mine = _ask(stock[best], file, asked), _ask(ours, file, asked)
        seconds.append((stock[best].seconds, ours.seconds))
    return Race(asked, best, seconds, theirs, mine)


def _figures(race: Race) -> Iterator[Figure]:
    label = f"{race.asked.name}, harness at batch size {race.batch_size}"
    ratios = [theirs / ours for theirs, ours in race.seconds]
    yield _speed(label, ratios, race.asked.questions)
    yield from _differences(race.asked, race.theirs, race.ours)


def _speed(label: str, ratios: list[float], questions: int) -> Figure:
    speed = statistics.median(ratios)
    interval = (min(ratios), max(ratios))
    return Figure(
        f"{label}: times its speed", speed, "×", questions, REPEATS, interval, f">= {GOAL:g}", speed >= GOAL
    )


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


def _ask(timed: Timed, file: Path, asked: Asked) -> Scores:
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
    return [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]


def _seconds(timed: Timed, file: Path, asked: Asked) -> float:
    _ask(timed, file, asked)
    return timed.seconds


def _differences(asked: Asked, theirs: Scores, ours: Scores) -> Iterator[Figure]:
    pairs = [(np.array(a), np.array(b)) for a, b in zip(theirs, ours, strict=True)]
    most = max(float(np.abs(a - b).max()) for a, b in pairs)
    others = sum(bool(a.argmax() != b.argmax() and np.diff(np.sort(a)[-2:])[0] >= SAME) for a, b in pairs)
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
