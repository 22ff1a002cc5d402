"""Tiny models for tests: the shape of the real thing, made in a second, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.families.text_classification import TextClassifier

WORDS = (
    "good great fine happy love excellent bad poor awful sad hate terrible the a is was it this that product "
    "battery screen works broke after week day not very quite really phone camera sound book film story and "
    "or but with for of to in on question answer article title law right state court citizen one two"
).split()


def make_tiny_base(folder: Path, seed: int = 0, kind: str = "BertModel", dropout: float = 0.1) -> Path:
    """Write a random BERT (2 layers, hidden size 32; `kind` has a head) with a word-piece tokenizer to `folder`."""
    import torch
    import transformers
    from transformers import BertConfig, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789.,!?'-")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters), *WORDS]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(dict.fromkeys(pieces)) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(vocabulary), model_max_length=64)
    if tokenizer.unk_token_id in tokenizer(" ".join(WORDS))["input_ids"]:
        raise ValueError(
            "the tiny tokenizer does not know the words of the tests: every text would read the same"
        )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    getattr(transformers, kind)(config).save_pretrained(folder)
    return folder


def tiny_classifier(
    base: Path, *, seed: int = 0, labels: tuple[str, ...] = ("negative", "positive"), max_length: int = 16
) -> TextClassifier:
    """Return a classifier on a tiny base with a random head; a seed above 0 also moves the encoder's weights."""
    import torch

    from tasks.families.text_classification import TextClassifier
    from tasks.models import load_encoder

    encoder = load_encoder(base, "cpu")
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01 * seed)
    return TextClassifier(encoder, torch.nn.Linear(32, len(labels)), list(labels), max_length)
