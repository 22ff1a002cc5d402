"""text-classification: an encoder with mean pooling and a linear head; tuning starts from a linear probe.

A text that is longer than `max_length` tokens is cut there, or read in overlapping windows whose logits are averaged.
Where rows have lists of labels (`data.multi_label`), each label is a yes or no of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.errors import ConfigError
from tasks.families import heads, read_description
from tasks.families.interface import Content, Examples, Measured, Model, write_weights
from tasks.models import TOKENS_A_BATCH, Encoder, load_encoder
from tasks.recipe import Finetune
from tasks.tables import has_label_lists
from tasks.training.batches import length_batches
from tasks.training.packing import Packing
from tasks.training.probe import fit_label_probes, fit_probe, fresh_head
from tasks.training.retention import feature_distillation


@dataclass
class Windows:
    """The token lists of texts, one or more a text, and the labels."""

    tokens: list[list[list[int]]]
    labels: heads.Targets


@dataclass
class TextClassifier(Model):
    """An encoder with a linear head over its (not normalised) sentence vector."""

    task: ClassVar[str] = "text-classification"
    metric: ClassVar[str] = "accuracy"
    """Of a model that gives any number of labels: `example F1`."""
    start_means: ClassVar[str] = "the frozen base with a linear probe"

    encoder: Encoder
    head: nn.Linear
    labels: Sequence[str]
    max_length: int
    overlap: int = 0
    """Tokens that two windows of a long text share; 0 reads the first `max_length` tokens only."""
    threshold: float | None = None
    """Probability from which a label is given; None where every text has one label."""
    start_head: dict[str, Tensor] | None = None
    """The linear probe that tuning started from; kept beside the tuned head."""
    start_score: float = float("nan")
    class_weights: Tensor | None = None
    network: nn.ModuleDict = field(init=False)

    def __post_init__(self) -> None:
        self.device, self.precision = self.encoder.device, self.encoder.precision
        self.backbone = self.encoder.backbone
        if self.threshold is not None:
            self.metric = "example F1"  # type: ignore[misc]
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
    ) -> TextClassifier:
        """Load the base and fit the linear probe; `method: full` then trains from a fresh head instead.

        Raises:
            ConfigError: windows of the length that the base reads cannot share so many tokens.
        """
        encoder = load_encoder(base, device, section.precision)
        length = min(section.length, encoder.limit)
        _refuse_wide_overlap(encoder, section, length)
        fresh = fresh_head(encoder.dimensions, len(labels), section.seed)
        threshold = section.threshold if has_label_lists(train) else None
        model = cls(encoder, fresh, labels, length, section.window_overlap, threshold)
        targets = [heads.targets(table, len(labels)) for table in (train, validation)]
        features = [model._features(model.examples(table)) for table in (train, validation)]
        if threshold is None:
            model.start_head, model.start_score = fit_probe(
                features[0], targets[0], features[1], targets[1], len(labels)
            )
        else:
            model.start_head = fit_label_probes(features[0], targets[0], features[1], targets[1])
            scores = features[1] @ model.start_head["weight"].numpy().T + model.start_head["bias"].numpy()
            model.start_score = model._measured(scores, targets[1]).score
        if section.method != "full":
            model.head.load_state_dict(model.start_head)
        model.class_weights = heads.class_weights(targets[0], len(labels), section.class_weights)
        return model

    @classmethod
    def load(cls, folder: Path, device: str | None = None, precision: str = "fp32") -> TextClassifier:
        """Load a classifier that `save` wrote."""
        return cls._with_head(load_encoder(folder, device, precision), folder, heads.HEAD)

    @classmethod
    def load_start(
        cls, base: Path, tuned: Path, device: str | None = None, precision: str = "fp32"
    ) -> TextClassifier:
        """Load where tuning started: the frozen base plus the linear probe."""
        return cls._with_head(load_encoder(base, device, precision), tuned, heads.START_HEAD)

    @classmethod
    def load_base(cls, folder: Path, device: str | None = None, precision: str = "fp32") -> Encoder:
        """Load the encoder alone."""
        return load_encoder(folder, device, precision)

    @classmethod
    def _with_head(cls, encoder: Encoder, folder: Path, weights: str) -> TextClassifier:
        said: dict[str, Any] = read_description(folder)
        head = heads.load_head(folder, weights, said)
        return cls(encoder, head, said["labels"], said["max_length"], said["overlap"], said.get("threshold"))

    # --- training -----------------------------------------------------------------------------------------

    def examples(self, table: pd.DataFrame) -> Examples:
        """Tokenize rows with the columns `id`, `text` and (for the loss) `label`."""
        texts = table["text"].tolist()
        windows, cut = self._windows(texts)
        labels = (
            heads.targets(table, len(self.labels))
            if "label" in table
            else np.zeros(len(table), dtype=np.int64)
        )
        lengths = np.array([sum(map(len, row)) for row in windows], dtype=np.int64)
        ids = table["id"].astype(str).tolist()
        return Examples(ids, lengths, np.ones(len(table)), Windows(windows, labels), cut)

    def loss(self, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Return the cross-entropy of some rows, summed."""
        content: Windows = examples.content
        with self.autocast():
            logits = self.head(self._pool([content.tokens[row] for row in rows]))
        return heads.cross_entropy(logits, content.labels[rows], self.class_weights)

    def find_packing(self) -> Packing | None:
        """Try whether the encoder can read packs."""
        return self.encoder.find_packing()

    def packed(self, packing: Packing | None) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the encoder reads rows packed."""
        return self.encoder.packed(packing)

    def distillation(self, teacher: Model, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Return 1 - cosine of the features of model and teacher, summed over rows."""
        content: Windows = examples.content
        tokens = [content.tokens[row] for row in rows]
        with torch.no_grad(), self.autocast():
            before = teacher._pool(tokens)  # type: ignore[attr-defined]
        with self.autocast():
            return feature_distillation(self._pool(tokens), before)

    # --- measuring and using ------------------------------------------------------------------------------

    def measure(self, table: pd.DataFrame) -> Measured:
        """Measure cross-entropy, and whether the most likely label is right (of lists of labels: their F1)."""
        return self._measured(self.logits(table["text"].tolist()), heads.targets(table, len(self.labels)))

    def _measured(self, logits: NDArray[np.float32], truth: heads.Targets) -> Measured:
        if self.threshold is None:
            return heads.measured(logits, truth.astype(np.int64))
        return heads.measured_lists(logits, truth.astype(np.float32), self.threshold)

    def divergence(self, base: Model, table: pd.DataFrame) -> float | None:
        """Return KL(base ‖ model) of the labels of texts (of lists of labels: of each yes or no, a mean over labels)."""
        before, after = (model.logits(table["text"].tolist()) for model in (base, self))  # type: ignore[attr-defined]
        if self.threshold is not None:
            before, after = (
                np.stack([np.zeros_like(scores), scores], axis=-1).reshape(-1, 2)
                for scores in (before, after)
            )
        return heads.divergence(before, after)

    def encode(
        self, contents: Sequence[Content], *, max_length: int = 128, normalise: bool = True
    ) -> NDArray[np.float32]:
        """Embed texts with the encoder."""
        return self.encoder.encode(contents, max_length=max_length, normalise=normalise)

    @property
    def limit(self) -> int:
        """Most tokens the encoder reads."""
        return self.encoder.limit

    def logits(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Score texts: float32 `(rows, classes)`, in the order given."""
        numbers = [str(number) for number in range(len(texts))]
        features = self._features(self.examples(pd.DataFrame({"id": numbers, "text": list(texts)})))
        with torch.inference_mode():
            return self.head(torch.from_numpy(features).to(self.device)).float().cpu().numpy()

    def answer(self, contents: Sequence[Any]) -> list[dict[str, Any]]:
        """Classify texts: the label and its probability, or the list of labels, and every label's probability."""
        if self.threshold is not None:
            return heads.label_lists(self.logits(contents), self.labels, self.threshold)
        return heads.shares(self.logits(contents), self.labels)

    # --- keeping ------------------------------------------------------------------------------------------

    def _write(self, folder: Path) -> None:
        self.encoder.save(folder)
        write_weights(folder / heads.HEAD, self.head.state_dict())
        if self.start_head is not None:
            write_weights(folder / heads.START_HEAD, self.start_head)

    def _description(self) -> dict[str, Any]:
        threshold = {} if self.threshold is None else {"threshold": self.threshold}
        read = {"max_length": self.max_length, "overlap": self.overlap}
        return {"labels": list(self.labels), **read, **threshold}

    # --- windows ------------------------------------------------------------------------------------------

    def _windows(self, texts: Sequence[str]) -> tuple[list[list[list[int]]], int]:
        """Return each text's token lists, and how many texts are longer than what is read of them."""
        whole = self.encoder.tokens(texts)
        long = [row for row, tokens in enumerate(whole) if len(tokens) > self.max_length]
        found = [[tokens] for tokens in whole]
        if not long:
            return found, 0
        if self.overlap:
            encoded = self.encoder.tokenizer(
                [texts[row] for row in long],
                truncation=True,
                max_length=self.max_length,
                stride=self.overlap,
                return_overflowing_tokens=True,
            )
            for row in long:
                found[row] = []
            for tokens, place in zip(
                encoded["input_ids"], encoded["overflow_to_sample_mapping"], strict=True
            ):
                found[long[place]].append(tokens)
            return found, 0
        cut = self.encoder.tokens([texts[row] for row in long], self.max_length)
        for row, tokens in zip(long, cut, strict=True):
            found[row] = [tokens]
        return found, len(long)

    def _pool(self, rows: Sequence[list[list[int]]]) -> Tensor:
        """Return one vector a text: the mean of its windows' (the head is linear, so of their logits too)."""
        vectors = self.encoder.pool([tokens for row in rows for tokens in row])
        if len(vectors) == len(rows):
            return vectors
        owner = torch.tensor([place for place, row in enumerate(rows) for _ in row], device=vectors.device)
        sums = torch.zeros(len(rows), vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
        counts = torch.tensor([len(row) for row in rows], dtype=vectors.dtype, device=vectors.device)
        return sums.index_add(0, owner, vectors) / counts[:, None]

    def _features(self, examples: Examples) -> NDArray[np.float32]:
        features = np.zeros((len(examples), self.encoder.dimensions), dtype=np.float32)
        with self.inference():
            for rows in length_batches(examples.lengths, self.at_once(TOKENS_A_BATCH)):
                features[rows] = (
                    self._pool([examples.content.tokens[row] for row in rows]).float().cpu().numpy()
                )
        return features


def _refuse_wide_overlap(encoder: Encoder, section: Finetune, length: int) -> None:
    """Return when windows of `length` tokens move on; the recipe was checked without knowing what its base reads."""
    most = length - int(encoder.tokenizer.num_special_tokens_to_add())
    if section.window_overlap >= max(most, 1):
        raise ConfigError(
            f"finetune.window_overlap is {section.window_overlap}, but windows hold {most} tokens of a text: the base "
            f"reads {encoder.limit} at most, max_length is {section.length}, and special tokens take the rest. Set "
            f"window_overlap below {most}, or to 0."
        )
