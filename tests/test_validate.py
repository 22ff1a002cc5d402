"""`validate`: planted defects are found by row, real texts left alone, mistakes of the recipe all listed."""

import io
import json
import re
import shutil
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.errors import ConfigError, DataError
from tasks.models import load_tokenizer
from tasks.paths import Paths
from tasks.recipe import Validate
from tasks.reports import Expectation, SplitSchema, ValidateReport, read_report, write_report
from tasks.sources import resolve_base
from tasks.validate import validate
from tasks.validation import columns, running, tokens
from tasks.validation.rules import CONTROL_CHARACTERS, MOJIBAKE
from tests.gate_data import Row, ordinary, reviews, write_splits
from tests.tiny import make_tiny_base


def section(expectations: list[dict[str, Any]] | None = None, **more: int) -> Validate:
    return Validate.model_validate(
        {"min_rows_per_class": 50, "max_characters": 500, "expectations": expectations or [], **more}
    )


def run(paths: Paths, **more: Any) -> ValidateReport:
    validate(section(**more), paths=paths)
    return read_report(paths.validate, ValidateReport)


def failures(report: ValidateReport) -> list[Expectation]:
    return [expectation for expectation in report.expectations if not expectation.success]


def with_train(*rows: Row) -> dict[str, list[Row]]:
    tables = ordinary()
    return {**tables, "train": [*tables["train"], *rows]}


def test_ordinary_data_fails_nothing_and_leaves_data_docs_and_no_other_files(tmp_path: Path) -> None:
    before = set(Path(tempfile.gettempdir()).iterdir())
    paths = write_splits(tmp_path, ordinary(shop=reviews(10, 5000)))
    report = run(paths)
    assert failures(report) == []
    assert report.failed_expectations == 0
    assert report.rows == 210
    assert len(report.expectations) == 11
    assert (paths.scratch / "data_docs" / "index.html").is_file()
    made = set(Path(tempfile.gettempdir()).iterdir()) - before
    assert not [path for path in made if (path / "static").exists()], (
        "GX left Data Docs in the temporary folder"
    )


FAULTS = [
    ("", r"\S"),
    (" \n ", r"\S"),
    ("x" * 501, "max_value"),
    ("broken \ufffd sign", "\ufffd"),
    ("a bell \x07 rings", CONTROL_CHARACTERS),
    ("next line \x85 of Latin-1", CONTROL_CHARACTERS),
    ("the cafÃ© closed", MOJIBAKE),
    ("it doesnâ€™t work", MOJIBAKE),
    ("ten Â£ too much", MOJIBAKE),
    ("Ã–l is cheap", MOJIBAKE),
    ("ZU SCHÃ–N", MOJIBAKE),
    ("voilÃ\u00a0 tout", MOJIBAKE),
    ("ÐŸÑ€Ð¸Ð²ÐµÑ‚ from Moscow", MOJIBAKE),
    ("æ—¥æœ¬ is far", MOJIBAKE),
    ("so happy ðŸ˜€", MOJIBAKE),
]


def test_planted_defects_are_found_by_their_rows(tmp_path: Path) -> None:
    report = run(write_splits(tmp_path, with_train(*[(text, 1) for text, _ in FAULTS])))
    found = [
        (row, value, str(item.arguments.get("regex", "max_value")))
        for item in failures(report)
        for row, value in zip(item.failed_ids, item.failed_values, strict=True)
    ]
    assert sorted(found) == sorted(
        (f"train/t{120 + number}", text if len(text) <= 80 else text[:79] + "…", by)
        for number, (text, by) in enumerate(FAULTS)
    )
    bells = next(item for item in failures(report) if item.arguments.get("regex") == CONTROL_CHARACTERS)
    assert bells.failed_count == 2
    assert bells.observed == "2 of 215 rows do not hold"


def test_real_texts_in_many_scripts_are_no_mojibake(tmp_path: Path) -> None:
    texts = [
        "“NÃO”, disse ela: «É verdade»… e a AMANHÃ?",
        "l’été dernier à « Évry » — c’était l’île d’Yeu…",
        "Ærø, Århus, Ålesund – Øl og smørrebrød",
        "Привет, как дела?",
        "日本語のレビューです。",
        "naïve café, 5 £, 20 °C, ½ price, tabs\tand\nlines",
        "So happy 😀 👩‍👩‍👧 ❤️",
        "ΑΒΓ «ελληνικά» …",
        "‘ALLÉ’ “CAFÉ” Ã ê",
        "ATÉ AMANHÃ… MINHA IRMÃ—e eu",
        "TÔI ĐÃ… LÀM, ĐÃ\u00a0XONG",
        "BRASIL: A MAÇÃ–fruta",
    ]
    report = run(write_splits(tmp_path, with_train(*[(text, 0) for text in texts])))
    assert failures(report) == []


