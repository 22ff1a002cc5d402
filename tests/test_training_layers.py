"""Layers by depth: what is frozen, at which rate each learns, what thaws when, and that frozen means untouched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.errors import ConfigError, StageError
from tasks.families.text_classification import TextClassifier
from tasks.recipe import Finetune
from tasks.training.batches import epoch_batches
from tasks.training.layers import depths, describe_layers, rate_share, thawed
from tasks.training.loop import Trainer
from tests.tiny import make_tiny_base, tiny_classifier

ORDINARY = {
    "method": "full", "learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "warmup_share": 0.1, "weight_decay": 0.01,
    "max_grad_norm": 1.0, "max_length": 16, "precision": "fp32", "seed": 7,
}  # fmt: skip


def section(**more: object) -> Finetune:
    return Finetune.model_validate({**ORDINARY, **more})


@pytest.fixture
def classifier(tmp_path: Path) -> TextClassifier:
    return tiny_classifier(make_tiny_base(tmp_path / "base"))


def rows(count: int = 40) -> pd.DataFrame:
    texts = [f"the {'phone' if n % 3 else 'film'} was {'good' if n % 2 else 'bad'} {n}" for n in range(count)]
    return pd.DataFrame({"id": [f"r{n}" for n in range(count)], "text": texts, "label": np.arange(count) % 2})


def network(classifier: TextClassifier) -> torch.nn.ModuleDict:
    return classifier.network


def changed_depths(classifier: TextClassifier, before: dict[str, torch.Tensor]) -> set[int]:
    depth = depths(network(classifier))
    return {
        depth[name]
        for name, value in network(classifier).named_parameters()
        if not torch.equal(before[name], value)
    }


def train(classifier: TextClassifier, folder: Path, **more: object) -> Trainer:
    trainer = Trainer(classifier, section(**more), rows(), rows(16), folder)
    trainer.fit()
    return trainer


def test_depth_rises_from_embeddings_to_head(classifier: TextClassifier) -> None:
    found = depths(network(classifier))
    assert {depth for name, depth in found.items() if "embeddings" in name} == {0}
    assert {depth for name, depth in found.items() if ".layer.0." in name} == {1}
    assert {depth for name, depth in found.items() if ".layer.1." in name} == {2}
    assert {depth for name, depth in found.items() if name.startswith("head")} == {3}
    assert len(found) == len(list(network(classifier).parameters()))


def test_rates_fall_by_the_decay_with_each_layer_below(classifier: TextClassifier) -> None:
    layers = describe_layers(network(classifier), section(layer_decay=0.5))
    assert [layer.rate for layer in layers] == pytest.approx([1.25e-4, 2.5e-4, 5e-4, 1e-3])
    assert all(layer.trains for layer in layers)
    assert sum(layer.parameters for layer in layers) == sum(
        p.numel() for p in network(classifier).parameters()
    )


def test_frozen_layers_are_bit_identical_after_training(classifier: TextClassifier, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in network(classifier).state_dict().items()}
    train(classifier, tmp_path / "scratch", freeze_layers=2)
    depth = depths(network(classifier))
    for name, value in network(classifier).named_parameters():
        if depth[name] < 2:
            assert torch.equal(before[name], value), name
    changed = {
        depth[name]
        for name, value in network(classifier).named_parameters()
        if not torch.equal(before[name], value)
    }
    assert changed == {2, 3}


def test_freezing_all_but_the_head_is_refused(classifier: TextClassifier) -> None:
    with pytest.raises(ConfigError, match=r"the model has 3 layers below its head.*method: probe"):
        describe_layers(network(classifier), section(freeze_layers=3))


def test_gradual_unfreezing_thaws_from_the_top(classifier: TextClassifier, tmp_path: Path) -> None:
    assert [thawed(1, 3, step, 2) for step in range(6)] == [False] * 4 + [True] * 2
    assert all(thawed(3, 3, step, 2) for step in range(6))
    assert all(thawed(depth, 3, 0, 0) for depth in range(4))
    before = {name: value.clone() for name, value in network(classifier).state_dict().items()}
    train(
        classifier, tmp_path / "scratch", unfreeze_every=4
    )  # five steps: the head, and the block below it for one
    depth = depths(network(classifier))
    changed = {
        depth[name]
        for name, value in network(classifier).named_parameters()
        if not torch.equal(before[name], value)
    }
    assert changed == {2, 3}


def test_the_rate_rises_over_the_warm_up_and_falls_to_zero() -> None:
    shares = [rate_share(step, 10, 2) for step in range(10)]
    assert shares[:3] == [0.5, 1.0, 1.0]
    assert shares[-1] == pytest.approx(1 / 8)
    assert shares[2:] == sorted(shares[2:], reverse=True)


def test_an_epoch_sees_each_row_once_in_an_order_of_its_own() -> None:
    lengths = np.random.default_rng(0).integers(4, 60, 100)
    first, again, second = (epoch_batches(lengths, 8, 7, epoch) for epoch in (0, 0, 1))
    assert sorted(np.concatenate(first).tolist()) == list(range(100))
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in again]
    assert [batch.tolist() for batch in first] != [batch.tolist() for batch in second]
    assert max(len(batch) for batch in first) == 8


def test_no_weight_decay_on_biases_and_norms(classifier: TextClassifier, tmp_path: Path) -> None:
    trainer = Trainer(classifier, section(), rows(), rows(8), tmp_path)
    for group in trainer.optimizer.param_groups:
        vectors = {parameter.ndim <= 1 for parameter in group["params"]}
        assert vectors == {group["weight_decay"] == 0.0}


def test_a_loss_that_is_no_number_names_step_and_rows(classifier: TextClassifier, tmp_path: Path) -> None:
    with torch.no_grad():
        classifier.head.weight.fill_(float("nan"))
    with pytest.raises(
        StageError, match=r"step 1: the loss is nan.*Lower finetune.learning_rate.*r\d+"
    ) as caught:
        train(classifier, tmp_path / "scratch")
    assert len(str(caught.value).split("batch: ")[1].split(", ")) == 8


def test_no_rows_are_an_error(classifier: TextClassifier, tmp_path: Path) -> None:
    trainer = Trainer(classifier, section(), rows(0), rows(), tmp_path)
    with pytest.raises(StageError, match="zero steps"):
        trainer.fit()


def test_micro_batches_do_not_change_the_step(
    tmp_path: Path, classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of a step is the mean over its rows, whatever fits into memory at once."""
    from tasks.training import loop

    def step_gradient(tokens: int) -> torch.Tensor:
        monkeypatch.setattr(loop, "MICRO_TOKENS", tokens)
        trainer = Trainer(classifier, section(), rows(), rows(8), tmp_path)
        found = []
        monkeypatch.setattr(
            trainer.optimizer, "step", lambda: found.append(classifier.head.weight.grad.clone())
        )
        classifier.backbone.eval()  # without dropout
        trainer._step(np.arange(8))
        return found[0]

    assert torch.allclose(step_gradient(16_384), step_gradient(24), atol=1e-6)
