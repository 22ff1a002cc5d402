"""Do the data gates find what is wrong: `make bench-gates`.

Faults planted in made data, and the faults that are known in real sets, where RETAIN_TEST_DATA names the folder that
holds them. False alarms and power of the tests are `bench_gate_tests`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.measures import contamination, duplicates, harm, images, labels, semantic, truncation
from tasks.validation.columns import of_conversations
from tasks.validation.rules import CONTROL_CHARACTERS, MOJIBAKE
from tests.bench import planted
from tests.bench.figures import Figure, publish
from tests.bench.planted import SIMILARITY

HIGHER = 0.8
"""Than that of the recipes: what it misses beside it."""


def main() -> None:
    """Measure everything, print the table, and write `benchmarks/gates.json`."""
    figures = [*_texts(), *_mojibake(), *_turns(), *_cut(), *_labels(), *_meanings(), *_images()]
    folder = Path(os.environ.get("RETAIN_TEST_DATA", "shared/data"))
    figures += [figure for measure in (_banking, _stsb, _pneumonia) for figure in measure(folder)]
    publish("gates", figures, ["numpy", "scipy", "scikit-learn", "cleanlab", "pillow"])


# --- planted faults ------------------------------------------------------------------------------------


def _found(name: str, right: int, planted_rows: int, reported: int) -> list[Figure]:
    """Return recall and precision: `right` of the planted ones were found, among `reported`."""
    recall, precision = right / planted_rows, right / reported if reported else math.nan
    return [
        Figure(
            f"{name}: recall", recall, "share", planted_rows,
            interval=labels.wilson(right, planted_rows), goal=">= 0.9", met=recall >= 0.9,
        ),
        Figure(
            f"{name}: precision", precision, "share", reported,
            interval=labels.wilson(right, reported) if reported else None, goal=">= 0.9", met=precision >= 0.9,
        ),
    ]  # fmt: skip


def _texts() -> Iterator[Figure]:
    train, strangers = planted.texts(3_000, seed=1), planted.texts(1_000, seed=2)
    for name, edit in planted.EDITS.items():
        copies = [edit(text, row) for row, text in enumerate(train[:500])]
        leaked = duplicates.leaks([*copies, *strangers], train, SIMILARITY)
        right = int(np.sum(leaked[:500] == np.arange(500)))
        yield from _found(f"leaks, {name}", right, 500, int(np.sum(leaked >= 0)))
        higher = duplicates.leaks([*copies, *strangers], train, HIGHER)
        right = int(np.sum(higher[:500] == np.arange(500)))
        for figure in _found(f"leaks, {name}, similarity {HIGHER}", right, 500, int(np.sum(higher >= 0))):
            yield replace(figure, goal=None, met=None)
        clusters = duplicates.near_clusters([*train, *copies], SIMILARITY)
        right = int(np.sum(clusters[3_000:] == np.arange(500)))
        reported = int(np.sum(clusters != np.arange(3_500)))
        yield from _found(f"near-duplicates, {name}", right, 500, reported)
    benchmark = planted.texts(1_000, seed=3, fewest=15, most=60)
    hosts = planted.texts(200, seed=4)
    quoted = [f"{host} {text.upper()}" for host, text in zip(hosts, benchmark[:200], strict=True)]
    found = contamination.contamination(benchmark, [*train, *quoted])
    right = int(np.sum(found.by[:200] == np.arange(3_000, 3_200)))
    yield from _found("benchmark examples quoted in training rows", right, 200, int(found.contaminated.sum()))


def _mojibake() -> list[Figure]:
    wrong = re.compile(f"{MOJIBAKE}|{CONTROL_CHARACTERS}|\ufffd")
    right = sum(bool(wrong.search(planted.misread(text))) for text in planted.SENTENCES)
    false = sum(bool(wrong.search(text)) for text in (*planted.SENTENCES, *planted.CLEAN))
    return _found("mojibake in 16 languages", right, len(planted.SENTENCES), right + false)


def _turns() -> Iterator[Figure]:
    """Turns that say nothing and roles out of order, in every way of planting them."""
    talks = [planted.conversation(seed) for seed in range(1_000)]
    faults = {"empty turns": planted.EMPTY_TURNS, "roles out of order": planted.DISORDERS}
    for name, changes in faults.items():
        bad = [changes[row % len(changes)](talks[row]) for row in range(200)]
        messages = [json.dumps(talk) for talk in (*bad, *talks[200:])]
        seen = pd.DataFrame(of_conversations(pd.Series(messages)))
        wrong = seen["empty_turns"] > 0 if name == "empty turns" else ~(
            seen["roles_alternate"] & seen["ends_with_assistant"]
        )  # fmt: skip
        yield from _found(name, int(wrong[:200].sum()), 200, int(wrong.sum()))


def _cut() -> Iterator[Figure]:
    """Texts cut at a length before they came here, beside whole ones that are shorter."""
    whole = planted.texts(3_000, seed=7)
    for most in (120, 180, 220):
        wrong = truncation.cut_texts([text[:most] for text in whole])
        long = np.array([len(text) > most for text in whole])
        yield from _found(
            f"rows cut at {most} characters", int(wrong[long].sum()), int(long.sum()), int(wrong.sum())
        )


def _labels() -> Iterator[Figure]:
    """Flipped labels found by confident learning; beside it, without a goal, by the densities that made the data."""
    rows = [str(row) for row in range(2_000)]
    for distance, right_on in ((4.0, "99 %"), (3.0, "94 %"), (2.5, "89 %")):
        for share in (0.05, 0.1, 0.2):
            vectors, given, wrong = planted.flipped(2_000, 4, share, distance, seed=5)
            outcome = labels.probe(vectors, given, rows, 7)
            if outcome is None:
                raise RuntimeError("the probe was declined")
            found = labels.suspicious_labels(outcome, given, harm.calibrated(outcome.scores, given))
            name = f"labels flipped, {share:.0%}, classes told apart on {right_on}"
            yield from _found(name, len(np.intersect1d(found, wrong)), len(wrong), len(found))
            if distance < 4:
                best = planted.best_guess(vectors, given, share, distance)
                right = len(np.intersect1d(best, wrong))
                for figure in _found(f"{name}, by the true densities", right, len(wrong), len(best)):
                    yield replace(figure, goal=None, met=None)


def _meanings() -> list[Figure]:
    vectors = planted.topics(3_000, 300, seed=6)
    clusters = semantic.semantic_copies(vectors, 0.9).clusters
    right = int(np.sum(clusters[2_700:] == np.arange(300)))
    return _found("reworded rows, cosine 0.92 to 0.98", right, 300, int(np.sum(clusters != np.arange(3_000))))


def _images() -> Iterator[Figure]:
    scenes = [planted.scene(seed, 34) for seed in range(600)]
    yield from _image_copies("made 32 × 32 pictures", scenes)


def _image_copies(of: str, pictures: Sequence[NDArray[np.uint8]]) -> Iterator[Figure]:
    """Hold changed copies of the first half of the pictures against all of them; the second half has no copy."""
    half = len(pictures) // 2
    train = [planted.unchanged(picture) for picture in pictures[:half]]
    strangers = [planted.unchanged(picture) for picture in pictures[half:]]
    known = images.near_image_clusters(
        [*train, *strangers]
    )  # what is alike without our doing is no false find
    for name, change in planted.IMAGE_CHANGES.items():
        found = images.image_leaks([*(change(picture) for picture in pictures[:half]), *strangers], train)
        hits = np.flatnonzero(found >= 0)
        same = known[hits] == known[found[hits]]
        yield from _found(
            f"images of {of}, {name}",
            int(np.sum(same & (hits < half))),
            half,
            int(np.sum(~same | (hits < half))),
        )


# --- known faults of real sets -------------------------------------------------------------------------


def _absent(folder: Path) -> bool:
    if folder.is_dir():
        return False
    print(f"{folder.name}: skipped, RETAIN_TEST_DATA names no folder that holds it")
    return True


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _known(name: str, value: int, known: int) -> Figure:
    return Figure(name, value, "rows", known, goal=f"= {known}", met=value == known)


def _banking(data: Path) -> Iterator[Figure]:
    folder = data / "banking77"
    if _absent(folder):
        return
    train, test = (read_lines(folder / f"{name}.jsonl") for name in ("train", "test"))
    texts, more = [row["text"] for row in train], [row["text"] for row in test]
    equal = duplicates.exact_clusters([*texts, *more])[len(texts) :] < len(texts)
    leaked = duplicates.leaks(more, texts, SIMILARITY) >= 0
    yield _known("banking77, test rows that equal a training row", int(np.sum(equal & leaked)), 25)
    yield Figure(
        "banking77, test rows nearly equal to a training row", int(np.sum(leaked & ~equal)), "rows", len(more)
    )
    names = sorted({row["label"] for row in train})
    conflict = duplicates.conflicts(texts, [names.index(row["label"]) for row in train])
    forms = {duplicates.normalise(texts[row]) for row in np.flatnonzero(conflict)}
    yield _known("banking77, texts of train with two labels", len(forms), 1)


def _stsb(data: Path) -> Iterator[Figure]:
    folder = data / "stsb_en"
    if _absent(folder):
        return
    train, test = (
        [f"{row['sentence1']}\n{row['sentence2']}" for row in read_lines(folder / f"{name}.jsonl")]
        for name in ("train", "test")
    )
    equal = duplicates.exact_clusters([*train, *test])[len(train) :] < len(train)
    leaked = duplicates.leaks(test, train, SIMILARITY) >= 0
    yield _known("stsb_en, test pairs that equal a training pair", int(np.sum(equal & leaked)), 7)
    yield Figure(
        "stsb_en, test pairs nearly equal to a training pair", int(np.sum(leaked & ~equal)), "rows", len(test)
    )


def _pneumonia(data: Path) -> Iterator[Figure]:
    file = data / "pneumoniamnist" / "pneumoniamnist.npz"
    if _absent(file.parent):
        return
    with np.load(file, allow_pickle=False) as archive:
        parts = {name: list(archive[f"{name}_images"]) for name in ("train", "val", "test")}
    train, val, test = ([planted.encoded(picture) for picture in parts[name]] for name in parts)
    leaked = images.image_leaks(val, train)
    yield _known("pneumoniamnist, validation images that are in train", int(np.sum(leaked >= 0)), 8)
    exact = images.exact_image_clusters(test)
    yield _known("pneumoniamnist, repeated test images", len(test) - len(np.unique(exact)), 3)
    near = images.near_image_clusters(test)
    more = len(np.unique(exact)) - len(np.unique(near))
    yield Figure("pneumoniamnist, test images nearly equal to another", more, "rows", len(test))
    yield from _image_copies("pneumoniamnist", parts["train"][:2_000])


if __name__ == "__main__":
    main()
