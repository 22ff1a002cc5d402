"""Count the tokens of rows as the base model would read them, nothing cut."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import DataError
from tasks.paths import Paths
from tasks.reports import Base, read_report
from tasks.validation.columns import CountTokens

if TYPE_CHECKING:
    import pandas as pd

TEXT_COLUMNS = ("text", "positive", "negative")
PIECE_CHARACTERS = 100_000
"""A longer text is cut at spaces and counted in pieces, so that one of many megabytes does not fill the memory; the count
is then right to a few tokens a piece."""
PIECES_AT_ONCE = 1_000


def token_counter(task: str, paths: Paths) -> CountTokens:
    """Return what counts the tokens of rows: of a conversation by the chat template, of pairs the longest text.

    Raises:
        DataError: the rows are images.
        StageError: the base has no usable tokenizer.
    """
    if task == "image-classification":
        raise DataError("Images have no tokens: remove validate.max_tokens and expectations on `tokens`.")
    from tasks.sources import base_folder

    folder = base_folder(read_report(paths.base, Base), paths.root)
    backend = _backend(folder)

    def count(rows: pd.DataFrame) -> list[int | None]:
        if "messages" in rows:
            tokenizer = _with_template(folder)
            return [_of_conversation(tokenizer, content) for content in rows["messages"]]
        columns = [_of_texts(backend, rows[name].tolist()) for name in TEXT_COLUMNS if name in rows]
        return [
            max((length for length in lengths if length is not None), default=None)
            for lengths in zip(*columns, strict=True)
        ]

    return count


def _backend(folder: Path) -> Any:
    """Return the tokenizer itself, from its one file where there is one: that takes no transformers and no torch."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    backend = Tokenizer.from_file(str(file)) if file.is_file() else _with_template(folder).backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


@functools.cache
def _with_template(folder: Path) -> Any:
    from tasks.models import load_tokenizer

    return load_tokenizer(folder)


def _of_conversation(tokenizer: Any, content: str) -> int:
    from tasks.families.chat import tokenize_chat

    return len(tokenize_chat(tokenizer, json.loads(content), 1 << 30).ids)


def _of_texts(backend: Any, texts: list[Any]) -> list[int | None]:
    """Return the tokens of each text, special tokens among them; None for a null."""
    pieces, owners = [], []
    for row, text in enumerate(texts):
        if isinstance(text, str):
            cut = _pieces(text)
            pieces += cut
            owners += [row] * len(cut)
    special = backend.num_special_tokens_to_add(False)
    lengths: list[int | None] = [special if isinstance(text, str) else None for text in texts]
    for start in range(0, len(pieces), PIECES_AT_ONCE):
        encoded = backend.encode_batch_fast(pieces[start : start + PIECES_AT_ONCE], add_special_tokens=False)
        for row, found in zip(owners[start : start + PIECES_AT_ONCE], encoded, strict=True):
            lengths[row] = (lengths[row] or 0) + len(found)
    return lengths


def _pieces(text: str) -> list[str]:
    pieces = []
    while len(text) > PIECE_CHARACTERS:
        space = text.rfind(" ", 1, PIECE_CHARACTERS)
        end = space if space > 0 else PIECE_CHARACTERS
        pieces.append(text[:end])
        text = text[end:]
    return [*pieces, text]
