"""`python -m tasks`: every end has its exit status and says, without a traceback, what to do."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from tasks.__main__ import main
from tasks.errors import ConfigError, DataError, Preempted, Refused
from tasks.files import disk_full, write_text
from tasks.paths import Paths
from tests.project import RECIPE

NO_SPACE = os.strerror(errno.ENOSPC)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipes").mkdir()
    text = RECIPE.format(base=tmp_path / "base", data=tmp_path, name="tiny")
    (tmp_path / "recipes" / "tiny.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wrapped() -> Exception:
    """What a library makes of a full disk: only the words are left, one error further on."""
    try:
        try:
            raise RuntimeError(f"Error while serializing: I/O error: {NO_SPACE} (os error 28)")
        except RuntimeError as error:
            raise ValueError("cannot save") from error
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (DataError("bad", ["line 3: worse"]), 1, "prepare: bad\n  - line 3: worse\n"),
        (ConfigError("wrong"), 1, "prepare: wrong\n"),
        (Refused("no", ["because"]), 3, "prepare: no\n  - because\n"),
        (Preempted("asked to stop"), 75, "prepare: asked to stop\n"),
        (KeyboardInterrupt(), 130, "prepare: interrupted; nothing half-written is kept, run it again"),
        (OSError(errno.ENOSPC, NO_SPACE, "x.parquet"), 1, f"prepare: {NO_SPACE} (x.parquet). Nothing half-"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), 1, f"prepare: {os.strerror(errno.EDQUOT)} ("),
        (shutil.Error([("a", "b", f"[Errno 28] {NO_SPACE}: 'b'")]), 1, f"prepare: {NO_SPACE} ("),
        (PermissionError(errno.EACCES, "No", "raw"), 1, "prepare: raw: No. Change its rights or owner.\n"),
        (
            OSError(errno.EROFS, "No", "raw"),
            1,
            "prepare: raw: No. Make its file system writable, or use another.\n",
        ),
        (wrapped(), 1, "make room (`retain clean` lists what runs left behind) and run it again."),
    ],
)
def test_each_end_has_its_exit_status_and_no_traceback(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    words: str,
) -> None:
    def end(*sections: object, paths: Paths) -> None:
        raise error

    monkeypatch.setattr("tasks.prepare.prepare", end)
    assert main(["prepare", "tiny"]) == status
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), ValueError("a bug")])
def test_what_is_a_bug_keeps_its_traceback(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def end(*sections: object, paths: Paths) -> None:
        raise error

    monkeypatch.setattr("tasks.prepare.prepare", end)
    with pytest.raises(type(error)):
        main(["prepare", "tiny"])
    assert disk_full(error) == ""


@pytest.mark.parametrize("words", [[], ["prepare"], ["prepair", "tiny"], ["prepare", "tiny", "more"]])
def test_usage_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "usage: python -m tasks {prepare,validate" in capsys.readouterr().err


def test_a_recipe_that_is_not_there_is_an_error_that_names_those_that_are(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "tiney"]) == 1
    assert "Recipes here: tiny." in capsys.readouterr().err


def test_a_file_is_written_whole_or_not_at_all(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "x").write_text("before")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, NO_SPACE)

    monkeypatch.setattr("tasks.files.os.fsync", full)
    with pytest.raises(OSError, match=NO_SPACE):
        write_text(root / "x", "after")
    assert (root / "x").read_text() == "before"
    assert sorted(path.name for path in root.iterdir()) == ["recipes", "x"]


def test_the_command_line_says_a_full_disk_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows import cli

    def full(prog_name: str) -> None:
        raise OSError(errno.ENOSPC, NO_SPACE)

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert (
        f"retain: {NO_SPACE} ({Path.cwd()}). Nothing half-written is kept: make room"
        in capsys.readouterr().err
    )
