"""What a recipe would train is shown before anything is trained, and is what training then does."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import cli
from tasks.errors import ConfigError
from tasks.recipe import load_recipe
from tasks.training.preview import preview_layers
from tests.project import make_project


def test_layers_rates_and_what_is_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "store"))
    project = make_project(tmp_path / "project")
    project.change("  epochs: 1\n", "  epochs: 1\n  freeze_layers: 2\n  layer_decay: 0.5\n")
    layers = preview_layers(load_recipe(project.recipe()), project.root)
    assert [layer.depth for layer in layers] == [0, 1, 2, 3]
    assert [layer.trains for layer in layers] == [False, False, True, True]
    assert [layer.rate for layer in layers] == pytest.approx([1.25e-5, 2.5e-5, 5e-5, 1e-4])
    assert "head.weight" in layers[-1].names
    project.change("freeze_layers: 2", "freeze_layers: 3")
    with pytest.raises(ConfigError, match="that is `method: probe`"):
        preview_layers(load_recipe(project.recipe()), project.root)


def test_the_command_counts_what_trains_and_takes_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "store"))
    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project.root)
    cli.layers("tiny", ["finetune.method=norms"])
    *table, last = capsys.readouterr().out.strip().splitlines()
    assert table[0].split() == ["depth", "parameters", "train", "rate", "holds"]
    trains = [int(line.split()[2].replace(",", "")) for line in table[1:] if line.strip()]
    assert len(trains) == 4
    blocks = [2 * 2 * 32] * 2  # two norms of 32 weights and biases in each block
    assert trains == [2 * 32, *blocks, 2 * 32 + 2], "one norm in the embeddings, and the head"
    assert last.startswith(f"{sum(trains)} of ")


@pytest.mark.parametrize(("variant", "more"), [("lora", 0), ("dora", 1)])
def test_adapters_are_shown_before_they_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, more: int
) -> None:
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "store"))
    project = make_project(tmp_path / "project")
    lora = f"{{rank: 4, alpha: 8, variant: {variant}, targets: [query, value], quantise: true}}"
    project.change("  epochs: 1\n", f"  epochs: 1\n  lora: {lora}\n")
    project.change("method: lp-ft", "method: lora")
    layers = preview_layers(load_recipe(project.recipe()), project.root)
    assert [layer.depth for layer in layers] == [0, 1, 2, 3]
    assert [layer.trains for layer in layers] == [False, True, True, True]
    adapters = 2 * (4 * 32 + 32 * 4) + more * 2 * 32  # two layers of 32 x 32 in a block; DoRA's magnitudes
    assert [layer.trained_parameters for layer in layers[:3]] == [0, adapters, adapters]
    project.change("targets: [query, value]", "targets: [gate_proj]")
    with pytest.raises(ConfigError, match=r"What there is: .*query"):
        preview_layers(load_recipe(project.recipe()), project.root)
