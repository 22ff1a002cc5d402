"""The pipeline, as a table: each stage, and the sections of the recipe that it may read.

`dvc.yaml` declares the same sections as `params:`; a test holds the two together.
"""

from __future__ import annotations

import functools
from pathlib import Path

import yaml

STAGES: dict[str, tuple[str, ...]] = {
    "prepare": ("task", "base", "data", "benchmarks"),
    "validate": ("validate",),
    "check": ("check", "finetune.max_length"),
    "gate": ("gate", "budget", "decide"),
    "finetune": ("finetune",),
    "merge": ("merge", "evaluate", "budget", "decide"),
    "pin": ("register.name", "evaluate"),
    "evaluate": ("evaluate", "decide"),
    "decide": ("decide", "budget", "register", "task", "data", "finetune"),
}


@functools.cache
def version_of(stage: str) -> int:
    """Return the integer of a stage's code in `versions.yaml`: what is kept under another one is not used again."""
    versions = yaml.safe_load(Path(__file__).with_name("versions.yaml").read_text(encoding="utf-8"))
    return int(versions[stage])
