"""One notion of depth, derived from the model: what is frozen, at which rate each layer learns, what thaws when."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tasks.errors import ConfigError
from tasks.recipe import Finetune


@dataclass(frozen=True)
class Layer:
    """The parameters of one depth: 0 is what comes before the first block, the last is the head."""

    depth: int
    names: list[str]
    parameters: int
    rate: float
    trains: bool


def depths(model: nn.Module) -> dict[str, int]:
    """Map each parameter's name to its depth.

    The blocks are the longest `nn.ModuleList` (or, in a convolutional network, `nn.Sequential`) of the model:
    block i has depth i + 1, what is registered before the first block has depth 0, and what comes after the
    last block, the head among it, has one more than the last.
    """
    name, count = _blocks(model)
    found: dict[str, int] = {}
    seen_a_block = False
    for parameter, _ in model.named_parameters():
        if parameter.startswith(f"{name}."):
            seen_a_block = True
            found[parameter] = int(parameter.removeprefix(f"{name}.").split(".", 1)[0]) + 1
        else:
            found[parameter] = count + 1 if seen_a_block else 0
    return found


def describe_layers(model: nn.Module, section: Finetune) -> list[Layer]:
    """Say of each depth what it holds, how fast it learns at the peak, and whether it trains at all."""
    by_depth: dict[int, list[str]] = {}
    for name, depth in depths(model).items():
        by_depth.setdefault(depth, []).append(name)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    top = max(by_depth)
    _check_frozen(section, top)
    return [
        Layer(
            depth=depth,
            names=names,
            parameters=sum(sizes[name] for name in names),
            rate=section.learning_rate * section.layer_decay ** (top - depth),
            trains=depth == top if section.method == "probe" else depth >= section.freeze_layers,
        )
        for depth, names in sorted(by_depth.items())
    ]


def parameter_groups(model: nn.Module, section: Finetune) -> list[dict[str, object]]:
    """Return AdamW's groups, two a depth: with decay, and without for biases, norms and other vectors.

    Each group carries `depth`, for the schedule; frozen parameters stop requiring gradients.
    """
    parameters = dict(model.named_parameters())
    groups: list[dict[str, object]] = []
    for layer in describe_layers(model, section):
        members = [parameters[name] for name in layer.names]
        for member in members:
            member.requires_grad_(layer.trains)
        if not layer.trains:
            continue
        decayed = [member for member in members if member.ndim > 1]
        plain = [member for member in members if member.ndim <= 1]
        shared = {"lr": layer.rate, "peak": layer.rate, "depth": layer.depth}
        groups += [{**shared, "params": decayed, "weight_decay": section.weight_decay}] if decayed else []
        groups += [{**shared, "params": plain, "weight_decay": 0.0}] if plain else []
    return groups


def rate_share(step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak rate at `step` of `steps`: linear up over `warmup`, then linear to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return max(steps - step, 0) / max(steps - warmup, 1)


def thawed(depth: int, top: int, step: int, unfreeze_every: int) -> bool:
    """Say whether gradual unfreezing has reached `depth` by `step` (Howard & Ruder 2018, ULMFiT, section 3.3)."""
    return unfreeze_every == 0 or depth >= top - step // unfreeze_every


def _blocks(model: nn.Module) -> tuple[str, int]:
    stacks = [
        (name, len(module))
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1
    ]
    if not stacks:
        raise ConfigError("the model has no stack of layers, so layers cannot be told apart")
    return max(stacks, key=lambda stack: stack[1])


def _check_frozen(section: Finetune, top: int) -> None:
    if section.method != "probe" and section.freeze_layers >= top:
        raise ConfigError(
            f"finetune.freeze_layers is {section.freeze_layers}, but the model has {top} layers below its head: "
            "nothing but the head would train; that is `method: probe`."
        )
