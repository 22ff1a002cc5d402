"""The registry's promises, the same for a folder and for S3: whole or absent, one winner, nothing trusted."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tasks.errors import RegistryError
from tasks.files import folder_fingerprint, sha256_of
from tasks.registry import Published, Registry, open_registry
from tasks.registry.local import LocalStorage
from tests.servers import s3_server

Open = Callable[[], Registry]


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.e2e)])
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Return a function that opens the same empty registry, as another process would."""
    if request.param == "folder":
        return lambda: open_registry(str(tmp_path / "registry"))
    location = on_s3(
        request.getfixturevalue("s3"), f"b{abs(hash(str(tmp_path))) % 10**12}", monkeypatch
    ).storage.place
    return lambda: open_registry(location)


def on_s3(s3: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Open an empty registry in a bucket of its own."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket=bucket)
    return open_registry(f"s3://{bucket}/some/prefix")


@pytest.fixture
def registry(opened: Open) -> Registry:
    return opened()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def make_model(folder: Path, value: float = 0.5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.full(64, value, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def publish(
    registry: Registry, model: Path, name: str = "sentiment", run: str = "run-1", **more: object
) -> Published:
    lineage = {"first_base": {"source": "path:x", "fingerprint": "f" * 64}, "recipe": "sentiment"}
    metrics = {"task": {"test": {"accuracy": 0.9}}, **more}
    return registry.publish(name, model, metrics=metrics, lineage=lineage, reports={}, run_id=run)


def test_what_was_published_comes_back_byte_for_byte(registry: Registry, model: Path, tmp_path: Path) -> None:
    assert publish(registry, model) == Published(1, created=True)
    manifest = registry.download("sentiment", 1, tmp_path / "back")
    assert folder_fingerprint(tmp_path / "back") == folder_fingerprint(model) == manifest.model_fingerprint
    assert manifest.lineage["recipe"] == "sentiment"
    assert (registry.names(), registry.versions("sentiment")) == (["sentiment"], [1])


def test_the_same_content_is_published_once_whatever_the_run(registry: Registry, model: Path) -> None:
    publish(registry, model)
    assert publish(registry, model, run="run-2") == Published(1, created=False)
    assert publish(registry, make_model(model, 0.25)) == Published(2, created=True)
    assert publish(registry, model, other=1) == Published(3, created=True)


def test_publishing_reads_each_manifest_once(
    registry: Registry, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (1, 2, 3):
        publish(registry, make_model(model, version / 10))
    asked, read = [], registry.storage.read
    monkeypatch.setattr(registry.storage, "read", lambda key: asked.append(key) or read(key))
    assert publish(registry, make_model(model, 0.9)).version == 4
    assert sorted(key for key in asked if "/versions/" in key) == [
        f"models/sentiment/versions/{version:06d}.json" for version in (1, 2, 3)
    ]


def test_reports_travel_with_the_version(registry: Registry, model: Path, tmp_path: Path) -> None:
    (tmp_path / "decision.json").write_text('{"verdict": "PASS"}')
    registry.publish(
        "a", model, metrics={}, lineage={}, reports={"decision": tmp_path / "decision.json"}, run_id="r"
    )
    assert json.loads(registry.read_report("a", 1, "decision")) == {"verdict": "PASS"}
    with pytest.raises(RegistryError, match=r"no report 'gate'\. Reports: decision"):
        registry.read_report("a", 1, "gate")


def test_an_alias_moves_only_from_where_it_was_seen(registry: Registry, model: Path) -> None:
    publish(registry, model)
    publish(registry, make_model(model, 0.1))
    registry.move_alias("sentiment", "champion", 1, expected=None, reason="first")
    with pytest.raises(RegistryError, match="expected to be nothing, but is version 1, moved by someone"):
        registry.move_alias("sentiment", "champion", 2, expected=None, reason="late")
    registry.move_alias("sentiment", "champion", 2, expected=1, reason="better", run_id="run-9")
    found = registry.alias("sentiment", "champion")
    assert found is not None
    assert [(move.version, move.reason) for move in found.history] == [(1, "first"), (2, "better")]
    assert registry.resolve("sentiment", "champion").version == 2


def test_rollback_goes_back_one_promotion_at_a_time(registry: Registry, model: Path) -> None:
    before = None
    for version in (1, 2, 3):
        publish(registry, make_model(model, version / 10))
        registry.move_alias("sentiment", "champion", version, expected=before, reason="passed")
        before = version
    assert [registry.rollback("sentiment").version for _ in range(2)] == [2, 1]
    with pytest.raises(RegistryError, match="nothing to go back to"):
        registry.rollback("sentiment")
    registry.move_alias("sentiment", "champion", 3, expected=1, reason="again")
    assert registry.rollback("sentiment").version == 1


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("latest", "`latest` is not a thing"),
        ("champion", r"no alias 'champion' of 'sentiment'\. Aliases: none"),
        ("7", r"no version 7 of 'sentiment'\. Versions: 1\."),
        ("No Alias", "no alias: use lower-case"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(
    registry: Registry, model: Path, reference: str, message: str
) -> None:
    publish(registry, model)
    with pytest.raises(RegistryError, match=message):
        registry.resolve("sentiment", reference)


def test_an_unknown_release_names_the_known_ones(registry: Registry, model: Path) -> None:
    publish(registry, model)
    with pytest.raises(RegistryError, match="Releases here: sentiment"):
        registry.resolve("sentimant", "1")
    with pytest.raises(RegistryError, match="no release name"):
        publish(registry, model, name="../escape")


def test_nothing_that_runs_code_and_nothing_half_is_published(registry: Registry, tmp_path: Path) -> None:
    bad = make_model(tmp_path / "bad")
    (bad / "weights.bin").write_bytes(b"pickle")
    (bad / "link.json").symlink_to(bad / "config.json")
    with pytest.raises(RegistryError) as caught:
        publish(registry, bad)
    assert len(caught.value.problems) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegistryError, match="cannot be published") as caught:
        publish(registry, tmp_path / "empty")
    assert "no weights" in caught.value.problems[0]
    assert registry.names() == []


def test_a_version_is_not_there_before_its_manifest(
    registry: Registry, opened: Open, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(key: str, content: bytes) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry.storage, "create", crash)
    with pytest.raises(KeyboardInterrupt):
        publish(registry, model)
    again = opened()
    assert again.names() == []
    assert publish(again, model) == Published(1, created=True)


def test_publishers_at_once_get_dense_versions_and_none_is_lost(opened: Open, tmp_path: Path) -> None:
    models = [make_model(tmp_path / f"m{number}", number / 10) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda folder: publish(opened(), folder), models))
    assert sorted(item.version for item in made) == [1, 2, 3, 4, 5, 6]
    registry = opened()
    found = {registry.resolve("sentiment", version).model_fingerprint for version in range(1, 7)}
    assert found == {folder_fingerprint(folder) for folder in models}


def test_the_same_model_published_at_once_is_one_version(opened: Open, model: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda run: publish(opened(), model, run=f"run-{run}"), range(4)))
    assert {item.version for item in made} == {1}
    assert sum(item.created for item in made) == 1


def test_of_those_who_move_an_alias_at_once_one_wins(opened: Open, model: Path) -> None:
    for number in range(1, 9):
        publish(opened(), make_model(model, number / 10))
    start = threading.Barrier(8)

    def promote(version: int) -> bool:
        registry = opened()
        start.wait()
        try:
            registry.move_alias("sentiment", "champion", version, expected=None, reason=f"v{version}")
        except RegistryError as error:
            assert "expected to be nothing" in str(error)  # noqa: PT017  the loser is told
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(promote, range(1, 9)))
    assert sum(won) == 1
    found = opened().alias("sentiment", "champion")
    assert found is not None
    assert found.version == won.index(True) + 1
    assert len(found.history) == 1


def test_garbage_is_what_no_version_refers_to_and_is_old(
    registry: Registry, model: Path, tmp_path: Path
) -> None:
    publish(registry, model)
    (tmp_path / "orphan").write_bytes(b"left by a crash")
    import hashlib

    digest = hashlib.sha256(b"left by a crash").hexdigest()
    key = f"blobs/sha256/{digest[:2]}/{digest}"
    registry.storage.put_file(key, tmp_path / "orphan", digest)
    assert registry.collect_garbage() == []  # young: its manifest may be on its way
    assert [stored.key for stored in registry.collect_garbage(grace_seconds=-1, dry_run=True)] == [key]
    assert registry.storage.stat(key) is not None
    registry.collect_garbage(grace_seconds=-1)
    assert registry.storage.stat(key) is None
    registry.download("sentiment", 1, tmp_path / "still there")


def test_content_that_changed_in_the_store_is_never_loaded(tmp_path: Path, model: Path) -> None:
    registry = open_registry(str(tmp_path / "registry"))
    publish(registry, model)
    blob = next(path for path in (tmp_path / "registry" / "blobs").rglob("*") if path.is_file())
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    with pytest.raises(RegistryError, match="nothing was kept") as caught:
        registry.download("sentiment", 1, tmp_path / "back")
    assert "is not what its name says" in caught.value.problems[0]
    assert not (tmp_path / "back").exists()
    blob.unlink()
    with pytest.raises(RegistryError) as caught:
        registry.download("sentiment", 1, tmp_path / "back")
    assert "is missing" in caught.value.problems[0]
    assert publish(registry, model) == Published(1, created=False)  # the remedy of the message
    registry.download("sentiment", 1, tmp_path / "back")


def test_a_manifest_that_points_outside_is_not_followed(tmp_path: Path, model: Path) -> None:
    registry = open_registry(str(tmp_path / "registry"))
    publish(registry, model)
    path = tmp_path / "registry" / "models" / "sentiment" / "versions" / "000001.json"
    path.write_text(path.read_text().replace('"config.json"', '"../../config.json"'))
    with pytest.raises(RegistryError, match="outside its folder"):
        registry.download("sentiment", 1, tmp_path / "back")
    path.write_text("{")
    with pytest.raises(RegistryError, match="no Manifest"):
        registry.resolve("sentiment", 1)


def test_a_full_disk_makes_no_version(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = open_registry(str(tmp_path / "registry"))

    def full(*words: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(RegistryError, match="No space left on device"):
            publish(registry, model)
    assert registry.names() == []
    assert not [path for path in (tmp_path / "registry").rglob(".*") if path.is_file()]
    assert publish(registry, model).created


def test_a_registry_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="is a file"):
        LocalStorage(tmp_path / "file")


def test_old_blobs_are_renewed_by_who_uses_them(tmp_path: Path, model: Path) -> None:
    import time

    registry = open_registry(str(tmp_path / "registry"))
    publish(registry, model)
    blobs = [path for path in (tmp_path / "registry" / "blobs").rglob("*") if path.is_file()]
    old = time.time() - 6 * 24 * 3600
    for blob in blobs:
        os.utime(blob, (old, old))
    publish(registry, model, name="another")
    assert all(blob.stat().st_mtime > old + 3600 for blob in blobs)


def test_a_blob_that_is_renewed_while_garbage_is_collected_stays(
    registry: Registry, opened: Open, model: Path, tmp_path: Path
) -> None:
    weights = model / "model.safetensors"
    digest = sha256_of(weights)
    registry.storage.put_file(f"blobs/sha256/{digest[:2]}/{digest}", weights, digest)
    real = registry.storage.delete_older

    def renewed_first(key: str, seconds: float) -> bool:
        publish(opened(), model)
        return real(key, 3600)  # listed as old, and young by now

    registry.storage.delete_older = renewed_first  # type: ignore[method-assign]
    assert registry.collect_garbage(grace_seconds=-1) == []
    opened().download("sentiment", 1, tmp_path / "back")


def test_a_publisher_puts_back_what_a_collector_took(
    registry: Registry, opened: Open, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = registry.storage.create

    def create(key: str, content: bytes) -> bool:
        opened().collect_garbage(grace_seconds=-1)  # it knows of no manifest yet
        return real(key, content)

    monkeypatch.setattr(registry.storage, "create", create)
    publish(registry, model)
    assert folder_fingerprint(model) == opened().download("sentiment", 1, tmp_path / "back").model_fingerprint


def test_what_a_killed_publisher_left_is_garbage_too(tmp_path: Path, model: Path) -> None:
    registry = open_registry(str(tmp_path / "registry"))
    publish(registry, model)
    left = tmp_path / "registry" / "blobs" / "sha256" / "ab" / ".half"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half of a model")
    assert [stored.key for stored in registry.collect_garbage(grace_seconds=-1)] == ["blobs/sha256/ab/.half"]
    assert not left.exists()


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path, model: Path) -> None:
    registry = open_registry(str(tmp_path / "registry"))
    publish(registry, model)
    models = tmp_path / "registry" / "models"
    models.rename(tmp_path / "aside")
    models.write_text("not a folder")
    for call in (registry.names, registry.collect_garbage, lambda: registry.resolve("sentiment", 1)):
        with pytest.raises(RegistryError, match="cannot read"):
            call()
    assert list((tmp_path / "registry" / "blobs").rglob("*"))


def test_what_is_no_release_is_not_listed(tmp_path: Path, model: Path) -> None:
    registry = open_registry(str(tmp_path / "registry"))
    publish(registry, model)
    (tmp_path / "registry" / "models" / "stray").write_text("")
    (tmp_path / "registry" / "models" / "sentiment" / "versions" / "notes.json").write_text("")
    assert (registry.names(), registry.versions("sentiment")) == (["sentiment"], [1])


@pytest.mark.parametrize("reference", ["", "²", "-1", "9" * 5000, "1\n"])
def test_a_reference_that_is_none_is_an_error(tmp_path: Path, model: Path, reference: str) -> None:
    registry = open_registry(str(tmp_path / "registry"))
    publish(registry, model)
    with pytest.raises(RegistryError, match="is no alias"):
        registry.resolve("sentiment", reference)


def test_a_manifest_holds_only_what_comes_back_as_it_is(tmp_path: Path, model: Path) -> None:
    registry = open_registry(str(tmp_path / "registry"))

    def call(metrics: dict[str, object], lineage: dict[str, object], reports: dict[str, Path]) -> str:
        with pytest.raises(RegistryError) as caught:
            registry.publish("a", model, metrics=metrics, lineage=lineage, reports=reports, run_id="r")
        return str(caught.value)

    said = call({"loss": float("nan")}, {"base": Path("x")}, {})
    assert "metrics: Out of range float" in said
    assert "lineage: Object of type PosixPath" in said
    assert "keys must be text" in call({"a": {1: 2}}, {}, {})
    said = call({}, {}, {"decision": tmp_path / "nowhere.json", "gate": tmp_path})
    assert "nowhere.json" in said
    assert f"gate: {tmp_path}" in said
    assert registry.names() == []


def test_a_version_left_for_an_earlier_one_is_withdrawn_until_it_is_chosen_again(
    tmp_path: Path, model: Path
) -> None:
    registry = open_registry(str(tmp_path / "registry"))
    for number in (1, 2, 3):
        publish(registry, make_model(model, number / 10))

    def withdrawn(version: int, expected: int | None) -> list[int]:
        made = registry.move_alias("sentiment", "champion", version, expected=expected, reason=f"v{version}")
        return sorted(made.withdrawn)

    assert [withdrawn(1, None), withdrawn(2, 1), withdrawn(3, 2)] == [[], [], []]
    assert {
        version: move.reason
        for version, move in registry.rollback("sentiment", reason="bad").withdrawn.items()
    } == {3: "bad"}
    assert withdrawn(1, 2) == [2, 3]
    assert withdrawn(3, 1) == [1, 2]


@pytest.mark.e2e
def test_an_answer_of_s3_that_was_lost_is_not_taken_for_a_lost_race(
    s3: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = on_s3(s3, "lost-answers", monkeypatch)
    client = registry.storage.client  # type: ignore[attr-defined]
    real = client.put_object

    def twice(**words: object) -> object:
        if "IfMatch" in words or "IfNoneMatch" in words:
            real(**words)
        return real(**words)

    monkeypatch.setattr(client, "put_object", twice)
    assert publish(registry, model) == Published(1, created=True)
    publish(registry, make_model(model, 0.1))
    registry.move_alias("sentiment", "champion", 1, expected=None, reason="first")
    assert registry.move_alias("sentiment", "champion", 2, expected=1, reason="better").version == 2
    with pytest.raises(RegistryError, match="but is version 2"):
        registry.move_alias("sentiment", "champion", 1, expected=None, reason="late")


@pytest.mark.e2e
def test_a_conflict_on_s3_is_tried_again(s3: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    registry = on_s3(s3, "conflicts", monkeypatch)
    client = registry.storage.client  # type: ignore[attr-defined]
    real, calls = client.put_object, []

    def conflicting(**words: object) -> object:
        conditional = "IfMatch" in words or "IfNoneMatch" in words
        calls.extend([words] if conditional else [])
        if conditional and len(calls) % 2:
            raise ClientError({"Error": {"Code": "ConditionalRequestConflict"}}, "PutObject")
        return real(**words)

    monkeypatch.setattr(client, "put_object", conflicting)
    publish(registry, model)
    assert registry.move_alias("sentiment", "champion", 1, expected=None, reason="first").version == 1
    assert len(calls) == 4


@pytest.mark.e2e
def test_what_s3_holds_otherwise_than_sent_is_no_release(
    s3: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = on_s3(s3, "damaged", monkeypatch)
    client = registry.storage.client  # type: ignore[attr-defined]
    real = client.upload_file

    def damaged(path: str, bucket: str, key: str, **more: object) -> None:
        real(path, bucket, key, **more)
        client.put_object(Bucket=bucket, Key=key, Body=b"else")

    monkeypatch.setattr(client, "upload_file", damaged)
    with pytest.raises(RegistryError, match="does not hold what was sent"):
        publish(registry, model)
    assert registry.names() == []
    assert list(registry.storage.list("blobs/")) == []


def test_a_download_whose_every_retry_was_cut_off_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from boto3.exceptions import RetriesExceededError

    from tasks.registry.s3 import S3Storage

    def cut_off(*arguments: object, **more: object) -> None:
        raise RetriesExceededError(ConnectionResetError("Connection reset by peer"))

    monkeypatch.setattr(S3Storage, "_check", lambda self: None)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    storage = S3Storage("s3://bucket/prefix")
    monkeypatch.setattr(storage.client, "download_file", cut_off)
    with pytest.raises(
        RegistryError, match=r"s3://bucket/prefix .* Connection reset by peer\. Remedy: try again"
    ):
        storage.get_file("key", tmp_path / "key")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_PROFILE": "nope"}, "correct AWS_PROFILE"),
        ({"AWS_ACCESS_KEY_ID": "x"}, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (
            {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_ENDPOINT_URL_S3": "not a url"},
            "AWS_ENDPOINT_URL_S3",
        ),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, "Unable to locate credentials"),
    ],
)
def test_s3_that_is_not_set_up_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RegistryError, match=message):
        open_registry("s3://bucket/prefix")


@pytest.mark.e2e
def test_s3_that_cannot_be_used_is_an_error_with_a_remedy(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3)
    with pytest.raises(RegistryError, match="make the bucket, or correct RETAIN_REGISTRY"):
        open_registry("s3://nobody-made-this/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(RegistryError, match="check the network and AWS_ENDPOINT_URL_S3"):
        open_registry("s3://bucket/x")
    with pytest.raises(RegistryError, match="names no bucket"):
        open_registry("s3://")


def test_attempts_are_numbered_once_and_a_candidate_keeps_its_number(registry: Registry) -> None:
    half, other = "a" * 64, "b" * 64
    assert registry.attempts("sentiment", half) == []
    assert [registry.count_attempt("sentiment", half, model) for model in ("m1", "m2", "m1", "m3")] == [
        1,
        2,
        1,
        3,
    ]
    assert registry.count_attempt("sentiment", other, "m3") == 1
    assert registry.count_attempt("another", half, "m3") == 1
    assert registry.attempts("sentiment", half) == ["m1", "m2", "m3"]
    assert registry.names() == [], "an attempt is no release"
    assert registry.collect_garbage(grace_seconds=0) == []


def test_of_candidates_that_are_counted_at_once_none_shares_a_number(registry: Registry) -> None:
    with ThreadPoolExecutor(4) as pool:
        numbers = list(
            pool.map(lambda place: registry.count_attempt("sentiment", "a" * 64, f"m{place}"), range(8))
        )
    assert sorted(numbers) == list(range(1, 9))
