"""The interface of a family: what training, merging, measuring and predicting ask of a model, and nothing more."""

from __future__ import annotations

import contextlib
import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from tasks.errors import StageError
from tasks.families import DESCRIPTION
from tasks.files import atomic_folder, write_text
from tasks.training.batches import epoch_batches

if TYPE_CHECKING:
    from tasks.recipe import Finetune
    from tasks.training.packing import Packing

Content = str | bytes
"""What can be embedded: a text, or an encoded image."""


@dataclass
class Examples:
    """Rows of a table made ready for one model, in the order of the table."""

    ids: list[str]
    """For messages, `(rows,)`."""
    lengths: NDArray[np.int64]
    """What each row costs: tokens as the model reads them (1 for an image), `(rows,)`."""
    weights: NDArray[np.float64]
    """What each row counts in the mean loss: 1, or its supervised tokens, `(rows,)`."""
    content: Any
    """The family's own form of the rows."""
    truncated: int = 0
    """Rows that are longer than what the model reads of them."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Measured:
    """A model's results on labelled rows, one a row."""

    losses: NDArray[np.float64]
    """What training minimises, `(rows,)`."""
    outcomes: NDArray[np.float64]
    """The task's metric, an example each; higher is better, `(rows,)`."""
    predictions: NDArray[np.int64] | None = None
    """Label indices, `(rows,)`, where the task has labels."""
    calibrated: NDArray[np.float64] | None = None
    """Cross-entropy at the temperature that fits these rows best, in nats, `(rows,)`, where the task has labels."""

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(self.losses.mean())

    @property
    def score(self) -> float:
        """Mean outcome."""
        return float(self.outcomes.mean())

    @property
    def log_likelihood(self) -> float | None:
        """Mean log-likelihood of the labels, each model being as sure as fits it best; None without labels."""
        return None if self.calibrated is None else -float(self.calibrated.mean())


