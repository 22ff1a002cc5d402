"""Pretrained models of text: an encoder, and how weights and tokenizers are loaded and named.

A *base folder* holds a model as transformers saves it (`config.json`, `model.safetensors`, tokenizer files).
Weights are safetensors only, never pickle.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from tasks import original_heads
from tasks.errors import StageError
from tasks.families.interface import Content, Embedder
from tasks.files import fingerprint, folder_fingerprint, write_text
from tasks.training.batches import length_batches
from tasks.training.packing import Packing, Rows, find_packing, mean_of_rows, packed_attention_in

log = logging.getLogger(__name__)

TOKENS_A_BATCH = {"cpu": 1024, "cuda": 65_536}
"""Padded tokens of a forward pass without gradients: a CPU gains nothing from more, and pads more."""
ONE_LOADS = threading.Lock()
"""transformers replaces functions of its own while it loads a model; two threads at once would leave them replaced."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
OF_THE_COPY = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
"""Settings of a model that say where it came from and how it was saved, not what it computes."""


Pooling = Literal["mean", "cls", "lasttoken"]
POOLING_FILE = Path("1_Pooling") / "config.json"
POOLING_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How sentence-transformers writes a mode down: a flag each, one of which is on."""


@dataclass
class Encoder(Embedder):
    """An encoder whose sentence vector is the mean of its last hidden states, or that of the first or the last token."""

    backbone: Any
    tokenizer: Any
    device: str
    precision: str = "fp32"
    original: Any = None
    """The base with the head that it was published with, around the same backbone; None where it has none."""
    pooling: Pooling = "mean"
    packing: Packing | None = field(default=None, init=False)
    """How rows are read packed, while the backbone trains within `packed`; None pads them."""

    def encode(
        self, contents: Sequence[Content], *, max_length: int = 128, normalise: bool = True
    ) -> NDArray[np.float32]:
        """Embed texts: float32 `(rows, dim)` in the order given; unit length if `normalise`."""
        rows = self.encode_tokens(self.tokens(contents, max_length))
        if normalise:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows

    def encode_tokens(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Embed token lists: float32 `(rows, dim)`, not normalised."""
        rows = np.zeros((len(tokens), self.dimensions), dtype=np.float32)
        lengths = np.array([len(row) for row in tokens], dtype=np.int64)
        self.backbone.eval()
        with torch.inference_mode(), self.autocast():
            for indices in length_batches(lengths, self.at_once(TOKENS_A_BATCH)):
                rows[indices] = self.pool([tokens[index] for index in indices]).float().cpu().numpy()
        return rows

    @property
    def dimensions(self) -> int:
        """Width of a sentence vector."""
        return int(self.backbone.config.get_text_config().hidden_size)

    @property
    def limit(self) -> int:
        """Most tokens the model reads: RoBERTa's tokenizer knows that two of its positions are never used."""
        return _reads(self.backbone.config, self.tokenizer)

    @functools.cached_property
    def reading(self) -> str:
        """Names what reads a text beside the weights: the tokenizer, and the settings of the backbone."""
        return fingerprint(
            [
                ("tokenizer", tokenizer_fingerprint(self.tokenizer)),
                ("settings", settings_of(self.backbone)),
                ("pooling", self.pooling),
            ]
        )

    def pool(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Return a vector a row, `(rows, dim)`: the mean of its last hidden states, or its first or last token's."""
        if self.packs:
            hidden, rows = self.read_packed(tokens)
            if self.pooling == "mean":
                return mean_of_rows(hidden, rows)
            return hidden[(rows.offsets[:-1] if self.pooling == "cls" else rows.offsets[1:] - 1).long()]
        batch = self.collate(tokens)
        hidden, mask = self.backbone(**batch).last_hidden_state, batch["attention_mask"]
        if self.pooling == "mean":
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        place = torch.zeros_like(mask[:, 0]) if self.pooling == "cls" else mask.sum(1) - 1
        return hidden[torch.arange(len(hidden), device=hidden.device), place]

    @property
    def packs(self) -> bool:
        """Whether rows are read packed now."""
        return self.packing is not None and bool(self.backbone.training)

    def read_packed(self, tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Rows]:
        """Return the last hidden states of rows, one after the other, `(tokens, dim)`, and where each ends."""
        if self.packing is None:
            raise StageError("rows are read packed within `packed` only")
        return self.packing.read(self.backbone, tokens)

    def find_packing(self) -> Packing | None:
        """Try whether the backbone can read packs; None where it cannot."""
        return find_packing(self.backbone, self.precision, self.autocast())

    @contextlib.contextmanager
    def packed(self, packing: Packing | None) -> Iterator[None]:
        """Read rows packed in the body while the backbone trains; None pads them as ever."""
        if packing is None:
            yield
            return
        with packed_attention_in(self.backbone):
            self.packing = packing
            try:
                yield
            finally:
                self.packing = None

    def collate(self, tokens: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Pad token lists to the longest: `(rows, tokens)` on the device."""
        ids, mask = pad(tokens, self.tokenizer.pad_token_id)
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def tokens(self, texts: Sequence[Content], max_length: int | None = None) -> list[list[int]]:
        """Tokenize texts, special tokens included; cut at `max_length` and the model's own limit, None cuts nothing."""
        if not texts:
            return []
        if max_length is None:
            encoded = self.tokenizer(list(texts), truncation=False, verbose=False)
        else:
            encoded = self.tokenizer(list(texts), truncation=True, max_length=min(max_length, self.limit))
        found: list[list[int]] = encoded["input_ids"]
        return found

    def masked_log_likelihoods(
        self, texts: Sequence[str], *, max_length: int, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float64]:
        """Return the mean log-likelihood of each text's tokens behind masks, in nats a token, `(texts,)`.

        Raises:
            StageError: the base came without a masked-language head.
            DataError: a text without a token.
        """
        original = self._original(original_heads.MASKED)
        tokens = self.tokens(list(texts))
        most = min(max_length, self.limit)
        with torch.inference_mode(), self.autocast():
            return original_heads.masked_log_likelihoods(
                original, self.tokenizer, tokens, self.device, most, progress
            )

    def original_logits(self, contents: Sequence[Content], *, max_length: int = 128) -> NDArray[np.float32]:
        """Ask the head that the base was published with about texts: float32 `(rows, original classes)`.

        Raises:
            StageError: the base came without a classification head.
        """
        original = self._original(original_heads.CLASSIFIED)
        tokens = self.tokens(contents, max_length)
        rows = np.zeros((len(tokens), original.config.num_labels), dtype=np.float32)
        lengths = np.array([len(row) for row in tokens], dtype=np.int64)
        with torch.inference_mode(), self.autocast():
            for indices in length_batches(lengths, self.at_once(TOKENS_A_BATCH)):
                logits = original(**self.collate([tokens[index] for index in indices])).logits
                rows[indices] = logits.float().cpu().numpy()
        return rows

    @property
    def original_kind(self) -> str:
        """The class of the base with the head that it was published with; empty where it has none."""
        return "" if self.original is None else type(self.original).__name__

    def _original(self, kind: str) -> Any:
        if not self.original_kind.endswith(kind):
            raise StageError(
                f"the base came without a head for this ({kind}): take a base that has one, or another benchmark."
            )
        self.original.eval()
        return self.original

    def save(self, folder: Path) -> None:
        """Write the encoder, with the head that its base was published with, and its tokenizer."""
        whole = self.original if self.original is not None else self.backbone
        whole.save_pretrained(folder, safe_serialization=True)
        save_tokenizer(self.tokenizer, folder)
        if self.pooling != "mean":  # which is what it is where no file says otherwise
            flags = {flag: mode == self.pooling for flag, mode in POOLING_FLAGS.items()}
            document = {"word_embedding_dimension": self.dimensions, **flags}
            write_text(folder / POOLING_FILE, json.dumps(document, indent=2) + "\n")


def pad(tokens: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both int64 `(rows, longest)`, padded on the right."""
    longest = max(len(row) for row in tokens)
    ids = torch.full((len(tokens), longest), padding, dtype=torch.long)
    mask = torch.zeros((len(tokens), longest), dtype=torch.long)
    for place, row in enumerate(tokens):
        ids[place, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        mask[place, : len(row)] = 1
    return ids, mask


def pick_device() -> str:
    """Return `cuda` where there is a CUDA device, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_encoder(folder: Path, device: str | None = None, precision: str = "fp32") -> Encoder:
    """Load the encoder of a model folder.

    Raises:
        StageError: the folder lacks weights, configuration or tokenizer, or they do not fit each other.
    """
    device = device or pick_device()
    original = _load_original(folder)
    # No file holds a pooler that was never trained, and nothing here reads it.
    backbone: Any = (
        original.base_model if original else load_weights(AutoModel, folder, may_lack=("pooler.",))
    )
    if original:
        original.to(device).eval()
    pooling = pooling_of(folder)
    return Encoder(backbone.to(device).eval(), load_tokenizer(folder), device, precision, original, pooling)


def text_limit(folder: Path, tokenizer: Any) -> int:
    """Return the most tokens that the model of a folder reads, without loading it."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        return _reads(None, tokenizer)
    return _reads(AutoConfig.from_pretrained(folder).get_text_config(), tokenizer)


def _reads(config: Any, tokenizer: Any) -> int:
    return int(min(getattr(config, "max_position_embeddings", 1 << 30), tokenizer.model_max_length))


def pooling_of(folder: Path) -> Pooling:
    """Return how a model folder makes a sentence vector, as sentence-transformers writes it down; the mean by default.

    Raises:
        StageError: in a way that is not known here, or the file is damaged.
    """
    file = folder / POOLING_FILE
    if not file.is_file():
        return "mean"
    try:
        _warn_of_further_modules(folder)
        said = json.loads(file.read_text(encoding="utf-8"))
        modes = [said["pooling_mode"]] if "pooling_mode" in said else _flagged(said)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StageError(f"{file} or modules.json is damaged ({error}): was the copy complete?") from None
    for known in get_args(Pooling):
        if modes == [known]:
            return known  # type: ignore[no-any-return]
    raise StageError(
        f"{file} makes a sentence vector by {' and '.join(map(str, modes)) or 'nothing'}; known here are "
        f"{', '.join(get_args(Pooling))}. Take a base that does so."
    )


def _warn_of_further_modules(folder: Path) -> None:
    """Say which modules of sentence-transformers come after the pooling and are not read: a dense layer, say."""
    file = folder / "modules.json"
    if not file.is_file():
        return
    kinds = [
        str(module.get("type", "")).rpartition(".")[-1]
        for module in json.loads(file.read_text(encoding="utf-8"))
    ]
    if further := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        log.warning("%s: %s is not read; vectors are those before it", folder, ", ".join(further))


def _flagged(said: Mapping[str, Any]) -> list[str]:
    """Return the modes whose flags are on."""
    return [
        POOLING_FLAGS.get(flag, flag) for flag, on in said.items() if flag.startswith("pooling_mode_") and on
    ]


def _load_original(folder: Path) -> Any:
    """Load a base with the head that it was published with, or return None where its files hold none.

    A configuration may name a head that was left out when the encoder was published; then there is none.
    """
    kinds: dict[str | None, Any] = {
        original_heads.MASKED: AutoModelForMaskedLM,
        original_heads.CLASSIFIED: AutoModelForSequenceClassification,
    }
    kind = kinds.get(original_heads.head_kind(folder))
    try:
        return load_weights(kind, folder) if kind else None
    except StageError as error:
        log.debug("%s has no original head: %s", folder, error)
        return None  # a damaged file is found again by whoever loads the backbone


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model folder; one that cannot pad pads with its end token.

    Raises:
        StageError: there is none, or it is damaged.
    """
    if not any(list(folder.glob(name)) for name in TOKENIZER_FILES):
        # transformers would make one up, which knows no word.
        raise StageError(f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES)}): was the copy complete?")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise StageError(f"{folder} has no usable tokenizer: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer without the padding and truncation of its last call, which would pass for its own."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    tokenizer.save_pretrained(folder)


def load_weights(kind: Any, folder: Path, may_lack: tuple[str, ...] = ()) -> PreTrainedModel:
    """Load a model of an Auto class, all of whose weights are in its files, but for prefixes that `may_lack`.

    Raises:
        StageError: a file is missing or damaged, or a weight is in none of them.
    """
    transformers_logging.disable_progress_bar()
    try:
        # What no file holds is random, and must be the same each time.
        with ONE_LOADS, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, loading = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise StageError(f"{folder} is no usable model folder: {error}") from error
    except RuntimeError as error:
        raise StageError(f"{folder}: the weights do not fit its config.json: {error}") from error
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith(may_lack))
    if missing:
        raise StageError(
            f"{folder} lacks {len(missing)} of the weights that its config.json calls for, {missing[0]} among them; "
            "they would be random. Was the copy complete?"
        )
    found: PreTrainedModel = model
    return found


def weights_fingerprint(module: nn.Module) -> str:
    """Name a model by its weights, wherever it was loaded from: sha256 in hex."""
    return tensors_fingerprint(module.state_dict())


def tensors_fingerprint(state: Mapping[str, Tensor]) -> str:
    """Name tensors by their names, types and values: sha256 in hex."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Name a tokenizer by the files that it is saved as, wherever it was loaded from: sha256 in hex."""
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        return folder_fingerprint(Path(folder))


def settings_of(backbone: Any) -> str:
    """Return the settings that a backbone computes by (heads, activation, …), as JSON."""
    settings = json.loads(backbone.config.to_json_string(use_diff=False))
    return json.dumps({name: settings[name] for name in sorted(settings.keys() - set(OF_THE_COPY))})


def model_fingerprint(model: Embedder) -> str:
    """Name a model without a head by all that its answers depend on: weights, and what reads for them."""
    return fingerprint([("weights", weights_fingerprint(model.backbone)), ("reading", model.reading)])
