"""docs/recipes.md is what the recipe model says."""

from pathlib import Path

from flows.recipe_docs import recipe_docs
from tasks.recipe import Finetune, Recipe

ROOT = Path(__file__).parent.parent


def test_the_page_is_in_step_with_the_model() -> None:
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8") == recipe_docs(), (
        "run `python -m flows.recipe_docs`"
    )


def test_no_cell_of_a_table_breaks_or_shows_python() -> None:
    for line in recipe_docs().splitlines():
        assert "typing." not in line
        assert "tuple[" not in line
        assert line.count("|") - line.count("\\|") in (0, 3, 5), line
        assert not line.startswith("## ") or len(set(line.split(" · "))) == len(line.split(" · "))


def test_every_section_and_field_is_on_it() -> None:
    page = recipe_docs()
    for name, field in Recipe.model_fields.items():
        assert f"| `{field.alias or name}` |" in page
    for name, field in Finetune.model_fields.items():
        assert field.description
        assert f"| `{name}` |" in page
        assert " ".join(field.description.split()) in page