def test_null_text_unknown_label_repeated_id_and_small_class_are_all_reported(tmp_path: Path) -> None:
    tables = {"train": reviews(60), "validation": reviews(40, 1000), "test": reviews(40, 2000)}
    texts: list[str | None] = [text for text, _ in tables["train"]]
    texts[3] = None
    labels = [7, *[label for _, label in tables["train"]][1:]]
    ids = ["same", "same", *[f"t{number}" for number in range(2, 60)]]
    paths = write_splits(tmp_path, tables, text={"train": texts}, label={"train": labels}, id={"train": ids})
    found = {(item.type, str(item.arguments)): item for item in failures(run(paths))}
    by_type = {kind: item for (kind, _), item in found.items()}
    assert by_type["expect_compound_columns_to_be_unique"].failed_ids == ["train/same", "train/same"]
    assert by_type["expect_column_values_to_not_be_null"].failed_ids == ["train/t3"]
    assert by_type["expect_column_values_to_be_in_set"].failed_ids == ["train/same"]
    small = [item for (kind, _), item in found.items() if kind == "expect_table_row_count_to_be_between"]
    assert [item.arguments["where"] for item in small] == [
        {"split": "train", "label": "negative"},
        {"split": "train", "label": "positive"},
    ]
    assert small[1].observed == "observed 30"


def test_same_id_in_two_splits_is_no_failure(tmp_path: Path) -> None:
    tables = ordinary()
    ids = {name: [str(number) for number in range(len(rows))] for name, rows in tables.items()}
    assert failures(run(write_splits(tmp_path, tables, id=ids))) == []


def test_expectations_of_the_recipe_see_labels_by_name_and_the_split(tmp_path: Path) -> None:
    expectations = [
        {
            "type": "expect_column_values_to_be_in_set",
            "arguments": {"column": "label", "value_set": ["positive"]},
        },
        {
            "type": "expect_column_distinct_values_to_contain_set",
            "arguments": {"column": "split", "value_set": ["test"]},
        },
    ]
    report = run(write_splits(tmp_path, ordinary()), expectations=expectations)
    [only] = failures(report)
    assert only.failed_count == 100
    assert len(only.failed_ids) == 20
    assert only.arguments == expectations[0]["arguments"]


def test_every_mistake_in_the_recipes_expectations_is_listed(tmp_path: Path) -> None:
    paths = write_splits(tmp_path, ordinary())
    expectations = [
        {"type": "expect_column_values_to_not_be_nul", "arguments": {"column": "text"}},
        {"type": "expect_column_values_to_not_be_null", "arguments": {"colum": "text", "mostly": 7}},
        {"type": "expect_column_to_exist", "arguments": {"column": "text", "meta": {"position": 0}}},
    ]
    with pytest.raises(ConfigError, match=r"3 expectation\(s\)") as caught:
        run(paths, expectations=expectations)
    first, second, third = caught.value.problems
    assert "validate.expectations.0" in first
    assert "did you mean expect_column_values_to_not_be_null" in first
    assert "column: field required" in second
    assert "colum: extra fields not permitted" in second
    assert "meta" in third
    assert not paths.validate.exists()


def test_expectation_on_a_column_that_is_not_there_is_a_mistake_of_the_recipe(tmp_path: Path) -> None:
    expectations = [
        {"type": "expect_column_mean_to_be_between", "arguments": {"column": "price", "min_value": 1}}
    ]
    with pytest.raises(ConfigError, match="could not be evaluated") as caught:
        run(write_splits(tmp_path, ordinary()), expectations=expectations)
    assert '"price" in BatchData does not exist' in caught.value.problems[0]


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    paths = write_splits(tmp_path, with_train(("", 0), ("", 1)))
    run(paths)
    first = paths.validate.read_bytes()
    run(paths)
    assert paths.validate.read_bytes() == first
    assert json.loads(first)["failed_expectations"] == 1


# --- in batches ----------------------------------------------------------------------------------------


def expect(name: str, column: str | None = None, **arguments: Any) -> dict[str, Any]:
    where = {"column": column} if column else {}
    return {"type": f"expect_{name}", "arguments": {**where, **arguments}}


