"""Original benchmarks, measured: one outcome an example, the same examples for every model.

| kind | outcome of an example | metric |
|---|---|---|
| retrieval | 1 / rank of its document among all, by cosine; equals count as ahead | `mrr` |
| probe | 1 if a logistic regression on the fitting part's features is right | `accuracy` |
| knn | 1 if the nearest of the fitting part vote for its label, by cosine | `accuracy` |

All are zero-shot or fit on their own part, so nothing here depends on what the model was tuned for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.errors import StageError
from tasks.reports import BenchmarkInfo, read_report

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]
"""Texts → unit vectors, (rows, dim), of one model."""

PROBE_STRENGTH = 0.1
"""Inverse regularisation of the probe, over standardised features."""
EXTRACT = 160
"""Characters of an example that a report shows."""


@dataclass(frozen=True)
class Suite:
    """One half of one benchmark, in memory."""

    info: BenchmarkInfo
    examples: pd.DataFrame
    """`id`, `group` and `query`, `document_id` (retrieval) or `text`, `label`."""
    other: pd.DataFrame
    """The corpus (`id`, `text`) or the fitting part (`text`, `label`)."""

    @property
    def name(self) -> str:
        """The benchmark's name in the recipe."""
        return self.info.name

    @property
    def chance(self) -> float:
        """What guessing scores."""
        if self.info.kind == "retrieval":
            documents = len(self.other)
            return float((1 / np.arange(1, documents + 1)).sum() / documents)
        return float(self.examples["label"].value_counts(normalize=True).max())

    def measure(self, embed: Embed) -> NDArray[np.float64]:
        """Return the outcome of each example, `(examples,)`, in the order of `examples`.

        Raises:
            StageError: the fitting part cannot fit.
        """
        return {"retrieval": _reciprocal_ranks, "probe": _probe, "knn": _neighbours}[self.info.kind](
            self, embed
        )

    def extract(self, row: int) -> str:
        """Show one example in a line."""
        example = self.examples.iloc[row]
        if self.info.kind != "retrieval":
            return _short(str(example["text"]), EXTRACT)
        document = self.other.set_index("id").loc[example["document_id"], "text"]
        return f"{_short(str(example['query']), EXTRACT // 2)} → {_short(str(document), EXTRACT // 2)}"


def read_suites(half: Path, names: Sequence[str]) -> list[Suite]:
    """Read the named benchmarks of a half (`selection/` or `report/`).

    Raises:
        StageError: one is missing or cannot be read.
    """
    return [read_suite(half / name) for name in names]


def read_suite(folder: Path) -> Suite:
    """Read one benchmark of a half."""
    info = read_report(folder / "benchmark.json", BenchmarkInfo)
    other = "corpus" if info.kind == "retrieval" else "fit"
    try:
        return Suite(
            info, pd.read_parquet(folder / "examples.parquet"), pd.read_parquet(folder / f"{other}.parquet")
        )
    except (OSError, ValueError) as error:
        raise StageError(f"{folder}: the benchmark cannot be read ({error}): run `prepare` again.") from None


def _reciprocal_ranks(suite: Suite, embed: Embed) -> NDArray[np.float64]:
    documents = embed(suite.other["text"].tolist())
    queries = embed(suite.examples["query"].tolist())
    place = {identifier: row for row, identifier in enumerate(suite.other["id"])}
    wanted = np.array([place[identifier] for identifier in suite.examples["document_id"]])
    similarity = queries @ documents.T
    own = similarity[np.arange(len(queries)), wanted]
    # A model that maps everything to one point must not win by the order of the rows: equals count as ahead.
    ranks = (similarity >= own[:, None]).sum(axis=1)
    return 1.0 / ranks


def _probe(suite: Suite, embed: Embed) -> NDArray[np.float64]:
    from sklearn.linear_model import LogisticRegression

    fit, features = _fitting_part(suite, embed)
    mean, scale = fit.mean(axis=0), fit.std(axis=0) + 1e-6
    model = LogisticRegression(C=PROBE_STRENGTH, max_iter=2000).fit(
        (fit - mean) / scale, suite.other["label"]
    )
    return (model.predict((features - mean) / scale) == suite.examples["label"]).to_numpy(np.float64)


def _neighbours(suite: Suite, embed: Embed) -> NDArray[np.float64]:
    from sklearn.neighbors import KNeighborsClassifier

    fit, features = _fitting_part(suite, embed)
    voters = min(suite.info.neighbours or 1, len(fit))
    model = KNeighborsClassifier(voters, metric="cosine", algorithm="brute").fit(fit, suite.other["label"])
    return (model.predict(features) == suite.examples["label"]).to_numpy(np.float64)


def _fitting_part(suite: Suite, embed: Embed) -> tuple[Vectors, Vectors]:
    if suite.other["label"].nunique() < 2:
        raise StageError(f"benchmark {suite.name}: its fitting part has one class only; give it more rows.")
    return embed(suite.other["text"].tolist()), embed(suite.examples["text"].tolist())


def _short(text: str, characters: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= characters else line[: characters - 1] + "…"
