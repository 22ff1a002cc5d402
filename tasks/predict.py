"""predict: load a release by name and version or alias, verify it, and classify texts with it."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.errors import DataError
from tasks.files import folder_fingerprint
from tasks.models import Classifier, load_classifier
from tasks.paths import store
from tasks.registry import Manifest, open_registry


@dataclass(frozen=True)
class Prediction:
    """One text, classified."""

    text: str
    label: str
    probability: float
    """Of `label`."""
    probabilities: dict[str, float]
    """Of every label; they sum to 1."""


@dataclass(frozen=True)
class Release:
    """A release in memory."""

    manifest: Manifest
    model: Classifier

    def classify(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify texts, in the order given.

        Raises:
            DataError: texts are empty; they are named by their place.
        """
        if empty := [str(place) for place, text in enumerate(texts, 1) if not text.strip()]:
            more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
            raise DataError(f"Nothing can be said about an empty text: number {', '.join(empty[:10])}{more}.")
        if not texts:
            return []
        scores = self.model.logits(texts).astype(np.float64)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return [
            Prediction(
                text,
                str(self.model.labels[row.argmax()]),
                float(row.max()),
                {str(label): float(share) for label, share in zip(self.model.labels, row, strict=True)},
            )
            for text, row in zip(texts, shares, strict=True)
        ]


def load_release(registry_location: str, name: str, reference: str | int) -> Release:
    """Fetch a release into the machine's store, verify every file, and load it.

    Raises:
        RegistryError: there is no such release, or its content is damaged.
        StageError: it is no classifier.
    """
    registry = open_registry(registry_location)
    manifest = registry.resolve(name, reference)
    folder = store() / "releases" / manifest.model_fingerprint
    with _only_fetcher(folder.parent):
        if not _is_whole(folder, manifest):
            shutil.rmtree(folder, ignore_errors=True)
            registry.download(name, manifest.version, folder)
    return Release(manifest, load_classifier(folder))


@contextmanager
def _only_fetcher(folder: Path) -> Iterator[None]:
    """Let one process of this machine fetch at a time: the others find what it has fetched."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    return folder.is_dir() and folder_fingerprint(folder) == manifest.model_fingerprint
