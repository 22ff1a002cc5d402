"""Where things lie: what the stages of one recipe read and write, and the machine's own store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from tasks.errors import ConfigError


@dataclass(frozen=True)
class Paths:
    """The files of one recipe, below the repository `root`. `dvc.yaml` declares the same paths."""

    root: Path
    recipe: str

    @property
    def raw(self) -> Path:
        """Raw data, one folder a recipe, tracked by `data/raw/<recipe>.dvc`."""
        return self.root / "data" / "raw" / self.recipe

    @property
    def out(self) -> Path:
        """What the stages write."""
        return self.root / "data" / self.recipe

    # prepare
    @property
    def train(self) -> Path:
        return self.out / "splits" / "train.parquet"

    @property
    def validation(self) -> Path:
        return self.out / "splits" / "validation.parquet"

    @property
    def test(self) -> Path:
        return self.out / "splits" / "test.parquet"

    @property
    def replay(self) -> Path:
        """Rows of the original domain to be replayed; absent where the recipe has none."""
        return self.out / "splits" / "replay.parquet"

    @property
    def targets(self) -> Path:
        """A folder of `<name>.parquet`: samples of where the model will be used."""
        return self.out / "splits" / "targets"

    @property
    def schema(self) -> Path:
        """`SplitSchema`: task, labels, counts, split hashes."""
        return self.out / "splits" / "schema.json"

    @property
    def selection(self) -> Path:
        """Selection halves of the benchmarks: a folder for each."""
        return self.out / "selection"

    @property
    def report_half(self) -> Path:
        """Report halves of the benchmarks: a folder for each."""
        return self.out / "report"

    @property
    def base(self) -> Path:
        """`Base`: which pretrained model, resolved to a fingerprint."""
        return self.out / "base.json"

    # validate, check, gate
    @property
    def validate(self) -> Path:
        return self.out / "validate.json"

    @property
    def check(self) -> Path:
        return self.out / "check.json"

    @property
    def gate(self) -> Path:
        return self.out / "gate.json"

    @property
    def passport(self) -> Path:
        return self.out / "passport.json"

    # finetune
    @property
    def tuned(self) -> Path:
        """The tuned model: a model folder (see `tasks/families/`)."""
        return self.out / "tuned"

    @property
    def history(self) -> Path:
        """CSV: step, loss, learning_rate, validation_loss, validation_score."""
        return self.out / "history.csv"

    @property
    def finetune(self) -> Path:
        return self.out / "finetune.json"

    # merge
    @property
    def chosen(self) -> Path:
        """The chosen model: a model folder."""
        return self.out / "chosen"

    @property
    def merge(self) -> Path:
        return self.out / "merge.json"

    # pin, evaluate, decide
    @property
    def pin(self) -> Path:
        return self.out / "pin.json"

    @property
    def evaluate(self) -> Path:
        return self.out / "evaluate.json"

    @property
    def metrics(self) -> Path:
        """Flat numbers for `dvc metrics`."""
        return self.out / "metrics.json"

    @property
    def records(self) -> Path:
        """`suites/<name>.parquet` and `targets/<name>.parquet`: id, group, base, candidate (and champion) a row."""
        return self.out / "records"

    @property
    def decision(self) -> Path:
        return self.out / "decision.json"

    # not in DVC: facts of one machine and one moment
    @property
    def scratch(self) -> Path:
        """Timings, logs, Data Docs: not results."""
        return self.root / ".retain" / self.recipe

    def stage_log(self, stage: str) -> Path:
        """What the stage printed when it last ran here."""
        return self.scratch / "logs" / f"{stage}.log"


def store() -> Path:
    """Return the machine's store of base weights, source files, measurements and checkpoints.

    `RETAIN_HOME` names it; otherwise the platform's cache folder.
    """
    return Path(os.environ.get("RETAIN_HOME") or platformdirs.user_cache_dir("retain"))


def registry_root(root: Path) -> str:
    """Return where releases lie: `RETAIN_REGISTRY` (a folder or `s3://bucket/prefix`), else `registry/`.

    Raises:
        ConfigError: it is an address that is no bucket, which would pass for the name of a folder.
    """
    location = os.environ.get("RETAIN_REGISTRY") or str(root / "registry")
    if "://" in location and not location.startswith("s3://"):
        raise ConfigError(
            f"RETAIN_REGISTRY is {location}: a registry is a folder, or a bucket as s3://bucket/prefix."
        )
    return location
