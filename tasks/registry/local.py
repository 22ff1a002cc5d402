"""A registry in a folder: the default, and what a network file system can hold for a team."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import RegistryError
from tasks.files import sha256_of
from tasks.registry.protocol import Stored


class LocalStorage:
    """Keys are files below a root. Creation is a hard link, which only one of two can make; a swap holds a lock."""

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise RegistryError(f"{root} is a file: a registry is a folder, or s3://bucket/prefix.")
        self.root = root
        self.place = str(root)

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Return content and tag."""
        try:
            content = (self.root / key).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(self.root / key, error) from error
        return content, _tag(content)

    def create(self, key: str, content: bytes) -> bool:
        """Write a key that does not exist."""
        path = self.root / key
        with self._written(path, content) as aside:
            try:
                os.link(aside, path)
            except FileExistsError:
                return False
            except OSError as error:
                raise _storage_error(path, error) from error
        _sync_folder(path.parent)
        return True

    def swap(self, key: str, content: bytes, tag: str) -> bool:
        """Replace a key whose content is still what `tag` stands for."""
        path = self.root / key
        with self._lock(), self._written(path, content) as aside:
            now = self.read(key)
            if now is None or now[1] != tag:
                return False
            os.replace(aside, path)
        _sync_folder(path.parent)
        return True

    def stat(self, key: str) -> Stored | None:
        """Return size and age."""
        try:
            found = (self.root / key).stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(self.root / key, error) from error
        return Stored(key, found.st_size, max(time.time() - found.st_mtime, 0.0))

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield every key below a prefix."""

        def fail(error: OSError) -> None:
            # A folder that is skipped because it cannot be read would make its versions' files look like garbage.
            if not isinstance(error, FileNotFoundError):
                raise _unreadable(Path(error.filename or self.root / prefix), error) from error

        walked = os.walk(self.root / prefix, onerror=fail, followlinks=True)
        for path in sorted(Path(folder) / name for folder, _, names in walked for name in names):
            stored = self.stat(path.relative_to(self.root).as_posix())
            if stored:
                yield stored

    def put_file(self, key: str, path: Path, sha256: str) -> None:
        """Write a file whole or not at all."""
        target = self.root / key
        with self._aside(target) as aside:
            try:
                shutil.copyfile(path, aside)
                _sync(aside)
            except OSError as error:
                raise _storage_error(target, error) from error
            if sha256_of(aside) != sha256:
                raise RegistryError(f"{path} changed while it was copied to {self.place}: publish it again.")
            aside.chmod(0o644)
            with self._lock():
                os.replace(aside, target)
        _sync_folder(target.parent)

    def get_file(self, key: str, path: Path) -> None:
        """Copy a key to a file."""
        try:
            shutil.copyfile(self.root / key, path)
        except FileNotFoundError:
            raise RegistryError(f"{self.place}/{key} is missing: the store is damaged.") from None
        except PermissionError as error:
            raise _unreadable(self.root / key, error) from error

    def delete_older(self, key: str, seconds: float) -> bool:
        """Remove a key that is older, and that nobody renews meanwhile: `put_file` waits for the lock."""
        with self._lock():
            stored = self.stat(key)
            if stored is None or stored.age_seconds <= seconds:
                return False
            try:
                (self.root / key).unlink()
            except OSError as error:
                raise RegistryError(
                    f"{self.root / key} cannot be removed: {error.strerror or error}."
                ) from error
            return True

    @contextlib.contextmanager
    def _written(self, path: Path, content: bytes) -> Iterator[Path]:
        with self._aside(path) as aside:
            try:
                aside.write_bytes(content)
                _sync(aside)
            except OSError as error:
                raise _storage_error(path, error) from error
            aside.chmod(0o644)
            yield aside

    @contextlib.contextmanager
    def _aside(self, path: Path) -> Iterator[Path]:
        try:
            _make_folder(path.parent)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
        except OSError as error:
            raise _storage_error(path, error) from error
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        path = self.root / ".lock"
        try:
            _make_folder(self.root)
            lock = path.open("a")
        except OSError as error:
            raise _storage_error(path, error) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _tag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each on the disk before anything lies in it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _storage_error(path: Path, error: OSError) -> RegistryError:
    return RegistryError(
        f"The registry cannot write {path}: {error.strerror or error}. Nothing was released; make room or permission and "
        "register again."
    )


def _unreadable(path: Path, error: OSError) -> RegistryError:
    return RegistryError(
        f"The registry cannot read {path}: {error.strerror or error}. Check its permissions and the disk it lies on."
    )
