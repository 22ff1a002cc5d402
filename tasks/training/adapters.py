"""Low-rank adapters through PEFT: added to a model in place, merged back into plain weights after training.

A merged model has the keys of the base's state dict. With LoRA and rsLoRA its weights are base + delta, so what lies at
(1 - s)·base + s·merged is the adapter at scale s; with DoRA, delta is whatever the merged weights differ by.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tasks.errors import ConfigError, StageError
from tasks.training.layers import block_names

Variant = Literal["lora", "rslora", "dora"]

ADAPTER = "default"
"""PEFT's name for an adapter that needs none."""
_BELOW = re.compile(r"(^|\.)base_layer\.")
"""PEFT keeps the layer that it adapts under this name."""


def add_adapters(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    variant: Variant,
    targets: list[str] | None,
    quantise: bool,
    seed: int,
) -> nn.Module:
    """Add adapters to a model in place, freeze the rest of it, and return it; its outputs are what they were.

    `lora`: Hu et al. 2021, scale alpha / rank; `rslora`: Kalajdzievski 2023, alpha / √rank; `dora`: Liu et al. 2024,
    magnitude and direction apart; `quantise`: Dettmers et al. 2023 (QLoRA), the adapted layers' own weights in
    4-bit NormalFloat with double quantisation. `targets` are ends of layers' names; None takes every linear layer
    inside the blocks. `seed` alone decides the adapters' first weights.

    Raises:
        ConfigError: PEFT is missing, a target matches no layer, a layer is smaller than the rank, or `quantise` has
            not what it needs; all that is wrong, at once.
        StageError: the model has adapters already.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("`method: lora` needs the extra `peft`: pip install 'retain[peft]'.")
    if adapted_layers(model):
        raise StageError("the model has adapters already; merge them first")
    names = _targets(model, targets)
    problems = _rank_problems(model, names, rank) + (_quantise_problems(model, names) if quantise else [])
    if problems:
        raise ConfigError("finetune.lora does not fit the model:", problems)
    if quantise:
        _quantise(model, names)
    config = _configuration(names, rank, alpha, dropout, variant)
    _inject(config, model, seed)
    if quantise:
        _widen_adapters(model)
    return model


def merge_adapters(model: nn.Module) -> nn.Module:
    """Merge the adapters into the weights in place, remove them, and return the plain model.

    Layers that were quantised come back as what training saw, in their former precision: the rounded weights plus
    the adapter. All parameters require gradients again, as those of a freshly loaded model do.

    Raises:
        StageError: the model has no adapters, or a merged weight is not finite.
    """
    names = adapted_layers(model)
    if not names:
        raise StageError("the model has no adapters to merge")
    if getattr(model, "is_loaded_in_4bit", False):
        _dequantise(model, names)
    for name in names:
        layer: Any = model.get_submodule(name)
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise StageError(f"the adapter of {name} cannot be merged: {error}") from error
        _put(model, name, layer.get_base_layer())
    model.__dict__.pop("peft_config", None)
    return model.requires_grad_(True)


def adapted_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers that have an adapter."""
    if importlib.util.find_spec("peft") is None:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def state_beside_base(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a model with adapters but for the layers below them.

    Those never move, so that a checkpoint without them is smaller; and quantised ones cannot be loaded from a state
    dict, but are the same whenever the base is quantised again.
    """
    return {name: value for name, value in model.state_dict().items() if not _BELOW.search(name)}


def load_state_beside_base(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what `state_beside_base` returned into a model whose adapters have been added in the same way.

    Raises:
        StageError: the state belongs to other adapters or another model.
    """
    expected = state_beside_base(model).keys()
    if state.keys() != expected:
        differing = sorted(state.keys() ^ expected)
        raise StageError(
            f"the state is of another model or of other adapters: {len(differing)} names differ, {differing[0]} "
            "among them"
        )
    model.load_state_dict(state, strict=False)


# --- which layers -------------------------------------------------------------------------------------


def _targets(model: nn.Module, targets: list[str] | None) -> list[str]:
    """Return the full names of the layers that get an adapter.

    Without `targets` these are the linear layers inside the blocks: heads and poolers lie after them.
    """
    able = {name: module for name, module in model.named_modules() if _can_be_adapted(module)}
    passed_by = {name for name in able if _weight_is_read_directly(model, name)}
    if targets is None:
        blocks = tuple(f"{name}." for name in block_names(model))
        linear = [name for name in able if name.startswith(blocks) and not isinstance(able[name], nn.Conv2d)]
        found = [name for name in linear if name not in passed_by]
        if not found:
            raise ConfigError(
                "finetune.lora.targets is missing: the model has no linear layers inside its blocks. "
                f"What there is: {_ends(able)}"
            )
        return found
    matched = {target: [name for name in able if f".{name}".endswith(f".{target}")] for target in targets}
    problems = [
        f"target `{target}` matches no layer that can have an adapter"
        for target, names in matched.items()
        if not names
    ]
    problems += [
        f"target `{target}`: the model reads the weight of {names[0]} without calling the layer, so that an adapter "
        "would do nothing"
        for target, names in matched.items()
        if set(names) & passed_by
    ]
    if problems or not targets:
        possible = _ends({name: None for name in able if name not in passed_by})
        raise ConfigError(f"finetune.lora.targets do not fit the model. What there is: {possible}", problems)
    return [name for name in able if any(name in names for names in matched.values())]


def _can_be_adapted(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _weight_is_read_directly(model: nn.Module, name: str) -> bool:
    """Say whether the layer's owner computes with its weight past the layer, as Mamba and `nn.MultiheadAttention` do.

    PEFT puts the adapter into the layer's forward pass, which is then never run, and says nothing.
    """
    parent, _, attribute = name.rpartition(".")
    owner = type(model.get_submodule(parent))
    methods = [
        method for key, method in vars(owner).items() if not key.startswith(("__init__", "init", "reset"))
    ]
    for method in methods:
        function = inspect.unwrap(method) if callable(method) else None
        if not inspect.isfunction(function):
            continue
        try:
            source = inspect.getsource(function)
        except (OSError, TypeError):  # compiled without its source
            continue
        if re.search(rf"self\.{re.escape(attribute)}\.weight\b", source):
            return True
    return False


def _ends(modules: dict[str, Any]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in modules})) or "nothing"


