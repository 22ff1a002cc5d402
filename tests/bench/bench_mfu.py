"""Model FLOPs utilisation on the CUDA device that is there: `make bench-mfu`.

A model of Llama-3.2-1B's shape with random weights is trained by the pipeline's own `Trainer`, in bf16: all weights, and
by LoRA; on full rows, and on rows of mixed lengths, which lie in packs in which attention stays within a row.
Utilisation is the floating-point operations that the mathematics needs in a second, as a share of the device's peak: 6 a
parameter and token for full fine-tuning, 4 for LoRA (the frozen weights need no gradients), input embeddings not counted
because they are looked up, the vocabulary head counted; attention adds 6 · layers · width · length a token, half of what
it would be if tokens looked ahead, by the length of the token's own row. What is computed twice counts once. Memory is
the most that torch had in use during one measurement.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from tasks.families.causal_lm import CausalLM
from tasks.recipe import Finetune
from tasks.training.adapters import add_adapters
from tasks.training.loop import Trainer, peak_gigabytes
from tests.bench.figures import Figure, publish
from tests.tiny import WORDS
from tests.tiny_lm import tiny_tokenizer

PEAK_TFLOPS = {
    "B200": 2250.0, "H200": 989.4, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.4, "A100": 312.0, "L40S": 362.1,
    "L4": 121.0, "A10G": 70.0, "A10": 125.0, "A30": 165.0, "RTX 4090": 165.2, "RTX 3090": 71.0,
}  # fmt: skip
"""Dense bf16 with float32 accumulation, from NVIDIA's data sheets; the longest name that fits counts."""
SHAPE = {
    "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 8192, "vocab_size": 128_256, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
SECTION: dict[str, Any] = {
    "learning_rate": 1e-5, "epochs": 1, "warmup_share": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": 7,
    "checkpoint_every": 10**9,
}  # fmt: skip
LORA = {"rank": 16, "alpha": 32.0}
TOKENS_A_STEP = 65_536
SHORTEST = 8
"""Rows of mixed lengths are evenly spread from the longest divided by this up to the longest."""
TOKENS_A_WORD = 1.5
"""About, of the tokenizer."""
STEPS, WARM = 10, 3
GOAL = 0.5


@dataclass(frozen=True)
class Speed:
    """How fast a model trained."""

    tokens_a_second: float
    flops_a_token: float
    gigabytes: float
    packed: bool
    """Whether rows were read one after the other, without padding."""

    @property
    def tflops(self) -> float:
        """Useful operations a second, in 10¹²."""
        return self.tokens_a_second * self.flops_a_token / 1e12


def main() -> None:
    """Measure, print and write `benchmarks/mfu.json`."""
    if not torch.cuda.is_available():
        sys.exit("bench-mfu measures a CUDA device, and torch sees none here.")
    device = torch.cuda.get_device_name()
    peak = peak_tflops(device)
    figures = []
    for method in ("full", "lora"):
        for length, mixed in ((2048, False), (4096, False), (4096, True)):
            rows = TOKENS_A_STEP // length * (2 if mixed else 1)
            name = f"{method}, rows of {'up to ' if mixed else ''}{length}"
            print(f"{device}: {name}: {STEPS} steps of {rows} rows", flush=True)
            speed = measure(SHAPE, method, length, rows, STEPS, "cuda", "bf16", mixed=mixed)
            share, goal = speed.tflops / peak, GOAL if method == "full" else None
            name = f"{name}, {'packed' if speed.packed else 'padded'}"
            figures += [
                Figure(f"{device}: MFU, {name}", share, "share", STEPS - WARM,
                       goal=f">= {GOAL}" if goal else None, met=share >= goal if goal else None),
                Figure(f"{device}: {name}", speed.tokens_a_second, "tokens/s", STEPS - WARM),
                Figure(f"{device}: {name}, memory", speed.gigabytes, "GB", 1),
            ]  # fmt: skip
    publish("mfu", figures, ("torch", "transformers", "peft"))


def peak_tflops(device: str) -> float:
    """Return a device's peak in bf16, 10¹² operations a second; ends the program where it is not known."""
    found = [name for name in PEAK_TFLOPS if name in device]
    if not found:
        sys.exit(f"The peak of {device!r} is not known: add it to PEAK_TFLOPS in {__file__}.")
    return PEAK_TFLOPS[max(found, key=len)]


def flops_a_token(network: Any, length: float, method: str, *, causal: bool = True) -> float:
    """Return the operations that training needs for a token in rows of `length` tokens; adapters are not counted."""
    config, embedding = network.config, network.get_input_embeddings().weight
    tied = network.get_output_embeddings().weight is embedding
    parameters = sum(value.numel() for name, value in network.named_parameters() if "lora_" not in name)
    parameters -= 0 if tied else embedding.numel()
    width = config.num_attention_heads * getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )
    attention = 12 * config.num_hidden_layers * width * length
    return (4 if method == "lora" else 6) * parameters + attention / (2 if causal else 1)


def measure(
    shape: dict[str, Any],
    method: str,
    length: int,
    rows: int,
    steps: int,
    device: str,
    precision: str,
    *,
    mixed: bool = False,
) -> Speed:
    """Train a model of random weights for some steps of `rows` rows, full or `mixed`, and say how fast it was."""
    forget_the_last()
    model = _model(shape, length, device, precision)
    given = {**SECTION, "method": method, "batch_size": rows, "max_length": length, "precision": precision}
    section = Finetune.model_validate(given | ({"lora": LORA} if method == "lora" else {}))
    if section.lora is not None:
        add_adapters(model.backbone, **section.lora.model_dump(), seed=section.seed)
    spread = np.linspace(length / SHORTEST, length, rows * steps) / TOKENS_A_WORD
    words = spread.astype(int) if mixed else np.full(rows * steps, length)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, section, _texts(words), _texts(np.array([8])), Path(folder))
        made = _timed(trainer)[min(WARM, steps - 1) :]
    lengths = np.concatenate([row_lengths for _, row_lengths in made]).astype(float)
    # Attention of a row grows with the square of its length, so that its tokens count by their own row's.
    usual = float((lengths**2).sum() / lengths.sum())
    return Speed(
        float(lengths.sum()) / sum(seconds for seconds, _ in made),
        flops_a_token(model.network, usual, method),
        peak_gigabytes(),
        trainer.packing is not None,
    )


def forget_the_last() -> None:
    """Free what an earlier model still holds, by references in a circle, and count the peak of memory from here on."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _timed(trainer: Trainer) -> list[tuple[float, Any]]:
    """Train to the end; return the seconds of each step, the device's work included, and the lengths of its rows."""
    found, made = [], trainer._step

    def step(batch: Any, original: Any) -> float:
        started = time.perf_counter()
        loss = made(batch, original)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append((time.perf_counter() - started, trainer.examples.lengths[batch]))
        return loss

    trainer._step = step  # type: ignore[method-assign]
    trainer.fit()
    return found


def _model(shape: dict[str, Any], length: int, device: str, precision: str) -> CausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    with torch.device(device):
        network = LlamaForCausalLM(LlamaConfig(**shape, use_cache=False, pad_token_id=tokenizer.pad_token_id))
    return CausalLM(network, tokenizer, device, precision, max_length=length)


def _texts(words: Any) -> pd.DataFrame:
    """Return a row for each number of words, of at least as many tokens, each of its own words."""
    generator = np.random.default_rng(7)
    texts = [" ".join(generator.choice(WORDS, count)) for count in words]
    return pd.DataFrame({"id": [f"r{n}" for n in range(len(texts))], "text": texts})


if __name__ == "__main__":
    main()
