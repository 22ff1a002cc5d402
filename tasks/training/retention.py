"""Keep what the base could do while training: penalties, distillation from the base, and replay of original rows.

Nothing here adds to a checkpoint. Start values, Fisher information and teacher are functions of the base (and of the
original rows), the replay schedule is one of seed, epoch and batch: a run that resumes makes them again, from the base,
*before* it loads the checkpoint. On a CPU they come out with the same bits.

Penalties add up, and are added once to the mean loss of a global batch, whatever micro-batches it is cut into. Adapters
are refused: what they move is not the base's weights, which stay where they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tasks.errors import ConfigError, DataError, StageError

REPLAY_STREAM = 1
"""Tells the random numbers of the replay schedule from those of the batches, which have the same seed."""


class Penalty(Protocol):
    """What is added to the loss of a global batch."""

    def penalty(self) -> Tensor:
        """Return a scalar whose gradient reaches the parameters that train, and no others."""


# --- penalties ----------------------------------------------------------------------------------------


class _FromStart:
    """The weights that a penalty pulls, and where they started: those that require gradients when it is made."""

    def __init__(self, network: nn.Module, fresh: Collection[str]) -> None:
        _check_names(network, fresh)
        self.fresh = frozenset(fresh)
        self.parameters = dict(network.named_parameters())
        self.start = {
            name: parameter.detach().clone()
            for name, parameter in self.parameters.items()
            if name not in self.fresh and parameter.requires_grad
        }

    def _moving(self) -> list[str]:
        """Return the names of the pulled weights that train now: gradual unfreezing lets some wait."""
        training = [name for name, value in self.parameters.items() if value.requires_grad]
        late = [name for name in training if name not in self.start and name not in self.fresh]
        if late:
            raise StageError(
                f"{late[0]} and {len(late) - 1} more parameters train, but were frozen when the penalty was made, "
                "so that it does not know where they started"
            )
        return [name for name in training if name in self.start]

    def _sum(self, terms: Sequence[Tensor]) -> Tensor:
        """Return the sum, 0 on the right device where there is nothing to add."""
        return torch.stack(list(terms)).sum() if terms else next(iter(self.parameters.values())).new_zeros(())


class L2SP(_FromStart):
    """Pull weights back to where they started: strength / 2 · ‖w - start‖² + fresh_strength / 2 · ‖fresh‖².

    `fresh` names the parameters without a start, such as a new head: they are pulled to zero by `fresh_strength`, which
    is 0 unless said otherwise, because AdamW's own decay does that already. Make it when it has been settled which
    parameters train, and before a checkpoint is loaded.

    Source: Li, Grandvalet & Davoine 2018, Explicit inductive bias for transfer learning, section 3 (L2-SP).

    Raises:
        ConfigError: `fresh` names what the network lacks, or the network has adapters.
    """

    def __init__(
        self,
        network: nn.Module,
        strength: float,
        *,
        fresh: Collection[str] = (),
        fresh_strength: float = 0.0,
    ) -> None:
        super().__init__(network, fresh)
        self.strength, self.fresh_strength = strength, fresh_strength

    def penalty(self) -> Tensor:
        """Return the penalty of the weights as they are."""
        pulled = [_Pull.apply(self.parameters[name], self.start[name], None) for name in self._moving()]
        shrunk = [
            parameter.square().sum()
            for name, parameter in self.parameters.items()
            if name in self.fresh and parameter.requires_grad and self.fresh_strength
        ]
        return self.strength / 2 * self._sum(pulled) + self.fresh_strength / 2 * self._sum(shrunk)


class EWC(_FromStart):
    """Pull weights back to where they started, each as hard as it matters: strength / 2 · Σ fisher · (w - start)².

    `fresh` names the parameters without a start, which are left alone. Make it when it has been settled which
    parameters train, and before a checkpoint is loaded.

    Source: Kirkpatrick et al. 2017, Overcoming catastrophic forgetting in neural networks, equation 3.

    Raises:
        ConfigError: `fresh` names what the network lacks, or the network has adapters.
        StageError: a parameter that trains has no Fisher information, or one of another shape.
    """

    def __init__(
        self,
        network: nn.Module,
        fisher: Mapping[str, Tensor],
        strength: float,
        *,
        fresh: Collection[str] = (),
    ) -> None:
        super().__init__(network, fresh)
        problems = [
            f"{name} has no Fisher information of its shape {tuple(start.shape)}"
            for name, start in self.start.items()
            if name not in fisher or fisher[name].shape != start.shape
        ]
        if problems:
            raise StageError("elastic weight consolidation needs to know what matters:", problems)
        self.strength = strength
        self.fisher = {name: fisher[name].to(start.device) for name, start in self.start.items()}

    def penalty(self) -> Tensor:
        """Return the penalty of the weights as they are."""
        pulled = [
            _Pull.apply(self.parameters[name], self.start[name], self.fisher[name]) for name in self._moving()
        ]
        return self.strength / 2 * self._sum(pulled)


def diagonal_fisher(network: nn.Module, losses: Iterable[Callable[[], Tensor]]) -> dict[str, Tensor]:
    """Estimate the diagonal of the Fisher information of the parameters that require gradients.

    Each of `losses` computes the negative log-likelihood of *one* example, a scalar; its gradient is squared before the
    mean over examples is taken. (The square of a batch's mean gradient is something else, and close to zero at an
    optimum.) With the examples' own labels this is the empirical Fisher information; with labels drawn from the
    network's predictions it is an unbiased estimate of the true one. The network is in eval mode meanwhile, and neither
    its gradients nor torch's random numbers are touched. The result is a function of weights and examples, in order.

    Source: Kirkpatrick et al. 2017, section 2; Kunstner et al. 2019, Limitations of the empirical Fisher approximation.

    Raises:
        StageError: there are no examples, nothing trains, or a loss is no scalar or not finite.
    """
    parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
    if not parameters:
        raise StageError("Fisher information: no parameter of the network requires gradients")
    fisher = {name: torch.zeros_like(value) for name, value in parameters.items()}
    modes = [(module, module.training) for module in network.modules()]
    examples = 0
    try:
        for example, loss_of in enumerate(losses):
            network.eval()
            loss = loss_of()
            if loss.ndim or not math.isfinite(loss.item()):
                raise StageError(f"Fisher information: the loss of example {example} is {loss.tolist()}")
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for squares, gradient in zip(fisher.values(), gradients, strict=True):
                if gradient is not None:
                    squares.addcmul_(gradient, gradient)
            examples += 1
    finally:
        for module, training in modes:
            module.training = training
    if not examples:
        raise StageError("Fisher information: there are no examples to estimate it from")
    return {name: squares.div_(examples) for name, squares in fisher.items()}


class _Pull(torch.autograd.Function):
    """Σ importance · (w - start)², without keeping a copy of every weight until the backward pass."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, start: Tensor, importance: Tensor | None) -> Tensor:
        ctx.save_for_backward(parameter, start, *(() if importance is None else (importance,)))
        squares = (parameter - start).square_()
        return (squares if importance is None else squares.mul_(importance)).sum()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        parameter, start, *importance = ctx.saved_tensors
        gradient = (parameter - start).mul_(2 * outputs[0])
        return (gradient.mul_(importance[0]) if importance else gradient), None, None


