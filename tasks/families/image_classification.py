"""image-classification: a vision backbone (ResNet, ConvNeXt, ViT, …) and a linear head; tuning starts from a probe.

The features are what the architecture's own classifier reads, whatever that is: the model is loaded as transformers'
image classifier and its last linear layer is taken off. That layer, the *original head*, stays in the folder, so that a
tuned model can still be asked what the base was asked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoModelForImageClassification

from tasks.errors import StageError
from tasks.families import heads, read_description
from tasks.families.interface import Content, Embedder, Examples, Measured, Model, write_weights
from tasks.families.preprocessing import PREPROCESSOR, Preprocessing, read_preprocessing
from tasks.files import fingerprint, write_text
from tasks.models import load_weights, pick_device, settings_of
from tasks.recipe import Finetune
from tasks.training.probe import fit_probe, fresh_head
from tasks.training.retention import feature_distillation

IMAGES_A_BATCH = {"cpu": 64, "cuda": 512}
PADDING = 0.125
"""Share of the side by which `crop` may shift an image."""


@dataclass
class ImageEncoder(Embedder):
    """A vision backbone without its original head, and that head."""

    backbone: Any
    original_head: nn.Linear
    preprocessing: Preprocessing
    device: str
    precision: str = "fp32"

    def encode(
        self, contents: Sequence[Content], *, max_length: int = 128, normalise: bool = True
    ) -> NDArray[np.float32]:
        """Embed encoded images: float32 `(rows, dim)`; `max_length` is for texts and means nothing here."""
        rows = self.encode_pixels(self.pixels(contents))
        if normalise:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows

    def encode_pixels(self, pixels: Tensor) -> NDArray[np.float32]:
        """Embed uint8 pixels `(rows, 3, side, side)`, not normalised."""
        if not len(pixels):
            return np.zeros((0, self.dimensions), dtype=np.float32)
        self.backbone.eval()
        parts = []
        with torch.inference_mode(), self.autocast():
            for part in pixels.split(self.at_once(IMAGES_A_BATCH)):
                parts.append(self.features(part).float().cpu())
        return torch.cat(parts).numpy()

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features of uint8 pixels, `(rows, dim)`."""
        features: Tensor = self.backbone(self.preprocessing.normalise(pixels.to(self.device))).logits
        return features

    def pixels(self, contents: Sequence[Content]) -> Tensor:
        """Decode images to uint8 `(rows, 3, side, side)`."""
        side = self.preprocessing.side
        encoded = [_encoded(content) for content in contents]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # decoding lets go of Python's lock
            decoded = list(threads.map(self.preprocessing.pixels, encoded))
        return torch.from_numpy(np.stack(decoded) if decoded else np.zeros((0, 3, side, side), np.uint8))

    def original_logits(self, contents: Sequence[Content]) -> NDArray[np.float32]:
        """Ask the original head about images: float32 `(rows, original classes)`."""
        features = torch.from_numpy(self.encode(contents, normalise=False)).to(self.device)
        with torch.inference_mode():
            return self.original_head(features).float().cpu().numpy()

    @property
    def dimensions(self) -> int:
        """Width of the features."""
        return int(self.original_head.in_features)

    @property
    def limit(self) -> int:
        """Nothing is cut."""
        return 1 << 30

    @property
    def reading(self) -> str:
        """Names what reads an image beside the weights: its preprocessing, and the settings of the backbone."""
        return fingerprint(
            [("preprocessing", repr(self.preprocessing)), ("settings", settings_of(self.backbone))]
        )

    def save(self, folder: Path) -> None:
        """Write the backbone with its original head, as transformers does, and the preprocessing."""
        place = _head_place(self.backbone, nn.Identity)
        _put(self.backbone, place, self.original_head)
        try:
            self.backbone.save_pretrained(folder, safe_serialization=True)
        finally:
            _put(self.backbone, place, nn.Identity())
        write_text(folder / PREPROCESSOR, json.dumps(self.preprocessing.settings(), indent=2) + "\n")


