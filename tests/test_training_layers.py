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
from tasks.training.layers import (
    block_names,
    depths,
    describe_layers,
    frozen_depths,
    parameter_groups,
    rate_share,
    thawed,
    trained_parameters,
)
from tasks.training.loop import Trainer
from tests.architectures import ARCHITECTURES, tiny_model
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

    def step_gradient(tokens: int) -> torch.Tensor:
        trainer = Trainer(classifier, section(), rows(), rows(8), tmp_path)
        trainer.progress.micro_tokens = tokens
        found = []
        monkeypatch.setattr(
            trainer.optimizer, "step", lambda: found.append(classifier.head.weight.grad.clone())
        )
        classifier.backbone.eval()  # without dropout
        trainer._step(np.arange(8), np.zeros(0, dtype=np.int64))
        return found[0]

    assert torch.allclose(step_gradient(16_384), step_gradient(24), atol=1e-6)


# --- one notion of depth, on every architecture -------------------------------------------------------


def by_depth(model: torch.nn.Module) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for name, depth in depths(model).items():
        found.setdefault(depth, set()).add(name)
    return found


@pytest.mark.parametrize(
    ("architecture", "blocks", "below", "above"),
    [
        ("bert", ["encoder.layer.0", "encoder.layer.1"], {"embeddings"}, {"pooler"}),
        ("llama", ["model.layers.0", "model.layers.1"], {"model.embed_tokens"}, {"model.norm"}),
        ("llama-untied", ["model.layers.0", "model.layers.1"], {"model.embed_tokens"}, {"model.norm", "lm_head"}),
        ("mamba", ["backbone.layers.0", "backbone.layers.1"], {"backbone.embeddings"}, {"backbone.norm_f"}),
        ("mamba2", ["backbone.layers.0", "backbone.layers.1"], {"backbone.embeddings"}, {"backbone.norm_f", "lm_head"}),
        ("resnet", [f"resnet.encoder.stages.{n}" for n in ("0.layers.0", "0.layers.1", "1.layers.0", "2.layers.0",
                    "2.layers.1")], {"resnet.embedder"}, {"classifier"}),
        ("resnet-bottleneck", [f"resnet.encoder.stages.{n}.layers.0" for n in range(2)], {"resnet.embedder"},
         {"classifier"}),
        ("convnext", [f"convnext.encoder.stages.{n}" for n in ("0.layers.0", "1.layers.0", "1.layers.1",
                      "2.layers.0")], {"convnext.embeddings"}, {"convnext.layernorm", "classifier"}),
        ("vit", ["vit.layers.0", "vit.layers.1"], {"vit.embeddings"}, {"vit.layernorm", "classifier"}),
    ],
)  # fmt: skip
def test_depth_runs_through_all_blocks_in_forward_order(
    architecture: str, blocks: list[str], below: set[str], above: set[str]
) -> None:
    model = tiny_model(architecture)
    assert block_names(model) == blocks
    found = by_depth(model)
    assert sorted(found) == list(range(len(blocks) + 2))
    for depth, block in enumerate(blocks, 1):
        inside = {name for name, _ in model.named_parameters() if name.startswith(f"{block}.")}
        assert inside
        assert inside <= found[depth]
    for depth, owners in ((0, below), (len(blocks) + 1, above)):
        assert {
            next((one for one in owners if name.startswith(one)), name) for name in found[depth]
        } == owners


def test_the_blocks_are_in_the_order_of_the_forward_pass() -> None:
    assert len(ARCHITECTURES) >= 6
    for architecture in ARCHITECTURES:
        model = tiny_model(architecture)
        names = {id(model.get_submodule(name)): name for name in block_names(model)}
        called: list[str] = []

        def note(module: torch.nn.Module, *_: object, names=names, called=called) -> None:
            called.append(names[id(module)])

        for name in block_names(model):
            model.get_submodule(name).register_forward_hook(note)
        with torch.no_grad():
            model(**ARCHITECTURES[architecture].inputs())
        assert called == block_names(model), architecture


def test_what_lies_between_two_stages_counts_with_the_stage_it_opens() -> None:
    depth = depths(tiny_model("convnext"))
    between = {name: depth[name] for name in depth if "downsampling_layer" in name}
    assert {name.split(".")[3]: value for name, value in between.items()} == {"1": 2, "2": 4}


def test_tied_weights_count_once_at_the_bottom() -> None:
    model = tiny_model("llama")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert depths(model)["model.embed_tokens.weight"] == 0
    assert sum(layer.parameters for layer in describe_layers(model, section())) == sum(
        parameter.numel() for parameter in model.parameters()
    )


def test_a_plain_stack_and_no_stack() -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    assert depths(plain) == {"0.weight": 1, "0.bias": 1, "2.weight": 2, "2.bias": 2}
    with pytest.raises(ConfigError, match="no stack of layers"):
        depths(torch.nn.Linear(2, 2))


