"""Model folders: what is saved comes back, what is mixed is mixed, and a text's vector is its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizerFast, RobertaConfig, RobertaModel

from tasks.errors import StageError
from tasks.families import load_model
from tasks.families.interface import interpolate
from tasks.families.text_classification import TextClassifier
from tasks.files import folder_fingerprint
from tasks.models import Encoder, load_encoder, weights_fingerprint
from tasks.training.batches import length_batches
from tests.tiny import make_tiny_base, tiny_classifier

TEXTS = ["good", "the phone was not very good after a week", "bad film", "it works and the screen is great"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def encoder(base: Path) -> Encoder:
    return load_encoder(base, "cpu")


def classifier(base: Path, seed: int) -> TextClassifier:
    return tiny_classifier(base, seed=seed)


def test_a_vector_does_not_depend_on_its_neighbours(encoder: Encoder) -> None:
    alone = np.vstack([encoder.encode([text]) for text in TEXTS])
    together = encoder.encode(TEXTS)
    assert np.abs(alone - together).max() < 1e-5
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert together.shape == (4, 32)
    assert encoder.encode([]).shape == (0, 32)


def test_pooling_is_the_mean_over_real_tokens(encoder: Encoder) -> None:
    tokens = encoder.tokens(TEXTS, 64)
    with torch.inference_mode():
        pooled = encoder.pool(tokens)
        hidden = encoder.backbone(**encoder.collate(tokens)).last_hidden_state
    assert len(tokens[0]) < hidden.shape[1], "the first text is padded"
    assert torch.allclose(pooled[0], hidden[0, : len(tokens[0])].mean(0), atol=1e-6)


def pooled_by(base: Path, folder: Path, document: dict[str, object]) -> Path:
    shutil.copytree(base, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 0),
        ({"pooling_mode": "cls"}, 0),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, -1),
        ({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}, None),
    ],
)
def test_a_sentence_vector_is_made_as_the_base_was_published(
    base: Path, tmp_path: Path, document: dict[str, object], place: int | None
) -> None:
    encoder = load_encoder(pooled_by(base, tmp_path / "base", document), "cpu")
    tokens = encoder.tokens(TEXTS, 64)
    packing = encoder.find_packing()
    assert packing is not None
    with torch.inference_mode():
        alone = [encoder.backbone(**encoder.collate([row])).last_hidden_state[0] for row in tokens]
        expected = torch.stack([hidden.mean(0) if place is None else hidden[place] for hidden in alone])
        padded = encoder.pool(tokens)
        with encoder.packed(packing):
            encoder.backbone.train()
            for module in encoder.backbone.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            packed = encoder.pool(tokens)
    assert torch.allclose(padded, expected, atol=1e-5)
    assert torch.allclose(packed, expected, atol=1e-5)
    encoder.save(tmp_path / "saved")
    saved = load_encoder(tmp_path / "saved", "cpu")
    assert (saved.pooling, saved.reading) == (encoder.pooling, encoder.reading)


def test_what_the_pooling_is_not_known_for_is_refused_and_what_follows_it_is_said(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, document in enumerate(({"pooling_mode": "max"}, {"pooling_mode_weightedmean_tokens": True})):
        with pytest.raises(StageError, match="known here are mean, cls, lasttoken"):
            load_encoder(pooled_by(base, tmp_path / str(number), document), "cpu")
    folder = pooled_by(base, tmp_path / "dense", {"pooling_mode": "mean"})
    kinds = ["Transformer", "Pooling", "Dense", "Normalize"]
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    load_encoder(folder, "cpu")
    assert "Dense is not read" in caplog.text


def test_batches_hold_each_row_once_within_the_token_limit() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 500)
    batches = list(length_batches(lengths, 1000))
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    assert all(lengths[rows].max() * len(rows) <= 1000 for rows in batches)


def test_a_text_longer_than_a_batch_is_still_embedded() -> None:
    assert [rows.tolist() for rows in length_batches(np.array([5000, 3]), 1000)] == [[0], [1]]


def test_tokens_are_cut_only_when_asked(encoder: Encoder) -> None:
    texts = [*TEXTS, "good " * 300]
    assert len(encoder.tokens(texts)[-1]) == 302
    assert len(encoder.tokens(texts, 16)[-1]) == 16
    assert encoder.tokens([]) == []


def test_what_is_saved_comes_back_bit_for_bit(base: Path, tmp_path: Path) -> None:
    made = classifier(base, 1)
    made.save(tmp_path / "model")
    read = load_model(tmp_path / "model", "cpu")
    assert all(
        torch.equal(value, read.network.state_dict()[name])
        for name, value in made.network.state_dict().items()
    )
    assert (list(read.labels), read.max_length) == (["negative", "positive"], 16)
    assert np.array_equal(made.logits(TEXTS), read.logits(TEXTS))
    first = folder_fingerprint(tmp_path / "model")
    read.save(tmp_path / "model")
    assert folder_fingerprint(tmp_path / "model") == first
    assert not list(tmp_path.glob(".model.*"))


def test_alpha_zero_is_the_start_one_is_the_tuned_and_half_the_mean(base: Path) -> None:
    start, tuned = classifier(base, 1), classifier(base, 2)
    for alpha, end in ((0.0, start), (1.0, tuned)):
        mixed = interpolate(start, tuned, alpha).network.state_dict()
        assert all(torch.equal(mixed[name], value) for name, value in end.network.state_dict().items())
    half = interpolate(start, tuned, 0.5).network.state_dict()
    for name, value in half.items():
        if value.is_floating_point():
            assert torch.allclose(
                value, (start.network.state_dict()[name] + tuned.network.state_dict()[name]) / 2, atol=1e-6
            )
    assert not torch.equal(
        start.network.state_dict()["head.weight"], tuned.network.state_dict()["head.weight"]
    ), "the ends are as they were"


def test_models_of_other_shape_do_not_mix(base: Path, tmp_path: Path) -> None:
    tuned = classifier(base, 1)
    tuned.backbone.add_module("more", torch.nn.Linear(2, 2))
    with pytest.raises(StageError, match="differ in shape"):
        interpolate(classifier(base, 1), tuned, 0.5)


def test_where_tuning_started_is_the_base_with_the_probe(base: Path, tmp_path: Path) -> None:
    tuned = classifier(base, 3)
    probe = {"weight": torch.ones(2, 32), "bias": torch.zeros(2)}
    tuned.start_head = probe
    tuned.save(tmp_path / "tuned")
    start = TextClassifier.load_start(base, tmp_path / "tuned", "cpu")
    assert torch.equal(start.head.weight, probe["weight"])
    assert weights_fingerprint(start.backbone) == weights_fingerprint(load_encoder(base, "cpu").backbone)
    assert weights_fingerprint(start.backbone) != weights_fingerprint(tuned.backbone)


def test_folders_that_are_no_models_say_so(base: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"no task\.json: it is a base model"):
        load_model(base, "cpu")
    with pytest.raises(StageError, match="no usable model folder"):
        load_encoder(tmp_path, "cpu")
    made = classifier(base, 1)
    made.save(tmp_path / "model")
    description = tmp_path / "model" / "task.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "labels": ["one"]}))
    with pytest.raises(StageError, match=r"2 classes but task\.json has 1 labels"):
        load_model(tmp_path / "model", "cpu")


def damaged(base: Path, folder: Path, *, drop: str = "", **config: object) -> Path:
    """Copy the base without the weights whose names begin with `drop`, and with another configuration."""
    shutil.copytree(base, folder)
    weights = load_file(base / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not drop or not name.startswith(drop)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, **config}))
    return folder


def test_a_base_without_a_pooler_is_the_same_each_time(base: Path, tmp_path: Path) -> None:
    folder = damaged(base, tmp_path / "bare", drop="pooler.")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = weights_fingerprint(load_encoder(folder, "cpu").backbone)
    assert torch.equal(torch.get_rng_state(), state), (
        "loading draws no random number that training would miss"
    )
    torch.manual_seed(2)
    assert weights_fingerprint(load_encoder(folder, "cpu").backbone) == first


def test_no_weight_is_made_up(base: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"lacks 16 of the weights .* encoder\.layer\.1\..* would be random"):
        load_encoder(damaged(base, tmp_path / "less", drop="encoder.layer.1."), "cpu")
    with pytest.raises(StageError, match=r"lacks 16 of the weights"):
        load_encoder(damaged(base, tmp_path / "more", num_hidden_layers=3), "cpu")
    with pytest.raises(StageError, match=r"the weights do not fit its config\.json"):
        load_encoder(damaged(base, tmp_path / "other", hidden_size=64), "cpu")


def test_no_tokenizer_is_made_up(base: Path, tmp_path: Path) -> None:
    folder = damaged(base, tmp_path / "bare")
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(StageError, match=r"has no tokenizer \(tokenizer\.json.*was the copy complete"):
        load_encoder(folder, "cpu")


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", None])
def test_weights_that_are_not_whole_say_so(base: Path, tmp_path: Path, content: bytes | None) -> None:
    folder = damaged(base, tmp_path / "half")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content or whole[:-100])
    with pytest.raises(StageError, match="half is no usable model folder"):
        load_encoder(folder, "cpu")


@pytest.mark.parametrize(
    ("file", "content"), [("head.safetensors", b"x"), ("task.json", b"{"), ("head.safetensors", None)]
)
def test_a_damaged_head_says_so(base: Path, tmp_path: Path, file: str, content: bytes | None) -> None:
    classifier(base, 1).save(tmp_path / "model")
    (tmp_path / "model" / file).unlink()
    if content:
        (tmp_path / "model" / file).write_bytes(content)
    with pytest.raises(StageError, match=r"model is a damaged (classifier|model)"):
        load_model(tmp_path / "model", "cpu")


def test_a_text_is_cut_where_the_tokenizer_says_it_ends(base: Path, tmp_path: Path) -> None:
    """RoBERTa counts positions from its padding's index on, so two of them are never used."""
    config = RobertaConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=66, pad_token_id=1, type_vocab_size=1,
    )  # fmt: skip
    tokenizer = BertTokenizerFast(vocab=str(base / "vocab.txt"), model_max_length=64)
    encoder = Encoder(RobertaModel(config).eval(), tokenizer, "cpu")
    assert encoder.limit == 64
    assert np.isfinite(encoder.encode(["good " * 100], max_length=512)).all()
