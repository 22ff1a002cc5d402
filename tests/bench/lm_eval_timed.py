"""lm-evaluation-harness's own command line, which also notes how long its scoring took, start-up apart.

`python -m tests.bench.lm_eval_timed FILE run --model hf …` is `lm-eval run --model hf …` and writes seconds into FILE.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.models.huggingface import HFLM


def main() -> None:
    """Run the command line with a stopwatch around what its model scores."""
    file = Path(sys.argv.pop(1))
    score = HFLM.loglikelihood

    def timed(self: HFLM, *arguments: Any, **settings: Any) -> Any:
        begun = time.perf_counter()
        answers = score(self, *arguments, **settings)
        file.write_text(repr(time.perf_counter() - begun), encoding="utf-8")
        return answers

    HFLM.loglikelihood = timed
    cli_evaluate()


if __name__ == "__main__":
    main()
