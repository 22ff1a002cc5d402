"""A stage whose results change must raise its integer in tasks/versions.yaml, or old results would pass for new."""

from __future__ import annotations

import json

import pytest

from tasks.paths import Paths
from tasks.stages import version_of
from tests.golden.results import GOLDEN, STAGES, TOLERANCE, build, figures, tolerance

AGAIN = "raise it in tasks/versions.yaml if the results of {stage} were meant to change, then `python -m tests.golden`"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    folder = tmp_path_factory.mktemp("golden")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETAIN_HOME", str(folder / "store"))
        patch.setenv("RETAIN_REGISTRY", str(folder / "registry"))
        return build(folder)


@pytest.mark.parametrize("stage", STAGES)
def test_results_change_only_with_the_version(built: Paths, stage: str) -> None:
    golden = json.loads((GOLDEN / f"{stage}.json").read_text())
    now = figures(stage, built)
    assert len(now) > 3, "there is something to compare"
    assert golden["version"] == version_of(stage), AGAIN.format(stage=stage)
    assert set(now) == set(golden["figures"]), AGAIN.format(stage=stage)
    for name, before in golden["figures"].items():
        if isinstance(before, float):
            allowed = tolerance(stage, name)
            assert now[name] == pytest.approx(before, abs=allowed), f"{name}: " + AGAIN.format(stage=stage)
        else:
            assert now[name] == before, f"{name}: " + AGAIN.format(stage=stage)


def test_a_changed_loss_is_noticed() -> None:
    golden = json.loads((GOLDEN / "finetune.json").read_text())["figures"]
    changed = golden["validation_loss"] + 2 * TOLERANCE
    assert changed != pytest.approx(golden["validation_loss"], abs=tolerance("finetune", "validation_loss"))
