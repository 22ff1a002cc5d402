"""The training loop: resumed after any step it ends with the same bits, and a bad number or no row stops it."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.errors import Preempted, StageError
from tasks.families.interface import Measured
from tasks.families.text_classification import TextClassifier
from tasks.recipe import Finetune
from tasks.training import loop
from tasks.training.checkpoints import newest_checkpoint
from tasks.training.loop import Trainer
from tests.tiny import make_tiny_base, tiny_classifier

ORDINARY = {
    "method": "full", "learning_rate": 1e-3, "epochs": 2, "batch_size": 8, "warmup_share": 0.1, "weight_decay": 0.01,
    "max_grad_norm": 1.0, "max_length": 16, "precision": "fp32", "seed": 7, "checkpoint_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("loop") / "base")


def rows(count: int) -> pd.DataFrame:
    texts = [f"the {'phone' if n % 3 else 'film'} was {'good' if n % 2 else 'bad'} {n}" for n in range(count)]
    return pd.DataFrame({"id": [f"r{n}" for n in range(count)], "text": texts, "label": np.arange(count) % 2})


def trainer(base: Path, scratch: Path, **more: object) -> Trainer:
    section = Finetune.model_validate({**ORDINARY, **more})
    model = tiny_classifier(base, max_length=min(section.length, 64))
    original = rows(9) if section.replay_share else None
    return Trainer(model, section, rows(27), rows(12), scratch, original)


def stop_in(patch: pytest.MonkeyPatch, at: int, end: BaseException | None) -> None:
    """Stop training in step `at`: by an error, or by the SIGTERM that a preempted machine sends."""
    step = Trainer._step

    def stopped(self: Trainer, batch: np.ndarray, original: np.ndarray) -> float:
        if self.progress.step + 1 == at:
            if end is not None:
                raise end
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, original)

    patch.setattr(Trainer, "_step", stopped)


def finished(made: Trainer) -> tuple[dict[str, torch.Tensor], object]:
    progress = made.fit()
    return {name: value.clone() for name, value in made.network.state_dict().items()}, vars(progress)


KEPT = {"replay_share": 0.25, "l2_sp": 0.1, "ewc": 1.0, "distill": 0.5}


AVERAGED = {"average_last": 0.7, "freeze_layers": 1}


@pytest.mark.parametrize(
    "more",
    [{}, {"unfreeze_every": 2}, KEPT, AVERAGED],
    ids=["plain", "unfreezing", "keeping", "averaging"],
)
@pytest.mark.parametrize("how", ["SIGTERM", "a crash"])
def test_resumed_after_any_step_it_ends_with_the_same_bits(
    base: Path, tmp_path: Path, how: str, more: dict[str, float]
) -> None:
    made = trainer(base, tmp_path / "whole", **more)
    whole, story = finished(made)
    for at in range(1, made.steps + 1):
        scratch = tmp_path / str(at)
        with pytest.MonkeyPatch.context() as patch:
            stop_in(patch, at, None if how == "SIGTERM" else RuntimeError("crash"))
            with pytest.raises(Preempted if how == "SIGTERM" else RuntimeError):
                trainer(base, scratch, **more).fit()
        state = newest_checkpoint(scratch)
        assert (state["progress"]["step"] if state else 0) == (at if how == "SIGTERM" else at - 1)
        torch.manual_seed(at)  # what happened in between does not matter
        again, same_story = finished(trainer(base, scratch, **more))
        assert same_story == story, f"resumed in step {at}"
        assert all(torch.equal(again[name], value) for name, value in whole.items()), f"resumed in step {at}"


def test_sigterm_in_a_long_validation_stops_at_once_and_loses_nothing(base: Path, tmp_path: Path) -> None:
    whole, story = finished(trainer(base, tmp_path / "whole"))
    measure = TextClassifier.measure
    for epoch in (1, 2):
        scratch, measured = tmp_path / str(epoch), []
        with pytest.MonkeyPatch.context() as patch:

            def slowly(
                model: TextClassifier, table: pd.DataFrame, seen: list[int] = measured, last: int = epoch
            ) -> Measured:
                seen.append(1)
                if len(seen) == last:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(60)
                return measure(model, table)

            patch.setattr(TextClassifier, "measure", slowly)
            began = time.monotonic()
            with pytest.raises(Preempted, match=f"stopped after step {4 * epoch} of 8"):
                trainer(base, scratch).fit()
        assert time.monotonic() - began < 30
        again, same_story = finished(trainer(base, scratch))
        assert same_story == story
        assert all(torch.equal(again[name], value) for name, value in whole.items())


@pytest.mark.parametrize("step", [2, 4], ids=["within an epoch", "at its end"])
def test_sigterm_while_a_due_checkpoint_is_written_stops_there_and_writes_no_second(
    step: int, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, story = finished(trainer(base, tmp_path / "whole"))
    written, save = [], loop.save_checkpoint

    def told_meanwhile(folder: Path, at: int, state: dict[str, object]) -> Path:
        written.append(at)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return save(folder, at, state)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", told_meanwhile)
        with pytest.raises(Preempted, match=f"stopped after step {step} of 8"):
            trainer(base, tmp_path / "stopped", checkpoint_every=2).fit()
    assert written == list(range(2, step + 1, 2))
    again, same_story = finished(trainer(base, tmp_path / "stopped"))
    assert same_story == story
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_sigterm_in_a_validation_right_after_a_checkpoint_writes_no_second(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, save = [], loop.save_checkpoint

    def counted(folder: Path, at: int, state: dict[str, object]) -> Path:
        written.append(at)
        return save(folder, at, state)

    monkeypatch.setattr(loop, "save_checkpoint", counted)
    monkeypatch.setattr(TextClassifier, "measure", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted, match="stopped after step 4 of 8"):
        trainer(base, tmp_path).fit()
    assert written == [1, 2, 3, 4]


def test_a_step_that_takes_too_long_after_sigterm_is_given_up_and_made_anew(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = {"replay_share": 0.25}  # new and replayed rows: two passes a step
    whole, story = finished(trainer(base, tmp_path / "whole", **passes))
    loss, calls = TextClassifier.loss, 0

    def told_in_the_fifth(*given: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "SECONDS_TO_FINISH", -1.0)
        patch.setattr(TextClassifier, "loss", told_in_the_fifth)
        with pytest.raises(Preempted, match="stopped after step 2 of"):
            trainer(base, tmp_path / "stopped", **passes).fit()
    assert calls == 5, "the second pass of step 3 is not waited for"
    again, same_story = finished(trainer(base, tmp_path / "stopped", **passes))
    assert same_story == story
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_rows_that_were_replayed_are_named_too(base: Path, tmp_path: Path) -> None:
    made = trainer(base, tmp_path, replay_share=0.25)
    with torch.no_grad():
        made.network["head"].weight.fill_(float("nan"))
    with pytest.raises(
        StageError, match=r"rows of this batch: (r\d+, ){6}r\d+ \(replayed\), r\d+ \(replayed\)$"
    ):
        made.fit()


def test_a_gradient_that_explodes_under_a_finite_loss_stops_and_names_the_rows(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exploding(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, loss: torch.Tensor) -> torch.Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: object, *outputs: torch.Tensor) -> torch.Tensor:
            return outputs[0] * 1e38 * 1e38

    loss = TextClassifier.loss
    monkeypatch.setattr(TextClassifier, "loss", lambda self, *rows: Exploding.apply(loss(self, *rows)))
    with pytest.raises(
        StageError, match=r"step 1: the loss is \d\.\d+ and the gradient's norm (nan|inf).*: r\d+, r"
    ):
        trainer(base, tmp_path).fit()


def test_no_training_row_is_an_error(base: Path, tmp_path: Path) -> None:
    section = Finetune.model_validate(ORDINARY)
    with pytest.raises(StageError, match="no training rows: zero steps would be made"):
        Trainer(tiny_classifier(base), section, rows(0), rows(12), tmp_path).fit()


def test_sigterm_is_handled_as_before_when_training_has_ended(base: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    trainer(base, tmp_path).fit()
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_stays_is_the_epoch_with_the_least_validation_loss(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.5, 0.3, 0.4, 0.6])
    states = []
    made = trainer(base, tmp_path, epochs=4)

    def scored(model: TextClassifier, table: pd.DataFrame) -> Measured:
        states.append({name: value.clone() for name, value in model.network.state_dict().items()})
        return Measured(np.array([next(losses)]), np.array([0.5]))

    monkeypatch.setattr(TextClassifier, "measure", scored)
    progress = made.fit()
    assert (progress.best_epoch, progress.best_loss, progress.epoch) == (2, 0.3, 4)
    assert all(torch.equal(value, states[1][name]) for name, value in made.network.state_dict().items())
    assert [row.get("validation_loss") for row in progress.history[3::4]] == [0.5, 0.3, 0.4, 0.6]


def test_a_validation_loss_that_is_no_number_stops_with_a_remedy(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Measured(np.array([math.nan]), np.array([0.5]))
    monkeypatch.setattr(TextClassifier, "measure", lambda *_: nothing)
    with pytest.raises(
        StageError, match=r"epoch 1: the validation loss is nan; lower finetune\.learning_rate"
    ):
        trainer(base, tmp_path).fit()


def test_a_gradient_that_overflows_changes_no_weight(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(base, tmp_path)
    before = {name: value.clone() for name, value in made.network.state_dict().items()}
    loss = TextClassifier.loss
    monkeypatch.setattr(TextClassifier, "loss", lambda self, *rows: loss(self, *rows) * 1e38 * 1e38)
    with pytest.raises(StageError, match=r"step 1: the loss is inf .* rows of this batch: r\d+"):
        made.fit()
    assert all(torch.equal(value, before[name]) for name, value in made.network.state_dict().items())
    assert newest_checkpoint(tmp_path) is None


def test_a_measure_is_cross_entropy_and_correctness(base: Path, tmp_path: Path) -> None:
    made, table = trainer(base, tmp_path), rows(12)
    logits = torch.from_numpy(made.model.logits(table["text"].tolist()))
    labels = table["label"].to_numpy(copy=True)
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    measured = made.model.measure(table)
    assert measured.loss == pytest.approx(float(expected), abs=1e-6)
    assert measured.score == float((logits.argmax(1).numpy() == labels).mean())


def test_a_longer_text_than_the_model_reads_trains_cut(base: Path, tmp_path: Path) -> None:
    section = Finetune.model_validate({**ORDINARY, "epochs": 1})
    table = rows(27)
    table.loc[0, "text"] = "good " * 300
    made = Trainer(tiny_classifier(base), section, table, rows(12), tmp_path)
    assert made.examples.truncated == 1
    assert made.examples.lengths[0] == 16
    assert math.isfinite(made.fit().train_loss)


def test_training_ends_when_validation_gets_no_better(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.5, 0.3, 0.4, 0.35, 0.2, 0.1])
    monkeypatch.setattr(
        TextClassifier, "measure", lambda *_: Measured(np.array([next(losses)]), np.array([0.5]))
    )
    progress = trainer(base, tmp_path, epochs=6, patience=2).fit()
    assert (progress.epoch, progress.best_epoch) == (4, 2)