def load_image_encoder(folder: Path, device: str | None = None, precision: str = "fp32") -> ImageEncoder:
    """Load the backbone of a model folder, with its original head apart.

    Raises:
        StageError: it is no image classifier, or lacks weights or its preprocessing.
    """
    device = device or pick_device()
    preprocessing = read_preprocessing(folder)
    model = load_weights(AutoModelForImageClassification, folder, may_lack=("classifier.", "head.", "fc."))
    place = _head_place(model, nn.Linear)
    head: Any = model.get_submodule(place)
    _put(model, place, nn.Identity())
    backbone: Any = model
    return ImageEncoder(backbone.to(device).eval(), head.to(device), preprocessing, device, precision)


@dataclass
class Pictures:
    """Decoded images and their labels."""

    pixels: Tensor
    labels: NDArray[np.int64]


@dataclass
class ImageClassifier(Model):
    """A vision backbone with a linear head over the features that its original head reads."""

    task: ClassVar[str] = "image-classification"
    metric: ClassVar[str] = "accuracy"
    start_means: ClassVar[str] = "the frozen base with a linear probe"

    encoder: ImageEncoder
    head: nn.Linear
    labels: Sequence[str]
    augment: Sequence[str] = ()
    start_head: dict[str, Tensor] | None = None
    start_score: float = float("nan")
    class_weights: Tensor | None = None
    network: nn.ModuleDict = field(init=False)

    def __post_init__(self) -> None:
        self.device, self.precision = self.encoder.device, self.encoder.precision
        self.backbone = self.encoder.backbone
        self.head = self.head.to(self.device)
        self.network = nn.ModuleDict({"encoder": self.encoder.backbone, "head": self.head})

    # --- where models come from ---------------------------------------------------------------------------

    @classmethod
    def begin(
        cls,
        base: Path,
        section: Finetune,
        labels: Sequence[str],
        train: pd.DataFrame,
        validation: pd.DataFrame,
        device: str,
    ) -> ImageClassifier:
        """Load the base and fit the linear probe; `method: full` then trains from a fresh head instead."""
        encoder = load_image_encoder(base, device, section.precision)
        truth, checked = heads.class_indices(train), heads.class_indices(validation)
        features = [encoder.encode(table["image"].tolist(), normalise=False) for table in (train, validation)]
        probe, score = fit_probe(features[0], truth, features[1], checked, len(labels))
        head = fresh_head(encoder.dimensions, len(labels), section.seed)
        model = cls(encoder, head, labels, section.augment, probe, score)
        if section.method != "full":
            model.head.load_state_dict(probe)
        model.class_weights = heads.class_weights(truth, len(labels), section.class_weights)
        return model

    @classmethod
    def load(cls, folder: Path, device: str | None = None, precision: str = "fp32") -> ImageClassifier:
        """Load a classifier that `save` wrote."""
        return cls._with_head(load_image_encoder(folder, device, precision), folder, heads.HEAD)

    @classmethod
    def load_start(
        cls, base: Path, tuned: Path, device: str | None = None, precision: str = "fp32"
    ) -> ImageClassifier:
        """Load where tuning started: the frozen base plus the linear probe."""
        return cls._with_head(load_image_encoder(base, device, precision), tuned, heads.START_HEAD)

    @classmethod
    def load_base(cls, folder: Path, device: str | None = None, precision: str = "fp32") -> ImageEncoder:
        """Load the backbone with its original head."""
        return load_image_encoder(folder, device, precision)

    @classmethod
    def _with_head(cls, encoder: ImageEncoder, folder: Path, weights: str) -> ImageClassifier:
        said: dict[str, Any] = read_description(folder)
        return cls(encoder, heads.load_head(folder, weights, said), said["labels"])

    # --- training -----------------------------------------------------------------------------------------

    def examples(self, table: pd.DataFrame) -> Examples:
        """Decode rows with the columns `id`, `image` (encoded bytes) and `label`."""
        pictures = Pictures(self.encoder.pixels(table["image"].tolist()), heads.class_indices(table))
        ones = np.ones(len(table))
        return Examples(table["id"].astype(str).tolist(), ones.astype(np.int64), ones, pictures)

    def loss(self, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Return the cross-entropy of some rows, augmented while the network trains, summed."""
        pictures: Pictures = examples.content
        pixels = pictures.pixels[torch.from_numpy(rows)]
        if self.network.training and self.augment:
            pixels = augmented(pixels, self.augment)
        with self.autocast():
            logits = self.head(self.encoder.features(pixels))
        return heads.cross_entropy(logits, pictures.labels[rows], self.class_weights)

    def train_mode(self) -> None:
        """Switch to training, BatchNorm's statistics excepted: they stay those of the base.

        So a step does not depend on how its batch is cut, small batches do not spoil them, and mixtures of base and
        tuned model, which share them, need no statistics of their own.
        """
        self.network.train()
        for module in self.backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()

    def distillation(self, teacher: Model, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Return 1 - cosine of the features of model and teacher, summed over rows."""
        pictures: Pictures = examples.content
        pixels = pictures.pixels[torch.from_numpy(rows)]
        with torch.no_grad(), self.autocast():
            before = teacher.encoder.features(pixels)  # type: ignore[attr-defined]
        with self.autocast():
            return feature_distillation(self.encoder.features(pixels), before)

    # --- measuring and using ------------------------------------------------------------------------------

    def measure(self, table: pd.DataFrame) -> Measured:
        """Measure cross-entropy, and whether the most likely label is right."""
        return heads.measured(self.logits(table["image"].tolist()), heads.class_indices(table))

    def divergence(self, base: Model, table: pd.DataFrame) -> float | None:
        """Return KL(base ‖ model) of the labels of images."""
        before, after = (model.logits(table["image"].tolist()) for model in (base, self))  # type: ignore[attr-defined]
        return heads.divergence(before, after)

    def encode(
        self, contents: Sequence[Content], *, max_length: int = 128, normalise: bool = True
    ) -> NDArray[np.float32]:
        """Embed encoded images with the backbone."""
        return self.encoder.encode(contents, normalise=normalise)

    def original_logits(self, contents: Sequence[Content]) -> NDArray[np.float32]:
        """Ask the base's original head about images."""
        return self.encoder.original_logits(contents)

    @property
    def limit(self) -> int:
        """Nothing is cut."""
        return self.encoder.limit

    def logits(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """Score encoded images: float32 `(rows, classes)`."""
        features = torch.from_numpy(self.encode(images, normalise=False)).to(self.device)
        with torch.inference_mode():
            return self.head(features).float().cpu().numpy()

    def answer(self, contents: Sequence[Any]) -> list[dict[str, Any]]:
        """Classify encoded images: label, probability and every label's probability."""
        return heads.shares(self.logits(contents), self.labels)

    # --- keeping ------------------------------------------------------------------------------------------

    def _write(self, folder: Path) -> None:
        self.encoder.save(folder)
        write_weights(folder / heads.HEAD, self.head.state_dict())
        if self.start_head is not None:
            write_weights(folder / heads.START_HEAD, self.start_head)

    def _description(self) -> dict[str, Any]:
        return {"labels": list(self.labels)}


def augmented(pixels: Tensor, how: Sequence[str]) -> Tensor:
    """Flip and shift uint8 images `(rows, channels, side, side)`, each by its own draw from torch's generator."""
    rows, _, side, _ = pixels.shape
    if "flip" in how:
        turned = torch.rand(rows) < 0.5
        pixels = torch.where(turned[:, None, None, None], pixels.flip(3), pixels)
    if "crop" in how:
        most = max(round(side * PADDING), 1)
        padded = nn.functional.pad(pixels.float(), (most,) * 4, mode="reflect").to(pixels.dtype)
        tops, lefts = torch.randint(0, 2 * most + 1, (2, rows)).tolist()
        cut = [
            padded[row, :, top : top + side, left : left + side]
            for row, (top, left) in enumerate(zip(tops, lefts, strict=True))
        ]
        pixels = torch.stack(cut)
    return pixels


def _encoded(content: Content) -> bytes:
    if isinstance(content, str):
        raise StageError("a text where an image is needed: does the benchmark's table name an image column?")
    return content


def _head_place(model: nn.Module, kind: type[nn.Module]) -> str:
    """Return the name of the last module of `kind`: the original head, or what stands in its place."""
    places = [name for name, module in model.named_modules() if isinstance(module, kind)]
    named = [name for name in places if name.split(".")[0] in ("classifier", "head", "fc")]
    if not named:
        raise StageError(
            "the model has no linear classifier at its end: it is no image classifier that we know"
        )
    return named[-1]


def _put(model: nn.Module, place: str, module: nn.Module) -> None:
    parent, _, name = place.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
