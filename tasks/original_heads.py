"""The head that a text base was published with: it stays with the backbone, so that it can be asked again.

| `architectures` in the base's config.json ends with | its head tells |
|---|---|
| `ForMaskedLM` | which token stands behind a mask (`masked-lm` benchmarks) |
| `ForSequenceClassification` | a text's label (`head` benchmarks) |

Tuning moves the backbone and leaves the head alone. A masked-language head that is tied to the word embeddings
moves with them, as it does wherever such a model is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.errors import DataError

MASKED, CLASSIFIED = "ForMaskedLM", "ForSequenceClassification"
PASSES = 7
"""Each token is masked in one of so many passes, which masks the 15 % that such models were trained with."""
LOGITS_AT_ONCE = 1 << 27
"""Logits in memory at once: half a GiB of fp32."""


def head_kind(folder: Path) -> str | None:
    """Return which original head a model folder says that it has: `MASKED`, `CLASSIFIED`, or None."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whoever loads the model will say so
    names = said.get("architectures") or [""]
    return next((kind for kind in (MASKED, CLASSIFIED) if str(names[0]).endswith(kind)), None)


def masked_log_likelihoods(
    model: Any,
    tokenizer: Any,
    tokens: Sequence[Sequence[int]],
    device: str,
    max_length: int,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Return the mean log-likelihood of each text's tokens behind masks, in nats a token, `(texts,)`.

    A text of more than `max_length` tokens is read in as many windows as it takes.

    Every token but the special ones is masked once, in one of seven passes that a hash of the text deals out; so all
    models see the same masks. `progress` is told how many passes over texts are done, of how many. Source: Salazar et
    al. 2020, Masked language model scoring, with several masks a pass.

    Raises:
        DataError: the tokenizer has no mask token, or a text has no token to be masked.
    """
    if tokenizer.mask_token_id is None:
        raise DataError("the base's tokenizer has no mask token: it cannot be asked what stands behind one.")
    windows, texts = _windows(tokenizer, tokens, max_length)
    rows, owners = _masked_rows(tokenizer, windows)
    sums, counts = np.zeros(len(tokens)), np.zeros(len(tokens))
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place][0]))
    while order:
        most = max(LOGITS_AT_ONCE // model.config.vocab_size // len(rows[order[0]][0]), 1)
        batch, order = order[:most], order[most:]
        for place, total in zip(
            batch, _behind_masks(model, [rows[p] for p in batch], tokenizer, device), strict=True
        ):
            sums[texts[owners[place]]] += total
            counts[texts[owners[place]]] += len(rows[place][1])
        if progress:
            progress(len(rows) - len(order), len(rows))
    if (counts == 0).any():
        raise DataError(f"{int((counts == 0).sum())} texts have no token to be masked.")
    means: NDArray[np.float64] = sums / counts
    return means


def _windows(
    tokenizer: Any, tokens: Sequence[Sequence[int]], max_length: int
) -> tuple[list[list[int]], list[int]]:
    """Cut texts where they are too long, each piece between the special tokens of the whole; say whose each piece is."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    found: list[list[int]] = []
    owners = []
    for owner, ids in enumerate(tokens):
        if len(ids) <= max_length:
            pieces = [list(ids)]
        else:
            inner = [place for place, token in enumerate(ids) if token not in special]
            first, last = (inner[0], inner[-1] + 1) if inner else (0, len(ids))
            head, tail = list(ids[:first]), list(ids[last:])
            size = max(max_length - len(head) - len(tail), 1)
            pieces = [
                [*head, *ids[start : min(start + size, last)], *tail] for start in range(first, last, size)
            ]
        found += pieces
        owners += [owner] * len(pieces)
    return found, owners


Masked = tuple[list[int], list[int], list[int]]
"""A row with masks, where they are, and what stands behind them."""


def _masked_rows(tokenizer: Any, tokens: Sequence[Sequence[int]]) -> tuple[list[Masked], list[int]]:
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    rows: list[Masked] = []
    owners = []
    for owner, ids in enumerate(tokens):
        places = [place for place, token in enumerate(ids) if token not in special]
        seed = int.from_bytes(hashlib.sha256(repr(list(ids)).encode()).digest()[:8], "big")
        dealt = np.random.default_rng(seed).permutation(len(places)) % PASSES
        for turn in range(min(PASSES, len(places))):
            chosen = [place for place, when in zip(places, dealt, strict=True) if when == turn]
            hidden = list(ids)
            for place in chosen:
                hidden[place] = tokenizer.mask_token_id
            rows.append((hidden, chosen, [ids[place] for place in chosen]))
            owners.append(owner)
    return rows, owners


@torch.inference_mode()
def _behind_masks(model: Any, rows: Sequence[Masked], tokenizer: Any, device: str) -> NDArray[np.float64]:
    """Return the summed log-likelihood of what stands behind each row's masks, `(rows,)`."""
    from tasks.models import pad

    ids, mask = pad([hidden for hidden, _, _ in rows], tokenizer.pad_token_id)
    logits: Tensor = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
    where = torch.tensor(
        [(row, place) for row, (_, places, _) in enumerate(rows) for place in places], device=device
    )
    targets = torch.tensor([token for _, _, behind in rows for token in behind], device=device)
    said = logits[where[:, 0], where[:, 1]].float().log_softmax(-1)
    found = said[torch.arange(len(targets), device=device), targets]
    sums = torch.zeros(len(rows), dtype=torch.float64, device=device)
    total: NDArray[np.float64] = sums.index_add(0, where[:, 0], found.double()).cpu().numpy()
    return total
