"""Workers change how fast a search is and nothing else: not their number, not who answers first, not a death."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

import numpy as np
import pytest
from plain import plainly
from tiny_runs import best_of, run_main, samples_of, settings

from ffprune_env.search import worker_places as places
from ffprune_env.search.workers import Question, Workers, WorkersVecEnv, _Worker

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def arguments(tiny_folder, text_file):
    return {
        "model": str(tiny_folder),
        "text": str(text_file),
        **plainly(seq_len=64, search_windows=2, calibration_windows=2),
    }


@pytest.mark.parametrize(
    ("name", "says"),
    [("weights", "the weights of .* have changed since the run was begun elsewhere"), ("search text", "words.txt has")],
)
def test_a_worker_with_another_model_or_text_of_that_name_does_not_answer(arguments, name, says):
    known = _Worker(arguments).identity
    question = Question((3,) * 6, 1, kl=False)
    assert np.isfinite(_Worker(arguments, known).measure(question)[0])
    workers = Workers(1, arguments, identity=known | {name: "another"})
    with pytest.raises(RuntimeError, match=says):
        workers.ask([question])
    workers.close()


#: Nothing is measured but candidates and what is compared with them at the end.
PLAIN = ("--no-save-model", "--no-fresh-windows", "--eval-every", "0")


def search(ppo_script, tiny_folder, text_file, run, workers):
    flags = settings(tiny_folder, text_file, run, workers=workers, evaluations=16)
    assert run_main(ppo_script, [*flags, *PLAIN]) == 0
    return samples_of(run), best_of(run)


def test_the_number_of_workers_changes_nothing_nor_does_a_death(
    ppo_script, tiny_folder, text_file, tmp_path, monkeypatch, caplog
):
    results = {n: search(ppo_script, tiny_folder, text_file, tmp_path / f"run{n}", n) for n in (1, 2, 3)}
    assert results[1] == results[2] == results[3]

    deaths = []
    ask = Workers.ask

    def ask_after_a_death(self, questions, *heard):
        """Kills the process that the first question of the first rollout goes to."""
        if questions and not deaths:
            deaths.append(ray.get(self.actors[0].__ray_call__.remote(lambda worker: os.getpid())))
            os.kill(deaths[0], signal.SIGKILL)
        return ask(self, questions, *heard)

    monkeypatch.setattr(Workers, "ask", ask_after_a_death)
    killed = search(ppo_script, tiny_folder, text_file, tmp_path / "killed", 2)
    assert killed == results[1]
    assert caplog.text.count("worker 0 died: it is replaced, and its candidate measured again") == 1
    assert not any(sample["collapsed"] for sample in killed[0])
    assert json.loads((tmp_path / "killed" / "manifest.json").read_text())["seed"] == 0


def test_on_fresh_windows_workers_measure_the_start_beside_the_candidates(
    ppo_script, tiny_folder, text_file, tmp_path, monkeypatch
):
    asked, starts, results, ask, step = [], set(), {}, Workers.ask, WorkersVecEnv.step_wait
    monkeypatch.setattr(
        WorkersVecEnv, "step_wait", lambda self: starts.add(tuple(self.beside(0.2).tolist())) or step(self)
    )
    monkeypatch.setattr(Workers, "ask", lambda self, questions, *a: asked.append(questions) or ask(self, questions, *a))
    for n in (1, 2):
        flags = settings(tiny_folder, text_file, tmp_path / f"run{n}", workers=n, evaluations=8, init="ffn-only")
        fresh = ["--fresh-windows", "--pool-windows", "6", "--patience", "1", "--watch-windows", "2", "--no-save-model"]
        assert run_main(ppo_script, [*flags, *fresh, "--no-baselines"]) == 0
        results[n] = samples_of(tmp_path / f"run{n}"), best_of(tmp_path / f"run{n}")
    assert results[1] == results[2]
    samples, _ = results[1]
    noted = [json.loads(line)[:2] for line in (tmp_path / "run1" / "measured.jsonl").read_text().splitlines()]
    rollouts = samples[:4], samples[4:]
    (start,) = starts
    assert len(asked) == 4
    for rollout, questions in zip(rollouts, asked, strict=False):  # at once, each allocation once
        kept = [question.kept for question in questions]
        assert len(kept) == len(set(kept))
        assert set(kept) == {tuple(sample["kept"]) for sample in rollout} | {start}
        assert {question.n_samples for question in questions} == {tuple(sample["windows"]) for sample in rollout}
        assert [list(start), rollout[0]["windows"]] in noted


def test_over_a_range_the_number_of_workers_changes_nothing(ppo_script, tiny_folder, text_file, tmp_path):
    """Every rollout is at a sparsity of its own, which the workers are told, and so is the policy that is left."""
    results = []
    for n in (0, 1, 3):
        changes = {"sparsity": "0.1:0.4", "evaluations": 16, "init": "ffn-only", "workers": n}
        flags = settings(tiny_folder, text_file, tmp_path / f"run{n}", **changes)
        assert run_main(ppo_script, [*flags, "--no-baselines"]) == 0
        policy = (tmp_path / f"run{n}" / "checkpoints" / "policy.safetensors").read_bytes()
        results.append((samples_of(tmp_path / f"run{n}"), policy))
    assert results[1] == results[2]
    assert len({sample["target_sparsity"] for sample in results[0][0]}) == 4  # one for every rollout
    asked = [[sample["target_sparsity"] for sample in samples] for samples, _ in results]
    assert asked[0] == asked[1]  # without workers other candidates are drawn, at the same sparsities


def test_answers_of_a_rollout_that_was_cut_off_are_kept(
    ppo_script, tiny_folder, text_file, tmp_path, monkeypatch, capsys, request
):
    """The first of a rollout are known when the process ends: they are not measured again."""
    whole = search(ppo_script, tiny_folder, text_file, tmp_path / "whole", 1)
    flags = settings(tiny_folder, text_file, tmp_path / "run", workers=1, evaluations=16)
    measured = []
    log = sys.modules["ffprune_env.run.sample_log"].SampleLog
    note = log.note

    def die_at_the_sixth(self, *answer):
        note(self, *answer)
        measured.append(answer)
        if len(measured) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(log, "note", die_at_the_sixth)
    assert run_main(ppo_script, [*flags, *PLAIN]) == 130
    assert len((tmp_path / "run" / "measured.jsonl").read_text().splitlines()) == 6
    again = []
    monkeypatch.setattr(log, "note", lambda self, *answer: again.append(answer))
    request.getfixturevalue("other_scores")  # as of another number of threads: the order is that of the run
    assert run_main(ppo_script, ["--resume", tmp_path / "run", "--workers", "2"]) == 0
    assert (samples_of(tmp_path / "run"), best_of(tmp_path / "run")) == whole
    assert len(again) <= 16 - 6
    capsys.readouterr()
    assert run_main(ppo_script, ["--resume", tmp_path / "run", "--workers", "0"]) == 2
    assert "only with any number of workers above 0, got --workers 0" in capsys.readouterr().err


def test_workers_prune_in_the_order_of_the_run_whatever_their_own_scores_say(
    ppo_script, tiny_folder, text_file, tmp_path, monkeypatch, other_scores
):
    """The scores are turned round in this process alone: the workers', of another process, would order otherwise."""
    build = sys.modules["ffprune_env.evaluators.build"]
    made = []
    monkeypatch.setattr(
        ppo_script, "build_evaluator", lambda *a, **s: made.append(build.build_evaluator(*a, **s)) or made[0]
    )
    samples, _ = search(ppo_script, tiny_folder, text_file, tmp_path / "run", 1)
    evaluator = made[0]
    evaluator.forget()
    for sample in samples:
        assert evaluator.measure(np.array(sample["kept"]), sample["n_samples"]) == pytest.approx(
            sample["ppl"], rel=1e-5
        )


