"""The training loop on several processes: what they must do together, by DDP or FSDP2.

Each process, a *rank*, computes the loss of its share of a global batch; the loss is divided by the weight of the whole
batch and gradients are summed up, so that a step is what it is in one process, but for the order in which sums are
made and for what dropout draws. `tasks/training/launch.py` starts the ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from tasks.errors import ConfigError
from tasks.families.interface import Examples, Model
from tasks.recipe import Finetune, devices_problems

T = TypeVar("T")
Pass = tuple[Examples, NDArray[np.int64]]
"""Rows of one forward and backward pass."""


def is_rank() -> bool:
    """Say whether this process is one of several that train together."""
    return distributed.is_available() and distributed.is_initialized()


def first_rank() -> bool:
    """Say whether this process is the one that writes: it is alone, or the first of those that train together."""
    return not is_rank() or distributed.get_rank() == 0


def find_team(model: Model, section: Finetune) -> Team:
    """Return who trains together with this process: nobody, unless it was started as one of several.

    Raises:
        ConfigError: the recipe asks for what several devices cannot do together; every reason at once.
    """
    if problems := devices_problems(section, model.whole_batches):
        raise ConfigError(f"finetune.devices: {section.devices} does not fit the rest:", problems)
    if not is_rank():
        return Team()
    return Shards() if section.sharding == "shard" else Replicas()


class Team:
    """The processes that train together; this one is alone."""

    rank = 0
    size = 1
    reads_alone = True
    """Whether a process that reads the network needs none of the others."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def own(self, model: Model) -> Model:
        """Return the model that the loop trains; `give_back` brings what it learned into the one given."""
        return model

    def join(self, network: nn.Module) -> None:
        """Join the networks of all processes, once it is settled what trains."""

    def share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this process's rows of a global batch, whose rows of like length lie together."""
        return rows[self.rank :: self.size]

    def in_step(self, passes: Sequence[Pass], spare: Pass) -> Iterator[tuple[Pass, float, bool]]:
        """Yield the passes of a step, what each one's loss counts, and whether it is the last.

        Every process makes equally many: one that has fewer repeats `spare`, which counts nothing.
        """
        most = self.most(len(passes))
        for number in range(most):
            real = number < len(passes)
            # Gradients are averaged over the processes, and a sum is wanted.
            yield (passes[number] if real else spare), float(self.size if real else 0), number == most - 1

    def call(self, function: Callable[[], T], last: bool) -> T:
        """Run what computes a loss; gradients are summed up over the processes in the backward pass of the `last`."""
        return function()

    def read(self, function: Callable[[], T]) -> T:
        """Run what only reads the network."""
        return function()

    def total(self, value: float) -> float:
        """Sum a number over the processes."""
        return value

    def most(self, value: int) -> int:
        """Return the greatest of a number of every process."""
        return value

    def any(self, flag: bool) -> bool:
        """Say whether a flag is set in one of the processes."""
        return bool(self.most(int(flag)))

    def each(self, value: Any) -> list[Any]:
        """Collect a value of every process, in all of them."""
        return [value]

    def in_one(self, value: Tensor) -> Tensor:
        """Return a tensor in one piece, in every process."""
        return value

    def whole(self, state: Any) -> Any:
        """Return a state, of network or optimizer, whose tensors are in one piece."""
        return state

    def pieces(self, state: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
        """Return a network's state that `whole` put together, in the pieces that the network has."""
        return state

    def optimizer_pieces(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return an optimizer's state that `whole` put together, in the pieces that its parameters have."""
        return state

    def give_back(self, trained: Model, given: Model) -> None:
        """Bring the weights of the model that `own` returned into the one that it was given."""


class Replicas(Team):
    """Every process has the whole network (DDP)."""

    root: Any

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.device = "cuda" if distributed.get_backend() == "nccl" else "cpu"

    def join(self, network: nn.Module) -> None:
        """Wrap it: the weights become those of the first process, also the frozen ones."""
        self.root = nn.parallel.DistributedDataParallel(
            _Root(network), find_unused_parameters=True, broadcast_buffers=False
        )

    def call(self, function: Callable[[], T], last: bool) -> T:
        """Run it inside DDP's forward pass, which looks at what the loss depends on."""
        self.root.require_backward_grad_sync = (
            last  # as `no_sync` does, whose end comes before the backward pass
        )
        found: T = self.root(function)
        return found

    def total(self, value: float) -> float:
        """Sum a number over the processes."""
        return self._reduced(value, distributed.ReduceOp.SUM)

    def most(self, value: int) -> int:
        """Return the greatest of a number of every process."""
        return int(self._reduced(float(value), distributed.ReduceOp.MAX))

    def each(self, value: Any) -> list[Any]:
        """Collect a value of every process."""
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def _reduced(self, value: float, operation: Any) -> float:
        number = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(number, op=operation)
        return float(number)


class Shards(Replicas):
    """Every process has a piece of each weight, gradient and moment (FSDP2)."""

    reads_alone = False

    def own(self, model: Model) -> Model:
        """Return a copy, whose network is then cut up; the one given waits in the machine's memory."""
        for value in model.network.state_dict().values():
            distributed.broadcast(value, 0)
        mine = copy.deepcopy(model)
        model.network.to("cpu")
        self._cut(mine.network)
        return mine

    def _cut(self, network: nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        from tasks.training.layers import block_names

        mesh = init_device_mesh(self.device, (self.size,))
        for name in block_names(network):
            fully_shard(network.get_submodule(name), mesh=mesh, reshard_after_forward=True)
        # The optimizer and checkpoints want pieces between two passes, of the outermost layers too.
        self.root = fully_shard(_Root(network), mesh=mesh, reshard_after_forward=True)

    def join(self, network: nn.Module) -> None:
        """Make ready what weights are brought together in: made in inference mode, it could not train."""
        from torch.distributed.fsdp import FSDPModule

        for module in [found for found in self.root.modules() if isinstance(found, FSDPModule)]:
            module.unshard()
            module.reshard()

    def call(self, function: Callable[[], T], last: bool) -> T:
        """Run it inside FSDP's forward pass."""
        self.root.set_requires_gradient_sync(last)
        found: T = self.root(function)
        return found

    def read(self, function: Callable[[], T]) -> T:
        """Run it inside FSDP's forward pass, which brings the weights together."""
        found: T = self.root(function)
        return found

    def in_one(self, value: Tensor) -> Tensor:
        """Put a tensor together in every process."""
        return value.full_tensor() if hasattr(value, "full_tensor") else value

    def whole(self, state: Any) -> Any:
        """Put tensors together, in the first process's main memory; the others take part and keep nothing."""
        from torch.distributed.tensor import DTensor

        if isinstance(state, DTensor):
            full = state.full_tensor()
            return full.cpu() if self.first else None
        if isinstance(state, dict):
            return {key: self.whole(value) for key, value in state.items()}
        if isinstance(state, list | tuple):
            return [self.whole(value) for value in state]
        return state

    def pieces(self, state: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
        """Cut tensors up as those of the network are."""
        own = network.state_dict()
        return {name: _cut_like(value, own[name]) for name, value in state.items()}

    def optimizer_pieces(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Cut moments up as their parameters are; the step counts have no pieces."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        cut = {
            number: {
                name: _cut_like(value, parameters[number]) if value.dim() else value
                for name, value in moments.items()
            }
            for number, moments in state["state"].items()
        }
        return {**state, "state": cut}

    def give_back(self, trained: Model, given: Model) -> None:
        """Put the weights together in every process, one after the other."""
        from torch.distributed.tensor import DTensor

        target = given.network.state_dict()
        with torch.no_grad():
            for name, value in trained.network.state_dict().items():
                target[name].copy_(value.full_tensor() if isinstance(value, DTensor) else value)
        given.network.to(given.device)


class _Root(nn.Module):
    """What DDP and FSDP take for the model: it runs whatever is called in it, of whatever family."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def _cut_like(value: Tensor, own: Any) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
