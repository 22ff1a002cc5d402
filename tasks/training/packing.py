"""Rows of tokens read one after the other, without padding, each as if it were alone: attention stays within a row.

A *pack* is one long sequence. Everything in a transformer but attention looks at one token at a time, so there it is
enough that positions begin again with each row; attention is computed row by row (rows of one length together), so
that its cost does not grow with the pack. Whether a model can be read so is found by trying it (`find_packing`), not
by its name: where two rows do not come out as they do padded, or one row feels what the other says, rows are padded.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

log = logging.getLogger(__name__)

PACKED = "packed"
"""The name under which transformers knows this attention."""
IN_THE_MASK_ALONE = ("attention_chunk_size",)
"""Settings by which some models cut attention in their masks, which packs have none of; short rows would not show it."""
ALTERS_ATTENTION = ("sliding_window", "softcap", "position_bias", "s_aux", "cache")
"""What some models hand to attention, and this attention does not know."""
FLASH_TYPES = (torch.bfloat16, torch.float16)
FLASH_DEVICES = ("cuda",)
WIDEST_FLASH = 256
"""Width of a head, a multiple of 8, up to which the kernel takes it."""
ERROR = {"fp32": 1e-5, "bf16": 3e-2}
"""How far what is read packed may be from what is read padded, as a share of its norm."""
LEAK = 1e-6
"""How far a row may move when the other row of its pack says something else; nothing at all, but for rounding."""


class CannotPackError(Exception):
    """A model asks its attention for something that packed attention does not know."""


@dataclass(frozen=True)
class Rows:
    """Where the rows of a pack end."""

    lengths: tuple[int, ...]
    """Tokens of each row."""
    offsets: Tensor
    """Where each row begins, and where the last ends: int32 `(rows + 1,)`, on the device."""

    def runs(self) -> list[tuple[int, int]]:
        """Return how many rows of which length follow each other."""
        return [(len(list(same)), length) for length, same in groupby(self.lengths)]


@dataclass(frozen=True)
class Packing:
    """How a model reads packs."""

    first_position: int = 0
    """The position of a row's first token: RoBERTa's is not 0."""

    def read(self, backbone: Any, tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Rows]:
        """Return the last hidden states of rows, one after the other: `(tokens, dim)`.

        The model must be within `packed_attention_in`.
        """
        device = next(backbone.parameters()).device
        lengths = torch.tensor([len(row) for row in tokens])
        ends = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        begins = torch.repeat_interleave(ends[:-1], lengths)
        places = torch.arange(int(ends[-1])) - begins + self.first_position
        ids = torch.tensor([token for row in tokens for token in row])
        given = {"input_ids": _moved(ids, device)[None], "position_ids": _moved(places, device)[None]}
        if "token_type_ids" in inspect.signature(backbone.forward).parameters:
            given["token_type_ids"] = torch.zeros_like(given["input_ids"])  # its own are as long as one row
        rows = Rows(tuple(lengths.tolist()), _moved(ends.int(), device))
        # A mask of four dimensions is taken as it is; without one, transformers makes one of the square of the pack.
        nothing = torch.zeros(1, 1, 1, 1, device=device)
        read = backbone(**given, attention_mask=nothing, packed_rows=rows)
        return read.last_hidden_state[0], rows


def mean_of_rows(hidden: Tensor, rows: Rows) -> Tensor:
    """Return the mean of the hidden states `(tokens, dim)` of each row: `(rows, dim)`."""
    lengths = torch.tensor(rows.lengths)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(hidden.device)
    sums = hidden.new_zeros(len(lengths), hidden.shape[1]).index_add(0, owner, hidden)
    return sums / lengths.to(hidden.device, hidden.dtype)[:, None]


def find_packing(
    backbone: Any, precision: str, autocast: contextlib.AbstractContextManager[Any]
) -> Packing | None:
    """Try two short rows on a model, packed and padded; None where packing would change what it computes."""
    if not _takes_attention(backbone):
        return None
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad(), autocast:
            first, second, other = _rows_to_try(backbone)
            alone = torch.cat([_read_alone(backbone, row) for row in (first, second)])
            with packed_attention_in(backbone):
                for place in _first_positions(backbone):
                    packing = Packing(place)
                    together = _read(packing, backbone, first, second)
                    exact = _apart(together, alone) < ERROR[precision]
                    if exact and not _leaks(packing, backbone, together, first, second, other):
                        return packing
    except (CannotPackError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        log.debug("packing: %s", error)
    finally:
        backbone.train(training)
    return None


@contextlib.contextmanager
def packed_attention_in(backbone: Any) -> Iterator[None]:
    """Let a model read packs in the body; what it reads padded, it reads as before."""
    before = backbone.config._attn_implementation
    backbone.set_attn_implementation(PACKED)
    try:
        yield
    finally:
        backbone.set_attn_implementation(before)


@torch.compiler.disable  # it would be compiled again for every pack, whose rows are never as long as the last one's
def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_rows: Rows | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attend within each row of a pack; without `packed_rows`, as `sdpa` does.

    `query`, `key` and `value` are `(1, heads, tokens, dim)`; returned is `(1, tokens, heads, dim)`.

    Raises:
        CannotPackError: the model asks for something else than plain attention.
    """
    if packed_rows is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    if altered := [name for name in ALTERS_ATTENTION if more.get(name) is not None]:
        raise CannotPackError(f"its attention has {', '.join(altered)}")
    causal = bool(getattr(module, "is_causal", True))
    tokens = [part[0].transpose(0, 1) for part in (query, key, value)]
    if not dropout and _takes_flash(query, value):
        # Rotated positions are float32 under autocast, and make queries and keys so.
        return _flash([part.to(value.dtype) for part in tokens], packed_rows, scaling, causal)[None], None
    runs = packed_rows.runs()
    sizes = [count * length for count, length in runs]
    parts = []
    for (count, length), *cut in zip(runs, *(part.split(sizes) for part in tokens), strict=True):
        q, k, v = (part.unflatten(0, (count, length)).transpose(1, 2) for part in cut)
        attended = scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=causal and length > 1, scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        parts.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[None], None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


