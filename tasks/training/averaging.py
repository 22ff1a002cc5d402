"""The mean of a model's weights over the last steps of training, which then stands where the last weights would.

Source: Izmailov et al. 2018, Averaging weights leads to wider optima and better generalization (SWA); here at the
recipe's own falling rate. Of adapters it is their two factors that are averaged, each by itself.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """The running mean of what trains, over the last `share` of the steps; of none of them at 0."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], steps: int, share: float) -> None:
        self.parameters = parameters
        self.before = steps - math.ceil(share * steps)
        """Steps that are left out."""
        self.count, self.mean = 0, dict[str, Tensor]()

    def take(self, step: int) -> None:
        """Take in the weights as they are after `step` steps."""
        if step <= self.before:
            return
        self.count += 1
        for name, parameter in self.parameters.items():
            if self.count == 1:
                self.mean[name] = parameter.detach().clone()
            else:
                self.mean[name].lerp_(parameter.detach(), 1 / self.count)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Have the network hold the mean, where there is one; when the body ends, all is as it was."""
        own = {name: self.parameters[name].detach().clone() for name in self.mean}
        self._put(self.mean)
        try:
            yield
        finally:
            self._put(own)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self.parameters[name].copy_(value)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"count": self.count, "mean": self.mean}

    def load(self, count: int, mean: Mapping[str, Tensor]) -> None:
        """Go on from what a checkpoint kept."""
        self.count = count
        self.mean = {name: value.to(self.parameters[name].device) for name, value in mean.items()}
