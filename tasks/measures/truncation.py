"""Find texts that were cut before they came here: a column of 255 characters, an export that stops at 1,000 bytes.

Lengths thin out towards the longest text. Where many texts are exactly as long as the longest, and hardly any a little
shorter, something cut them there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FEWEST = 5
"""Different texts at one length that make a wall."""
MOST = 0.9
"""Share of the different texts above which one length is what such texts have."""
TIMES = 4
"""How many times the most common length among the slightly shorter ones a wall is, at the least."""
SHORTER = 0.9
"""Slightly shorter: from this share of the longest length on."""


def cut_texts(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Say of each text whether it ends at a wall of characters or of UTF-8 bytes, (texts,).

    A set in which nearly all texts have one length (codes, fixed forms) has no wall.
    """
    characters = np.array([len(text) for text in texts], dtype=np.int64)
    encoded = np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts], dtype=np.int64)
    first = np.zeros(len(texts), dtype=bool)
    first[list({text: row for row, text in enumerate(texts)}.values())] = True
    return _at_wall(characters, first) | _at_wall(encoded, first)


def _at_wall(lengths: NDArray[np.int64], distinct: NDArray[np.bool_]) -> NDArray[np.bool_]:
    none = np.zeros(len(lengths), dtype=bool)
    if not len(lengths):
        return none
    longest = int(lengths.max())
    of_distinct = lengths[distinct]
    at_most = int(np.sum(of_distinct == longest))
    near = of_distinct[(of_distinct >= SHORTER * longest) & (of_distinct < longest)]
    common = int(np.unique(near, return_counts=True)[1].max()) if len(near) else 0
    if at_most < max(FEWEST, TIMES * common) or at_most > MOST * len(of_distinct):
        return none
    return lengths == longest