def _takes_flash(query: Tensor, value: Tensor) -> bool:
    """Say whether the kernel takes these heads; of the precision only what was not rotated tells."""
    width = value.shape[-1]
    fits = width == query.shape[-1] and width % 8 == 0 and width <= WIDEST_FLASH
    return fits and value.device.type in FLASH_DEVICES and value.dtype in FLASH_TYPES


def _flash(tokens: Sequence[Tensor], rows: Rows, scaling: float | None, causal: bool) -> Tensor:
    """Attend within rows in one kernel of CUDA, which takes half precision and knows no dropout."""
    from torch.nn.attention.varlen import varlen_attn

    longest = max(rows.lengths)
    query, key, value = (part.contiguous() for part in tokens)
    attended = varlen_attn(
        query, key, value, rows.offsets, rows.offsets, longest, longest,
        scale=scaling, window_size=(-1, 0) if causal else (-1, -1), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return attended if isinstance(attended, Tensor) else attended[0]


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """Bring a small tensor to the device without waiting for what runs there."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


# --- trying -------------------------------------------------------------------------------------------


def _takes_attention(backbone: Any) -> bool:
    """Say whether a model takes positions, and attention from outside, has plain SDPA now, and needs no mask."""
    config = getattr(backbone, "config", None)
    dynamic = getattr(backbone, "_can_set_attn_implementation", lambda: False)
    if getattr(config, "_attn_implementation", None) != "sdpa" or not dynamic():
        return False
    if any(getattr(config, name, None) is not None for name in IN_THE_MASK_ALONE):
        return False
    return "position_ids" in inspect.signature(backbone.forward).parameters


def _rows_to_try(backbone: Any) -> tuple[list[int], list[int], list[int]]:
    """Return rows of 9 and 6 tokens, and another of 6; ids from all over the vocabulary, but for the padding."""
    size, padding = backbone.get_input_embeddings().weight.shape[0], backbone.config.pad_token_id
    ids = [(7919 * place + 13) % size for place in range(1, 64)]
    chosen = [token for token in ids if token != padding]
    return chosen[:9], chosen[9:15], chosen[15:21]


def _first_positions(backbone: Any) -> list[int]:
    padding = getattr(backbone.config, "pad_token_id", None)
    return [0] if padding is None else [0, int(padding) + 1]


def _read_alone(backbone: Any, row: list[int]) -> Tensor:
    ids = torch.tensor([row], device=next(backbone.parameters()).device)
    hidden: Tensor = backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    return hidden.float()


def _read(packing: Packing, backbone: Any, *rows: list[int]) -> Tensor:
    return packing.read(backbone, rows)[0].float()


def _leaks(
    packing: Packing, backbone: Any, together: Tensor, first: list[int], second: list[int], other: list[int]
) -> bool:
    """Say whether a row moves when the one before or behind it says something else."""
    behind = _read(packing, backbone, first, other)[: len(first)]
    before = _read(packing, backbone, first[: len(first) - len(other)] + other, second)[len(first) :]
    moved = max(_apart(behind, together[: len(first)]), _apart(before, together[len(first) :]))
    return moved > LEAK


def _apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))
