"""A tiny random model of every architecture that the pipeline must carry, and inputs for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.tiny import WORDS

if TYPE_CHECKING:
    import torch

TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VOCABULARY = 50


@dataclass(frozen=True)
class Architecture:
    """How transformers makes the model, and what it reads."""

    auto: str
    kind: str
    settings: dict[str, Any]
    inputs: Callable[[], dict[str, torch.Tensor]]


def tokens() -> dict[str, torch.Tensor]:
    """Return two rows of seven tokens."""
    import torch

    return {"input_ids": torch.randint(0, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))}


def images() -> dict[str, torch.Tensor]:
    """Return two images of 32 by 32."""
    import torch

    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))}


LLAMA = {"vocab_size": VOCABULARY, **TRANSFORMER}
ARCHITECTURES = {
    "bert": Architecture("AutoModel", "BertConfig", {"vocab_size": VOCABULARY, **TRANSFORMER}, tokens),
    "llama": Architecture(
        "AutoModelForCausalLM", "LlamaConfig", {**LLAMA, "tie_word_embeddings": True}, tokens
    ),
    "llama-untied": Architecture(
        "AutoModelForCausalLM", "LlamaConfig", {**LLAMA, "tie_word_embeddings": False}, tokens
    ),
    "mamba": Architecture(
        "AutoModelForCausalLM",
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
        tokens,
    ),
    "mamba2": Architecture(
        "AutoModelForCausalLM",
        "Mamba2Config",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "state_size": 4,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
        tokens,
    ),
    "resnet": Architecture(
        "AutoModelForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [2, 1, 2], "layer_type": "basic"},
        images,
    ),
    "resnet-bottleneck": Architecture(
        "AutoModelForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "bottleneck"},
        images,
    ),
    "convnext": Architecture(
        "AutoModelForImageClassification",
        "ConvNextConfig",
        {"num_stages": 3, "hidden_sizes": [8, 16, 32], "depths": [1, 2, 1], "layer_scale_init_value": 1.0},
        images,
    ),
    "vit": Architecture(
        "AutoModelForImageClassification",
        "ViTConfig",
        {**TRANSFORMER, "image_size": 32, "patch_size": 16},
        images,
    ),
}


def tiny_model(architecture: str, seed: int = 0) -> Any:
    """Return a random model, in eval mode."""
    import torch
    import transformers

    made = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    config = getattr(transformers, made.kind)(**made.settings)
    return getattr(transformers, made.auto).from_config(config).eval()


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_base(architecture: str, folder: Path) -> Path:
    """Write a tiny random model of an architecture, with what it needs to read texts or images, once."""
    import torch
    import transformers

    target = folder / architecture
    if target.exists():
        return target
    made = ARCHITECTURES[architecture]
    settings = dict(made.settings)
    if made.inputs is tokens:
        tokenizer = word_tokenizer()
        settings["vocab_size"] = len(tokenizer)
        tokenizer.save_pretrained(target)
    torch.manual_seed(0)
    config = getattr(transformers, made.kind)(**settings)
    getattr(transformers, made.auto).from_config(config).save_pretrained(target)
    if made.inputs is images:
        described = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (target / "preprocessor_config.json").write_text(json.dumps(described))
    return target


def word_tokenizer() -> Any:
    """Return a word-level tokenizer with an end token and a chat template that marks no generation."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<pad>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = [*special, *WORDS, *"0123456789", "user", "assistant", "system", "\n", "hello", "yes", "no"]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(dict.fromkeys(words))}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|im_end|>",
        bos_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=64,
    )
