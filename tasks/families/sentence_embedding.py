"""sentence-embedding: contrastive training of an encoder, on labelled texts or on pairs.

| rows | losses | outcome |
|---|---|---|
| text, label | `supervised-contrastive`, `triplet`, `multiple-negatives` | 1 if the nearest class centre is right |
| text, positive (, negative) | `multiple-negatives`, `triplet` | 1 / rank of its positive among all positives |
| text, positive, score | `cosine` | its term of the Pearson correlation of cosine and score |
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from tasks.errors import StageError
from tasks.families import heads, read_description
from tasks.families.interface import Content, Examples, Measured, Model, write_weights
from tasks.models import Encoder, load_encoder
from tasks.recipe import UNLABELLED, Finetune
from tasks.training.batches import epoch_batches
from tasks.training.packing import Packing
from tasks.training.retention import feature_distillation

CENTRES, START_CENTRES = "centres.safetensors", "start_centres.safetensors"
MARGIN = 0.5
"""Of the triplet loss, in cosine distance."""


@dataclass
class Pairs:
    """Token lists of each row's texts, and labels or scores."""

    anchors: list[list[int]]
    positives: list[list[int]] | None
    negatives: list[list[int]] | None
    labels: NDArray[np.int64] | None
    scores: NDArray[np.float64] | None


