"""Model folders: an encoder with mean pooling and, for a classifier, a linear head.

A *model folder* holds an encoder as transformers saves it (`config.json`, `model.safetensors`, tokenizer
files) and optionally `head.safetensors` and `head.json`. Weights are safetensors only, never pickle.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tasks.errors import StageError
from tasks.files import write_text

TOKENS_A_BATCH = {"cpu": 1024, "cuda": 65_536}
"""Padded tokens of a forward pass without gradients: a CPU gains nothing from more, and pads more."""
START_HEAD = "start_head.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


@dataclass
class Encoder:
    """An encoder whose sentence vector is the mean of its last hidden states over the attention mask."""

    model: PreTrainedModel
    tokenizer: Any
    device: str
    precision: str = "fp32"

    def encode(self, texts: Sequence[str], *, max_length: int = 128, normalise: bool = True) -> np.ndarray:
        """Embed texts: float32 `(rows, dim)` in the order given; unit length if `normalise`."""
        rows = np.zeros((len(texts), int(self.model.config.hidden_size)), dtype=np.float32)
        self.model.eval()
        with torch.inference_mode(), self.autocast():
            for indices, batch in self._batches(texts, max_length):
                rows[indices] = self.pool(batch).float().cpu().numpy()
        if normalise:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows

    @property
    def limit(self) -> int:
        """Most tokens the model reads: RoBERTa's tokenizer knows that two of its positions are never used."""
        positions = getattr(self.model.config, "max_position_embeddings", 1 << 30)
        return int(min(positions, self.tokenizer.model_max_length))

    def pool(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean of the last hidden states over the mask: `(rows, dim)`."""
        hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)

    def collate(self, texts: Sequence[str], max_length: int) -> dict[str, Tensor]:
        """Tokenize to the longest of the batch, at most `max_length`: `(rows, tokens)` on the device."""
        batch = self.tokenizer(
            list(texts), truncation=True, max_length=max_length, padding=True, return_tensors="pt"
        )
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def token_counts(self, texts: Sequence[str]) -> np.ndarray:
        """Count the tokens of each text, special tokens included and nothing cut: int64 `(rows,)`."""
        if not texts:
            return np.zeros(0, dtype=np.int64)
        encoded = self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return np.array([len(ids) for ids in encoded], dtype=np.int64)

    def _batches(
        self, texts: Sequence[str], max_length: int
    ) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        max_length = min(max_length, self.limit)
        lengths = np.minimum(self.token_counts(texts), max_length)
        for indices in length_batches(lengths, TOKENS_A_BATCH[self.device.partition(":")[0]]):
            yield indices, self.collate([texts[index] for index in indices], max_length)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the forward pass has the declared precision."""
        if self.precision == "bf16":
            return torch.autocast(self.device.partition(":")[0], dtype=torch.bfloat16)
        return contextlib.nullcontext()


@dataclass
class Classifier(Encoder):
    """An encoder with a linear head over its (not normalised) sentence vector."""

    head: nn.Linear = None  # type: ignore[assignment]
    labels: Sequence[str] = ()
    max_length: int = 128

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Score texts: float32 `(rows, classes)`, in the order given."""
        return self.score(self.encode(texts, max_length=self.max_length, normalise=False))

    def score(self, features: np.ndarray) -> np.ndarray:
        """Apply the head to features that `encode(…, normalise=False)` made: float32 `(rows, classes)`."""
        with torch.inference_mode():
            return self.head(torch.from_numpy(features).to(self.device)).float().cpu().numpy()

    def state(self) -> dict[str, Tensor]:
        """Return every weight and buffer, encoder and head, by name."""
        encoder = {f"encoder.{name}": value for name, value in self.model.state_dict().items()}
        return encoder | {f"head.{name}": value for name, value in self.head.state_dict().items()}


def pick_device() -> str:
    """Return `cuda` where there is a CUDA device, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def length_batches(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Yield row indices in batches of rows of like length, at most `tokens` padded tokens each."""
    order = np.argsort(lengths, kind="stable")[::-1]
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        size = max(tokens // longest, 1)
        yield order[start : start + size]
        start += size


def load_encoder(folder: Path, device: str | None = None, precision: str = "fp32") -> Encoder:
    """Load the encoder of a model folder.

    Raises:
        StageError: the folder lacks weights, configuration or tokenizer, or they do not fit each other.
    """
    device = device or pick_device()
    model: Any = _load_weights(folder)
    if not any(list(folder.glob(name)) for name in TOKENIZER_FILES):
        # transformers would make one up, which knows no word.
        raise StageError(f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES)}): was the copy complete?")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise StageError(f"{folder} has no usable tokenizer: {error}") from error
    return Encoder(model.to(device).eval(), tokenizer, device, precision)


def load_classifier(folder: Path, device: str | None = None, precision: str = "fp32") -> Classifier:
    """Load a model folder that has a head.

    Raises:
        StageError: the folder is no classifier, or a part of one.
    """
    weights, head = _read_head(folder, "head.safetensors")
    return _with_head(load_encoder(folder, device, precision), weights, head)


def start_classifier(
    base_folder: Path, tuned_folder: Path, device: str | None = None, precision: str = "fp32"
) -> Classifier:
    """Load where tuning started: the frozen base plus the linear probe. This is what α = 0 means.

    Raises:
        StageError: one of the folders is damaged.
    """
    weights, head = _read_head(tuned_folder, START_HEAD)
    return _with_head(load_encoder(base_folder, device, precision), weights, head)


def make_classifier(encoder: Encoder, head: nn.Linear, labels: Sequence[str], max_length: int) -> Classifier:
    """Put a head on an encoder, on the encoder's device; both share the encoder's weights."""
    return Classifier(
        encoder.model,
        encoder.tokenizer,
        encoder.device,
        encoder.precision,
        head.to(encoder.device),
        labels,
        max_length,
    )


def save_classifier(
    classifier: Classifier, folder: Path, start_head: dict[str, Tensor] | None = None
) -> None:
    """Write a model folder, whole or not at all; it replaces what lay there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        classifier.model.save_pretrained(aside, safe_serialization=True)
        _forget_last_call(classifier.tokenizer)
        classifier.tokenizer.save_pretrained(aside)
        save_file(_contiguous(classifier.head.state_dict()), aside / "head.safetensors")
        if start_head is not None:
            save_file(_contiguous(start_head), aside / START_HEAD)
        description = {
            "labels": list(classifier.labels),
            "pooling": "mean",
            "max_length": classifier.max_length,
        }
        write_text(aside / "head.json", json.dumps(description, indent=2, ensure_ascii=False) + "\n")
        aside.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def interpolate(base: Classifier, tuned: Classifier, alpha: float) -> Classifier:
    """Return (1 - α)·base + α·tuned over all weights, head included.

    Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models (WiSE-FT).
    """
    merged = copy.deepcopy(tuned)
    start, end = base.state(), tuned.state()
    if start.keys() != end.keys():
        raise StageError(f"base and tuned differ in shape: {sorted(start.keys() ^ end.keys())[:5]}")
    with torch.no_grad():
        for name, value in merged.state().items():
            if value.is_floating_point():
                value.copy_(torch.lerp(start[name].float(), end[name].float(), alpha).to(value.dtype))
    return merged


def weights_fingerprint(encoder: Encoder) -> str:
    """Name an encoder by its weights, wherever it was loaded from: sha256 in hex."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _load_weights(folder: Path) -> PreTrainedModel:
    """Load an encoder all of whose weights are in its files."""
    transformers_logging.disable_progress_bar()
    try:
        # What no file holds is random (a pooler, which nothing here reads), and must be the same each time.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, loading = AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                attn_implementation="sdpa",
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise StageError(f"{folder} is no usable model folder: {error}") from error
    except RuntimeError as error:
        raise StageError(f"{folder}: the weights do not fit its config.json: {error}") from error
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise StageError(
            f"{folder} lacks {len(missing)} of the weights that its config.json calls for, {missing[0]} among them; "
            "they would be random. Was the copy complete?"
        )
    return model


def _read_head(folder: Path, weights: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    description = folder / "head.json"
    if not description.is_file():
        raise StageError(f"{folder} has no head.json: it is an encoder, not a classifier.")
    try:
        return load_file(folder / weights), json.loads(description.read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise StageError(f"{folder} is a damaged classifier: {weights} or head.json: {error}") from error


def _with_head(encoder: Encoder, weights: dict[str, Tensor], head: dict[str, Any]) -> Classifier:
    classes, dimensions = weights["weight"].shape
    if classes != len(head["labels"]):
        raise StageError(f"the head has {classes} classes but {len(head['labels'])} labels")
    linear = nn.Linear(dimensions, classes)
    linear.load_state_dict(weights)
    return make_classifier(encoder, linear, head["labels"], head["max_length"])


def _forget_last_call(tokenizer: Any) -> None:
    """Drop padding and truncation of the last call, which a fast tokenizer would save as if they were its own."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}
