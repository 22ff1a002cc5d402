"""One notion of depth, derived from the model: what is frozen, at which rate each layer learns, what thaws when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn

from tasks.errors import ConfigError, StageError
from tasks.recipe import Finetune

Which = Literal["all", "head", "norms", "biases", "adapters"]

TRAINED_BY: dict[str, Which] = {
    "full": "all",
    "lp-ft": "all",
    "probe": "head",
    "norms": "norms",
    "biases": "biases",
    "lora": "adapters",
}
"""What each `method` of a recipe trains."""


@dataclass(frozen=True)
class Layer:
    """The parameters of one depth: 0 is what comes before the first block, the last is the head."""

    depth: int
    names: list[str]
    parameters: int
    rate: float
    trained: list[str]
    """The names of those that train."""
    trained_parameters: int

    @property
    def trains(self) -> bool:
        """Say whether any of them does."""
        return bool(self.trained)


def depths(model: nn.Module) -> dict[str, int]:
    """Map each parameter's name to its depth.

    The blocks are the repeated units of the model in the order in which they are registered, through all stages of a
    convolutional network: block i has depth i + 1. Embeddings and what is registered before the first block have
    depth 0; what comes after the last block, final norm and head among it, has one more than the last. What a stage
    has besides its blocks belongs to the block that it stands beside. A parameter that is used in several places
    counts once, where it is used first.

    Raises:
        ConfigError: the model has no repeated units.
    """
    blocks = block_names(model)
    place = {name: number for number, name in enumerate(blocks, 1)}
    stages = _stage_ends(blocks)
    embeddings = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    found: dict[int, int] = {}
    last = 0
    for name, parameter in model.named_parameters(remove_duplicate=False):
        depth = _own_block(name, place)
        if depth is not None:
            last = depth
        elif name.rpartition(".")[0] in embeddings:
            depth = 0
        else:
            depth = _beside(name, stages, last, len(blocks))
        found[id(parameter)] = min(depth, found.get(id(parameter), depth))
    return {name: found[id(parameter)] for name, parameter in model.named_parameters()}


def block_names(model: nn.Module) -> list[str]:
    """Return the names of the model's repeated units, first to last.

    A unit is an element of an `nn.ModuleList` or `nn.Sequential` all of whose elements have at least two weight
    matrices. One that is hardly more than a list of such units (at most one matrix outside it, which halves the
    resolution) is a stage, and its units count instead. A model without any, a plain stack of layers, is taken by
    its longest list.

    Raises:
        ConfigError: there is no list of layers at all.
    """
    found = [name for stack in _stacks(model, "") for name in _units(model, stack)]
    return found or _plain_stack(model)


def trained_parameters(model: nn.Module, which: Which) -> set[str]:
    """Return the names of the parameters that train when only heads, norms, biases or adapters do.

    `head` is what lies outside the pretrained model, the fresh head; where nothing does, what comes after the last
    block. `norms` are the weights and biases of normalisation layers (Frankle et al. 2021, Training BatchNorm and
    Only BatchNorm), `biases` all additive vectors (Ben Zaken et al. 2022, BitFit); both train the head too.
    `adapters` are what `add_adapters` added, and a fresh head.

    Raises:
        ConfigError: the pretrained part has none of them, so that nothing but the head would train.
    """
    every = [name for name, _ in model.named_parameters()]
    if which == "all":
        return set(every)
    fresh = _outside_pretrained(model)
    if which == "adapters":
        return _adapter_parameters(model) | fresh
    top = depths(model)
    head = fresh or {name for name in every if top[name] == max(top.values())}
    if which == "head":
        return head
    chosen = _norm_parameters(model) if which == "norms" else _bias_parameters(model)
    if not chosen - head:
        raise ConfigError(
            f"the model has no {which} below its head: `method: {which}` would train the head alone; "
            "that is `method: probe`."
        )
    return chosen | head


def describe_layers(model: nn.Module, section: Finetune) -> list[Layer]:
    """Say of each depth what it holds, how fast it learns at the peak, and whether it trains at all.

    Raises:
        ConfigError: nothing below the head would train, and `method` is not `probe`.
        StageError: `method` is `lora`, and no adapters have been added yet.
    """
    by_depth: dict[int, list[str]] = {}
    for name, depth in depths(model).items():
        by_depth.setdefault(depth, []).append(name)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    top = max(by_depth)
    trained = trained_parameters(model, TRAINED_BY[section.method])
    first = 0
    if section.method != "probe":
        first = frozen_depths(model, section.freeze_layers)
        _check_frozen(section, first, top)
    layers = []
    for depth, names in sorted(by_depth.items()):
        chosen = [name for name in names if name in trained and depth >= first]
        rate = section.learning_rate * section.layer_decay ** (top - depth)
        held, moved = (sum(sizes[name] for name in some) for some in (names, chosen))
        layers.append(Layer(depth, names, held, rate, chosen, moved))
    return layers


def frozen_depths(model: nn.Module, freeze_layers: int | float) -> int:
    """Return how many depths stay as they are: a number is itself (1 is the embeddings alone).

    A share freezes the embeddings and that share of the blocks, rounded half up.
    """
    if isinstance(freeze_layers, int):
        return freeze_layers
    return 1 + math.floor(freeze_layers * len(block_names(model)) + 0.5)


def parameter_groups(model: nn.Module, section: Finetune) -> list[dict[str, object]]:
    """Return AdamW's groups, two a depth: with decay, and without for biases, norms and other vectors.

    Each group carries `depth`, for the schedule; frozen parameters stop requiring gradients.
    """
    parameters = dict(model.named_parameters())
    undecayed, layers = _undecayed(model), describe_layers(model, section)
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    groups: list[dict[str, object]] = []
    for layer in layers:
        for decays in (True, False):
            members = [parameters[name] for name in layer.trained if (name not in undecayed) == decays]
            for member in members:
                member.requires_grad_(True)
            group = {"lr": layer.rate, "peak": layer.rate, "depth": layer.depth, "params": members}
            groups += [{**group, "weight_decay": section.weight_decay if decays else 0.0}] if members else []
    return groups


def rate_share(step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak rate at `step` of `steps`: linear up over `warmup`, then linear to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return max(steps - step, 0) / max(steps - warmup, 1)


def thawed(depth: int, top: int, step: int, unfreeze_every: int) -> bool:
    """Say whether gradual unfreezing has reached `depth` by `step` (Howard & Ruder 2018, ULMFiT, section 3.3)."""
    return unfreeze_every == 0 or depth >= top - step // unfreeze_every


# --- blocks -------------------------------------------------------------------------------------------


def _stacks(module: nn.Module, prefix: str) -> list[str]:
    """Return the names of the outermost lists of units in `module`, in the order in which they are registered."""
    found = []
    for name, child in module.named_children():
        full = f"{prefix}.{name}" if prefix else name
        found += [full] if _is_stack(child) else _stacks(child, full)
    return found


def _is_stack(module: nn.Module) -> bool:
    if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) == 0:
        return False
    return all(_matrices(element) >= 2 for element in module)


def _units(model: nn.Module, stack: str) -> list[str]:
    found = []
    for name, element in model.get_submodule(stack).named_children():
        full = f"{stack}.{name}"
        inner = _stacks(element, full)
        outside = _matrices(element) - sum(_matrices(model.get_submodule(one)) for one in inner)
        is_stage = bool(inner) and outside <= 1
        found += [unit for one in inner for unit in _units(model, one)] if is_stage else [full]
    return found


def _matrices(module: nn.Module) -> int:
    """Count the layers with a weight matrix or kernel; a layer with an adapter is one."""
    base = getattr(module, "base_layer", None)
    if isinstance(base, nn.Module):
        return _matrices(base)
    own = any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
    return int(own) + sum(_matrices(child) for child in module.children())


def _plain_stack(model: nn.Module) -> list[str]:
    stacks = [
        [
            f"{name}.{place}" if name else place
            for place, element in module.named_children()
            if _has_any(element)
        ]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
    ]
    longest = max(stacks, key=len, default=[])
    if len(longest) < 2:
        raise ConfigError("the model has no stack of layers, so layers cannot be told apart")
    return longest


def _has_any(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _own_block(name: str, place: dict[str, int]) -> int | None:
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        depth = place.get(".".join(parts[:end]))
        if depth is not None:
            return depth
    return None


def _stage_ends(blocks: list[str]) -> dict[str, tuple[int, int]]:
    """Map each stage, an element of a list that holds blocks, to its first and last depth."""
    ends: dict[str, tuple[int, int]] = {}
    for depth, block in enumerate(blocks, 1):
        parts = block.split(".")
        for end in range(1, len(parts) - 1):
            if parts[end - 1].isdigit():
                first, _ = ends.get(".".join(parts[:end]), (depth, depth))
                ends[".".join(parts[:end])] = (first, depth)
    return ends


def _beside(name: str, stages: dict[str, tuple[int, int]], last: int, count: int) -> int:
    """Return the depth of a parameter outside the blocks; `last` is that of the block registered before it."""
    for stage, (first, end) in stages.items():
        if name.startswith(f"{stage}."):
            return end if last >= first else first
    return count + 1 if last else 0


def _check_frozen(section: Finetune, first: int, top: int) -> None:
    if first >= top:
        raise ConfigError(
            f"finetune.freeze_layers is {section.freeze_layers}, but the model has {top} layers below its head: "
            "nothing but the head would train; that is `method: probe`."
        )


# --- kinds of parameters ------------------------------------------------------------------------------


def _norm_parameters(model: nn.Module) -> set[str]:
    """Return what normalisation layers hold: classes of that name (every library has its own) with vectors alone."""
    return {
        f"{name}.{parameter}" if name else parameter
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and all(value.ndim <= 1 for value in module.parameters())
        for parameter, _ in module.named_parameters()
    }


def _bias_parameters(model: nn.Module) -> set[str]:
    return {
        name
        for name, value in model.named_parameters()
        if value.ndim == 1 and (name.rpartition(".")[2] == "bias" or name.endswith("_bias"))
    }


def _undecayed(model: nn.Module) -> set[str]:
    vectors = {name for name, value in model.named_parameters() if value.ndim <= 1}
    return vectors | _norm_parameters(model) | _bias_parameters(model)


def _adapter_parameters(model: nn.Module) -> set[str]:
    """Return what lies beside the base layer in a layer that has one, which is PEFT's way of adding to it."""
    adapted = [
        name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "base_layer", None), nn.Module)
    ]
    found = {
        name
        for name, _ in model.named_parameters()
        for layer in adapted
        if name.startswith(f"{layer}.") and not name.startswith(f"{layer}.base_layer.")
    }
    if not found:
        raise StageError("`method: lora` needs adapters, and none have been added to the model")
    return found


def _outside_pretrained(model: nn.Module) -> set[str]:
    """Return the parameters that no pretrained model holds; nothing where there is no pretrained model at all."""
    from transformers import PreTrainedModel

    pretrained = [name for name, module in model.named_modules() if isinstance(module, PreTrainedModel)]
    if not pretrained or "" in pretrained:
        return set()
    return {
        name
        for name, _ in model.named_parameters()
        if not any(name.startswith(f"{one}.") for one in pretrained)
    }
