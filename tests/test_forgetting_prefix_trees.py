"""Sequences in trees: what is shared is there once, and each path attends to itself only."""

from __future__ import annotations

import random

import numpy as np

from tasks.forgetting.prefix_trees import LARGEST_TREE, Tree, batches, grow_trees


def path(tree: Tree, node: int) -> list[int]:
    """Return the nodes from the root to a node, by its parents alone."""
    nodes = []
    while node >= 0:
        nodes.append(node)
        node = tree.parents[node]
    return nodes[::-1]


def random_sequences(seed: int, count: int = 60, letters: int = 2) -> tuple[list[list[int]], list[int]]:
    draw = random.Random(seed)
    sequences = [[draw.randrange(letters) for _ in range(draw.randint(2, 12))] for _ in range(count)]
    return sequences, [draw.randint(1, len(sequence) - 1) for sequence in sequences]


def test_every_path_reads_its_own_sequence_and_predicts_its_last_tokens() -> None:
    for seed in range(20):
        sequences, predicted = random_sequences(seed)
        for branch in (True, False):
            trees = grow_trees(sequences, predicted, branch=branch)
            members = [(tree, member) for tree in trees for member in tree.members]
            assert sorted(member.index for _, member in members) == list(range(len(sequences)))
            for tree, member in members:
                sequence = sequences[member.index]
                nodes = path(tree, member.nodes[-1])
                assert [tree.tokens[node] for node in nodes] == sequence[:-1]
                assert [tree.depths[node] for node in nodes] == list(range(len(nodes)))
                assert member.targets == sequence[-predicted[member.index] :]
                assert member.nodes == nodes[-predicted[member.index] :]
            assert branch or all(tree.is_chain for tree in trees)


def test_a_node_attends_to_its_ancestors_and_itself_only() -> None:
    sequences, predicted = random_sequences(1)
    for tree in grow_trees(sequences, predicted, branch=True):
        mask = tree.ancestors()
        for node in range(len(tree)):
            assert np.flatnonzero(mask[node]).tolist() == path(tree, node)


def test_what_four_choices_share_is_read_once() -> None:
    context = list(range(30))
    sequences = [[*context, 100 + choice, 7, 8] for choice in range(4)]
    (tree,) = grow_trees(sequences, [3] * 4, branch=True)
    assert len(tree) == 30 + 4 * 2
    assert not tree.is_chain
    assert tree.positions == 1 + 4 * 2  # the context's last token predicts the first of all four
    plain = grow_trees(sequences, [3] * 4, branch=False)
    assert [len(tree) for tree in plain] == [32] * 4


def test_strangers_share_no_tree_and_trees_stay_small() -> None:
    alike = [[1, 2, *([place] * 20)] for place in range(10, 14)]
    assert len(grow_trees(alike, [5] * 4, branch=True)) == 4
    many = [[*range(100), 1000 + place, *([3] * 50)] for place in range(200)]
    trees = grow_trees(many, [5] * 200, branch=True)
    assert 1 < len(trees) < 10
    assert max(len(tree) for tree in trees) <= LARGEST_TREE


def test_one_token_choices_share_a_plain_sequence() -> None:
    (tree,) = grow_trees([[5, 6, 7, 20], [5, 6, 7, 21], [5, 6, 7, 20, 9]], [1, 1, 2], branch=False)
    assert tree.tokens == [5, 6, 7, 20]
    assert len(tree.members) == 3


def test_batches_keep_their_limits_and_lose_nothing() -> None:
    sequences, predicted = random_sequences(2, 300, letters=15)
    trees = grow_trees(sequences, predicted, branch=True)
    assert any(tree.is_chain for tree in trees)
    assert any(not tree.is_chain for tree in trees)
    found = list(batches(trees, 64, 40))
    placed = [tree for batch in found for row in batch for tree in row]
    assert sorted(map(id, placed)) == sorted(map(id, trees))
    for batch in found:
        own = [tree for row in batch for tree in row]
        assert len({tree.is_chain for tree in own}) == 1
        assert not own[0].is_chain or all(len(row) == 1 for row in batch)
        longest = max(sum(len(tree) for tree in row) for row in batch)
        assert len(own) == 1 or longest * len(batch) <= max(64, len(own[0]))
        assert len(own) == 1 or sum(tree.positions for tree in own) <= max(40, own[0].positions)


def test_rows_are_filled_so_that_little_is_padding() -> None:
    draw = random.Random(0)
    trees = grow_trees(
        [
            [*[1000 + place] * draw.randint(10, 60), 5 + choice, 7]
            for place in range(100)
            for choice in range(2)
        ],
        [1] * 200,
        branch=True,
    )
    nodes = sum(map(len, trees))
    padded = sum(
        len(batch) * max(sum(map(len, row)) for row in batch) for batch in batches(trees, 512, 10_000)
    )
    assert nodes > 2000
    assert padded < 1.1 * nodes
