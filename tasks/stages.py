"""The pipeline, as a table: each stage, and the sections of the recipe that it may read.

`dvc.yaml` declares the same sections as `params:`; a test holds the two together.
"""

from __future__ import annotations

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
