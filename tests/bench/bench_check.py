"""What the measures of `check` cost, and how that grows: `make bench-check`.

Each size in a process of its own on two threads, on 250,000, 500,000 and 1,000,000 rows: on random embeddings of 384
numbers, half of them a sample and half another, MMD with its p-value, the Vendi score, coverage of a thousand reference
rows, and the classifier two-sample test; on short texts of words as frequent as in a language, with a copy or near-copy
of every tenth, near-duplicates. Peak memory is the process's own, data and interpreter included.

Beside them, interleaved in one run, medians of five: alibi-detect's kernel test on 20,000 rows (every other round with a
shift) by 20 permutations, the fewest that can reject at 5 %, where ours takes 199; and datasketch's MinHash LSH on 10,000
texts. They live in `.venv-rivals`; without it they are left out, and the table says so. One part alone:
`python -m tests.bench.bench_check copies`.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tasks.measures import diversity, duplicates, minhash, mismatch
from tests.bench.figures import ROOT, Figure, publish
from tests.bench.planted import SIMILARITY

SIZES = (250_000, 500_000, 1_000_000)
DIM, REFERENCE, PERMUTATIONS = 384, 1_000, 199
THREADS = "2"
ENVIRONMENT = {**os.environ, **{f"{name}_NUM_THREADS": THREADS for name in ("OMP", "OPENBLAS", "MKL")}}
MOST_SECONDS, MOST_GIBIBYTES, MOST_SECONDS_COPIES = 60, 4, 300
IN_THE_GOAL = ("MMD with p-value", "Vendi score", "coverage")

RIVALS = ROOT / ".venv-rivals" / "bin" / "python"
ROUNDS, TESTED, RIVAL_PERMUTATIONS, SHIFT, COMPARED_TEXTS = 5, 20_000, 20, 0.02, 10_000
LEAST_RATIO = 10
LIBRARIES = ["numpy", "scipy"]
PARTS = ("check", "copies", "rivals")
Ask = Callable[..., Any]


def main(parts: Sequence[str]) -> None:
    """Measure, print and write `benchmarks/check.json`, `copies.json` and `rivals.json`, each when its part is done."""
    if "check" in parts:
        found = {rows: _in_a_process("measure", rows) for rows in SIZES}
        publish("check", list(_of_embeddings(found)), LIBRARIES)
    copied = {rows: _in_a_process("copies", rows) for rows in SIZES} if "copies" in parts else {}
    if not RIVALS.is_file():
        print("no .venv-rivals: nothing is compared with other programs", file=sys.stderr)
        if copied:
            publish("copies", list(_of_copies(copied)), LIBRARIES)
        return
    with _rivals() as ask, tempfile.TemporaryDirectory() as folder:
        if copied:
            publish("copies", [*_of_copies(copied), *_text_searches(ask, Path(folder))], LIBRARIES)
        if "rivals" in parts:
            publish("rivals", list(_kernel_tests(ask, Path(folder))), LIBRARIES)


def _of_embeddings(measured: dict[int, Any]) -> Iterator[Figure]:
    most = max(measured)
    seconds, processor = (
        sum(measured[most][kind][name] for name in IN_THE_GOAL) for kind in ("seconds", "processor_seconds")
    )
    peak = measured[most]["gibibytes"][IN_THE_GOAL[-1]]
    yield Figure("together", seconds, "s", most, goal=f"< {MOST_SECONDS}", met=seconds < MOST_SECONDS)
    yield Figure("together, processor time of both threads", processor, "s", most)
    yield Figure("peak memory", peak, "GiB", most, goal=f"< {MOST_GIBIBYTES}", met=peak < MOST_GIBIBYTES)
    last = max(measured[most]["gibibytes"].values())
    yield Figure("peak memory with the classifier test", last, "GiB", most)
    for rows, found in measured.items():
        for name, taken in found["seconds"].items():
            yield Figure(f"{name}, {rows:,} rows", taken, "s", rows)


def _of_copies(found: dict[int, Any]) -> Iterator[Figure]:
    for rows, one in found.items():
        goal = f"< {MOST_SECONDS_COPIES}" if rows == max(SIZES) else None
        met = one["seconds"] < MOST_SECONDS_COPIES if goal else None
        yield Figure(f"near-duplicates, {rows:,} texts", one["seconds"], "s", rows, goal=goal, met=met)
        yield Figure(f"processor time, {rows:,} texts", one["processor_seconds"], "s", rows)
        yield Figure(f"peak memory, {rows:,} texts", one["gibibytes"], "GiB", rows)
        yield Figure(
            f"planted copies found, {rows:,} texts",
            one["recall"],
            "share",
            rows,
            goal="≥ 0.99",
            met=one["recall"] >= 0.99,
        )


def _in_a_process(part: str, rows: int) -> Any:
    command = [sys.executable, "-m", "tests.bench.bench_check", part, str(rows)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measure(rows: int) -> None:
    """Take every measure on embeddings once, in the order of the goal; print seconds and the peak memory after each."""
    vectors = np.random.default_rng(1).standard_normal((rows, DIM), dtype=np.float32)
    reference = np.random.default_rng(2).standard_normal((REFERENCE, DIM), dtype=np.float32)
    half = rows // 2
    groups = [str(row) for row in range(half)]
    pooled = mismatch.pool(vectors[:half], vectors[half:], groups, groups)
    work: dict[str, Callable[[], object]] = {
        "MMD with p-value": lambda: mismatch.kernel_test(pooled, PERMUTATIONS, 1),
        "Vendi score": lambda: diversity.vendi(vectors),
        "coverage": lambda: diversity.coverage(vectors, reference, 1),
        "classifier two-sample test": lambda: mismatch.classifier_test(pooled, PERMUTATIONS, 1),
    }
    seconds, processor, gibibytes = {}, {}, {}
    for name, call in work.items():
        started, before = time.perf_counter(), time.process_time()
        call()
        seconds[name] = time.perf_counter() - started
        processor[name] = time.process_time() - before
        gibibytes[name] = _peak()
        print(f"{rows} rows, {name}: {seconds[name]:.1f} s, peak {_peak():.2f} GiB", file=sys.stderr)
    print(json.dumps({"seconds": seconds, "processor_seconds": processor, "gibibytes": gibibytes}))


def copies(rows: int) -> None:
    """Find the near-duplicates among short texts once; print seconds, peak memory and the planted share found."""
    texts = short_texts(rows, seed=1)
    planted = rows // 20
    for row in range(planted):
        texts[-1 - row] = texts[row] + " too"
        texts[-1 - planted - row] = f"{texts[planted + row].upper()}!"
    started, before = time.perf_counter(), time.process_time()
    found = duplicates.near_clusters(texts, SIMILARITY)
    seconds, processor = time.perf_counter() - started, time.process_time() - before
    copied = found[::-1][: 2 * planted]
    true = np.arange(2 * planted)
    near = [
        duplicates.jaccard(duplicates.shingle(texts[row]), duplicates.shingle(texts[-1 - row])) >= SIMILARITY
        for row in range(min(planted, 2_000))
    ]
    checked = np.flatnonzero([*near, *([False] * (planted - len(near))), *([True] * planted)])
    recall = float(np.mean(copied[checked] == found[true[checked]]))
    print(f"{rows} texts: {seconds:.1f} s, peak {_peak():.2f} GiB", file=sys.stderr)
    print(
        json.dumps(
            {"seconds": seconds, "processor_seconds": processor, "gibibytes": _peak(), "recall": recall}
        )
    )


def short_texts(count: int, seed: int) -> list[str]:
    """Return texts of 8 to 16 words as frequent as in a language (Zipf): 77 characters at the mean."""
    chance, spelling = np.random.default_rng(seed), random.Random(0)
    words = np.array(
        ["".join(spelling.choices("etaoinshrdlu", k=spelling.randint(2, 9))) for _ in range(20_000)]
    )
    weights = 1 / (np.arange(len(words)) + 10)
    lengths = chance.integers(8, 17, count)
    picked = words[chance.choice(len(words), size=lengths.sum(), p=weights / weights.sum())].tolist()
    ends = np.cumsum(lengths).tolist()
    return [" ".join(picked[end - length : end]) for end, length in zip(ends, lengths.tolist(), strict=True)]


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# --- beside other programs -----------------------------------------------------------------------------


@contextmanager
def _rivals() -> Iterator[Ask]:
    """Start the other programs' process, and yield what asks it for an answer."""
    process = subprocess.Popen(
        [str(RIVALS), str(ROOT / "tests" / "bench" / "rivals.py")],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(rival: str, **arguments: Any) -> Any:
        assert process.stdin
        assert process.stdout
        print(json.dumps({"rival": rival, "arguments": arguments}), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    try:
        yield ask
    finally:
        process.terminate()
        process.wait()


def _kernel_tests(ask: Ask, folder: Path) -> Iterator[Figure]:
    """Time both kernel tests round by round, on the same samples; every other round has a shift."""
    ours, theirs, agreed = [], [], 0
    half = TESTED // 2
    for number in range(ROUNDS):
        chance = np.random.default_rng(number)
        first, second = (chance.standard_normal((half, DIM), dtype=np.float32) for _ in range(2))
        second += np.float32(SHIFT * (number % 2 == 0))
        np.savez(folder / "samples.npz", first=first, second=second)
        answer = ask("alibi_mmd", file=str(folder / "samples.npz"), permutations=RIVAL_PERMUTATIONS)
        groups = [str(row) for row in range(half)]
        started = time.perf_counter()
        test = mismatch.kernel_test(mismatch.pool(first, second, groups, groups), PERMUTATIONS, number)
        ours.append(time.perf_counter() - started)
        theirs.append(answer["seconds"])
        agreed += (test.p_value <= 0.05) == (answer["p_value"] <= 0.05)
        print(
            f"kernel test: {ours[-1]:.2f} s, p {test.p_value:.3f}; alibi-detect {theirs[-1]:.1f} s, "
            f"p {answer['p_value']:.3f}",
            file=sys.stderr,
        )
    ratio = statistics.median(their / our for our, their in zip(ours, theirs, strict=True))
    yield Figure("MMD with p-value", statistics.median(ours), "s", TESTED, ROUNDS)
    yield Figure("alibi-detect, MMD with p-value", statistics.median(theirs), "s", TESTED, ROUNDS)
    yield Figure(
        "alibi-detect's time over ours",
        ratio,
        "times",
        TESTED,
        ROUNDS,
        (
            min(their / our for our, their in zip(ours, theirs, strict=True)),
            max(their / our for our, their in zip(ours, theirs, strict=True)),
        ),
        f"≥ {LEAST_RATIO}",
        ratio >= LEAST_RATIO,
    )
    yield Figure(
        "rounds with the same verdict",
        agreed,
        "rounds",
        TESTED,
        ROUNDS,
        goal=f"{ROUNDS}",
        met=agreed == ROUNDS,
    )


def _text_searches(ask: Ask, folder: Path) -> Iterator[Figure]:
    """Time both searches for near-copies round by round; datasketch proposes candidates and verifies none."""
    ours, theirs = [], []
    count, rows = minhash.bands(SIMILARITY)
    for number in range(ROUNDS):
        texts = short_texts(COMPARED_TEXTS, seed=number)
        (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        arguments = {"permutations": minhash.PERMUTATIONS, "bands": count, "rows": rows}
        theirs.append(ask("datasketch_pairs", file=str(folder / "texts.json"), **arguments)["seconds"])
        started = time.perf_counter()
        duplicates.near_clusters(texts, SIMILARITY)
        ours.append(time.perf_counter() - started)
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    print(f"near-duplicates: datasketch {theirs}, ours {ours}", file=sys.stderr)
    yield Figure(
        "datasketch's time over ours, near-duplicates",
        statistics.median(ratios),
        "times",
        COMPARED_TEXTS,
        ROUNDS,
        (min(ratios), max(ratios)),
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        {"measure": measure, "copies": copies}[sys.argv[1]](int(sys.argv[2]))
    else:
        main(sys.argv[1:] or PARTS)