EVERY_WAY = [
    expect("column_values_to_be_unique", "text"),
    expect("column_values_to_be_unique", "id", mostly=0.5),
    expect("column_unique_value_count_to_be_between", "text", max_value=5),
    expect("column_values_to_be_in_set", "label", value_set=["positive"], mostly=0.49),
    expect("column_values_to_be_in_set", "label", value_set=["positive"], mostly=0.52),
    expect("column_values_to_match_regex", "text", regex="kettle|lamp"),
    expect("column_values_to_be_null", "text", mostly=0.02),
    expect("column_distinct_values_to_equal_set", "split", value_set=["train"]),
    expect("column_value_lengths_to_be_between", "text", max_value=50),
    expect("column_most_common_value_to_be_in_set", "split", value_set=["test"]),
    expect("column_to_exist", "group"),
    expect("table_columns_to_match_set", column_set=["id", "text"]),
    expect("column_pair_values_to_be_equal", column_A="id", column_B="group"),
    expect("select_column_values_to_be_unique_within_record", column_list=["id", "group"]),
    expect(
        "column_values_to_not_match_regex",
        "text",
        regex="e",
        row_condition='col("split") == "test"',
        condition_parser="great_expectations",
    ),
]


@pytest.fixture
def faulty(tmp_path: Path) -> Paths:
    rows = [*reviews(120), ("", 1), ("copy", 0), ("copy", 1), ("a \x07 rings", 7), *reviews(40, 300)]
    texts: list[str | None] = [text for text, _ in rows]
    texts[5] = texts[90] = None
    return write_splits(tmp_path, ordinary(shop=reviews(30, 5000)) | {"train": rows}, text={"train": texts})


