"""Embeddings are computed once a text, wherever it turns up again, and a damaged store heals."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tasks.embeddings import embed
from tasks.errors import DataError


class Counting:
    """An encoder that counts what it embeds: length and first letter."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str], *, max_length: int) -> np.ndarray:
        self.seen += texts
        return np.array([[len(text), ord((text or " ")[0])] for text in texts], dtype=np.float32)


def test_only_new_texts_are_embedded_and_the_order_is_the_callers(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    embed(["ccc", "a", "ccc"], lambda: first, tmp_path, 128)
    assert first.seen == ["a", "ccc"]
    found = embed(["bb", "ccc", "a", ""], lambda: second, tmp_path, 128)
    assert second.seen == ["", "bb"]
    assert found.tolist() == [[2, 98], [3, 99], [1, 97], [0, 32]]
    assert found.dtype == np.float32


def test_the_model_is_not_loaded_when_nothing_is_new(tmp_path: Path) -> None:
    embed(["a"], Counting, tmp_path, 128)

    def fail() -> Counting:
        raise AssertionError("loaded")

    assert embed(["a", "a"], fail, tmp_path, 128).shape == (2, 2)


def test_writers_at_once_leave_whole_shards(tmp_path: Path) -> None:
    texts = [str(number) for number in range(300)]
    with ThreadPoolExecutor(8) as pool:
        parts = [texts[start:] for start in range(0, 80, 10)]
        results = list(pool.map(lambda part: embed(part, Counting, tmp_path, 128), parts))
    assert [len(result) for result in results] == [len(part) for part in parts]
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".npz"]
    assert embed(texts, Counting, tmp_path, 128)[:, 0].tolist() == [len(text) for text in texts]


def test_a_damaged_shard_is_embedded_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    embed(["a", "b"], Counting, tmp_path, 128)
    [shard] = tmp_path.iterdir()
    shard.write_bytes(shard.read_bytes()[:-50])
    again = Counting()
    embed(["a", "b"], lambda: again, tmp_path, 128)
    assert sorted(again.seen) == ["a", "b"]
    assert "damaged" in caplog.text


def test_nan_embeddings_are_refused_by_text_and_not_stored(tmp_path: Path) -> None:
    class Broken(Counting):
        def encode(self, texts: Sequence[str], *, max_length: int) -> np.ndarray:
            return np.array([[np.nan if text == "bad one" else 1.0] for text in texts], dtype=np.float32)

    with pytest.raises(DataError, match="1 of 2 texts") as caught:
        embed(["good", "bad one"], Broken, tmp_path, 128)
    assert caught.value.problems == ["'bad one'"]
    assert not list(tmp_path.iterdir())
