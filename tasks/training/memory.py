"""What fits into memory is found by trying: smaller micro-batches first, then activations computed twice.

Neither changes the mathematics: the loss of a global batch is a sum over its rows, and an activation that is computed
again, with the same random numbers, is the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tasks.errors import StageError
from tasks.training.layers import block_names

MICRO_TOKENS = {"cpu": 2048, "cuda": 16_384}
"""Tokens of a forward and backward pass to begin with: more make neither device faster, and take more memory."""
CPU_REFUSAL = "can't allocate memory"
"""What torch says, in an ordinary RuntimeError, where the machine's memory does not suffice."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory did not suffice, of the device or of the machine."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and CPU_REFUSAL in str(error)
    )


def retry_smaller(attempt: Callable[[], Any], shrink: Callable[[], None]) -> Any:
    """Return what `attempt` does; where memory does not suffice `shrink`, and try again with the same random numbers.

    `shrink` raises where there is nothing left to make smaller.
    """
    while True:
        state = random_state()
        try:
            return attempt()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # The error is gone here, and with its traceback the tensors that filled the memory.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        shrink()
        set_random_state(state)


@contextlib.contextmanager
def needing_memory(purpose: str, remedy: str) -> Iterator[None]:
    """Have an error that means that memory did not suffice say for what, and what to do.

    Raises:
        StageError: it did not suffice in the body.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise StageError(f"memory does not suffice {purpose}: {remedy}") from error


def recompute_blocks(network: nn.Module) -> None:
    """Keep what goes into each block, not what is computed in it: the backward pass computes that again.

    Source: Chen et al. 2016, Training deep nets with sublinear memory cost.
    """
    for block in _blocks(network):
        if "forward" not in vars(block):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def restore_blocks(network: nn.Module) -> None:
    """Undo `recompute_blocks` and `compile_blocks`."""
    for block in _blocks(network):
        vars(block).pop("forward", None)
        block._compiled_call_impl = None


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """Compile each block where it stands: equal blocks are compiled once, and names of weights stay what they are."""
    for block in _blocks(network):
        block.compile(backend=backend, dynamic=True)


def _blocks(network: nn.Module) -> list[nn.Module]:
    return [network.get_submodule(name) for name in block_names(network)]


def random_state() -> list[torch.Tensor]:
    """Return the states of the random generators: the CPU's, and those of the CUDA devices."""
    state = [torch.get_rng_state()]
    return [*state, *torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else state


def set_random_state(state: list[torch.Tensor]) -> None:
    """Put the random generators where `random_state` found them: the CPU's, and as many CUDA devices' as are here."""
    torch.set_rng_state(state[0])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state[1 : 1 + torch.cuda.device_count()])
