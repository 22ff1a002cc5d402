"""The training loop: deterministic, resumable at any step, and stopped cleanly by SIGTERM or a bad number."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tasks.errors import Preempted, StageError
from tasks.families.interface import Examples, Measured, Model
from tasks.recipe import Finetune
from tasks.training.adapters import load_state_beside_base, state_beside_base
from tasks.training.averaging import Average
from tasks.training.batches import micro_batches
from tasks.training.checkpoints import newest_checkpoint, save_checkpoint
from tasks.training.copies import Copies
from tasks.training.distributed import find_team
from tasks.training.keeping import make_keeping
from tasks.training.layers import parameter_groups, rate_share, thawed
from tasks.training.memory import (
    MICRO_TOKENS,
    compile_blocks,
    needing_memory,
    random_state,
    recompute_blocks,
    restore_blocks,
    retry_smaller,
    set_random_state,
)
from tasks.training.packing import Packing
from tasks.training.tensorboard import Board

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 2.0
SECONDS_TO_FINISH = 5.0
"""After SIGTERM, that a step has to end in; then it is given up between two of its passes, and made anew later."""

LEAST_SHARE = 1024
"""Of what is usually read at once without gradients, that is tried: a few tokens, or one image."""


@dataclass
class Progress:
    """Where training stands, and what it has seen; part of every checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    best_loss: float = math.inf
    best_score: float = 0.0
    best_epoch: int = 0
    train_loss: float = math.nan
    micro_tokens: int = 0
    """Tokens of a forward and backward pass that fit into memory, as far as is known."""
    recompute: bool = False
    """Whether the backward pass computes activations again, because there was no room for them."""
    history: list[dict[str, float | int | None]] = field(default_factory=list)


Watch = Callable[[Progress, Measured], None]
"""Told after every epoch how it went."""


