"""register, and a release as the base of the next lineage, on a tiny model that really ran."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from tasks import reports, sources
from tasks.errors import DataError, Refused, StageError
from tasks.files import folder_fingerprint
from tasks.forgetting.ledger import read_ledger
from tasks.paths import Paths
from tasks.pin import pin
from tasks.recipe import Evaluate, load_recipe
from tasks.register import Receipt, register
from tasks.registry import Registry, open_registry
from tasks.sources import first_base_folder, first_bases_to_keep, resolve_base
from tests.models_data import tuned_project

Publish = Callable[..., Receipt]
HOW = Evaluate(precision="fp32", max_length=64)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a tiny project once, up to its decision."""
    folder = tmp_path_factory.mktemp("register")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETAIN_HOME", str(folder / "store"))
        patch.setenv("RETAIN_REGISTRY", str(folder / "none yet"))
        tuned_project(folder, until="decide")
    return folder


@pytest.fixture
def paths(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """Return a copy whose decision is a PASS: random weights rarely earn one, and this is not about that."""
    monkeypatch.setenv("RETAIN_HOME", str(built / "store"))
    monkeypatch.setenv("RETAIN_REGISTRY", str(tmp_path / "registry"))
    shutil.copytree(built / "project", tmp_path / "project", symlinks=True)
    paths = Paths(tmp_path / "project", "tiny")
    decide_that(paths, "PASS")
    return paths


def decide_that(paths: Paths, verdict: str) -> None:
    decision = reports.read_report(paths.decision, reports.DecideReport)
    reports.write_report(paths.decision, decision.model_copy(update={"verdict": verdict}))


@pytest.fixture
def publish(paths: Paths, tmp_path: Path) -> Publish:
    def call(promote: bool = True) -> Receipt:
        return register(
            "tiny",
            load_recipe(paths.root / "recipes" / "tiny.yaml").register_,
            paths=paths,
            registry_location=str(tmp_path / "registry"),
            promote=promote,
            run_id="run-1",
            git_commit="0" * 40,
        )

    return call


def test_a_passing_model_becomes_a_version_and_the_champion(
    paths: Paths, publish: Publish, tmp_path: Path
) -> None:
    receipt = publish()
    assert receipt == Receipt("tiny", 1, created=True, promoted=True, champion=1, verdict="PASS")
    manifest = open_registry(str(tmp_path / "registry")).resolve("tiny", "champion")
    base = reports.read_report(paths.base, reports.Base)
    assert manifest.model_fingerprint == folder_fingerprint(paths.chosen)
    assert manifest.lineage["first_base"]["fingerprint"] == base.fingerprint
    assert manifest.lineage["splits"] == reports.read_report(paths.schema, reports.SplitSchema).fingerprint
    assert manifest.git_commit == "0" * 40
    assert {"decision", "evaluate", "merge", "recipe", "history"} <= set(manifest.reports)
    halves = {
        f"benchmarks/articles/{half}/{file}"
        for half in ("selection", "report")
        for file in ("benchmark.json", "corpus.parquet", "examples.parquet")
    }
    assert halves <= set(manifest.reports), "what it was measured on is kept with it"
    assert json.loads((paths.scratch / "receipt.json").read_text())["version"] == 1


def test_registering_again_changes_nothing(publish: Publish, tmp_path: Path) -> None:
    publish()
    again = publish()
    assert (again.version, again.created, again.promoted) == (1, False, False)
    registry = open_registry(str(tmp_path / "registry"))
    assert registry.versions("tiny") == [1]
    champion = registry.alias("tiny", "champion")
    assert champion is not None
    assert len(champion.history) == 1


def test_without_promotion_it_is_the_challenger(publish: Publish, tmp_path: Path) -> None:
    receipt = publish(promote=False)
    assert (receipt.champion, receipt.promoted) == (None, False)
    assert open_registry(str(tmp_path / "registry")).resolve("tiny", "challenger").version == 1
    assert publish(promote=True).promoted


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE"])
def test_what_did_not_pass_is_refused_with_its_reasons(
    paths: Paths, publish: Publish, tmp_path: Path, verdict: str
) -> None:
    decide_that(paths, verdict)
    with pytest.raises(Refused, match=f"{verdict}: tiny must not ship") as caught:
        publish()
    assert caught.value.problems == reports.read_report(paths.decision, reports.DecideReport).reasons
    assert open_registry(str(tmp_path / "registry")).names() == []


def test_a_champion_that_moved_since_is_not_overtaken(paths: Paths, publish: Publish, tmp_path: Path) -> None:
    registry = open_registry(str(tmp_path / "registry"))
    registry.publish("tiny", paths.tuned, metrics={}, lineage={}, reports={}, run_id="other")
    registry.move_alias("tiny", "champion", 1, expected=None, reason="another run was faster")
    with pytest.raises(Refused, match="`retain run tiny --repin`"):
        publish()
    pin("tiny", HOW, paths=paths)
    pinned = reports.read_report(paths.pin, reports.Pin)
    assert (pinned.champion, pinned.champion_model) == (1, folder_fingerprint(paths.tuned))


def register_over_a_champion(paths: Paths, publish: Publish, tmp_path: Path) -> Registry:
    """Make version 1 of the tuned model the champion, and register the chosen one over it as version 2."""
    registry = open_registry(str(tmp_path / "registry"))
    registry.publish("tiny", paths.tuned, metrics={}, lineage={}, reports={}, run_id="other")
    registry.move_alias("tiny", "champion", 1, expected=None, reason="first")
    pin("tiny", HOW, paths=paths)
    decision = reports.read_report(paths.decision, reports.DecideReport)
    reports.write_report(paths.decision, decision.model_copy(update={"champion": 1}))
    assert publish() == Receipt("tiny", 2, created=True, promoted=True, champion=2, verdict="PASS")
    return registry


def test_a_run_does_not_undo_a_rollback(paths: Paths, publish: Publish, tmp_path: Path) -> None:
    registry = register_over_a_champion(paths, publish, tmp_path)
    registry.rollback("tiny", reason="it insulted customers")
    with pytest.raises(Refused, match=r"version 2 of tiny, .*it insulted customers.*`retain promote tiny 2`"):
        publish()
    champion = registry.alias("tiny", "champion")
    assert champion is not None
    assert (champion.version, len(champion.history), registry.versions("tiny")) == (1, 3, [1, 2])
    assert not publish(promote=False).promoted
    registry.move_alias("tiny", "champion", 2, expected=1, reason="it was something else")
    assert publish().champion == 2


def test_the_same_model_under_other_reports_does_not_undo_it_either(
    paths: Paths, publish: Publish, tmp_path: Path
) -> None:
    registry = register_over_a_champion(paths, publish, tmp_path)
    registry.rollback("tiny")
    metrics = json.loads(paths.metrics.read_text())
    paths.metrics.write_text(json.dumps({**metrics, "another": 1}))
    with pytest.raises(Refused, match="Runs do not undo that"):
        publish()
    assert registry.versions("tiny") == [1, 2]


def test_of_two_who_register_at_once_neither_is_lost(publish: Publish, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: outcome(publish), range(4)))
    registry = open_registry(str(tmp_path / "registry"))
    champion = registry.alias("tiny", "champion")
    assert champion is not None
    assert (registry.versions("tiny"), champion.version, len(champion.history)) == ([1], 1, 1)
    receipts = [one for one in made if isinstance(one, Receipt)]
    assert len(receipts) == 4, made
    assert sum(receipt.created for receipt in receipts) == 1
    assert sum(receipt.promoted for receipt in receipts) == 1


