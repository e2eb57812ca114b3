"""Zero-shot accuracy: lm-eval's own numbers, the same for every batch size and for a model in memory or on disk."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import lm_eval
import lm_eval.api.task
import lm_eval.evaluator
import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, load_script, tiny_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import ffprune_env as ff
from ffprune_env.evaluators.zero_shot import TaskResult, ZeroShot, evaluate_zero_shot, score_tasks
from ffprune_env.evaluators.zero_shot_tasks import TASKS, open_tasks
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores

ROOT = Path(__file__).parents[2]
QUESTIONS = 8


def words(rng, most):
    """Some letters; tiny models read 128 bytes at most."""
    return "".join(rng.choice(list("abcdefgh"), rng.integers(2, most)))


def rows(task, n=QUESTIONS, seed=0):
    """Random questions of random lengths, in the columns of the task."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        choices = {"text": [words(rng, 20) for _ in range(4)], "label": ["A", "B", "C", "D"]}
        answer = {"choices": choices, "answerKey": "ABCD"[rng.integers(4)]}
        yield {
            "boolq": {"passage": words(rng, 60), "question": words(rng, 20), "label": i % 2},
            "piqa": {"goal": words(rng, 60), "sol1": words(rng, 20), "sol2": words(rng, 20), "label": i % 2},
            "hellaswag": {
                "activity_label": words(rng, 9), "ctx_a": words(rng, 30), "ctx_b": words(rng, 30),
                "endings": choices["text"], "label": str(i % 4),
            },
            "winogrande": {
                "sentence": f"{words(rng, 40)} _ {words(rng, 20)}", "option1": words(rng, 9), "option2": words(rng, 9),
                "answer": str(1 + i % 2),
            },
            "openbookqa": {"question_stem": words(rng, 60), **answer},
        }.get(task, {"question": words(rng, 60), **answer})  # fmt: skip


