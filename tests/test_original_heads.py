"""The head that a text base was published with: asked again on the base and on what was tuned from it."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

from tasks.errors import DataError, StageError
from tasks.families import load_model
from tasks.families.image_classification import ImageClassifier
from tasks.families.interface import interpolate
from tasks.families.text_classification import TextClassifier
from tasks.forgetting.halves import write_halves
from tasks.forgetting.measure import Subject, compare
from tasks.forgetting.suites import Suite, read_suite
from tasks.models import Encoder, load_encoder
from tasks.original_heads import PASSES, _masked_rows, _windows
from tasks.prepare import _refuse_missing_heads
from tasks.recipe import Data, Evaluate, FeatureBenchmark, HeadBenchmark, PerplexityBenchmark, Table
from tests.architectures import make_base
from tests.test_families import picture
from tests.tiny import WORDS, make_tiny_base, tiny_classifier

TEXTS = [" ".join(np.random.default_rng(seed).choice(WORDS, 6 + seed)) for seed in range(8)]
DATA = Data(source="path:x", train=Table(file="x.csv"), labels=["no", "yes"], seed=7)
MASKED = PerplexityBenchmark(kind="masked-lm", file="text.txt", block_words=16)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("masked") / "base", kind="BertForMaskedLM")


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("told") / "base", kind="BertForSequenceClassification")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "store"))
    return tmp_path


def moved(base: Path) -> TextClassifier:
    return tiny_classifier(base, seed=1, max_length=64)


def test_each_token_is_masked_once_and_predicted_by_the_original_head(masked: Path) -> None:
    encoder = load_encoder(masked, "cpu")
    (ids,) = encoder.tokens(TEXTS[3:4])
    rows, _ = _masked_rows(encoder.tokenizer, [ids])
    places = [place for _, chosen, _ in rows for place in chosen]
    assert sorted(places) == list(range(1, len(ids) - 1)), "all of them once, the special tokens never"
    assert len(rows) == PASSES
    expected = 0.0
    for hidden, chosen, behind in rows:
        with torch.inference_mode():
            logits = encoder.original(input_ids=torch.tensor([hidden])).logits[0].log_softmax(-1)
        expected += float(logits[chosen, behind].sum())
    (found,) = encoder.masked_log_likelihoods(TEXTS[3:4], max_length=64)
    assert found == pytest.approx(expected / len(places), abs=1e-5)


def test_a_text_s_masks_do_not_depend_on_the_others(masked: Path) -> None:
    encoder = load_encoder(masked, "cpu")
    together = encoder.masked_log_likelihoods(TEXTS, max_length=64)
    alone = [encoder.masked_log_likelihoods([text], max_length=64)[0] for text in TEXTS]
    assert together == pytest.approx(alone, abs=1e-5)


def test_the_head_stays_with_what_is_tuned_saved_and_mixed(masked: Path, tmp_path: Path) -> None:
    start, tuned = TextClassifier(load_encoder(masked, "cpu"), torch.nn.Linear(32, 2), [], 64), moved(masked)
    half = interpolate(start, tuned, 0.5)
    tuned.save(tmp_path / "tuned")
    read: Any = load_model(tmp_path / "tuned", "cpu")
    found = [
        model.encoder.masked_log_likelihoods(TEXTS, max_length=64) for model in (start, half, tuned, read)
    ]
    assert found[3] == pytest.approx(found[2], abs=1e-6)
    assert np.abs(found[0] - found[2]).max() > 1e-4
    assert np.abs(found[0] - found[1]).max() > 1e-5
    assert np.abs(found[1] - found[2]).max() > 1e-5
    for model in (half, read):
        assert model.encoder.original.base_model is model.backbone
        words = model.encoder.original.get_input_embeddings().weight
        assert model.encoder.original.get_output_embeddings().weight is words, (
            "it is tied, and moves with them"
        )


def test_a_benchmark_behind_masks_is_measured_on_base_and_candidate(masked: Path, store: Path) -> None:
    rng = np.random.default_rng(3)
    (store / "text.txt").write_text(" ".join(rng.choice(WORDS, 16 * 40)))
    write_halves("text", MASKED, DATA, store, store / "halves")
    suite = read_suite(store / "halves" / "report" / "text")
    settings = Evaluate(precision="fp32", max_length=64)
    base, candidate = Subject(load_encoder(masked, "cpu"), settings), Subject(moved(masked), settings)
    outcome = compare(suite, base, candidate)
    assert outcome.metric == "log_likelihood"
    vocabulary = load_encoder(masked, "cpu").original.config.vocab_size
    assert outcome.chance == pytest.approx(-np.log(vocabulary)), "any word as likely as any other"
    assert outcome.base < 0
    assert outcome.loss != 0
    shorter = suite.measure(Subject(load_encoder(masked, "cpu"), Evaluate(precision="fp32", max_length=8)))
    assert shorter.shape == (outcome.examples,), "read in windows"
    assert not np.allclose(shorter, base.outcomes(suite))


def test_a_text_that_is_too_long_is_masked_in_windows_between_its_special_tokens(masked: Path) -> None:
    encoder = load_encoder(masked, "cpu")
    (ids,) = encoder.tokens([" ".join(WORDS[:10])])
    first, *inner, last = ids
    pieces = [[first, *inner[start : start + 4], last] for start in range(0, len(inner), 4)]
    assert len(pieces) > 2
    assert _windows(encoder.tokenizer, [ids, ids[:3]], 6) == (
        [*pieces, ids[:3]],
        [*[0] * len(pieces), 1],
    )
    assert _windows(encoder.tokenizer, [ids], len(ids)) == ([ids], [0])


def told(store: Path) -> Suite:
    """Return the selection half of a benchmark of texts with a label each."""
    lines = [f"{text},{('no', 'yes')[n % 2]}" for n, text in enumerate(TEXTS * 5)]
    (store / "told.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    benchmark = HeadBenchmark(kind="head", table=Table(file="told.csv"), labels=["no", "yes"])
    write_halves("told", benchmark, DATA, store, store / "halves")
    return read_suite(store / "halves" / "selection" / "told")


def test_a_classifier_s_head_is_asked_about_texts(classified: Path, store: Path) -> None:
    suite = told(store)
    encoder = load_encoder(classified, "cpu")
    found = suite.measure(Subject(encoder, Evaluate(precision="fp32", max_length=64)))
    for text, label, outcome in zip(suite.examples["text"], suite.examples["label"], found, strict=True):
        with torch.inference_mode():
            logits = encoder.original(**encoder.tokenizer(text, return_tensors="pt")).logits[0]
        assert outcome == float(int(logits.argmax()) == label)


def pictured(store: Path, kind: str) -> Suite:
    """Return the selection half of a benchmark of images, half of them dark and half bright."""
    (store / "images").mkdir()
    generator = np.random.default_rng(5)
    for number in range(90):
        (store / "images" / f"{number}.png").write_bytes(picture(number % 2 > 0, generator))
    lines = [f"{number}.png,{('dark', 'bright')[number % 2]}" for number in range(90)]
    (store / "seen.csv").write_text("file,label\n" + "\n".join(lines) + "\n")
    table = Table(file="seen.csv", image="file", image_folder="images", id="file")
    of: dict[str, type[HeadBenchmark | FeatureBenchmark]] = {"head": HeadBenchmark, "probe": FeatureBenchmark}
    benchmark = of[kind].model_validate({"kind": kind, "table": table, "labels": ["dark", "bright"]})
    write_halves("seen", benchmark, DATA, store, store / "halves")
    return read_suite(store / "halves" / "selection" / "seen")


def test_an_image_classifier_s_head_is_asked_about_images(store: Path) -> None:
    suite, folder = pictured(store, "head"), make_base("resnet", store)
    found = suite.measure(
        Subject(ImageClassifier.load_base(folder, "cpu"), Evaluate(precision="fp32", max_length=64))
    )
    whole = AutoModelForImageClassification.from_pretrained(folder).eval()
    for image, label, outcome in zip(suite.examples["image"], suite.examples["label"], found, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(image)))).permute(2, 0, 1) / 127.5 - 1
        with torch.inference_mode():
            assert outcome == float(whole(pixels[None]).logits.argmax() == label)
    three = dataclasses.replace(suite, info=suite.info.model_copy(update={"labels": ["dark", "bright", "?"]}))
    with pytest.raises(StageError, match="names 3 labels, the base's original head tells 2 apart"):
        three.measure(
            Subject(ImageClassifier.load_base(folder, "cpu"), Evaluate(precision="fp32", max_length=64))
        )


def test_a_probe_tells_dark_images_from_bright_ones(store: Path) -> None:
    suite, folder = pictured(store, "probe"), make_base("resnet", store)
    base = Subject(ImageClassifier.load_base(folder, "cpu"), Evaluate(precision="fp32", max_length=64))
    assert suite.measure(base).mean() > 0.9


def test_another_head_on_the_same_backbone_is_measured_by_itself(classified: Path, store: Path) -> None:
    suite = told(store)
    encoder = load_encoder(classified, "cpu")
    said = []
    for bias in ([9.0, -9.0], [-9.0, 9.0]):
        with torch.no_grad():
            encoder.original.classifier.bias.copy_(torch.tensor(bias))
        said.append(Subject(encoder, Evaluate(precision="fp32", max_length=64)).outcomes(suite))
    assert (said[0] + said[1] == 1).all(), "one says no to all, the other yes"


def test_a_head_that_the_weights_lack_is_no_head(masked: Path, tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    said = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(said | {"architectures": ["BertForMaskedLM"]}))
    encoder = load_encoder(base, "cpu")
    assert isinstance(encoder, Encoder)
    assert encoder.original is None
    with pytest.raises(StageError, match="came without a head for this"):
        encoder.masked_log_likelihoods(TEXTS, max_length=64)


def test_a_base_without_the_head_is_refused_before_training(classified: Path, tmp_path: Path) -> None:
    head = HeadBenchmark(kind="head", table=Table(file="x.csv"), labels=["a", "b", "c"])
    with pytest.raises(DataError) as raised:
        _refuse_missing_heads({"text": MASKED, "told": head}, classified)
    assert raised.value.problems == [
        "benchmarks.text asks a head ForMaskedLM: the base has BertForSequenceClassification",
        "benchmarks.told.labels are 3, the base's head tells 2 apart: give them in the order of its outputs",
    ]
