"""What a model reads of the rows: which tokens carry loss, which turns end, what is cut."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest

from tasks.errors import DataError
from tasks.families.chat import assistant_spans, render
from tasks.measures.tokens import audit, coloured
from tests.architectures import CHAT_TEMPLATE, word_tokenizer

HELLO = [{"role": "user", "content": "good phone"}, {"role": "assistant", "content": "love it"}]
TWICE = [*HELLO, {"role": "user", "content": "bad film"}, {"role": "assistant", "content": "hate it"}]


@pytest.fixture
def tokenizer() -> Any:
    return word_tokenizer()


def chats(*conversations: list[dict[str, str]]) -> pd.DataFrame:
    texts = ["\n".join(turn["content"] for turn in one) for one in conversations]
    return pd.DataFrame({"text": texts, "messages": [json.dumps(one) for one in conversations]})


def test_only_what_the_assistant_says_carries_loss_and_every_turn_ends(tokenizer: Any) -> None:
    found = audit(chats(HELLO, TWICE), tokenizer, "causal-lm", 64)
    # <|im_start|>user ⏎ good phone <|im_end|> ⏎ <|im_start|>assistant ⏎ [love it <|im_end|>] ⏎
    assert found.supervised.tolist() == [3, 6]
    assert found.ends.tolist() == [True, True]
    assert not found.cut.any()
    assert not found.doubled.any()


def test_the_view_marks_what_carries_loss(tokenizer: Any) -> None:
    view = coloured(json.dumps(TWICE), tokenizer, "causal-lm", 64)
    assert view.count("⟦") == view.count("⟧") == 2
    inside = [part.split("⟧")[0] for part in view.split("⟦")[1:]]
    assert [part.replace(" ", "") for part in inside] == ["loveit<|im_end|>", "hateit<|im_end|>"]


def test_a_row_cut_before_the_assistant_speaks_teaches_nothing(tokenizer: Any) -> None:
    found = audit(chats(HELLO), tokenizer, "causal-lm", 6)
    assert found.supervised.tolist() == [0]
    assert found.cut.tolist() == [True]
    assert coloured(json.dumps(HELLO), tokenizer, "causal-lm", 6).endswith("✂")


def test_a_template_that_ends_no_turn_is_seen(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|im_end|>", "")
    tokenizer.eos_token = "<|im_end|>"
    found = audit(chats(HELLO, TWICE), tokenizer, "causal-lm", 64)
    assert not found.ends[1]


def test_a_doubled_start_is_seen(tokenizer: Any) -> None:
    tokenizer.chat_template = "<|endoftext|><|endoftext|>" + CHAT_TEMPLATE
    assert audit(chats(HELLO), tokenizer, "causal-lm", 64).doubled.tolist() == [True]


def test_generation_marks_are_believed(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    )
    assert audit(chats(HELLO, TWICE), tokenizer, "causal-lm", 64).supervised.tolist() == [3, 6]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for message in messages %}{% if loop.last %}<|im_start|>{% endif %}{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    with pytest.raises(DataError, match=r"writes turn 2 of 4 differently .* generation"):
        audit(chats(TWICE), tokenizer, "causal-lm", 64)


FIRST = [{"role": "assistant", "content": "hello yes"}, *HELLO]
DEFAULT_SYSTEM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nhello yes hello<|im_end|>\n{% endif %}"
)


@pytest.mark.parametrize("beginning", ["", DEFAULT_SYSTEM])
def test_of_an_assistant_who_speaks_first_its_words_alone_carry_loss(tokenizer: Any, beginning: str) -> None:
    loop = "{% for message in messages %}"
    tokenizer.chat_template = CHAT_TEMPLATE.replace(loop, beginning or loop)
    _, spans = assistant_spans(tokenizer, FIRST)
    text = render(tokenizer, FIRST)
    assert [text[start:end] for start, end in spans] == ["hello yes<|im_end|>", "love it<|im_end|>"]
    assert text.startswith("<|im_start|>system" if beginning else "<|im_start|>assistant")
    assert audit(chats(FIRST), tokenizer, "causal-lm", 64).supervised.tolist() == [6]


def test_an_assistant_who_speaks_first_is_refused_where_its_words_cannot_be_told(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages[0]['content'] | length }}\n" + CHAT_TEMPLATE
    with pytest.raises(DataError, match=r"speaks first .* 3 turns.* a user's turn before"):
        audit(chats(FIRST), tokenizer, "causal-lm", 64)
    tokenizer.chat_template = "{{ messages[0]['content'] }}\n" + CHAT_TEMPLATE
    with pytest.raises(DataError, match="cannot be told"):
        audit(chats(FIRST), tokenizer, "causal-lm", 64)


def test_unknown_tokens_and_words_are_counted(tokenizer: Any) -> None:
    table = pd.DataFrame({"text": ["good phone", "xyzzy plugh good"]})
    found = audit(table, tokenizer, "text-classification", 64)
    assert found.unknown.tolist() == [0, 2]
    assert found.words.tolist() == found.plain.tolist() == [2, 3]
    assert found.supervised.tolist() == found.tokens.tolist()


def test_what_the_template_writes_is_neither_a_word_nor_a_token_of_a_conversation(tokenizer: Any) -> None:
    found = audit(chats(HELLO, TWICE), tokenizer, "causal-lm", 64)
    assert found.words.tolist() == found.plain.tolist() == [4, 8]
    assert (found.tokens > found.plain + 4).all(), "roles, line ends and end-of-turn tokens"


def test_plain_text_ends_with_the_end_token_and_all_of_it_carries_loss(tokenizer: Any) -> None:
    found = audit(pd.DataFrame({"text": ["good phone"]}), tokenizer, "causal-lm", 64)
    assert found.supervised.tolist() == found.tokens.tolist() == [3]
    assert found.ends.tolist() == [True]


def test_roles_out_of_order_are_seen(tokenizer: Any) -> None:
    system = {"role": "system", "content": "hello"}
    late, twice, cut = [*TWICE, system], [HELLO[0], *HELLO], TWICE[:3]
    tool = [*HELLO, {"role": "tool", "content": "3 phones"}, HELLO[-1]]
    rows = chats(HELLO, [system, *TWICE], tool, late, twice, cut, tool[:-1])
    found = audit(rows, tokenizer, "causal-lm", 64)
    assert found.in_order.tolist() == [True, True, True, False, False, False, False]
    assert audit(pd.DataFrame({"text": ["good"]}), tokenizer, "causal-lm", 64).in_order.all()


def test_the_end_token_of_a_text_is_not_unknown_where_the_two_are_one(tokenizer: Any) -> None:
    tokenizer.unk_token = tokenizer.bos_token = tokenizer.eos_token  # as GPT-2 has it
    assert audit(pd.DataFrame({"text": ["good phone"]}), tokenizer, "causal-lm", 64).unknown.tolist() == [0]
