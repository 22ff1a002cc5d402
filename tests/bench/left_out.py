"""Would the estimate of harm have been chosen without a family of pairs, and how good is it there?

Each family is left out in turn. Once only our form's weight is fitted on the others, once the form is chosen by them too,
among all of one or two parts: what the published methods expect to be lost, the loss on held-out regions, harmonic means
of the two, and disagreement, with weights of zero or more. So no pair is predicted by what its family chose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from tasks.measures.harm import harmonic_mean

Rows = NDArray[np.float64]
Form = tuple[str, ...]
TRANSPORT, DISAGREEMENT, REGIONS = "transport with regions", "disagreement", "held-out regions"
OUR_FORM = (TRANSPORT, DISAGREEMENT)


@dataclass(frozen=True)
class Evidence:
    """Pairs' measured losses and parts of estimates, (pairs,) each, and the family that their rows come from."""

    families: NDArray[np.str_]
    lost: Rows
    parts: dict[str, Rows]
    """Losses by name, among them those of `OUR_FORM`."""

    def weights(self, form: Form, known: NDArray[np.bool_]) -> Rows:
        """Fit a form's weights on the known pairs, every family as heavy as another, by least squares."""
        sizes = [np.sum(self.families[known] == family) for family in self.families[known]]
        heavy = np.sqrt(1 / np.array(sizes, dtype=np.float64))
        parts = np.stack([self.parts[name][known] for name in form], axis=1)
        return np.asarray(nnls(parts * heavy[:, None], self.lost[known] * heavy)[0])

    def predicted(self, form: Form, known: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> Rows:
        """Return the losses of the wanted pairs by a form fitted on the known ones."""
        parts = np.stack([self.parts[name][wanted] for name in form], axis=1)
        return np.asarray(parts @ self.weights(form, known))

    def crossed(self, form: Form, among: NDArray[np.bool_]) -> Rows:
        """Return each pair's loss by a form fitted on the other families; only pairs `among` take part, NaN elsewhere."""
        found = np.full(len(self.lost), np.nan)
        for family in np.unique(self.families[among]):
            mine = self.families == family
            found[mine & among] = self.predicted(form, among & ~mine, among & mine)
        return found


def chosen_without(evidence: Evidence) -> Iterator[tuple[str, Form, Rows]]:
    """Yield each family, the form that the others choose by their own left-out errors, and its losses on this one."""
    names = sorted(evidence.parts)
    forms: list[Form] = [(name,) for name in names]
    forms += list(combinations(names, 2))
    for family in np.unique(evidence.families):
        others = evidence.families != family
        errors = [_error(evidence, form, others) for form in forms]
        best = forms[int(np.argmin(errors))]
        yield str(family), best, evidence.predicted(best, others, ~others)


def _error(evidence: Evidence, form: Form, among: NDArray[np.bool_]) -> float:
    return float(np.abs(evidence.crossed(form, among) - evidence.lost)[among].mean())


def with_regions(
    losses: dict[str, Rows], disagreement: Sequence[float], regions: Sequence[float]
) -> dict[str, Rows]:
    """Return the parts that forms are made of, from the losses that published methods expect."""
    region = np.array(regions, dtype=np.float64)
    joined = {
        f"{name} with regions": np.array([harmonic_mean(*pair) for pair in zip(values, region, strict=True)])
        for name, values in losses.items()
    }
    return losses | joined | {DISAGREEMENT: np.array(disagreement, dtype=np.float64), REGIONS: region}
