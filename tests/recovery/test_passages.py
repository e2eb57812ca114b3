"""What is trained on and what is held out; of conversations, the answers alone."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from ffprune_env.recovery.passages import UNSCORED, collate, digest_of, hold_out, load_chat, passages_of
from ffprune_env.recovery.progress import Progress, looks_made, rate_at, steps_for
from ffprune_env.texts.chat import is_chat

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@given(st.integers(2, 300), st.integers(1, 40))
def test_held_out_text_is_disjoint_from_what_is_trained_on(n, wanted):
    passages = passages_of(torch.arange(2 * n).view(n, 2))
    train, held = hold_out(passages, wanted)
    places = [[int(x.tokens[0]) for x in part] for part in (train, held)]
    assert sorted(places[0] + places[1]) == list(range(0, 2 * n, 2))
    assert 1 <= len(held) <= max(1, min(wanted, n // 4))
    assert places[0] == sorted(places[0])


def test_one_window_is_too_short_a_text():
    with pytest.raises(ValueError, match=r"^the text to recover on has 1 windows, at least 2 are needed"):
        hold_out(passages_of(torch.ones(1, 8, dtype=torch.int64)), 4)


@pytest.fixture
def chat_file(tmp_path):
    def write(*conversations, name="chat.jsonl"):
        rows = [{"messages": [{"role": role, "content": said} for role, said in x]} for x in conversations]
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return path

    return write


@pytest.fixture
def talking():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_of_a_conversation_the_answers_are_scored_and_their_ends(chat_file, talking):
    path = chat_file([("user", "hi"), ("assistant", "yes"), ("user", "so"), ("assistant", "no")])
    assert is_chat(path)
    (passage,) = load_chat(path, talking)
    assert talking.decode(passage.tokens) == "<user>hi</><assistant>yes</><user>so</><assistant>no</>"
    assert talking.decode(passage.labels[passage.labels != UNSCORED]) == "yes</>no</>"
    assert torch.equal(passage.tokens[passage.labels != UNSCORED], passage.labels[passage.labels != UNSCORED])


def test_conversations_of_different_lengths_are_filled_up_behind_their_ends(chat_file, talking):
    path = chat_file([("user", "a"), ("assistant", "b")], [("user", "a"), ("assistant", "longer")])
    passages = load_chat(path, talking)
    batch = collate([{"input_ids": x.tokens, "labels": x.labels, "index": i} for i, x in enumerate(passages)])
    for i, passage in enumerate(passages):
        n = len(passage.tokens)
        assert torch.equal(batch["input_ids"][i, :n], passage.tokens)
        assert bool((batch["labels"][i, n:] == UNSCORED).all())
    assert digest_of(passages) != digest_of(passages[::-1])


def test_conversations_that_cannot_be_used_are_refused_in_one_line(chat_file, talking, tmp_path):
    path = chat_file([("user", "question"), ("assistant", "answer")])
    with pytest.raises(ValueError, match="no conversation with an answer within 9 tokens"):
        load_chat(path, talking, seq_len=9)
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        load_chat(path, byte_tokenizer())
    with pytest.raises(ValueError, match="row 1, begins with an answer"):
        load_chat(chat_file([("assistant", "x")], name="other.jsonl"), talking)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "user"}]}')
    with pytest.raises(ValueError, match="messages with role and content are needed"):
        load_chat(bad, talking)
    talking.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(ValueError, match="is changed by the chat template where it goes on"):
        load_chat(path, talking)
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"text": "x"}')
    assert not is_chat(plain)
    assert not is_chat("wikitext2")


def test_the_rate_rises_falls_and_ends_at_nothing():
    rates = [rate_at(i / 1000) for i in range(1001)]
    top = rates.index(max(rates))
    assert 0 < rates[0] < 0.2
    assert max(rates) == pytest.approx(1, abs=0.02)
    assert rates == sorted(rates[: top + 1]) + sorted(rates[top + 1 :], reverse=True)
    assert rates[-1] == 0


def test_progress_is_by_steps_or_by_time_whatever_is_further():
    assert Progress(10).at(5) == 0.5
    assert Progress(10, seconds=100, spent=80).at(5) == pytest.approx(0.8, abs=0.01)
    assert Progress(None, seconds=1, spent=2).at(1) == 1
    assert [looks_made(i / 10, 5) for i in range(11)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_steps_make_the_tokens_that_were_asked_for():
    # 9 windows of 10 tokens, 4 a step: 3 steps for all of them.
    assert [steps_for(tokens, 90, 9, 4) for tokens in (1, 40, 80, 90, 130, 180)] == [1, 1, 2, 3, 4, 6]
