"""predict: load a release by name and version or alias, verify it, and use it."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import DataError
from tasks.families import load_model
from tasks.families.interface import Model
from tasks.files import folder_fingerprint
from tasks.paths import store
from tasks.registry import Manifest, open_registry


@dataclass(frozen=True)
class Release:
    """A release in memory."""

    manifest: Manifest
    model: Model

    def answer(self, contents: Sequence[Any]) -> list[dict[str, Any]]:
        """Use the model for what it was tuned to do, in the order given; see its family for what it answers.

        Texts are strings, images bytes, conversations lists of messages.

        Raises:
            DataError: contents are empty; they are named by their place.
        """
        empty = [
            str(place)
            for place, content in enumerate(contents, 1)
            if not (content.strip() if isinstance(content, str) else content)
        ]
        if empty:
            more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
            raise DataError(f"Nothing can be said about an empty text: number {', '.join(empty[:10])}{more}.")
        return self.model.answer(contents) if contents else []


def load_release(registry_location: str, name: str, reference: str | int) -> Release:
    """Fetch a release into the machine's store, verify every file, and load it.

    Raises:
        RegistryError: there is no such release, or its content is damaged.
        StageError: it is no tuned model.
    """
    registry = open_registry(registry_location)
    manifest = registry.resolve(name, reference)
    folder = store() / "releases" / manifest.model_fingerprint
    with _only_fetcher(folder.parent):
        if not _is_whole(folder, manifest):
            shutil.rmtree(folder, ignore_errors=True)
            registry.download(name, manifest.version, folder)
    return Release(manifest, load_model(folder))


@contextmanager
def _only_fetcher(folder: Path) -> Iterator[None]:
    """Let one process of this machine fetch at a time: the others find what it has fetched."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    return folder.is_dir() and folder_fingerprint(folder) == manifest.model_fingerprint
