"""Memory: what does not fit is cut smaller and learned all the same; logits are never in memory all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.errors import StageError
from tasks.families.causal_lm import CausalLM
from tasks.training import loop, memory
from tasks.training.memory import compile_blocks, recompute_blocks, restore_blocks
from tasks.training.vocabulary_loss import BYTES_OF_LOGITS, summed_cross_entropy
from tests.architectures import ARCHITECTURES, tiny_model
from tests.short_training import short_trainer

PLAIN = {"attention_dropout": 0.0, "replay_share": 0.0}


def gradients(trainer: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in trainer.network.parameters() if p.grad is not None])


def one_step(trainer: Any) -> tuple[float, torch.Tensor]:
    trainer.model.train_mode()
    with trainer.fast():
        loss = trainer._backward(np.arange(8), np.arange(0))
    return loss, gradients(trainer)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=["CUDA", "numpy", "torch"],
)
def test_what_does_not_fit_is_cut_smaller_and_the_step_is_the_same(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = one_step(short_trainer(tmp_path / "whole", **PLAIN))
    sizes, loss = [], CausalLM.loss

    def cramped(model: CausalLM, examples: Any, rows: np.ndarray) -> torch.Tensor:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise error
        return loss(model, examples, rows)

    monkeypatch.setattr(CausalLM, "loss", cramped)
    trainer = short_trainer(tmp_path / "cramped", **PLAIN)
    found = one_step(trainer)
    assert sizes[0] == 8
    last = [size for size, left in zip(sizes, np.cumsum(sizes[::-1])[::-1], strict=True) if left <= 8]
    assert sum(last) == 8, "the attempt that fits has every row once"
    assert max(last) <= 2
    assert found[0] == pytest.approx(whole[0], abs=1e-6)
    assert torch.allclose(found[1], whole[1], atol=1e-6), "nothing of the failed pass is left"
    assert trainer.progress.micro_tokens < 60
    assert not trainer.progress.recompute


def test_a_single_row_that_does_not_fit_is_computed_twice_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CausalLM, "loss", full)
    trainer = short_trainer(tmp_path, **PLAIN)
    with pytest.raises(
        StageError, match=r"a pass over 1 row\(s\) of up to \d+ tokens: lower finetune.max_len"
    ):
        one_step(trainer)
    assert trainer.progress.recompute


def test_validation_that_does_not_fit_is_cut_smaller_and_measures_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = short_trainer(tmp_path, **PLAIN)
    whole = trainer._validate()
    sizes, losses = [], CausalLM._token_losses

    def cramped(model: CausalLM, rows: Any) -> Any:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses(model, rows)

    monkeypatch.setattr(CausalLM, "_token_losses", cramped)
    found = trainer._validate()
    assert sizes[0] > 3
    assert max(sizes[-4:]) <= 3
    assert np.allclose(found.losses, whole.losses, atol=1e-6)
    assert trainer.model.less == trainer.model.encoder.less > 1


def test_however_little_is_read_at_once_it_is_one_at_the_least(tmp_path: Path) -> None:
    encoder = short_trainer(tmp_path, **PLAIN).model.encoder
    assert encoder.at_once({"cpu": 64}) == 64
    encoder.less = 16
    assert encoder.at_once({"cpu": 64}) == 4
    encoder.less = 1024
    assert encoder.at_once({"cpu": 64}) == 1


def test_validation_that_does_not_fit_at_all_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CausalLM, "_token_losses", full)
    with pytest.raises(
        StageError, match=r"epoch 1: memory does not suffice to measure the validation rows: low"
    ):
        short_trainer(tmp_path, **PLAIN).fit()


@pytest.mark.parametrize(
    ("owner", "call", "said"),
    [
        (torch.optim.AdamW, "step", "for the optimizer"),
        (torch.nn.utils, "clip_grad_norm_", "for the gradients' norm"),
        (loop.copy, "deepcopy", "for a copy of the best epoch's weights"),
        (loop.Average, "take", "for the weights' average"),
    ],
    ids=["optimizer", "norm", "best", "average"],
)
def test_what_does_not_fit_beside_the_passes_of_a_step_says_what_to_lower(
    owner: Any, call: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer = short_trainer(tmp_path, **PLAIN)
    monkeypatch.setattr(owner, call, full)
    with pytest.raises(StageError, match=f"memory does not suffice {said}.*: train fewer parameters"):
        trainer.fit()


def test_an_error_that_is_not_about_memory_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any) -> torch.Tensor:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(CausalLM, "loss", wrong)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        one_step(short_trainer(tmp_path, **PLAIN))


def test_computed_twice_it_is_the_same_with_dropout_too(tmp_path: Path) -> None:
    """Packed rows and random numbers must be those of the first time."""
    once = short_trainer(tmp_path / "once")
    twice = short_trainer(tmp_path / "twice", recompute_activations=True)
    torch.manual_seed(1)
    first = one_step(once)
    torch.manual_seed(1)
    again = one_step(twice)
    assert again[0] == first[0]
    assert torch.equal(again[1], first[1])


@pytest.mark.parametrize("architecture", ["bert", "llama", "mamba", "resnet", "convnext", "vit"])
def test_every_architecture_can_compute_its_blocks_twice_in_less_memory(architecture: str) -> None:
    model = tiny_model(architecture).train()
    inputs = ARCHITECTURES[architecture].inputs()

    def run() -> tuple[list[torch.Tensor], int]:
        torch.manual_seed(0)
        model.zero_grad()
        kept = [0]

        def count(value: torch.Tensor) -> torch.Tensor:
            kept[0] += value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
            found = model(**inputs)[0]
        found.square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None], kept[0]

    names = list(model.state_dict())
    once, much = run()
    recompute_blocks(model)
    twice, little = run()
    restore_blocks(model)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(once, twice, strict=True))
    assert little < much
    assert list(model.state_dict()) == names
    assert run()[1] == much, "undone"


def test_compiled_blocks_read_packs_to_the_same_loss(tmp_path: Path) -> None:
    """Compiling is for CUDA; what is traced is tried here, without generating code."""
    plain = one_step(short_trainer(tmp_path / "plain", **PLAIN))
    trainer = short_trainer(tmp_path / "compiled", **PLAIN)
    compile_blocks(trainer.network, backend="eager")
    found = one_step(trainer)
    assert found[0] == pytest.approx(plain[0], abs=1e-6)
    assert torch.allclose(found[1], plain[1], atol=1e-6)
    assert all(block._compiled_call_impl is None for block in trainer.network.model.layers), "undone"


def test_another_pack_is_not_compiled_again(tmp_path: Path) -> None:
    torch._dynamo.reset()  # what another test compiled would be taken here
    trainer = short_trainer(tmp_path, **PLAIN)
    compile_blocks(trainer.network, backend="eager")
    trainer.model.train_mode()
    packs = [np.arange(first, first + 8) for first in (0, 8, 16, 24)]
    made = []
    with trainer.fast():
        for rows in packs:
            before = counters["stats"]["unique_graphs"]
            trainer._backward(rows, np.arange(0))
            made.append(counters["stats"]["unique_graphs"] - before)
    assert len({int(trainer.examples.lengths[rows].sum()) for rows in packs}) == 4, "of other sizes each"
    assert made[0] > 0, "graphs of the first"
    assert made[1:] == [0, 0, 0]


# --- logits -------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor has that was made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else (found,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return found


TOKENS, WIDTH, VOCABULARY = 200, 16, 3000


@pytest.mark.parametrize("kind", ["plain", "with a bias", "wrapped", "bf16"])
def test_the_loss_is_cross_entropy_and_logits_are_never_there_at_once(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BYTES_OF_LOGITS, "cpu", 4 * VOCABULARY * 20)
    torch.manual_seed(0)
    linear = torch.nn.Linear(WIDTH, VOCABULARY, bias=kind == "with a bias")
    head = torch.nn.Sequential(linear) if kind == "wrapped" else linear
    hidden = torch.randn(TOKENS, WIDTH, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (TOKENS,))
    dtype, close = (torch.bfloat16, 2e-2) if kind == "bf16" else (torch.float32, 1e-5)

    def run(loss: Any) -> tuple[torch.Tensor, list[torch.Tensor], int]:
        with Largest() as largest:
            found = loss()
            made = torch.autograd.grad(found / TOKENS, [hidden, *linear.parameters()])
        return found / TOKENS, list(made), largest.elements

    wanted, slow, much = run(lambda: functional.cross_entropy(head(hidden), targets, reduction="sum"))
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
        found, quick, little = run(lambda: summed_cross_entropy(head, hidden, targets, dtype))
    assert found.item() == pytest.approx(wanted.item(), abs=close)
    assert all(torch.allclose(a, b, atol=close) for a, b in zip(quick, slow, strict=True))
    assert much == TOKENS * VOCABULARY
    # A head of an unknown kind is given as many positions as one with 65,536 words could have.
    assert little == 20 * VOCABULARY if kind != "wrapped" else little < much


def test_a_frozen_head_gets_no_gradient_and_no_label_no_loss() -> None:
    head = torch.nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(5, 8, requires_grad=True)
    loss = summed_cross_entropy(head, hidden, torch.arange(5), torch.float32)
    loss.backward()
    assert hidden.grad is not None
    assert head.weight.grad is None
    with pytest.raises(AttributeError):
        loss.backward()
    nothing = summed_cross_entropy(head, hidden[:0], torch.arange(0), torch.float32)
    assert float(nothing) == 0
    with torch.no_grad():
        assert float(summed_cross_entropy(head, hidden, torch.arange(5), torch.float32)) > 0


def test_random_numbers_of_a_second_attempt_are_those_of_the_first() -> None:
    drawn: list[float] = []

    def attempt() -> float:
        drawn.append(float(torch.rand(())))
        if len(drawn) == 1:
            raise MemoryError
        return drawn[-1]

    assert memory.retry_smaller(attempt, lambda: None) == drawn[0]
