"""Models put through the suites, and what they lost: the same code for every stage that compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.embeddings import embed, vectors_folder
from tasks.forgetting.rule import paired_loss
from tasks.forgetting.suites import Suite
from tasks.models import Encoder, load_encoder, weights_fingerprint
from tasks.recipe import Evaluate
from tasks.reports import Base, SuiteOutcome
from tasks.sources import first_base_folder

Outcomes = NDArray[np.float64]


@dataclass
class Subject:
    """A model under measurement. Its vectors are kept in the machine's store, so nothing is embedded twice."""

    encoder: Encoder
    settings: Evaluate
    fingerprint: str = ""
    """Of its weights; worked out when it is not given."""
    _outcomes: dict[str, Outcomes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fingerprint = self.fingerprint or weights_fingerprint(self.encoder)

    def outcomes(self, suite: Suite) -> Outcomes:
        """Return the outcome of each example of a suite, `(examples,)`."""
        if suite.name not in self._outcomes:
            self._outcomes[suite.name] = suite.measure(self._embed)
        return self._outcomes[suite.name]

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        length = min(self.settings.max_length, self.encoder.limit)
        folder = vectors_folder(
            self.fingerprint, length, device=self.encoder.device, precision=self.settings.precision
        )
        return embed(texts, lambda: self.encoder, folder, length)


def reference(base: Base, start: Encoder, settings: Evaluate, root: Path) -> Subject:
    """Return what forgetting is measured from: the first base of the lineage, not the release before.

    `start` is the base of this run, loaded; it serves where the lineage begins with it.

    Raises:
        DataError: the first base cannot be had, or is no longer what it was.
    """
    if base.first_base.fingerprint == base.fingerprint:
        return Subject(start, settings, base.fingerprint)
    encoder = load_encoder(first_base_folder(base, root), start.device, start.precision)
    return Subject(encoder, settings, base.first_base.fingerprint)


def compare(suite: Suite, base: Subject, candidate: Subject) -> SuiteOutcome:
    """Measure both models on one suite."""
    before, after = base.outcomes(suite), candidate.outcomes(suite)
    loss = paired_loss(before, after, suite.examples["group"].tolist())
    return SuiteOutcome(
        name=suite.name,
        metric=suite.info.metric,
        examples=len(before),
        base=float(before.mean()),
        candidate=float(after.mean()),
        loss=loss.mean,
        standard_error=loss.standard_error,
        chance=suite.chance,
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
