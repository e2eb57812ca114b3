"""Rewards other than perplexity: lm-eval's own likelihoods, slow references, and functions that misbehave."""

from __future__ import annotations

import json
import math
import random

import gymnasium as gym
import lm_eval.evaluator
import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from lm_eval.models.huggingface import HFLM
from plain import plain, plainly

import ffprune_env as ff
from ffprune_env.budget.even import ffn_only, uniform
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.objectives.lines import Line, answer_line, line_losses
from ffprune_env.evaluators.objectives.lm_eval_questions import questions_of
from ffprune_env.evaluators.objectives.reward import parse_reward
from ffprune_env.evaluators.objectives.terms import margin
from ffprune_env.evaluators.objectives.unseen import keep_unseen, unseen_alone
from ffprune_env.evaluators.zero_shot_tasks import TASKS, open_tasks
from ffprune_env.lm.divergence import compare_with_dense, final_hidden_states
from ffprune_env.search.noted import unnoted
from ffprune_env.search.watch import Watch

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def said(rng, most=12):
    return "".join(rng.choice(list("abcdefgh"), rng.integers(3, most)))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A user's questions."""
    rng, file = np.random.default_rng(0), tmp_path_factory.mktemp("questions") / "q.jsonl"
    rows = [
        {"question": said(rng, 30), "choices": [said(rng) for _ in range(3)], "answer": int(rng.integers(3))}
        for _ in range(160)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    rng, file = np.random.default_rng(1), tmp_path_factory.mktemp("chats") / "talks.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": said(rng)}, {"role": "assistant", "content": said(rng)}]}
        for _ in range(60)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def evaluator(text_file, tokenizer):
    settings = plain(seq_len=64, calibration_windows=4, search_windows=2, final_windows=3, pool_windows=5)
    return build_evaluator(tiny_model("llama-gqa"), tokenizer, str(text_file), settings)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Questions in the columns of lm-eval's tasks."""
    rng, folder = np.random.default_rng(2), tmp_path_factory.mktemp("data")
    for task in ("piqa", "winogrande", "arc_easy", "boolq"):
        rows = []
        for i in range(40):
            choices = {"text": [said(rng) for _ in range(4)], "label": list("ABCD")}
            rows.append(
                {
                    "piqa": {"goal": said(rng, 30), "sol1": said(rng), "sol2": said(rng), "label": i % 2},
                    "winogrande": {
                        "sentence": f"{said(rng, 30)} _ {said(rng)}", "option1": said(rng), "option2": said(rng),
                        "answer": str(1 + i % 2),
                    },
                    "arc_easy": {"question": said(rng, 30), "choices": choices, "answerKey": "ABCD"[i % 4]},
                    "boolq": {"passage": said(rng, 30), "question": said(rng), "label": i % 2},
                }[task]
            )  # fmt: skip
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("task", ["piqa", "winogrande", "arc_easy", "boolq"])
@pytest.mark.parametrize("family", ["llama-gqa", "opt"])
def test_likelihoods_and_right_answers_are_those_of_lm_eval(data, tokenizer, task, family):
    model = tiny_model(family)
    with open_tasks([task], data) as opened:
        lm = HFLM(model, "causal", tokenizer=tokenizer, batch_size=4)
        report = lm_eval.evaluator.evaluate(lm=lm, task_dict={"tasks": opened}, log_samples=True)
        asked = questions_of(task, opened[task])
    expected = [[float(x[0]) for x in sample["filtered_resps"]] for sample in report["samples"][task]]
    lines = [[answer_line(*line, tokenizer, 128) for line in question.lines] for question in asked]
    found = iter(line_losses(model, [x for of_question in lines for x in of_question], batch_size=3))
    likelihoods = [[-next(found) for _ in of_question] for of_question in lines]
    np.testing.assert_allclose(likelihoods, expected, rtol=1e-5)
    right = [margin(own, question.answer) > 0 for own, question in zip(likelihoods, asked, strict=True)]
    assert np.mean(right) == pytest.approx(report["results"][task]["acc,none"])


