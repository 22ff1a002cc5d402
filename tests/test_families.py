"""One contract for every family on every architecture: tokenized once, trained, saved, mixed and measured alike."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.errors import StageError
from tasks.families import family, load_model
from tasks.families.causal_lm import CausalLM
from tasks.families.interface import Model, interpolate
from tasks.forgetting.drift import drift
from tasks.models import weights_fingerprint
from tasks.recipe import UNLABELLED, Finetune
from tasks.training.loop import Trainer
from tasks.training.run import train_model
from tests.architectures import make_base
from tests.tiny_lm import tiny_lm

SECTION = {
    "method": "full", "learning_rate": 1e-3, "epochs": 2, "batch_size": 8, "warmup_share": 0.1, "weight_decay": 0.01,
    "max_grad_norm": 1.0, "max_length": 32, "precision": "fp32", "seed": 7,
}  # fmt: skip
CASES = {
    "text-classification on bert": ("text-classification", "bert", {"method": "lp-ft"}),
    "text-classification on llama": ("text-classification", "llama", {"method": "lp-ft"}),
    "text-classification on mamba": ("text-classification", "mamba", {"method": "full"}),
    "text-classification on mamba-2": ("text-classification", "mamba2", {"method": "full"}),
    "several labels on bert": ("several", "bert", {"method": "lp-ft", "class_weights": "balanced"}),
    "several labels on llama": ("several", "llama", {"method": "full"}),
    "causal-lm on llama": ("causal-lm", "llama", {}),
    "causal-lm on llama-untied": ("causal-lm", "llama-untied", {}),
    "causal-lm on mamba": ("causal-lm", "mamba", {}),
    "causal-lm on mamba-2": ("causal-lm", "mamba2", {}),
    "chat on llama": ("chat", "llama", {}),
    "sentence-embedding on bert": ("sentence-embedding", "bert", {"loss": "supervised-contrastive"}),
    "pairs on bert": ("pairs", "bert", {"loss": "multiple-negatives"}),
    "triplets on bert": ("triplets", "bert", {"loss": "triplet"}),
    "scores on bert": ("scores", "bert", {"loss": "cosine"}),
    "image-classification on resnet": (
        "image-classification",
        "resnet",
        {"method": "lp-ft", "augment": ["crop"]},
    ),
    "image-classification on convnext": ("image-classification", "convnext", {"method": "lp-ft"}),
    "image-classification on vit": ("image-classification", "vit", {"method": "lp-ft"}),
}
TASKS = {
    "several": "text-classification",
    "chat": "causal-lm",
    "pairs": "sentence-embedding",
    "triplets": "sentence-embedding",
    "scores": "sentence-embedding",
}
ADAPTERS = {"method": "lora", "lora": {"rank": 2, "alpha": 4.0}, "learning_rate": 3e-2}
CASES |= {
    "low-rank adapters on bert": ("text-classification", "bert", ADAPTERS),
    "low-rank adapters on llama": ("chat", "llama", ADAPTERS),
    "DoRA on vit": (
        "image-classification",
        "vit",
        {**ADAPTERS, "lora": {"rank": 2, "alpha": 4.0, "variant": "dora"}},
    ),
    "norms of convnext": ("image-classification", "convnext", {"method": "norms"}),
    "biases of bert": ("text-classification", "bert", {"method": "biases"}),
}
KEPT = {"replay_share": 0.25, "l2_sp": 0.1, "distill": 0.5, "batch_size": 8}
CASES |= {
    "everything kept on bert": ("text-classification", "bert", {"method": "lp-ft", "ewc": 1.0, **KEPT}),
    "everything kept on llama": ("chat", "llama", {"ewc": 1.0, **KEPT}),
    "everything kept on resnet": ("image-classification", "resnet", {"ewc": 1.0, **KEPT}),
    "everything kept of pairs": ("pairs", "bert", {"loss": "multiple-negatives", **KEPT}),
}
GOOD, BAD = "good great fine happy love".split(), "bad poor awful sad hate".split()


def rows(kind: str, count: int, seed: int = 0) -> pd.DataFrame:
    """Return rows in the canonical form, whose label (or next turn) shows in their content."""
    generator = np.random.default_rng(seed)
    label = np.arange(count) % 2
    words = [str(generator.choice(GOOD if one else BAD)) for one in label]
    texts = [f"the phone was {word} after day {n % 7}" for n, word in enumerate(words)]
    table = pd.DataFrame(
        {"id": [f"r{n}" for n in range(count)], "text": texts, "group": [f"g{n}" for n in range(count)]}
    )
    if kind == "chat":
        turns = [
            [
                {"role": "user", "content": text},
                {"role": "assistant", "content": "love it" if one else "hate it"},
            ]
            for text, one in zip(texts, label, strict=True)
        ]
        return table.assign(messages=[json.dumps(turn) for turn in turns])
    if kind in ("pairs", "triplets", "scores"):
        table["positive"] = [
            f"this is {generator.choice(GOOD if one else BAD)} {n % 7}" for n, one in enumerate(label)
        ]
        if kind == "triplets":
            table["negative"] = [f"this is {generator.choice(BAD if one else GOOD)}" for one in label]
        if kind == "scores":
            table["score"] = generator.uniform(0, 1, count)
        return table
    if kind == "causal-lm":
        return table
    if kind == "image-classification":
        table["image"] = [picture(bool(one), generator) for one in label]
    if kind == "several":  # the first label shows in the words, the second in the day; some rows have neither
        lists = [[0] * int(one) + [1] * (n % 7 > 3) for n, one in enumerate(label)]
        return table.assign(label=pd.Series(lists, dtype=object))
    return table.assign(label=label)


def picture(bright: bool, generator: np.random.Generator) -> bytes:
    """Return a PNG of 32 by 32 noise, bright or dark."""
    from PIL import Image

    noise = generator.integers(0, 120, (32, 32, 3)) + (120 if bright else 0)
    written = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).save(written, "PNG")
    return written.getvalue()


def begun(kind: str, base: Path, **more: object) -> tuple[Model, Finetune]:
    section = Finetune.model_validate({**SECTION, **more})
    labelled = kind in ("text-classification", "several", "image-classification", "sentence-embedding")
    labels = ["negative", "positive"] if labelled else []
    torch.manual_seed(section.seed)
    task = TASKS.get(kind, kind)
    return family(task).begin(base, section, labels, rows(kind, 48), rows(kind, 16, 1), "cpu"), section


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.mark.parametrize("case", CASES)
def test_every_family_trains_saves_mixes_and_measures(case: str, bases: Path, tmp_path: Path) -> None:
    kind, architecture, more = CASES[case]
    base = make_base(architecture, bases)
    model, section = begun(kind, base, **more)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    statistics = [name for name, _ in model.network.named_buffers() if "running" in name]
    assert bool(statistics) == (architecture == "resnet")
    untrained = model.measure(rows(kind, 48)).loss
    original = rows(kind, 10, 3) if section.replay_share else None
    trained = train_model(model, section, rows(kind, 48), rows(kind, 16, 1), tmp_path / "scratch", original)
    assert trained.progress.step == (16 if section.replay_share else 12), "six new rows of eight, with replay"
    after = model.network.state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    for name in statistics:
        assert torch.equal(before[name], after[name]), (
            "BatchNorm's statistics stay: mixtures need none of their own"
        )
    if (
        section.loss is None
        and not section.replay_share
        and (model.task == "causal-lm" or section.method in ("full", "lp-ft"))
    ):
        assert model.measure(rows(kind, 48)).loss < untrained

    held = rows(kind, 16, 2)
    read = _saved_and_read_again(model, tmp_path / "tuned", held)
    start = family(model.task).load_start(base, tmp_path / "tuned", "cpu")
    assert weights_fingerprint(start.backbone) != weights_fingerprint(model.backbone)
    assert weights_fingerprint(start.backbone) == weights_fingerprint(
        family(model.task).load_base(base, "cpu").backbone
    ), "α = 0 is the base"
    half = interpolate(start, read, 0.5)
    half.settle(rows(kind, 48))
    first, last = start.network.state_dict(), read.network.state_dict()
    for name, parameter in half.network.named_parameters():
        assert torch.allclose(parameter, (first[name] + last[name]) / 2, atol=1e-6), name
    assert np.isfinite(half.measure(held).outcomes).all()
    _moves(start, read, held)
    assert start.measure(rows(kind, 16, 1)).score == pytest.approx(model.start_score, abs=1e-6)


def _saved_and_read_again(model: Model, folder: Path, held: pd.DataFrame) -> Model:
    model.save(folder)
    read = load_model(folder, "cpu")
    measured = model.measure(held)
    assert measured.outcomes.shape == measured.losses.shape == (len(held),)
    assert np.isfinite(measured.outcomes).all()
    assert np.allclose(read.measure(held).outcomes, measured.outcomes, atol=1e-6)
    assert weights_fingerprint(read.backbone) == weights_fingerprint(model.backbone)
    return read


def _moves(start: Model, tuned: Model, held: pd.DataFrame) -> None:
    moved, still = (drift("tuned", start, model, held, held) for model in (tuned, start))
    assert moved.layers
    assert max(layer.weights for layer in moved.layers) > 0 == max(layer.weights for layer in still.layers)
    alike = [layer.task for layer in still.layers if layer.task is not None]
    assert alike == pytest.approx([1.0] * len(alike))
    assert len(alike) >= 1
    assert moved.task_kl == moved.original_kl
    if start.task == "sentence-embedding":
        assert moved.task_kl is None
    else:
        assert moved.task_kl is not None
        assert moved.task_kl > 0 == pytest.approx(still.task_kl, abs=1e-6)


def test_the_nats_of_a_row_are_what_measure_averages_and_a_cut_row_has_none(bases: Path) -> None:
    model, _ = begun("chat", make_base("llama", bases))
    assert isinstance(model, CausalLM)
    table = rows("chat", 6)
    nats, tokens = model.nats(table, 32).T
    np.testing.assert_allclose(nats / tokens, model.measure(table).losses, rtol=1e-5)
    assert tokens.tolist() == [3] * 6, "love it <|im_end|>"
    assert (model.nats(table, 5) == 0).all()


@pytest.mark.parametrize("architecture", ["bert", "llama", "mamba", "mamba2", "resnet", "convnext", "vit"])
def test_a_base_embeds_each_content_by_itself(architecture: str, bases: Path) -> None:
    kind = "image-classification" if architecture in ("resnet", "convnext", "vit") else "text-classification"
    task = "causal-lm" if architecture in ("llama", "mamba", "mamba2") else kind
    embedder = family(task).load_base(make_base(architecture, bases), "cpu")
    table = rows(kind, 6)
    contents = table["image" if "image" in table else "text"].tolist()
    together = embedder.encode(contents)
    alone = np.vstack([embedder.encode([content]) for content in contents])
    assert np.abs(together - alone).max() < 1e-5
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert embedder.encode([]).shape == (0, together.shape[1])


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("text-classification", "bert"), ("image-classification", "resnet"), ("sentence-embedding", "bert")],
)
def test_rows_without_a_label_are_replayed_to_keep_what_the_base_makes_of_them(
    kind: str, architecture: str, bases: Path, tmp_path: Path
) -> None:
    unknown = rows(kind, 24, 3).assign(label=UNLABELLED)
    content = unknown["image" if "image" in unknown else "text"].tolist()
    settings: dict[str, object] = {"loss": "supervised-contrastive"} if kind == "sentence-embedding" else {}
    settings |= {"epochs": 3, "batch_size": 8, "replay_share": 0.5}
    drift = {}
    for distill in (0.0, 50.0):
        model, section = begun(kind, make_base(architecture, bases), **settings, distill=distill)
        before = model.encode(content)
        assert model.loss(model.examples(unknown), np.arange(24)).item() == 0, "they have no label to learn"
        train_model(model, section, rows(kind, 48), rows(kind, 16, 1), tmp_path / str(distill), unknown)
        drift[distill] = float(1 - (before * model.encode(content)).sum(axis=1).mean())
    assert drift[50.0] < 0.5 * drift[0.0]


def test_micro_batches_do_not_change_what_a_language_model_learns(bases: Path, tmp_path: Path) -> None:
    """The gradient of a step is the mean over supervised tokens of the whole batch, whatever fits into memory."""

    def gradient(tokens: int) -> torch.Tensor:
        model, section = begun("chat", make_base("llama", bases))
        made = Trainer(model, section, rows("chat", 48), rows("chat", 16, 1), tmp_path / str(tokens))
        made.progress.micro_tokens = tokens
        made.model.train_mode()
        made._backward(np.arange(8), np.arange(0))
        return torch.cat([parameter.grad.flatten() for parameter in made.network.parameters()])

    assert torch.allclose(gradient(16_384), gradient(20), atol=1e-6)


def test_a_language_model_that_caps_its_logits_is_refused(tmp_path: Path) -> None:
    tiny_lm("gemma2", final_logit_softcapping=30.0).save_pretrained(tmp_path)
    with pytest.raises(StageError, match=r"gemma2 changes its logits .*final_logit_softcapping"):
        CausalLM.load_base(tmp_path, "cpu")
