"""The linear probe, where tuning starts: its weights mean the same on features as they come."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tasks.errors import StageError
from tasks.training.probe import fit_label_probes, fit_probe, fresh_head


def features(classes: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make float32 rows around one centre a class, with dimensions of very different scale."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(0).normal(size=(classes, 6)) * 3
    rows = centres[labels] + generator.normal(size=(count, 6))
    return (rows * [1, 100, 0.01, 1, 1, 1] + 5).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 4])
def test_the_head_gives_the_accuracy_that_was_reported(classes: int) -> None:
    train, validation = features(classes, 200, 1), features(classes, 80, 2)
    weights, accuracy = fit_probe(*train, *validation, classes)
    head = torch.nn.Linear(6, classes)
    head.load_state_dict(weights)
    with torch.inference_mode():
        found = head(torch.from_numpy(validation[0])).argmax(1).numpy()
    assert float((found == validation[1]).mean()) == accuracy
    assert accuracy > 0.9


def test_two_classes_have_the_probabilities_of_the_one_row_model() -> None:
    from sklearn.linear_model import LogisticRegression

    train, validation = features(2, 200, 1), features(2, 80, 2)
    weights, _ = fit_probe(*train, *validation, 2)
    mean, scale = train[0].mean(0), train[0].std(0)
    logits = validation[0] @ weights["weight"].numpy().T + weights["bias"].numpy()
    ours = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    candidates = []
    for strength in (0.001, 0.01, 0.1, 1.0):
        model = LogisticRegression(C=strength, max_iter=2000).fit((train[0] - mean) / scale, train[1])
        candidates.append(np.abs(model.predict_proba((validation[0] - mean) / scale) - ours).max())
    assert min(candidates) < 1e-3


def test_the_same_features_give_the_same_bits() -> None:
    train, validation = features(3, 90, 1), features(3, 30, 2)
    first, again = (fit_probe(*train, *validation, 3)[0] for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in ("weight", "bias"))


def test_features_that_are_not_finite_are_an_error() -> None:
    train, validation = features(2, 40, 1), features(2, 20, 2)
    train[0][3, 2] = np.nan
    with pytest.raises(StageError, match="not all finite: are its weights whole"):
        fit_probe(*train, *validation, 2)


@pytest.mark.parametrize("missing", [1, 2])
def test_a_class_that_only_validation_has_is_refused_and_one_that_only_it_lacks_is_not(missing: int) -> None:
    (rows, labels), (unseen, checked) = features(3, 60, 1), features(3, 30, 2)
    kept = labels != missing
    with pytest.raises(StageError, match=f"no training row has label {missing + 1} of the 3"):
        fit_probe(rows[kept], labels[kept], unseen, checked, 3)
    kept = checked != missing
    weights, accuracy = fit_probe(rows, labels, unseen[kept], checked[kept], 3)
    assert weights["weight"].shape == (3, 6)
    assert accuracy > 0.9


def test_a_fresh_head_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = fresh_head(32, 3, 7)
    torch.manual_seed(2)
    assert torch.equal(first.weight, fresh_head(32, 3, 7).weight)
    assert not torch.equal(first.weight, fresh_head(32, 3, 8).weight)
    assert not first.bias.any()


def test_features_that_differ_by_rounding_alone_tell_nothing() -> None:
    """Standardised, the last digit of a constant would decide: the answer is the share of the labels instead."""
    generator = np.random.default_rng(0)
    train, validation = (
        (0.6 + 1e-7 * generator.normal(size=(60, 4))).astype(np.float32),
        (0.6 + 1e-7 * generator.normal(size=(30, 4))).astype(np.float32),
    )
    labels = np.arange(60) % 3 // 2
    weights, accuracy = fit_probe(train, labels, validation, labels[:30], 2)
    assert not weights["weight"].any()
    assert torch.softmax(weights["bias"], 0)[1] == pytest.approx(1 / 3, abs=0.01)
    assert accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several"])
def test_a_dead_feature_gets_no_weight_whatever_it_tells(several: bool) -> None:
    """As in MiniLM: a unit with a spread of 10⁻⁹. Scaled up it would count millions of times what it moves later."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 90)
    features = draw.normal(size=(90, 8)).astype(np.float32)
    features[:, 3] = 1e-9 * (labels + 0.1 * draw.normal(size=90))
    features[:, 5] = 0.0
    targets = np.stack([labels, 1 - labels], axis=1).astype(np.float32) if several else labels
    parts = features[:60], targets[:60], features[60:], targets[60:]
    head = fit_label_probes(*parts) if several else fit_probe(*parts, 2)[0]
    assert (head["weight"][:, [3, 5]] == 0).all()
    assert 0 < float(head["weight"].abs().max()) < 10
