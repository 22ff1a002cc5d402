"""Long documents: read in overlapping windows whose logits are averaged, or cut, and then said to be cut."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.errors import ConfigError
from tasks.families.text_classification import TextClassifier
from tasks.recipe import Finetune
from tests.tiny import make_tiny_base, tiny_classifier

LENGTH, OVERLAP = 16, 4
WORDS = ["good", "bad", "phone", "camera", "story", "love", "awful"]
LONG = " ".join(WORDS[place * 3 % len(WORDS)] for place in range(43))
SHORT = "the phone was good"


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> TextClassifier:
    model = tiny_classifier(make_tiny_base(tmp_path_factory.mktemp("windows") / "base"), max_length=LENGTH)
    model.network.eval()
    return model


@pytest.fixture(scope="module")
def reads_on(cuts: TextClassifier) -> TextClassifier:
    return replace(cuts, overlap=OVERLAP)


def table(*texts: str) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"r{n}" for n in range(len(texts))], "text": list(texts)})


def test_windows_hold_every_token_and_share_the_overlap(reads_on: TextClassifier) -> None:
    examples = reads_on.examples(table(LONG, SHORT))
    windows, whole = examples.content.tokens[0], reads_on.encoder.tokens([LONG])[0]
    inner = [window[1:-1] for window in windows]
    assert len(windows) > 2
    assert max(map(len, windows)) <= LENGTH
    assert {(window[0], window[-1]) for window in windows} == {(whole[0], whole[-1])}, (
        "each begins and ends as a text"
    )
    joined = list(inner[0])
    for before, after in itertools.pairwise(inner):
        assert before[-OVERLAP:] == after[:OVERLAP]
        joined += after[OVERLAP:]
    assert joined == whole[1:-1]
    assert len(examples.content.tokens[1]) == 1
    assert examples.truncated == 0
    assert examples.lengths.tolist() == [sum(map(len, windows)), len(examples.content.tokens[1][0])]


def test_the_logits_of_a_document_are_the_mean_of_its_windows(
    cuts: TextClassifier, reads_on: TextClassifier
) -> None:
    windows = reads_on.examples(table(LONG)).content.tokens[0]
    each = cuts.logits([reads_on.encoder.tokenizer.decode(window[1:-1]) for window in windows])
    pooled = reads_on.logits([SHORT, LONG, SHORT])
    assert np.allclose(pooled[1], each.mean(axis=0), atol=1e-5)
    assert np.allclose(pooled[0], cuts.logits([SHORT])[0], atol=1e-5), "a short text is read as ever"


def test_the_loss_of_training_is_that_of_the_pooled_logits(reads_on: TextClassifier) -> None:
    rows = table(LONG, SHORT).assign(label=[1, 0])
    loss = reads_on.loss(reads_on.examples(rows), np.arange(2)).item()
    assert loss == pytest.approx(reads_on.measure(rows).losses.sum(), rel=1e-4)


def test_an_overlap_is_checked_against_what_the_base_reads(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    rows = table(LONG * 2, SHORT, LONG, "bad").assign(label=[0, 1, 0, 1])

    def begin(overlap: int) -> TextClassifier:
        return TextClassifier.begin(base, tuned(overlap), ["a", "b"], rows, rows, "cpu")

    for overlap in (64, 62):
        with pytest.raises(
            ConfigError, match=rf"window_overlap is {overlap}, .* 62 tokens.* reads 64 .* is 128"
        ):
            begin(overlap)
    assert len(begin(61).examples(rows).content.tokens[0]) > 1
    assert begin(0).overlap == 0


def tuned(overlap: int) -> Finetune:
    return Finetune(
        method="lp-ft",
        learning_rate=1e-4,
        epochs=1,
        batch_size=2,
        warmup_share=0.1,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=128,
        window_overlap=overlap,
        precision="fp32",
        seed=1,
    )


def test_what_stands_at_the_end_counts_only_where_it_is_read(
    cuts: TextClassifier, reads_on: TextClassifier
) -> None:
    other = LONG + " terrible terrible terrible"
    assert np.array_equal(cuts.logits([LONG]), cuts.logits([other]))
    assert not np.allclose(reads_on.logits([LONG]), reads_on.logits([other]), atol=1e-4)


def test_texts_that_are_cut_are_counted(cuts: TextClassifier) -> None:
    examples = cuts.examples(table(LONG, SHORT, LONG))
    assert examples.truncated == 2
    assert examples.lengths.tolist()[0] == LENGTH
