"""What `make bench-forgetting` compares: three recipes on real weights and data, and every single method.

Sizes are what three seeds of each case need to end within some hours on two cores; they are printed with the figures.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from tasks.rates import USUAL_RATES
from tasks.recipe import Recipe, recipe_path
from tasks.stages import version_of
from tests.bench.figures import ROOT


@dataclass(frozen=True)
class Method:
    """One way to train: fields of the section `finetune`, and whether it needs rows of the original domain."""

    name: str
    kind: int
    """Methods of one kind share a colour."""
    changes: Mapping[str, Any]
    times: float = 1.0
    """Of the case's rate."""
    replays: Literal["no", "rows", "labelled rows"] = "no"
    """Which rows of the original domain it needs."""


LORA = {"rank": 8, "alpha": 16.0}
ALONE = {"replay_share": 0.0, "distill": 0.0}
"""A recipe may do these by itself; here each method stands alone."""
HARD = 3.0
"""Times the rate at which models learn fast and forget much."""
METHODS = (
    Method("full", 0, {"method": "full"}),
    Method("full, rate / 3", 0, {"method": "full"}, 1 / 3),
    Method("full, rate × 3", 0, {"method": "full"}, HARD),
    Method("LP-FT", 1, {"method": "lp-ft"}),
    Method("LP-FT, rate × 3", 1, {"method": "lp-ft"}, HARD),
    Method("frozen lower half", 2, {"freeze_layers": 0.5}),
    Method("layer decay 0.7", 2, {"layer_decay": 0.7}),
    Method("LoRA r8", 3, {"method": "lora", "lora": LORA}),
    Method("BitFit", 3, {"method": "biases"}),
    Method("L2-SP 0.1", 4, {"method": "full", "l2_sp": 0.1}),
    Method("EWC 10⁴", 4, {"method": "full", "ewc": 1e4}, replays="labelled rows"),
    Method("distillation", 4, {"method": "full", "distill": 1.0}),
    Method("replay 25 %", 4, {"method": "full", "replay_share": 0.25}, replays="labelled rows"),
    Method("replay 50 %, distilled", 4, {"replay_share": 0.5, "distill": 1.0}, replays="rows"),
    Method(
        "replay 50 %, distilled, rate × 3", 4, {"replay_share": 0.5, "distill": 1.0}, HARD, replays="rows"
    ),
)
"""Where a method does not say how the rest trains, it is by LP-FT where there is a head, else in full."""


@dataclass(frozen=True)
class Case:
    """One recipe at the size of this benchmark."""

    recipe: str
    title: str
    gain: str
    """What the target gain is, with its unit."""
    changes: Mapping[str, Any]
    """Fields of the recipe, as `retain run --set` takes them."""
    times: float
    """The rate of every method, as a multiple of its usual one."""
    train_rows: int
    validation_rows: int
    lora_targets: tuple[str, ...] = ()
    impossible: tuple[str, ...] = ()
    """Methods that the base has no weights for."""
    arrange: Callable[[Path], None] | None = None
    """Makes raw files of raw files, in the folder of the recipe."""
    own: str = "full"
    """The method that the recipe trains by."""

    @property
    def shown(self) -> list[str]:
        """The benchmarks that decide nothing."""
        return [name for name, suite in self.changes.get("budget", {}).items() if suite.get("informative")]

    @functools.cached_property
    def key(self) -> str:
        """Name all that the trainings of this case depend on, but the code."""
        recipe = yaml.safe_load(recipe_path(ROOT, self.recipe).read_text(encoding="utf-8"))
        sections = [recipe[name] for name in ("base", "data", "finetune", "merge", "evaluate", "decide")]
        sizes = [self.changes, self.times, self.train_rows, self.validation_rows]
        return f"{self.recipe}-{hashlib.sha256(json.dumps([*sections, *sizes]).encode()).hexdigest()[:8]}"

    @functools.cached_property
    def folder(self) -> Path:
        """Return where its splits and benchmarks are prepared."""
        return ROOT / "data" / "bench-forgetting" / f"{self.key}-{version_of('prepare')}"

    def methods(self, recipe: Recipe) -> list[Method]:
        """Return the methods that this task knows and that this case has original rows for."""
        replay = self.changes.get("data.replay")
        rows = {"no"} | ({"rows"} if replay else set())
        if replay and not replay.get("may_lack_labels"):
            rows.add("labelled rows")
        return [
            method
            for method in METHODS
            if method.changes.get("method", "full") in USUAL_RATES[recipe.task]
            and method.replays in rows
            and method.name not in self.impossible
        ]

    def finetune(self, method: Method, seed: int, recipe: Recipe) -> dict[str, Any]:
        """Return the section `finetune` of one training."""
        known = USUAL_RATES[recipe.task]
        changes = {"method": "lp-ft" if "lp-ft" in known else "full", **method.changes}
        if "lora" in changes and self.lora_targets:
            changes["lora"] = {**LORA, "targets": list(self.lora_targets)}
        rate = float(f"{known[changes['method']] * self.times * method.times:.3g}")
        settled = {"lora": None, "learning_rate": rate, "seed": seed, **ALONE}
        return recipe.finetune.model_dump(mode="json") | settled | changes


