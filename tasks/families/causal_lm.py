"""causal-lm: go on training a language model, on conversations (what the assistant says carries loss) or plain text."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tasks.errors import StageError
from tasks.families import read_description
from tasks.families.chat import UNSUPERVISED, Tokens, render, tokenize_chat, tokenize_text
from tasks.families.interface import Content, Examples, Measured, Model
from tasks.models import (
    TOKENS_A_BATCH,
    Encoder,
    load_tokenizer,
    load_weights,
    pad,
    pick_device,
    save_tokenizer,
)
from tasks.recipe import Finetune
from tasks.training.batches import length_batches
from tasks.training.packing import Packing
from tasks.training.retention import distillation_loss
from tasks.training.vocabulary_loss import in_parts, summed_cross_entropy

ROWS_OF_LOGITS = 1024
"""Positions whose logits, over the whole vocabulary, are in memory at once."""
ALTERS_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Names under which models' settings say what they do to logits after the vocabulary head."""


@dataclass
class CausalLM(Model):
    """A language model and its tokenizer; it has no head of its own, so α = 0 is the base itself."""

    task: ClassVar[str] = "causal-lm"
    metric: ClassVar[str] = "log_likelihood"
    start_means: ClassVar[str] = "the base"

    network: Any
    tokenizer: Any
    device: str
    precision: str
    max_length: int = 1024
    start_score: float = float("nan")
    labels: Sequence[str] = ()
    encoder: Encoder = field(init=False)

    def __post_init__(self) -> None:
        self.backbone = self.network
        self.encoder = Encoder(self._body, self.tokenizer, self.device, self.precision)

    # --- where models come from ---------------------------------------------------------------------------

    @classmethod
    def begin(
        cls,
        base: Path,
        section: Finetune,
        labels: Sequence[str],
        train: pd.DataFrame,
        validation: pd.DataFrame,
        device: str,
    ) -> CausalLM:
        """Load the base, and measure it on validation."""
        model = cls.load_base(base, device, section.precision)
        model.max_length = min(section.length, model.limit)
        model.start_score = model.measure(validation).score
        return model

    @classmethod
    def load(cls, folder: Path, device: str | None = None, precision: str = "fp32") -> CausalLM:
        """Load a model that `save` wrote."""
        return cls._sized(folder, folder, device, precision)

    @classmethod
    def load_start(
        cls, base: Path, tuned: Path, device: str | None = None, precision: str = "fp32"
    ) -> CausalLM:
        """Load the base, which reads rows as the tuned model does."""
        return cls._sized(base, tuned, device, precision)

    @classmethod
    def load_base(cls, folder: Path, device: str | None = None, precision: str = "fp32") -> CausalLM:
        """Load a language model of a base folder.

        Raises:
            StageError: it is damaged, or does more to its logits than its vocabulary head.
        """
        device = device or pick_device()
        network: Any = load_weights(AutoModelForCausalLM, folder)
        _refuse_altered_logits(network.config, folder)
        network.config.use_cache = False
        return cls(network.to(device).eval(), load_tokenizer(folder), device, precision)

    @classmethod
    def _sized(cls, weights: Path, description: Path, device: str | None, precision: str) -> CausalLM:
        model = cls.load_base(weights, device, precision)
        said: dict[str, Any] = read_description(description)
        model.max_length = said["max_length"]
        return model

    # --- training -----------------------------------------------------------------------------------------

    def examples(self, table: pd.DataFrame) -> Examples:
        """Tokenize rows with the columns `id` and `messages` (JSON) or `text`.

        Raises:
            StageError: no token of any row would carry loss.
        """
        rows = self._tokenize(table, self.max_length)
        weights = np.array([row.supervised for row in rows], dtype=np.float64)
        ids = table["id"].astype(str).tolist()
        if len(rows) and not weights.any():
            raise StageError(
                f"No token of {len(rows)} rows carries loss within {self.max_length} tokens: is max_length shorter "
                f"than what comes before the assistant's first turn? Rows: {', '.join(ids[:5])}"
            )
        lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
        return Examples(ids, lengths, weights, rows, sum(row.cut for row in rows))

    def loss(self, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Return the cross-entropy of some rows, summed over their supervised tokens."""
        hidden, targets, _ = self._supervised([examples.content[row] for row in rows])
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        with self.autocast():
            return summed_cross_entropy(self.network.get_output_embeddings(), hidden, targets, dtype)

    def find_packing(self) -> Packing | None:
        """Try whether the model can read packs."""
        return self.encoder.find_packing()

    def packed(self, packing: Packing | None) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the model reads rows packed."""
        return self.encoder.packed(packing)

    def distillation(self, teacher: Model, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
        """Return KL(teacher ‖ model) of the next token, summed over supervised tokens."""
        tokens = [examples.content[row] for row in rows]
        with torch.no_grad():
            before, _, _ = teacher._supervised(tokens)  # type: ignore[attr-defined]
        after, _, _ = self._supervised(tokens)

        def apart(mine: Tensor, theirs: Tensor) -> Tensor:
            with torch.no_grad():
                wanted = teacher._logits(theirs)  # type: ignore[attr-defined]
            return distillation_loss(self._logits(mine), wanted, 1.0)

        return in_parts(apart, ROWS_OF_LOGITS, after, before)

    # --- measuring and using ------------------------------------------------------------------------------

    def measure(self, table: pd.DataFrame) -> Measured:
        """Measure each row's mean log-likelihood a supervised token, in nats."""
        examples = self.examples(table)
        if not examples.weights.all():
            silent = [name for name, weight in zip(examples.ids, examples.weights, strict=True) if not weight]
            raise StageError(
                f"{len(silent)} of {len(examples)} rows have no token to measure within {self.max_length} tokens, so "
                f"raise finetune.max_length or leave them out: {', '.join(silent[:5])}"
            )
        losses = self._nats(examples) / examples.weights
        return Measured(losses, -losses)

    def divergence(self, base: Model, table: pd.DataFrame) -> float | None:
        """Return KL(base ‖ model) of the next token, over the supervised tokens of rows."""
        examples = self.examples(table)
        total = 0.0
        with self.inference():
            for rows in length_batches(examples.lengths, self.at_once(TOKENS_A_BATCH)):
                total += float(self.distillation(base, examples, rows))
        return total / float(examples.weights.sum())

    def nats(self, table: pd.DataFrame, max_length: int) -> NDArray[np.float64]:
        """Return each row's negative log-likelihood and the tokens it is summed over, those that carry loss: (rows, 2).

        At most `max_length` tokens of a row are read; a row may have none that carries loss.
        """
        rows = self._tokenize(table, min(max_length, self.limit))
        weights = np.array([row.supervised for row in rows], dtype=np.float64)
        lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
        examples = Examples(table["id"].astype(str).tolist(), lengths, weights, rows, 0)
        return np.stack([self._nats(examples), weights], axis=1)

    def _nats(self, examples: Examples) -> NDArray[np.float64]:
        """Return each row's negative log-likelihood, summed over its supervised tokens."""
        losses = np.zeros(len(examples))
        with self.inference():
            for rows in length_batches(examples.lengths, self.at_once(TOKENS_A_BATCH)):
                found, owner = self._token_losses([examples.content[row] for row in rows])
                sums = torch.zeros(len(rows), dtype=torch.float64)
                losses[rows] = sums.index_add(0, owner.cpu(), found.double().cpu()).numpy()
        return losses

    def encode(
        self, contents: Sequence[Content], *, max_length: int = 128, normalise: bool = True
    ) -> NDArray[np.float32]:
        """Embed texts: the mean of the last hidden states."""
        return self.encoder.encode(contents, max_length=max_length, normalise=normalise)

    @property
    def limit(self) -> int:
        """Most tokens the model reads."""
        return self.encoder.limit

    def answer(self, contents: Sequence[Any]) -> list[dict[str, Any]]:
        """Answer each text, or list of messages, as the assistant; greedily, so the same each time."""
        return [{"reply": self._reply(content)} for content in contents]

    def _reply(self, content: Any) -> str:
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        if self.tokenizer.chat_template:
            prompt = render(self.tokenizer, messages, prompt=True)
            ids = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        else:
            ids = self.tokenizer(str(content), return_tensors="pt")
        ids = ids.to(self.device)
        with self.inference():
            said = self.network.generate(
                input_ids=ids["input_ids"],
                attention_mask=ids["attention_mask"],
                max_new_tokens=256,
                do_sample=False,
                use_cache=True,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        fresh = said[0, ids["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(fresh, skip_special_tokens=True)).strip()

    # --- keeping ------------------------------------------------------------------------------------------

    def _write(self, folder: Path) -> None:
        self.network.save_pretrained(folder, safe_serialization=True)
        save_tokenizer(self.tokenizer, folder)

    def _description(self) -> dict[str, Any]:
        return {"max_length": self.max_length}

    # --- tokens -------------------------------------------------------------------------------------------

    @property
    def _body(self) -> Any:
        """The model below its vocabulary head."""
        return getattr(self.network, self.network.base_model_prefix)

    def _tokenize(self, table: pd.DataFrame, max_length: int) -> list[Tokens]:
        if "messages" in table:
            return [tokenize_chat(self.tokenizer, json.loads(row), max_length) for row in table["messages"]]
        return [tokenize_text(self.tokenizer, text, max_length) for text in table["text"]]

    def _token_losses(self, rows: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """Return the loss of each supervised token, `(tokens,)`, and which row it is of.

        The vocabulary head is applied where a token carries loss only, some positions at a time.
        """
        chosen, wanted, owner = self._supervised(rows)
        parts = [
            functional.cross_entropy(self._logits(part), answers, reduction="none")
            for part, answers in zip(chosen.split(ROWS_OF_LOGITS), wanted.split(ROWS_OF_LOGITS), strict=True)
        ]
        return (torch.cat(parts) if parts else chosen.sum(1)), owner

    def _supervised(self, rows: Sequence[Tokens]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the hidden states `(tokens, dim)` that predict supervised tokens, those tokens, and whose they are."""
        if self.encoder.packs:
            return self._supervised_packed(rows)
        ids, mask = pad([row.ids for row in rows], self.tokenizer.pad_token_id)
        labels, _ = pad([row.labels for row in rows], UNSUPERVISED)
        with self.autocast():
            read = self._body(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        targets = labels[:, 1:].to(self.device)
        where = targets != UNSUPERVISED
        return read.last_hidden_state[:, :-1][where], targets[where], where.nonzero()[:, 0]

    def _supervised_packed(self, rows: Sequence[Tokens]) -> tuple[Tensor, Tensor, Tensor]:
        # A row's last token predicts nothing; the others predict the next one.
        labels = torch.tensor([label for row in rows for label in (*row.labels[1:], UNSUPERVISED)])
        owner = torch.repeat_interleave(torch.tensor([len(row.ids) for row in rows]))
        places = (labels != UNSUPERVISED).nonzero()[:, 0]
        with self.autocast():
            hidden, _ = self.encoder.read_packed([row.ids for row in rows])
        chosen = hidden[places.to(self.device)]
        return chosen, labels[places].to(self.device), owner[places].to(self.device)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Apply the vocabulary head: float32 `(tokens, vocabulary)`."""
        with self.autocast():
            logits: Tensor = self.network.get_output_embeddings()(hidden)
        return logits.float()


def _refuse_altered_logits(config: Any, folder: Path) -> None:
    """Return when the logits are what the vocabulary head says: the loss is computed from the head alone."""
    said = {name: getattr(config, name, None) for name in ALTERS_LOGITS}
    if altered := sorted(name for name, value in said.items() if value not in (None, 1, 1.0)):
        raise StageError(
            f"{folder}: a {config.model_type} changes its logits after the vocabulary head ({', '.join(altered)}), and "
            "would be trained on a loss that is not its own. Take another base."
        )
