"""What is kept while training: each method's formula, and that it keeps a task that plain training loses."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.errors import ConfigError, DataError, StageError
from tasks.training.retention import (
    EWC,
    L2SP,
    diagonal_fisher,
    distillation_loss,
    feature_distillation,
    replay_batches,
    rows_beside_replay,
)
from tests.short_training import short_trainer

HEAD = ("head.weight", "head.bias")


def small_network(seed: int = 0) -> nn.ModuleDict:
    torch.manual_seed(seed)
    return nn.ModuleDict({"body": nn.Linear(3, 4), "head": nn.Linear(4, 2)})


def moved(network: nn.ModuleDict) -> nn.ModuleDict:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    return network


# --- L2-SP --------------------------------------------------------------------------------------------


def test_l2sp_is_half_the_squared_distance_from_the_start_and_zero_there() -> None:
    network = small_network()
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    penalty = L2SP(network, 0.3, fresh=HEAD)
    assert penalty.penalty().item() == 0.0
    moved(network)
    loss = penalty.penalty()
    distance = sum(
        (network["body"].get_parameter(n) - start[f"body.{n}"]).square().sum() for n in ("weight", "bias")
    )
    assert loss.item() == pytest.approx(0.15 * distance.item(), rel=1e-6)
    loss.backward()
    expected = 0.3 * (network["body"].weight.detach() - start["body.weight"])
    assert torch.allclose(network["body"].weight.grad, expected, atol=1e-7)
    assert network["head"].weight.grad is None


def test_l2sp_shrinks_fresh_parameters_by_a_strength_of_their_own() -> None:
    network = moved(small_network())
    penalty = L2SP(network, 5.0, fresh=HEAD, fresh_strength=0.2)
    loss = penalty.penalty()
    head = network["head"].weight.square().sum() + network["head"].bias.square().sum()
    assert loss.item() == pytest.approx(0.1 * float(head), rel=1e-6)
    loss.backward()
    assert torch.allclose(network["head"].weight.grad, 0.2 * network["head"].weight.detach())


def test_penalties_reach_only_what_trains() -> None:
    network = small_network()
    network["body"].bias.requires_grad_(False)
    penalty = L2SP(network, 1.0, fresh=HEAD)
    assert set(penalty.start) == {"body.weight"}
    moved(network)
    network["body"].weight.requires_grad_(False)  # gradual unfreezing: not its turn yet
    assert penalty.penalty().item() == 0.0
    network["body"].weight.requires_grad_(True)
    penalty.penalty().backward()
    assert network["body"].bias.grad is None
    network["body"].bias.requires_grad_(True)
    with pytest.raises(StageError, match=r"body\.bias and 0 more.*were frozen when the penalty was made"):
        penalty.penalty()


def test_penalties_add_up() -> None:
    network = small_network()
    fisher = {name: torch.full_like(value, 2.0) for name, value in network.named_parameters()}
    penalties = [L2SP(network, 0.5), EWC(network, fisher, 0.25)]
    moved(network)
    total = torch.stack([penalty.penalty() for penalty in penalties]).sum()
    assert total.item() == pytest.approx(float(L2SP.penalty(penalties[0])) * 2, rel=1e-6)
    total.backward()
    expected = 1.0 * (network["head"].weight.detach() - penalties[0].start["head.weight"])
    assert torch.allclose(network["head"].weight.grad, expected, atol=1e-6)


def test_what_a_penalty_cannot_work_with_is_said() -> None:
    network = small_network()
    with pytest.raises(ConfigError, match=r"no parameter classifier\.weight"):
        L2SP(network, 1.0, fresh=("classifier.weight",))
    with pytest.raises(StageError) as caught:
        EWC(network, {"body.weight": torch.ones(4, 4), "body.bias": torch.ones(4)}, 1.0, fresh=HEAD)
    assert caught.value.problems == ["body.weight has no Fisher information of its shape (4, 3)"]
    network["body"].base_layer = nn.Linear(3, 4)
    with pytest.raises(ConfigError, match=r"method: lora.*set `l2_sp` and `ewc` to 0"):
        L2SP(network, 1.0)


# --- EWC ----------------------------------------------------------------------------------------------


def test_ewc_weighs_each_squared_distance_by_its_importance() -> None:
    network = small_network()
    fisher = {
        name: torch.rand(value.shape, generator=torch.Generator().manual_seed(2))
        for name, value in network.named_parameters()
    }
    penalty = EWC(network, fisher, 3.0, fresh=HEAD)
    assert penalty.penalty().item() == 0.0
    moved(network)
    penalty.penalty().backward()
    for name in ("weight", "bias"):
        distance = network["body"].get_parameter(name).detach() - penalty.start[f"body.{name}"]
        expected = 3.0 * fisher[f"body.{name}"] * distance
        assert torch.allclose(network["body"].get_parameter(name).grad, expected, atol=1e-6)
    assert network["head"].weight.grad is None


def test_the_empirical_fisher_of_a_logistic_model_is_the_analytic_one() -> None:
    """The gradient of -log p(y|x) is (p - y)·x, so the information is the mean of (p - y)²·x²."""
    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(50, 3, generator=generator), torch.rand(50, generator=generator).round()
    torch.manual_seed(1)
    model = nn.Linear(3, 1)
    residual = (torch.sigmoid(model(rows).squeeze(1)) - labels).detach()

    def loss(row: int) -> Callable[[], Tensor]:
        return lambda: functional.binary_cross_entropy_with_logits(model(rows[row])[0], labels[row])

    found = diagonal_fisher(model, [loss(row) for row in range(50)])
    assert torch.allclose(found["weight"][0], (residual.square()[:, None] * rows.square()).mean(0), atol=1e-6)
    assert torch.allclose(found["bias"][0], residual.square().mean(), atol=1e-6)
    batch = torch.autograd.grad(
        functional.binary_cross_entropy_with_logits(model(rows).squeeze(1), labels), model.weight
    )[0]
    assert (found["weight"] > 5 * batch.square()).all()  # the square of the batch's mean is another thing


def test_labels_drawn_from_the_model_give_the_true_fisher_of_a_gaussian() -> None:
    """y ~ N(w·x, σ²) has the information x² / σ² whatever w is."""
    generator = torch.Generator().manual_seed(0)
    deviation, rows = 0.5, torch.tensor([[1.0, 2.0, -3.0]])
    model = nn.Linear(3, 1, bias=False)
    drawn = model(rows).detach() + deviation * torch.randn(4000, 1, generator=generator)
    losses = [lambda y=y: ((y - model(rows)[0]).square() / (2 * deviation**2)).squeeze() for y in drawn]
    found = diagonal_fisher(model, losses)["weight"][0]
    assert torch.allclose(found, rows[0].square() / deviation**2, rtol=0.08)


def test_estimating_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).train()
    network[1].eval()
    network[0].weight.grad = torch.ones(4, 3)
    drawn = torch.get_rng_state()
    losses = [lambda: network(torch.ones(3)).square().sum() for _ in range(3)]
    first, again = diagonal_fisher(network, losses), diagonal_fisher(network, iter(losses))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [module.training for module in network] == [True, False, True]
    assert torch.equal(network[0].weight.grad, torch.ones(4, 3))
    assert network[2].weight.grad is None


def test_a_fisher_without_examples_or_of_bad_losses_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(StageError, match="no examples"):
        diagonal_fisher(model, [])
    with pytest.raises(StageError, match="loss of example 1 is nan"):
        diagonal_fisher(
            model, [lambda: model(torch.ones(2)).sum(), lambda: model(torch.ones(2)).sum() * torch.nan]
        )
    with pytest.raises(StageError, match=r"loss of example 0 is \["):
        diagonal_fisher(model, [lambda: model(torch.ones(2))])
    with pytest.raises(StageError, match="no parameter of the network requires gradients"):
        diagonal_fisher(model.requires_grad_(False), [lambda: model(torch.ones(2)).sum()])


# --- distillation -------------------------------------------------------------------------------------


def test_distillation_is_the_cross_entropy_less_the_teachers_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, generator=generator)
    student.requires_grad_(True)
    soft = torch.softmax(teacher / 2, -1)
    cross = functional.cross_entropy(student / 2, soft, reduction="sum")
    entropy = -(soft * soft.log()).sum()
    loss = distillation_loss(student, teacher, 2.0)
    assert loss.item() == pytest.approx(4 * (cross - entropy).item(), rel=1e-5)
    loss.backward()
    assert torch.allclose(student.grad, 2 * (torch.softmax(student.detach() / 2, -1) - soft), atol=1e-6)
    assert distillation_loss(teacher, teacher, 2.0).item() == pytest.approx(0.0, abs=1e-6)


def test_at_a_high_temperature_logits_are_matched() -> None:
    """Hinton et al., section 2.1: the gradient becomes the difference of the (centred) logits over the classes."""
    student = torch.tensor([[1.0, -2.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[0.5, 0.0, -0.5]])
    distillation_loss(student, teacher, 1000.0).backward()
    assert torch.allclose(student.grad, (student.detach() - teacher) / 3, atol=1e-2)


def test_masked_rows_have_no_part_even_where_they_are_infinite() -> None:
    student, teacher = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, False, True], [False, False, True]])
    parts = sum(distillation_loss(student[mask][row], teacher[mask][row], 3.0) for row in range(3))
    student[0, 1] = float("nan")
    student.requires_grad_(True)
    loss = distillation_loss(student, teacher, 3.0, mask)
    assert loss.item() == pytest.approx(float(parts), rel=1e-5)
    loss.backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad[~mask].abs().max() == 0
    assert distillation_loss(student, teacher, 3.0, torch.zeros(2, 3, dtype=torch.bool)).item() == 0.0


def test_features_are_compared_by_direction() -> None:
    teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]], requires_grad=True)
    student = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    loss = feature_distillation(student, teacher)
    assert loss.item() == pytest.approx(0.0 + 1.0 + 2.0)
    loss.backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert feature_distillation(student, teacher, torch.tensor([True, True, False])).item() == pytest.approx(
        1.0
    )


def test_a_teacher_stays_what_the_base_was(tmp_path: Path) -> None:
    trainer = short_trainer(tmp_path, distill=0.5)
    base = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.model.train_mode()
    with trainer.fast():
        trainer._step(np.arange(6), np.arange(2))
    assert any(not torch.equal(value, base[name]) for name, value in trainer.network.state_dict().items())
    assert trainer.keeping.teacher is not None
    teacher = trainer.keeping.teacher.network
    assert all(torch.equal(value, base[name]) for name, value in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(module.training for module in trainer.network.modules())


# --- replay -------------------------------------------------------------------------------------------


def new_batches(rows: int, size: int) -> list[np.ndarray]:
    return [np.arange(first, min(first + size, rows)) for first in range(0, rows, size)]


@pytest.mark.parametrize(("share", "sizes"), [(0.1, {3, 4}), (0.25, {8}), (0.02, {0, 1}), (0.5, {16})])
def test_the_share_is_exact_on_average(share: float, sizes: set[int]) -> None:
    new = rows_beside_replay(32, share)
    rows, epochs = new * 100, 3
    counts = [
        len(replayed)
        for epoch in range(epochs)
        for replayed in replay_batches(new_batches(rows, new), 57, share, 7, epoch)
    ]
    assert len(counts) == 300
    assert set(counts) == sizes
    assert {new + count for count in counts} <= {31, 32, 33}
    exact = Fraction(str(share)) / (1 - Fraction(str(share))) * new
    for step, total in enumerate(np.cumsum(counts), 1):
        assert -1 < total - step * exact <= 0


def test_replayed_rows_do_not_repeat_within_a_pass_over_them() -> None:
    batches = new_batches(290, 29)
    drawn = np.concatenate([row for epoch in range(9) for row in replay_batches(batches, 50, 0.1, 7, epoch)])
    assert len(drawn) == 290
    passes = [drawn[first : first + 50].tolist() for first in range(0, 250, 50)]
    assert all(sorted(one) == list(range(50)) for one in passes)
    assert len({tuple(one) for one in passes}) == 5


def test_the_schedule_is_a_function_of_seed_epoch_and_batch() -> None:
    batches = new_batches(100, 7)  # the last batch is short
    whole, again = (replay_batches(batches, 30, 0.3, 7, 2) for _ in range(2))
    assert [batch.tolist() for batch in whole] == [batch.tolist() for batch in again]
    assert [batch.tolist() for batch in whole[:5]] == [
        batch.tolist() for batch in replay_batches(batches, 30, 0.3, 7, 2)[:5]
    ]
    assert np.concatenate(whole).tolist() != np.concatenate(replay_batches(batches, 30, 0.3, 8, 2)).tolist()
    assert np.concatenate(whole).tolist() != np.concatenate(replay_batches(batches, 30, 0.3, 7, 1)).tolist()
    assert len(whole[-1]) < len(whole[0])


def test_replay_needs_rows_and_a_share_below_one() -> None:
    batches = new_batches(20, 5)
    assert [len(batch) for batch in replay_batches(batches, 0, 0.0, 7, 0)] == [0] * 4
    with pytest.raises(DataError, match=r"data\.replay has no rows"):
        replay_batches(batches, 0, 0.1, 7, 0)
    with pytest.raises(ConfigError, match=r"replay_share is 1\.0"):
        replay_batches(batches, 5, 1.0, 7, 0)


# --- a real case: digits 0 to 4 are learned first, then 5 to 9 -----------------------------------------

SEEDS = (0, 1, 2)
NEW_HEAD = ("new.weight", "new.bias")
Extra = Callable[[int, int, np.ndarray], Tensor]
"""What is added to the loss: epoch, batch, rows."""


@functools.cache
def digits() -> tuple[Tensor, Tensor, dict[str, np.ndarray]]:
    """Return pixels, labels 0 to 4 within each task, and the rows of old and new task to train and to test on."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pixels = torch.tensor(found.data[order] / 16.0, dtype=torch.float32)
    labels = torch.tensor(found.target[order])
    parts = {}
    for name, rows in (("old", np.flatnonzero(labels < 5)), ("new", np.flatnonzero(labels >= 5))):
        cut = int(len(rows) * 0.7)
        parts[name], parts[f"{name} test"] = rows[:cut], rows[cut:]
    return pixels, labels % 5, parts


