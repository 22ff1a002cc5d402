"""Copies of checkpoints: another machine goes on from the newest whole one, in a folder or in S3."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tasks.errors import RegistryError, StageError
from tasks.training.checkpoints import newest_checkpoint, save_checkpoint
from tasks.training.copies import Copies, open_copies
from tasks.training.memory import set_random_state
from tests.servers import s3_server


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.e2e)])
def copies(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copies:
    """Return empty copies, of whatever store."""
    place = str(tmp_path / "shared")
    if request.param == "s3":
        import boto3

        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", request.getfixturevalue("s3"))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        bucket = f"c{abs(hash(str(tmp_path))) % 10**12}"
        boto3.client("s3").create_bucket(Bucket=bucket)
        place = f"s3://{bucket}/some/prefix"
    monkeypatch.setenv("RETAIN_CHECKPOINTS", place)
    opened = open_copies("ab12")
    assert opened is not None
    return opened


def write(folder: Path, step: int, copies: Copies) -> None:
    copies.put(save_checkpoint(folder, step, {"step": torch.tensor(step)}))


def step_in(folder: Path) -> int:
    state = newest_checkpoint(folder)
    return -1 if state is None else int(state["step"])


def keys(copies: Copies) -> list[str]:
    return [stored.key for stored in copies.storage.list("ab12/")]


def test_another_machine_goes_on_from_the_newest_copy_and_the_last_two_are_kept(
    copies: Copies, tmp_path: Path
) -> None:
    copies.fetch(tmp_path / "other")
    assert step_in(tmp_path / "other") == -1, "there is none yet"
    for step in (1, 2, 3):
        write(tmp_path / "first", step, copies)
    assert keys(copies) == [
        f"ab12/step-0000000{step}/{name}" for step in (2, 3) for name in ("manifest.json", "state.pt")
    ]
    copies.fetch(tmp_path / "other")
    assert step_in(tmp_path / "other") == 3
    write(tmp_path / "other", 3, copies)  # gone on from: written once more, it is the same
    save_checkpoint(tmp_path / "other", 4, {"step": torch.tensor(4)})
    copies.fetch(tmp_path / "other")
    assert step_in(tmp_path / "other") == 4, "what lies here is newer"
    assert open_copies("other-inputs")._steps() == []  # type: ignore[union-attr]
    copies.remove()
    assert keys(copies) == []


def test_damaged_and_half_written_copies_are_skipped(
    copies: Copies, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        write(tmp_path / "first", step, copies)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"PK")
    found = copies.storage.read("ab12/step-00000002/state.pt")
    assert found is not None
    copies.storage.swap("ab12/step-00000002/state.pt", b"PK", found[1])
    copies.storage.create("ab12/step-00000009/state.pt", b"no manifest: its writer was killed")
    copies.fetch(tmp_path / "other")
    assert step_in(tmp_path / "other") == 1
    assert "skipping the damaged copy of step-00000002" in caplog.text
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["step-00000001"]


def test_a_damaged_checkpoint_here_is_replaced_by_its_copy(copies: Copies, tmp_path: Path) -> None:
    write(tmp_path / "first", 5, copies)
    shutil.rmtree(tmp_path / "first" / "step-00000005")
    (tmp_path / "first" / "step-00000005").mkdir()
    copies.fetch(tmp_path / "first")
    assert step_in(tmp_path / "first") == 5


def test_a_copy_that_fails_is_said_and_one_that_cannot_be_looked_for_is_an_error(
    copies: Copies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object) -> None:
        raise RegistryError("the network is down")

    monkeypatch.setattr(copies.storage, "put_file", broken)
    write(tmp_path / "first", 5, copies)
    assert "step-00000005 was not copied, and stays on this machine alone: the network is down" in caplog.text
    monkeypatch.setattr(copies.storage, "list", broken)
    with pytest.raises(
        StageError, match=r"RETAIN_CHECKPOINTS: whether there is a checkpoint cannot be known"
    ):
        copies.fetch(tmp_path / "other")


def test_a_copy_that_cannot_be_read_now_is_an_error_and_not_damage(
    copies: Copies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reset(*arguments: object) -> None:
        raise RegistryError("connection reset")

    write(tmp_path / "first", 5, copies)
    monkeypatch.setattr(copies.storage, "get_file", reset)
    with pytest.raises(StageError, match="connection reset"):
        copies.fetch(tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_damaged_copies_of_later_steps_displace_none(copies: Copies, tmp_path: Path) -> None:
    for step in (8, 9):
        copies.storage.create(f"ab12/step-0000000{step}/state.pt", b"PK")
        copies.storage.create(f"ab12/step-0000000{step}/manifest.json", b'{"step": 9, "sha256": "0"}')
    write(tmp_path / "first", 2, copies)
    copies.fetch(tmp_path / "other")
    assert step_in(tmp_path / "other") == 2


@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
def test_a_checkpoint_is_kept_though_later_ones_are_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"step": torch.tensor(step)})
    for step in (2, 3):
        (tmp_path / f"step-0000000{step}" / file).write_bytes(b"PK")
    assert save_checkpoint(tmp_path, 1, {"step": torch.tensor(1)}).is_dir(), "what was just written"
    assert step_in(tmp_path) == 1
    assert caplog.text.count("skipping the damaged checkpoint") == 2
    for name, age in ((".new.killed", 7200), (".new.writes", 0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    save_checkpoint(tmp_path, 2, {"step": torch.tensor(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".new.writes",
        "step-00000001",
        "step-00000002",
    ]


@pytest.mark.parametrize("devices", [1, 2])
def test_random_states_of_more_or_fewer_devices_than_are_here_are_taken_up(
    devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: taken.append(len(states)))
    own = torch.get_rng_state()
    for known in (0, 1, 2, 3):
        set_random_state([own, *[torch.zeros(1)] * known])
    assert taken == [min(known, devices) for known in (0, 1, 2, 3)]


def test_nothing_is_copied_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETAIN_CHECKPOINTS", raising=False)
    assert open_copies("ab12") is None


def test_a_place_that_cannot_be_used_is_an_error_that_names_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RETAIN_CHECKPOINTS", "s3:///prefix")
    with pytest.raises(StageError, match=r"RETAIN_CHECKPOINTS: 's3:///prefix' names no bucket"):
        open_copies("ab12")
    monkeypatch.setenv("RETAIN_CHECKPOINTS", "s3://bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "not an address")
    with pytest.raises(StageError, match=r"RETAIN_CHECKPOINTS: The place for checkpoints s3://bucket cannot"):
        open_copies("ab12")


def test_training_goes_on_elsewhere_to_the_same_bits(copies: Copies, tmp_path: Path) -> None:
    from tasks.training.loop import Trainer
    from tests.short_training import short_trainer

    whole = short_trainer(tmp_path / "whole")
    story = vars(whole.fit())

    def crash(*rows: object) -> float:
        if first.progress.step == 9:
            raise RuntimeError("crash")
        return Trainer._step(first, *rows)  # type: ignore[arg-type]

    first, second = short_trainer(tmp_path / "first"), short_trainer(tmp_path / "second")
    first.copies = second.copies = copies
    first._step = crash  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="crash"):
        first.fit()
    assert newest_checkpoint(tmp_path / "second") is None
    assert vars(second.fit()) == story
    assert all(
        torch.equal(second.network.state_dict()[name], value)
        for name, value in whole.network.state_dict().items()
    )
