"""What the measures of `check` cost, and how that grows: `make bench-check`.

Each size in a process of its own on two threads, on 250,000, 500,000 and 1,000,000 rows: on random embeddings of 384
numbers, half of them a sample and half another, MMD with its p-value, the Vendi score, coverage of a thousand reference
rows, and the classifier two-sample test; on short texts of words as frequent as in a language, with a copy or near-copy
of every tenth, near-duplicates. Peak memory is the process's own, data and interpreter included.

Beside them, interleaved in one run: the kernel tests of alibi-detect and of Evidently on 2,000 rows and more, medians of
three rounds of which two have a shift, up to 20,000 or as many as they end with within 100 processor-seconds and 6 GiB,
where ours takes 199 permutations; and datasketch's MinHash LSH on 10,000 texts, medians of five. They live in
`.venv-rivals`; without it they are left out, and the table says so. One part alone:
`python -m tests.bench.bench_check copies`.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
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
ROUNDS, COMPARED_TEXTS = 5, 10_000
KERNEL_ROUNDS = 3
TESTED, SHIFT = (2_000, 5_000, 10_000, 20_000), 0.02
"""Rows of both samples together, and by how much every mean differs at the most of them; more at fewer."""
RIVAL_SECONDS, RIVAL_GIBIBYTES = 100, 6
"""Of the processor, on both threads, and of resident memory: what another program may take for one test."""
WHO = "ours", "theirs"
KERNEL_TESTS = {"alibi-detect": "alibi_mmd", "Evidently": "evidently_mmd"}
LEVEL, LEAST_RATIO = 0.05, 10
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
    with closing(Rivals()) as rivals, tempfile.TemporaryDirectory() as folder:
        if copied:
            publish("copies", [*_of_copies(copied), *_text_searches(rivals.ask, Path(folder))], LIBRARIES)
        beside: list[Figure] = []
        for name in KERNEL_TESTS if "rivals" in parts else ():
            beside += _kernel_tests(rivals.ask, name, Path(folder))
            publish("rivals", beside, LIBRARIES)


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


class Rivals:
    """The other programs' process: started when it is first asked, and stopped past a limit of time or of memory."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, rival: str, **arguments: Any) -> Any:
        """Return its answer, or None where it did not end within the limits."""
        process = self._process = self._process or _started()
        assert process.stdin
        assert process.stdout
        print(json.dumps({"rival": rival, "arguments": arguments}), file=process.stdin, flush=True)
        before = _taken(process.pid)[0]
        while not select.select([process.stdout], [], [], 0.1)[0]:
            seconds, gibibytes = _taken(process.pid)
            taken = seconds - before
            if taken > RIVAL_SECONDS or gibibytes > RIVAL_GIBIBYTES:
                print(f"{rival} was stopped at {taken:.0f} s and {gibibytes:.1f} GiB", file=sys.stderr)
                self.close()
                return None
        return json.loads(process.stdout.readline())

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process:
            self._process.kill()
            self._process.wait()
        self._process = None


def _started() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(RIVALS), str(ROOT / "tests" / "bench" / "rivals.py")],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _taken(process: int) -> tuple[float, float]:
    """Return the processor's seconds that a process has had, and the memory in GiB that it holds now."""
    said = (Path(f"/proc/{process}") / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
    ticks, pages = int(said[11]) + int(said[12]), int(said[21])
    return ticks / os.sysconf("SC_CLK_TCK"), pages * resource.getpagesize() / 2**30


def _kernel_tests(ask: Ask, name: str, folder: Path) -> Iterator[Figure]:
    """Time our kernel test beside another one at each size, until that does not end within its limits."""
    ends = f"{name} ends within {RIVAL_SECONDS} s of processor time and {RIVAL_GIBIBYTES} GiB"
    for rows in TESTED:
        rounds = list(_rounds(ask, KERNEL_TESTS[name], folder, rows))
        ended = rounds[-1].ended
        yield Figure(f"{ends}, {rows:,} rows", float(ended), "", rows, len(rounds))
        if not ended:
            return
        yield from _beside(name, rounds, rows)


def _beside(name: str, rounds: Sequence[Round], rows: int) -> Iterator[Figure]:
    """Give the times of both tests, their ratios, and both verdicts of the rounds at one size."""
    for what, pairs in (
        ("processor time", [one.processor for one in rounds]),
        ("time", [one.seconds for one in rounds]),
    ):
        for place, who in enumerate(WHO):
            taken = statistics.median(pair[place] for pair in pairs)
            yield Figure(f"{name}: {who}, {what}, {rows:,} rows", taken, "s", rows, len(rounds))
        ratios = [their / our for our, their in pairs]
        value, goal = statistics.median(ratios), f"≥ {LEAST_RATIO}" if what == "processor time" else None
        met = value >= LEAST_RATIO if goal else None
        label = f"{name}: {what} over ours, {rows:,} rows"
        yield Figure(label, value, "times", rows, len(rounds), (min(ratios), max(ratios)), goal, met)
    for shifted, told in ((True, "with a shift"), (False, "without a shift")):
        some = [one.rejects for one in rounds if one.shifted == shifted]
        for who, rejected in zip(WHO, np.sum(some, axis=0).tolist(), strict=True):
            yield Figure(f"{name}: {who} rejects {told}, {rows:,} rows", rejected, "rounds", rows, len(some))


@dataclass(frozen=True)
class Round:
    """One round of both kernel tests, ours first: seconds, the processor's, verdicts; NaN for one that did not end."""

    shifted: bool
    seconds: tuple[float, float]
    processor: tuple[float, float]
    rejects: tuple[bool, bool]

    @property
    def ended(self) -> bool:
        """Whether the other program ended within its limits."""
        return not math.isnan(self.seconds[1])


def _rounds(ask: Ask, rival: str, folder: Path, rows: int) -> Iterator[Round]:
    """Test the same samples with both; every other round has a shift, as plain at every size; stop where one ends not."""
    half = rows // 2
    for number in range(KERNEL_ROUNDS):
        chance, shifted = np.random.default_rng(number), number % 2 == 0
        first, second = (chance.standard_normal((half, DIM), dtype=np.float32) for _ in range(2))
        second += np.float32(SHIFT * math.sqrt(max(TESTED) / rows) * shifted)
        np.savez(folder / "samples.npz", first=first, second=second)
        groups = [str(row) for row in range(half)]
        started, before = time.perf_counter(), time.process_time()
        test = mismatch.kernel_test(mismatch.pool(first, second, groups, groups), PERMUTATIONS, number)
        taken, processor = time.perf_counter() - started, time.process_time() - before
        answer = ask(rival, file=str(folder / "samples.npz"), level=LEVEL)
        answer = answer or {"seconds": math.nan, "processor_seconds": math.nan, "rejects": False}
        found = Round(
            shifted,
            (taken, answer["seconds"]),
            (processor, answer["processor_seconds"]),
            (test.p_value <= LEVEL, answer["rejects"]),
        )
        print(f"kernel test beside {rival}, {rows} rows: {found}", file=sys.stderr)
        yield found
        if not found.ended:
            return


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
