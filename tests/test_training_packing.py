"""Rows read one after the other come out as they do padded; where a model cannot be read so, it is not."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.families.causal_lm import CausalLM
from tasks.families.interface import Model
from tasks.training.batches import micro_batches
from tasks.training.loop import Trainer
from tasks.training.packing import PACKED, Packing, Rows, find_packing, packed_attention_in
from tests.architectures import make_base, tiny_model
from tests.short_training import short_trainer
from tests.test_families import begun, rows
from tests.tiny_lm import tiny_lm

ROWS = [[5, 9, 11, 20, 7], [8], [30, 31, 32], [40, 41, 42], [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def body(architecture: str) -> Any:
    """Return a model below its head, its weights large enough for one token to matter to another."""
    model = tiny_model(architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.3
                )
    model.config.use_cache = False
    return model if architecture == "bert" else getattr(model, model.base_model_prefix)


def alone(backbone: Any) -> torch.Tensor:
    return torch.cat([backbone(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ROWS])


@pytest.mark.parametrize("architecture", ["bert", "llama", "llama-untied"])
def test_what_is_read_packed_is_what_each_row_is_by_itself(architecture: str) -> None:
    backbone = body(architecture)
    packing = find_packing(backbone, "fp32", contextlib.nullcontext())
    assert packing == Packing(0)
    with torch.no_grad(), packed_attention_in(backbone):
        hidden, where = packing.read(backbone, ROWS)
        assert torch.allclose(hidden, alone(backbone), atol=3e-5)
        assert where.offsets.tolist() == [0, 5, 6, 9, 12, 22]
        other = packing.read(backbone, [ROWS[0], [9], *ROWS[2:]])[0]
    moved = (other - hidden).abs().amax(1) > 0
    assert moved.tolist() == [place == 5 for place in range(22)], "nobody sees another row"


def test_positions_that_begin_at_two_are_found() -> None:
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    backbone = RobertaModel(RobertaConfig(vocab_size=60, pad_token_id=1, **sizes)).eval()
    packing = find_packing(backbone, "fp32", contextlib.nullcontext())
    assert packing == Packing(2)
    with torch.no_grad(), packed_attention_in(backbone):
        assert torch.allclose(packing.read(backbone, ROWS)[0], alone(backbone), atol=3e-5)


@pytest.mark.parametrize("kind", ["mamba", "gemma2", "bloom"])
def test_a_model_that_carries_one_row_into_the_next_is_padded(kind: str) -> None:
    model = tiny_lm(kind)
    model.config.use_cache = False
    backbone = getattr(model, model.base_model_prefix)
    before = backbone.config._attn_implementation
    assert find_packing(backbone, "fp32", contextlib.nullcontext()) is None
    assert backbone.config._attn_implementation == before


def test_a_model_that_forgets_where_rows_end_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap: attention that is not told of rows looks across them, and nothing says so."""
    from tasks.training import packing

    def deaf(*given: Any, packed_rows: Any = None, **more: Any) -> Any:
        return packing.sdpa_attention_forward(*given, is_causal=True, **{**more, "attention_mask": None})

    backbone = body("llama")
    monkeypatch.setitem(packing.AttentionInterface._global_mapping, PACKED, deaf)
    assert find_packing(backbone, "fp32", contextlib.nullcontext()) is None


def test_half_precision_takes_flash_attention_with_rotated_positions_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rotating makes queries and keys float32 under autocast; the kernel wants all three in half precision."""
    from tasks.training import packing

    taken = []

    def flash(
        tokens: Sequence[torch.Tensor], rows: Rows, scaling: float | None, causal: bool
    ) -> torch.Tensor:
        taken.append([part.dtype for part in tokens])
        groups = [part.split(rows.lengths) for part in tokens]
        attended = [
            torch.nn.functional.scaled_dot_product_attention(
                *(part.transpose(0, 1)[None] for part in row),
                is_causal=causal,
                scale=scaling,
                enable_gqa=True,
            )
            for row in zip(*groups, strict=True)
        ]
        return torch.cat([part[0].transpose(0, 1) for part in attended])

    monkeypatch.setattr(packing, "FLASH_DEVICES", ("cpu",))
    monkeypatch.setattr(packing, "_flash", flash)
    found = find_packing(body("llama"), "bf16", torch.autocast("cpu", dtype=torch.bfloat16))
    assert found == Packing(0)
    assert taken
    assert all(dtypes == [torch.bfloat16] * 3 for dtypes in taken)


def test_a_model_whose_chunks_are_in_its_mask_alone_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows longer than a chunk would be read wrong, and the rows that are tried are short."""
    from tasks.training import packing

    sizes = {"attention_chunk_size": 32, "num_local_experts": 2, "head_dim": 8, "intermediate_size_mlp": 64}
    model = tiny_lm("llama4_text", **sizes)
    assert find_packing(model.model, "fp32", contextlib.nullcontext()) is None
    monkeypatch.setattr(packing, "IN_THE_MASK_ALONE", ())
    assert find_packing(model.model, "fp32", contextlib.nullcontext()) is not None, "trying does not see it"


CASES = {"text-classification": "bert", "chat": "llama", "causal-lm": "llama", "pairs": "bert"}


def step(model: Model, section: Any, kind: str, folder: Path, packing: Packing | None) -> tuple[float, Any]:
    """Return the loss of a step, and its gradient."""
    made = Trainer(model, section, rows(kind, 48), rows(kind, 16, 1), folder)
    made.network.zero_grad()
    made.packing = packing
    made.model.train_mode()
    for module in made.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with made.model.packed(packing):
        loss = made._backward(np.arange(8), np.arange(0))
    return loss, torch.cat([p.grad.flatten() for p in made.network.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", CASES)
def test_a_packed_step_is_the_padded_one(kind: str, bases: Path, tmp_path: Path) -> None:
    more = {"loss": "multiple-negatives"} if kind == "pairs" else {}
    model, section = begun(kind, make_base(CASES[kind], bases), **more)
    packing = model.find_packing()
    assert packing is not None
    padded, slow = step(model, section, kind, tmp_path, None)
    packed, quick = step(model, section, kind, tmp_path, packing)
    assert packed == pytest.approx(padded, abs=1e-5)
    assert torch.allclose(quick, slow, atol=1e-5)


def test_training_reads_rows_packed_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    made = short_trainer(tmp_path)
    seen = []
    loss = CausalLM.loss

    def watched(model: CausalLM, *given: Any) -> torch.Tensor:
        seen.append(model.encoder.packs)
        return loss(model, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CausalLM, "loss", watched)
        made.fit()
    assert seen
    assert all(seen)
    assert made.network.config._attn_implementation == "sdpa"
    assert not made.model.encoder.packs


def test_micro_batches_are_even_and_within_bounds() -> None:
    lengths = np.array([3, 3, 4, 5, 5, 6, 9, 20])
    parts = micro_batches(np.arange(8), lengths, 20, packed=True)
    assert np.concatenate(parts).tolist() == list(range(8)), "every row once, in order"
    assert [int(lengths[part].sum()) for part in parts] == [20, 15, 20]
    assert [len(part) for part in micro_batches(np.arange(8), lengths, 40)] == [2, 2, 2, 2]
    assert [part.tolist() for part in micro_batches(np.array([7, 0]), lengths, 1, packed=True)] == [[7], [0]]
