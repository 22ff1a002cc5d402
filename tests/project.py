"""A small repository of the product's shape, made in a temporary folder: git, DVC, one tiny recipe.

`make_project(path)` has a random tiny BERT and 120 short rows, and runs the real stages in a minute.
`make_project(path, stand_ins=True)` replaces the stages by ones that take no time and no model, for tests of what is
around them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

CHECKOUT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
COMMAND_LINE = "from flows.cli import main; main()"
STAGES = ("prepare", "validate", "check", "gate", "finetune", "merge", "pin", "evaluate", "decide")

RECIPE = """\
# A tiny recipe: it shows that the parts fit, not that the model is good.
task: text-classification
base: path:{base}

data:
  source:
    train.csv: path:{data}/train.csv
    articles.jsonl: path:{data}/articles.jsonl
  train: {{file: train.csv}}
  labels: [negative, positive]
  seed: 7

benchmarks:
  articles:
    kind: retrieval
    file: articles.jsonl
    format: jsonl

validate:
  min_rows_per_class: 5
  max_characters: 500

check:
  seed: 7
  near_duplicate_similarity: 0.9
  permutations: 99
  max_rows: 200
  max_length: 32

gate:
  failed_expectations: {{refuse_above: 0}}
  measures:
    minority_class_share: {{refuse_below: 0.05}}

finetune:
  method: lp-ft
  learning_rate: 1.0e-4   # the usual rate
  epochs: 1
  batch_size: 16
  warmup_share: 0.1
  weight_decay: 0.01
  max_grad_norm: 1.0
  max_length: 32
  precision: fp32
  seed: 7

budget:
  articles: {{margin: 0.5}}

merge:
  alphas: [0.0, 0.5, 1.0]

evaluate:
  precision: fp32

decide:
  confidence: 0.95
  power: 0.8
  bootstrap_draws: 1000
  seed: 7

register:
  name: {name}
  promote: true