class Trainer:
    """Train a model's network; what `fit` leaves in it is the epoch with the least validation loss."""

    def __init__(
        self,
        model: Model,
        section: Finetune,
        train: pd.DataFrame,
        validation: pd.DataFrame,
        scratch: Path,
        original: pd.DataFrame | None = None,
        watch: Watch | None = None,
        copies: Copies | None = None,
        board: Board | None = None,
    ):
        self.team, self.given = find_team(model, section), model
        self.model = self.team.own(model)
        self.section, self.scratch, self.copies, self.watch = section, scratch, copies, watch
        self.board = board if self.team.first else None
        self.train, self.validation = train, validation
        self.examples = model.examples(train)
        self.network = self.model.network
        groups = parameter_groups(self.network, section)
        self.top = max(int(str(group["depth"])) for group in groups)
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.team.join(self.network)
        self.keeping = make_keeping(self.model, section, original)
        self.steps = section.epochs * len(self._batches(0))
        self.warmup = math.ceil(self.steps * section.warmup_share)
        trained = {name: value for name, value in self.network.named_parameters() if value.requires_grad}
        self.average = Average(trained, self.steps, section.average_last)
        self.progress = Progress(micro_tokens=MICRO_TOKENS[self.model.device.partition(":")[0]])
        self.packing: Packing | None = None
        self.best: dict[str, Tensor] | None = None
        self._stopped = _Stop()
        self._saved: tuple[int, int] | None = None

    def fit(self) -> Progress:
        """Train to the end, from the newest checkpoint if there is one.

        Raises:
            StageError: there is nothing to train on, or the loss or a gradient is not finite.
            Preempted: SIGTERM came; the work is checkpointed.
        """
        if self.steps == 0:
            raise StageError("there are no training rows: zero steps would be made")
        torch.manual_seed(self.section.seed + self.team.rank)
        self._resume()
        with _stop_flag(self._stopped) as stopped, self._drawn(), self.fast():
            while self.progress.epoch < self.section.epochs and not self._lost_patience():
                self._epoch(stopped)
        if self.best is not None:
            load_state_beside_base(self.network, self.best)
        self.team.give_back(self.model, self.given)
        self.team.any(False)  # nobody leaves while another still waits for what it has
        if self.best is not None:
            self.given.settle(self.train)
        return self.progress

    @contextlib.contextmanager
    def fast(self) -> Iterator[None]:
        """Make ready what makes training fast, or fit into memory; when the body ends, all is as it was."""
        self.packing = self.team.read(self.model.find_packing)
        log.info("rows are %s", "read packed" if self.packing else "padded")
        if self.progress.recompute or self.section.recompute_activations:
            recompute_blocks(self.network)
        if self.section.compile and self.model.device.startswith("cuda"):
            compile_blocks(self.network)
        try:
            with self.model.packed(self.packing):
                yield
        finally:
            restore_blocks(self.network)

    @contextlib.contextmanager
    def _drawn(self) -> Iterator[None]:
        """Open the board of curves, if there is one, and close it whatever happens."""
        if self.board is None:
            yield
            return
        self.board.begin(self.progress.step)
        try:
            yield
        finally:
            self.board.close()

    def _draw(self) -> None:
        """Draw the newest row of the history."""
        if self.board is not None:
            self.board.draw(self.progress.history[-1])

    def _batches(self, epoch: int) -> list[np.ndarray]:
        section = self.section.model_copy(update={"batch_size": self.keeping.batch_size})
        return self.model.batches(self.examples, section, epoch)

    def _lost_patience(self) -> bool:
        patience, progress = self.section.patience, self.progress
        if patience is None or progress.epoch - progress.best_epoch < patience:
            return False
        log.info("no lower validation loss for %d epochs: training ends early", patience)
        return True

    def _epoch(self, stopped: _Stop) -> None:
        progress, lines = self.progress, _Lines(self.steps, self.progress.step)
        self.model.train_mode()
        batches = self._batches(progress.epoch)
        replayed = self.keeping.replayed(batches, progress.epoch)
        for batch, original in list(zip(batches, replayed, strict=True))[progress.batch :]:
            loss = self._whole_step(batch, original)
            progress.step, progress.batch = progress.step + 1, progress.batch + 1
            with needing_memory("for the weights' average", self._remedy_for_weights()):
                self.average.take(progress.step)
            progress.loss_sum += loss * len(batch)
            rate = self.optimizer.param_groups[-1]["lr"]
            progress.history.append(
                {"step": progress.step, "epoch": progress.epoch + 1, "loss": loss, "learning_rate": rate}
            )
            self._draw()
            lines.say(progress.step, len(batch), int(self.examples.lengths[batch].sum()), loss, rate)
            due = progress.step % self.section.checkpoint_every == 0
            stop = self.team.any(stopped())
            if stop or due:
                self._save()
                stop = self.team.any(stopped())  # SIGTERM may have come while it was written
            if stop:
                raise self._preempted()
        self._end_epoch(stopped)

    def _whole_step(self, batch: np.ndarray, original: np.ndarray) -> float:
        """Make a step, or, when SIGTERM came and it takes too long, nothing of it, and checkpoint what was before."""
        before = random_state()
        try:
            return self._step(batch, original)
        except _StopNow:
            self.optimizer.zero_grad(set_to_none=True)
            set_random_state(before)
            self._save()
            raise self._preempted() from None

    def _step(self, batch: np.ndarray, original: np.ndarray) -> float:
        share = rate_share(self.progress.step, self.steps, self.warmup)
        for group in self.optimizer.param_groups:
            awake = thawed(group["depth"], self.top, self.progress.step, self.section.unfreeze_every)
            group["lr"] = group["peak"] * share if awake else 0.0
            for parameter in group["params"]:
                parameter.requires_grad_(awake)
        total = self._backward(batch, original)
        trained = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        with needing_memory("for the gradients' norm", self._remedy_for_weights()):
            norm = float(self.team.in_one(nn.utils.clip_grad_norm_(trained, self.section.max_grad_norm)))
        if not (math.isfinite(total) and math.isfinite(norm)):
            rows = ", ".join(self._ids(batch, original))
            raise StageError(
                f"step {self.progress.step + 1}: the loss is {total} and the gradient's norm {norm}. Lower "
                f"finetune.learning_rate, or look at the rows of this batch: {rows}"
            )
        with needing_memory("for the optimizer, two numbers a trained weight", self._remedy_for_weights()):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _ids(self, batch: np.ndarray, original: np.ndarray) -> list[str]:
        """Return the ids of a batch's rows, and of those it replays."""
        replay = self.keeping.replay
        replayed = [] if replay is None else [f"{replay.ids[row]} (replayed)" for row in original]
        return [*(self.examples.ids[row] for row in batch), *replayed]

    def _backward(self, batch: np.ndarray, original: np.ndarray) -> float:
        """Make the gradients of a global batch, in parts that fit into memory; return the mean loss of its new rows."""
        found: float = retry_smaller(
            lambda: self._accumulate(batch, original), lambda: self._shrink(batch, original)
        )
        return found

    def _accumulate(self, batch: np.ndarray, original: np.ndarray) -> float:
        """Add up the gradients of a global batch, micro-batch by micro-batch."""
        sets = [(self.examples, batch)]
        if self.keeping.replay is not None and len(original):
            sets.append((self.keeping.replay, original))
        weight = sum(float(examples.weights[rows].sum()) for examples, rows in sets)
        own = float(self.examples.weights[batch].sum())
        passes = [
            (examples, part)
            for examples, rows in sets
            for part in (self._parts(examples, self.team.share(rows)) if weight else [])
        ]
        total = torch.zeros((), device=self.model.device)
        for (examples, part), counts, last in self.team.in_step(passes, (self.examples, batch[:1])):
            loss, new = self.team.call(partial(self._loss, examples, part), last)
            (loss * counts / weight).backward()
            if not last and self.team.size == 1 and self._stopped.is_overdue():
                raise _StopNow
            if counts:
                total += new
        if (penalty := self.keeping.penalty()) is not None:
            penalty.backward()
        # The device is waited for here, once a step, and not in every pass.
        return self.team.total(float(total)) / own if own else 0.0

    def _shrink(self, batch: np.ndarray, original: np.ndarray) -> None:
        """Make the passes of a step smaller: fewer rows in each, then activations computed twice.

        Raises:
            StageError: they are as small as can be, or other processes wait for this one.
        """
        progress = self.progress
        self.optimizer.zero_grad(set_to_none=True)
        parts = self._parts(self.examples, batch)
        if self.keeping.replay is not None:
            parts += self._parts(self.keeping.replay, original)
        rows = max(map(len, parts))
        alone = self.team.size == 1
        if alone and rows > 1 and not self.model.whole_batches:
            progress.micro_tokens = max(min(progress.micro_tokens, self._cost(batch)) // 2, 1)
            log.warning("memory does not suffice: passes of at most %d tokens now", progress.micro_tokens)
        elif alone and not progress.recompute and not self.section.recompute_activations:
            progress.recompute = True
            recompute_blocks(self.network)
            log.warning("memory does not suffice: activations are computed twice now")
        else:
            raise StageError(
                f"memory does not suffice for a pass over {rows} row(s) of up to "
                f"{int(self.examples.lengths[batch].max())} tokens: {self._remedy()}"
            )

    def _remedy(self) -> str:
        if self.team.size > 1 and not self.section.recompute_activations:
            return "set finetune.recompute_activations: true, or sharding: shard."
        smaller = "finetune.batch_size" if self.model.whole_batches else "finetune.max_length"
        return f"lower {smaller}, train fewer parameters (method, freeze_layers), or use a larger device."

    def _remedy_for_weights(self) -> str:
        if self.team.size > 1 and self.section.sharding != "shard":
            return "set finetune.sharding: shard, or train fewer parameters (method, freeze_layers)."
        return "train fewer parameters (method, freeze_layers), or use a larger device."

    def _cost(self, rows: np.ndarray) -> int:
        """Return the tokens that are computed for some rows in one pass."""
        lengths = np.maximum(self.examples.lengths[rows], 1)
        return int(lengths.sum() if self.packing else lengths.max() * len(rows))

    def _loss(self, examples: Examples, part: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the loss of some rows, with the distillation asked for, and what of it is that of new rows."""
        loss = self.model.loss(examples, part)
        new = loss.detach().float() if examples is self.examples else torch.zeros((), device=loss.device)
        if self.keeping.teacher is not None:
            apart = self.model.distillation(self.keeping.teacher, examples, part)
            loss = loss + self.keeping.distill * apart
        return loss, new

    def _parts(self, examples: Examples, rows: np.ndarray) -> list[np.ndarray]:
        if not len(rows):
            return []
        if self.model.whole_batches:
            return [rows]
        packed = self.packing is not None
        return micro_batches(rows, examples.lengths, self.progress.micro_tokens, packed=packed)

    def _measure(self, stopped: _Stop) -> Measured:
        """Measure the model; SIGTERM does not wait for the end of that, which may be long."""
        # What validation draws must not move training's random numbers: it draws none (no dropout).
        try:
            at_once = stopped.at_once() if self.team.reads_alone else contextlib.nullcontext()
            room = needing_memory("to show the weights' average", self._remedy_for_weights())
            with room, self.average.shown(), at_once:
                measured = self.team.read(self._validate)
        except _StopNow:
            measured = None
        if self.team.any(measured is None or stopped()) or measured is None:
            self._save()
            raise self._preempted()
        return measured

    def _validate(self) -> Measured:
        """Measure the model on validation, in smaller batches where memory does not suffice."""

        def measured() -> Measured:
            self.model.settle(self.train)
            return self.model.measure(self.validation)

        found: Measured = retry_smaller(measured, self._read_less)
        return found

    def _read_less(self) -> None:
        """Have less read at once without gradients.

        Raises:
            StageError: it is as little as can be, or other processes wait for this one.
        """
        if not self.team.reads_alone or self.model.less >= LEAST_SHARE:
            raise StageError(
                f"epoch {self.progress.epoch + 1}: memory does not suffice to measure the validation rows: lower "
                "finetune.max_length, train fewer parameters (method, freeze_layers), or use a larger device."
            )
        self.model.less = self.model.encoder.less = 2 * self.model.less
        log.warning(
            "memory does not suffice: validation reads 1/%d of what is usual at once now", self.model.less
        )

    def _save(self) -> None:
        """Write a checkpoint, unless this is where the last one stands."""
        place = (self.progress.epoch, self.progress.step)
        if place == self._saved:
            return
        state = self._state()
        if self.team.first:
            written = save_checkpoint(self.scratch, self.progress.step, state)
            if self.copies is not None:
                self.copies.put(written)
        self.team.any(False)  # nobody goes on, or ends, before it is whole
        self._saved = place

    def _preempted(self) -> Preempted:
        return Preempted(f"stopped after step {self.progress.step} of {self.steps}; run it again to go on")

    def _end_epoch(self, stopped: _Stop) -> None:
        progress = self.progress
        measured = self._measure(stopped)
        # What one of them decides, all must: the first one's numbers are those of all.
        loss, score = self.team.each((measured.loss, measured.score))[0]
        progress.train_loss = progress.loss_sum / len(self.examples)
        progress.history[-1] |= {"validation_loss": loss, "validation_score": score}
        self._draw()
        progress.epoch, progress.batch, progress.loss_sum = progress.epoch + 1, 0, 0.0
        log.info("epoch %d: validation loss %.4f, %s %.4f", progress.epoch, loss, self.model.metric, score)
        if not math.isfinite(loss):
            raise StageError(
                f"epoch {progress.epoch}: the validation loss is {loss}; lower finetune.learning_rate"
            )
        if loss < progress.best_loss:
            progress.best_loss, progress.best_score = loss, score
            progress.best_epoch = progress.epoch
            with (
                needing_memory("for a copy of the best epoch's weights", self._remedy_for_weights()),
                self.average.shown(),
            ):
                self.best = copy.deepcopy(state_beside_base(self.network))
        if self.watch is not None:
            self.watch(progress, measured)

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.team.whole(state_beside_base(self.network)),
            "optimizer": self.team.whole(self.optimizer.state_dict()),
            "best": self.team.whole(self.best),
            "average": self.team.whole(self.average.state),
            "progress": vars(self.progress),
            "generators": self.team.each(random_state()),
        }

    def _resume(self) -> None:
        if self.copies is not None and self.team.first:
            self.copies.fetch(self.scratch)
        self.team.any(False)  # all look when it is there
        state = newest_checkpoint(self.scratch)
        if state is None:
            return
        load_state_beside_base(self.network, self.team.pieces(state["network"], self.network))
        self.optimizer.load_state_dict(self.team.optimizer_pieces(state["optimizer"], self.optimizer))
        if state["best"] is not None:
            self.best = dict(self.team.pieces(state["best"], self.network))
        average = state["average"]
        self.average.load(average["count"], self.team.pieces(average["mean"], self.network))
        self.progress = Progress(**state["progress"])
        set_random_state(state["generators"][self.team.rank])
        log.info("going on from the checkpoint at step %d of %d", self.progress.step, self.steps)


class _StopNow(BaseException):
    """SIGTERM came where waiting for a flag to be read could take too long."""


class _Stop:
    """SIGTERM as a flag that is read between steps, so that no step is left half done."""

    def __init__(self) -> None:
        self._asked = self._now = False
        self._since = 0.0

    def is_overdue(self) -> bool:
        """Tell whether SIGTERM came so long ago that what goes on should be given up."""
        return self._asked and time.monotonic() - self._since > SECONDS_TO_FINISH

    def __call__(self) -> bool:
        return self._asked

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Note that SIGTERM came."""
        if not self._asked:
            self._asked, self._since = True, time.monotonic()
        if self._now:
            self._now = False  # once is enough: what follows writes a checkpoint
            raise _StopNow

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let SIGTERM end the body, by `_StopNow`."""
        self._now = True
        try:
            if self._asked:
                raise _StopNow
            yield
        finally:
            self._now = False


@contextlib.contextmanager
def _stop_flag(stop: _Stop) -> Iterator[_Stop]:
    previous = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, stop.handle)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Lines:
    """A line about progress every two seconds."""

    def __init__(self, steps: int, first: int) -> None:
        self.steps, self.first = steps, first
        self.started = self.said = time.monotonic()
        self.rows = self.tokens = 0

    def say(self, step: int, rows: int, tokens: int, loss: float, rate: float) -> None:
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens
        now = time.monotonic()
        if now - self.said < SECONDS_BETWEEN_LINES and step != self.steps:
            return
        self.said, spent = now, max(now - self.started, 1e-9)
        left = (self.steps - step) * spent / max(step - self.first, 1)
        log.info(
            "step %d/%d  loss %.4f  rate %.2e  %.0f rows/s  %.0f tokens/s  %.0f s left  %.2f GB at most",
            step, self.steps, loss, rate, self.rows / spent, self.tokens / spent, left, peak_gigabytes(),
        )  # fmt: skip


def peak_gigabytes() -> float:
    """Return the most memory in use so far, in 10⁹ bytes: of the CUDA device, or else of the process (resident)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