def test_what_is_found_in_batches_equals_one_run_over_the_whole_table(
    faulty: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(kind: str) -> str:
        return "columns"

    parts = run(faulty, expectations=EVERY_WAY)
    monkeypatch.setattr(columns, "ROWS_A_BATCH", 7)
    small = run(faulty, expectations=EVERY_WAY)
    assert small == parts
    assert {item.reads for item in small.expectations} == {"batches", "columns", "shape"}
    assert 10 < small.failed_expectations < len(small.expectations)
    monkeypatch.setattr(running, "reads_of", whole)
    monkeypatch.setattr(running, "_columns_of", lambda rule, known: known)
    monkeypatch.setattr(running, "EQUALITY", frozenset())
    once = run(faulty, expectations=EVERY_WAY)
    assert len(once.expectations) == len(small.expectations)
    for ours, theirs in zip(small.expectations, once.expectations, strict=True):
        if ours.arguments.get("column") == "text" and ours.type in running.EQUALITY | {
            "expect_column_values_to_be_unique"
        }:
            ours = ours.model_copy(update={"failed_values": theirs.failed_values})  # digests
        assert ours == theirs


def test_columns_that_would_fill_the_memory_are_refused_by_name(
    faulty: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "WHOLE_COLUMNS_BYTES", 10_000)
    with pytest.raises(ConfigError, match="cannot be added up over batches") as caught:
        run(faulty, expectations=EVERY_WAY)
    assert any(
        "validate.expectations.0: expect_column_values_to_be_unique" in p for p in caught.value.problems
    )
    assert not faulty.validate.exists()


def test_every_expectation_that_is_added_up_is_one_that_great_expectations_has() -> None:
    import great_expectations  # noqa: F401  (registers them)
    from great_expectations.expectations.registry import list_registered_expectation_implementations

    known = set(list_registered_expectation_implementations())
    assert len(running.ROW_BY_ROW) > 15
    assert known >= running.ROW_BY_ROW | running.SHAPE | running.EQUALITY
    assert not running.ROW_BY_ROW & (running.SHAPE | running.EQUALITY)
    assert running.reads_of("expect_column_values_to_be_unique") == "columns"
    assert running.reads_of("expect_column_value_z_scores_to_be_less_than") == "columns"


# --- Data Docs -----------------------------------------------------------------------------------------


def test_data_docs_need_no_network_and_say_what_failed(faulty: Paths) -> None:
    run(faulty)
    pages = list((faulty.scratch / "data_docs").rglob("*.html"))
    assert len(pages) > 1
    for page in pages:
        found = page.read_text(encoding="utf-8")
        assert not re.search(r"<(script|link|img)\b[^>]*(src|href)=.https?:", found)
        assert "<script" not in found
        assert "<style>" in found
    [details] = [page for page in pages if "validations" in page.parts and page.name != "index.html"]
    said = details.read_text(encoding="utf-8")
    assert "a \x07 rings" in said
    assert re.search(r"\d+ \(split train, label \w+\)", said), "rows of which label"


def test_the_first_page_of_data_docs_leads_to_the_others(faulty: Paths) -> None:
    report = run(faulty)
    folder = faulty.scratch / "data_docs"
    first = (folder / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'href="([^"]+)"', first)
    others = {page.relative_to(folder).as_posix() for page in folder.rglob("*.html")} - {"index.html"}
    assert set(links) == others
    assert len(others) == 2
    count = len(report.expectations)
    assert f"{count - report.failed_expectations} of {count} expectations hold." in first


# --- bad input: texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2])
def test_sets_of_no_or_few_rows_are_measured_and_fail_for_their_size(tmp_path: Path, count: int) -> None:
    report = run(write_splits(tmp_path, {"train": reviews(count), "validation": [], "test": []}))
    assert report.rows == count
    assert {item.type for item in failures(report)} == {"expect_table_row_count_to_be_between"}
    assert [item.observed for item in failures(report)] == [
        f"observed {(count + 1) // 2}",
        f"observed {count // 2}",
    ]


def test_rows_that_are_all_identical_fail_only_where_uniqueness_is_asked_for(tmp_path: Path) -> None:
    same = [("the very same", number % 2) for number in range(120)]
    paths = write_splits(tmp_path, {"train": same, "validation": same, "test": same})
    assert failures(run(paths)) == []
    unique = [{"type": "expect_column_values_to_be_unique", "arguments": {"column": "text"}}]
    [only] = failures(run(paths, expectations=unique))
    assert only.failed_count == 360
    assert only.failed_ids[:2] == ["train/t0", "train/t1"]


def test_a_text_of_ten_megabytes_is_found_too_long_and_shown_short(tmp_path: Path) -> None:
    report = run(write_splits(tmp_path, with_train(("word " * 2_000_000, 1))))
    [only] = failures(report)
    assert only.type == "expect_column_value_lengths_to_be_between"
    assert only.failed_ids == ["train/t120"]
    assert len(only.failed_values[0]) == 80


def test_bytes_that_are_no_unicode_are_refused_by_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = write_splits(tmp_path, ordinary())
    table = pq.read_table(paths.train)
    raw = [text.as_py().encode() for text in table["text"]]
    raw[4] = b"caf\xe9"
    broken = pa.Array.from_buffers(pa.string(), len(raw), pa.array(raw, type=pa.binary()).buffers())
    pq.write_table(table.set_column(table.column_names.index("text"), "text", broken), paths.train)
    with pytest.raises(DataError, match=r"train\.parquet cannot be read .*UTF-?8"):
        run(paths)


# --- conversations, pairs, images ----------------------------------------------------------------------


def as_task(paths: Paths, task: str, labels: list[str], **columns: list[Any]) -> Paths:
    """Give the training table of made splits other columns, and the schema another task."""
    import pandas as pd

    schema = read_report(paths.schema, SplitSchema)
    for path in (paths.train, paths.validation, paths.test):
        table = pd.read_parquet(path)
        few = {name: values[:1] * len(table) for name, values in columns.items()}
        keep = table if labels else table.drop(columns="label")
        (keep.assign(**few) if path != paths.train else keep.assign(**columns)).to_parquet(path)
    write_report(paths.schema, schema.model_copy(update={"task": task, "labels": labels}))
    return paths


def turns(*said: str) -> str:
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "x": "narrator"}
    return json.dumps([{"role": roles[text[0]], "content": text[1:]} for text in said])


def test_conversations_with_wrong_turns_are_found_by_row(tmp_path: Path) -> None:
    spoken = {
        "fine": turns("shi", "uhello", "ayes"),
        "tool": turns("uhow warm?", "alooking", "t21", "a21 degrees"),
        "roles": turns("uhello", "uhello?", "ayes"),
        "late system": turns("uhello", "sbe kind", "ayes"),
        "last": turns("uhello", "ayes", "uand?"),
        "empty": turns("uhello", "a \n"),
        "unknown": turns("xonce", "uhello", "ayes"),
    }
    tables = {"train": reviews(7), "validation": reviews(2), "test": reviews(2)}
    paths = write_splits(tmp_path, tables, id={"train": list(spoken)})
    as_task(paths, "causal-lm", [], messages=list(spoken.values()))
    report = run(paths, min_rows_per_class=1)
    found = {item.arguments["column"]: item.failed_ids for item in failures(report)}
    assert found == {
        "known_roles": ["train/unknown"],
        "roles_alternate": ["train/roles", "train/late system"],
        "ends_with_assistant": ["train/last"],
        "empty_turns": ["train/empty"],
    }