def outcome(publish: Publish) -> Receipt | Refused:
    try:
        return publish()
    except Refused as error:
        return error


def test_another_model_than_the_one_decided_on_is_not_published(paths: Paths, publish: Publish) -> None:
    (paths.chosen / "config.json").write_text("{}")
    with pytest.raises(StageError, match="not what was decided on") as caught:
        publish()
    assert "is not the model that decision.json is about" in caught.value.problems[0]
    shutil.rmtree(paths.chosen)
    with pytest.raises(StageError) as caught:
        publish()
    assert "dvc pull" in caught.value.problems[0]


def test_a_release_is_the_base_of_the_next_and_remembers_where_it_all_began(
    paths: Paths, publish: Publish
) -> None:
    publish()
    first = reports.read_report(paths.base, reports.Base)
    second = resolve_base("release:tiny@champion", paths.root)
    assert second.resolved == "release:tiny@1"
    assert second.first_base == first.first_base
    assert second.fingerprint != first.fingerprint
    assert not any(record.path.startswith("head.") for record in second.files)
    assert first_bases_to_keep() == {first.fingerprint}
    folder = first_base_folder(second, paths.root)
    assert folder.name == first.fingerprint
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")  # same size, other weights
    assert first_base_folder(second, paths.root) == folder
    assert folder_fingerprint(folder) == first.fingerprint, "fetched again, and not measured from as it was"


