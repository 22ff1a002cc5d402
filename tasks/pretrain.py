"""Make a small vision model from labelled images, where no pretrained one can be had: `make vision-bases`.

`python -m tasks.pretrain IMAGES LABELS.csv OUT --architecture resnet` trains on the rows whose `split` is `train` and
writes a base folder that a recipe can name. What comes out is small and knows little, and says so: a base to try the
pipeline with, not one to ship.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from tasks.errors import DataError, PipelineError
from tasks.families.image_classification import augmented
from tasks.families.preprocessing import PREPROCESSOR, Preprocessing
from tasks.files import atomic_folder, write_text
from tasks.training.layers import rate_share

log = logging.getLogger(__name__)

SIDE = 32
BATCH = 64
EPOCHS = {"resnet": 25, "vit": 40}
RATES = {"resnet": 2e-3, "vit": 1e-3}


def pretrain(
    images: Path, labels: Path, out: Path, architecture: str, epochs: int | None = None, seed: int = 7
) -> float:
    """Train a small ResNet or ViT on labelled images and write it to `out`; return its accuracy on `split: test`.

    Raises:
        DataError: the label file or an image cannot be read.
    """
    table = _read(labels)
    names = sorted(table["label"].unique())
    preprocessing = Preprocessing(SIDE, (0.5,) * 3, (0.5,) * 3)
    pixels, truth = {}, {}
    for split in ("train", "test"):
        rows = table[table["split"] == split]
        decoded = [preprocessing.pixels(_content(images / name)) for name in rows["file"]]
        pixels[split] = torch.from_numpy(np.stack(decoded))
        truth[split] = torch.tensor([names.index(label) for label in rows["label"]])
    torch.manual_seed(seed)
    model = _model(architecture, names)
    epochs = epochs or EPOCHS[architecture]
    _train(model, preprocessing, pixels["train"], truth["train"], epochs, RATES[architecture])
    accuracy = _accuracy(model, preprocessing, pixels["test"], truth["test"])
    _write(model, preprocessing, out)
    log.info("%s: accuracy %.4f on %d test images, in %s", architecture, accuracy, len(truth["test"]), out)
    return accuracy


def _model(architecture: str, names: list[str]) -> PreTrainedModel:
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }
    if architecture == "resnet":
        return ResNetForImageClassification(
            ResNetConfig(
                embedding_size=32,
                hidden_sizes=[32, 64, 128],
                depths=[1, 1, 1],
                layer_type="basic",
                downsample_in_first_stage=False,
                **labels,
            )
        )
    return ViTForImageClassification(
        ViTConfig(
            image_size=SIDE,
            patch_size=4,
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=128,
            **labels,
        )
    )


def _train(
    model: PreTrainedModel,
    preprocessing: Preprocessing,
    pixels: Tensor,
    truth: Tensor,
    epochs: int,
    peak: float,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05)
    batches = math.ceil(len(truth) / BATCH)
    steps = epochs * batches
    order = torch.arange(len(truth))
    model.train()
    for step in range(steps):
        if step % batches == 0:
            order = torch.randperm(len(truth))
        rows = order[(step % batches) * BATCH : (step % batches + 1) * BATCH]
        for group in optimizer.param_groups:
            group["lr"] = peak * rate_share(step, steps, batches)
        shown = preprocessing.normalise(augmented(pixels[rows], ["flip", "crop"]))
        loss = nn.functional.cross_entropy(model(shown).logits, truth[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % (10 * batches) == 0:
            log.info("epoch %d of %d, loss %.3f", (step + 1) // batches, epochs, loss)


def _accuracy(model: PreTrainedModel, preprocessing: Preprocessing, pixels: Tensor, truth: Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        said = torch.cat(
            [model(preprocessing.normalise(part)).logits.argmax(1) for part in pixels.split(BATCH)]
        )
    return float((said == truth).float().mean())


def _write(model: PreTrainedModel, preprocessing: Preprocessing, out: Path) -> None:
    with atomic_folder(out) as aside:
        model.save_pretrained(aside, safe_serialization=True)
        described = {
            "size": {"height": SIDE, "width": SIDE},
            "image_mean": list(preprocessing.mean),
            "image_std": list(preprocessing.deviation),
        }
        write_text(aside / PREPROCESSOR, json.dumps(described, indent=2) + "\n")


def _read(labels: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(labels, dtype=str)
    except (OSError, ValueError) as error:
        raise DataError(f"{labels} cannot be read: {error}") from None
    if missing := {"file", "label", "split"} - set(table):
        raise DataError(f"{labels} has no column {', '.join(sorted(missing))}.")
    if absent := {"train", "test"} - set(table["split"]):
        raise DataError(f"{labels} has no rows whose split is {', '.join(sorted(absent))}.")
    return table


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of the images")
    parser.add_argument("labels", type=Path, help="CSV with the columns file, label, split")
    parser.add_argument("out", type=Path, help="where the base is written")
    parser.add_argument("--architecture", choices=sorted(EPOCHS), required=True)
    parser.add_argument(
        "--epochs", type=int, help="passes over the images; what suits the architecture when absent"
    )
    given = parser.parse_args()
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    try:
        pretrain(given.images, given.labels, given.out, given.architecture, given.epochs)
    except PipelineError as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
