"""Diversity: right at the ends, the same for few and many rows, and low for copies."""

import numpy as np
import pytest

from tasks.measures import diversity
from tasks.measures.diversity import (
    class_counts,
    class_entropy,
    coverage,
    distinct_bigrams,
    diversity_by_class,
    effective_diversity,
    effective_sample_size,
    vendi,
)


def cloud(rows: int, seed: int, dim: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim))


def test_vendi_counts_orthogonal_rows_and_ignores_copies_and_length() -> None:
    assert vendi(np.eye(7)) == pytest.approx(7)
    assert vendi(np.repeat(np.eye(7) * 3, 50, axis=0)) == pytest.approx(7)
    assert vendi(np.ones((40, 5))) == pytest.approx(1)
    assert vendi(np.zeros((0, 5))) == 0


def test_vendi_by_covariance_is_vendi_by_kernel() -> None:
    rows = cloud(60, 1)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(unit @ unit.T / 60)
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    assert vendi(rows) == pytest.approx(np.exp(-np.sum(eigenvalues * np.log(eigenvalues))))


def test_effective_diversity_is_the_same_for_500_and_50000_rows() -> None:
    reference = cloud(200, 0, 128)
    few = effective_diversity(cloud(500, 1, 128), reference, seed=7)
    many = effective_diversity(cloud(50_000, 2, 128), reference, seed=7)
    assert few.value == pytest.approx(1, abs=0.02)
    assert many.value == pytest.approx(few.value, abs=0.02)
    assert few.interval is not None
    assert few.interval[0] < many.value < few.interval[1]


@pytest.mark.parametrize("rows", [60, 1_050, 20_000])
def test_ten_distinct_texts_are_clearly_bad_however_often_repeated(rows: int) -> None:
    copies = cloud(10, 3, 128)[np.arange(rows) % 10]
    assert effective_diversity(copies, cloud(200, 0, 128), seed=7).value < (0.25 if rows == 60 else 0.12)


def test_effective_diversity_interval_covers_the_population_value() -> None:
    reference, covered = cloud(50, 0), 0
    truth = effective_diversity(cloud(50_000, 99), reference, seed=1, draws=200).value
    for seed in range(60):
        interval = effective_diversity(cloud(200, seed), reference, seed=seed).interval
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert covered >= 54


def test_distinct_bigrams_does_not_depend_on_the_number_of_texts() -> None:
    chance = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in chance.zipf(1.5, 12)) for _ in range(20_000)]
    few, drawn = distinct_bigrams(texts[:1_000])
    many, _ = distinct_bigrams(texts)
    assert drawn == 2_000
    assert many == pytest.approx(few, abs=0.03)
    assert distinct_bigrams(["same words here"] * 5_000)[0] == pytest.approx(0.001)


def test_distinct_bigrams_of_a_small_set_is_the_plain_ratio() -> None:
    assert distinct_bigrams(["a b a b"]) == (pytest.approx(2 / 3), 3)
    assert distinct_bigrams(["word", ""]) == (0.0, 0)


def test_class_entropy() -> None:
    assert class_entropy(class_counts([0, 1, 0, 1], 2)) == pytest.approx(1)
    assert class_entropy(class_counts([0, 0, 0], 2)) == 0
    assert 0 < class_entropy(class_counts([0] * 9 + [1], 3)) < 0.5


def test_vendi_in_chunks_is_vendi_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = cloud(1_000, 4).astype(np.float32)
    whole = vendi(rows)
    monkeypatch.setattr(diversity, "_ROWS_A_CHUNK", 77)
    assert vendi(rows) == pytest.approx(whole, rel=1e-9)


def test_diversity_by_class_names_the_poor_class_and_leaves_out_small_ones() -> None:
    vectors = np.concatenate([cloud(300, 1, 64), np.repeat(cloud(3, 2, 64), 100, axis=0), cloud(20, 3, 64)])
    labels = np.repeat([0, 4, 7], [300, 300, 20])
    found = diversity_by_class(vectors, labels, cloud(200, 0, 64), seed=1)
    assert list(found) == [0, 4]
    assert found[0].value == pytest.approx(1, abs=0.03)
    assert found[4].value < 0.1


def test_effective_sample_size_counts_copies_once() -> None:
    assert effective_sample_size(np.arange(500)) == 500
    assert effective_sample_size(np.arange(1_050) % 10) == pytest.approx(10)
    assert effective_sample_size(np.array([0] * 500 + [*range(1, 501)])) == pytest.approx(1000**2 / 250_500)
    assert effective_sample_size(np.zeros(0, dtype=np.int64)) == 0


@pytest.mark.parametrize("rows", [150, 300, 5_000])
def test_coverage_by_the_references_own_distribution_is_what_it_says(rows: int) -> None:
    shares, expected = [], set()
    for seed in range(40):
        found = coverage(cloud(rows, seed, 4), cloud(300, 900 + seed, 4), seed=5)
        shares.append(found.share.value)
        expected.add(found.alike)
    assert np.mean(shares) == pytest.approx(expected.pop(), abs=0.01)
    assert not expected


def test_coverage_is_the_same_for_few_and_many_rows_and_its_interval_covers() -> None:
    truth = np.mean(
        [
            coverage(cloud(300, seed, 4) + 0.7, cloud(300, 500 + seed, 4), seed=5).share.value
            for seed in range(200)
        ]
    )
    assert 0.5 < truth < 0.95
    inside = 0
    for seed in range(60):
        interval = coverage(cloud(2_000, seed, 4) + 0.7, cloud(300, 700 + seed, 4), seed=5).share.interval
        assert interval is not None
        inside += interval[0] <= truth <= interval[1]
    assert inside >= 52


def test_coverage_misses_what_the_rows_lack_and_names_it() -> None:
    reference = np.concatenate([cloud(200, 1, 16), cloud(100, 2, 16) + 20])
    found = coverage(cloud(5_000, 3, 16), reference, seed=5)
    assert found.share.value == pytest.approx(2 / 3, abs=0.05)
    assert found.missed[:200].mean() < 0.1
    assert (found.missed[200:] == 1).all()


def test_rows_of_ten_texts_cover_little_and_copies_cover_their_own() -> None:
    reference = cloud(300, 1, 16)
    assert coverage(np.repeat(reference[:10], 100, axis=0), reference, seed=5).share.value < 0.3
    assert coverage(reference, reference, seed=5).share.value == 1
    assert coverage(np.ones((40, 8)), np.ones((40, 8)), seed=5).share.value == 1


@pytest.mark.parametrize(("rows", "reference"), [(0, 50), (10, 5), (10, 0)])
def test_coverage_of_too_little_is_refused(rows: int, reference: int) -> None:
    with pytest.raises(ValueError, match="at least 6 and 1 are needed"):
        coverage(cloud(rows, 1), cloud(reference, 2), seed=5)