def write_rows(folder, task, lines):
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for i, task in enumerate(TASKS):
        write_rows(folder, task, rows(task, seed=i))
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    """lm-eval wants one that knows how a text ends."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)
    return tokenizer


@pytest.fixture
def likelihoods(monkeypatch):
    """Every log-likelihood that lm-eval computes, in the order of the questions."""
    seen = []
    scored = HFLM._loglikelihood_tokens

    def record(*args, **kwargs):
        scores = scored(*args, **kwargs)
        seen.append([score for score, _ in scores])
        return scores

    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", record)
    return lambda: np.concatenate([seen.pop(0) for _ in range(len(seen))])


def ranked(family):
    """A ranked tiny model in float64, its calibration, and what to keep."""
    prunable = PrunableModel(tiny_model(family))
    stats = collect_statistics(prunable, torch.randint(1, 256, (4, 48), generator=torch.Generator().manual_seed(0)))
    prunable.rank(wanda_scores(prunable, stats))
    rng = np.random.default_rng(0)
    kept = np.array([rng.integers(1, unit.n_groups) for unit in prunable.units])
    return prunable, RidgeCalibration(prunable, stats), kept


def log_likelihood(model, tokenizer, context, answer):
    """The slow way: one question with one answer at a time."""
    start = len(tokenizer(context)["input_ids"])
    tokens = torch.tensor(tokenizer(f"{context} {answer}")["input_ids"])
    with torch.no_grad():
        logs = model(tokens[None]).logits[0].log_softmax(-1)
    return float(sum(logs[i - 1, tokens[i]] for i in range(start, len(tokens))))


@pytest.mark.parametrize("family", ["llama-gqa", "opt"])
def test_batch_size_memory_and_disk_make_no_difference(family, data, tokenizer, likelihoods, tmp_path):
    prunable, calibration, kept = ranked(family)
    ff.save_pruned(prunable, kept, tmp_path / "model", tokenizer, calibration)
    before = [p.detach().clone() for p in prunable.model.parameters()]
    with open_tasks(TASKS, data) as tasks:
        dense = score_tasks(prunable.model, tokenizer, tasks)
        dense_likelihoods = likelihoods()
        with prunable.pruned(kept, calibration) as model:
            one, expected = score_tasks(model, tokenizer, tasks, batch_size=1), likelihoods()
            assert score_tasks(model, tokenizer, tasks, batch_size=8) == one
            np.testing.assert_allclose(likelihoods(), expected, rtol=0, atol=1e-9)
        assert all(torch.equal(p, q) for p, q in zip(before, prunable.model.parameters(), strict=True))
        assert score_tasks(ff.load_pruned(tmp_path / "model"), tokenizer, tasks) == one
        np.testing.assert_allclose(likelihoods(), expected, rtol=0, atol=1e-9)
        assert score_tasks(prunable.model, tokenizer, tasks) == dense
        np.testing.assert_allclose(likelihoods(), dense_likelihoods, rtol=0, atol=1e-9)
    assert np.abs(dense_likelihoods - expected).max() > 0.1
    assert one.tasks.keys() == set(TASKS)
    assert all(result.n == QUESTIONS for result in one.tasks.values())


def test_where_memory_runs_out_fewer_are_read_at_once_from_then_on(data, tokenizer, monkeypatch, caplog):
    model = tiny_model("llama-gqa")
    with open_tasks(TASKS, data) as tasks:
        expected = score_tasks(model, tokenizer, tasks, batch_size=2)
        sizes, call = [], HFLM._model_call

        def short_of_memory(self, inps, *args, **kwargs):
            sizes.append(len(inps))
            if len(inps) > 2:
                raise torch.OutOfMemoryError
            return call(self, inps, *args, **kwargs)

        steps = []
        monkeypatch.setattr(HFLM, "_model_call", short_of_memory)
        assert score_tasks(model, tokenizer, tasks, batch_size=8, show=lambda *x: steps.append(x)) == expected
        assert sizes[:2] == [8, 4]
        assert max(sizes[2:]) <= 4
        assert all(done <= most for _, done, most in steps)
        assert "out of memory with 8 windows at once: going on with 4" in caplog.text
        monkeypatch.setattr(HFLM, "_model_call", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError()))
        with pytest.raises(torch.OutOfMemoryError):
            score_tasks(model, tokenizer, tasks, batch_size=8)


def test_the_numbers_are_those_of_lm_evals_own_entry_point(data, tokenizer, monkeypatch):
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)  # which asks pip and nvidia-smi
    model = tiny_model("llama-gqa")
    with open_tasks(TASKS, data) as tasks:
        ours = score_tasks(model, tokenizer, tasks, limit=5)
        theirs = lm_eval.simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer),
            tasks=[*tasks.values()],
            limit=5,
            task_manager=TaskManager(include_defaults=False),
        )
    for name, result in ours.tasks.items():
        expected = theirs["results"][name]
        assert (result.acc, result.acc_stderr) == (expected["acc,none"], expected["acc_stderr,none"])
        assert (result.acc_norm, result.acc_norm_stderr) == (
            expected.get("acc_norm,none"),
            expected.get("acc_norm_stderr,none"),
        )


def test_the_likeliest_answer_is_the_one_that_counts(tokenizer, tmp_path):
    model = tiny_model("llama")
    asked = list(rows("piqa"))
    plain, per_character = [], []
    for row in asked:
        answers = [row["sol1"], row["sol2"]]
        logs = [log_likelihood(model, tokenizer, f"Question: {row['goal']}\nAnswer:", answer) for answer in answers]
        plain.append(int(np.argmax(logs)))
        per_character.append(int(np.argmax([x / len(answer) for x, answer in zip(logs, answers, strict=True)])))
    assert plain != per_character
    for right, acc, acc_norm in (
        (plain, 1.0, np.mean(np.equal(plain, per_character))),
        (per_character, np.mean(np.equal(plain, per_character)), 1.0),
        ([1 - x for x in plain], 0.0, np.mean(np.not_equal(plain, per_character))),
    ):
        write_rows(tmp_path, "piqa", [{**row, "label": x} for row, x in zip(asked, right, strict=True)])
        result = evaluate_zero_shot(model, tokenizer, tmp_path, tasks=["piqa"]).tasks["piqa"]
        assert (result.acc, result.acc_norm) == (pytest.approx(acc), pytest.approx(acc_norm))
        assert result.acc_stderr == pytest.approx(math.sqrt(acc * (1 - acc) / (QUESTIONS - 1)))


def test_the_average_takes_the_metrics_of_the_paper(data, tokenizer):
    tasks = {
        "boolq": TaskResult(0.6, 0.03, None, None, 9, "acc"),
        "piqa": TaskResult(0.1, 0.5, 0.8, 0.04, 9, "acc_norm"),
    }
    assert ZeroShot(tasks).average == pytest.approx(0.7)
    assert ZeroShot(tasks).average_stderr == pytest.approx(0.025)
    single = TaskResult(1.0, None, None, None, 1, "acc")
    assert ZeroShot({**tasks, "winogrande": single}).average == pytest.approx(0.8)
    assert ZeroShot({**tasks, "winogrande": single}).average_stderr is None

    measured = evaluate_zero_shot(tiny_model("llama"), tokenizer, data)
    by_acc = {name for name, result in measured.tasks.items() if result.averaged == "acc"}
    assert by_acc == {name for name, result in measured.tasks.items() if result.acc_norm is None}
    assert by_acc == {"boolq", "winogrande"}
    scores = [x.acc if name in by_acc else x.acc_norm for name, x in measured.tasks.items()]
    assert measured.average == pytest.approx(np.mean(scores))


def test_limit_takes_the_first_questions(data, tokenizer, tmp_path):
    model = tiny_model("llama")
    for task in TASKS:
        lines = (data / f"{task}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{task}.jsonl").write_text("".join(lines[:5]))
    limited = evaluate_zero_shot(model, tokenizer, data, limit=5)
    assert limited == evaluate_zero_shot(model, tokenizer, tmp_path)
    assert all(result.n == 5 for result in limited.tasks.values())
    assert evaluate_zero_shot(model, tokenizer, tmp_path, limit=99, tasks=["piqa"]).tasks["piqa"].n == 5
    one = evaluate_zero_shot(model, tokenizer, data, limit=1, tasks=["piqa"])
    assert (one.tasks["piqa"].n, one.tasks["piqa"].acc_stderr, one.average_stderr) == (1, None, None)


def test_nothing_is_left_behind(data, tokenizer, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    bar, level = lm_eval.api.task.tqdm, logging.getLogger("lm_eval").level
    datasets.enable_progress_bars()
    bare = byte_tokenizer()
    bare.eos_token = tokenizer.eos_token
    evaluate_zero_shot(tiny_model("llama"), bare, data)
    assert list(tmp_path.iterdir()) == []
    assert bare.pad_token is None  # lm-eval gives its own copy one
    assert (lm_eval.api.task.tqdm, logging.getLogger("lm_eval").level) == (bar, level)
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


def test_progress_ends_at_its_end(data, tokenizer):
    steps = []
    evaluate_zero_shot(
        tiny_model("llama"), tokenizer, data, tasks=("boolq", "piqa"), batch_size=5, show=lambda *x: steps.append(x)
    )
    for task in ("boolq", "piqa"):
        counts = [(done, total) for name, done, total in steps if name == task]
        assert [done for done, _ in counts] == sorted({done for done, _ in counts})
        assert counts[-1] == (2 * QUESTIONS, 2 * QUESTIONS)


def test_numbers_that_mean_little_are_said_to(tokenizer, tmp_path, caplog):
    row = next(rows("piqa"))
    write_rows(tmp_path, "piqa", [row, {**row, "goal": 200 * "a"}])
    evaluate_zero_shot(tiny_model("llama"), tokenizer, tmp_path, tasks=["piqa"])
    assert "piqa: 2 of 4 questions with an answer were cut from the left, to the 128 tokens" in caplog.text
    assert "no finite likelihood" not in caplog.text
    broken = tiny_model("llama")
    broken.lm_head.weight.data.fill_(torch.nan)
    result = evaluate_zero_shot(broken, tokenizer, tmp_path, limit=1, tasks=["piqa"])
    assert math.isnan(result.average)  # the first answer would be taken, which is the right one of half of them
    assert "piqa: 2 of 2 questions with an answer have no finite likelihood" in caplog.text


def test_what_cannot_be_measured_is_refused(data, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model = tiny_model("llama")
    write_rows(tmp_path, "boolq", rows("boolq"))
    write_rows(tmp_path, "piqa", [{"goal": "a", "sol1": "b", "sol2": "c"}])
    (tmp_path / "winogrande.jsonl").write_text("")
    (tmp_path / "arc_easy.jsonl").write_text(f"{json.dumps(next(rows('arc_easy')))}\nnot JSON\n")
    for settings, error, message in (
        ({"limit": 0}, ValueError, "limit must be at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"tasks": ["boolq", "arc"]}, ValueError, "unknown tasks arc; allowed are boolq, piqa, .*openbookqa"),
        ({"tasks": []}, ValueError, "unknown tasks .none given."),
        (
            {"tasks": ["boolq", "openbookqa"]},
            OSError,
            "openbookqa.jsonl is missing; tasks with a file there: boolq, piqa, winogrande, arc_easy",
        ),
        ({"data_dir": tmp_path / "absent"}, OSError, "absent/boolq.jsonl is missing; .* there: none"),
        ({"tasks": ["piqa"]}, ValueError, "piqa.jsonl cannot be read as piqa: its first line has no label"),
        ({"tasks": ["winogrande"]}, ValueError, "winogrande.jsonl cannot be read as winogrande"),
        ({"tasks": ["arc_easy"]}, ValueError, "arc_easy.jsonl cannot be read as arc_easy"),
        ({"data_dir": None}, OSError, "the data of boolq.* comes from the Hugging Face hub.*use --data-dir"),
    ):
        with pytest.raises(error, match=message) as caught:
            evaluate_zero_shot(model, tokenizer, **{"data_dir": tmp_path, **settings})
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="a bos or an eos token"):
        evaluate_zero_shot(model, byte_tokenizer(), data)


def test_all_seven_sets_can_be_read(shared_data, tokenizer):
    with open_tasks(TASKS, shared_data / "zero_shot") as tasks:
        n = {name: len(task.eval_docs) for name, task in tasks.items()}
    assert n == {
        "boolq": 3270, "piqa": 1838, "hellaswag": 2500, "winogrande": 1267, "arc_easy": 2376, "arc_challenge": 1172,
        "openbookqa": 500,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama-gqa").float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate/zero_shot.py", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "300")
    code = load_script("evaluate/zero_shot.py").main()
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_script_prints_and_writes_what_the_library_measures(folder, data, monkeypatch, capsys, tmp_path):
    arguments = ("--data-dir", data, "--limit", 5, "--dtype", "float32", "--json", tmp_path / "x.json")
    code, out, _ = run_main(monkeypatch, capsys, folder, *arguments)
    assert code == 0
    written = json.loads((tmp_path / "x.json").read_text())
    expected = evaluate_zero_shot(*ff.load_model(str(folder), "float32"), data, limit=5)
    assert {name: TaskResult(**result) for name, result in written["tasks"].items()} == expected.tasks
    assert (written["average"], written["average_stderr"]) == (expected.average, expected.average_stderr)
    assert (written["limit"], written["data_dir"], written["lm_eval"]) == (5, str(data), lm_eval.__version__)
    cells = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert f"acc {100 * expected.tasks['boolq'].acc:.2f}" in cells["boolq"]
    assert f"acc_norm {100 * expected.tasks['piqa'].acc_norm:.2f}" in cells["piqa"]
    assert f"{100 * expected.average:.2f} ± {100 * expected.average_stderr:.2f}" in cells["average of 7"]


def test_bad_input_gets_one_line(folder, data, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for arguments, message in (
        ((folder, "--data-dir", data, "--limit", 0), "limit must be at least 1, got 0"),
        ((folder, "--data-dir", data, "--batch-size", -1), "batch_size must be at least 1, got -1"),
        ((folder, "--data-dir", data, "--tasks", "mmlu"), "unknown tasks mmlu; allowed are boolq, piqa"),
        ((folder, "--data-dir", tmp_path), "boolq.jsonl is missing"),
        ((folder, "--data-dir", data, "--json", tmp_path / "absent" / "x.json"), "there is no folder"),
        (("absent", "--data-dir", data), "unknown model 'absent'"),
        (("absent",), "use --data-dir"),  # found out before the model is looked for
    ):
        code, out, err = run_main(monkeypatch, capsys, *arguments)
        assert code == 2
        assert out == ""
        (line,) = err.splitlines()
        assert message in line


def test_a_lack_of_memory_is_one_line(folder, data, monkeypatch, capsys):
    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(HFLM, "_model_call", no_memory)
    code, out, err = run_main(monkeypatch, capsys, folder, "--data-dir", data, "--limit", 1, "--batch-size", 1)
    assert (code, err) == (1, "error: CUDA out of memory. Tried to allocate 2 GiB\n")
    assert "average" not in out


def test_ctrl_c_ends_it(folder, data, monkeypatch, capsys):
    script = load_script("evaluate/zero_shot.py")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "score_tasks", interrupted)
    code, _, err = run_main(monkeypatch, capsys, folder, "--data-dir", data)
    assert (code, err) == (130, "interrupted; what was measured is above\n")


def test_no_script_hides_a_module(folder, data):
    """Python puts the folder of the script first on its path, and lm-eval imports a package named like the folder."""
    program = """if True:
        import pathlib, runpy, sys
        sys.path[0] = "evaluate"
        try:
            runpy.run_path("evaluate/zero_shot.py", run_name="__main__")
        except SystemExit as end:
            assert end.code == 0, end.code
        sys.path.append(".")
        import evaluate
        assert evaluate.__file__ is not None, evaluate.__path__
        scripts = pathlib.Path("evaluate").resolve()
        files = {name: getattr(x, "__file__", None) for name, x in sys.modules.items() if not name.endswith("main__")}
        hidden = [name for name, file in files.items() if file and scripts in pathlib.Path(file).resolve().parents]
        assert hidden == [], hidden
    """
    command = [sys.executable, "-c", program, folder, "--data-dir", data, "--limit", "2", "--tasks", "boolq"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    assert "average of 1" in done.stdout