def test_triplets_whose_sides_say_the_same_are_found(tmp_path: Path) -> None:
    paths = write_splits(
        tmp_path,
        {"train": reviews(4), "validation": reviews(2), "test": reviews(2)},
        text={"train": ["a b", "a b", "a b", "a b"], "validation": ["a b"] * 2, "test": ["a b"] * 2},
    )
    as_task(
        paths, "sentence-embedding", [], positive=["c", " A B ", "c", "c"], negative=["d", "d", "a b", "C"]
    )
    [only] = failures(run(paths, min_rows_per_class=1))
    assert only.arguments["column"] == "same_texts"
    assert only.failed_ids == ["train/t1", "train/t2", "train/t3"]


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """Return a PNG of a few hundred bytes that says it is `side` pixels wide and high."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_bad_images_are_found_each_for_what_it_is(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    fine = Image.fromarray(noise)
    deep = Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 60)
    pictures = {
        "fine": encoded(fine),
        "grey": encoded(fine.convert("L")),
        "cmyk": encoded(fine.convert("CMYK"), "JPEG"),
        "alpha": encoded(fine.convert("RGBA")),
        "truncated": encoded(fine, "JPEG")[:-300],
        "zero": encoded(Image.new("RGB", (8, 8)), "BMP")[:18] + struct.pack("<ii", 0, 0) + b"\0" * 28,
        "bomb": bomb(60_000),
        "smaller bomb": bomb(11_000),
        "text": b"no image at all",
        "nothing": b"",
        "deep": encoded(deep),
        "constant": encoded(Image.new("RGB", (32, 32), (7, 8, 9))),
        "tiny": encoded(fine.resize((4, 40))),
    }
    labels = ["cat", "dog"]
    tables = {"train": reviews(len(pictures)), "validation": reviews(2), "test": reviews(2)}
    paths = write_splits(tmp_path, tables, id={"train": list(pictures)})
    as_task(paths, "image-classification", labels, image=list(pictures.values()))
    report = run(paths, min_rows_per_class=1)
    found = {item.arguments["column"]: item for item in failures(report)}
    faults = dict(zip(found["fault"].failed_ids, found["fault"].failed_values, strict=True))
    assert set(faults) == {
        f"train/{name}" for name in ("truncated", "zero", "bomb", "smaller bomb", "text", "nothing")
    }
    assert "truncated" in faults["train/truncated"]
    assert "decompression bomb" in faults["train/bomb"]
    assert "decompression bomb" in faults["train/smaller bomb"]
    assert faults["train/text"] == "its format is not known"
    assert set(found["bits"].failed_ids) - set(faults) == {"train/deep"}
    assert set(found["width"].failed_ids) - set(faults) == {"train/tiny"}
    assert found["constant"].failed_ids == ["train/constant"]
    assert set(found["channels"].failed_ids) <= set(faults)


# --- tokens --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("bert"))


def test_length_in_tokens_is_that_of_the_base(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "PIECE_CHARACTERS", 100)
    paths = write_splits(tmp_path, with_train(("the battery was good " * 60, 1), ("good " * 78, 1)))
    write_report(paths.base, resolve_base(f"path:{bert}", paths.root))
    [only] = failures(run(paths, max_tokens=80, max_characters=5000))
    assert only.arguments == {"column": "tokens", "min_value": 1, "max_value": 80}
    assert only.failed_ids == ["train/t120"]
    assert only.failed_values == ["242.0"]


def test_tokens_are_counted_when_an_expectation_asks_for_them(tmp_path: Path, bert: Path) -> None:
    paths = write_splits(tmp_path, ordinary())
    write_report(paths.base, resolve_base(f"path:{bert}", paths.root))
    mean = {"type": "expect_column_mean_to_be_between", "arguments": {"column": "tokens", "max_value": 3}}
    [only] = failures(run(paths, expectations=[mean]))
    assert only.reads == "columns"


def test_tokens_are_those_of_the_tokenizer_as_training_loads_it(bert: Path, tmp_path: Path) -> None:
    old = shutil.copytree(bert, tmp_path / "old")
    (old / "tokenizer.json").unlink()
    texts = ["the battery was good", "", "unheard-of words, many"]
    for folder in (bert, old):
        whole = [len(ids) for ids in load_tokenizer(folder)(texts)["input_ids"]]
        assert tokens._of_texts(tokens._backend(folder), [*texts, None]) == [*whole, None]


def test_images_have_no_tokens(tmp_path: Path) -> None:
    paths = as_task(write_splits(tmp_path, ordinary()), "image-classification", ["a", "b"])
    with pytest.raises(DataError, match="Images have no tokens"):
        run(paths, max_tokens=10)
