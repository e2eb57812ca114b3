"""A run has its folder before it begins to work, and leaves nothing if it could not."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from tiny_runs import SCRIPT, run_main, settings

from ffprune_env.cli import flag_groups
from ffprune_env.run.claim import TakenError
from ffprune_env.run.folder import RunFolder


def claim(name, begin, got, end):
    begin.wait()
    run = RunFolder.claim_next(name)
    got.put(run.path.name)
    end.wait()


def test_processes_that_ask_at_once_get_a_folder_each(tmp_path):
    fork = multiprocessing.get_context("fork")  # a new interpreter would import for seconds
    begin, got, end = fork.Barrier(3), fork.Queue(), fork.Event()
    arguments = (tmp_path / "runs" / "model-text-s20", begin, got, end)
    processes = [fork.Process(target=claim, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    names = sorted(got.get(timeout=60) for _ in processes)
    end.set()
    for process in processes:
        process.join()
    assert names == ["model-text-s20", "model-text-s20-2", "model-text-s20-3"]


def test_threads_that_claim_and_give_up_at_once_never_share_a_folder(tmp_path):
    """Whoever gives up takes folder and lock away under the eyes of those who want them."""
    threads = 4
    held, barrier = set(), Barrier(threads)

    def work(_):
        barrier.wait()
        for _ in range(40):
            run = RunFolder.claim_next(tmp_path / "runs" / "x")
            assert run.path not in held
            held.add(run.path)
            held.remove(run.path)
            run.give_up()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    assert list(tmp_path.glob("runs/*")) == []


def test_a_folder_is_given_up_with_all_that_was_made_for_it_and_nothing_else(tmp_path):
    run = RunFolder(tmp_path / "a" / "b" / "c")
    run.claim()
    other = RunFolder(tmp_path / "a" / "b" / "d")
    other.claim()
    with pytest.raises(TakenError, match="another process works on run folder"):
        RunFolder(run.path).claim()
    run.give_up()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["d"]
    other.give_up()
    assert not other.path.exists()
    (tmp_path / "mine").mkdir()
    mine = RunFolder(tmp_path / "mine")
    mine.claim()
    mine.give_up()
    assert list(mine.path.iterdir()) == []
    mine.claim()
    mine.begin({"seed": 0}, {"weights": "x"}, {})
    mine.give_up()
    assert mine.read_config() == {"seed": 0}
    with pytest.raises(TakenError, match="already holds another run: choose another with --run"):
        mine.claim()


def test_a_default_name_that_is_taken_gets_a_number(
    ppo_script, tiny_folder, text_file, tmp_path, monkeypatch, capsys, caplog
):
    """Taken by a run that is only loading, and by one that was finished."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flag_groups.time, "strftime", lambda *_: "now")
    caplog.set_level("INFO")
    name = f"{tiny_folder.name}-{text_file.stem}-s20-now"
    loading, finished = (RunFolder(Path("runs") / x) for x in (name, f"{name}-2"))
    loading.claim()
    finished.claim()
    finished.begin({"seed": 0}, {}, {})
    finished.unlock()
    flags = settings(tiny_folder, text_file, "left out")[:-2]
    assert run_main(ppo_script, [*flags, "--no-save-model"]) == 0
    assert (Path("runs") / f"{name}-3" / "best.json").is_file()
    assert f"runs/{name} is taken: this run goes to runs/{name}-3" in caplog.messages
    assert run_main(ppo_script, [*flags, "--run", loading.path]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "another process works on run folder" in line
    loading.give_up()
    assert not loading.path.exists()


def test_a_run_that_fails_or_is_stopped_before_it_has_anything_leaves_nothing(
    ppo_script, tiny_folder, text_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    flags = settings(tiny_folder, text_file, "left out")[:-2]
    assert run_main(ppo_script, [*flags, "--test-windows", "100000"]) == 2
    assert list(tmp_path.iterdir()) == []

    def interrupted(*args, **kwargs):
        assert len(list((tmp_path / "runs").iterdir())) == 1, "claimed before the work begins"
        raise KeyboardInterrupt

    monkeypatch.setattr(ppo_script, "build_evaluator", interrupted)
    assert run_main(ppo_script, flags) == 130
    assert list(tmp_path.iterdir()) == []
    assert "nothing is lost" in capsys.readouterr().err


@pytest.mark.slow
def test_three_runs_of_one_shell_loop_all_end_well(tiny_folder, text_file, tmp_path):
    flags = settings(tiny_folder, text_file, "left out")[:-2]
    command = [sys.executable, str(SCRIPT), *flags, "--no-save-model"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([*command, "--seed", str(seed)], cwd=tmp_path, env=environment) for seed in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    seeds = [json.loads((run / "manifest.json").read_text())["seed"] for run in (tmp_path / "runs").iterdir()]
    assert sorted(seeds) == [0, 1, 2]
