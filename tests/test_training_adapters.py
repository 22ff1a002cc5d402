"""Adapters: the identity at the start, plain weights at the end, and nothing else moves in between."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tasks.errors import ConfigError, StageError
from tasks.recipe import Finetune
from tasks.training import adapters
from tasks.training.adapters import (
    adapted_layers,
    add_adapters,
    load_state_beside_base,
    merge_adapters,
    state_beside_base,
)
from tasks.training.layers import block_names, depths, describe_layers, parameter_groups, trained_parameters
from tests.architectures import ARCHITECTURES, tiny_model

pytest.importorskip("peft")

VARIANTS = ["lora", "rslora", "dora"]
LINEAR = {
    "bert": {"query", "key", "value", "dense"},
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "mamba": {"in_proj"},  # the model reads the weights of the others without calling them
    "vit": {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"},
    "convnext": {"pwconv1", "pwconv2"},
}


def adapted(architecture: str, **more: Any) -> Any:
    settings = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "variant": "lora", "targets": None, "quantise": False,
                "seed": 3}  # fmt: skip
    return add_adapters(tiny_model(architecture), **{**settings, **more})


def output(model: Any, architecture: str) -> Tensor:
    found = model(**ARCHITECTURES[architecture].inputs())
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def train(model: Any, architecture: str, steps: int = 5) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    target = torch.randn(output(model, architecture).shape, generator=torch.Generator().manual_seed(5))
    for _ in range(steps):
        optimizer.zero_grad()
        (output(model, architecture) - target).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", LINEAR)
def test_from_the_identity_to_plain_weights(architecture: str, variant: str) -> None:
    base = tiny_model(architecture)
    before = output(base, architecture).detach()
    model = adapted(architecture, variant=variant)
    assert {name.rpartition(".")[2] for name in adapted_layers(model)} == LINEAR[architecture]
    assert torch.allclose(output(model, architecture), before, atol=1e-6)

    train(model, architecture)
    tuned = output(model, architecture).detach()
    assert (tuned - before).abs().max() > 1e-3
    assert merge_adapters(model) is model
    assert torch.allclose(output(model, architecture), tuned, atol=1e-5)

    state = model.state_dict()
    assert state.keys() == base.state_dict().keys()
    moved = {name for name, value in base.state_dict().items() if not torch.equal(value, state[name])}
    assert {name.split(".")[-2] for name in moved} == LINEAR[architecture]
    plain = tiny_model(architecture, seed=9)
    plain.load_state_dict(state)
    assert torch.equal(output(plain, architecture), output(model, architecture))


def test_the_merged_model_is_saved_and_loaded_as_any_other(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = adapted("llama")
    train(model, "llama")
    merge_adapters(model).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    assert torch.equal(output(loaded, "llama"), output(model, "llama"))


@pytest.mark.parametrize("variant", ["lora", "rslora"])
def test_between_base_and_merged_lies_the_adapter_at_that_scale(variant: str) -> None:
    base, share = tiny_model("bert").state_dict(), 0.3
    model = adapted("bert", variant=variant)
    train(model, "bert")
    scaled = copy.deepcopy(model)
    for name in adapted_layers(scaled):
        scaled.get_submodule(name).scale_layer(share)
    whole, part = merge_adapters(model).state_dict(), merge_adapters(scaled).state_dict()
    for name, value in base.items():
        assert torch.allclose(torch.lerp(value, whole[name], share), part[name], atol=1e-6), name


@pytest.mark.parametrize(("variant", "scale"), [("lora", 4.0 / 4), ("rslora", 4.0 / 4**0.5)])
def test_the_merged_weight_is_the_base_plus_the_scaled_product(variant: str, scale: float) -> None:
    name = "encoder.layer.1.output.dense"
    model = adapted("bert", variant=variant, rank=4)
    train(model, "bert")
    layer: Any = model.get_submodule(name)
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = tiny_model("bert").get_submodule(name).weight + scale * product
    assert torch.allclose(merge_adapters(model).get_submodule(name).weight, expected, atol=1e-6)


def test_dora_merges_to_magnitude_times_direction() -> None:
    name = "encoder.layer.0.attention.self.query"
    model = adapted("bert", variant="dora")
    train(model, "bert")
    layer: Any = model.get_submodule(name)
    direction = layer.base_layer.weight + layer.get_delta_weight("default")
    magnitude = layer.lora_magnitude_vector["default"].weight
    expected = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
    assert torch.allclose(merge_adapters(model).get_submodule(name).weight, expected, atol=1e-6)


def test_only_the_adapters_train_and_the_seed_decides_how_they_start() -> None:
    torch.manual_seed(0)
    drawn = torch.get_rng_state()
    first, again, other = (adapted("bert", seed=seed) for seed in (1, 1, 2))
    starts = [state_beside_base(model) for model in (first, again, other)]
    assert all(torch.equal(value, starts[1][name]) for name, value in starts[0].items())
    assert any(not torch.equal(value, starts[2][name]) for name, value in starts[0].items())
    assert {name for name, p in first.named_parameters() if p.requires_grad} == {
        name for name in starts[0] if "lora_" in name
    }
    torch.manual_seed(0)
    tiny_model("bert", seed=0)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    adapted("bert")
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(drawn, after)


def test_depth_and_groups_know_adapters_and_a_fresh_head() -> None:
    network = nn.ModuleDict({"encoder": adapted("vit"), "head": nn.Linear(16, 3)})
    depth = depths(network)
    assert block_names(network) == ["encoder.vit.layers.0", "encoder.vit.layers.1"]
    assert {depth[name] for name in depth if "lora_" in name} == {1, 2}
    trained = trained_parameters(network, "adapters")
    assert {name for name in trained if "lora_" not in name} == {"head.weight", "head.bias"}
    section = Finetune.model_validate({
        "method": "lora", "lora": {"rank": 2, "alpha": 4}, "learning_rate": 1e-3, "epochs": 1, "batch_size": 8,
        "warmup_share": 0.1, "weight_decay": 0.01, "max_grad_norm": 1.0, "max_length": None, "precision": "fp32",
        "seed": 7,
    })  # fmt: skip
    layers = describe_layers(network, section)
    assert [layer.trains for layer in layers] == [False, True, True, True]
    # Two factors of rank 2 for each of four attention matrices (16 × 16) and two of the perceptron (16 × 32).
    assert layers[1].trained_parameters == 2 * (4 * (16 + 16) + 2 * (16 + 32))
    held = {id(p) for group in parameter_groups(network, section) for p in group["params"]}
    assert held == {id(p) for name, p in network.named_parameters() if name in trained}
    assert {name for name, p in network.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize("variant", VARIANTS)
def test_convolutions_can_be_named(variant: str) -> None:
    model = adapted("resnet", targets=["convolution"], variant=variant)
    assert len(block_names(model)) == 5
    train(model, "resnet")
    tuned = output(model, "resnet").detach()
    assert torch.allclose(output(merge_adapters(model), "resnet"), tuned, atol=1e-5)
    assert model.state_dict().keys() == tiny_model("resnet").state_dict().keys()


def test_targets_are_ends_of_names_at_a_dot() -> None:
    model = adapted("bert", targets=["self.query", "encoder.layer.1.output.dense"])
    assert adapted_layers(model) == [
        "encoder.layer.0.attention.self.query",
        "encoder.layer.1.attention.self.query",
        "encoder.layer.1.output.dense",
    ]


def test_targets_that_match_nothing_list_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        adapted("bert", targets=["query", "q_proj", "uery"])
    message = str(caught.value)
    assert "What there is: dense, key, query, value" in message
    assert "`q_proj` matches no layer" in message
    assert "`uery` matches no layer" in message
    assert "`query`" not in message


def test_no_target_by_default_where_there_is_nothing_linear() -> None:
    with pytest.raises(
        ConfigError, match=r"targets is missing.*no linear layers.*What there is: .*convolution"
    ):
        adapted("resnet")


@pytest.mark.parametrize("target", ["x_proj", "dt_proj", "out_proj"])
def test_a_layer_that_is_passed_by_cannot_be_adapted(target: str) -> None:
    with pytest.raises(ConfigError, match=rf"{target}.*without calling the layer.*would do nothing"):
        adapted("mamba", targets=[target])


def test_attention_that_reads_its_output_weight_is_known() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    settings = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "variant": "lora", "quantise": False, "seed": 0}
    with pytest.raises(ConfigError, match=r"0\.out_proj without calling the layer"):
        add_adapters(model, targets=["out_proj"], **settings)


def test_a_rank_above_the_layer_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        adapted("bert", rank=17)
    assert len(caught.value.problems) == 12
    assert "rank 17 is larger than encoder.layer.0.attention.self.query, whose smaller side is 16" in str(
        caught.value
    )


def test_quantising_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = importlib.util.find_spec

    def without(name: str, *more: Any) -> Any:
        return None if name == "bitsandbytes" else missing(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        adapted("bert", quantise=True, rank=17, targets=["query"])
    message = str(caught.value)
    assert "pip install bitsandbytes" in message
    assert "needs a CUDA device" in message
    assert "rank 17" in message


def test_peft_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None)
    with pytest.raises(ConfigError, match=r"pip install 'retain\[peft\]'"):
        adapted("bert")


def test_adding_twice_and_merging_nothing_are_errors() -> None:
    model = adapted("bert")
    with pytest.raises(StageError, match="adapters already"):
        add_adapters(model, rank=2, alpha=4, dropout=0, variant="lora", targets=None, quantise=False, seed=0)
    with pytest.raises(StageError, match="no adapters to merge"):
        merge_adapters(tiny_model("bert"))
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).fill_(float("inf"))
    with pytest.raises(StageError, match=r"adapter of encoder\.layer\.0.*cannot be merged"):
        merge_adapters(model)


def test_a_checkpoint_without_the_layers_below() -> None:
    model = adapted("bert", variant="dora")
    train(model, "bert")
    state = copy.deepcopy(state_beside_base(model))
    assert not any("base_layer" in name for name in state)
    resumed = adapted("bert", variant="dora", seed=8)
    load_state_beside_base(resumed, state)
    assert torch.equal(output(resumed, "bert"), output(model, "bert"))
    with pytest.raises(StageError, match=r"other adapters: 12 names differ.*magnitude"):
        load_state_beside_base(adapted("bert"), state)


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_quantised_layers_are_resumed_and_merged_as_trained(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes has a slow path for the CPU, which is enough to see the mechanics."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(adapters, "_quantise_problems", lambda *_: [])
    base = tiny_model("llama")
    model = adapted("llama", quantise=True, variant=variant)
    assert 1e-4 < (output(model, "llama") - output(base, "llama")).abs().max() < 0.2
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    train(model, "llama")
    tuned = output(model, "llama").detach()
    resumed = adapted("llama", quantise=True, variant=variant, seed=8)
    load_state_beside_base(resumed, copy.deepcopy(state_beside_base(model)))
    assert torch.equal(output(resumed, "llama"), tuned)
    merge_adapters(model)
    state = model.state_dict()
    assert {(name, value.dtype) for name, value in state.items()} == {
        (name, value.dtype) for name, value in base.state_dict().items()
    }
    assert torch.allclose(output(model, "llama"), tuned, atol=2e-2)  # the arithmetic was bfloat16
    assert not torch.allclose(output(base, "llama"), tuned, atol=2e-2)
