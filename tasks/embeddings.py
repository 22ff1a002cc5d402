"""Embed texts once: vectors are kept in the machine's store under the hash of their text.

A text that was embedded before, by whichever recipe or data set, is read back, so a grown data set embeds
only its new rows. The store is a folder of write-once shards named by what they hold; two processes at once
write equal shards or different ones, never half a shard.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DataError
from tasks.files import atomic_path
from tasks.paths import store

log = logging.getLogger(__name__)

EMBEDDED_AS = 2
"""Raise it when a change of the code changes the vectors of the same model and contents."""
LIBRARIES = ("torch", "transformers", "tokenizers", "pillow")
"""Those whose versions may change a vector."""
ROWS_A_SHARD = 1_000
Vectors = NDArray[np.float32]


class Encoder(Protocol):
    """What embeds: a loaded base model."""

    def encode(self, contents: Sequence[str | bytes], *, max_length: int) -> Vectors:
        """Return one vector a text or image, (rows, dim)."""
        ...


def vectors_folder(model: str, max_length: int, *, device: str, precision: str, kind: str = "mean") -> Path:
    """Return the store's folder of one model's vectors under one setting, for `embed`.

    `model` is the fingerprint of its weights and of what reads for them, or of all the files of a base; `kind` is what is
    kept of a text. Vectors of another device class, arithmetic or library version are others: they differ in the last
    digits.
    """
    versions = "-".join(importlib.metadata.version(name) for name in LIBRARIES)
    setting = f"{kind}-{max_length}-{device.partition(':')[0]}-{precision}-{EMBEDDED_AS}-{versions}"
    return store() / "embeddings" / model / setting


def embed(
    texts: Sequence[str | bytes], encoder: Callable[[], Encoder], folder: Path, max_length: int
) -> Vectors:
    """Return the vectors of `texts`, (rows, dim), from the shards in `folder` or else by the encoder.

    `encoder` loads the model; it is called only when a text is not in the store. `folder` is for one model
    and one `max_length`. New texts are embedded in order of length, which halves the padding.

    Raises:
        DataError: the model gives NaN or infinite values for some texts.
    """
    keys = [_key(text) for text in texts]
    by_key = dict(zip(keys, texts, strict=True))
    known = _load(folder, set(by_key))
    missing = sorted((len(text), key) for key, text in by_key.items() if key not in known)
    if missing:
        model = encoder()
        for start in range(0, len(missing), ROWS_A_SHARD):
            chunk = [key for _, key in missing[start : start + ROWS_A_SHARD]]
            vectors = np.asarray(
                model.encode([by_key[key] for key in chunk], max_length=max_length), dtype=np.float32
            )
            _must_be_finite(vectors, [by_key[key] for key in chunk])
            _save(folder, chunk, vectors)
            known.update(zip(chunk, vectors, strict=True))
            if len(missing) > ROWS_A_SHARD:
                log.info("embedded %d of %d texts", start + len(chunk), len(missing))
    return np.stack([known[key] for key in keys]) if keys else np.zeros((0, 0), dtype=np.float32)


def _key(content: str | bytes) -> str:
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else b"image:" + content
    return hashlib.sha256(raw).hexdigest()


def _must_be_finite(vectors: Vectors, texts: Sequence[str | bytes]) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()
    if bad:
        raise DataError(
            f"The base model gives NaN or infinite embeddings for {len(bad)} of {len(texts)} texts; "
            "check its weights (a half-precision overflow?) and these texts:",
            [f"{texts[row][:80]!r}" for row in bad[:10]],
        )


def _load(folder: Path, wanted: set[str]) -> dict[str, Vectors]:
    found: dict[str, Vectors] = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as shard:
                keys = shard["keys"].tolist()
                rows = [row for row, key in enumerate(keys) if key in wanted]
                if rows:
                    vectors = shard["vectors"]
                    found.update((keys[row], vectors[row]) for row in rows)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s is damaged (%s): removed, its texts are embedded again", path, error)
            path.unlink(missing_ok=True)
    return found


def _save(folder: Path, keys: Sequence[str], vectors: Vectors) -> None:
    name = hashlib.sha256("".join(keys).encode()).hexdigest()
    with atomic_path(folder / f"{name}.npz") as aside, aside.open("wb") as file:
        np.savez(file, keys=np.array(keys), vectors=vectors)
