"""Suites: outcomes worked out by hand, chance, and models that must not win by an accident."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tasks.errors import StageError
from tasks.forgetting.suites import Suite, read_suite
from tasks.reports import BenchmarkInfo, write_report
from tasks.tables import write_table


def info(kind: str, **more: object) -> BenchmarkInfo:
    metric = "mrr" if kind == "retrieval" else "accuracy"
    return BenchmarkInfo.model_validate(
        {"name": "suite", "kind": kind, "metric": metric, "examples": 1, "fingerprint": "f", **more}
    )


def table(**vectors: tuple[float, float]):  # type: ignore[no-untyped-def]
    """Return a subject that looks a text's vector up."""

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = np.array([vectors[text] for text in texts], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return SimpleNamespace(embed=embed, model=None)


@pytest.fixture
def retrieval() -> Suite:
    corpus = pd.DataFrame({"id": ["d0", "d1", "d2"], "text": ["a", "b", "c"]})
    examples = pd.DataFrame(
        {"id": ["q0", "q1"], "query": ["x", "y"], "document_id": ["d0", "d2"], "group": ["d0", "d2"]}
    )
    return Suite(info("retrieval"), examples, corpus)


def test_reciprocal_rank_among_all_documents(retrieval: Suite) -> None:
    embed = table(a=(1, 0), b=(1, 1), c=(0, 1), x=(1, 0.1), y=(1, 0.2))
    assert retrieval.measure(embed).tolist() == [1.0, 1 / 3]


def test_a_model_that_maps_all_to_one_point_finds_nothing(retrieval: Suite) -> None:
    one = (1.0, 1.0)
    assert retrieval.measure(table(a=one, b=one, c=one, x=one, y=one)).tolist() == [1 / 3, 1 / 3]


def test_chance_of_retrieval_is_the_mean_reciprocal_rank_of_guessing(retrieval: Suite) -> None:
    assert retrieval.chance(table()) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


@pytest.mark.parametrize("kind", ["probe", "knn"])
def test_features_that_tell_the_classes_apart_are_right(kind: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    vectors = {f"t{row}": (1.0, (2 * labels[row] - 1) * rng.uniform(0.5, 1.0)) for row in range(60)}
    rows = pd.DataFrame({"id": list(vectors), "text": list(vectors), "label": labels, "group": list(vectors)})
    suite = Suite(info(kind, settings={"neighbours": 5}), rows[40:].reset_index(drop=True), rows[:40])
    assert suite.measure(table(**vectors)).tolist() == [1.0] * 20
    assert suite.chance(table()) == 0.5


def test_a_fitting_part_of_one_class_is_an_error() -> None:
    rows = pd.DataFrame({"id": ["a", "b"], "text": ["a", "b"], "label": [1, 1], "group": ["a", "b"]})
    with pytest.raises(StageError, match="one class only"):
        Suite(info("probe"), rows, rows).measure(table(a=(1, 0), b=(0, 1)))


def test_an_extract_shows_both_sides_in_a_line(retrieval: Suite) -> None:
    assert retrieval.extract(1) == "y → c"


def test_a_suite_is_read_as_it_was_written(tmp_path: Path, retrieval: Suite) -> None:
    write_report(tmp_path / "benchmark.json", retrieval.info)
    write_table(retrieval.examples, tmp_path / "examples.parquet")
    write_table(retrieval.other, tmp_path / "corpus.parquet")
    read = read_suite(tmp_path)
    assert read.examples["query"].tolist() == ["x", "y"]
    (tmp_path / "corpus.parquet").write_text("no parquet")
    with pytest.raises(StageError, match="cannot be read"):
        read_suite(tmp_path)
