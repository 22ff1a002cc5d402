"""Raw files: read as they are, and everything that is wrong with them said at once, with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from tasks.errors import ConfigError, DataError
from tasks.recipe import UNLABELLED, Table
from tasks.tables import indexed, read_table, table_fingerprint, write_table

LABELS = ["negative", "positive"]


def read(folder: Path, content: str | bytes, **table: object):  # type: ignore[no-untyped-def]
    """Write `content` as data.csv and read it."""
    (folder / "data.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(Table.model_validate({"file": "data.csv", **table}), folder, LABELS)


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbftext,label\ngood,positive\n", b"text,label\r\ngood,positive\r\n"]
)
def test_a_byte_order_mark_and_windows_lines_are_no_matter(tmp_path: Path, content: bytes) -> None:
    frame, dropped = read(tmp_path, content)
    assert frame.to_dict("records") == [{"id": "2", "text": "good", "label": "positive", "group": "2"}]
    assert dropped == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"data\.csv is empty"),
        (b"text,label\n", r"data\.csv has no rows"),
        (b"\n\n", r"data\.csv has no rows"),
        ("text,label\ngood,positive\n".encode("utf-32"), r"is UTF-32; convert it: iconv -f UTF-32 -t UTF-8"),
        ("text,label\ngood,positive\n".encode("utf-16-le"), r"is binary \(a NUL byte at offset 1\)"),
        ("text,label\ngood,positive\n".encode("utf-16"), r"is UTF-16; convert it: iconv -f UTF-16 -t UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00", r"is binary \(a NUL byte at offset 8\)"),
        (b"text,label\ngood,positive\ncaf\xe9,negative\n", r"line 3: byte 0xe9 is not valid UTF-8.*LATIN1"),
        (b"review,label\ngood,positive\n", r"no column 'text' \(for text\)\. Columns here: review, label\.$"),
        (b"text,label,text\ngood,positive,x\n", r"column name\(s\) text are repeated"),
        (b'text,label\n"good,positive\n', r"row from line 2 on: .*For raw text set `quoting: false`"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_remedy(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "date.csv").write_text("x")
    with pytest.raises(DataError, match=r"There is no .*data\.csv\. In that folder: date\.csv"):
        read_table(Table(file="data.csv"), tmp_path, LABELS)


def test_ragged_rows_are_listed_with_their_lines(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 ragged row\(s\)") as caught:
        read(tmp_path, 'text,label\na,positive\nb\n"c\nd",positive\ne,positive,f\n')
    assert caught.value.problems == ["line 3: 1 fields, 2 expected", "line 6: 3 fields, 2 expected"]


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    rows = "id,text,label\n1,good,positive\n1,,negative\n3,bad,\n4,fine,neutral\n5,ok,mixed\n"
    with pytest.raises(DataError, match="cannot be used") as caught:
        read(tmp_path, rows, id="id")
    assert caught.value.problems == [
        "the text is empty: 1 row(s), line 3",
        "the id is missing or repeated: 2 row(s), line 2, 3",
        "the label is empty: 1 row(s), line 4",
        "the label is not declared (mixed, neutral); declared are negative, positive: 2 row(s), line 5, 6",
    ]


def test_a_long_list_is_cut_and_says_so(tmp_path: Path) -> None:
    rows = "text,label\n" + "".join(f"row {number},wrong\n" for number in range(9))
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows)
    assert "9 row(s), line 2, 3, 4, 5, 6, …" in caught.value.problems[0]


def test_missing_labels_are_no_label(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a", "label": null}\n{"text": "b", "label": "positive"}\n')
    with pytest.raises(DataError) as caught:
        read_table(Table(file="data.jsonl", format="jsonl"), tmp_path, LABELS)
    assert caught.value.problems == ["the label is empty: 1 row(s), line 1"]


def test_lines_that_are_no_json_are_listed(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a", "label": "positive"}\n{oops\n[1]\n')
    with pytest.raises(DataError, match="is not JSON Lines") as caught:
        read_table(Table(file="data.jsonl", format="jsonl"), tmp_path, LABELS)
    assert [problem[:6] for problem in caught.value.problems] == ["line 2", "line 3"]


def test_the_sign_of_a_rating_is_a_label_and_weak_ones_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = "1_1\t2.5\tgood\n1_2\t-0.4\tmeh\n2_1\t-3\tbad\n3_1\t0\tnothing\n"
    table = {"format": "tsv", "header": ["id", "rating", "text"], "quoting": False, "id": "id", "group": "id"}
    frame, dropped = read(tmp_path, rows, **table, group_pattern=r"^(\d+)_", sign_of="rating", drop_below=0.5)
    assert frame[["id", "label", "group"]].to_numpy().tolist() == [
        ["1_1", "positive", "1"],
        ["2_1", "negative", "2"],
    ]
    assert dropped == {"|rating| < 0.5": 2}
    with pytest.raises(DataError) as caught:
        read(tmp_path, "1_1\tmany\tgood\n", **table, sign_of="rating")
    assert "'rating' is no number: 1 row(s), line 1" in caught.value.problems
    with pytest.raises(DataError) as caught:
        read(tmp_path, "x\t2\tgood\n", **table, group_pattern=r"^(\d+)_", sign_of="rating")
    assert "does not match group_pattern" in caught.value.problems[0]


def test_columns_of_parquet_are_read_and_a_broken_file_is_said(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a", "b"], "label": ["positive", "negative"]}).to_parquet(tmp_path / "d.parquet")
    frame, _ = read_table(Table(file="d.parquet", format="parquet"), tmp_path, LABELS)
    assert frame["text"].tolist() == ["a", "b"]
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="no readable parquet file"):
        read_table(Table(file="d.parquet", format="parquet"), tmp_path, LABELS)


def test_a_quotation_mark_that_is_never_closed_is_found_where_it_opens(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row from line 3 on: .*`quoting: false`"):
        read(tmp_path, 'text,label\na,positive\n"b,negative\nc,positive\nd,negative\n')


def test_a_text_may_be_as_long_as_a_contract(tmp_path: Path) -> None:
    frame, _ = read(tmp_path, f"text,label\n{'x' * 200_000},positive\n")
    assert frame["text"].str.len().tolist() == [200_000]


def test_only_a_line_feed_ends_a_line_of_json(tmp_path: Path) -> None:
    content = '{"text": "a\u2028b\x85c", "label": "positive"}\r\n\n{"text": "d", "label": "negative"}'
    frame, _ = read(tmp_path, content, format="jsonl")
    assert frame[["id", "text"]].to_numpy().tolist() == [["1", "a\u2028b\x85c"], ["3", "d"]]


def test_many_bad_lines_of_json_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, "{oops\n" * 8, format="jsonl")
    assert len(caught.value.problems) == 6
    assert caught.value.problems[-1] == "and 3 more"


def test_rows_without_a_group_or_an_id_are_not_one_group(tmp_path: Path) -> None:
    rows = "text,label,patient\na,positive,p1\nb,negative,\nc,negative, \n"
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows, group="patient")
    assert caught.value.problems == ["the group is empty: 2 row(s), line 3, 4"]
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows, id="patient")
    assert "the id is missing or repeated: 2 row(s), line 3, 4" in caught.value.problems
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows, group="patient", group_pattern="([a-z]*)")
    assert "'patient' does not match group_pattern '([a-z]*)': 2 row(s), line 3, 4" in caught.value.problems


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"group_pattern '\(' is no regular expression"),
        ("p", "put parentheses around what is the group"),
    ],
)
def test_a_wrong_group_pattern_is_an_error_of_the_recipe(tmp_path: Path, pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, "text,label\na,positive\n", group="text", group_pattern=pattern)


def test_every_row_too_weak_says_what_to_lower(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, "text,rating\na,0.1\nb,-0.2\n", sign_of="rating", drop_below=0.5)
    assert caught.value.problems == ["every row has |rating| below 0.5: lower drop_below"]


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    frame, _ = read(tmp_path, "text,label\na,positive\nb,negative\n")
    write_table(frame, tmp_path / "one" / "x.parquet")
    write_table(frame.set_index(pd.Index([7, 3])), tmp_path / "two.parquet")
    assert (tmp_path / "one" / "x.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_a_prompt_and_its_completion_are_a_conversation(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text('{"q": " 1 + 1? ", "a": "2"}\n{"q": "2 + 2?", "a": "4"}\n')
    table = Table(file="sums.jsonl", format="jsonl", prompt="q", completion="a")
    frame, _ = read_table(table, tmp_path, [], "causal-lm")
    assert json.loads(frame["messages"][0]) == [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
    ]
    (tmp_path / "sums.jsonl").write_text('{"q": "", "a": "2"}\n{"q": "2 + 2?", "a": null}\n')
    with pytest.raises(
        DataError, match=r"prompt is empty: 1 row\(s\), line 1[\s\S]*completion is empty: 1 row\(s\), line 2"
    ):
        read_table(table, tmp_path, [], "causal-lm")
    with pytest.raises(ValidationError, match="come together"):
        Table(file="sums.jsonl", prompt="q")


def test_a_folder_of_folders_names_the_labels(tmp_path: Path) -> None:
    for name in ("negative/b.png", "positive/deep/a.jpg", "positive/notes.txt"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    table = Table(file="images", format="image-folder", image="image")
    frame, _ = read_table(table, tmp_path, LABELS, "image-classification")
    assert frame["label"].tolist() == ["negative", "positive"]
    assert frame["image"].tolist() == [b"negative/b.png", b"positive/deep/a.jpg"]
    with pytest.raises(DataError, match=r"There is no folder .*gone"):
        read_table(table.model_copy(update={"file": "gone"}), tmp_path, LABELS, "image-classification")
    with pytest.raises(ValidationError, match="set `image: image`, and neither"):
        Table(file="images", format="image-folder", image="image", image_folder="images")


def test_a_target_may_lack_labels(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\na,positive\nb,\nc,neutral\n")
    kind = Table(file="data.csv", may_lack_labels=True)
    with pytest.raises(DataError) as caught:
        read_table(kind, tmp_path, LABELS)
    assert caught.value.problems == [
        "the label is not declared (neutral); declared are negative, positive: 1 row(s), line 4"
    ]
    (tmp_path / "data.csv").write_text("text,label\na,positive\nb,\n")
    frame, _ = read_table(kind, tmp_path, LABELS)
    assert indexed(frame, LABELS)["label"].tolist() == [1, UNLABELLED]
    (tmp_path / "data.csv").write_text("text\na\nb\n")
    frame, _ = read_table(kind, tmp_path, LABELS)
    assert indexed(frame, LABELS)["label"].tolist() == [UNLABELLED, UNLABELLED]
    (tmp_path / "data.csv").write_text("text,stars\na,-2\nb,\nc,0.1\n")
    stars = Table(file="data.csv", may_lack_labels=True, sign_of="stars", drop_below=0.5)
    frame, dropped = read_table(stars, tmp_path, LABELS)
    assert indexed(frame, LABELS)["label"].tolist() == [0, UNLABELLED]
    assert dropped == {"|stars| < 0.5": 1}


def test_a_table_is_named_by_its_values_and_their_order() -> None:
    rows = pd.DataFrame({"text": ["a", "b"], "label": [0, 1], "image": [b"1", b"2"]})
    named = table_fingerprint(rows)
    assert table_fingerprint(rows.copy()) == named
    assert table_fingerprint(rows.iloc[::-1]) != named
    assert table_fingerprint(rows.assign(label=[0, 2])) != named
    assert table_fingerprint(rows.rename(columns={"text": "query"})) != named
    assert table_fingerprint(rows.assign(label=rows["label"].astype("int32"))) == named, "the same numbers"
