"""`check` of pairs, conversations and images: the same interface, and what only they can have wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import tasks.check
from tasks.check import check
from tasks.errors import DataError
from tasks.paths import Paths
from tasks.recipe import Check
from tasks.reports import Base, CheckReport, FirstBase, Measure, SplitSchema, read_report, write_report
from tasks.splits import splits_fingerprint
from tests.architectures import word_tokenizer
from tests.bench.planted import encoded, scene
from tests.gate_data import reviews
from tests.test_check import Stand

Tables = dict[str, pd.DataFrame]
KNOWN = {"train": "train", "validation": "validation", "test": "test", "replay": "replay"}


class Likely(Stand):
    """A stand for a language model: a word it knows costs 1 nat, another one 5."""

    def nats(self, table: pd.DataFrame, max_length: int) -> np.ndarray:
        said = [
            " ".join(turn["content"] for turn in json.loads(row) if turn["role"] == "assistant").split()
            for row in table["messages"]
        ] if "messages" in table else [text.split() for text in table["text"]]  # fmt: skip
        return np.array([[sum(5 if word == "xyzzy" else 1 for word in row), len(row)] for row in said])


class Eye:
    """A stand for an image model: a thumbnail of 4 by 4."""

    def encode(self, contents: Sequence[bytes], *, max_length: int) -> np.ndarray:
        small = [Image.open(io.BytesIO(content)).convert("L").resize((4, 4)) for content in contents]
        return np.stack([np.asarray(image, dtype=np.float32).ravel() - 128 for image in small])


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Measure]]:
    """Return a function that runs `check` over tables of a task and returns its measures."""
    monkeypatch.setenv("RETAIN_HOME", str(tmp_path / "store"))
    monkeypatch.setattr(tasks.check, "_tokenizer", lambda base, paths: word_tokenizer())

    def run(
        task: str,
        tables: Tables,
        model: object,
        labels: Sequence[str] = (),
        benchmark: pd.DataFrame | None = None,
    ) -> dict[str, Measure]:
        monkeypatch.setattr(tasks.check, "_encoder", lambda base, schema, paths: model)
        paths = Paths(tmp_path, "sample")
        _write(paths, task, tables, labels, benchmark)
        section = Check(seed=7, near_duplicate_similarity=0.8, permutations=99, max_rows=300)
        check(section, 64, paths=paths)
        return {found.name: found for found in read_report(paths.check, CheckReport).measures}

    return run


def _write(
    paths: Paths, task: str, tables: Tables, labels: Sequence[str], benchmark: pd.DataFrame | None
) -> None:
    files = {}
    for name, table in tables.items():
        named = table.assign(id=[f"{name[0]}{row}" for row in range(len(table))])
        files[name] = getattr(paths, KNOWN[name]) if name in KNOWN else paths.targets / f"{name}.parquet"
        files[name].parent.mkdir(parents=True, exist_ok=True)
        named.assign(group=[f"{name}-{row}" for row in range(len(table))]).to_parquet(files[name])
    for half, rows in ((paths.selection, slice(0, None, 2)), (paths.report_half, slice(1, None, 2))):
        half.mkdir(parents=True, exist_ok=True)
        if benchmark is not None:
            (half / "before").mkdir()
            benchmark.assign(id=benchmark.index.astype(str), group=benchmark.index.astype(str)).iloc[
                rows
            ].to_parquet(half / "before" / "examples.parquet")
    write_report(
        paths.schema,
        SplitSchema(
            task=task, labels=list(labels), rows={name: len(table) for name, table in tables.items()},
            dropped={}, fingerprint=splits_fingerprint(files), source={},
        ),
    )  # fmt: skip
    first = FirstBase(source="test", fingerprint="b" * 64)
    write_report(
        paths.base,
        Base(
            source="test",
            resolved="test",
            fingerprint="b" * 64,
            files=[],
            architecture="test",
            first_base=first,
        ),
    )


def value(found: dict[str, Measure], name: str) -> float:
    measure = found[name].value
    assert measure is not None, found[name].meaning
    return measure


def texts(count: int, start: int = 0) -> list[str]:
    return [text for text, _ in reviews(count, start)]


# --- pairs ---------------------------------------------------------------------------------------------


def scored(first: Sequence[str], second: Sequence[str], scores: Sequence[float]) -> pd.DataFrame:
    return pd.DataFrame({"text": first, "positive": second, "score": scores})


def three(train: pd.DataFrame, test: pd.DataFrame) -> Tables:
    """Return three splits; the rows of validation are like no other."""
    columns = [name for name in train if name != "score"]
    rows = {name: texts(20, 9000 + 100 * number) for number, name in enumerate(columns)}
    other = pd.DataFrame(rows).assign(**({"score": 0.5} if "score" in train else {}))
    return {"train": train, "validation": other, "test": test}


def test_a_pair_turned_round_is_a_copy_a_leak_and_a_contradiction(
    measured: Callable[..., dict[str, Measure]],
) -> None:
    one, other = texts(60), texts(60, 1000)
    train = scored([*one, *other[:6]], [*other, *one[:6]], [0.5] * 60 + [0.9] * 6)
    test = scored([other[10], *texts(9, 2000)], [one[10], *texts(9, 3000)], [0.5] * 10)
    found = measured("sentence-embedding", three(train, test), Stand())
    assert value(found, "exact_duplicate_share") == pytest.approx(6 / 66)
    assert value(found, "leaked_test_share") == pytest.approx(0.1)
    assert value(found, "conflicting_score_share") == pytest.approx(12 / 66)
    assert found["conflicting_score_share"].worst[0].startswith("t0, t60 (0.50, 0.90): ")
    assert value(found, "half_leaked_test_share") == pytest.approx(0.1)
    assert value(found, "half_leaked_validation_share") == 0


def test_a_swap_is_found_in_another_case_and_texts_that_are_divided_otherwise_are_not_the_same(
    measured: Callable[..., dict[str, Measure]],
) -> None:
    more = {"text": ["Banana is sweet", "apple pie recipe", "good", "good morning"]}
    more |= {"positive": ["apple pie recipe", "BANANA is sweet", "morning sir", "sir"]}
    train = pd.concat([pd.DataFrame({"text": texts(60), "positive": texts(60, 1000)}), pd.DataFrame(more)])
    found = measured("sentence-embedding", three(train.reset_index(drop=True), train.iloc[:0]), Stand())
    assert value(found, "exact_duplicate_share") == pytest.approx(1 / 64)


def test_triplets_that_differ_in_what_is_set_against_them_are_no_copies(
    measured: Callable[..., dict[str, Measure]],
) -> None:
    pairs = {"text": [*texts(60), *["What is it?"] * 3], "positive": [*texts(60, 1000), *["A phone."] * 3]}
    train = pd.DataFrame({**pairs, "negative": [*texts(60, 2000), "A book.", "A film.", "a film"]})
    found = measured("sentence-embedding", three(train, train.iloc[:0]), Stand())
    assert value(found, "exact_duplicate_share") == pytest.approx(1 / 63)


def test_a_pair_of_which_one_side_is_known_is_half_leaked(
    measured: Callable[..., dict[str, Measure]],
) -> None:
    train = scored(texts(60), texts(60, 1000), [0.5] * 60)
    test = scored([train["positive"][3].upper(), *texts(9, 2000)], texts(10, 3000), [0.5] * 10)
    found = measured("sentence-embedding", three(train, test), Stand())
    assert value(found, "leaked_test_share") == 0
    assert value(found, "half_leaked_test_share") == pytest.approx(0.1)
    assert found["half_leaked_test_share"].worst[0].startswith("t0: ")


def test_both_sides_of_a_pair_count_as_variety_and_are_read(
    measured: Callable[..., dict[str, Measure]],
) -> None:
    train = pd.DataFrame({"text": texts(60), "positive": ["The one answer."] * 60})
    found = measured("sentence-embedding", three(train, train.iloc[:0]), Stand())
    assert value(found, "shared_positive_share") == 1
    assert found["shared_positive_share"].worst == ["60 texts share: the one answer"]
    assert "120 training texts" in found["truncated_share"].meaning
    other = train.assign(positive=texts(60, 1000))
    varied = measured("sentence-embedding", three(other, train.iloc[:0]), Stand())
    assert value(varied, "shared_positive_share") == 0
    assert value(varied, "effective_diversity") > 1.2 * value(found, "effective_diversity")
    assert found["half_leaked_test_share"].value is None
    assert " | The one answer." in found["effective_diversity"].worst[0]


def test_a_short_benchmark_text_is_found_on_either_side_of_a_pair(
    measured: Callable[..., dict[str, Measure]],
) -> None:
    train = pd.DataFrame({"text": texts(60), "positive": [*texts(59, 1000), "Right to equality"]})
    known = pd.DataFrame({"query": ["right to equality.", *texts(39, 5000)]})
    found = measured("sentence-embedding", three(train, train.iloc[:0]), Stand(), benchmark=known)
    assert value(found, "contaminated_before_share") == pytest.approx(1 / 40)
    assert "t59" in found["contaminated_before_share"].worst[0]


# --- conversations -------------------------------------------------------------------------------------


def talks(replies: Sequence[str], start: int = 0) -> pd.DataFrame:
    asked = texts(len(replies), start)
    rows = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        for question, reply in zip(asked, replies, strict=True)
    ]
    return pd.DataFrame(
        {
            "text": ["\n".join(f"{turn['role']}: {turn['content']}" for turn in row) for row in rows],
            "messages": [json.dumps(row) for row in rows],
        }
    )


def test_a_system_message_that_is_a_rows_own_tells_it_from_others_and_a_shared_one_does_not(
    measured: Callable[..., dict[str, Measure]],
) -> None:
    def answered(system: str) -> dict[str, str]:
        said = [("system", system), ("user", "Sum it up."), ("assistant", "Noted.")]
        turns = [{"role": role, "content": content} for role, content in said]
        return {"text": system, "messages": json.dumps(turns)}

    own, shared = ([answered(mail) for mail in mails] for mails in (texts(60), ["You sum up."] * 60))
    for rows, copies in ((own, 0), (shared, 59 / 60)):
        tables = {
            "train": pd.DataFrame(rows),
            "validation": talks(texts(20, 9000)),
            "test": talks(texts(20, 7000)),
        }
        found = measured("causal-lm", tables, Likely())
        assert value(found, "exact_duplicate_share") == pytest.approx(copies)


def test_the_bases_perplexity_names_what_it_does_not_know(
    measured: Callable[..., dict[str, Measure]],
) -> None:
    plain = talks([f"{text} yes" for text in texts(40, 100)])
    odd = talks(["xyzzy " * 4] * 40, 4000)
    tables = {
        "train": plain,
        "validation": talks([]),
        "test": talks([]),
        "elsewhere": odd,
        "few": odd.iloc[:5],
    }
    known = pd.DataFrame({"context": texts(80, 6000)})
    found = measured("causal-lm", tables, Likely(), benchmark=known)
    assert value(found, "base_perplexity") == pytest.approx(np.e, abs=1e-3)
    assert value(found, "base_perplexity_elsewhere") == pytest.approx(np.exp(5), rel=1e-3)
    assert value(found, "perplexity_ratio_elsewhere") == pytest.approx(np.exp(4), rel=1e-3)
    assert value(found, "perplexity_ratio_original") == pytest.approx(1, abs=1e-3)
    assert found["base_perplexity_elsewhere"].worst[0].startswith("5.00 nats a token: e0: ")
    assert found["base_perplexity_few"].value is None
    assert "Inconclusive: few has 5 rows" in found["perplexity_ratio_few"].meaning
    assert value(found, "disordered_roles_share") == 0


def test_a_system_message_that_all_rows_share_makes_no_copies(
    measured: Callable[..., dict[str, Measure]],
) -> None:
    rules = {"role": "system", "content": " ".join(texts(20, 9000))}
    plain = talks([f"{text} yes" for text in texts(40, 100)])
    told = plain.assign(messages=[json.dumps([rules, *json.loads(talk)]) for talk in plain["messages"]])
    told["text"] = [f"system: {rules['content']}\n{text}" for text in plain["text"]]
    found = [
        measured("causal-lm", {"train": rows, "validation": talks([]), "test": rows.iloc[:5]}, Likely())
        for rows in (plain, told)
    ]
    for name in (
        "near_duplicate_share",
        "leaked_test_share",
        "distinct_2",
        "length_spread",
        "tokens_per_word",
    ):
        assert value(found[0], name) == value(found[1], name), name
    assert value(found[1], "near_duplicate_share") == 0
    assert value(found[1], "effective_diversity") == value(found[0], "effective_diversity")
    assert value(found[1], "leaked_test_share") == 1
    assert "user" not in " ".join(found[1]["distinct_2"].worst)


def test_likelihoods_are_kept_by_content(measured: Callable[..., dict[str, Measure]]) -> None:
    class Counting(Likely):
        asked = 0

        def nats(self, table: pd.DataFrame, max_length: int) -> np.ndarray:
            self.asked += len(table)
            return super().nats(table, max_length)

    model, rows = Counting(), talks(texts(40, 100))
    tables = {"train": pd.concat([rows, rows]), "validation": talks([]), "test": talks([])}
    first = measured("causal-lm", tables, model)
    assert model.asked == 40
    assert measured("causal-lm", tables, model)["base_perplexity"] == first["base_perplexity"]
    assert model.asked == 40


def test_a_benchmark_in_a_turn_or_in_replayed_rows_is_found(
    measured: Callable[..., dict[str, Measure]],
) -> None:
    known = pd.DataFrame({"query": ["who can tell?", "a short one", *texts(38, 5000)]})
    tables = {"train": talks(["Who can tell?", *texts(39, 100)]), "validation": talks([]), "test": talks([])}
    tables["replay"] = pd.DataFrame({"text": ["A short one!", *texts(5, 7000)]})
    found = measured("causal-lm", tables, Likely(), benchmark=known)["contaminated_before_share"]
    assert found.value == pytest.approx(2 / 40)
    assert "train t0" in " ".join(found.worst)
    assert "replay r0" in " ".join(found.worst)


# --- images --------------------------------------------------------------------------------------------


def pictures(seeds: Sequence[int]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "text": [f"{seed}.png" for seed in seeds],
            "image": [encoded(scene(seed, 24)) for seed in seeds],
            "label": [seed % 2 for seed in seeds],
        }
    )


def test_images_are_held_against_what_the_base_is_measured_on(
    measured: Callable[..., dict[str, Measure]],
) -> None:
    known = pictures(range(1000, 1120)).drop(columns="label")
    tables = {"train": pictures(range(60)), "validation": pictures([7, 80]), "test": pictures([90, 91])}
    found = measured("image-classification", tables, Eye(), ["even", "odd"], known)
    assert value(found, "effective_diversity") == pytest.approx(1, abs=0.15)
    assert "images that the base is measured on" in found["effective_diversity"].meaning
    assert "MiniLM" not in found["effective_diversity"].meaning
    assert "shingles" not in found["near_duplicate_share"].meaning
    assert "words" not in found["contaminated_before_share"].meaning
    assert value(found, "coverage") > 0.5
    assert value(found, "least_diverse_class") > 0.7
    assert value(found, "leaked_validation_share") == 0.5
    narrow = {**tables, "train": pictures([1, 2, 3] * 20)}
    assert (
        value(measured("image-classification", narrow, Eye(), ["even", "odd"]), "near_duplicate_share") > 0.9
    )


def test_few_images_to_be_held_against_are_inconclusive(
    measured: Callable[..., dict[str, Measure]],
) -> None:
    tables = {"train": pictures(range(40)), "validation": pictures([70]), "test": pictures([80])}
    known = pictures(range(1000, 1020)).drop(columns="label")
    found = measured("image-classification", tables, Eye(), ["even", "odd"], known)
    for name in ("effective_diversity", "coverage", "least_diverse_class"):
        assert found[name].value is None
        assert "Inconclusive: original has 10 rows" in found[name].meaning


def test_an_image_that_cannot_be_decoded_stops_check_and_is_named(
    measured: Callable[..., dict[str, Measure]],
) -> None:
    broken = pictures(range(40))
    broken.loc[5, "image"] = broken["image"][5][:90]
    tables = {"train": broken, "validation": pictures([70]), "test": pictures([80])}
    with pytest.raises(DataError) as caught:
        measured("image-classification", tables, Eye(), ["even", "odd"])
    [problem] = caught.value.problems
    assert problem.startswith("train: t5 (5.png): An image of 90 bytes cannot be decoded")
