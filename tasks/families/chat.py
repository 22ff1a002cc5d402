"""Conversations as tokens: a chat template rendered once, and which of its tokens the assistant said.

Only what the assistant says carries loss, its end-of-turn token included. Templates rarely mark that, so the turns are
found by rendering the conversation up to each of them; a template that writes earlier turns differently later
on is refused, unless it marks generation itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.errors import DataError

Message = Mapping[str, str]
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
PROBE = "~probe~"
"""What stands in for a first turn of the assistant's, to see what the template writes before it."""
UNSUPERVISED = -100
"""The label of a token that carries no loss, as everywhere in the field."""


@dataclass
class Tokens:
    """A row as a language model reads it."""

    ids: list[int]
    labels: list[int]
    """The token itself where it carries loss, else `UNSUPERVISED`."""
    cut: bool
    """Whether the row was longer."""

    @property
    def supervised(self) -> int:
        """Tokens that carry loss: the first of a row is predicted by nothing."""
        return sum(label != UNSUPERVISED for label in self.labels[1:])


def tokenize_chat(tokenizer: Any, messages: Sequence[Message], max_length: int) -> Tokens:
    """Tokenize a conversation with the tokenizer's chat template; the assistant's tokens carry loss.

    Raises:
        DataError: the tokenizer has no chat template, or it cannot be told what the assistant says in it.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "The base's tokenizer has no chat template: take an instruct model, or plain text rows."
        )
    if MARKS.search(str(tokenizer.chat_template)):
        return _marked(tokenizer, messages, max_length)
    text, spans = assistant_spans(tokenizer, messages)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    labels = [
        token if any(start < end_of and end > begin for begin, end_of in spans) else UNSUPERVISED
        for token, (start, end) in zip(ids, offsets, strict=True)
    ]
    return _cut(ids, labels, max_length)


def tokenize_text(tokenizer: Any, text: str, max_length: int) -> Tokens:
    """Tokenize plain text, ended by the end-of-text token; every token carries loss."""
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    return _cut(ids, list(ids), max_length)


def assistant_spans(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation and return it with the character spans of what the assistant says, turn end included.

    Raises:
        DataError: the template does not write a conversation's beginning the same way whatever follows, or whatever the
            assistant says first.
    """
    whole = render(tokenizer, messages)
    spans = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, messages[:place], prompt=True) if place else _opening(tokenizer, messages)
        after = render(tokenizer, messages[: place + 1])
        if not (whole.startswith(before) and whole.startswith(after)):
            raise DataError(
                f"The chat template writes turn {place + 1} of {len(messages)} differently when turns follow, so what "
                "the assistant says cannot be told: put {% generation %} marks into the template."
            )
        spans.append((len(before), len(after.rstrip())))
    return whole, spans


def _opening(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return what the template writes before a first turn of the assistant's: its header, and maybe a system prompt.

    Nothing precedes that turn, and few templates can render a conversation without turns: a probe is said in it.
    """
    before, *after = render(tokenizer, [{**messages[0], "content": PROBE}]).split(PROBE)
    if len(after) != 1 or not render(tokenizer, messages[:1]).startswith(before):
        raise DataError(
            f"The assistant speaks first in a conversation of {len(messages)} turns, and where its words begin cannot be "
            "told from what the chat template writes: put {% generation %} marks into the template, or a user's turn "
            "before that one."
        )
    return before


def render(tokenizer: Any, messages: Sequence[Message], *, prompt: bool = False) -> str:
    """Return a conversation as the template writes it; with `prompt`, up to where the assistant begins to speak."""
    if not messages:
        return ""
    text: str = tokenizer.apply_chat_template(
        [dict(message) for message in messages], tokenize=False, add_generation_prompt=prompt
    )
    return text


def _marked(tokenizer: Any, messages: Sequence[Message], max_length: int) -> Tokens:
    encoded = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids = encoded["input_ids"]
    labels = [
        token if said else UNSUPERVISED for token, said in zip(ids, encoded["assistant_masks"], strict=True)
    ]
    return _cut(ids, labels, max_length)


def _cut(ids: list[int], labels: list[int], max_length: int) -> Tokens:
    return Tokens(ids[:max_length], labels[:max_length], len(ids) > max_length)
