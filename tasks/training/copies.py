"""Copies of checkpoints that another machine can go on from: `RETAIN_CHECKPOINTS` names a folder or `s3://bucket/prefix`.

    <place>/<inputs' hash>/step-00000042/state.pt        what training needs to go on
    <place>/<inputs' hash>/step-00000042/manifest.json   written last: without it, there is no copy

It is a setting of the machine and not of the recipe: where work is kept does not change what comes of it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

from tasks.errors import RegistryError, StageError
from tasks.files import sha256_of, write_text
from tasks.registry.protocol import Storage
from tasks.training.checkpoints import KEPT, MANIFEST, STATE, folder_of, whole_steps

log = logging.getLogger(__name__)

SETTING = "RETAIN_CHECKPOINTS"


def open_copies(inputs: str) -> Copies | None:
    """Return the copies of the training with these inputs, or None where the setting asks for none.

    S3 takes endpoint, region and credentials from where boto3 looks for them, as the registry does.

    Raises:
        StageError: the place cannot be used.
    """
    location = os.environ.get(SETTING, "")
    if not location:
        return None
    try:
        return Copies(_storage(location), inputs)
    except RegistryError as error:
        raise StageError(f"{SETTING}: {error}") from error


def _storage(location: str) -> Storage:
    if location.startswith("s3://"):
        from tasks.registry.s3 import S3Storage

        return S3Storage(location, what="place for checkpoints", setting=SETTING)
    from tasks.registry.local import LocalStorage

    return LocalStorage(Path(location).expanduser())


class Copies:
    """Checkpoints of one training in a store that other machines see too."""

    def __init__(self, storage: Storage, inputs: str) -> None:
        self.storage, self.inputs = storage, inputs

    def put(self, checkpoint: Path) -> None:
        """Copy a checkpoint, its manifest last, and keep the last two copies; a failure is said, and training goes on."""
        try:
            self._put(checkpoint)
        except RegistryError as error:
            log.warning("%s was not copied, and stays on this machine alone: %s", checkpoint.name, error)

    def fetch(self, folder: Path) -> None:
        """Bring the newest whole copy into `folder` if nothing there is as new; damaged ones are skipped with a warning.

        Raises:
            StageError: store or disk fail; to train from the start would lose what lies there.
        """
        try:
            here = max(whole_steps(folder), default=-1)
            for step in sorted(self._steps(), reverse=True):
                if step <= here or self._fetch(step, folder):
                    return
        except (RegistryError, OSError) as error:
            raise StageError(f"{SETTING}: whether there is a checkpoint cannot be known. {error}") from error

    def remove(self) -> None:
        """Remove every copy, when the stage has succeeded."""
        try:
            for stored in list(self.storage.list(f"{self.inputs}/")):
                self.storage.delete_older(stored.key, -1)
        except RegistryError as error:
            log.warning("copies of checkpoints are left behind: %s", error)

    def _put(self, checkpoint: Path) -> None:
        manifest = (checkpoint / MANIFEST).read_bytes()
        self.storage.delete_older(self._key(checkpoint.name, MANIFEST), -1)  # what it vouched for is replaced
        self.storage.put_file(
            self._key(checkpoint.name, STATE), checkpoint / STATE, json.loads(manifest)["sha256"]
        )
        self.storage.create(self._key(checkpoint.name, MANIFEST), manifest)
        for step in sorted(self._steps())[:-KEPT]:
            if folder_of(step) == checkpoint.name:  # damaged copies of later steps would displace it
                continue
            for name in (MANIFEST, STATE):
                self.storage.delete_older(self._key(folder_of(step), name), -1)

    def _steps(self) -> list[int]:
        keys = [stored.key.split("/") for stored in self.storage.list(f"{self.inputs}/")]
        return [int(key[1].removeprefix("step-")) for key in keys if key[2:] == [MANIFEST]]

    def _fetch(self, step: int, folder: Path) -> bool:
        """Bring a copy; a damaged one is said, and not brought."""
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder, prefix=".new."))
        try:
            if damage := self._download(folder_of(step), aside):
                log.warning("skipping the damaged copy of %s (%s)", folder_of(step), damage)
                return False
            shutil.rmtree(folder / folder_of(step), ignore_errors=True)
            aside.rename(folder / folder_of(step))
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        log.info("the checkpoint of step %d was brought from %s", step, self.storage.place)
        return True

    def _download(self, name: str, aside: Path) -> str | None:
        """Copy a checkpoint and return what is wrong with it, or None; that the store fails is no damage."""
        found = self.storage.read(self._key(name, MANIFEST))
        if found is None or self.storage.stat(self._key(name, STATE)) is None:
            return "a part of it is missing"
        self.storage.get_file(self._key(name, STATE), aside / STATE)
        try:
            whole = sha256_of(aside / STATE) == json.loads(found[0])["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            return f"its manifest cannot be read: {type(error).__name__}: {error}"
        if not whole:
            return "its content does not match its manifest"
        write_text(aside / MANIFEST, found[0].decode())
        return None

    def _key(self, step: str, name: str) -> str:
        return f"{self.inputs}/{step}/{name}"