@pytest.mark.parametrize("batch_size", [1, 2, 7, None])
def test_lines_lose_the_same_however_they_are_batched(batch_size):
    model, rng = tiny_model("opt"), np.random.default_rng(0)
    lines, slow = [], []
    for n in (3, 40, 9, 9, 1, 22):
        tokens = torch.tensor(rng.integers(1, 200, n + 1))
        rows = torch.tensor(sorted(rng.choice(n, min(n, 3), replace=False)))
        lines.append(Line(tokens[:-1], rows, tokens[1:][rows]))
        logits = model(input_ids=tokens[None, :-1]).logits[0].log_softmax(-1).detach()
        slow.append(-sum(float(logits[row, tokens[row + 1]]) for row in rows))
    lines.append(Line(lines[1].tokens, lines[1].rows[:1], lines[2].targets[:1]))  # reads what another line reads
    logits = model(input_ids=lines[1].tokens[None]).logits[0].log_softmax(-1).detach()
    slow.append(-float(logits[lines[1].rows[0], lines[2].targets[0]]))
    np.testing.assert_allclose(line_losses(model, lines, batch_size), slow, rtol=1e-5)


def test_what_is_longer_than_the_model_takes_is_cut_from_the_left(tokenizer):
    line = answer_line("abcdefgh", " xyz", tokenizer, 6)
    assert tokenizer.decode(line.tokens) == "fgh xy"
    assert tokenizer.decode(line.targets) == " xyz"
    assert line.rows.tolist() == [2, 3, 4, 5]
    assert tokenizer.decode(answer_line("abc ", "x", tokenizer, 99).targets) == " x"


def test_margins():
    assert margin([-1.0, -3.0, -2.0], 0) == 1.0
    assert margin([-1.0, -3.0, -2.0], 1) == -2.0
    assert math.isnan(margin([-1.0, math.nan], 0))


def pruned_rewards(evaluator, reward, kept):
    env = ff.PruneBanditEnv(evaluator, sparsity=0.3, reward=reward)
    env.reset()
    own = env.evaluator
    dense = np.array([unit.n_groups for unit in own.units])
    assert own.dense(2) / own.measure(dense, 2) == pytest.approx(1, rel=1e-9)
    return own.dense(2) / own.measure(kept, 2), own


def test_tasks_are_rewarded_by_margins_clipped_at_5(evaluator, questions, tokenizer):
    kept = ffn_only(0.3, evaluator.units).kept
    reward, own = pruned_rewards(evaluator, f"tasks:{questions}", kept)
    (bundles,) = own.objectives.terms[0].tasks.values()
    asked = bundles.at(("search", (0, 1)))

    def mean(model):
        margins = [margin([-x for x in line_losses(model, question.lines)], question.answer) for question in asked]
        return np.clip(margins, -5, 5).mean()

    dense = mean(own.prunable.model)
    with own.prunable.pruned(kept) as model:
        assert reward == pytest.approx(math.exp(mean(model) - dense), rel=1e-6)


def test_no_question_is_searched_and_reported_on(evaluator, questions):
    own = evaluator.rewarding(f"tasks:{questions}")
    (bundles,) = own.objectives.terms[0].tasks.values()
    places = [("search", (0, 1)), ("finalists", (0, 1, 2)), ("further", own.pool)]
    searched = [x for place in places for x in bundles.at(place)]
    key = lambda x: tuple(tuple(line.tokens.tolist()) for line in x.lines)  # noqa: E731
    assert searched
    assert bundles.held_out
    assert not {key(x) for x in searched} & {key(x) for x in bundles.held_out}