def _check_names(network: nn.Module, fresh: Collection[str]) -> None:
    names = {name for name, _ in network.named_parameters()}
    problems = [f"the network has no parameter {name}" for name in sorted(set(fresh) - names)]
    if any(isinstance(getattr(module, "base_layer", None), nn.Module) for module in network.modules()):
        problems.append(
            "`method: lora` leaves the base's weights where they are, so that a pull back to them does nothing: "
            "set `l2_sp` and `ewc` to 0, or choose another method"
        )
    if problems:
        raise ConfigError("the pull back to the base cannot be set up:", problems)


# --- distillation -------------------------------------------------------------------------------------


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Return temperature² · KL(teacher ‖ student) of softened predictions, summed over rows (or tokens).

    Logits are `(..., classes)`, `mask` is boolean `(...)` and says which rows count (None: all); divide by their number
    in the global batch for the mean. No gradient reaches the teacher. It differs from the cross-entropy with the
    teacher's predictions by the teacher's entropy, so that it is 0 where both agree.

    Source: Hinton et al. 2015, Distilling the knowledge in a neural network, section 2 (temperature²); Li & Hoiem 2016,
    Learning without forgetting, section 3 (there without the square, at temperature 2).
    """
    student, teacher = _counted(student_logits, teacher_logits, mask)
    wanted = functional.log_softmax(teacher / temperature, dim=-1)
    said = functional.log_softmax(student / temperature, dim=-1)
    return temperature**2 * functional.kl_div(said, wanted, reduction="sum", log_target=True)


def feature_distillation(
    student_vectors: Tensor, teacher_vectors: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return 1 - cosine of the vectors `(..., dim)` of student and teacher, summed over rows; for what has no head.

    `mask` is boolean `(...)` and says which rows count (None: all). No gradient reaches the teacher.
    """
    student, teacher = _counted(student_vectors, teacher_vectors, mask)
    return (1 - functional.cosine_similarity(student, teacher, dim=-1)).sum()


def _counted(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the rows that count, before anything is computed: what is masked may be no number."""
    if mask is not None:
        student, teacher = student[mask], teacher[mask]
    return student.float(), teacher.detach().float()


# --- replay -------------------------------------------------------------------------------------------


def rows_beside_replay(batch_size: int, share: float) -> int:
    """Return how many new rows a batch has so that with replayed ones it has `batch_size`, to within a row."""
    return max(round(batch_size * (1 - Fraction(str(share)))), 1)


def replay_batches(
    batches: Sequence[NDArray[np.int64]], replay_rows: int, share: float, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """Return for each of the epoch's batches of new rows the indices of the original rows that it replays.

    After every batch `share` of all rows since the first epoch were replayed, to within one row: of 29 new rows and a
    share of 0.1 come 3 or 4 more, 3.22 on average. Original rows are drawn without replacement until all have been,
    then again in another order. A function of its arguments alone; all epochs must have equally many new rows.

    Source: Rolnick et al. 2019, Experience replay for continual learning.

    Raises:
        ConfigError: the share is not at least 0 and less than 1.
        DataError: there are no original rows to replay.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"finetune.replay_share is {share}: it must be at least 0 and less than 1")
    if share and replay_rows < 1:
        raise DataError("finetune.replay_share is above 0, but data.replay has no rows")
    per_new_row = Fraction(str(share)) / (1 - Fraction(str(share)))
    seen = list(accumulate((len(batch) for batch in batches), initial=0))
    before = epoch * seen[-1]
    drawn = [math.floor((before + count) * per_new_row) for count in seen]
    orders: dict[int, NDArray[np.int64]] = {}
    return [
        np.array([_replayed(draw, replay_rows, seed, orders) for draw in range(first, end)], dtype=np.int64)
        for first, end in pairwise(drawn)
    ]


def _replayed(draw: int, rows: int, seed: int, orders: dict[int, NDArray[np.int64]]) -> int:
    """Return the row of a draw, counted from the start of training."""
    turn, place = divmod(draw, rows)
    if turn not in orders:
        orders[turn] = np.random.default_rng([seed, turn, REPLAY_STREAM]).permutation(rows)
    return int(orders[turn][place])
