"""How varied the training rows are, by the base model's embeddings: overall, by label, against a reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.checks.sample import Sample, enough, too_small
from tasks.checks.words import WORST, extract, inconclusive, rounded, row_name
from tasks.measures import diversity, semantic
from tasks.reports import Measure


def variety(train: Sample, reference: NDArray[np.float32] | None, seed: int) -> list[Measure]:
    rows = len(train.rows)
    score = diversity.vendi(train.vectors)
    if reference is None:
        return [_vendi(rows, score, "It grows with the rows.")]
    size = min(rows, len(reference))
    found = diversity.effective_diversity(train.vectors, reference, seed) if enough(train) else None
    return [
        _vendi(rows, score, "It grows with the rows: bound effective_diversity instead."),
        Measure(
            name="effective_diversity",
            value=round(found.value, 4) if found else None,
            interval=rounded(found.interval) if found else None,
            meaning=f"Diversity (Vendi score) of {size} training rows over that of {size} "
            "sentences on unlike "
            "subjects: 1 is as varied. With MiniLM, product reviews reach 0.66, "
            "questions to one bank 0.36, one "
            "question in 153 wordings 0.08."
            if found
            else too_small(train),
            remedy="Collect texts on more subjects and in more wordings; remove copies and templates.",
        ),
    ]


def _vendi(rows: int, score: float, advice: str) -> Measure:
    return Measure(
        name="vendi_score",
        value=round(score, 3),
        meaning=f"{rows} training rows are as varied as {score:.1f} rows that have nothing in common. {advice}",
        remedy="Collect rows that differ more; remove copies.",
    )


def variety_by_class(
    train: Sample, reference: NDArray[np.float32], names: Sequence[str], seed: int
) -> Measure:
    """Say how varied the least varied label is; labels with fewer than 30 sampled rows are not estimated."""
    name, remedy = "least_diverse_class", "Collect rows of this label on more subjects and in more wordings."
    found = diversity.diversity_by_class(train.vectors, train.labels, reference, seed)
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
        f"of {len(names)}: as varied as so large a share of sentences on unlike subjects.",
        remedy=remedy,
        worst=[f"{names[label]}: {found[label].value:.2f}" for label in ranked[:WORST]],
    )


def reworded(train: Sample, similarity: float) -> Measure:
    """Say which sampled rows mean the same as another by the cosine of their embeddings."""
    found = semantic.semantic_copies(train.vectors, similarity)
    rows = train.rows
    return Measure(
        name="semantic_duplicate_share",
        value=round(1 - len(np.unique(found.clusters)) / len(rows), 4) if len(rows) else None,
        meaning=f"Share of {len(rows)} training rows that could go if one row stayed of each cluster of rows that mean "
        f"the same (cosine of embeddings ≥ {similarity}; copies and near-copies are among them). {found.pairs} pairs do.",
        remedy="Keep one wording a meaning where they add nothing, or collect other meanings.",
        worst=[
            f"{cosine:.2f}: {row_name(rows, one)} {extract(rows, one)} ~ {row_name(rows, other)} {extract(rows, other)}"
            for one, other, cosine in found.closest[:WORST]
        ],
    )


def coverage(train: Sample, reference: NDArray[np.float32]) -> Measure:
    """Say how many of the reference texts, on unlike subjects, training rows lie near to."""
    remedy = "Collect texts on more subjects, when the model is to meet more."
    if not enough(train):
        return inconclusive("coverage", too_small(train) or "", remedy)
    found = diversity.coverage(train.vectors, reference, 0)
    return Measure(
        name="coverage",
        value=round(found.share.value, 4),
        interval=rounded(found.share.interval),
        meaning=f"Share of {len(reference)} sentences on unlike subjects that as many training rows lie near to: "
        f"{found.alike:.2f} is to be expected of rows like them. A narrow task covers few, and may be meant to.",
        remedy=remedy,
    )
