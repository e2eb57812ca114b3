"""What stands behind --reward is read once, and questions are split for ever."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffprune_env.evaluators.objectives.build import require_reward
from ffprune_env.evaluators.objectives.function import load_function
from ffprune_env.evaluators.objectives.questions import read_questions, seen_among
from ffprune_env.evaluators.objectives.reward import RewardMix, Term, mix_of, parse_reward, written
from ffprune_env.evaluators.objectives.settings import parse_words
from ffprune_env.evaluators.objectives.shares import Bundles, Counts, is_held_out, split
from ffprune_env.texts.files import read_rows


@pytest.mark.parametrize(
    ("text", "terms", "kind"),
    [
        ("ppl", [("ppl", "", 1)], "ppl"),
        ("kl", [("kl", "", 1)], "kl"),
        ("tasks", [("tasks", "", 1)], "ppl"),
        ("tasks:piqa,arc_easy", [("tasks", "piqa,arc_easy", 1)], "ppl"),
        ("ppl=0.5 tasks:my.jsonl=2", [("ppl", "", 0.5), ("tasks", "my.jsonl", 2)], "ppl"),
        ("chat:a=b.jsonl", [("chat", "a=b.jsonl", 1)], "ppl"),
        ("'chat:my talks.jsonl=1' kl=3", [("chat", "my talks.jsonl", 1), ("kl", "", 3)], "ppl"),
        ("my.module:function", [("function", "my.module:function", 1)], "value"),
    ],
)
def test_a_reward_is_read(text, terms, kind):
    mix = parse_reward(text)
    assert mix.terms == tuple(Term(*term) for term in terms)
    assert (mix, mix.kind) == (mix_of(text), kind)
    assert mix.of_text == (text in ("ppl", "kl"))
    assert parse_reward(written(mix)) == mix


def test_a_function_that_was_given_as_itself_keeps_its_kind():
    assert parse_reward(written(RewardMix((Term("function", "<lambda>"),)))).kind == "value"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pppl", "unknown reward 'pppl'; allowed are ppl, kl, tasks, chat, module:function, or several"),
        ("", "takes ppl, kl"),
        ("ppl=0 kl=1", "weight of ppl must be positive and finite, got 0"),
        ("ppl=x kl=1", "weight of ppl must be a number, got 'x'"),
        ("ppl=nan", "positive and finite"),
        ("chat", "needs a file of conversations"),
        ("ppl ppl=2", "has a term twice"),
        ("ppl:x", "unknown reward 'ppl:x'"),
        ("tasks:", "unknown reward 'tasks:'"),
        ("a:b:c", "unknown reward"),
    ],
)
def test_what_is_no_reward_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        parse_reward(text)


def test_words_of_a_command_line_are_one_setting():
    assert parse_words(["kl"]) == "kl"
    text = parse_words(["ppl=0.5", "tasks:my questions.jsonl=0.5"])
    assert [str(term) for term in parse_reward(text).terms] == ["ppl", "tasks:my questions.jsonl"]


ROW = {"question": "2 + 2?", "choices": ["4", "5"], "answer": 0}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "is not read as JSON: Expecting .* line 2 "),
        ("[]", "row 2: an object is needed, got list"),
        ({"question": "x"}, "row 2: there is no choices"),
        (ROW | {"question": " "}, "row 2: question must be a string that says something"),
        (ROW | {"choices": ["4"]}, "row 2: at least two different choices"),
        (ROW | {"choices": ["4", "4"]}, "row 2: at least two different choices"),
        (ROW | {"choices": ["4", 5]}, "row 2: choices must be a list of strings"),
        (ROW | {"answer": 2}, "row 2: answer must be an index from 0 to 1 or one of the choices, got 2"),
        (ROW | {"answer": "6"}, "row 2: answer must be"),
        (ROW | {"answer": True}, "row 2: answer must be"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path, row, says):
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + (row if isinstance(row, str) else json.dumps(row)))
    with pytest.raises(ValueError, match=says) as error:
        require_reward(parse_reward(f"tasks:{file}"))
    assert "\n" not in str(error.value)


def test_an_answer_is_an_index_or_a_choice(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text("\n\n".join(json.dumps(ROW | {"answer": answer}) for answer in (1, "5", "4")))
    questions = read_questions(file)
    assert [question.answer for question in questions] == [1, 1, 0]
    assert questions[0].lines == (("2 + 2?", " 4"), ("2 + 2?", " 5"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no question"):
        read_questions(tmp_path / "empty.jsonl")


def test_questions_are_read_as_texts_are(tmp_path):
    """Separators of lines within a string, the mark of some editors, and line ends of Windows are nobody's mistake."""
    rows = [ROW | {"question": f"one{mark}two?", "text": f"one{mark}two?"} for mark in "\u2028\u2029\x85\x1c\x0b\x0c"]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    written = {"x.jsonl": "\r\n".join(lines).encode("utf-8-sig"), "x.json": f"[{','.join(lines)}]".encode()}
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
        asked = [question.asked for question in read_questions(tmp_path / name)]
        assert asked == read_rows(tmp_path / name) == [row["text"] for row in rows]


