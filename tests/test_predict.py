"""A release, loaded: fetched once, verified each time, and what it says about texts."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.errors import DataError, RegistryError, StageError
from tasks.files import folder_fingerprint
from tasks.predict import Release, load_release
from tasks.registry import open_registry
from tests.tiny import make_tiny_base, tiny_classifier


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    base = make_tiny_base(folder / "base", 3)
    tiny_classifier(base, seed=3, labels=("bad", "neither", "good"), max_length=32).save(folder / "model")
    return folder / "model"


@pytest.fixture
def location(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a registry whose champion is the model, and a store that is empty."""
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "store"))
    registry = open_registry(str(tmp_path / "registry"))
    registry.publish("tiny", model, metrics={}, lineage={}, reports={}, run_id="run-1")
    registry.move_alias("tiny", "champion", 1, expected=None, reason="first")
    return str(tmp_path / "registry")


@pytest.fixture
def release(location: str) -> Release:
    return load_release(location, "tiny", "champion")


def test_every_text_gets_a_label_and_probabilities_that_sum_to_one(release: Release) -> None:
    texts = ["the phone was good", "the film was awful " * 30, "neither"]
    made = release.answer(texts)
    assert len(made) == len(texts)
    for one in made:
        shares = one["probabilities"]
        assert list(shares) == ["bad", "neither", "good"]
        assert sum(shares.values()) == pytest.approx(1)
        assert one["probability"] == shares[one["label"]] == max(shares.values())
    assert release.answer([]) == []


def test_a_text_is_classified_the_same_alone_and_among_others(release: Release) -> None:
    alone = release.answer(["good"])[0]
    among = release.answer(["a very long text about a phone and a film", "good", "bad"])[1]
    assert among["probability"] == pytest.approx(alone["probability"], abs=1e-5)


def test_empty_texts_are_named_by_their_place(release: Release) -> None:
    with pytest.raises(DataError, match=r"empty text: number 2, 4\."):
        release.answer(["good", " ", "bad", ""])
    with pytest.raises(DataError, match=r"9, 10 and 2 more\."):
        release.answer([""] * 12)


def test_what_lies_in_the_store_is_verified_each_time(
    release: Release, location: str, tmp_path: Path
) -> None:
    kept = tmp_path / "store" / "releases" / release.manifest.model_fingerprint
    weights = kept / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    again = load_release(location, "tiny", 1)
    assert folder_fingerprint(kept) == release.manifest.model_fingerprint
    assert again.answer(["fine"]) == release.answer(["fine"])


def test_a_release_that_is_whole_in_the_store_is_not_fetched_again(
    release: Release, location: str, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "registry" / "blobs")
    assert load_release(location, "tiny", "champion").manifest == release.manifest
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(RegistryError, match="nothing was kept"):
        load_release(location, "tiny", "champion")
    assert not [path for path in (tmp_path / "store" / "releases").iterdir() if path.is_dir()]


def test_many_may_load_it_at_once(location: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        loaded = list(pool.map(lambda _: load_release(location, "tiny", 1), range(6)))
    assert len({release.manifest.digest for release in loaded}) == 1


def test_a_release_that_is_no_classifier_is_said(location: str, tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "encoder", 1)
    open_registry(location).publish("encoder", base, metrics={}, lineage={}, reports={}, run_id="r")
    with pytest.raises(StageError, match="it is a base model, not a tuned one"):
        load_release(location, "encoder", 1)
