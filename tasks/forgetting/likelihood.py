"""Log-likelihoods of continuations under a causal language model.

Tokens are those of lm-evaluation-harness 0.4.13 (`HFLM.loglikelihood`), so results are comparable with it. It is faster
because what requests have in common is read once (`prefix_trees`), and because the vocabulary head is applied only
where a token is predicted. Models that cannot read trees (state-space models, say) read plain sequences; what a model
can do is tried on it, not looked up.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.errors import ConfigError, DataError, StageError, first_of
from tasks.forgetting.prefix_trees import Row, Tree, batches, grow_trees

log = logging.getLogger(__name__)

LOGITS_AT_ONCE = 1 << 28
"""Logits in memory at once: 1 GiB of fp32."""
LOGITS_READ_AT_ONCE = 1 << 22
"""Logits of which probabilities are made at once: 16 MiB, which a processor's cache holds and its allocator keeps."""
AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Nats a token by which two ways of computing the same may differ."""
ROUGH_AGREEMENT = 0.25
"""The same in half precision, whose logits are rounded to 1/16 or more."""

Progress = Callable[[int, int], None]
"""Called with the requests done and the requests in all."""


class Request(NamedTuple):
    """A continuation to be scored after a context."""

    context: str
    continuation: str


class TokenRequest(NamedTuple):
    """A request as the model reads it."""

    context: list[int]
    continuation: list[int]


class Likelihoods(NamedTuple):
    """What a model makes of each request, in the order of the requests."""

    sums: NDArray[np.float64]
    """Log-likelihood of the continuation: a sum over its tokens, in nats, `(requests,)`."""
    greedy: NDArray[np.bool_]
    """Whether each token of the continuation is the likeliest, `(requests,)`."""
    tokens: NDArray[np.int64]
    """Tokens of the continuation, `(requests,)`."""
    truncated: NDArray[np.bool_]
    """Whether the context was cut on the left, `(requests,)`."""


@dataclass(frozen=True)
class Scorer:
    """A causal language model that scores continuations.

    Raises:
        ConfigError: a limit below 1.
    """

    model: Any
    """A transformers model with a language head, on `device`."""
    tokenizer: Any
    max_length: int
    """Most tokens the model reads; longer contexts are cut on the left, and counted."""
    device: str
    tokens_a_batch: int
    """Padded tokens of a forward pass."""
    prefix_token: int | None = None
    """What an empty context stands for; None: the tokenizer's beginning-of-text token, or else its end-of-text token."""
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if min(self.max_length, self.tokens_a_batch) < 1:
            raise ConfigError(
                f"max_length ({self.max_length}) and tokens_a_batch ({self.tokens_a_batch}) must be at least 1."
            )

    @cached_property
    def prefix(self) -> int | None:
        """The token that an empty context stands for."""
        candidates = (self.prefix_token, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return next((token for token in candidates if token is not None), None)

    def log_likelihoods(self, requests: Sequence[Request]) -> Likelihoods:
        """Score requests, in nats; an empty context stands for the prefix token.

        Raises:
            DataError: continuations that have no token, or more than `max_length`.
            ConfigError: an empty context and no token to stand for it.
            StageError: the model gives no finite number.
        """
        return self.score(encode_requests(self.tokenizer, requests, self.prefix))

    def score(self, requests: Sequence[TokenRequest]) -> Likelihoods:
        """Score requests that are tokens already."""
        _refuse_unscorable(requests, self.max_length)
        whole = [[*request.context, *request.continuation] for request in requests]
        sequences = [sequence[-(self.max_length + 1) :] for sequence in whole]
        tokens = np.array([len(request.continuation) for request in requests], dtype=np.int64)
        truncated = np.array([len(sequence) > self.max_length + 1 for sequence in whole], dtype=np.bool_)
        if truncated.any():
            log.warning(
                "%d of %d requests have more than %d tokens: their contexts were cut on the left",
                truncated.sum(),
                len(requests),
                self.max_length,
            )
        sums, greedy = np.zeros(len(requests)), np.ones(len(requests), dtype=np.bool_)
        done = 0
        with _evaluating(self.model):
            for batch in self._batches(sequences, tokens):
                done += self._score_batch(batch, sums, greedy)
                if self.progress:
                    self.progress(done, len(requests))
        if bad := int((~np.isfinite(sums)).sum()):
            # The likeliest of what is no number would be whichever comes first.
            raise StageError(
                f"{bad} of {len(requests)} requests have no finite log-likelihood under the model. Did the training "
                "diverge, or does half precision overflow (evaluate.precision)?"
            )
        return Likelihoods(sums, greedy, tokens, truncated)

    def _batches(self, sequences: list[list[int]], tokens: NDArray[np.int64]) -> Iterator[list[Row]]:
        """Yield trees of the sequences; those that a sliding window would cut stay plain."""
        branching = [len(row) - 1 <= self._window and self._reads.trees for row in sequences]
        trees = []
        for branch in (True, False):
            own = [place for place, branches in enumerate(branching) if branches == branch]
            grown = grow_trees(
                [sequences[place] for place in own], [int(tokens[place]) for place in own], branch=branch
            )
            for tree in grown:
                for member in tree.members:
                    member.index = own[member.index]
            trees += grown
        return batches(trees, self.tokens_a_batch, max(LOGITS_AT_ONCE // _vocabulary(self.model), 1))

    def _score_batch(self, batch: Sequence[Row], sums: NDArray[np.float64], greedy: NDArray[np.bool_]) -> int:
        """Write the scores of a batch's members; return how many there were."""
        losses, likeliest, owners = self._predict(batch, selected=self._reads.selected)
        np.add.at(sums, owners, losses)
        np.logical_and.at(greedy, owners, likeliest)
        return sum(len(tree.members) for row in batch for tree in row)

    @torch.inference_mode()
    def _predict(
        self, batch: Sequence[Row], *, selected: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
        """Return log-likelihood, whether it is the likeliest, and sequence of each predicted token: `(predicted,)` each.

        With `selected` the vocabulary head is applied only where a token is predicted.
        """
        wanted = [
            (row, offset + node, target, member.index)
            for row, trees in enumerate(batch)
            for offset, tree in _beside(trees)
            for member in tree.members
            for node, target in zip(member.nodes, member.targets, strict=True)
        ]
        rows, nodes, targets, owners = np.array(wanted, dtype=np.int64).T
        places, place = np.unique(np.stack([rows, nodes]), axis=1, return_inverse=True)
        where = torch.as_tensor(places, device=self.device)
        inputs = _inputs(batch, self.device, self.model)
        with _head_at(self.model, where) if selected else _whole_head():
            logits = self.model(**inputs, use_cache=False).logits
        logits = (logits[0] if selected else logits[where[0], where[1]]).float()
        at, target = (torch.as_tensor(values, device=self.device) for values in (place.reshape(-1), targets))
        found, likeliest = _read_off(logits, at, target)
        return found.double().cpu().numpy(), likeliest.cpu().numpy(), owners

    @cached_property
    def _reads(self) -> _Reads:
        """What the model can do, tried on a few tokens: read trees, apply its head to chosen positions."""
        sequences = _sample(_vocabulary(self.model))
        predicted = [3] * len(sequences)
        plain = grow_trees(sequences, predicted, branch=False)
        with _evaluating(self.model):
            expected = self._tried(plain, selected=False)
        agreement = AGREEMENT.get(_precision(self.model, self.device), ROUGH_AGREEMENT)

        def agrees(trees: list[Tree], *, selected: bool) -> bool:
            try:
                with _evaluating(self.model):
                    found = self._tried(trees, selected=selected)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                log.debug("%s cannot: %s", type(self.model).__name__, error)
                return False
            return bool(np.abs(found - expected).max() <= agreement)

        selected = self.model.get_output_embeddings() is not None and agrees(plain, selected=True)
        trees = _takes_positions(self.model) and agrees(
            grow_trees(sequences, predicted, branch=True), selected=selected
        )
        if not (trees and selected):
            log.info(
                "%s is measured the slow way: %s",
                type(self.model).__name__,
                "each request by itself" if selected else "with all of its logits",
            )
        return _Reads(trees, selected)

    def _tried(self, trees: list[Tree], *, selected: bool) -> NDArray[np.float64]:
        """Return the log-likelihood of each predicted token of the sample, by sequence."""
        losses, _, owners = self._predict([[tree] for tree in trees], selected=selected)
        return losses[np.argsort(owners, kind="stable")]

    @cached_property
    def _window(self) -> int:
        """Tokens that every layer of the model looks back on."""
        config = self.model.config.get_text_config()
        windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
        return min((int(window) for window in windows if window), default=1 << 30)


class _Reads(NamedTuple):
    trees: bool
    selected: bool


def encode_requests(tokenizer: Any, requests: Sequence[Request], prefix: int | None) -> list[TokenRequest]:
    """Tokenize requests as lm-evaluation-harness does (`TemplateLM.loglikelihood`, `_encode_pair`).

    White space at the end of a context goes to the continuation; both are tokenized together and split after as many
    tokens as the context has alone. An empty context is the token `prefix`.

    Raises:
        ConfigError: there is an empty context and no prefix token.
    """
    moved = [_move_spaces(request) for request in requests]
    whole = _token_ids(tokenizer, [context + continuation for context, continuation in moved], prefix)
    contexts = _token_ids(tokenizer, [context for context, _ in moved], prefix)
    alone = _token_ids(tokenizer, [after for before, after in requests if not before], special=False)
    unprefixed = iter(alone)
    encoded = []
    for request, ids, context in zip(requests, whole, contexts, strict=True):
        if request[0]:
            encoded.append(TokenRequest(context, ids[len(context) :]))
            continue
        if prefix is None:
            raise ConfigError(
                "A request has an empty context and the tokenizer has neither a beginning- nor an end-of-text token: "
                "name the token that stands for it (prefix_token)."
            )
        after = next(unprefixed)
        # The prefix is not put before a continuation that begins with it.
        encoded.append(
            TokenRequest(after[:1], after[1:]) if after[:1] == [prefix] else TokenRequest([prefix], after)
        )
    return encoded


def _move_spaces(request: Request) -> tuple[str, str]:
    context, continuation = request
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _token_ids(
    tokenizer: Any, texts: Sequence[str], prefix: int | None = None, *, special: bool = True
) -> list[list[int]]:
    """Tokenize each distinct text once; one that begins with the prefix token's text gets no special tokens."""
    begins = tokenizer.decode([prefix]) if prefix is not None else ""
    known: dict[str, list[int]] = {}
    for adds in (True, False):
        own = [
            text
            for text in dict.fromkeys(texts)
            if adds == (special and not (begins and text.startswith(begins)))
        ]
        if own:
            # Left alone, a tokenizer adds the special tokens that its makers wanted.
            kwargs = {} if adds else {"add_special_tokens": False}
            encoded = tokenizer(own, padding=False, truncation=False, verbose=False, **kwargs)
            known.update(zip(own, encoded["input_ids"], strict=True))
    return [list(known[text]) for text in texts]


def _refuse_unscorable(requests: Sequence[TokenRequest], max_length: int) -> None:
    problems = []
    for place, (context, continuation) in enumerate(requests):
        if not continuation:
            problems.append(f"request {place}: its continuation has no token of its own")
        elif not context:
            problems.append(f"request {place}: its context has no token")
        elif len(continuation) > max_length:
            problems.append(f"request {place}: its continuation has {len(continuation)} tokens")
    if problems:
        raise DataError(
            f"{len(problems)} of {len(requests)} requests cannot be scored; a continuation has 1 to {max_length} tokens "
            "(max_length). Shorten or leave out:",
            first_of(problems),
        )


def _read_off(logits: Tensor, at: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-likelihood of token `target[i]` at row `at[i]` of the logits, and whether it is the likeliest.

    Of equals, which half precision often makes, the first token counts as the likeliest, as in the harness. Some rows at
    a time: probabilities of all of them would double the memory, and be read back from it.
    """
    found = logits.new_empty(len(at))
    likeliest = torch.empty_like(at, dtype=torch.bool)
    rows = max(LOGITS_READ_AT_ONCE // logits.shape[-1], 1)
    for start in range(0, len(logits), rows):
        some = logits[start : start + rows]
        here = (at >= start) & (at < start + rows)
        row, token = at[here] - start, target[here]
        # The harness's function, its rounding (1e-5 a token on a CPU) included: sums over 50 tokens agree within 1e-4.
        found[here] = some.log_softmax(-1)[row, token]
        likeliest[here] = some.max(-1).indices[row] == token  # as `argmax`, in half its time on a CPU
    return found, likeliest


def _inputs(batch: Sequence[Row], device: str, model: Any) -> dict[str, Tensor]:
    """Return what the model reads: rows padded on the right to the longest, `(rows, nodes)`."""
    longest = max(sum(len(tree) for tree in trees) for trees in batch)
    ids = np.zeros((len(batch), longest), dtype=np.int64)
    depths = np.zeros_like(ids)
    mask = np.zeros((len(batch), 1, longest, longest), dtype=np.bool_)
    mask[:] = np.eye(longest, dtype=np.bool_)  # padding sees itself: a row of nothing would be NaN
    for row, trees in enumerate(batch):
        for offset, tree in _beside(trees):
            own = slice(offset, offset + len(tree))
            ids[row, own] = tree.tokens
            depths[row, own] = tree.depths
            mask[row, 0, own, own] = tree.ancestors()
    inputs = {"input_ids": torch.as_tensor(ids, device=device)}
    if all(len(trees) == 1 and trees[0].is_chain for trees in batch):
        return inputs  # plain sequences: no token sees what comes after it, padding included
    inputs["position_ids"] = torch.as_tensor(depths, device=device)
    inputs["attention_mask"] = _attention_mask(torch.as_tensor(mask, device=device), model)
    return inputs


def _beside(trees: Row) -> Iterator[tuple[int, Tree]]:
    """Yield each tree of a row with the place of its first node."""
    offset = 0
    for tree in trees:
        yield offset, tree
        offset += len(tree)


def _attention_mask(seen: Tensor, model: Any) -> Tensor:
    """Return a mask in the form that the model's attention wants: booleans, or numbers to add."""
    if model.config._attn_implementation == "sdpa":
        return seen
    dtype = model.dtype
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


@contextmanager
def _head_at(model: Any, where: Tensor) -> Iterator[None]:
    """Let the vocabulary head see the positions `where`, `(2, positions)`, only: logits are `(1, positions, vocabulary)`.

    What the model does to its logits afterwards (scaling, soft caps) is done to these.
    """

    def select(_: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (arguments[0][where[0], where[1]][None], *arguments[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _whole_head() -> Iterator[None]:
    yield


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off, and back to what it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _takes_positions(model: Any) -> bool:
    """Say whether the model below the head reads positions and a mask, without which there are no trees."""
    return {"position_ids", "attention_mask"} <= set(
        inspect.signature(model.get_decoder().forward).parameters
    )


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def _precision(model: Any, device: str) -> torch.dtype:
    kind = device.partition(":")[0]
    dtype: torch.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    return dtype


def _sample(vocabulary: int) -> list[list[int]]:
    """Return token sequences that branch, twice, and end at different lengths."""
    tokens = np.random.default_rng(0).integers(vocabulary, size=32).tolist()
    stem = tokens[:8]
    return [
        [*stem, *tokens[8:12]],
        [*stem, *tokens[12:18]],
        [*stem, *tokens[12:15], *tokens[18:20]],
        tokens[20:30],
    ]