@pytest.mark.parametrize("keeps", [True, False])
def test_a_first_base_that_its_source_withdrew_comes_back_from_a_release_that_keeps_it(
    paths: Paths, publish: Publish, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    recipe = paths.root / "recipes" / "tiny.yaml"
    recipe.write_text(
        recipe.read_text().replace("promote:", f"keep_first_base: {str(keeps).lower()}\n  promote:")
    )
    publish()
    second = resolve_base("release:tiny@champion", paths.root)
    folder = first_base_folder(second, paths.root)
    shutil.rmtree(folder)

    def withdrawn(*_: object) -> None:
        raise DataError("there is no such model any more")

    monkeypatch.setattr(sources, "resolve_base", withdrawn)
    if keeps:
        assert first_base_folder(second, paths.root) == folder
        assert folder_fingerprint(folder) == second.first_base.fingerprint
    else:
        with pytest.raises(DataError, match="no such model any more"):
            first_base_folder(second, paths.root)


def test_a_release_begins_the_ledger_and_a_rebase_begins_it_anew(
    paths: Paths, publish: Publish, tmp_path: Path
) -> None:
    pin("tiny", HOW, paths=paths)
    assert reports.read_report(paths.pin, reports.Pin).ledger is None
    publish()
    pin("tiny", HOW, paths=paths)
    pinned = reports.read_report(paths.pin, reports.Pin)
    margin = load_recipe(paths.root / "recipes" / "tiny.yaml").budget["articles"].margin
    assert pinned.ledger == reports.Ledger(
        version=1,
        first_base=pinned.first_base,
        benchmarks=pinned.benchmarks,
        asked=pinned.asked,
        margins={"articles": margin},
        rebase=None,
    )
    assert pinned.asked["articles"]["kind"] == "retrieval"
    registry = open_registry(str(tmp_path / "registry"))
    for first, rebase in (("c" * 64, "another encoder from now on"), ("c" * 64, None)):
        lineage = {
            "first_base": {"source": "path:c", "fingerprint": first},
            "benchmarks": {},
            "rebase": rebase,
        }
        registry.publish("tiny", paths.chosen, metrics={}, lineage=lineage, reports={}, run_id="other")
    pin("tiny", HOW, paths=paths)
    ledger = reports.read_report(paths.pin, reports.Pin).ledger
    assert ledger is not None
    assert (ledger.version, ledger.rebase) == (2, "another encoder from now on")
    assert ledger.reasons == ["another encoder from now on"]


def release(
    registry: Registry, paths: Paths, base: str, benchmarks: dict[str, str], rebase: str | None
) -> None:
    lineage = {
        "first_base": {"source": f"path:{base}", "fingerprint": base * 64},
        "benchmarks": benchmarks,
        "rebase": rebase,
    }
    registry.publish("tiny", paths.chosen, metrics={}, lineage=lineage, reports={}, run_id="other")


def test_what_begins_to_decide_later_is_held_from_then_on_and_every_reason_is_kept(
    paths: Paths, tmp_path: Path
) -> None:
    registry = open_registry(str(tmp_path / "registry"))
    release(registry, paths, "a", {"old": "0"}, None)
    release(registry, paths, "b", {"articles": "1"}, "first reason")
    release(registry, paths, "c", {"articles": "2"}, "second reason")
    release(registry, paths, "c", {"articles": "2", "talk": "3"}, None)
    ledger = read_ledger(registry, "tiny")
    assert ledger is not None
    assert (ledger.version, ledger.benchmarks) == (3, {"articles": "2", "talk": "3"})
    assert ledger.reasons == ["second reason", "first reason"]


def test_a_release_made_meanwhile_from_another_base_is_not_followed(
    paths: Paths, publish: Publish, tmp_path: Path
) -> None:
    pin("tiny", HOW, paths=paths)  # there is no release yet
    release(open_registry(str(tmp_path / "registry")), paths, "c", {}, None)
    with pytest.raises(Refused, match=r"since version 1: the first base was path:c .*--repin"):
        publish(promote=False)


def test_how_much_is_read_and_in_which_arithmetic_is_part_of_how_a_benchmark_is_asked(
    paths: Paths, publish: Publish, tmp_path: Path
) -> None:
    pin("tiny", HOW, paths=paths)
    before = reports.read_report(paths.pin, reports.Pin).asked["articles"]
    assert (before["max_length"], before["precision"]) == (64, "fp32")
    pin("tiny", Evaluate(precision="bf16", max_length=8), paths=paths)
    now = reports.read_report(paths.pin, reports.Pin).asked["articles"]
    assert now == before | {"max_length": 8, "precision": "bf16"}
    examples = paths.report_half / "articles" / "examples.parquet"
    pd.DataFrame({"id": ["a"], "image": [b"x"]}).to_parquet(examples)
    pin("tiny", HOW, paths=paths)
    assert "max_length" not in reports.read_report(paths.pin, reports.Pin).asked["articles"]


def test_a_setting_or_margin_that_the_first_release_does_not_tell_is_that_of_the_first_that_does(
    paths: Paths, tmp_path: Path
) -> None:
    registry = open_registry(str(tmp_path / "registry"))
    for told, margins in (
        ({"kind": "retrieval"}, {}),
        ({"kind": "retrieval", "max_length": 64}, {"margins": {"articles": 0.03}}),
        ({"kind": "retrieval", "max_length": 8}, {"margins": {"articles": 0.5}}),
    ):
        lineage = {"first_base": {"source": "path:c", "fingerprint": "c" * 64}, "asked": {"articles": told}}
        registry.publish(
            "tiny", paths.chosen, metrics={}, lineage=lineage | margins, reports={}, run_id="other"
        )
    pin("tiny", HOW, paths=paths)
    ledger = reports.read_report(paths.pin, reports.Pin).ledger
    assert ledger is not None
    assert (ledger.version, ledger.asked) == (1, {"articles": {"kind": "retrieval", "max_length": 64}})
    assert ledger.margins == {"articles": 0.03}


def test_pinning_again_counts_no_attempt_and_another_candidate_counts_one(paths: Paths) -> None:
    pin("tiny", HOW, paths=paths)
    first = paths.pin.read_bytes()
    pin("tiny", HOW, paths=paths)
    assert paths.pin.read_bytes() == first
    assert reports.read_report(paths.pin, reports.Pin).attempts == {"articles": 1}
    merged = reports.read_report(paths.merge, reports.MergeReport)
    reports.write_report(paths.merge, merged.model_copy(update={"model": "another"}))
    pin("tiny", HOW, paths=paths)
    assert reports.read_report(paths.pin, reports.Pin).attempts == {"articles": 2}