def _rank_problems(model: nn.Module, names: list[str], rank: int) -> list[str]:
    sizes = {name: _smaller_side(model.get_submodule(name)) for name in names}
    return [
        f"rank {rank} is larger than {name}, whose smaller side is {size}: lower `rank`, or leave it out of `targets`"
        for name, size in sizes.items()
        if rank > size
    ]


def _smaller_side(layer: nn.Module) -> int:
    weight: Any = layer.weight
    return int(min(weight.flatten(1).shape))


# --- PEFT ---------------------------------------------------------------------------------------------


def _configuration(names: list[str], rank: int, alpha: float, dropout: float, variant: Variant) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides by it, whatever its annotation says
        lora_dropout=dropout,
        # A string is a pattern for the whole name; the names of a list would match as ends of others.
        target_modules="|".join(re.escape(name) for name in names),
        use_rslora=variant == "rslora",
        use_dora=variant == "dora",
        bias="none",
    )


def _inject(config: Any, model: nn.Module, seed: int) -> None:
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model, adapter_name=ADAPTER)
        except ValueError as error:
            raise ConfigError(f"finetune.lora: PEFT refuses: {error}") from error


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


# --- QLoRA --------------------------------------------------------------------------------------------


def _quantise_problems(model: nn.Module, names: list[str]) -> list[str]:
    problems = []
    if importlib.util.find_spec("bitsandbytes") is None:
        problems.append("`quantise` needs bitsandbytes: pip install bitsandbytes")
    if not torch.cuda.is_available():
        problems.append(
            "`quantise` needs a CUDA device, and there is none: leave it out, or train where there is"
        )
    elif not next(model.parameters()).is_cuda:
        problems.append("`quantise` needs the model on the CUDA device before adapters are added")
    others = [name for name in names if not isinstance(model.get_submodule(name), nn.Linear)]
    if others:
        problems.append(f"`quantise` is for linear layers alone, and {others[0]} is none")
    return problems


def _quantise(model: nn.Module, names: list[str]) -> None:
    """Replace linear layers by 4-bit ones; PEFT is told by the mark that transformers leaves on such a model."""
    import bitsandbytes

    for name in names:
        layer: Any = model.get_submodule(name)
        device = layer.weight.device
        small = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=torch.bfloat16,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        small.weight = bitsandbytes.nn.Params4bit(
            layer.weight.data.cpu(),
            requires_grad=False,
            compress_statistics=True,
            quant_type="nf4",
            module=small,
        )
        small.bias = layer.bias
        _put(model, name, small.to(device))  # being moved to the device is what quantises it
    model.is_loaded_in_4bit = True  # type: ignore[assignment]


def _widen_adapters(model: nn.Module) -> None:
    """Keep the adapters in 32 bit: PEFT makes them in the arithmetic of the quantised layers, too coarse for AdamW."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _dequantise(model: nn.Module, names: list[str]) -> None:
    """Put plain linear layers below the adapters: the same weights, not rounded a second time by merging."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils.integrations import dequantize_module_weight

    adapters = get_peft_model_state_dict(model, adapter_name=ADAPTER)
    config = model.peft_config[ADAPTER]  # type: ignore[index,union-attr]
    for name in names:
        layer: Any = model.get_submodule(name)
        small = layer.get_base_layer()
        precision = small.weight.quant_state.dtype
        plain = nn.Linear(small.in_features, small.out_features, bias=small.bias is not None, device="meta")
        plain.weight = nn.Parameter(dequantize_module_weight(small).to(precision), requires_grad=False)
        if small.bias is not None:  # bitsandbytes rounds it too, to the arithmetic of the forward pass
            plain.bias = nn.Parameter(small.bias.to(precision), requires_grad=False)
        _put(model, name, plain)
    del model.is_loaded_in_4bit, model.peft_config
    _inject(config, model, seed=0)
    set_peft_model_state_dict(model, adapters, adapter_name=ADAPTER)
