"""Drift and slices: figures worked out by hand, samples, and where a model lost."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tasks.forgetting.drift import (
    FEWEST_INPUTS,
    MOST_CHARACTERS,
    MOST_INPUTS,
    linear_cka,
    original_inputs,
    sample,
    weight_drift,
)
from tasks.forgetting.slices import flip_slices
from tasks.forgetting.suites import Suite
from tasks.reports import BenchmarkInfo
from tests.tiny_lm import tiny_lm


def suite(kind: str, examples: pd.DataFrame, **more: Any) -> Suite:
    given = {"name": kind, "kind": kind, "metric": "accuracy", "examples": len(examples), "fingerprint": "f"}
    rows = examples.assign(id=[str(n) for n in range(len(examples))])
    rows["group"] = rows["id"]
    return Suite(BenchmarkInfo.model_validate(given | more), rows, pd.DataFrame())


def test_cka_is_one_up_to_rotation_and_scale_and_nothing_between_strangers() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(60, 8))
    turned = 3 * first @ np.linalg.qr(rng.normal(size=(8, 8)))[0] + 5
    assert linear_cka(first, turned) == pytest.approx(1.0)
    # The biased estimator would say 0.7 here: fewer inputs than features always look alike.
    strangers = linear_cka(rng.normal(size=(20, 100)), rng.normal(size=(20, 100)))
    assert strangers is not None
    assert strangers < 0.2


def test_cka_of_few_or_equal_inputs_is_not_said() -> None:
    rng = np.random.default_rng(0)
    assert linear_cka(rng.normal(size=(3, 8)), rng.normal(size=(3, 8))) is None
    assert linear_cka(np.ones((9, 8)), rng.normal(size=(9, 8))) is None


def test_weights_move_by_depth() -> None:
    base, model = tiny_lm(), tiny_lm()
    with torch.no_grad():
        for parameter in model.model.layers[1].parameters():
            parameter.mul_(1.5)
    assert weight_drift(base, model) == pytest.approx({0: 0.0, 1: 0.0, 2: 0.5, 3: 0.0})


def test_a_sample_is_bounded_in_inputs_and_in_characters() -> None:
    short = pd.DataFrame({"text": ["a"] * 1000, "group": [str(n) for n in range(1000)]})
    assert len(sample(short)) == MOST_INPUTS
    assert sample(short)["group"].tolist() == sample(short.iloc[::-1].iloc[::-1])["group"].tolist()
    long = short.assign(text="x" * (MOST_CHARACTERS // 20))
    assert len(sample(long)) == 20
    assert len(sample(short.assign(text="x" * MOST_CHARACTERS))) == FEWEST_INPUTS


def test_original_inputs_are_what_the_benchmarks_ask() -> None:
    asked = suite("retrieval", pd.DataFrame({"query": ["where", "when"], "document_id": ["d", "e"]}))
    told = suite("probe", pd.DataFrame({"text": ["here"] * 300, "label": [0] * 300}))
    found = original_inputs([asked, told])
    assert found["text"].iloc[:2].tolist() == ["where", "when"]
    assert (found["text"] == "here").sum() == MOST_INPUTS // 2
    assert found["id"].is_unique


def test_an_image_is_asked_itself_and_not_the_name_of_its_file() -> None:
    rows = pd.DataFrame({"text": ["cat.png", "dog.png", "a long name.png"], "image": [b"1", b"2", b"3"]})
    shown = suite("head", rows)
    assert sorted(original_inputs([shown])["image"]) == [b"1", b"2", b"3"]
    assert len(sample(rows.assign(text="x" * MOST_CHARACTERS, group=list("abc")))) == 3
    assert [item.slice for item in flip_slices(shown, np.ones(3), np.zeros(3))] == []


def test_an_example_that_is_an_image_is_shown_with_its_label() -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(file, "PNG")
    rows = pd.DataFrame({"text": ["cat.png"], "image": [file.getvalue()], "label": [1]})
    shown = suite("head", rows, labels=["dog", "cat"])
    assert shown.extract(0) == "cat"
    assert str(shown.picture(0)).startswith("data:image/png;base64,")
    told = suite("probe", pd.DataFrame({"text": ["it purrs"], "label": [1]}), labels=["dog", "cat"])
    assert (told.extract(0), told.picture(0)) == ("it purrs → cat", None)


def test_flips_are_counted_by_label_length_and_what_the_recipe_names() -> None:
    rows = pd.DataFrame(
        {
            "query": ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"],
            "slice": ["law", "law", "law", "law", "art", "art"],
            "label": [0, 0, 0, 1, 1, 1],
        }
    )
    asked = suite("knn", rows, labels=["no", "yes"], settings={"slice": "subject"})
    base, tuned = np.array([1.0, 1, 1, 1, 0, 0]), np.array([0.0, 0, 1, 1, 1, 0])
    found = {item.slice: (item.examples, item.lost, item.won) for item in flip_slices(asked, base, tuned)}
    assert found == {
        "subject law": (4, 2, 0),
        "subject art": (2, 0, 1),
        "label no": (3, 2, 0),
        "label yes": (3, 0, 1),
        "length short": (2, 2, 0),
        "length middle": (2, 0, 0),
        "length long": (2, 0, 1),
    }
    losses = [item.loss for item in flip_slices(asked, base, tuned)]
    assert losses[0] == 0.5
    assert sum(item.loss * item.examples for item in flip_slices(asked, base, tuned)[:2]) == pytest.approx(1)
