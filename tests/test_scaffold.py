"""`retain init` proposes a recipe that loads, for tables as people have them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from flows.scaffold import Choice, scaffold
from tasks.errors import ConfigError, DataError, PipelineError
from tasks.rates import USUAL_RATES
from tasks.recipe import load_recipe

TEXTS = [f"the {word} arrived {when} and was {how}" for word in ("phone", "cable", "lamp", "case")
         for when in ("late", "early", "today") for how in ("fine", "broken", "odd")]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make an empty repository."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "params.yaml").write_text("# The recipes that are built.\nrecipes:\n  - sentiment\n")
    return tmp_path


def table(path: Path, header: list[str], rows: list[list[str]], delimiter: str = ",") -> Path:
    """Write a CSV or TSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([header, *rows] if header else rows)
    return path


def reviews(path: Path) -> Path:
    """Write 36 labelled reviews."""
    rows = [[str(i), text, "bad" if "broken" in text else "good"] for i, text in enumerate(TEXTS)]
    return table(path, ["id", "review", "sentiment"], rows)


def make(root: Path, file: Path, choice: Choice | None = None) -> Path:
    return scaffold(root, "reviews", file, "text-classification", None, choice)


def test_the_proposal_loads_and_names_columns_and_labels(root: Path) -> None:
    path = make(root, reviews(root / "my reviews.csv"))
    recipe = load_recipe(path)
    assert recipe.data.train.text == "review"
    assert recipe.data.train.label == "sentiment"
    assert recipe.data.train.id == "id"
    assert recipe.data.train.file == "my reviews.csv"
    assert recipe.data.labels == ["bad", "good"]
    assert not recipe.register_.promote
    assert "# Rows seen by label: good 24, bad 12" in path.read_text()


def test_training_and_test_files_of_one_name_stay_two_files(root: Path) -> None:
    for part in ("train", "test"):
        (root / part).mkdir()
    train, test = (reviews(root / part / "data.csv") for part in ("train", "test"))
    data = load_recipe(make(root, train, Choice(test=test))).data
    assert isinstance(data.source, dict)
    assert data.source["data.csv"] == "path:train/data.csv"
    assert data.test is not None
    assert (data.test.file, data.source[data.test.file]) == ("test-data.csv", "path:test/data.csv")


def test_params_list_the_recipe_and_keep_their_comment(root: Path) -> None:
    make(root, reviews(root / "reviews.csv"))
    text = (root / "params.yaml").read_text()
    assert yaml.safe_load(text) == {"recipes": ["sentiment", "reviews"]}
    assert text.startswith("# The recipes that are built.")


@pytest.mark.parametrize("suffix", ["tsv", "jsonl"])
def test_other_formats(root: Path, suffix: str) -> None:
    file = root / f"data.{suffix}"
    rows = [{"body": text, "intent": "a" if i % 2 else "b"} for i, text in enumerate(TEXTS)]
    if suffix == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table(file, ["body", "intent"], [list(row.values()) for row in rows], "\t")
    recipe = load_recipe(make(root, file))
    assert (recipe.data.train.format, recipe.data.train.text, recipe.data.labels) == (
        suffix,
        "body",
        ["a", "b"],
    )


def test_columns_are_found_by_content_when_names_say_nothing(root: Path) -> None:
    rows = [[str(i * 7919), text, "x" if i % 3 else "y"] for i, text in enumerate(TEXTS)]
    recipe = load_recipe(make(root, table(root / "d.csv", ["n", "what", "kind"], rows)))
    assert (recipe.data.train.text, recipe.data.train.label) == ("what", "kind")


def test_a_file_without_header_needs_names(root: Path) -> None:
    rows = [[str(i), text, "x" if i % 3 else "y"] for i, text in enumerate(TEXTS)]
    file = table(root / "d.csv", [], rows)
    with pytest.raises(DataError, match=r"names no columns.*--columns text,label"):
        make(root, file)
    recipe = load_recipe(make(root, file, Choice(columns=("n", "text", "label"))))
    assert recipe.data.train.header == ["n", "text", "label"]