def test_conversations_are_rewarded_by_the_perplexity_of_answers(evaluator, chats):
    kept = ffn_only(0.3, evaluator.units).kept
    reward, own = pruned_rewards(evaluator, f"chat:{chats}", kept)
    lines = own.objectives.terms[0].bundles.at(("search", (0, 1)))

    def ppl(model):
        nats = [x for line in lines for x in line_losses(model, [line])]
        return math.exp(sum(nats) / sum(len(line.rows) for line in lines))

    dense = ppl(own.prunable.model)
    with own.prunable.pruned(kept) as model:
        assert reward == pytest.approx(dense / ppl(model), rel=1e-6)
    assert own.tokenizer.decode(lines[0].targets).endswith("</>")


@pytest.mark.parametrize("windows", [2, (1, 3)])
def test_a_mix_adds_losses(evaluator, questions, windows):
    kept = uniform(0.3, evaluator.units).kept
    own = evaluator.rewarding(f"ppl=0.5 kl=2 tasks:{questions}=0.25")
    alone = evaluator.rewarding(f"tasks:{questions}")
    text = evaluator.windows[:2] if windows == 2 else evaluator.further[list(windows)]
    states = final_hidden_states(evaluator.prunable.model, text)
    with evaluator.prunable.pruned(kept) as model:
        ppl, kl = compare_with_dense(model, text, states)
    expected = 0.5 * math.log(ppl) + 2 * kl + 0.25 * math.log(alone.measure(kept, windows))
    assert math.log(own.measure(kept, windows)) == pytest.approx(expected, rel=1e-6)
    assert own.dense(windows) / own.measure(np.array([x.n_groups for x in own.units]), windows) == pytest.approx(1)


def test_finalists_of_a_divergence_are_ranked_by_it(evaluator, monkeypatch):
    """Steps are measured by compare(), which has both; a last look has one number, and it is what is rewarded."""
    kept = uniform(0.3, evaluator.units).kept
    own = evaluator.rewarding("kl")
    windows = evaluator.texts["finalists"][:2]
    states = final_hidden_states(evaluator.prunable.model, windows)
    with evaluator.prunable.pruned(kept) as model:
        _, kl = compare_with_dense(model, windows, states)
    assert own.final_losses(kept, 2) == pytest.approx([kl], rel=1e-6)
    assert own.measure(kept, 2) == evaluator.measure(kept, 2)
    monkeypatch.setattr(type(own), "watch", (0, 1))
    assert Watch(own, unnoted).loss(kept, "ppl") == math.log(evaluator.measure(kept, own.watch))
    assert Watch(own, unnoted).loss(kept, "kl") == own.compare(kept, own.watch)[1]


def test_a_divergence_of_other_held_out_text_is_of_that_text(evaluator):
    kept = uniform(0.3, evaluator.units).kept
    own = evaluator.rewarding("kl")
    found = {}
    for name, windows in (("one", evaluator.further[:2]), ("other", evaluator.further[2:4])):
        measure = own.held_out(windows)
        states = final_hidden_states(evaluator.prunable.model, windows)
        with evaluator.prunable.pruned(kept) as model:
            assert measure(model)["kl"] == pytest.approx(compare_with_dense(model, windows, states)[1], rel=1e-6)
            found[name] = measure(model)["kl"]
    assert found["one"] != found["other"]


def test_an_environment_does_not_take_another_reward_for_its_own(evaluator, questions):
    for there in (f"tasks:{questions}", lambda model, tokenizer: 1.0):
        with pytest.raises(ValueError, match=r"the evaluator measures .* not 'ppl': give that as reward"):
            ff.PruneBanditEnv(evaluator.rewarding(there), 0.3)
    with pytest.raises(ValueError, match="the evaluator measures 'kl', not 'ppl'"):
        ff.PruneBanditEnv(evaluator.rewarding("kl", stands_in=True), 0.3)
    ff.PruneBanditEnv(evaluator.rewarding("kl"), 0.3, reward="ppl")  # measures text at every step


def test_text_can_be_compared_beside_what_is_rewarded(evaluator, questions):
    kept = uniform(0.3, evaluator.units).kept
    own = evaluator.rewarding(f"tasks:{questions}")
    cost = own.measure(kept, 2)
    assert own.compare(kept, 2)[0] == pytest.approx(evaluator.measure(kept, 2))
    assert own.measure(kept, 2) == cost != own.text_evaluator.measure(kept, 2)


