"""Write the golden results anew: `python -m tests.golden`, after raising a stage's integer in tasks/versions.yaml."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from tasks.stages import version_of
from tests.golden.results import GOLDEN, STAGES, build, figures


def main() -> None:
    """Run the tiny project and write a file for each stage."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RETAIN_HOME"] = str(Path(folder) / "store")
        os.environ["RETAIN_REGISTRY"] = str(Path(folder) / "registry")
        paths = build(Path(folder))
        for stage in STAGES:
            document = {"version": version_of(stage), "figures": figures(stage, paths)}
            (GOLDEN / f"{stage}.json").write_text(json.dumps(document, indent=2) + "\n")
            print(f"{stage}: {len(document['figures'])} figures")


if __name__ == "__main__":
    main()