@pytest.mark.parametrize(
    "text", ["The parcel came late. " * 9, "包裹来晚了。" * 30, "Посылка пришла поздно. " * 9]
)
def test_texts_twice_as_long_as_any_seen_fit_the_proposed_lengths(root: Path, text: str) -> None:
    rows = [[f"{i} {text}", "good" if i % 2 else "bad"] for i in range(40)]
    validate = load_recipe(make(root, table(root / "d.csv", ["text", "label"], rows))).validate_
    letters = len(text.encode())
    assert validate.max_tokens is not None
    # Tokenizers need about one token for four letters of English, one for a sign of Chinese.
    assert 2 * len(text) / 4 <= validate.max_tokens <= 2 * letters + 200
    assert validate.max_characters >= 2 * len(text)
    if letters == 3 * len(text):
        assert validate.max_tokens >= 2 * len(text)


def test_a_byte_order_mark_is_no_part_of_a_name(root: Path) -> None:
    file = reviews(root / "d.csv")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_recipe(make(root, file)).data.train.id == "id"


def test_labels_that_yaml_would_misread_are_quoted(root: Path) -> None:
    rows = [[text, ["yes", "no", "1", "a: b", "#x"][i % 5]] for i, text in enumerate(TEXTS)]
    recipe = load_recipe(make(root, table(root / "d.csv", ["text", "label"], rows)))
    assert recipe.data.labels == ["#x", "1", "a: b", "no", "yes"]


def test_nothing_is_overwritten(root: Path) -> None:
    file = reviews(root / "d.csv")
    path = make(root, file)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        make(root, file)
    assert path.read_bytes() == before


def _bad(name: str, content: bytes, folder: Path) -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


