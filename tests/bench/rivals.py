"""Other programs for the same task, run in an environment of their own: what `make bench-check` compares with.

Reads one JSON request a line, `{"rival", "arguments"}`, and answers each with one line of JSON: the seconds and the
processor's seconds that the work took, without imports and reading, and its answer. Nothing of this project is imported
here.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def alibi_mmd(file: str, level: float) -> Callable[[], dict[str, Any]]:
    """Prepare alibi-detect's kernel two-sample test of two samples in an .npz file, by the fewest permutations.

    It has no linear-time form. Fewer permutations than 1 / `level` could not reject.
    """
    import torch
    from alibi_detect.cd import MMDDrift

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    samples = np.load(file)
    first, second = samples["first"], samples["second"]
    MMDDrift(first[:50], backend="pytorch", n_permutations=2, device="cpu").predict(
        second[:50]
    )  # its imports

    def test() -> dict[str, Any]:
        detector = MMDDrift(first, backend="pytorch", n_permutations=round(1 / level), device="cpu")
        return {"rejects": bool(detector.predict(second)["data"]["p_val"] <= level)}

    return test


def evidently_mmd(file: str, level: float) -> Callable[[], dict[str, Any]]:
    """Prepare Evidently's kernel test of two samples in an .npz file, against the quantile of its 100 bootstraps."""
    import pandas as pd
    from evidently.legacy.metrics.data_drift.embedding_drift_methods import mmd

    samples = np.load(file)
    first, second = pd.DataFrame(samples["first"]), pd.DataFrame(samples["second"])
    mmd(bootstrap=True)(second[:50], first[:50])  # its imports

    def test() -> dict[str, Any]:
        return {"rejects": bool(mmd(bootstrap=True, quantile_probability=1 - level)(second, first)[1])}

    return test


def datasketch_pairs(file: str, permutations: int, bands: int, rows: int) -> Callable[[], dict[str, Any]]:
    """Prepare datasketch's MinHash LSH over texts, one a line of a JSON list: signatures, index, candidates."""
    from datasketch import MinHash, MinHashLSH

    with open(file, encoding="utf-8") as opened:
        texts = json.load(opened)

    def search() -> dict[str, Any]:
        shingles = ([text[at : at + 5].encode() for at in range(max(len(text) - 4, 1))] for text in texts)
        index, found = MinHashLSH(num_perm=permutations, params=(bands, rows)), 0
        for row, signature in enumerate(MinHash.generator(shingles, num_perm=permutations)):
            found += bool(index.query(signature))
            index.insert(row, signature, check_duplication=False)
        return {"rows_with_candidates": found}

    return search


RIVALS: dict[str, Callable[..., Callable[[], dict[str, Any]]]] = {
    "alibi_mmd": alibi_mmd,
    "evidently_mmd": evidently_mmd,
    "datasketch_pairs": datasketch_pairs,
}


def main() -> None:
    """Answer requests until there are no more."""
    logging.disable(logging.WARNING)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        work = RIVALS[request["rival"]](**request["arguments"])
        started, before = time.perf_counter(), time.process_time()
        answer = work()
        taken = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - before}
        print(json.dumps({**taken, **answer}), file=answers, flush=True)


if __name__ == "__main__":
    main()
