"""Write files and folders whole or not at all, and name content by its hash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says when there is no room for a file."""
FORBIDDEN = {
    errno.EACCES: "Change its rights or owner.",
    errno.EROFS: "Make its file system writable, or use another.",
}
"""What the system says when a file may not be touched, and what helps."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it over `path`, else remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; on success it takes the place of `folder`, else it is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield aside
        aside.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def disk_full(error: BaseException) -> str:
    """Return what the system said if a full disk (or quota) is why `error` was raised, else an empty string.

    Libraries wrap the system's error, and some keep nothing of it but its words.
    """
    cause: BaseException | None = error
    while cause is not None:
        for code in FULL:
            if getattr(cause, "errno", None) == code or os.strerror(code) in str(cause):
                return os.strerror(code)
        cause = cause.__cause__ or cause.__context__
    return ""


def system_says(error: BaseException) -> str:
    """Return what the system refused and what to do about it, if that is why `error` was raised, else an empty string."""
    place = getattr(error, "filename", None)
    if said := disk_full(error):
        return (
            f"{said} ({place or Path.cwd()}). Nothing half-written is kept: make room "
            "(`retain clean` lists what runs left behind) and run it again."
        )
    if place and isinstance(error, OSError) and error.errno in FORBIDDEN:
        return f"{place}: {error.strerror}. {FORBIDDEN[error.errno]}"
    return ""


def folder_fingerprint(folder: Path) -> str:
    """Name a folder by its content: sha256, in hex, over the JSON of its sorted [path, sha256] pairs."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint([(path.relative_to(folder).as_posix(), sha256_of(path)) for path in files])


def fingerprint(pairs: Iterable[tuple[str, str]]) -> str:
    """Return the sha256, in hex, over the JSON of the sorted (path, sha256) pairs."""
    content = json.dumps(sorted([path, digest] for path, digest in pairs), separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()
