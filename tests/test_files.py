"""Files are written whole or not at all, and content is named by its hash."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tasks.files import (
    atomic_folder,
    atomic_path,
    disk_full,
    fingerprint,
    folder_fingerprint,
    sha256_of,
    write_text,
)


def test_a_file_is_replaced_whole_with_the_rights_of_any_new_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    for text in ("one\n", "zwei\n"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_a_folder_is_replaced_whole_with_the_rights_of_any_other(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    for name in ("one", "two"):
        with atomic_folder(folder) as aside:
            (aside / name).write_text(name)
        assert [path.name for path in folder.iterdir()] == [name]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("end", [ValueError("a bug"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path, end: BaseException) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")

    def write_half() -> None:
        with atomic_folder(folder) as aside:
            (aside / "weights").write_text("half")
            raise end

    with pytest.raises(type(end)):
        write_half()
    assert (folder / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("end", [ValueError("a bug"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path: Path, end: BaseException) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")

    def write_half() -> None:
        with atomic_path(path) as aside:
            aside.write_text("half")
            raise end

    with pytest.raises(type(end)):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_at_the_last_moment_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(path, "new")
    assert disk_full(caught.value) == "No space left on device"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_named_by_paths_and_bytes(tmp_path: Path) -> None:
    for name, content in (("b/x", "1"), ("a", "2")):
        write_text(tmp_path / "one" / name, content)
    for name, content in (("a", "2"), ("b/x", "1")):
        write_text(tmp_path / "two" / name, content)
    mark = folder_fingerprint(tmp_path / "one")
    assert folder_fingerprint(tmp_path / "two") == mark
    assert (
        fingerprint([("b/x", sha256_of(tmp_path / "one/b/x")), ("a", sha256_of(tmp_path / "one/a"))]) == mark
    )
    (tmp_path / "two" / "a").rename(tmp_path / "two" / "c")
    assert folder_fingerprint(tmp_path / "two") != mark