def arrange_texts(raw: Path) -> None:
    """Keep a third of the articles for replay and leave the others to a benchmark; LAMBADA's passages are another.

    Novels are like nothing that is replayed. As text, a hundred passages tell more than a hundred right or wrong words.
    """
    articles = re.split(r"(?m)^(?= = [^=].* = $)", (raw / "wikitext-all.txt").read_text(encoding="utf-8"))
    rows, held = [], len(articles) // 3
    for number, article in enumerate(articles[:held]):
        words = article.split()
        for start in range(0, len(words) - 64, 64):
            rows.append({"id": f"{number}-{start}", "text": " ".join(words[start : start + 64])})
    (raw / "replay.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (raw / "wikitext.txt").write_text("".join(articles[held:]), encoding="utf-8")
    passages = map(json.loads, (raw / "lambada.jsonl").read_text(encoding="utf-8").splitlines())
    text = "\n".join(f"{passage['context']} {passage['continuation']}" for passage in passages)
    (raw / "lambada.txt").write_text(text, encoding="utf-8")


DATA = "path:$RETAIN_DATA"
CASES = (
    Case(
        "sentiment",
        "Sentiment: MiniLM on product reviews",
        "accuracy on the test split, over the base with a linear probe",
        {
            "finetune.epochs": 1,
            "finetune.batch_size": 16,
            "finetune.max_length": 64,
            "evaluate.max_length": 48,
            "data.targets": {},
            "data.replay": {
                "file": "editorial.tsv",
                "format": "tsv",
                "header": ["id", "rating", "text"],
                "quoting": False,
                "id": "id",
                "sign_of": "rating",
                "drop_below": 0.5,
            },
            "benchmarks": {
                "constitution": {
                    "kind": "retrieval",
                    "file": "constitution.json",
                    "format": "json",
                    "query": "title",
                    "document": "description",
                },
                "conversations": {
                    "kind": "retrieval",
                    "file": "conversations/*.yml",
                    "format": "conversations",
                },
            },
            "budget": {"constitution": {"margin": 0.03}, "conversations": {"margin": 0.025}},
            "merge.alphas": [0.0, 0.25, 0.5, 0.75, 1.0],
        },
        1.0,
        320,
        300,
        own="LP-FT",
    ),
    Case(
        "support-chat",
        "Support chat: SmolLM2-135M on dialogues",
        "log-likelihood a token on held-out dialogues, in nats, over the base",
        {
            "data.source": {
                "train.jsonl": f"{DATA}/star_support_dialogues/train.jsonl",
                "test.jsonl": f"{DATA}/star_support_dialogues/test.jsonl",
                "wikitext-all.txt": f"{DATA}/bench_wikitext2/test.txt",
                "lambada.jsonl": f"{DATA}/bench_lambada_openai/test.jsonl",
                "arc.jsonl": f"{DATA}/bench_arc_easy/test.jsonl",
                "hellaswag.jsonl": f"{DATA}/bench_hellaswag/test.jsonl",
            },
            "data.train.max_rows": 120,
            "data.test.max_rows": 30,
            "data.validation_share": 0.15,
            "data.replay": {"file": "replay.jsonl", "format": "jsonl", "id": "id", "max_rows": 60},
            "finetune.max_length": 96,
            "finetune.batch_size": 4,
            "evaluate.max_length": 96,
            "benchmarks": {
                "wikitext": {
                    "kind": "perplexity",
                    "file": "wikitext.txt",
                    "block_words": 24,
                    "max_blocks": 120,
                },
                "lambada": {
                    "kind": "perplexity",
                    "file": "lambada.txt",
                    "block_words": 24,
                    "max_blocks": 200,
                },
                "arc-easy": {
                    "kind": "choices",
                    "file": "arc.jsonl",
                    "prompt": "{query}\nAnswer:",
                    "max_examples": 160,
                },
                "hellaswag": {
                    "kind": "choices",
                    "file": "hellaswag.jsonl",
                    "prompt": "{query}",
                    "max_examples": 100,
                },
            },
            # As in the recipe: so few questions see less than text does, and are shown.
            "budget": {
                "wikitext": {"margin": 0.05},
                "lambada": {"margin": 0.05},
                "arc-easy": {"informative": True},
                "hellaswag": {"informative": True},
            },
            "merge.alphas": [0.0, 0.25, 0.5, 0.75, 1.0],
        },
        15.0,
        40,
        10,
        impossible=("BitFit",),  # a Llama has no biases
        arrange=arrange_texts,
    ),
    Case(
        "medical-imaging",
        "Chest X-rays: a small ResNet from CIFAR-10",
        "accuracy on the test split, over the base with a linear probe",
        # The published test images are of another kind than the training ones: on them a linear probe of this base is
        # as good as tuning (0.864 to 0.865). Put together and split at random, there is something to gain.
        {
            "data.train": {"file": "labels.csv", "image": "file", "image_folder": "images", "id": "file"},
            "data.test": None,
            "data.test_share": 0.3,
            # What the base has learned from has none of the new labels.
            "data.replay": {
                "file": "cifar10.csv",
                "image": "file",
                "image_folder": "cifar10",
                "id": "file",
                "where": {"split": "train"},
                "label": "finding",
                "may_lack_labels": True,
            },
            "finetune.epochs": 5,
            "merge.paths": ["wise-ft", "lines"],
        },
        2.0,
        824,
        322,
        lora_targets=("convolution",),
        own="replay 50 %, distilled",
    ),
)
