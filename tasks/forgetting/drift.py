"""How far tuning took a model from its base: in its answers, its weights and its features. It explains, and never gates.

| figure | of | meaning |
|---|---|---|
| KL(base ‖ model) | each answer: a token, or a row's label | how much it says something else, in nats |
| weights | each depth | ‖model - base‖ / ‖base‖ of its parameters |
| features | each depth | linear CKA of what leaves it; 1 is the same up to rotation and scale |

Each is measured on inputs of the new task and on inputs of the original benchmarks (selection halves), a sample of
both. A model may move far where nothing is lost, and lose much by a small move: the benchmarks judge, this shows where.
Sources: Kornblith et al. 2019, Similarity of neural network representations revisited (CKA), with the unbiased estimator
of HSIC, which few inputs and many features need (Song et al. 2012; Nguyen et al. 2021).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.errors import ConfigError
from tasks.families.interface import Model
from tasks.forgetting.suites import Suite
from tasks.reports import Drift, LayerDrift
from tasks.splits import first_by_hash
from tasks.training.layers import block_names, depths

MOST_INPUTS = 256
"""Inputs of each sort at most."""
MOST_CHARACTERS = 16_384
"""Characters of each sort at most, about 4,000 tokens: it must cost little beside the search."""
FEWEST_INPUTS = 8
"""Taken however long they are; CKA needs more than three."""
SEED = 0
"""Of which inputs are taken: the same for every model, so it is no choice to make."""

Features = NDArray[np.float64]


def drift(
    name: Literal["tuned", "chosen"], base: Model, model: Model, task: pd.DataFrame, original: pd.DataFrame
) -> Drift:
    """Measure how far `model` is from `base`, on sampled rows of the task and of the original benchmarks."""
    task_kl, task_alike = _read(base, model, task)
    original_kl, original_alike = _read(base, model, original)
    moved = weight_drift(base.network, model.network, model.fresh_parameters)
    return Drift(
        model=name,
        task_inputs=len(task),
        original_inputs=len(original),
        task_kl=task_kl,
        original_kl=original_kl,
        layers=[
            LayerDrift(
                depth=depth, weights=share, task=task_alike.get(depth), original=original_alike.get(depth)
            )
            for depth, share in moved.items()
        ],
    )


def sample(rows: pd.DataFrame) -> pd.DataFrame:
    """Return few enough rows to be read quickly, those whose groups hash first."""
    few = first_by_hash(rows, MOST_INPUTS, SEED)
    if "image" in few or "text" not in few:
        return few
    within = few["text"].str.len().cumsum() <= MOST_CHARACTERS
    return few[within | (np.arange(len(few)) < FEWEST_INPUTS)]


def original_inputs(suites: Sequence[Suite]) -> pd.DataFrame:
    """Return what the benchmarks ask, the same number of each: columns `id`, `group`, and `text` or `image`."""
    parts = []
    for suite in suites:
        what = "image" if suite.asked == "image" else "text"
        part = pd.DataFrame(
            {
                "id": suite.name + "/" + suite.examples["id"].astype(str),
                "group": suite.name + "/" + suite.examples["group"].astype(str),
                what: suite.examples[suite.asked],
            }
        )
        share = max(MOST_CHARACTERS // len(suites), 1)
        few = first_by_hash(part, max(MOST_INPUTS // len(suites), FEWEST_INPUTS), SEED)
        if what == "text":
            few = few[few["text"].str.len().cumsum() <= share] if len(few) > FEWEST_INPUTS else few
        parts.append(few)
    return pd.concat(parts, ignore_index=True)


def weight_drift(base: nn.Module, model: nn.Module, fresh: frozenset[str] = frozenset()) -> dict[int, float]:
    """Return ‖model - base‖ / ‖base‖ of the parameters of each depth; `fresh` ones, new heads, are left out."""
    before, after = dict(base.named_parameters()), dict(model.named_parameters())
    squares: dict[int, list[float]] = {}
    for name, depth in _depths(model).items():
        if name in fresh:
            continue
        old, new = before[name].detach().double(), after[name].detach().double()
        sums = squares.setdefault(depth, [0.0, 0.0])
        sums[0] += float((new - old).square().sum())
        sums[1] += float(old.square().sum())
    return {depth: (moved / max(whole, 1e-24)) ** 0.5 for depth, (moved, whole) in sorted(squares.items())}


def linear_cka(first: Features, second: Features) -> float | None:
    """Return the unbiased linear CKA of features of the same inputs, `(inputs, dim)` each; None: they do not vary.

    Few inputs may give a little more than 1, or less than 0; it is kept within.
    """
    grams = [_hollow_gram(features) for features in (first, second)]
    own = [_hsic(gram, gram) for gram in grams]
    if len(first) < 4 or min(own) <= 1e-12:
        return None
    return float(np.clip(_hsic(*grams) / np.sqrt(own[0] * own[1]), 0.0, 1.0))


def _hollow_gram(features: Features) -> Features:
    centred = features - features.mean(axis=0)
    gram = centred @ centred.T
    np.fill_diagonal(gram, 0.0)
    scale = np.abs(gram).max()
    return gram / scale if scale > 0 else gram


def _hsic(first: Features, second: Features) -> float:
    """Return the unbiased estimate of HSIC from Gram matrices without their diagonals (Song et al. 2012, equation 5)."""
    n = len(first)
    if n < 4:
        return 0.0
    both = float((first * second).sum())
    apart = float(first.sum()) * float(second.sum()) / ((n - 1) * (n - 2))
    rows = 2 * float(first.sum(axis=0) @ second.sum(axis=0)) / (n - 2)
    return (both + apart - rows) / (n * (n - 3))


def _read(base: Model, model: Model, rows: pd.DataFrame) -> tuple[float | None, dict[int, float | None]]:
    """Let both models read the same rows, in the same order; return their KL and the CKA of each depth."""
    if rows.empty:
        return None, {}
    with _watched(base) as before, _watched(model) as after:
        divergence = model.divergence(base, rows)
    alike = {
        depth: linear_cka(np.concatenate(before[depth]), np.concatenate(after[depth]))
        for depth in sorted(before.keys() & after.keys())
    }
    return divergence, alike


@contextlib.contextmanager
def _watched(model: Model) -> Iterator[dict[int, list[Features]]]:
    """Collect what leaves each block while the model reads: a mean over tokens or pixels, `(rows, dim)` a pass."""
    seen: dict[int, list[Features]] = {}
    mask: dict[str, Any] = {}

    def remember(_: nn.Module, __: Any, named: Mapping[str, Any]) -> None:
        mask["now"] = named.get("attention_mask")

    def collect(depth: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            seen.setdefault(depth, []).append(_pooled(hidden, mask.get("now")))

        return hook

    hooks = [model.encoder.backbone.register_forward_pre_hook(remember, with_kwargs=True)]
    for depth, name in enumerate(_blocks(model.network), 1):
        hooks.append(model.network.get_submodule(name).register_forward_hook(collect(depth)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _pooled(hidden: torch.Tensor, mask: torch.Tensor | None) -> Features:
    hidden = hidden.detach().float()
    if hidden.dim() == 4:  # an image's channels come before its pixels
        pooled = hidden.mean(dim=(2, 3))
    elif mask is not None and mask.shape == hidden.shape[:2]:
        share = mask.to(hidden.dtype).unsqueeze(-1)
        pooled = (hidden * share).sum(1) / share.sum(1).clamp(min=1)
    else:
        pooled = hidden.mean(dim=1)
    return pooled.cpu().numpy().astype(np.float64)


def _depths(network: nn.Module) -> dict[str, int]:
    try:
        return depths(network)
    except ConfigError:  # no repeated units: it has one depth
        return {name: 0 for name, _ in network.named_parameters()}


def _blocks(network: nn.Module) -> list[str]:
    try:
        return block_names(network)
    except ConfigError:
        return []
