"""The accuracy to expect elsewhere: right at home and under shifts whose harm is known, honest where it cannot know."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.measures import harm, labels

DIM = 16


def drawn(rows: int, seed: int, distance: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors (rows, 16) of two Gaussians whose means differ in eight dimensions, and which one each is of."""
    chance = np.random.default_rng(seed)
    label = chance.integers(0, 2, rows)
    vectors = chance.standard_normal((rows, DIM))
    vectors[:, :8] += distance / np.sqrt(8) * label[:, None]
    return vectors, label


def names(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def studied(vectors: np.ndarray, label: np.ndarray) -> harm.Home:
    outcome = labels.probe(vectors, label, names(len(label)), 7)
    assert outcome is not None
    return harm.study(vectors, outcome, label, names(len(label)), 7)


@pytest.fixture(scope="module")
def home() -> harm.Home:
    return studied(*drawn(600, 1))


def accuracy(home: harm.Home, vectors: np.ndarray, label: np.ndarray) -> float:
    return float(np.mean(home.outcome.classes[home.outcome.scores_of(vectors).argmax(axis=1)] == label))


def test_without_a_shift_the_accuracy_is_that_at_home(home: harm.Home) -> None:
    for seed in range(2, 6):
        vectors, label = drawn(600, seed)
        found = harm.expected_accuracy(home, vectors, names(600))
        actual = accuracy(home, vectors, label)
        assert found.interval[0] <= actual <= found.interval[1]
        assert found.accuracy == pytest.approx(actual, abs=0.05)
        assert found.at_home == pytest.approx(actual, abs=0.05)


def test_the_order_of_the_rows_of_a_large_target_does_not_matter(home: harm.Home) -> None:
    vectors, label = drawn(2 * harm.TRANSPORT_ROWS, 5)
    order = np.argsort(label, kind="stable")
    as_drawn, by_label = (
        harm.expected_accuracy(home, rows, names(len(rows))) for rows in (vectors, vectors[order])
    )
    assert by_label.accuracy == pytest.approx(as_drawn.accuracy, abs=0.02)
    assert by_label.transport == pytest.approx(as_drawn.transport, abs=0.03)


def test_the_more_a_shift_harms_the_less_is_expected(home: harm.Home) -> None:
    expected, actual = [], []
    for distance in (2.5, 1.8, 1.2, 0.6):
        vectors, label = drawn(2000, 9, distance)
        vectors[:, :8] += (2.5 - distance) / np.sqrt(8) / 2
        expected.append(harm.expected_accuracy(home, vectors, names(2000)).accuracy)
        actual.append(accuracy(home, vectors, label))
    assert actual == sorted(actual, reverse=True)
    assert expected == sorted(expected, reverse=True)
    assert np.abs(np.subtract(expected, actual)).mean() < 0.08


def test_few_rows_of_the_target_and_few_groups_widen_the_interval(home: harm.Home) -> None:
    def width(rows: int, groups: int) -> float:
        vectors, _ = drawn(rows, 11)
        low, high = harm.expected_accuracy(home, vectors, [str(row % groups) for row in range(rows)]).interval
        return high - low

    assert width(30, 30) > 1.25 * width(600, 600), "most of both is what differs from shift to shift"
    assert width(600, 6) > 1.25 * width(600, 600), "home has no groups, so rows of one may be all alike"
    assert width(600, 600) > 2 * harm.Z * harm.BETWEEN_SHIFTS, "however many rows, shifts differ"


def test_groups_widen_the_interval_as_much_as_rows_of_one_are_alike_at_home() -> None:
    groups = [str(row // 10) for row in range(600)]
    vectors, label = drawn(600, 1)
    repeated, once = np.repeat(vectors[:60], 10, axis=0), np.repeat(label[:60], 10)

    def width(vectors: np.ndarray, label: np.ndarray) -> float:
        outcome = labels.probe(vectors, label, groups, 7)
        assert outcome is not None
        low, high = harm.expected_accuracy(
            harm.study(vectors, outcome, label, groups, 7), drawn(600, 11)[0], groups
        ).interval
        return high - low

    assert width(repeated, once) > 1.5 * width(vectors, label)


def test_where_nothing_shifted_neither_transport_nor_disagreement_takes_anything_off() -> None:
    chance = np.random.default_rng(5)
    centres = 0.8 * chance.standard_normal((20, DIM))
    label = chance.integers(0, 20, 1200)
    vectors = centres[label] + chance.standard_normal((1200, DIM))
    found = harm.expected_accuracy(studied(vectors[:600], label[:600]), vectors[600:], names(600))
    assert found.transport == pytest.approx(0, abs=0.03)
    assert found.disagreement == pytest.approx(0, abs=0.03)
    assert found.accuracy == pytest.approx(found.at_home, abs=0.03)


def test_confidence_is_calibrated_and_estimates_repeat(home: harm.Home) -> None:
    vectors, label = drawn(2000, 12)
    one, two = (harm.expected_accuracy(home, vectors, names(2000)) for _ in range(2))
    assert one.interval == two.interval
    assert one.confidence.shape == (2000,)
    assert one.confidence.mean() == pytest.approx(accuracy(home, vectors, label), abs=0.03)


def test_training_rows_that_differ_among_themselves_lose_on_held_out_regions() -> None:
    chance = np.random.default_rng(3)
    vectors, label = drawn(400, 4, distance=6)
    where = np.repeat([0, 1], 200)
    vectors[:, 8] += 30 * where
    vectors[where == 1, :8] = chance.standard_normal((200, 8))
    vectors[where == 1, 9] += 6 * label[where == 1]
    found = studied(vectors, label).region_loss
    plain = studied(*drawn(400, 4, distance=6)).region_loss
    assert found is not None
    assert plain is not None
    assert found > 0.15 > 0.05 > plain


def test_degenerate_rows_are_no_fault() -> None:
    label = np.arange(200) % 2
    constant = studied(np.ones((200, DIM)), label)
    found = harm.expected_accuracy(constant, np.ones((50, DIM)), names(50))
    assert constant.region_loss is None
    assert 0.3 <= found.accuracy <= 0.7
    assert 0 <= found.interval[0] <= found.interval[1] <= 1
    one_group = harm.expected_accuracy(constant, np.ones((50, DIM)), ["patient"] * 50)
    assert one_group.interval[0] <= one_group.accuracy <= one_group.interval[1]
