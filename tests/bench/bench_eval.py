"""Likelihood benchmarks by our engine and by lm-evaluation-harness's command line, on real weights: results and speed.

`make bench-eval` asks SmolLM2-135M questions of ARC-easy, HellaSwag and PIQA (`$RETAIN_DATA`): once by `lm-eval run`
(a task YAML over local files, samples logged) as it comes, so one request at a time; once by the same at the fastest of
several batch sizes; and once by `Scorer`, asked by the harness. Only the scoring is timed: loading the libraries, the
model, the data and the task is start-up and left out. Runs alternate; ratios are medians over them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
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
from tests.harness import harness_model, harness_samples

REPEATS = 3
STOCK = 1
"""Batch size of the command line where none is named."""
BATCH_SIZES = (8, 16, 32)
TRIED = 16
"""Questions by which the fastest batch size is found."""
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
    Asked("arc_easy", "{{query}}\nAnswer:", 100),
    Asked("hellaswag", "{{query}}", 50),
    Asked("piqa", "{{query}}Answer:", 100),
)


@dataclass(frozen=True)
class Race:
    """One task asked by both, run after run."""

    asked: Asked
    batch_size: int
    """At which the harness was fastest."""
    seconds: list[tuple[float, float, float]]
    """The harness's as it comes, at that batch size, and ours, a run each."""
    theirs: Scores
    """As it comes."""
    ours: Scores


@dataclass(frozen=True)
class Task:
    """One task as a file, and the model it is asked."""

    asked: Asked
    folder: Path
    base: Path

    @property
    def name(self) -> str:
        """Name in the harness."""
        return f"asked_{self.asked.name}"

    @property
    def file(self) -> Path:
        """Its YAML."""
        return self.folder / f"{self.asked.name}.yaml"

    def by_command_line(self, batch_size: int, questions: int | None = None) -> tuple[float, Scores]:
        """Return seconds of scoring, and the log-likelihoods of each question's choices."""
        seconds, out = self.folder / "seconds", self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        words = [
            "run",
            "--model",
            "hf",
            "--include_path",
            str(self.folder),
            "--tasks",
            self.name,
            "--log_samples",
        ]
        words += ["--model_args", f"pretrained={self.base},dtype=float32,max_length={MAX_LENGTH}"]
        words += ["--device", "cpu", "--output_path", str(out)]
        words += [] if batch_size == STOCK else ["--batch_size", str(batch_size)]
        words += ["--limit", str(questions)] if questions else []
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.lm_eval_timed", str(seconds), *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"lm-eval {' '.join(words)} failed:\n{done.stdout[-3000:]}")
        (samples,) = out.rglob(f"samples_{self.name}_*.jsonl")
        lines = samples.read_text(encoding="utf-8").splitlines()
        return float(seconds.read_text(encoding="utf-8")), _scores([json.loads(line) for line in lines])

    def by_ours(self, engine: Any) -> tuple[float, Scores]:
        """Return the same of our engine."""
        timed = Timed(engine)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            samples = harness_samples(self.file, engine)
        return timed.seconds, _scores(samples)


@dataclass
class Timed:
    """A model of the harness whose scoring is timed from now on."""

    model: Any
    seconds: float = 0.0

    def __post_init__(self) -> None:
        score = type(self.model).loglikelihood

        def timed(requests: list[Any], **settings: Any) -> Any:
            begun = time.perf_counter()
            answers = score(self.model, requests, **settings)
            self.seconds = time.perf_counter() - begun
            return answers

        self.model.loglikelihood = timed


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
        from transformers import AutoModelForCausalLM

        recipe = load_recipe(recipe_path(ROOT, "support-chat"))
        base = base_folder(resolve_base(recipe.base, ROOT), ROOT)
        network = load_weights(AutoModelForCausalLM, base).eval()
        engine = harness_model(
            Scorer(network, load_tokenizer(base), MAX_LENGTH, "cpu", TOKENS_A_BATCH["cpu"])
        )
        for one in missing:
            with tempfile.TemporaryDirectory() as folder:
                task = Task(one, Path(folder), base)
                _write_task(task, data)
                done[one.name] = _race(task, engine)
            _keep(given.kept, done)
    if len(done) == len(asked):
        _publish([done[task.name] for task in asked])


def _publish(races: Sequence[Race]) -> None:
    figures = [figure for race in races for figure in _figures(race)]
    sums = [[sum(race.seconds[run][side] for race in races) for side in range(3)] for run in range(REPEATS)]
    questions = sum(race.asked.questions for race in races)
    figures += _speeds("all three together", "its fastest batch sizes", sums, questions)
    publish("eval", figures, ["torch", "transformers", "lm-eval"])


def _read_kept(path: Path | None) -> dict[str, Race]:
    if path is None or not path.is_file():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    return {row["asked"]["name"]: Race(**{**row, "asked": Asked(**row["asked"])}) for row in kept}


def _keep(path: Path | None, races: dict[str, Race]) -> None:
    if path is not None:
        write_text(path, json.dumps([asdict(race) for race in races.values()]))


def _race(task: Task, engine: Any) -> Race:
    task.by_ours(engine)  # what the model can do is tried once, and counts as starting up
    tried = {size: task.by_command_line(size, TRIED)[0] for size in BATCH_SIZES}
    fastest = min(tried, key=lambda size: tried[size])
    seconds, theirs, ours = [], [], []
    for _ in range(REPEATS):
        stock, theirs = task.by_command_line(STOCK)
        batched, _ = task.by_command_line(fastest)
        mine, ours = task.by_ours(engine)
        seconds.append((stock, batched, mine))
    return Race(task.asked, fastest, seconds, theirs, ours)


def _figures(race: Race) -> Iterator[Figure]:
    yield from _speeds(
        race.asked.name, f"batch size {race.batch_size}, its fastest", race.seconds, race.asked.questions
    )
    yield from _differences(race.asked, race.theirs, race.ours)


def _speeds(label: str, fastest: str, seconds: Sequence[Sequence[float]], questions: int) -> Iterator[Figure]:
    """Yield how many times the harness's speed ours is: as it comes, and at its fastest batch size."""
    for side, how, goal in ((0, "as it comes", GOAL), (1, f"at {fastest}", None)):
        ratios = [run[side] / run[2] for run in seconds]
        speed = statistics.median(ratios)
        yield Figure(
            f"{label}, the command line {how}: times its speed",
            speed,
            "×",
            questions,
            REPEATS,
            (min(ratios), max(ratios)),
            None if goal is None else f">= {goal:g}",
            None if goal is None else speed >= goal,
        )


def _write_task(task: Task, data: Path) -> None:
    asked = task.asked
    lines = (data / f"bench_{asked.name}" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    questions = task.folder / f"{asked.name}.jsonl"
    questions.write_text("\n".join(lines[: asked.questions]) + "\n", encoding="utf-8")
    document = {
        "task": task.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(questions)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": asked.prompt,
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    }
    task.file.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML


def _scores(samples: Sequence[dict[str, Any]]) -> Scores:
    """Return the log-likelihoods of each question's choices, in the order of the questions."""
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in ordered]


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
