"""The engine gives each request what a forward pass over it alone would give, whatever is shared."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tasks.errors import ConfigError, DataError
from tasks.forgetting import likelihood
from tasks.forgetting.likelihood import Likelihoods, Request, Scorer
from tests.tiny_lm import tiny_lm, tiny_tokenizer

REQUESTS = [
    *(
        Request("Question: is the battery good?\nAnswer:", f" {word}")
        for word in ("good", "bad", "not very good")
    ),
    *(Request("the phone broke after one day and ", word) for word in ("it was awful", "it was awful", "it")),
    Request("", "the screen works"),
    Request("", "<s>the screen works"),
    Request("<s>the camera", " is really great"),
    Request("naïve café 👩🏽", "🚀 größe — très bien"),
    Request("naïve café 👩🏽", " 日本語のテキスト"),
    Request("two spaces  ", "\n\nthen lines"),
    Request("week", " a"),
    Request("week", " the"),
]
LIMITS = {"max_length": 100, "device": "cpu", "tokens_a_batch": 128}


def log_likelihoods(model: Any, tokenizer: Any, requests: list[Request], **limits: Any) -> Likelihoods:
    return Scorer(model, tokenizer, **limits).log_likelihoods(requests)


def naive(
    model: Any, tokenizer: Any, requests: list[Request], max_length: int = 100
) -> list[tuple[float, bool, int]]:
    """Score one request at a time by a plain forward pass, tokenized step by step."""
    found = []
    for context, continuation in requests:
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        if context:
            kwargs = {"add_special_tokens": False} if context.startswith("<s>") else {}
            before = tokenizer.encode(context, **kwargs)
            after = tokenizer.encode(context + continuation, **kwargs)[len(before) :]
        else:
            before, after = [0], tokenizer.encode(continuation, add_special_tokens=False)
            if after[0] == 0:
                before, after = after[:1], after[1:]
        ids = (before + after)[-(max_length + 1) :]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0, -len(after) :]
        target = torch.tensor(after)
        losses = logits.double().log_softmax(-1).gather(1, target[:, None])
        found.append((float(losses.sum()), bool((logits.argmax(-1) == target).all()), len(after)))
    return found


def agree(found: Likelihoods, expected: list[tuple[float, bool, int]]) -> None:
    sums, greedy, tokens = zip(*expected, strict=True)
    np.testing.assert_allclose(found.sums, sums, atol=1e-4, rtol=0)
    assert found.greedy.tolist() == list(greedy)
    assert found.tokens.tolist() == list(tokens)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("tokens_a_batch", [1, 40, 4096])
def test_scores_are_those_of_one_request_at_a_time(begins: bool, tokens_a_batch: int) -> None:
    model, tokenizer = tiny_lm(), tiny_tokenizer(begins=begins)
    found = log_likelihoods(model, tokenizer, REQUESTS, **{**LIMITS, "tokens_a_batch": tokens_a_batch})
    agree(found, naive(model, tokenizer, REQUESTS))
    assert found.sums.dtype == np.float64
    assert not found.truncated.any()
    assert found.sums[3] == found.sums[4]


@pytest.mark.parametrize(
    ("kind", "settings", "trees"),
    [
        ("llama", {"attn_implementation": "eager"}, True),
        ("gpt2", {}, True),
        ("gemma2", {"final_logit_softcapping": 2.0, "sliding_window": 64}, True),
        ("gemma2", {"final_logit_softcapping": 2.0, "sliding_window": 16}, True),
        ("mamba", {}, False),
        ("bloom", {}, False),
    ],
)
def test_models_that_cannot_read_trees_and_those_that_change_their_logits_are_right_too(
    kind: str, settings: dict[str, Any], trees: bool, tokenizer: Any
) -> None:
    model = tiny_lm(kind, **settings)
    scorer = Scorer(model, tokenizer, **LIMITS)
    agree(scorer.log_likelihoods(REQUESTS), naive(model, tokenizer, REQUESTS))
    assert scorer._reads == (trees, True)


def test_a_model_whose_head_cannot_be_chosen_positions_for_gives_all_its_logits(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = tiny_lm()
    expected = naive(model, tokenizer, REQUESTS)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    agree(log_likelihoods(model, tokenizer, REQUESTS, **LIMITS), expected)
    assert "LlamaForCausalLM is measured the slow way: with all of its logits" in caplog.text


def test_a_model_that_reads_trees_wrongly_is_noticed(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lm()
    expected = naive(model, tokenizer, REQUESTS)
    real: Callable[..., torch.Tensor] = likelihood._attention_mask
    monkeypatch.setattr(
        likelihood, "_attention_mask", lambda seen, model: real(torch.ones_like(seen).tril(), model)
    )
    scorer = Scorer(model, tokenizer, **LIMITS)
    agree(scorer.log_likelihoods(REQUESTS), expected)
    assert not scorer._reads.trees


def test_what_is_shared_is_read_once_and_the_head_sees_predictions_only(tokenizer: Any) -> None:
    model = tiny_lm()
    scorer = Scorer(model, tokenizer, **{**LIMITS, "tokens_a_batch": 4096})
    assert scorer._reads == (True, True)
    read, headed = [], []
    model.get_input_embeddings().register_forward_hook(lambda _, args, __: read.append(args[0].numel()))
    model.get_output_embeddings().register_forward_hook(lambda _, args, __: headed.append(args[0].shape[1]))
    context = "the battery of this phone works very well and the camera is great"
    found = scorer.log_likelihoods([Request(context, word) for word in (" good", " bad", " sad", " fine")])
    assert sum(read) == len(tokenizer.encode(context)) + int((found.tokens - 1).sum())
    assert sum(headed) == 1 + int((found.tokens - 1).sum())


def test_long_contexts_are_cut_on_the_left_and_counted(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_lm()
    requests = [Request("the book was good " * 20, word) for word in (" really", " not")] + [
        Request("week", " a")
    ]
    found = log_likelihoods(model, tokenizer, requests, **{**LIMITS, "max_length": 30})
    agree(found, naive(model, tokenizer, requests, 30))
    assert found.truncated.tolist() == [True, True, False]
    assert "2 of 3 requests have more than 30 tokens: their contexts were cut on the left" in caplog.text


def test_what_cannot_be_scored_is_named_all_at_once(tokenizer: Any) -> None:
    requests = [Request("a", " b"), Request("a", ""), Request("a", " good" * 40), Request(" ", "a")]
    with pytest.raises(DataError) as raised:
        log_likelihoods(tiny_lm(), tokenizer, requests, **{**LIMITS, "max_length": 20})
    assert "3 of 4 requests cannot be scored; a continuation has 1 to 20 tokens" in str(raised.value)
    assert raised.value.problems[0] == "request 1: its continuation has no token of its own"
    assert raised.value.problems[1].startswith("request 2: its continuation has ")
    assert raised.value.problems[2] == "request 3: its context has no token"


def test_an_empty_context_needs_a_token_that_stands_for_it() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    model = tiny_lm()
    with pytest.raises(ConfigError, match=r"empty context and the tokenizer has neither .* \(prefix_token\)"):
        log_likelihoods(model, tokenizer, [Request("", "good")], **LIMITS)
    found = log_likelihoods(model, tokenizer, [Request("", "good")], **LIMITS, prefix_token=0)
    agree(found, naive(model, tokenizer, [Request("", "good")]))


def test_limits_below_one_are_refused_and_no_request_is_no_error(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"max_length \(0\) and tokens_a_batch \(-1\) must be at least 1"):
        log_likelihoods(tiny_lm(), tokenizer, REQUESTS, max_length=0, device="cpu", tokens_a_batch=-1)
    assert log_likelihoods(tiny_lm(), tokenizer, [], **LIMITS).sums.shape == (0,)


def test_dropout_is_off_while_scoring_and_on_again_after_and_progress_is_told(tokenizer: Any) -> None:
    model = tiny_lm(attention_dropout=0.5).train()
    told: list[tuple[int, int]] = []
    found = log_likelihoods(
        model, tokenizer, REQUESTS, **LIMITS, progress=lambda done, total: told.append((done, total))
    )
    assert model.training
    agree(found, naive(model.eval(), tokenizer, REQUESTS))
    assert told[-1] == (len(REQUESTS), len(REQUESTS))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_scores_are_those_of_the_harness(tokenizer: Any) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'retain[lm]'")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    for begins in (False, True):
        model, tokenizer = tiny_lm(), tiny_tokenizer(begins=begins)
        harness = HFLM(pretrained=model, tokenizer=tokenizer, max_length=40, batch_size=1)
        requests = [*REQUESTS, Request("the book was good " * 20, " really")]
        theirs = harness.loglikelihood(
            [Instance("loglikelihood", {}, request, place) for place, request in enumerate(requests)],
            disable_tqdm=True,
        )
        found = log_likelihoods(model, tokenizer, requests, **{**LIMITS, "max_length": 40})
        np.testing.assert_allclose(found.sums, [score for score, _ in theirs], atol=1e-4, rtol=0)
        assert found.greedy.tolist() == [greedy for _, greedy in theirs]
