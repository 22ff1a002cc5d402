"""The arithmetic of model FLOPs utilisation is what a counter counts, and its script trains with the product's loop."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.bench.bench_mfu import PEAK_TFLOPS, flops_a_token, forget_the_last, main, measure, peak_tflops

TINY = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "vocab_size": 400, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_that_a_counter_counts(tied: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**TINY, tie_word_embeddings=tied, use_cache=False)
    config._attn_implementation = "eager"
    network = LlamaForCausalLM(config)
    ids = torch.randint(0, 400, (2, 48))
    with FlopCounterMode(display=False) as counter:
        network(input_ids=ids, labels=ids).loss.backward()
    said = flops_a_token(network, 48, "full", causal=False) * ids.numel()
    assert said == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_script_trains_and_tells_its_speed(method: str) -> None:
    speed = measure(TINY, method, 32, 2, 3, "cpu", "fp32")
    assert speed.tokens_a_second > 0
    assert speed.tflops == pytest.approx(speed.tokens_a_second * speed.flops_a_token / 1e12)


def test_rows_of_mixed_lengths_are_read_in_packs_and_count_what_each_is_long() -> None:
    full, mixed = (measure(TINY, "full", 32, 6, 3, "cpu", "fp32", mixed=mixed) for mixed in (False, True))
    assert mixed.packed
    assert type(mixed.tflops) is float, "JSON knows no other"
    assert mixed.tflops > 0
    shorter = (full.flops_a_token - mixed.flops_a_token) / (
        6 * TINY["num_hidden_layers"] * TINY["hidden_size"]
    )
    assert 5 < shorter < 20, "a token looks back over its own row"


def test_a_measurement_begins_without_what_the_last_one_held(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        pass

    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("emptied"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))
    last = Model()
    last.itself = last  # type: ignore[attr-defined]
    alive = weakref.ref(last)
    del last
    forget_the_last()
    assert alive() is None
    assert calls == ["emptied", "reset"]


def test_a_device_is_known_by_its_longest_name_and_none_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_tflops("NVIDIA H100 80GB HBM3") == PEAK_TFLOPS["H100"]
    assert peak_tflops("NVIDIA H100 PCIe") == PEAK_TFLOPS["H100 PCIe"]
    with pytest.raises(SystemExit, match="peak of 'Abacus' is not known"):
        peak_tflops("Abacus")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="measures a CUDA device"):
        main()