def test_a_broken_model_collapses(evaluator, questions, chats):
    for reward in (f"tasks:{questions}", f"chat:{chats}", f"ppl=0.5 tasks:{questions}=0.5"):
        env = ff.PruneBanditEnv(evaluator, sparsity=0.3, reward=reward)
        weight = evaluator.prunable.model.model.layers[0].mlp.up_proj.weight
        before = weight.data.clone()
        try:
            weight.data[:] = torch.nan
            env.reset()
            _, got, _, _, info = env.step(np.zeros(6, dtype=np.float32))
        finally:
            weight.data.copy_(before)
        assert (got, info["collapsed"]) == (0.0, True)


def test_a_function_is_taken_as_it_is_and_asked_once(evaluator):
    asked = []

    def share_of_zeros(model, tokenizer):
        asked.append(model)
        return torch.tensor(len(asked) / 7)

    env = ff.PruneBanditEnv(evaluator, sparsity=0.3, reward=share_of_zeros)
    assert len(asked) == 1  # of the dense model
    for windows in (1, 2, (0, 1), (2,)):  # a function does not read them
        env.reset(options={"n_samples": windows})
        _, reward, _, _, info = env.step(np.zeros(6, dtype=np.float32))
        assert reward == pytest.approx(2 / 7, abs=1e-7)  # a tensor of float32
        assert info["collapsed"] is False
    assert len(asked) == 2
    assert env.evaluator.rewarding(share_of_zeros) is env.evaluator


def test_a_function_may_seed_and_draw_and_the_search_draws_on_as_if_it_had_not(evaluator):
    """A policy's actions come from the same generators: all candidates but the first would be one."""

    def draws(model, tokenizer):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        return float(torch.rand(()))

    rewarded = evaluator.rewarding(draws)
    kept = np.array([unit.n_groups for unit in rewarded.units])
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    rewarded.measure(kept - 1, 1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


def test_a_function_may_be_negative_and_is_told_what_is_reported(evaluator):
    def told(model, tokenizer, held_out):
        return -3.5 if held_out else -2.0

    env = ff.PruneBanditEnv(evaluator, sparsity=0.3, reward=told)
    env.reset()
    _, reward, _, _, info = env.step(np.zeros(6, dtype=np.float32))
    assert (reward, info["collapsed"]) == (-2.0, False)
    assert env.evaluator.held_out(evaluator.windows)(evaluator.prunable.model) == {"loss": 3.5, "value": -3.5}


def spoils(model, tokenizer):
    next(model.parameters()).data[0, 0] += 1e-3  # the version of a tensor does not see that
    return 1.0


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda model, tokenizer: math.nan, "returned nan: numbers from -100 to 100 are allowed"),
        (lambda model, tokenizer: 1e3, r"returned 1000\.0"),
        (lambda model, tokenizer: "good", "returned 'good': a number is needed"),
        (lambda model, tokenizer: None, "returned None: a number is needed"),
        (lambda model, tokenizer: True, "a number is needed"),
        (lambda model: 1.0, "raised TypeError"),
        (lambda model, tokenizer: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (spoils, "changed parameters of the model"),
    ],
)
def test_a_function_that_misbehaves_is_refused_in_one_line(text_file, tokenizer, function, says):
    settings = plain(seq_len=64, calibration_windows=4, search_windows=2)
    fresh = build_evaluator(tiny_model("llama"), tokenizer, str(text_file), settings)
    with pytest.raises(ValueError, match=says) as error:
        ff.PruneBanditEnv(fresh, reward=function)
    assert "\n" not in str(error.value)


