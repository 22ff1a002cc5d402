"""What is kept is not measured twice, and never passes for something else; what is no number is refused."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.errors import StageError
from tasks.families import load_model
from tasks.families.causal_lm import CausalLM
from tasks.families.image_classification import ImageClassifier, load_image_encoder
from tasks.families.interface import Measured
from tasks.families.sentence_embedding import SentenceEncoder
from tasks.forgetting import kept as module
from tasks.forgetting.kept import kept_measure, outcomes_path
from tasks.forgetting.measure import Subject
from tasks.forgetting.suites import Suite
from tasks.models import load_encoder, model_fingerprint
from tasks.recipe import Evaluate
from tasks.reports import BenchmarkInfo
from tests.architectures import make_base
from tests.tiny import make_tiny_base, tiny_classifier

SETTINGS = Evaluate(precision="fp32", max_length=64)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return CausalLM.load_base(make_base("llama", tmp_path_factory.mktemp("bases")), "cpu")


def passages(fingerprint: str = "f", **asked: Any) -> Suite:
    given = {"name": "ends", "kind": "last-word", "metric": "accuracy"} | asked
    info = BenchmarkInfo(examples=2, fingerprint=fingerprint, **given)
    rows = {"id": ["a", "b"], "group": ["a", "b"], "context": ["the book", "the film"]}
    return Suite(info, pd.DataFrame({**rows, "continuation": [" good", " bad"]}), pd.DataFrame())


def counted(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    real = Suite.measure

    def measure(self: Suite, subject: Any) -> Any:
        asked.append(self.info.fingerprint)
        return real(self, subject)

    monkeypatch.setattr(Suite, "measure", measure)
    return asked


def test_likelihoods_are_measured_once_by_all_runs(
    language_model: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = passages()
    asked = counted(suite, monkeypatch)
    first, again = (Subject(language_model, SETTINGS).outcomes(suite) for _ in range(2))
    assert first.tolist() == again.tolist()
    assert asked == ["f"]


@pytest.mark.parametrize("asked", [{"kind": "choices"}, {"settings": {"prompt": "{query}?"}}])
def test_the_same_examples_may_be_asked_in_two_ways(
    asked: dict[str, Any], language_model: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = passages(name="one"), passages(name="other", **asked)
    monkeypatch.setattr(Suite, "measure", lambda self, subject: np.full(2, float(self.info.name == "other")))
    subject = Subject(language_model, SETTINGS)
    assert [subject.outcomes(suite).tolist() for suite in (one, other, one)] == [[0, 0], [1, 1], [0, 0]]


@pytest.mark.parametrize("what", ["model", "benchmark", "length", "precision", "device", "library", "code"])
def test_another_setting_is_measured_by_itself(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"model": "m", "max_length": 64, "device": "cpu", "precision": "fp32"}
    before = outcomes_path(**given, **{}), outcomes_path(*given.values(), "choices", "f")  # type: ignore[arg-type]
    changed = {"model": {"model": "n"}, "length": {"max_length": 32}, "precision": {"precision": "bf16"}}
    changed["device"] = {"device": "cuda:1"}
    if what == "library":
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    if what == "code":
        monkeypatch.setattr(module, "version_of", lambda stage: {"evaluate": 99}[stage])
    name = "g" if what == "benchmark" else "f"
    after = outcomes_path(*(given | changed.get(what, {})).values(), "choices", name)  # type: ignore[arg-type]
    assert after not in before


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_measured_again_and_said(
    content: bytes,
    language_model: CausalLM,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    suite = passages()
    first = Subject(language_model, SETTINGS).outcomes(suite)
    (file,) = store.rglob("*.npz")
    file.write_bytes(content)
    asked = counted(suite, monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert Subject(language_model, SETTINGS).outcomes(suite).tolist() == first.tolist()
    assert "is damaged" in caplog.text
    assert "measured again" in caplog.text
    assert asked == ["f"]
    np.savez(file.open("wb"), outcomes=np.zeros(3))
    assert Subject(language_model, SETTINGS).outcomes(suite).tolist() == first.tolist()
    assert Subject(language_model, SETTINGS).outcomes(suite).tolist() == first.tolist()
    assert asked == ["f", "f"], "three rows are not two"


def test_the_task_s_own_rows_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_classifier(make_tiny_base(tmp_path / "base"))
    rows = pd.DataFrame({"id": ["a", "b"], "text": ["good day", "bad day"], "label": [1, 0]})
    real, asked = model.measure(rows), []
    monkeypatch.setattr(
        type(model),
        "measure",
        lambda self, table: asked.append(len(table)) or real,  # type: ignore[func-returns-value]
    )
    for _ in range(2):
        found = kept_measure(model, rows)
        assert found.outcomes.tolist() == real.outcomes.tolist()
        assert found.losses.tolist() == real.losses.tolist()
        assert found.predictions is not None
        assert found.predictions.tolist() == (
            real.predictions.tolist() if real.predictions is not None else []
        )
    assert asked == [2]
    kept_measure(model, rows.assign(label=[0, 1]))
    with torch.no_grad():
        model.head.bias += 1
    kept_measure(model, rows)
    assert asked == [2, 2, 2], "other labels, and another head, are something else"


def test_class_centres_are_part_of_what_is_measured(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    rows = pd.DataFrame(
        {"id": ["a", "b"], "text": ["good day", "bad day"], "label": [1, 0], "group": ["a", "b"]}
    )
    found = []
    for labels in ([1, 0], [0, 1]):
        model = SentenceEncoder(load_encoder(base, "cpu"), ["no", "yes"], 16, "supervised-contrastive", 0.05)
        model.settle(rows.assign(label=labels))
        found.append(kept_measure(model, rows).outcomes.tolist())
    assert found == [[1.0, 1.0], [0.0, 0.0]]


def edited(base: Path, file: str, change: Callable[[Any], None]) -> Path:
    """Copy a base of which one file is another; its weights stay the same."""
    folder = base.with_name(f"{base.name}-edited")
    shutil.copytree(base, folder)
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


def swap_words(tokenizer: Any) -> None:
    """Let a tokenizer read `good` where `bad` is written."""
    words = tokenizer["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", swap_words),
        ("config.json", lambda config: config.update(num_attention_heads=4)),
    ],
)
def test_equal_weights_that_read_otherwise_share_nothing(
    file: str, change: Callable[[Any], None], tmp_path: Path
) -> None:
    base = make_tiny_base(tmp_path / "base")
    rows = pd.DataFrame({"id": ["a"], "text": ["good day"], "label": [1]})
    vectors, losses = [], []
    for folder in (base, edited(base, file, change)):
        model = tiny_classifier(folder)
        embedded, measured = Subject(model, SETTINGS).embed(["good day"]), kept_measure(model, rows)
        assert np.allclose(embedded, model.encode(["good day"]), atol=1e-6)
        assert measured.losses == pytest.approx(model.measure(rows).losses)
        vectors.append(embedded)
        losses.append(measured.loss)
    assert not np.allclose(*vectors)
    assert losses[0] != losses[1]


def test_equal_weights_that_see_otherwise_share_nothing(tmp_path: Path) -> None:
    from PIL import Image

    picture = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).save(picture, "png")
    rows = pd.DataFrame({"id": ["a"], "image": [picture.getvalue()], "label": [1]})
    base = make_base("resnet", tmp_path)
    darker = edited(base, "preprocessor_config.json", lambda settings: settings.update(image_mean=[0.1] * 3))
    vectors, losses = [], []
    for folder in (base, darker):
        torch.manual_seed(0)
        model = ImageClassifier(load_image_encoder(folder, "cpu"), torch.nn.Linear(32, 2), ["no", "yes"])
        vectors.append(Subject(model, SETTINGS).embed([picture.getvalue()]))
        losses.append(kept_measure(model, rows).loss)
    assert not np.allclose(*vectors)
    assert losses[0] != losses[1]


def test_a_model_that_is_saved_and_loaded_again_is_known_again(tmp_path: Path) -> None:
    resnet = load_image_encoder(make_base("resnet", tmp_path), "cpu")
    for model in (
        tiny_classifier(make_tiny_base(tmp_path / "base")),
        CausalLM.load_base(make_base("llama", tmp_path), "cpu"),
        ImageClassifier(resnet, torch.nn.Linear(32, 2), ["no", "yes"]),
    ):
        model.save(tmp_path / "saved")
        assert model_fingerprint(load_model(tmp_path / "saved", "cpu")) == model_fingerprint(model)


def test_a_model_of_no_numbers_is_refused_and_keeps_nothing(store: Path, tmp_path: Path) -> None:
    model = CausalLM.load_base(make_base("llama", tmp_path), "cpu")
    with torch.no_grad():
        model.network.model.norm.weight.fill_(float("nan"))
    with pytest.raises(StageError, match=r"2 of 2 requests have no finite log-likelihood"):
        Subject(model, SETTINGS).outcomes(passages())
    assert not list(store.rglob("*.npz"))


def test_a_classifier_whose_scores_are_no_numbers_is_refused(store: Path, tmp_path: Path) -> None:
    model = tiny_classifier(make_tiny_base(tmp_path / "base"))
    with torch.no_grad():
        next(model.head.parameters()).fill_(float("nan"))
    rows = pd.DataFrame({"id": ["a", "b"], "text": ["good", "bad"], "label": [0, 1]})
    assert np.isfinite(model.measure(rows).outcomes).all(), "it answers, whatever its scores are"
    with pytest.raises(StageError, match=r"gives no number for 2 of 2 examples, a, b"):
        kept_measure(model, rows)
    assert not list(store.rglob("*.npz"))


def test_outcomes_that_are_no_numbers_name_their_examples(
    language_model: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Suite, "measure", lambda self, subject: np.array([0.5, np.nan]))
    with pytest.raises(StageError, match=r"benchmark ends: the model gives no number for 1 of 2 examples, b"):
        Subject(language_model, SETTINGS).outcomes(passages())
    rows = pd.DataFrame({"id": ["a", "b"], "text": ["x", "y"]})
    broken = SimpleNamespace(
        state={}, reading="r", device="cpu", precision="fp32", task="t", metric="accuracy", description="{}",
        measure=lambda rows: Measured(np.zeros(2), np.array([np.inf, 1.0])),
    )  # fmt: skip
    with pytest.raises(
        StageError, match=r"the task \(accuracy\): the model gives no number for 1 of 2 examples, a"
    ):
        kept_measure(broken, rows)  # type: ignore[arg-type]
