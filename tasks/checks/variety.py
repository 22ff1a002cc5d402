"""How varied the training rows are, by the base model's embeddings: overall, by label, against a reference."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.checks.sample import Sample, too_small
from tasks.checks.words import WORST, extract, inconclusive, rounded, row_name
from tasks.measures import diversity, semantic
from tasks.reports import Measure

KNOWN = (
    " With MiniLM (SmolLM2), sentences of Wikipedia reach 0.69 (0.40), questions to one bank 0.34 (0.36), those of one "
    "intent 0.07 (0.25), 10 texts repeated 0.07 (0.07)."
)
"""What the scale means, by `make bench-variety`."""


@dataclass(frozen=True)
class Reference:
    """What variety is held against."""

    vectors: NDArray[np.float32]
    """(rows, dim)"""
    what: str
    """What the rows are, in words."""
    problem: str | None
    """Why nothing can be held against it, or None."""

    def centred(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take off what the encoder gives to all rows alike, before cosines are compared: `(rows, dim)`, as it was.

        Embeddings of a language model all point one way (Ethayarajh 2019; Mu & Viswanath 2018), so that unlike texts
        look alike. Without a usable reference nothing is taken off.
        """
        return vectors if self.problem else vectors - self._common

    @functools.cached_property
    def _common(self) -> NDArray[np.float32]:
        return self.vectors.mean(axis=0, dtype=np.float64).astype(np.float32)


def variety(train: Sample, reference: Reference, seed: int) -> list[Measure]:
    rows, vectors = len(train.rows), reference.centred(train.vectors)
    score = diversity.vendi(vectors)
    remedy = "Collect rows on more subjects and in more forms; remove copies and templates."
    named = "effective_diversity"
    measures = [
        Measure(
            name="vendi_score",
            value=round(score, 3),
            meaning=f"{rows} training rows are as varied as {score:.1f} rows that have nothing in common. It grows with "
            "the rows: bound effective_diversity instead.",
            remedy="Collect rows that differ more; remove copies.",
        )
    ]
    if reason := too_small(train) or reference.problem:
        return [*measures, inconclusive(named, reason, remedy)]
    size = min(rows, len(reference.vectors))
    found = diversity.effective_diversity(vectors, reference.centred(reference.vectors), seed)
    measures.append(
        Measure(
            name=named,
            value=round(found.value, 4),
            interval=rounded(found.interval),
            meaning=f"Diversity (Vendi score) of {size} training rows over that of {size} {reference.what}: 1 is as "
            f"varied.{'' if 'image' in train.rows else KNOWN} Shown are the rows most like all others.",
            remedy=remedy,
            worst=_most_alike(train, vectors),
        )
    )
    return measures


def _most_alike(train: Sample, vectors: NDArray[np.float32]) -> list[str]:
    """Return the rows whose mean cosine with all others is highest."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(norms, 1e-12)
    cosine = unit @ unit.mean(axis=0)
    order = np.argsort(-cosine.round(4), kind="stable")[:WORST].tolist()
    return [f"{cosine[row]:.2f}: {row_name(train.rows, row)}: {extract(train.rows, row)}" for row in order]


def variety_by_class(train: Sample, reference: Reference, names: Sequence[str], seed: int) -> Measure:
    """Say how varied the least varied label is; labels with fewer than 30 sampled rows are not estimated."""
    name, remedy = "least_diverse_class", "Collect rows of this label on more subjects and in more wordings."
    if reference.problem:
        return inconclusive(name, reference.problem, remedy)
    owners, given = train.label_places
    vectors, known = reference.centred(train.vectors), reference.centred(reference.vectors)
    found = diversity.diversity_by_class(vectors[owners], given, known, seed)
    if not found:
        return inconclusive(
            name, "Inconclusive: no label has 30 sampled rows, and fewer say nothing.", remedy
        )
    ranked = sorted(found, key=lambda label: found[label].value)
    least = found[ranked[0]]
    return Measure(
        name=name,
        value=round(least.value, 4),
        interval=rounded(least.interval),
        meaning=f"Effective diversity of label {names[ranked[0]]}, the least of {len(found)} labels with 30 rows or more "
        f"of {len(names)}: as varied as so large a share of {reference.what}.",
        remedy=remedy,
        worst=[f"{names[label]}: {found[label].value:.2f}" for label in ranked[:WORST]],
    )


def reworded(train: Sample, reference: Reference, similarity: float) -> Measure:
    """Say which sampled rows mean the same as another by the cosine of their embeddings."""
    found = semantic.semantic_copies(reference.centred(train.vectors), similarity)
    rows = train.rows
    return Measure(
        name="semantic_duplicate_share",
        value=round(1 - len(np.unique(found.clusters)) / len(rows), 4) if len(rows) else None,
        meaning=f"Share of {len(rows)} training rows, those that are embedded, that could go if one row stayed of each "
        f"cluster of rows that the base hardly tells apart (cosine of embeddings ≥ {similarity}; copies are among them). "
        f"{found.pairs} pairs do. A sample shows fewer than the whole set has.",
        remedy="Keep one wording a meaning where they add nothing, or collect other meanings.",
        worst=[
            f"{cosine:.2f}: {row_name(rows, one)} {extract(rows, one)} ~ {row_name(rows, other)} {extract(rows, other)}"
            for one, other, cosine in found.closest[:WORST]
        ],
    )


def coverage(train: Sample, reference: Reference) -> Measure:
    """Say how many rows of the reference training rows lie near to."""
    remedy = "Collect rows on more subjects, when the model is to meet more."
    if reason := too_small(train) or reference.problem:
        return inconclusive("coverage", reason, remedy)
    found = diversity.coverage(train.vectors, reference.vectors, 0)
    return Measure(
        name="coverage",
        value=round(found.share.value, 4),
        interval=rounded(found.share.interval),
        meaning=f"Share of {len(reference.vectors)} {reference.what} that as many training rows lie near to: "
        f"{found.alike:.2f} is to be expected of rows like them. A narrow task covers few, and may be meant to.",
        remedy=remedy,
    )