@pytest.mark.parametrize(
    ("reward", "error", "says"),
    [
        ("tasks:none.jsonl", OSError, "there is no file none.jsonl"),
        ("chat:none.jsonl", OSError, "there is no file none.jsonl"),
        ("tasks:piqua", ValueError, "unknown tasks piqua; allowed are boolq"),
        ("nowhere:f", ValueError, "there is no module nowhere in"),
        ("math:nothing", ValueError, "math has no function nothing"),
        ("broken:f", ValueError, "broken cannot be imported: ZeroDivisionError: division by zero"),
        ("needy:f", ValueError, "needy needs not_there, which is not installed"),
        ("fine:g", ValueError, "fine has no function g, it has f$"),
    ],
)
def test_what_is_not_there_is_said_before_a_model_is_loaded(tmp_path, monkeypatch, reward, error, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "needy.py").write_text("import not_there")
    (tmp_path / "fine.py").write_text("def f(model, tokenizer):\n    return 1.0\n")
    with pytest.raises(error, match=says):
        require_reward(parse_reward(reward))
    with pytest.raises(OSError, match=r"has no piqa.jsonl; it has none"):
        require_reward(parse_reward("tasks:piqa"), tmp_path)


def test_a_function_is_found_where_the_user_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "where_the_user_is.py").write_text("def f(model, tokenizer):\n    return 0.25\n")
    assert load_function("where_the_user_is:f")(None, None) == 0.25


def test_the_split_is_the_same_for_ever():
    assert [is_held_out(f"question {i}") for i in range(8)] == [False, True, True, True, True, False, True, True]
    assert is_held_out("Question  3") == is_held_out("question 3")


@given(st.sets(st.text(min_size=1), max_size=60))
def test_no_item_is_searched_and_reported_on(said):
    search, held_out = split({x: x for x in said})
    assert not {" ".join(x.casefold().split()) for x in search} & {" ".join(x.casefold().split()) for x in held_out}
    assert sorted(search + held_out) == sorted(said)


@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 30), st.integers(0, 4), st.integers(1, 400))
def test_bundles_are_disjoint_and_every_window_has_one(search, finalists, pool, watch, n):
    pool = max(pool, search) if pool else 0
    counts = Counts(search, finalists, pool, watch, tokens=64)
    if n < counts.least:
        with pytest.raises(ValueError, match=f"at least {counts.least} and 1 are needed"):
            Bundles("x", range(n), [0], [8] * n, counts)
        return
    bundles = Bundles("x", range(n), [0], [8] * n, counts)
    further = [*range(bundles.pool), *range(pool, pool + watch)]
    places = {"search": range(search), "finalists": range(finalists), "further": further}
    found = [item for purpose, indices in places.items() for item in bundles.at((purpose, tuple(indices)))]
    assert len(set(found)) == len(found) == bundles.size * (search + finalists + bundles.pool + watch)
    assert min(pool, search) <= bundles.pool <= pool
    assert 1 <= bundles.size <= 8


def test_a_question_is_known_in_other_words_around_it():
    long = "which of these planets is the largest one that goes around the sun in our solar system"
    seen = [long, "two and two"]
    asked = [f"Question: {long.title()}?\nAnswer:", "Question: Two and two?\nAnswer:", "Question: two and three?", ""]
    assert list(seen_among(asked, seen)) == [True, True, False, False]
    assert not any(seen_among(["which of these planets is the smallest, and why is that so surprising to us"], seen))