def logits(network: nn.Module, head: str, rows: np.ndarray) -> Tensor:
    return network.get_submodule(head)(network.get_submodule("body")(digits()[0][rows]))


def accuracy(network: nn.Module, task: str) -> float:
    _, labels, parts = digits()
    rows = parts[f"{task} test"]
    return (logits(network, task, rows).argmax(-1) == labels[rows]).float().mean().item()


def learn(network: nn.Module, task: str, seed: int, extra: Extra | None = None) -> None:
    labels = digits()[1]
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0)
    for epoch in range(15):
        for place, rows in enumerate(epoch_of(task, seed, epoch)):
            loss = functional.cross_entropy(logits(network, task, rows), labels[rows])
            if extra is not None:
                loss = loss + extra(epoch, place, rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def epoch_of(task: str, seed: int, epoch: int) -> list[np.ndarray]:
    rows = digits()[2][task]
    order = np.random.default_rng([seed, epoch]).permutation(len(rows))
    return [rows[order[first : first + 29]] for first in range(0, len(rows), 29)]


@functools.cache
def base(seed: int) -> nn.ModuleDict:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
    network = nn.ModuleDict({"body": body, "old": nn.Linear(48, 5), "new": nn.Linear(48, 5)})
    learn(network, "old", seed)
    return network


def tuned(make: Callable[[nn.ModuleDict, int], Extra] | None) -> tuple[float, float, float]:
    """Return, over the seeds, mean accuracy on the old and the new task and the distance from the base."""
    found = []
    for seed in SEEDS:
        network = copy.deepcopy(base(seed))
        learn(network, "new", seed + 10, None if make is None else make(network, seed))
        squares = [
            (value - start).square().sum()
            for (name, value), start in zip(network.named_parameters(), base(seed).parameters(), strict=True)
            if name not in NEW_HEAD
        ]
        distance = torch.stack(squares).sum().sqrt().item()
        found.append((accuracy(network, "old"), accuracy(network, "new"), distance))
    old, new, far = np.mean(found, axis=0)
    return float(old), float(new), float(far)


@functools.cache
def plain() -> tuple[float, float, float]:
    return tuned(None)


def with_l2sp(network: nn.ModuleDict, seed: int) -> Extra:
    penalty = L2SP(network, 0.03, fresh=NEW_HEAD)
    return lambda *_: penalty.penalty()


def fisher_of_old(network: nn.ModuleDict) -> dict[str, Tensor]:
    _, labels, parts = digits()
    return diagonal_fisher(
        network,
        (
            lambda row=row: functional.cross_entropy(logits(network, "old", [row]), labels[[row]])
            for row in parts["old"]
        ),
    )


def with_ewc(network: nn.ModuleDict, seed: int) -> Extra:
    penalty = EWC(network, fisher_of_old(network), 1000.0, fresh=NEW_HEAD)
    return lambda *_: penalty.penalty()


def with_shuffled_ewc(network: nn.ModuleDict, seed: int) -> Extra:
    """The same importances, given to other weights of the same matrix."""
    generator = torch.Generator().manual_seed(seed)
    fisher = {
        name: value.flatten()[torch.randperm(value.numel(), generator=generator)].view_as(value)
        for name, value in fisher_of_old(network).items()
    }
    penalty = EWC(network, fisher, 1000.0, fresh=NEW_HEAD)
    return lambda *_: penalty.penalty()


def teacher_of(network: nn.ModuleDict) -> nn.ModuleDict:
    return copy.deepcopy(network).requires_grad_(False).eval()


def with_distillation(network: nn.ModuleDict, seed: int) -> Extra:
    teacher = teacher_of(network)
    return lambda epoch, place, rows: (
        distillation_loss(logits(network, "old", rows), logits(teacher, "old", rows), 2.0) / len(rows)
    )


def with_features(network: nn.ModuleDict, seed: int) -> Extra:
    teacher, pixels = teacher_of(network), digits()[0]
    return lambda epoch, place, rows: (
        10
        * feature_distillation(network["body"](pixels[rows]), teacher.get_submodule("body")(pixels[rows]))
        / len(rows)
    )


def with_replay(network: nn.ModuleDict, seed: int) -> Extra:
    _, labels, parts = digits()

    def extra(epoch: int, place: int, rows: np.ndarray) -> Tensor:
        batches = epoch_of("new", seed + 10, epoch)
        old = parts["old"][replay_batches(batches, len(parts["old"]), 0.1, seed, epoch)[place]]
        return functional.cross_entropy(logits(network, "old", old), labels[old], reduction="sum") / len(rows)

    return extra


def test_plain_training_forgets() -> None:
    assert np.mean([accuracy(base(seed), "old") for seed in SEEDS]) > 0.98
    old, new, _ = plain()
    assert old < 0.86
    assert new > 0.96


@pytest.mark.parametrize(
    ("method", "least"),
    [
        (with_l2sp, 0.92),
        (with_ewc, 0.93),
        (with_distillation, 0.96),
        (with_replay, 0.95),
        (with_features, 0.9),
    ],
)
def test_a_method_keeps_the_old_task_at_about_the_same_new_one(
    method: Callable[[nn.ModuleDict, int], Extra], least: float
) -> None:
    old, new, _ = tuned(method)
    print(method, old, new)
    assert old > least > plain()[0] + 0.05
    assert new > plain()[1] - 0.04


def test_ewc_goes_further_from_the_base_than_l2sp_and_forgets_no_more() -> None:
    """Importance, not distance, is what it keeps: the same importances on the wrong weights keep less."""
    ewc, pull, shuffled = (tuned(method) for method in (with_ewc, with_l2sp, with_shuffled_ewc))
    assert ewc[2] > 1.5 * pull[2]
    assert ewc[0] >= pull[0]
    assert abs(ewc[1] - pull[1]) < 0.02
    assert ewc[0] > shuffled[0] + 0.02


def test_training_with_everything_at_once_gives_the_same_bits_twice() -> None:
    def run() -> dict[str, Tensor]:
        network = copy.deepcopy(base(0))
        extras = [method(network, 0) for method in (with_l2sp, with_ewc, with_distillation, with_replay)]
        learn(network, "new", 3, lambda *place: torch.stack([extra(*place) for extra in extras]).sum())
        return network.state_dict()

    first, again = run(), run()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