"""


@dataclass(frozen=True)
class Project:
    """A repository for tests."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a process in this project needs: offline, its own store, quiet."""
        return {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("PREFECT_", "RETAIN_"))
            },
            "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)]),
            "RETAIN_HOME": str(self.root.parent / f"{self.root.name}-store"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "DO_NOT_TRACK": "1",
            "DVC_NO_ANALYTICS": "1",
            # The flow's own process takes the stand-ins too: `tasks.register` is called there. Else this checkout is run,
            # which need not be the one that is installed.
            "PYTHONPATH": os.pathsep.join(
                [
                    *([str(self.root)] if self.stand_ins else []),
                    str(CHECKOUT),
                    os.environ.get("PYTHONPATH", ""),
                ]
            ).strip(os.pathsep),
        }

    @property
    def stand_ins(self) -> bool:
        """Whether the stages are stand-ins."""
        return (self.root / "tasks" / "__init__.py").exists()

    def retain(self, *words: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command line of this project."""
        return self.command(sys.executable, "-c", COMMAND_LINE, *words, check=check, **environment)

    def command(
        self, *words: str, check: bool = True, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; its output goes into the error when it fails."""
        done = subprocess.run(
            words,
            cwd=cwd or self.root,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def git(self, *words: str) -> str:
        """Run git and return what it prints."""
        return self.command("git", *words).stdout

    def dvc(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the DVC command line."""
        return self.command(sys.executable, "-m", "dvc", *words, check=check)

    def commit(self, message: str = "change") -> None:
        """Commit everything that git does not ignore."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def recipe(self, name: str = "tiny") -> Path:
        """Return the path of a recipe."""
        return self.root / "recipes" / f"{name}.yaml"

    def change(self, before: str, after: str, name: str = "tiny") -> None:
        """Replace a piece of text, which must be there, in a recipe."""
        text = self.recipe(name).read_text()
        if before not in text:
            raise ValueError(f"{before!r} is not in the recipe")
        self.recipe(name).write_text(text.replace(before, after))

    def pin_raw_data(self, name: str = "tiny") -> None:
        """Fill `data/raw/<name>` and put it under DVC, as the flow's fetch does, without Prefect."""
        raw = self.root / "data" / "raw" / name
        shutil.copytree(self.root.parent / f"{self.root.name}-data", raw)
        self.dvc("add", "--quiet", f"data/raw/{name}")


def make_project(
    path: Path, *, stand_ins: bool = False, names: tuple[str, ...] = ("tiny",), dropout: float = 0.1
) -> Project:
    """Make a repository at `path` with a recipe for each name, committed; `dropout` is that of its base."""
    path.mkdir(parents=True)
    project = Project(path)
    data, base = path.parent / f"{path.name}-data", path.parent / f"{path.name}-base"
    _write_data(data)
    if stand_ins:
        _write_stand_ins(path / "tasks")
    else:
        from tests.tiny import make_tiny_base

        make_tiny_base(base, dropout=dropout)
        (path / "tasks").mkdir()
    for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(CHECKOUT / name, path / name)
    shutil.copy(CHECKOUT / "tasks" / "versions.yaml", path / "tasks" / "versions.yaml")
    shutil.copytree(CHECKOUT / "infra", path / "infra")
    (path / "recipes").mkdir()
    (path / "data" / "raw").mkdir(parents=True)
    (path / "params.yaml").write_text(yaml.safe_dump({"recipes": list(names)}))
    for name in names:
        project.recipe(name).write_text(RECIPE.format(base=base, data=data, name=name))
    project.git("init", "--quiet", "--initial-branch", "main")
    project.git("config", "user.name", "Test")
    project.git("config", "user.email", "test@localhost")
    project.dvc("init", "--quiet")
    shutil.copy(CHECKOUT / ".dvc" / "config", path / ".dvc" / "config")
    shutil.copy(CHECKOUT / ".dvcignore", path / ".dvcignore")
    project.commit("A tiny project")
    return project


def _write_data(folder: Path) -> None:
    """Write 120 rows whose label shows in the words, and 40 articles with a title and a text each."""
    folder.mkdir()
    good, bad = ["good", "great", "fine", "happy", "love"], ["bad", "poor", "awful", "sad", "hate"]
    things = ["battery", "screen", "phone", "camera", "sound", "book", "film", "story"]
    rows = ["text,label"]
    for number in range(120):
        words, label = (good, "positive") if number % 2 else (bad, "negative")
        thing = things[number % len(things)]
        rows.append(
            f"the {thing} {number} was {words[number % 5]} and it was {words[(number // 5) % 5]} "
            f"after day {number // 3} of week {number % 11},{label}"
        )
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    articles = [
        {
            "query": f"article {number} {things[number % 8]}",
            "document": f"article {number} law of the {things[number % 8]} and the {things[number % 7]} "
            f"state {number * 7}",
        }
        for number in range(40)
    ]
    (folder / "articles.jsonl").write_text("".join(json.dumps(article) + "\n" for article in articles))


# --- stand-ins -----------------------------------------------------------------------------------------
# The project's own `tasks/` comes first on the path of `python -m tasks`, and lends everything else from the real one.

PACKAGE = '''"""Stand-in stages."""
from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
'''

STAND_IN = '''"""Stand-in for the stage {stage}."""
import json
import time

from tasks.errors import Preempted, Refused, StageError
from tasks.reports import *  # noqa: F403


def _write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) + "\\n")


def {stage}(*sections, paths):
    print("{stage} begins", flush=True)
{body}
    print("{stage} ends", flush=True)
'''

REGISTER = '''"""Stand-in for registering: a file a version; the same content is published once."""
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Receipt:
    name: str
    version: int
    created: bool
    promoted: bool
    champion: int
    verdict: str = "PASS"


def register(recipe, section, *, paths, registry_location, promote, run_id, git_commit):
    folder = Path(registry_location) / section.name
    folder.mkdir(parents=True, exist_ok=True)
    content = paths.decision.read_text()
    known = sorted(folder.glob("*.json"))
    for path in known:
        if json.loads(path.read_text())["decision"] == content:
            return Receipt(section.name, int(path.stem), False, False, 1)
    number = len(known) + 1
    lineage = {"decision": content, "run": run_id, "commit": git_commit}
    (folder / f"{number:06d}.json").write_text(json.dumps(lineage))
    return Receipt(section.name, number, True, promote, number)
'''

BODIES = {
    "prepare": """
    rows = (paths.raw / "train.csv").read_text()
    for path in (paths.train, paths.selection / "x", paths.report_half / "x"):
        _write(path, rows)
    _write(paths.schema, {"task": "text-classification", "labels": ["negative", "positive"], "rows": {"train": 72,
        "validation": 24, "test": 24}, "dropped": {}, "fingerprint": str(len(rows)), "source": {}})
    _write(paths.base, {"source": "s", "resolved": "s", "fingerprint": "f" * 64, "files": [], "architecture": "bert",
        "first_base": {"source": "s", "fingerprint": "f" * 64}})
""",
    "validate": """
    _write(paths.validate, {"rows": 120, "expectations": [], "failed_expectations": 0})
""",
    "check": """
    _write(paths.check, {"rows": 120, "sampled_rows": {}, "measures": []})
""",
    "gate": """
    refuse = sections[0].failed_expectations.refuse_above < 0
    item = {"name": "failed_expectations", "value": 0, "level": "refuse" if refuse else "pass", "reason": "too many",
            "remedy": "fix the data"}
    _write(paths.gate, {"level": item["level"], "items": [item]})
    if refuse:
        raise Refused("The data may not train:", ["failed_expectations: too many"])
    _write(paths.passport, {"splits": "x", "cleared_by": ["failed_expectations"]})
""",
    "finetune": """
    for second in range(sections[0].epochs - 1):
        print(f"epoch {second} größer", flush=True)
        time.sleep(1)
    if sections[0].batch_size == 13:
        raise StageError("the loss is not finite", ["step 3", "step 4"])
    if sections[0].batch_size == 14:
        raise ValueError("a bug")
    if sections[0].batch_size == 75 and not (paths.scratch / "tried").exists():
        _write(paths.scratch / "tried", 1)
        raise Preempted("asked to stop")
    _write(paths.tuned / "weights.json", sections[0].learning_rate)
    _write(paths.history, 0)
    paths.history.write_text("step,loss,learning_rate,validation_loss,validation_score\\n1,0.5,0.1,0.5,0.5\\n")
    _write(paths.finetune, {"method": "full", "steps": 1, "epochs": 1, "trainable_parameters": 1, "parameters": 1,
        "truncated_rows": 0, "start_score": 0.5, "best_epoch": 1, "validation_loss": 0.5,
        "validation_score": 0.5, "train_loss": 0.5})
""",
    "merge": """
    _write(paths.chosen / "weights.json", (paths.tuned / "weights.json").read_text())
    outcome = {"alpha": 1.0, "validation_score": 0.9, "gain": 0.1, "suites": [], "within_budget": True,
               "blocked_by": []}
    _write(paths.merge, {"alpha": 1.0, "rescued": False, "outcomes": [outcome], "flips": [], "model": "m"})
""",
    "pin": """
    _write(paths.pin, {"registry_name": sections[0], "champion": None, "champion_model": None,
        "candidate_model": "m", "first_base": {"source": "s", "fingerprint": "f" * 64}})
""",
    "evaluate": """
    rate = float(json.loads(json.loads((paths.chosen / "weights.json").read_text())))
    target = {"name": "test", "examples": 24, "base": 0.5, "candidate": 0.9, "champion": None, "gain": 0.4,
              "gain_interval": [0.2, 0.6], "macro_f1": 0.9}
    suite = {"name": "articles", "metric": "mrr", "examples": 20, "base": 0.6, "candidate": 0.6 - rate,
             "loss": rate, "standard_error": 0.01, "p_guessing": 0.0, "independent": 20}
    _write(paths.evaluate, {"base_model": "b", "candidate_model": "m", "champion": None, "targets": [target],
        "suites": [suite]})
    _write(paths.records / "x", 0)
    _write(paths.metrics, {"accuracy": 0.9, "loss": rate})
""",
    "decide": """
    rate = json.loads(paths.evaluate.read_text())["suites"][0]["loss"]
    verdict = "FAIL" if rate > 0.0005 else "PASS"
    suite = {"name": "articles", "metric": "mrr", "margin": 0.5, "base": 0.6, "candidate": 0.6 - rate, "loss": rate,
             "lower": rate, "upper": rate, "p_value": 0.01, "examples": 20, "examples_needed": 10, "verdict": verdict,
             "test": "t", "reason": "because"}
    _write(paths.decision, {"verdict": verdict, "reasons": [f"articles: lost {rate}"], "advice": [],
        "confidence": 0.95, "target_verdict": "PASS", "target_reason": "gained", "champion": None, "suites": [suite],
        "model": "m"})
""",
}


def _write_stand_ins(folder: Path) -> None:
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "register.py").write_text(REGISTER)
    for stage, body in BODIES.items():
        (folder / f"{stage}.py").write_text(STAND_IN.format(stage=stage, body=body.rstrip().lstrip("\n")))
