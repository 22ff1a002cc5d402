"""Does effective diversity tell narrow from wide, whatever the encoder: `make bench-variety`.

Real texts, narrow and wide, embedded by a language model and by a sentence encoder; their effective diversity by cosines
as they are, and as `check` takes them: with the reference's mean taken off. RETAIN_TEST_DATA names the data's folder.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from tasks.checks.variety import Reference
from tasks.embeddings import embed, vectors_folder
from tasks.families import family
from tasks.measures.diversity import effective_diversity, vendi
from tasks.measures.reference import REFERENCE_TEXTS
from tasks.recipe import load_recipe, recipe_path
from tasks.sources import base_folder, resolve_base
from tests.bench.bench_gates import read_lines
from tests.bench.figures import ROOT, Figure, publish

ROWS, MAX_LENGTH, SEED = 150, 64, 7
BASES = {"SmolLM2-135M-Instruct": "support-chat", "all-MiniLM-L6-v2": "sentiment"}
"""Encoders, and the recipe whose base each is."""


def main() -> None:
    """Measure, print the table, and write `benchmarks/variety.json`."""
    texts = _texts(Path(os.environ.get("RETAIN_TEST_DATA", "shared/data")))
    figures = [figure for name, recipe in BASES.items() for figure in _of_base(name, recipe, texts)]
    publish("variety", figures, ["numpy", "torch", "transformers"])


def _texts(data: Path) -> dict[str, list[str]]:
    """Return `ROWS` texts of each kind, from narrow to wide."""
    bank = read_lines(data / "banking77" / "train.jsonl")
    support = read_lines(data / "star_support_dialogues" / "train.jsonl")
    corpus = importlib.util.find_spec("chatterbot_corpus")
    if corpus is None or corpus.origin is None:
        raise SystemExit("The package chatterbot-corpus is not here: make .venv/.demo")
    file = Path(corpus.origin).parent / "data/english/tech_support.yml"
    talks = yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]
    wiki = (data / "bench_wikitext2" / "test.txt").read_text(encoding="utf-8").split(" . ")
    return {
        "10 texts, 15 times": sorted({" ".join(map(str, talk)) for talk in talks}) * (ROWS // 10),
        "questions of one intent": _some([row["text"] for row in bank if row["label"] == bank[0]["label"]]),
        "questions to a bank": _some([row["text"] for row in bank]),
        "what users of support say": _some(
            [turn["content"] for row in support for turn in row["messages"] if turn["role"] == "user"]
        ),
        "sentences of Wikipedia": _some([text.strip() for text in wiki if 40 < len(text) < 200]),
    }


def _some(texts: list[str]) -> list[str]:
    return [texts[row] for row in np.random.default_rng(SEED).permutation(len(texts))[:ROWS]]


def _of_base(name: str, recipe: str, texts: dict[str, list[str]]) -> Iterator[Figure]:
    reference = Reference(_embedded(recipe, list(REFERENCE_TEXTS)), "sentences on unlike subjects", None)
    for how, take in {"as it is": np.asarray, "mean taken off": reference.centred}.items():
        held_against = take(reference.vectors)
        yield Figure(
            f"{name}, {how}: Vendi score of the reference", vendi(held_against), "rows", len(held_against)
        )
        for what, some in texts.items():
            found = effective_diversity(take(_embedded(recipe, some)), held_against, SEED)
            yield Figure(f"{name}, {how}: {what}", found.value, "share", len(some))
    unit = reference.vectors / np.linalg.norm(reference.vectors, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    yield Figure(f"{name}: mean cosine of the reference", float(cosines.mean()), "", len(unit))


def _embedded(recipe: str, texts: list[str]) -> NDArray[np.float32]:
    """Return the texts' vectors, (rows, dim), kept in the store by content."""
    made = load_recipe(recipe_path(ROOT, recipe))
    base = resolve_base(made.base, ROOT)
    folder = vectors_folder(base.fingerprint, MAX_LENGTH, device="cpu", precision="fp32")
    return embed(texts, lambda: family(made.task).load_base(base_folder(base, ROOT)), folder, MAX_LENGTH)


if __name__ == "__main__":
    main()