HEADER = b"text,label\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", b"", "is empty"),
        ("d.csv", HEADER, "no rows below"),
        ("d.csv", "text,label\nnaïve,a\n".encode("utf-16"), "UTF-16: convert it with `iconv"),
        ("d.csv", b"text,label\n\x00\x01,a\n", "is binary"),
        ("d.csv", "text,label\nnaïve,a\n".encode("latin-1"), "not UTF-8"),
        ("d.csv", HEADER + b"one,a,b\ntwo\n" * 3, r"line 2: 3 columns[\s\S]*line 3: 1 columns"),
        ("d.csv", HEADER + b"one,a\ntwo,a\n" * 6, "one value only"),
        ("d.csv", HEADER + b"one,a\ntwo,b\n" * 6 + b"three,c\n", "'c': 1"),
        ("d.csv", HEADER + b"one,a\ntwo,b\n" * 6 + b"three,\n", "1 of 13 rows have no label"),
        ("d.csv", b"text;label\none;a\n", "one column only"),
        ("d.xlsx", b"PK", "should end in one of .csv, .tsv"),
        ("d.jsonl", b'{"text": "a"}\n{oops\n', "line 2: no JSON"),
        ("d.jsonl", b"[1]\n", "a JSON object is needed, not a list"),
    ],
)
def test_bad_files_are_refused_with_place_and_remedy(
    root: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make(root, _bad(name, content, root))
    assert list((root / "recipes").iterdir()) == [], "nothing half-written"
    assert "reviews" not in (root / "params.yaml").read_text()


def test_a_missing_file_and_a_bad_name_and_task(root: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        make(root, root / "gone.csv")
    file = reviews(root / "d.csv")
    with pytest.raises(ConfigError, match="no recipe name"):
        scaffold(root, "My Reviews", file, "text-classification")
    with pytest.raises(ConfigError, match=r"no task 'magic'\. Tasks: text-classification, causal-lm"):
        scaffold(root, "reviews", file, "magic")
    with pytest.raises(ConfigError, match=r"no column stars\. Its columns: id, review, sentiment"):
        make(root, file, Choice(label="stars"))


def test_two_likely_labels_are_asked_about(root: Path) -> None:
    rows = [[text, "ab"[i % 2], "cd"[i % 2]] for i, text in enumerate(TEXTS)]
    with pytest.raises(DataError, match="--text COLUMN --label COLUMN"):
        make(root, table(root / "d.csv", ["words", "first", "second"], rows))


def lines(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_conversations_and_questions_make_a_chat_recipe(root: Path) -> None:
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    file = lines(root / "chat.jsonl", [{"id": i, "messages": turns} for i in range(40)])
    chat = load_recipe(scaffold(root, "chat", file, "causal-lm"))
    assert (chat.task, chat.data.train.messages, chat.data.train.id) == ("causal-lm", "messages", "id")
    assert chat.finetune.learning_rate == USUAL_RATES["causal-lm"]["full"]
    file = lines(root / "sums.jsonl", [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(40)])
    sums = load_recipe(scaffold(root, "sums", file, "causal-lm", choice=Choice(test=file)))
    assert (sums.data.train.prompt, sums.data.train.completion) == ("question", "answer")
    assert sums.data.test is not None
    assert sums.data.test.prompt == "question"


def test_a_text_of_ones_own_is_the_original_benchmark(root: Path) -> None:
    file = lines(root / "notes.jsonl", [{"text": text} for text in TEXTS])
    original = root / "before.txt"
    original.write_text("what the base could say before")
    recipe = load_recipe(scaffold(root, "notes", file, "causal-lm", choice=Choice(original=original)))
    assert recipe.data.train.text == "text"
    assert recipe.benchmarks["original"].kind == "perplexity"
    assert isinstance(recipe.data.source, dict)
    assert recipe.data.source["original.txt"] == "path:before.txt"
    with pytest.raises(DataError, match=r"a plain text, a file named \*\.txt"):
        scaffold(root, "others", file, "causal-lm", choice=Choice(original=file))


@pytest.mark.parametrize(
    ("row", "loss"),
    [
        ({"sentence1": "a b", "sentence2": "a c", "score": 4.5}, "cosine"),
        ({"query": "a b", "document": "a c"}, "multiple-negatives"),
        ({"anchor": "a b", "positive": "a c", "negative": "x y"}, "triplet"),
    ],
)
def test_pairs_choose_their_loss(root: Path, row: dict[str, object], loss: str) -> None:
    file = lines(root / "pairs.jsonl", [row] * 40)
    recipe = load_recipe(scaffold(root, "pairs", file, "sentence-embedding"))
    assert recipe.finetune.loss == loss
    assert recipe.data.train.score_range == ((0, 5) if "score" in row else (0, 1))


def test_labelled_texts_make_an_embedding_recipe_too(root: Path) -> None:
    recipe = load_recipe(scaffold(root, "intents", reviews(root / "d.csv"), "sentence-embedding"))
    assert (recipe.finetune.loss, recipe.data.labels) == ("supervised-contrastive", ["bad", "good"])


def images(folder: Path) -> Path:
    """Write 12 images in folders of two labels; what they hold is not looked at here."""
    for number in range(12):
        path = folder / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"png")
    return folder


def test_folders_and_tables_of_images(root: Path) -> None:
    folder = images(root / "pets")
    names = sorted(path.relative_to(root).as_posix() for path in folder.glob("*/*"))
    rows = [[name, Path(name).parent.name, "test" if i % 2 else "train"] for i, name in enumerate(names)]
    listed = table(root / "labels.csv", ["file", "kind", "split"], rows)
    made = scaffold(root, "pets", folder, "image-classification", "path:base", Choice(original=listed))
    recipe = load_recipe(made)
    assert (recipe.data.train.format, recipe.data.labels) == ("image-folder", ["cat", "dog"])
    assert recipe.finetune.max_length is None
    benchmark = recipe.benchmarks["original"]
    assert benchmark.kind == "probe"
    assert (benchmark.table.image, benchmark.table.where) == ("file", {"split": "test"})
    assert isinstance(recipe.data.source, dict)
    assert recipe.data.source["images"] == "path:pets"


def test_images_need_a_base_and_an_original_benchmark(root: Path) -> None:
    folder = images(root / "pets")
    with pytest.raises(ConfigError, match="need --base"):
        scaffold(root, "pets", folder, "image-classification")
    with pytest.raises(ConfigError, match="need --original"):
        scaffold(root, "pets", folder, "image-classification", "path:base")
    listed = table(root / "labels.csv", ["file", "kind"], [["no/such.png", "a"], ["other.png", "b"]] * 5)
    with pytest.raises(DataError, match=r"no image no/such\.png beside it"):
        scaffold(root, "pets", listed, "image-classification", "path:base", Choice(original=folder))


def test_a_split_column_is_kept_and_a_test_file_must_fit(root: Path) -> None:
    rows = [[text, "ab"[i % 2], "test" if i % 3 else "train"] for i, text in enumerate(TEXTS)]
    recipe = load_recipe(make(root, table(root / "d.csv", ["text", "label", "split"], rows)))
    assert recipe.data.train.where == {"split": "train"}
    assert recipe.data.test is not None
    assert recipe.data.test.where == {"split": "test"}
    other = table(root / "t.csv", ["text", "topic"], [["a", "b"]])
    with pytest.raises(DataError, match=r"t\.csv has no column label"):
        scaffold(root, "second", root / "d.csv", "text-classification", choice=Choice(test=other))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["good"] * 3 + ["bad"] * 2 + ["odd"], ["'odd': 1 row(s), and none to learn from"]),
        (["good"] * 3 + [" bad"], ["'bad': 1 row(s), at least 2 are needed"]),
        (["good"] * 3 + ["", "worse"], [
            "'worse': 1 row(s), and none to learn from",
            "'bad': 0 row(s), at least 2 are needed",
            "1 of 5 rows have no sentiment",
        ]),
    ],
)  # fmt: skip
def test_a_test_file_that_prepare_would_refuse_is_refused_now(
    root: Path, labels: list[str], said: list[str]
) -> None:
    test = table(root / "t.csv", ["review", "sentiment"], [["so", label] for label in labels])
    with pytest.raises(DataError, match=r"--test .*t\.csv does not fit the labels of the training") as caught:
        make(root, reviews(root / "d.csv"), Choice(test=test))
    assert caught.value.problems == said
    assert list((root / "recipes").iterdir()) == []
    fitting = [["so", label] for label in ["good", "good ", "bad", "bad"]]
    assert make(root, root / "d.csv", Choice(test=table(root / "t.csv", ["review", "sentiment"], fitting)))


def test_a_test_file_of_several_labels_a_row_is_held_to_the_same(root: Path) -> None:
    rows = [[text, ["late", "broken", "late;broken", ""][i % 4]] for i, text in enumerate(TEXTS)]
    train = table(root / "d.csv", ["text", "labels"], rows)
    test = table(root / "t.csv", ["text", "labels"], [["so", "late;odd"], ["so", "broken;late"], ["so", ""]])
    with pytest.raises(DataError, match="does not fit the labels") as caught:
        make(root, train, Choice(test=test, label_separator=";"))
    assert caught.value.problems == [
        "'odd': 1 row(s), and none to learn from",
        "'broken': 1 row(s), at least 2 are needed",
    ]
    table(test, ["text", "labels"], [["so", "late"], ["so", "broken;late"], ["so", ""], ["so", "broken"]])
    assert make(root, train, Choice(test=test, label_separator=";"))


def test_a_recipe_that_does_not_load_is_not_left_behind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise ConfigError("no")

    monkeypatch.setattr("flows.scaffold.load_recipe", fail)
    with pytest.raises(PipelineError):
        make(root, reviews(root / "d.csv"))
    assert not list((root / "recipes").iterdir())
