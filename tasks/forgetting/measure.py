"""Models put through the suites, and what they lost: the same code for every stage that compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.embeddings import embed, vectors_folder
from tasks.families import family
from tasks.families.interface import Embedder
from tasks.forgetting.kept import kept, must_be_finite, outcomes_path
from tasks.forgetting.rule import PairedLoss, paired_loss
from tasks.forgetting.suites import EMBEDDING, OF_THE_HEAD, Suite
from tasks.models import model_fingerprint, weights_fingerprint
from tasks.recipe import Evaluate
from tasks.reports import Base, SuiteOutcome
from tasks.sources import first_base_folder

Outcomes = NDArray[np.float64]


@dataclass
class Subject:
    """A model under measurement. What it answered is kept in the machine's store, so nothing is measured twice."""

    model: Embedder
    settings: Evaluate
    fingerprint: str = ""
    """Of its weights and of what reads for them; of a base as it was published, over all its files."""
    _outcomes: dict[str, Outcomes] = field(default_factory=dict)
    """By what is asked."""

    def __post_init__(self) -> None:
        self.fingerprint = self.fingerprint or model_fingerprint(self.model)

    def outcomes(self, suite: Suite) -> Outcomes:
        """Return the outcome of each example of a suite, `(examples,)`."""
        asked = repr(_asked(suite))
        if asked not in self._outcomes:
            self._outcomes[asked] = self._measure(suite)
        return self._outcomes[asked]

    def embed(self, contents: Sequence[str | bytes]) -> NDArray[np.float32]:
        """Return the model's unit vectors of texts or images, (rows, dim)."""
        return embed(contents, lambda: self.model, self._folder, self.max_length)

    @property
    def max_length(self) -> int:
        """Most tokens of a benchmark's text that it reads."""
        return min(self.settings.max_length, self.model.limit)

    @property
    def _folder(self) -> Path:
        return vectors_folder(
            self.fingerprint, self.max_length, device=self.model.device, precision=self.settings.precision
        )

    @property
    def _original_head(self) -> str:
        """Name the head that the base was published with: one backbone may have had several."""
        encoder: Any = getattr(self.model, "encoder", self.model)
        head = getattr(encoder, "original_head", None) or getattr(encoder, "original", None)
        return weights_fingerprint(head) if head is not None else ""

    def _measure(self, suite: Suite) -> Outcomes:
        """Measure a suite; kinds that ask for more than vectors have their outcomes kept as a whole."""
        if suite.info.kind in EMBEDDING:
            return self._checked(suite)
        path = outcomes_path(
            self.fingerprint,
            self.max_length,
            self.model.device,
            self.settings.precision,
            *_asked(suite),
            *([self._original_head] if suite.info.kind in OF_THE_HEAD else []),
        )
        found = kept(path, len(suite.examples), lambda: {"outcomes": self._checked(suite)})
        outcomes: Outcomes = found["outcomes"]
        return outcomes

    def _checked(self, suite: Suite) -> Outcomes:
        outcomes = suite.measure(self)
        must_be_finite(outcomes, suite.examples["id"].astype(str).tolist(), f"benchmark {suite.name}")
        return outcomes


def _asked(suite: Suite) -> tuple[str, str, str]:
    """Name what a suite asks: in which way, of which examples. Two suites may ask the same examples in two ways."""
    return suite.info.kind, suite.info.fingerprint, repr(sorted(suite.info.settings.items()))


def reference(base: Base, task: str, start: Embedder, settings: Evaluate, root: Path) -> Subject:
    """Return what forgetting is measured from: the first base of the lineage, not the release before.

    `start` is the base of this run, loaded; it serves where the lineage begins with it.

    Raises:
        DataError: the first base cannot be had, or is no longer what it was.
    """
    if base.first_base.fingerprint == base.fingerprint:
        return Subject(start, settings, base.fingerprint)
    first = family(task).load_base(first_base_folder(base, root), start.device, start.precision)
    return Subject(first, settings, base.first_base.fingerprint)


def suite_loss(suite: Suite, base: Subject, candidate: Subject) -> PairedLoss:
    """Measure both models on one suite, and pair what they came to."""
    return paired_loss(base.outcomes(suite), candidate.outcomes(suite), suite.examples["group"].tolist())


def compare(suite: Suite, base: Subject, candidate: Subject) -> SuiteOutcome:
    """Measure both models on one suite."""
    before, after = base.outcomes(suite), candidate.outcomes(suite)
    loss, chance = suite_loss(suite, base, candidate), suite.chance(base)
    known = paired_loss(before, np.full(len(before), chance), suite.examples["group"].tolist())
    return SuiteOutcome(
        name=suite.name,
        metric=suite.info.metric,
        examples=len(before),
        base=float(before.mean()),
        candidate=float(after.mean()),
        loss=loss.mean,
        standard_error=loss.standard_error,
        chance=chance,
        p_guessing=known.p_not_above(0.0),
        independent=loss.equal_groups,
    )


def records(suite: Suite, base: Subject, candidate: Subject) -> pd.DataFrame:
    """Return one row an example: id, group, base, candidate."""
    return pd.DataFrame(
        {
            "id": suite.examples["id"].astype(str).to_numpy(),
            "group": suite.examples["group"].astype(str).to_numpy(),
            "base": base.outcomes(suite),
            "candidate": candidate.outcomes(suite),
        }
    )