@dataclass
class SentenceEncoder(Model):
    """An encoder whose unit sentence vectors are compared by cosine; α = 0 is the base itself."""

    task: ClassVar[str] = "sentence-embedding"
    metric: ClassVar[str] = "accuracy"
    start_means: ClassVar[str] = "the base"
    whole_batches: ClassVar[bool] = True

    encoder: Encoder
    labels: Sequence[str]
    max_length: int
    objective: str
    """The loss."""
    temperature: float
    centres: Tensor | None = None
    """Unit class centres of the training rows, `(classes, dim)`, where rows have labels."""
    start_centres: Tensor | None = None
    """Those of the base."""
    start_score: float = float("nan")
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.device, self.precision = self.encoder.device, self.encoder.precision
        self.network = self.backbone = self.encoder.backbone
        # What a row's outcome is depends on the rows.
        self.metric = "accuracy" if self.labels else "pearson" if self.objective == "cosine" else "mrr"  # type: ignore[misc]

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
    ) -> SentenceEncoder:
        """Load the base, and measure it on validation."""
        encoder = load_encoder(base, device, section.precision)
        length = min(section.length, encoder.limit)
        if section.loss is None:
            raise StageError("finetune.loss is missing: a sentence-embedding recipe names its loss.")
        model = cls(encoder, labels, length, section.loss, section.temperature)
        model.settle(train)
        model.start_centres = model.centres
        model.start_score = model.measure(validation).score
        return model

    @classmethod
    def load(cls, folder: Path, device: str | None = None, precision: str = "fp32") -> SentenceEncoder:
        """Load a model that `save` wrote."""
        return cls._described(folder, folder, CENTRES, device, precision)

    @classmethod
    def load_start(
        cls, base: Path, tuned: Path, device: str | None = None, precision: str = "fp32"
    ) -> SentenceEncoder:
        """Load the base, with its own class centres."""
        return cls._described(base, tuned, START_CENTRES, device, precision)

    @classmethod
    def load_base(cls, folder: Path, device: str | None = None, precision: str = "fp32") -> Encoder:
        """Load the encoder."""
        return load_encoder(folder, device, precision)

    @classmethod
    def _described(
        cls, weights: Path, description: Path, centres: str, device: str | None, precision: str
    ) -> SentenceEncoder:
        said: dict[str, Any] = read_description(description)
        encoder = load_encoder(weights, device, precision)
        model = cls(encoder, said["labels"], said["max_length"], said["loss"], said["temperature"])
        if model.labels:
            try:
                model.centres = load_file(description / centres)["centres"].to(model.device)
            except (OSError, KeyError, SafetensorError) as error:
                raise StageError(f"{description} is a damaged model: {centres}: {error}") from error
        return model

    # --- training -----------------------------------------------------------------------------------------

    def examples(self, table: pd.DataFrame) -> Examples:
        """Tokenize rows with `id`, `text` and `label`, or `positive` (and `negative` or `score`)."""
        columns = {name: table[name].tolist() for name in ("text", "positive", "negative") if name in table}
        cut = {name: self.encoder.tokens(texts, self.max_length) for name, texts in columns.items()}
        long = np.zeros(len(table), dtype=bool)
        lengths = np.zeros(len(table), dtype=np.int64)
        for texts in columns.values():
            whole = np.array([len(row) for row in self.encoder.tokens(texts)], dtype=np.int64)
            long |= whole > self.max_length
            lengths = np.maximum(lengths, np.minimum(whole, self.max_length))
        pairs = Pairs(
            cut["text"],
            cut.get("positive"),
            cut.get("negative"),
            heads.class_indices(table) if self.labels and "label" in table else None,
            table["score"].to_numpy(np.float64) if "score" in table else None,
        )
        return Examples(
            table["id"].astype(str).tolist(), lengths, np.ones(len(table)), pairs, int(long.sum())
        )

    def batches(self, examples: Examples, section: Finetune, epoch: int) -> list[NDArray[np.int64]]:
        """Return batches in which every labelled row meets one of its class, where the class has two."""
        if examples.content.labels is None:
            return epoch_batches(examples.lengths, section.batch_size, section.seed, epoch)
        return paired_batches(
            examples.content.labels, examples.lengths, section.batch_size, section.seed, epoch
        )

    def loss(self, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Return the contrastive loss of a batch, times its rows; a row that is `UNLABELLED` is in none."""
        content: Pairs = examples.content
        if content.labels is not None:
            rows = rows[content.labels[rows] != UNLABELLED]
            if not len(rows):
                return torch.zeros((), device=self.device, requires_grad=True)
        with self.autocast():
            anchors = self._vectors([content.anchors[row] for row in rows])
            others = [
                self._vectors([texts[row] for row in rows]) if texts is not None else None
                for texts in (content.positives, content.negatives)
            ]
        labels = None if content.labels is None else torch.from_numpy(content.labels[rows]).to(self.device)
        scores = None if content.scores is None else torch.from_numpy(content.scores[rows]).to(self.device)
        return LOSSES[self.objective](anchors, others[0], others[1], labels, scores, self.temperature) * len(
            rows
        )

    def find_packing(self) -> Packing | None:
        """Try whether the encoder can read packs."""
        return self.encoder.find_packing()

    def packed(self, packing: Packing | None) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the encoder reads rows packed."""
        return self.encoder.packed(packing)

    def settle(self, train: pd.DataFrame) -> None:
        """Compute the class centres from the training rows."""
        if not self.labels:
            return
        vectors = torch.from_numpy(self.encode(train["text"].tolist(), max_length=self.max_length))
        labels = torch.from_numpy(heads.class_indices(train))
        sums = torch.zeros(len(self.labels), vectors.shape[1]).index_add(0, labels, vectors)
        self.centres = functional.normalize(sums, dim=1).to(self.device)

    def distillation(self, teacher: Model, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Return 1 - cosine of the features of model and teacher, summed over rows."""
        tokens = [examples.content.anchors[row] for row in rows]
        with torch.no_grad(), self.autocast():
            before = teacher.encoder.pool(tokens)  # type: ignore[attr-defined]
        with self.autocast():
            return feature_distillation(self.encoder.pool(tokens), before)

    # --- measuring and using ------------------------------------------------------------------------------

    def measure(self, table: pd.DataFrame) -> Measured:
        """Measure each row's outcome; its loss is what it falls short of the best."""
        vectors = self.encode(table["text"].tolist(), max_length=self.max_length)
        if self.labels:
            return heads.measured(self._similarity(vectors) / self.temperature, heads.class_indices(table))
        others = self.encode(table["positive"].tolist(), max_length=self.max_length)
        if "score" in table:
            outcomes = correlation_terms((vectors * others).sum(axis=1), table["score"].to_numpy(np.float64))
            return Measured(1 - outcomes, outcomes)
        similarity = vectors @ others.T
        ranks = (similarity >= np.diag(similarity)[:, None]).sum(axis=1)
        outcomes = 1.0 / np.maximum(ranks, 1)
        return Measured(1 - outcomes, outcomes)

    def divergence(self, base: Model, table: pd.DataFrame) -> float | None:
        """Let both embed texts; vectors are no distribution, so nothing is returned."""
        for model in (base, self):
            model.encode(table["text"].tolist())
        return None

    def encode(
        self, contents: Sequence[Content], *, max_length: int = 128, normalise: bool = True
    ) -> NDArray[np.float32]:
        """Embed texts with the encoder."""
        return self.encoder.encode(contents, max_length=max_length, normalise=normalise)

    @property
    def limit(self) -> int:
        """Most tokens the encoder reads."""
        return self.encoder.limit

    def answer(self, contents: Sequence[Any]) -> list[dict[str, Any]]:
        """Return each text's nearest class and its cosine where there are classes, and its vector."""
        vectors = self.encode(contents, max_length=self.max_length)
        answers: list[dict[str, Any]] = [{"vector": vector.tolist()} for vector in vectors]
        if self.labels:
            for answer, row in zip(answers, self._similarity(vectors), strict=True):
                answer |= {"label": str(self.labels[int(row.argmax())]), "cosine": float(row.max())}
        return answers

    def _similarity(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.centres is None:
            raise StageError("the class centres were never computed: settle the model on its training rows")
        return vectors @ self.centres.cpu().numpy().T

    # --- keeping ------------------------------------------------------------------------------------------

    def _write(self, folder: Path) -> None:
        self.encoder.save(folder)
        if self.centres is not None:
            write_weights(folder / CENTRES, {"centres": self.centres})
        if self.start_centres is not None:
            write_weights(folder / START_CENTRES, {"centres": self.start_centres})

    @property
    def state(self) -> dict[str, Tensor]:
        """The encoder's weights, and the class centres, which are of the training rows."""
        centres = {} if self.centres is None else {"centres": self.centres}
        return {**self.network.state_dict(), **centres}

    def _description(self) -> dict[str, Any]:
        settings = {"max_length": self.max_length, "loss": self.objective, "temperature": self.temperature}
        return {"labels": list(self.labels), **settings}

    def _vectors(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        return functional.normalize(self.encoder.pool(tokens).float(), dim=1)


def paired_batches(
    labels: NDArray[np.int64], lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """Return batches of row indices in which rows of one class come in pairs; a class's odd row stands alone.

    Pairs of like length are put together, as in `epoch_batches`.
    """
    generator = np.random.default_rng([seed, epoch])
    waiting: dict[int, int] = {}
    units: list[list[int]] = []
    for row in generator.permutation(len(labels)).tolist():
        label = int(labels[row])
        if label in waiting:
            units.append([waiting.pop(label), row])
        else:
            waiting[label] = row
    units += [[row] for row in waiting.values()]
    longest = np.array([lengths[unit].max() for unit in units], dtype=np.int64)
    together = epoch_batches(longest, max(batch_size // 2, 1), seed, epoch)
    return [np.array([row for place in batch for row in units[place]]) for batch in together]


def correlation_terms(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Return a term a row whose mean is Pearson's correlation; 0 where one of the two does not vary."""
    a, b = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if a.std() < 1e-12 or b.std() < 1e-12:
        return np.zeros(len(a))
    terms: NDArray[np.float64] = (a - a.mean()) / a.std() * (b - b.mean()) / b.std()
    return terms


def multiple_negatives(
    anchors: Tensor,
    positives: Tensor | None,
    negatives: Tensor | None,
    labels: Tensor | None,
    scores: Tensor | None,
    temperature: float,
) -> Tensor:
    """Return InfoNCE with the batch's other positives, and the negatives, as negatives.

    With labels instead of pairs, each row's positive is the next row of its class. Source: Henderson et al. 2017,
    Efficient natural language response suggestion; van den Oord et al. 2018.
    """
    if positives is None:
        return _same_class(anchors, labels, temperature)
    candidates = positives if negatives is None else torch.cat([positives, negatives])
    target = torch.arange(len(anchors), device=anchors.device)
    return functional.cross_entropy(anchors @ candidates.T / temperature, target)


def supervised_contrastive(
    anchors: Tensor,
    positives: Tensor | None,
    negatives: Tensor | None,
    labels: Tensor | None,
    scores: Tensor | None,
    temperature: float,
) -> Tensor:
    """Return SupCon over the batch: the mean over each row's positives stands outside the logarithm.

    Source: Khosla et al. 2020, Supervised contrastive learning, equation 2. Rows without a positive count as zero.
    """
    same, likelihood = _batch_likelihood(anchors, labels, temperature)
    partners = same.sum(1)
    rows = -(likelihood.masked_fill(~same, 0.0).sum(1) / partners.clamp(min=1))
    return rows.mean()


def triplet(
    anchors: Tensor,
    positives: Tensor | None,
    negatives: Tensor | None,
    labels: Tensor | None,
    scores: Tensor | None,
    temperature: float,
) -> Tensor:
    """Return the triplet loss in cosine distance; with labels, of the batch's hardest positive and negative.

    Source: Schroff et al. 2015, FaceNet; Hermans et al. 2017, In defense of the triplet loss (batch hard).
    """
    if positives is not None and negatives is not None:
        apart = (1 - (anchors * positives).sum(1)) - (1 - (anchors * negatives).sum(1))
        return functional.relu(apart + MARGIN).mean()
    same = _same(labels)
    distance = 1 - anchors @ anchors.T
    other = labels[:, None] != labels[None, :] if labels is not None else ~same
    hardest = distance.masked_fill(~same, -1.0).amax(1)
    nearest = distance.masked_fill(~other, 3.0).amin(1)
    usable = same.any(1) & other.any(1)
    return (functional.relu(hardest - nearest + MARGIN) * usable).mean()


def cosine(
    anchors: Tensor,
    positives: Tensor | None,
    negatives: Tensor | None,
    labels: Tensor | None,
    scores: Tensor | None,
    temperature: float,
) -> Tensor:
    """Return the squared error of the cosine against a score in [0, 1]. Source: Reimers and Gurevych 2019."""
    if positives is None or scores is None:
        raise StageError("the loss `cosine` needs pairs with a score")
    return functional.mse_loss((anchors * positives).sum(1), scores.to(anchors.dtype))


LOSSES: dict[str, Callable[..., Tensor]] = {
    "multiple-negatives": multiple_negatives,
    "supervised-contrastive": supervised_contrastive,
    "triplet": triplet,
    "cosine": cosine,
}


def _same(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise StageError("this loss needs labels, or pairs with a negative")
    return (labels[:, None] == labels[None, :]) & ~torch.eye(
        len(labels), dtype=torch.bool, device=labels.device
    )


def _batch_likelihood(anchors: Tensor, labels: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Return which rows are of one class, and the log-likelihood of each row's choosing each other."""
    itself = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    logits = (anchors @ anchors.T / temperature).masked_fill(itself, -1e9)
    return _same(labels), functional.log_softmax(logits, dim=1)


def _same_class(anchors: Tensor, labels: Tensor | None, temperature: float) -> Tensor:
    """Return InfoNCE where a row's positive is its first partner in the batch and its class is no negative."""
    same = _same(labels)
    logits = anchors @ anchors.T / temperature
    first = torch.zeros_like(same).scatter_(1, same.float().argmax(1, keepdim=True), True) & same
    itself = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    likelihood = functional.log_softmax(logits.masked_fill((same & ~first) | itself, -1e9), dim=1)
    return -(likelihood * first).sum(1).mean()
