"""The cross-entropy of a vocabulary head, whose logits `(tokens, vocabulary)` are never in memory all at once.

The head is applied to some positions at a time, and each time the gradients are made at once, from the logits that are
there anyway: the backward pass computes nothing again. A head that is no plain linear layer (adapters) is applied by
itself, some positions at a time, and once more in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

BYTES_OF_LOGITS = {"cpu": 1 << 26, "cuda": 1 << 29}
"""Memory that logits may take at once: enough positions for the matrix products to be efficient."""


def summed_cross_entropy(head: nn.Module, hidden: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the cross-entropy of hidden states `(tokens, dim)` under a vocabulary head, summed: a float32 scalar.

    Matrix products are made in `dtype`; softmax and sum in float32.
    """
    if not len(hidden):
        return hidden.float().sum()
    size = _positions(head, hidden)
    if type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks:
        train = torch.is_grad_enabled()
        total: Tensor = _LinearCrossEntropy.apply(hidden, head.weight, head.bias, targets, dtype, size, train)
        return total
    return in_parts(lambda part, wanted: _cross_entropy(head(part), wanted), size, hidden, targets)


def in_parts(function: Callable[..., Tensor], size: int, *values: Tensor) -> Tensor:
    """Sum a function over parts of `size` rows; what it computes on the way is computed again in the backward pass."""
    parts = zip(*(value.split(size) for value in values), strict=True)
    return torch.stack([checkpoint(function, *part, use_reentrant=False) for part in parts]).sum()


def _positions(head: nn.Module, hidden: Tensor) -> int:
    vocabulary = int(getattr(head, "out_features", 1 << 16))
    return max(BYTES_OF_LOGITS["cuda" if hidden.is_cuda else "cpu"] // (4 * vocabulary), 16)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients of a linear layer and cross-entropy, a part of the positions at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
        size: int,
        train: bool,
    ) -> Tensor:
        made = _Gradients(hidden, weight, bias, ctx.needs_input_grad if train else (False,) * 3)
        matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        buffer = torch.empty(min(size, len(hidden)), len(weight), dtype=dtype, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), size):
                part, wanted = hidden[start : start + size].to(dtype), targets[start : start + size]
                logits = torch.mm(part, matrix.T, out=buffer[: len(part)])
                if offset is not None:
                    logits += offset
                total += _softmax_less_target(logits := logits.float(), wanted)
                made.add(start, part, logits.to(dtype), matrix)
        ctx.made = made
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (outer,) = outputs
        made: _Gradients = ctx.made
        ctx.made = None  # they are used up: a second backward pass is an error, not a wrong gradient
        found = [
            None if value is None else value.mul_(outer) for value in (made.hidden, made.weight, made.bias)
        ]
        return (*found, None, None, None, None)


class _Gradients:
    """The gradients that are asked for, as they add up."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, ...]) -> None:
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        self.weight = torch.zeros_like(weight) if wanted[1] else None
        self.bias = torch.zeros_like(bias) if bias is not None and wanted[2] else None

    def add(self, start: int, part: Tensor, outer: Tensor, matrix: Tensor) -> None:
        """Add what a part of the positions, `(positions, dim)`, gives; `outer` is the gradient of its logits."""
        if self.hidden is not None:
            self.hidden[start : start + len(part)] = outer @ matrix
        if self.weight is not None and self.weight.dtype == outer.dtype:
            self.weight.addmm_(outer.T, part)
        elif self.weight is not None:
            self.weight += outer.T @ part
        if self.bias is not None:
            self.bias += outer.float().sum(0)


def _softmax_less_target(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy of float32 logits, and leave its gradient in their place."""
    rows = torch.arange(len(targets), device=targets.device)
    logits -= logits.amax(1, keepdim=True)
    chosen = logits[rows, targets].clone()
    sums = logits.exp_().sum(1, keepdim=True)
    logits /= sums
    logits[rows, targets] -= 1
    return (sums[:, 0].log() - chosen).sum()