def test_a_cluster_whose_places_are_taken_is_not_waited_for_in_silence(arguments, monkeypatch, caplog):
    monkeypatch.setattr(places, "_PATIENCE_S", 0.3)
    monkeypatch.setattr(places, "_LIMIT_S", 1.2)

    @ray.remote(num_cpus=2)
    class Other:
        def here(self):
            return True

    other = Other.remote()
    assert ray.get(other.here.remote())
    with pytest.raises(ValueError, match=r"2 workers need a CPU each, and after \d s 1 of 3 in the cluster are free"):
        Workers(2, arguments)
    assert "waiting for the Ray cluster: 2 workers need a CPU each, and 1 of 3 are free" in caplog.text
    monkeypatch.setattr(places, "_LIMIT_S", 60.0)
    ray.kill(other)  # what is given back is taken
    workers = Workers(2, arguments)
    workers.close()


def test_workers_that_have_no_place_are_refused(arguments):
    with pytest.raises(ValueError, match="9 workers need a CPU each, and there are 3: ask for fewer with --workers"):
        Workers(9, arguments)
    with pytest.raises(ValueError, match="1 workers need a GPU each, and there are 0"):
        Workers(1, arguments, on_gpu=True)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_refused_at_once(scheme, arguments, monkeypatch):
    """Ray itself goes on asking there for minutes, and says so on its own standard error alone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        places.require_listening(address)
    places.require_listening("auto")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **settings: pytest.fail("Ray was asked"))
    with pytest.raises(ValueError, match=rf"no Ray cluster at {address}: .*refused; give --ray-address"):
        Workers(1, arguments, address=address)


def test_a_dead_worker_is_replaced_and_its_candidate_measured_again(arguments, caplog):
    workers = Workers(2, arguments)
    questions = [Question((k, 20, 4, 24, 4, 24), 2, kl) for k in (1, 2, 3, 4) for kl in (False, True)]
    before = workers.ask(questions)
    ray.kill(workers.actors[0])
    assert workers.ask(questions) == before
    assert "worker 0 died: it is replaced, and its candidate measured again" in caplog.text
    workers.close()
    assert all((kl is not None) == question.kl for question, (_, kl) in zip(questions, before, strict=True))
    assert len({ppl for ppl, _ in before}) == 4  # gathered by index, and KL comes with the same perplexity


def test_answers_are_those_of_the_model_here(arguments):
    import ffprune_env as ff

    evaluator = ff.load_evaluator(**arguments)
    workers = Workers(1, arguments)
    kept = np.array([3, 20, 4, 24, 1, 9])
    ((ppl, kl),) = workers.ask([Question(tuple(kept.tolist()), 2, True)])
    workers.close()
    assert (ppl, kl) == evaluator.compare(kept, 2)


def test_what_workers_cannot_do_is_an_error_and_not_a_reward(arguments):
    workers = Workers(1, arguments)
    with pytest.raises(RuntimeError, match=r"worker 0 failed: .*99"):
        workers.ask([Question((99,) * 6, 2, False)])
    workers.close()
    workers = Workers(1, arguments | {"model": "/nowhere/at/all"})
    with pytest.raises(RuntimeError, match="a candidate brought down 3 workers"):
        workers.ask([Question((1,) * 6, 2, False)])
    workers.close()
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        Workers(0, arguments)


def test_a_cluster_that_was_there_before_stays(arguments):
    workers = Workers(1, arguments)
    workers.close()
    assert ray.is_initialized()


def test_what_workers_read_is_counted_with_what_each_of_them_read_to_be_ready(
    ppo_script, arguments, tiny_folder, text_file, tmp_path
):
    flags = ["--no-save-model", "--no-fresh-windows", "--no-baselines", "--eval-every", "0"]
    costs = {}
    for n in (0, 1, 2):
        run = tmp_path / f"run{n}"
        asked = settings(tiny_folder, text_file, run, workers=n, evaluations=8, init="ffn-only")
        assert run_main(ppo_script, [*asked, *flags]) == 0
        costs[n] = json.loads((run / "best.json").read_text())["cost"]
        assert costs[n]["finalists"]["device_hours"] == pytest.approx(costs[n]["finalists"]["seconds"] / 3600)
    ready = _Worker(arguments | {"fresh_windows": False, "calibration": "ridge"}).untold.forward_tokens
    search = {n: cost["search"]["forward_tokens"] for n, cost in costs.items()}
    assert ready > 0
    assert search[2] - search[1] == ready
    kept = {(tuple(x["kept"]), x["n_samples"]) for x in samples_of(tmp_path / "run1")}
    dense = 64  # here, on one window: on two it was measured before
    assert search[1] == ready + 64 * sum(n for _, n in kept) + dense
    for n, cost in costs.items():
        held = cost["search"]["device_hours"] * 3600 / cost["search"]["seconds"]
        assert held == pytest.approx(max(1, n))
