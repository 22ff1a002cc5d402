"""One name everywhere: dvc.yaml, the recipe's schema, the stage modules and the versions file must agree."""

import ast
from pathlib import Path

import pytest
import yaml

from tasks.paths import Paths
from tasks.recipe import Recipe, load_recipe
from tasks.stages import STAGES

ROOT = Path(__file__).parent.parent
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_dvc_and_the_table_have_the_same_stages_in_the_same_order() -> None:
    assert list(PIPELINE) == list(STAGES)
    assert list(yaml.safe_load((ROOT / "tasks/versions.yaml").read_text())) == list(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_declares_the_sections_it_is_handed(stage: str) -> None:
    declared = dict(pair for entry in PIPELINE[stage]["params"] for pair in entry.items())
    assert declared == {
        "recipes/${item.recipe}.yaml": list(STAGES[stage]),
        "tasks/versions.yaml": [stage],
    }
    assert PIPELINE[stage]["cmd"] == f"exec python -m tasks {stage} ${{item.recipe}}"


@pytest.mark.parametrize("stage", STAGES)
def test_stage_module_has_one_function_of_its_name_with_one_argument_a_section(stage: str) -> None:
    tree = ast.parse((ROOT / "tasks" / f"{stage}.py").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    public = [name for name in functions if not name.startswith("_")]
    assert public == [stage], f"tasks/{stage}.py should have one public function"
    arguments = functions[stage].args
    assert len(arguments.args) == len(STAGES[stage])
    assert [keyword.arg for keyword in arguments.kwonlyargs] == ["paths"]


def test_no_stage_imports_another_stage() -> None:
    checked = 0
    for stage in STAGES:
        tree = ast.parse((ROOT / "tasks" / f"{stage}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                checked += 1
                assert node.module not in {f"tasks.{other}" for other in STAGES}, (
                    f"{stage} imports {node.module}"
                )
    assert checked > len(STAGES)


def test_dvc_paths_are_the_ones_that_paths_names() -> None:
    paths = Paths(ROOT, "${item.recipe}")
    named = {
        str(getattr(paths, name).relative_to(ROOT))
        for name, value in vars(Paths).items()
        if isinstance(value, property)
    }
    declared = {
        path
        for stage in PIPELINE.values()
        for kind in ("deps", "outs", "metrics", "plots")
        for entry in stage.get(kind, [])
        for path in ([entry] if isinstance(entry, str) else entry)
    }
    assert len(declared) >= 15
    unknown = declared - named - {"data/${item.recipe}/splits"}
    assert not unknown, f"dvc.yaml names paths that tasks/paths.py does not: {sorted(unknown)}"


def test_every_recipe_loads_and_every_field_is_documented() -> None:
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        load_recipe(recipe)
    undocumented = [name for name, field in Recipe.model_fields.items() if not field.description]
    assert not undocumented
