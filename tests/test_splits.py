"""Splits: a group's place is its own, and tables that do not fit their schema are said, all at once."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tasks.errors import DataError, StageError
from tasks.splits import first_by_hash, hash_positions, read_splits
from tests.gate_data import ordinary, reviews, write_splits

NAMES = some.lists(some.text(max_size=8), min_size=1, max_size=40)


@settings(deadline=None)
@given(groups=NAMES, more=NAMES, seed=some.integers(0, 2**31))
def test_a_groups_place_does_not_depend_on_the_others(groups: list[str], more: list[str], seed: int) -> None:
    before = hash_positions(pd.Series(groups), seed)
    after = hash_positions(pd.Series(more + groups), seed).iloc[len(more) :]
    assert before.tolist() == after.tolist()
    assert before.between(0, 1, inclusive="left").all()
    places = pd.DataFrame({"group": groups, "place": before})
    assert (places.groupby("group")["place"].nunique() == 1).all(), "a group is never separated"


@settings(deadline=None)
@given(groups=NAMES, most=some.integers(1, 50), seed=some.integers(0, 99))
def test_a_sample_is_what_hashes_first(groups: list[str], most: int, seed: int) -> None:
    rows = pd.DataFrame({"group": groups})
    taken = first_by_hash(rows, most, seed)
    assert len(taken) == min(most, len(rows))
    place = hash_positions(rows["group"], seed, "sample")
    left = place.drop(taken.index)
    assert left.empty or place.loc[taken.index].max() <= left.min()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    paths = write_splits(tmp_path, ordinary(street=reviews(30, 3000)))
    schema, tables = read_splits(paths)
    assert list(tables) == ["train", "validation", "test", "street"]
    assert {name: len(table) for name, table in tables.items()} == schema.rows


def test_a_missing_and_a_surplus_table_are_both_said(tmp_path: Path) -> None:
    paths = write_splits(tmp_path, ordinary(street=reviews(30, 3000)))
    paths.validation.unlink()
    (paths.targets / "street.parquet").rename(paths.targets / "road.parquet")
    with pytest.raises(StageError, match=r"run `prepare` again") as caught:
        read_splits(paths)
    said = "\n".join(caught.value.problems)
    for words in ("validation.parquet is missing", "street.parquet is missing", "road.parquet is not in"):
        assert words in said


def test_tables_that_are_no_splits_are_all_said(tmp_path: Path) -> None:
    paths = write_splits(tmp_path, ordinary())
    paths.train.write_bytes(b"PAR1, and no more")
    pd.read_parquet(paths.validation).drop(columns=["group"]).to_parquet(paths.validation)
    pd.read_parquet(paths.test).iloc[1:].to_parquet(paths.test)
    with pytest.raises(DataError, match=r"run `prepare` again") as caught:
        read_splits(paths)
    said = "\n".join(caught.value.problems)
    for words in ("is no Parquet file", "lacks the column(s) group", "has 39 rows, the schema says 40"):
        assert words in said