def test_freezing_a_share_of_the_blocks() -> None:
    model = tiny_model("convnext")  # 4 blocks
    assert [frozen_depths(model, share) for share in (0.1, 0.125, 0.5, 0.8)] == [1, 2, 3, 4]
    assert [frozen_depths(model, count) for count in (0, 1, 3)] == [0, 1, 3]
    layers = describe_layers(model, section(freeze_layers=0.5))
    assert [layer.trains for layer in layers] == [False] * 3 + [True] * 3
    with pytest.raises(ConfigError, match=r"freeze_layers is 0.9, but the model has 5 layers below"):
        describe_layers(model, section(freeze_layers=0.9))


# --- heads, norms and biases only ---------------------------------------------------------------------

NORMS = {
    "bert": 2 * 2 * 2 + 2, "llama": 2 * 2 + 1, "mamba": 2 + 1, "resnet": 2 * (1 + 5 * 2 + 2) + 2,
    "convnext": 2 * (1 + 4 + 2 + 1) + 2, "vit": 2 * (2 * 2 + 1) + 2,
}  # fmt: skip
"""Scales and shifts of all normalisation layers, and the two parameters of the head that are no norm's."""


@pytest.mark.parametrize("architecture", NORMS)
def test_norms_are_known_by_their_class(architecture: str) -> None:
    model = tiny_model(architecture)
    chosen = trained_parameters(model, "norms")
    head = trained_parameters(model, "head")
    assert head <= chosen
    pooler = 2 if architecture == "bert" else 0
    assert len(chosen) == NORMS[architecture] + pooler
    assert all("norm" in name.lower() or "downsampling_layer.0" in name for name in chosen - head)


def test_biases_are_additive_vectors_and_the_head() -> None:
    model = tiny_model("vit")
    chosen = trained_parameters(model, "biases")
    expected = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert chosen == expected | {"classifier.weight", "vit.layernorm.weight"}
    with pytest.raises(ConfigError, match=r"no biases below its head.*method: probe"):
        trained_parameters(tiny_model("llama"), "biases")


def test_a_fresh_head_is_told_from_the_models_own_last_layers(classifier: TextClassifier) -> None:
    assert trained_parameters(network(classifier), "head") == {"head.weight", "head.bias"}
    assert trained_parameters(tiny_model("vit"), "head") == {
        "vit.layernorm.weight", "vit.layernorm.bias", "classifier.weight", "classifier.bias"
    }  # fmt: skip


@pytest.mark.parametrize("method", ["probe", "norms", "biases"])
def test_what_a_method_does_not_train_is_untouched(
    classifier: TextClassifier, tmp_path: Path, method: str
) -> None:
    before = {name: value.clone() for name, value in network(classifier).state_dict().items()}
    train(classifier, tmp_path / "scratch", method=method)
    chosen = trained_parameters(network(classifier), "head" if method == "probe" else method)
    moved = {
        name for name, value in network(classifier).named_parameters() if not torch.equal(before[name], value)
    }
    assert moved <= chosen
    assert {"head.weight", "head.bias"} <= moved
    # The pooler has no part in the loss, and the softmax does not see what is added to every key alike.
    assert all("pooler" in name or "key.bias" in name for name in chosen - moved)


def test_a_layer_says_what_of_it_trains(classifier: TextClassifier) -> None:
    layers = describe_layers(network(classifier), section(method="norms", freeze_layers=1))
    assert [layer.trains for layer in layers] == [False, True, True, True]
    assert layers[0].trained_parameters == 0 < layers[0].parameters
    assert layers[1].trained_parameters == 4 * 32 < layers[1].parameters
    assert all("LayerNorm" in name for name in layers[1].trained)


def test_adapters_must_be_there_for_lora(classifier: TextClassifier) -> None:
    with pytest.raises(StageError, match=r"lora.*none have been added"):
        describe_layers(network(classifier), section(method="lora", lora={"rank": 2, "alpha": 4}))


def test_groups_hold_each_trained_parameter_once_and_decay_embeddings_but_no_norm_or_bias() -> None:
    for architecture in ARCHITECTURES:
        model = tiny_model(architecture)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = parameter_groups(model, section(weight_decay=0.1))
        held = [names[id(parameter)] for group in groups for parameter in group["params"]]
        assert sorted(held) == sorted(names.values())
        plain = trained_parameters(model, "norms") - trained_parameters(model, "head")
        decayed = {
            names[id(parameter)] for group in groups if group["weight_decay"] for parameter in group["params"]
        }
        assert not decayed & plain
        assert not any(name.endswith("bias") for name in decayed)
        embeddings = {n for n in names.values() if n.endswith(("embeddings.weight", "embed_tokens.weight"))}
        assert embeddings <= decayed
        assert bool(embeddings) == (
            architecture in ("bert", "llama", "llama-untied", "mamba", "mamba2", "convnext")
        )