def test_a_function_that_spoils_a_pruned_model_is_found(text_file, tokenizer):
    settings = plain(seq_len=64, calibration_windows=4, search_windows=2)
    fresh = build_evaluator(tiny_model("llama"), tokenizer, str(text_file), settings)
    calls = []

    def later(model, tokenizer):
        calls.append(0)
        return spoils(model, tokenizer) if len(calls) > 1 else 1.0

    env = ff.PruneBanditEnv(fresh, reward=later)
    env.reset()
    with pytest.raises(ValueError, match="changed parameters"):
        env.step(np.zeros(6, dtype=np.float32))


def test_too_few_questions_say_how_many_are_needed(evaluator, tmp_path):
    file = tmp_path / "few.jsonl"
    file.write_text(json.dumps({"question": "a", "choices": ["b", "c"], "answer": 0}))
    with pytest.raises(ValueError, match=r"to search on and \d to report on, at least 7 and 1 are needed"):
        evaluator.rewarding(f"tasks:{file}")


def test_gym_makes_it_from_names(tiny_folder, text_file, questions):
    arguments = plainly(seq_len=64, search_windows=2, calibration_windows=2)
    made = {"model": str(tiny_folder), "text": str(text_file), "reward": f"tasks:{questions}", **arguments}
    env = gym.make("ffprune/PruneBandit-v0", **made)
    assert json.loads(env.spec.to_json())["kwargs"]["reward"] == f"tasks:{questions}"
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.zeros(6, dtype=np.float32))
    assert reward == info["dense_ppl"] / info["ppl"] > 0
    text = gym.make("ffprune/PruneBandit-v0", **made | {"reward": "ppl"})
    assert text.unwrapped.evaluator.prunable is env.unwrapped.evaluator.prunable
    with pytest.raises(ValueError, match="needs a language model, not SurrogateEvaluator"):
        gym.make("ffprune/PruneBanditSurrogate-v0", reward="tasks")


def test_tasks_of_lm_eval_are_rewarded_and_then_not_asked(evaluator, data, tmp_path):
    evaluator.data_dir = data
    own = evaluator.rewarding("tasks:piqa,arc_easy")
    assert list(own.objectives.terms[0].tasks) == ["piqa", "arc_easy"]
    seen = set(own.objectives.seen)
    with open_tasks(["piqa", "boolq"], data) as opened:
        asked = {name: [question.asked for question in questions_of(name, task)] for name, task in opened.items()}
        assert unseen_alone(opened, parse_reward("ppl"), data) == ""
        digest = unseen_alone(opened, parse_reward("tasks:piqa,arc_easy"), data)
        left = {name: [question.asked for question in questions_of(name, task)] for name, task in opened.items()}
    assert left["boolq"] == asked["boolq"]
    assert left["piqa"] == [x for x in asked["piqa"] if x not in seen]
    assert 0 < len(left["piqa"]) < len(asked["piqa"])
    with open_tasks(["piqa", "boolq"], data) as opened:
        assert unseen_alone(opened, parse_reward("ppl"), data, held_out=True) != digest
        assert [x.asked for x in questions_of("piqa", opened["piqa"])] == left["piqa"]
        assert len(questions_of("boolq", opened["boolq"])) < len(asked["boolq"])


def test_questions_of_a_user_that_are_zero_shot_questions_are_not_asked(data):
    row = json.loads((data / "piqa.jsonl").read_text().splitlines()[5])
    with open_tasks(["piqa"], data) as opened:
        before = [x.asked for x in questions_of("piqa", opened["piqa"])]
        keep_unseen(opened, [row["goal"].upper()])
        after = [x.asked for x in questions_of("piqa", opened["piqa"])]
    assert [x for x in before if x not in after] == [before[5]]
    with open_tasks(["piqa"], data) as opened, pytest.raises(ValueError, match="all of its questions were searched on"):
        keep_unseen(opened, before)


def test_all_tasks_are_known(shared_data):
    """On real data: every task has questions with answers, and questions on both sides."""
    with open_tasks(TASKS, shared_data / "zero_shot") as opened:
        for name in ("openbookqa", "winogrande"):
            asked = questions_of(name, opened[name])
            assert len(asked) >= 500
            assert all(0 <= question.answer < len(question.lines) for question in asked)
