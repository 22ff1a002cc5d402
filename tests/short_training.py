"""A short training on a tiny chat model with replay, for tests that end it from outside; it says what it made."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tasks.families import load_model  # noqa: F401  what a run needs is imported once, before processes fork
from tasks.families.causal_lm import CausalLM
from tasks.recipe import Finetune
from tasks.training.loop import Trainer
from tests.tiny import WORDS
from tests.tiny_lm import tiny_lm, tiny_tokenizer

SECTION: dict[str, Any] = {
    "method": "full", "learning_rate": 1e-3, "epochs": 2, "batch_size": 8, "warmup_share": 0.1, "weight_decay": 0.01,
    "max_grad_norm": 1.0, "max_length": 32, "precision": "fp32", "seed": 7, "checkpoint_every": 1,
    "replay_share": 0.25,
}  # fmt: skip


def texts(count: int, first: int = 0) -> pd.DataFrame:
    """Return rows of text of unequal lengths."""
    made = [
        " ".join(WORDS[(n * 7 + k) % len(WORDS)] for k in range(3 + n % 11))
        for n in range(first, first + count)
    ]
    return pd.DataFrame({"id": [f"r{first + n}" for n in range(count)], "text": made})


def short_trainer(scratch: Path, **more: Any) -> Trainer:
    """Return a trainer of a tiny Llama with dropout on its attention: what random numbers do must be kept too."""
    network = tiny_lm("llama", attention_dropout=more.pop("attention_dropout", 0.1))
    network.config.use_cache = False
    model = CausalLM(network, tiny_tokenizer(), "cpu", "fp32", max_length=32)
    section = Finetune.model_validate({**SECTION, **more})
    return Trainer(model, section, texts(71), texts(12, 100), scratch, texts(20, 200))


def train_and_tell(scratch: Path, told: Path, **more: Any) -> None:
    """Train to the end, from the newest checkpoint if there is one, and write the weights' sha256 to `told`."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    trainer = short_trainer(scratch, **more)
    told.with_suffix(".began").touch()
    progress = trainer.fit()
    digest = hashlib.sha256(repr(progress.history).encode())
    for name, value in sorted(trainer.network.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    told.write_text(digest.hexdigest())