class Embedder(ABC):
    """A pretrained model as it is: it embeds texts or images."""

    backbone: nn.Module
    """The pretrained part, whose weights name the model where no head matters."""
    device: str
    precision: str
    less: int = 1
    """What is read at once without gradients is divided by this, where memory did not suffice for all of it."""

    @abstractmethod
    def encode(
        self, contents: Sequence[Content], *, max_length: int = 128, normalise: bool = True
    ) -> NDArray[np.float32]:
        """Embed contents with the backbone: `(rows, dim)` in the order given; unit length if `normalise`."""

    @property
    @abstractmethod
    def limit(self) -> int:
        """Most tokens the backbone reads."""

    @property
    @abstractmethod
    def reading(self) -> str:
        """Names what stands between a content and the weights: tokenizer or preprocessing, and the backbone's settings.

        Models of equal weights that differ in it answer differently.
        """

    def at_once(self, usual: Mapping[str, int]) -> int:
        """Return how much is read at once without gradients, of what is usual on each kind of device."""
        return max(usual[self.device.partition(":")[0]] // self.less, 1)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which a forward pass has the declared precision."""
        if self.precision == "bf16":
            return torch.autocast(self.device.partition(":")[0], dtype=torch.bfloat16)
        return contextlib.nullcontext()


class Model(Embedder):
    """A loaded model of one family. `network` holds every weight that may move: training trains it, merging mixes it."""

    task: ClassVar[str]
    metric: ClassVar[str]
    """Of `Measured.outcomes`."""
    start_means: ClassVar[str]
    """What tuning starts from, in words: α = 0."""

    network: nn.Module
    encoder: Any
    """What `encode` asks; its `backbone` is the module that reads."""
    labels: Sequence[str]
    """Empty where the task has none."""
    start_score: float
    """Mean outcome on validation before tuning, once `begin` has measured it."""

    # --- where models come from ---------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def begin(
        cls,
        base: Path,
        section: Finetune,
        labels: Sequence[str],
        train: pd.DataFrame,
        validation: pd.DataFrame,
        device: str,
    ) -> Model:
        """Load the base and make it ready to be tuned, head included.

        Raises:
            StageError: the base is damaged, or gives no finite features.
        """

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, device: str | None = None, precision: str = "fp32") -> Model:
        """Load a model that `save` wrote."""

    @classmethod
    @abstractmethod
    def load_start(cls, base: Path, tuned: Path, device: str | None = None, precision: str = "fp32") -> Model:
        """Load what the tuned model started from: this is what α = 0 means."""

    @classmethod
    @abstractmethod
    def load_base(cls, folder: Path, device: str | None = None, precision: str = "fp32") -> Embedder:
        """Load a base as it is, to embed with it or to measure it."""

    @property
    def reading(self) -> str:
        """Names what its encoder reads with."""
        return str(self.encoder.reading)

    # --- training -----------------------------------------------------------------------------------------

    @abstractmethod
    def examples(self, table: pd.DataFrame) -> Examples:
        """Make rows ready, once: tokenized and cut as the model reads them."""

    @abstractmethod
    def loss(self, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Return the loss of some rows, summed over what `Examples.weights` counts."""

    def batches(self, examples: Examples, section: Finetune, epoch: int) -> list[NDArray[np.int64]]:
        """Return the epoch's global batches of row indices: a function of the recipe and the epoch alone."""
        return epoch_batches(examples.lengths, section.batch_size, section.seed, epoch)

    whole_batches: ClassVar[bool] = False
    """Whether the loss looks across rows, so that a global batch must not be cut into micro-batches."""

    @property
    def fresh_parameters(self) -> frozenset[str]:
        """Names of the network's parameters that the base does not have: those of a new head."""
        return frozenset(name for name, _ in self.network.named_parameters() if name.startswith("head."))

    @abstractmethod
    def distillation(self, teacher: Model, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Return how far the model's answers, or features, on some rows are from the teacher's.

        Summed over what `Examples.weights` counts; the teacher is a copy of the model, before it was tuned.
        """

    def find_packing(self) -> Packing | None:
        """Try whether rows can be read packed, one after the other without padding; None where they cannot."""
        return None

    def packed(self, packing: Packing | None) -> contextlib.AbstractContextManager[None]:
        """Return the context in which `loss` reads rows so; None pads them as ever."""
        return contextlib.nullcontext()

    def train_mode(self) -> None:
        """Switch the network to training: dropout, augmentation."""
        self.network.train()

    def settle(self, train: pd.DataFrame) -> None:
        """Work out again what is computed from the training rows once weights have moved: nothing, most often."""

    # --- measuring ----------------------------------------------------------------------------------------

    @abstractmethod
    def measure(self, table: pd.DataFrame) -> Measured:
        """Measure the model on rows of the task."""

    @abstractmethod
    def divergence(self, base: Model, table: pd.DataFrame) -> float | None:
        """Let both read rows (`id`, and `text`, `messages` or `image`); return KL(base ‖ model), in nats an answer.

        An answer is a token, or a row's label. None: what this family answers is no distribution.
        """

    # --- using and keeping --------------------------------------------------------------------------------

    @abstractmethod
    def answer(self, contents: Sequence[Any]) -> list[dict[str, Any]]:
        """Use the model for what it was tuned to do: one JSON-like answer for each content."""

    def save(self, folder: Path) -> None:
        """Write a model folder, whole or not at all; it replaces what lay there."""
        with atomic_folder(folder) as aside:
            self._write(aside)
            write_text(aside / DESCRIPTION, self.description + "\n")

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """Write the weights and what is needed to read them."""

    @property
    def state(self) -> dict[str, Tensor]:
        """Every tensor that its answers depend on, by name."""
        return dict(self.network.state_dict())

    @property
    def description(self) -> str:
        """What a model folder says of the model beside its weights, as JSON."""
        return json.dumps({"task": self.task, **self._description()}, indent=2, ensure_ascii=False)

    @abstractmethod
    def _description(self) -> dict[str, Any]:
        """Return what `load` needs to know beside the weights."""

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Measure without gradients, dropout or moving statistics; the mode of the network is put back."""
        training = self.network.training
        self.network.eval()
        try:
            with torch.inference_mode(), self.autocast():
                yield
        finally:
            self.network.train(training)


def interpolate(start: Model, tuned: Model, alpha: float, scales: Mapping[str, float] | None = None) -> Model:
    """Return (1 - α)·start + α·tuned over all weights, head included; `scales` has an α of its own for some names.

    Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models (WiSE-FT). Between a model and one whose
    low-rank adapters were merged in, α is the adapters' scale.
    """
    merged = copy.deepcopy(tuned)
    before, after = start.network.state_dict(), tuned.network.state_dict()
    if before.keys() != after.keys():
        raise StageError(f"start and tuned differ in shape: {sorted(before.keys() ^ after.keys())[:5]}")
    with torch.no_grad():
        for name, value in merged.network.state_dict().items():
            if value.is_floating_point():
                share = (scales or {}).get(name, alpha)
                value.copy_(torch.lerp(before[name].float(), after[name].float(), share).to(value.dtype))
    return merged


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors; they are copied to the CPU first, or device pointers would be written."""
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, path)
