"""A recipe: typos, wrong types and contradictions are all told at once, with their place."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.errors import ConfigError
from tasks.recipe import load_recipe, recipe_path
from tests.bench.planted import SIMILARITY

ROOT = Path(__file__).parent.parent
SENTIMENT = yaml.safe_load((ROOT / "recipes/sentiment.yaml").read_text())


def write(folder: Path, document: Any, name: str = "mine") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def changed(**sections: Any) -> dict[str, Any]:
    """The sentiment recipe with keys of its sections replaced."""
    return {
        name: {**section, **sections[name]} if name in sections and isinstance(section, dict) else section
        for name, section in SENTIMENT.items()
    }


def without(section: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != name}


def with_data(**keys: Any) -> dict[str, Any]:
    return changed(data=keys)


def test_three_errors_are_told_at_once_with_their_places(tmp_path: Path) -> None:
    document = changed(finetune={"learning_rte": 1e-4, "epochs": "two"}, decide={"confidence": 1.5})
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, document))
    message = str(caught.value)
    assert "3 problem(s)" in message
    for place in ("finetune.learning_rte", "finetune.epochs", "decide.confidence"):
        assert place in message


@pytest.mark.parametrize(
    ("name", "meant"), [("recipes/sentiment.yaml", "sentiment"), ("../sentiment", "sentiment"), ("A b", None)]
)
def test_a_path_is_no_name_of_a_recipe(name: str, meant: str | None) -> None:
    with pytest.raises(ConfigError, match="is no recipe name") as caught:
        recipe_path(ROOT, name)
    assert (f"Did you mean {meant!r}?" in str(caught.value)) == (meant is not None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "no mapping"),
        ("a: [1\n", r"not valid YAML(?s:.)*in \"mine\.yaml\", line 2"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_recipe(write(tmp_path, text))


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (
            "pakage:foo",
            r"base 'pakage:foo' is no source\. A base model is one of hub:org/name@revision, path:",
        ),
        ("bert-base-uncased", r"base 'bert-base-uncased' is no source\. A base model is one of hub:"),
        ("hub:org/name", r"base 'hub:org/name': a hub: source is written hub:org/name@revision\."),
        ("package:foo/model", r"a package: source is written package:NAME==VERSION/inner/path\."),
        ("release:sentiment", r"a release: source is written release:NAME@alias\."),
        ("package:foo==1/../../etc", r"must be a relative path"),
        ("https://x.org/model", r"base 'https://x\.org/model' can be no model\. A base model is one of"),
    ],
)
def test_a_base_that_is_written_wrongly_is_refused_with_how_it_is_written(
    tmp_path: Path, base: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_recipe(write(tmp_path, {**SENTIMENT, "base": base}))


def test_raw_data_that_is_written_wrongly_is_refused_by_name(tmp_path: Path) -> None:
    wrong = changed(data={"source": {"a.csv": "pth:a.csv", "b.csv": "path:b.csv"}})
    with pytest.raises(ConfigError, match=r"data\.source\.a\.csv: 'pth:a\.csv' is no source") as caught:
        load_recipe(write(tmp_path, wrong))
    assert "b.csv" not in str(caught.value)


def test_replayed_rows_may_lack_labels_where_they_are_distilled(tmp_path: Path) -> None:
    def recipe(finetune: dict[str, Any], **more: Any) -> dict[str, Any]:
        replay = {"file": "editorial.tsv", "format": "tsv", "may_lack_labels": True}
        return {**changed(finetune=finetune, data={"replay": replay}), **more}

    assert load_recipe(write(tmp_path, recipe({"replay_share": 0.2, "distill": 1.0}))).data.replay
    assert load_recipe(write(tmp_path, recipe({}))).data.replay, "nothing is replayed yet"
    with pytest.raises(
        ConfigError, match=r"finetune\.distill: replayed rows that may lack labels teach nothing"
    ):
        load_recipe(write(tmp_path, recipe({"replay_share": 0.2})))
    tune = {**SENTIMENT["tune"], "replay_share": [0.0, 0.2]}
    with pytest.raises(ConfigError, match=r"tune\.distill: replayed rows"):
        load_recipe(write(tmp_path, recipe({}, tune=tune)))
    assert load_recipe(write(tmp_path, recipe({}, tune={**tune, "distill": [0.0, 1.0]}))).tune
    assert load_recipe(write(tmp_path, recipe({"distill": 1.0}, tune=tune))).tune
    with pytest.raises(ConfigError, match=r"finetune\.ewc finds what matters by a loss"):
        load_recipe(write(tmp_path, recipe({"distill": 1.0, "ewc": 1.0})))
    chat = yaml.safe_load((ROOT / "recipes/support-chat.yaml").read_text(encoding="utf-8"))
    chat["data"]["replay"] = {"file": "train.jsonl", "format": "jsonl", "may_lack_labels": True}
    with pytest.raises(ConfigError, match=r"causal-lm without data\.labels has no labels to do without"):
        load_recipe(write(tmp_path, chat))


LORA = {"method": "lora", "lora": {"rank": 4, "alpha": 8.0}, "learning_rate": 1e-4}
SHARDED = {"devices": 2, "sharding": "shard"}
REPLAYED = {"replay": {"file": "editorial.tsv", "format": "tsv"}}
EMBEDDING = {"loss": "supervised-contrastive", "class_weights": "none"}


@pytest.mark.parametrize(
    ("task", "finetune", "refused"),
    [
        ("text-classification", {**LORA, "l2_sp": 0.1}, [r"finetune\.l2_sp: `method: lora`"]),
        ("text-classification", {**LORA, "ewc": 1.0}, [r"finetune\.ewc: `method: lora`"]),
        ("text-classification", {**LORA, "distill": 1.0, "replay_share": 0.1, "unfreeze_every": 9}, []),
        ("text-classification", {"l2_sp": 0.1, "ewc": 1.0, "distill": 1.0, "devices": 2}, []),
        ("text-classification", {**LORA, **SHARDED}, ["finetune.devices: lora wants whole weights"]),
        (
            "text-classification",
            {**SHARDED, "l2_sp": 0.1, "ewc": 1.0, "distill": 1.0, "unfreeze_every": 9},
            [f"finetune.devices: {name} wants" for name in ("l2_sp", "ewc", "distill", "unfreeze_every")],
        ),
        ("text-classification", {**SHARDED, "replay_share": 0.1, "average_last": 0.5}, []),
        ("text-classification", {**SHARDED, "method": "probe", "l2_sp": 0.1}, []),
        ("sentence-embedding", {**EMBEDDING, "ewc": 1.0}, ["finetune.ewc: the loss of sentence-embedding"]),
        ("sentence-embedding", {**EMBEDDING, "devices": 2}, ["finetune.devices: a contrastive loss"]),
        ("sentence-embedding", {**EMBEDDING, "l2_sp": 0.1, "distill": 1.0, "replay_share": 0.1}, []),
    ],
)
def test_what_does_not_combine_is_refused_when_the_recipe_is_read(
    tmp_path: Path, task: str, finetune: dict[str, Any], refused: list[str]
) -> None:
    given = {"method": "full", "learning_rate": 1e-5, **finetune}
    document = {**changed(finetune=given, data=REPLAYED), "task": task}
    path = write(tmp_path, without(document, "tune"))
    if not refused:
        assert load_recipe(path).finetune.devices == given.get("devices", 1)
        return
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert len(caught.value.problems) == 1
    assert all(re.search(one, caught.value.problems[0]) for one in refused), caught.value.problems
    assert caught.value.problems[0].count(";") == len(refused) - 1


@pytest.mark.parametrize(
    ("tune", "name"),
    [({"l2_sp": [0.0, 0.1]}, "l2_sp"), ({"distill": [1.0]}, "distill"), ({"methods": ["lora"]}, "lora")],
)
def test_a_search_on_several_devices_tries_nothing_that_cannot_be_sharded(
    tmp_path: Path, tune: dict[str, Any], name: str
) -> None:
    document = changed(finetune={"method": "full", **SHARDED})
    document["tune"] = {"trials": 2, "seed": 1, **tune}
    with pytest.raises(ConfigError, match=f"tune: {name} wants whole weights"):
        load_recipe(write(tmp_path, document))
    document["finetune"]["sharding"] = "replicate"
    assert load_recipe(write(tmp_path, document)).tune


def test_a_gain_by_class_needs_classes(tmp_path: Path) -> None:
    assert (
        load_recipe(write(tmp_path, changed(evaluate={"metric": "macro_f1"}))).evaluate.metric == "macro_f1"
    )
    chat = yaml.safe_load((ROOT / "recipes/support-chat.yaml").read_text(encoding="utf-8"))
    chat["evaluate"]["metric"] = "macro_f1"
    with pytest.raises(ConfigError, match=r"evaluate\.metric: macro_f1 is counted by class"):
        load_recipe(write(tmp_path, chat))


def test_a_key_that_is_written_twice_is_refused_with_its_lines(tmp_path: Path) -> None:
    text = "base: path:one\ndata:\n  seed: 1\n  labels: [a, b]\n  seed: 2\n"
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=r"'seed' is written twice, it is there since line 3(?s:.)*line 5"):
        load_recipe(recipe)


def test_a_key_may_say_otherwise_than_what_is_merged_into_its_mapping(tmp_path: Path) -> None:
    """As the X-ray recipe does: the test table is the training table with other rows."""
    text = (ROOT / "recipes/medical-imaging.yaml").read_text(encoding="utf-8")
    assert "{<<: *xrays, where:" in text
    recipe = tmp_path / "medical-imaging.yaml"
    recipe.write_text(text)
    data = load_recipe(recipe).data
    assert data.test is not None
    assert (data.test.where, data.test.file) == ({"split": "test"}, data.train.file)


def test_a_missing_recipe_names_the_ones_there_are(tmp_path: Path) -> None:
    write(tmp_path, SENTIMENT, "sentiment")
    with pytest.raises(ConfigError, match="Recipes here: sentiment"):
        load_recipe(tmp_path / "sentimant.yaml")


def test_a_name_that_would_leave_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe name"):
        load_recipe(tmp_path / "..yaml")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({**SENTIMENT, "budget": {"constitution": {"margin": 0.03}}}, "no budget for benchmark"),
        (
            {
                **SENTIMENT,
                "budget": {**without(SENTIMENT["budget"], "movie-knn"), "movie-kn": {"margin": 0.1}},
            },
            r"no budget for benchmark\(s\) movie-knn; budget for unknown benchmark\(s\) movie-kn$",
        ),
        (
            changed(finetune={"lerning_rate": 1}),
            "lerning_rate: there is no such field; did you mean learning_rate?",
        ),
        (changed(finetune={"zzz": 1}), r"finetune\.zzz: there is no such field \(given: 1\)"),
        (
            {**SENTIMENT, "budget": {name: {"informative": True} for name in SENTIMENT["budget"]}},
            "nothing would stop a model that forgot",
        ),
        ({**SENTIMENT, "merge": {"alphas": [0.0, 0.5]}}, "must contain 0"),
        ({**SENTIMENT, "merge": {"alphas": [0.0, 0.5, 0.5, 1.0]}}, "must rise"),
        (
            changed(gate={"failed_expectations": {"refuse_above": 0, "refuse_below": 1}}),
            "warn_above/refuse_above or",
        ),
        (with_data(labels=["negative", "positive", "negative"]), r"data: labels must not repeat: negative"),
        (with_data(labels=["negative", "positive "]), r"data: labels have no white space"),
        (
            with_data(targets={"test": {"file": "a.csv"}}),
            r"data: a target cannot be named like a split: test",
        ),
        (with_data(train={"file": "../other/a.csv"}), r"data\.train\.file: a file below data/raw/"),
        (with_data(test={"file": "/etc/passwd"}), r"data\.test\.file: a file below data/raw/.*data\.source"),
    ],
)
def test_contradictions(tmp_path: Path, document: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_recipe(write(tmp_path, document))


def test_the_recipes_look_for_copies_as_the_benchmarks_do_and_bound_texts_in_tokens() -> None:
    recipes = [load_recipe(path) for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    assert len(recipes) >= 5
    assert {recipe.check.near_duplicate_similarity for recipe in recipes} == {SIMILARITY}
    texts = [recipe for recipe in recipes if recipe.task != "image-classification"]
    assert all(recipe.validate_.max_tokens for recipe in texts)


def test_a_stage_is_handed_one_field_when_it_asks_for_one() -> None:
    recipe = load_recipe(ROOT / "recipes/sentiment.yaml")
    assert recipe.sections(("register.name",)) == {"register.name": "sentiment"}


def test_a_margin_that_its_declared_size_cannot_show_is_refused_at_load(tmp_path: Path) -> None:
    probe = {"kind": "probe", "table": {"file": "tweets.csv", "max_rows": 150}}
    benchmarks = {**SENTIMENT["benchmarks"], "small": probe}
    budget = {**SENTIMENT["budget"], "small": {"margin": 0.03}}
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, changed() | {"benchmarks": benchmarks, "budget": budget}))
    message = str(caught.value)
    assert "budget.small.margin: 150 examples leave about 50 for the report" in message
    assert "is shown 80% of the time from 436 on" in message
    assert "take about 1308 examples" in message
    carried = float(message.partition("a margin of ")[2].partition("a margin of ")[2].split()[0])
    for loose in ({"margin": carried}, {"informative": True}):
        load_recipe(
            write(tmp_path, changed() | {"benchmarks": benchmarks, "budget": budget | {"small": loose}})
        )
