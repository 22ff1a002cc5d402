"""Token sequences that begin alike, as trees: what they share is read by a model once.

The four choices of a question differ in their last tokens only. In a tree every token is a node, its position is its
depth, and it attends to its ancestors, so one forward pass gives each path what it would have had alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LARGEST_TREE = 2048
"""Nodes at which a tree is closed: attention costs their square."""
ROW_TOKENS = 256
"""Nodes of a row that holds several trees: wide enough to be filled well, and attention costs little yet."""
WORTH_SHARING = 0.25
"""Share of a sequence that must be in the tree already; less is not worth the attention between strangers."""


@dataclass
class Member:
    """A sequence in a tree: where its last tokens are predicted, and what they are."""

    index: int
    """Its place among all sequences."""
    nodes: list[int]
    """The node before each predicted token, `(predicted,)`."""
    targets: list[int]
    """The predicted tokens, `(predicted,)`."""


@dataclass
class Tree:
    """Sequences by their common beginnings; parents come before their children."""

    tokens: list[int] = field(default_factory=list)
    """Token of each node, `(nodes,)`."""
    parents: list[int] = field(default_factory=list)
    """Node before each node, -1 for a root, `(nodes,)`."""
    depths: list[int] = field(default_factory=list)
    """Position of each node in its sequences, `(nodes,)`."""
    members: list[Member] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    """Nodes of the sequence that came last."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether no node has two children, so that the tree is a plain sequence."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    @property
    def positions(self) -> int:
        """How many nodes a token is predicted at."""
        return len({node for member in self.members for node in member.nodes})

    def add(self, index: int, sequence: Sequence[int], predicted: int, shared: int) -> None:
        """Add a sequence whose first `shared` tokens are those of the last one, and whose last ones are predicted."""
        new = sequence[shared:-1]
        start = len(self.tokens)
        nodes = list(range(start, start + len(new)))
        path = self.path[:shared] + nodes
        self.tokens += new
        self.parents += [path[shared - 1] if shared else -1, *nodes[:-1]] if new else []
        self.depths += range(shared, shared + len(new))
        self.path = path
        self.members.append(Member(index, path[len(path) - predicted :], list(sequence[-predicted:])))

    def ancestors(self) -> NDArray[np.bool_]:
        """Return which nodes each node attends to, itself among them: `(nodes, nodes)`."""
        mask = np.eye(len(self), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        return mask


Row = list[Tree]
"""Trees beside each other in one row of a batch."""


def grow_trees(sequences: Sequence[list[int]], predicted: Sequence[int], *, branch: bool) -> list[Tree]:
    """Put sequences into trees. Each has at least two tokens; the last one is predicted only, never read.

    Args:
        sequences: token ids, one list a sequence.
        predicted: how many of each sequence's last tokens are predicted, `(sequences,)`.
        branch: without it only a sequence that goes on where the last one ended shares a tree, so that trees are
            plain sequences.
    """
    trees: list[Tree] = []
    before: Sequence[int] = ()
    # In this order no earlier sequence has more in common with a sequence than the one before it.
    for index in sorted(range(len(sequences)), key=lambda place: sequences[place][:-1]):
        sequence = sequences[index]
        shared = _common(before, sequence[:-1])
        if not trees or not _joins(trees[-1], len(before), len(sequence) - 1, shared, branch=branch):
            trees.append(Tree())
            shared = 0
        trees[-1].add(index, sequence, predicted[index], shared)
        before = sequence[:-1]
    return trees


def batches(trees: Sequence[Tree], tokens: int, positions: int) -> Iterator[list[Row]]:
    """Yield rows that are read together: at most `tokens` padded tokens and `positions` predictions, the longest first.

    Plain sequences are a row each, in batches of their own, which need no mask; other rows are filled with as many trees
    as fit beside each other. A tree above a limit comes alone.
    """
    for chains in (False, True):
        waiting = sorted((tree for tree in trees if tree.is_chain == chains), key=len, reverse=True)
        while waiting:
            rows, waiting = _fill(waiting, tokens, positions, alone=chains)
            yield rows


def _fill(waiting: list[Tree], tokens: int, positions: int, *, alone: bool) -> tuple[list[Row], list[Tree]]:
    """Return the rows of one batch, and the trees that are left.

    Rows are wide enough for several trees, so that little is padding. The longest tree that fits comes first; where
    all that is left fits into the batch, the emptiest row takes it, so that no row is much longer than the others.
    """
    longest, whole = len(waiting[0]), sum(map(len, waiting))
    width = longest if alone else max(longest, min(ROW_TOKENS, tokens))
    count = max(min(tokens // width, len(waiting) if alone else math.ceil(whole / width)), 1)
    spread = not alone and whole <= count * width
    free = [width] * count
    rows: list[Row] = [[] for _ in free]
    left = []
    for place, tree in enumerate(waiting):
        fits = [row for row, room in enumerate(free) if room >= len(tree)]
        row = max(fits, key=free.__getitem__) if spread and fits else next(iter(fits), None)
        if row is None or (place and tree.positions > positions):
            left.append(tree)
            continue
        rows[row].append(tree)
        free[row] = 0 if alone else free[row] - len(tree)
        positions -= tree.positions
    return [row for row in rows if row], left


def _joins(tree: Tree, before: int, length: int, shared: int, *, branch: bool) -> bool:
    if not branch:
        return 0 < shared == before
    return shared >= max(WORTH_SHARING * length, 1) and len(tree) + length - shared <= LARGEST_TREE


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    shared = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        shared += 1
    return shared
