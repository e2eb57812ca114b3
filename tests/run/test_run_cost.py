"""What a run cost is in best.json, exactly: a witness in the model counts the same, also where a run was cut off."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
from conftest import load_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import cut_off, run_main, settings
from witness import Witness

from ffprune_env.cli import model_flags
from ffprune_env.evaluators.ledger import PARTS, in_sum
from ffprune_env.lm.cost import Cost
from ffprune_env.run.cost_log import CostLog
from ffprune_env.run.cost_report import cost_content, cost_table
from ffprune_env.run.tensorboard import CostCallback

# Of two windows of 64 tokens, every 24th.
OPENED = 6
COUNTED = ("forward_passes", "backward_passes", "forward_tokens", "backward_tokens")


@contextmanager
def witnessed(ppo_script):
    """Witnesses of the models that runs load; of what is measured only to be reported they hear nothing."""
    witnesses, load, report = [], model_flags.load_model, ppo_script.report

    def loaded(*arguments):
        model, tokenizer = load(*arguments)
        witnesses.append(Witness(model, 64))
        return model, tokenizer

    def reported(*arguments):
        with witnesses[-1].looking_away():
            return report(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_flags, "load_model", loaded)
        patch.setattr(ppo_script, "report", reported)
        yield witnesses


def cost_of(run):
    return json.loads((run / "best.json").read_text(), parse_constant=pytest.fail)["cost"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init": "fisher-iterated", "init-steps": 2}, []),
        ({"init": "ffn-only", "calibration": "ridge"}, ["--no-fresh-windows", "--eval-every", "0"]),
        ({"init": "ffn-only", "calibration": "none", "reward-model": "cut", "criterion": "wanda"}, ["--patience", "1"]),
        ({"init": "none", "reward": "kl", "sparsity": "0.2:0.3"}, []),
        ({"init": "fisher", "evaluations": 0}, []),
    ],
)
def test_the_cost_of_a_run_is_what_went_through_its_model(ppo_script, tiny_folder, text_file, tmp_path, changes, words):
    run = tmp_path / "run"
    flags = [*settings(tiny_folder, text_file, run, **changes), *words, "--no-baselines", "--no-save-model"]
    with witnessed(ppo_script) as witnesses:
        assert run_main(ppo_script, flags) == 0
    costs, (witness,) = [cost_of(file.parent) for file in sorted(run.rglob("best.json"))], witnesses
    assert len(costs) == (5 if "sparsity" in changes else 1)
    cost = costs[0]
    assert set(cost) == {*PARTS, "total"} - {"limit"} - ({"search"} if changes.get("evaluations") == 0 else set())
    # Eqs. 6-7 are fitted to openings, for all sparsities at once; each has its own beside what all share.
    shared = 0 if changes.get("calibration") == "none" else OPENED
    others = sum(one["calibration"]["forward_tokens"] - shared for one in costs[1:])
    assert cost["total"]["forward_tokens"] + others == witness.forward
    assert cost["total"]["backward_tokens"] == witness.backward
    passed = witness.by_phase
    assert cost.get("search", {"forward_tokens": 0})["forward_tokens"] == passed["search"]
    assert cost["finalists"]["forward_tokens"] == passed["finalists"] > 0
    assert cost["start"]["forward_tokens"] == passed["damage curves"] + passed["improving the start"]
    in_sequence = changes.get("calibration", "sequential") == "sequential"
    assert (cost["calibration"]["forward_tokens"] > shared) is in_sequence
    for name in COUNTED:
        assert cost["total"][name] == pytest.approx(sum(cost[x][name] for x in cost if x != "total"), abs=0.01)
    for part in cost.values():
        assert part["forward_passes"] * 64 == pytest.approx(part["forward_tokens"], abs=1)
        assert part["backward_passes"] * 64 == part["backward_tokens"]
        assert part["device_hours"] == part["seconds"] / 3600


class CutOffError(KeyboardInterrupt):
    """As if the process ended here."""


@pytest.mark.parametrize("step", [7, 12])
def test_what_a_process_spent_that_was_cut_off_counts_too(
    ppo_script, tiny_folder, text_file, tmp_path, monkeypatch, step
):
    run, on_step = tmp_path / "run", CostCallback._on_step

    def cut(self):
        on_step(self)
        if self.num_timesteps == step:
            raise CutOffError
        return True

    flags = [*settings(tiny_folder, text_file, run, init="fisher"), "--no-baselines", "--no-save-model"]
    with witnessed(ppo_script) as witnesses:
        monkeypatch.setattr(CostCallback, "_on_step", cut)
        assert run_main(ppo_script, flags) == 130
        monkeypatch.setattr(CostCallback, "_on_step", on_step)
        with (run / "cost.jsonl").open("a") as file:
            file.write('{"part": "search", "st')
        assert run_main(ppo_script, ["--resume", run]) == 0
    cost, (first, second) = cost_of(run), witnesses
    assert cost["total"]["forward_tokens"] == first.forward + second.forward
    assert cost["total"]["backward_tokens"] == first.backward + second.backward
    assert cost["start"]["backward_tokens"] == 128  # nobody looked for it again
    assert cost["search"]["forward_tokens"] == first.by_phase["search"] + second.by_phase["search"]
    assert first.by_phase["search"] > 0
    assert second.by_phase["search"] < cost["search"]["forward_tokens"]
    assert cost["ranking"]["forward_tokens"] > first.by_phase["statistics"] * 2 - 1  # it was read again


def scalars(run):
    events = EventAccumulator(str(run / "tb")).Reload()
    return {tag: [(x.step, x.value) for x in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_what_a_run_costs_and_what_its_mean_is_worth(ppo_script, whole, tmp_path):
    shown, cost = scalars(whole), cost_of(whole)
    assert [step for step, _ in shown["cost/tokens"]] == [step for step, _ in shown["cost/device_hours"]] == [4, 8, 12]
    spent = [value for _, value in shown["cost/tokens"]]
    assert spent == sorted(spent)
    before_it = cost["ranking"]["forward_tokens"] + cost["start"]["forward_tokens"]
    last_look = 4 * 64  # what the last update made of the mean
    assert spent[-1] == before_it + cost["search"]["forward_tokens"] + OPENED - last_look
    assert 0 < shown["cost/device_hours"][-1][1] < cost["total"]["device_hours"]
    windows = json.loads((whole / "best.json").read_text())["windows"]
    assert windows["watch"] == 4
    assert [step for step, _ in shown["eval/reward"]] == [0, 12]  # every tenth of four rollouts would be dearer
    for i, (_, reward) in enumerate(shown["eval/reward"]):
        assert reward == pytest.approx(shown["eval/dense_ppl"][i][1] / shown["eval/ppl"][i][1])
    cut_off(whole, tmp_path / "run", (whole / "samples.jsonl").stat().st_size)
    assert run_main(ppo_script, ["--resume", tmp_path / "run"]) == 0
    again, more = scalars(tmp_path / "run"), cost_of(tmp_path / "run")
    assert more["search"]["forward_tokens"] == cost["search"]["forward_tokens"] + 4 * 64  # dense, on those to watch on
    assert more["finalists"]["forward_tokens"] == 2 * cost["finalists"]["forward_tokens"]
    assert again["eval/reward"] == shown["eval/reward"]
    assert [step for step, _ in again["cost/tokens"]] == [4, 8, 12]
    assert all(now > then for (_, now), (_, then) in zip(again["cost/tokens"], shown["cost/tokens"], strict=True))


def test_the_last_table_has_a_row_for_every_part(ppo_script, tiny_folder, text_file, tmp_path):
    with ppo_script.console.capture() as said:
        flags = settings(tiny_folder, text_file, tmp_path / "run", evaluations=0, init="fisher")
        assert run_main(ppo_script, [*flags, "--no-baselines", "--no-save-model"]) == 0
    rows = said.get().split("what it cost")[1].split("Perplexity")[0]
    total = cost_of(tmp_path / "run")["total"]
    assert all(name in rows for name in ("ranking", "start", "finalists", "calibration", "all"))
    assert "search" not in rows
    assert f"{total['forward_tokens']:,}" in rows
    shown = scalars(tmp_path / "run")
    assert not any(tag.startswith(("eval", "cost")) for tag in shown)
    assert "watch" not in json.loads((tmp_path / "run" / "best.json").read_text())["windows"]


def test_an_answer_that_is_asked_for_later_tells_what_it_took_then(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["allocate.py", str(whole), "--sparsity", "0.25", "--out", str(tmp_path / "out"), "--no-save-model"]
    )
    assert load_script("evaluate/allocate.py").main() == 0
    cost = cost_of(tmp_path / "out")
    assert set(cost) == {"ranking", "calibration", "total"}
    # Of the dense and of the pruned model, on two windows and their openings, which Eqs. 6-7 are fitted to as well.
    assert cost["calibration"]["forward_passes"] == pytest.approx(2 * (2 + OPENED / 64) + OPENED / 64, abs=0.001)


def test_lines_that_are_none_are_left_out(tmp_path):
    path = tmp_path / "cost.jsonl"
    log = CostLog(path)
    log.add("search", Cost(forward_passes=2, forward_tokens=20))
    log.save(3)
    log.add("search", Cost(forward_passes=1, forward_tokens=10))
    log.save(5)
    log.save(6)  # there is nothing to add
    assert len(path.read_text().splitlines()) == 2
    none = '[1]\n{"part": "sleep", "step": 1}\n{"part": "search", "step": 1, "seconds": "many"}\n{"part": "search", "st'
    path.write_text(path.read_text() + none)
    again = CostLog(path)
    assert again.parts == log.parts == {"search": Cost(forward_passes=3, forward_tokens=30)}
    assert (again.by(2), again.by(4), again.by(5)) == (Cost(), Cost(2, 0, 20), Cost(3, 0, 30))
    again.add("search", Cost(forward_passes=1))
    again.save(7)
    assert in_sum(CostLog(path).parts).forward_passes == 4


def test_passes_are_whole_numbers_where_they_are():
    content = cost_content({"calibration": Cost(forward_passes=2 / 3), "search": Cost(forward_passes=4.0)})
    assert content["search"]["forward_passes"] == 4
    assert isinstance(content["search"]["forward_passes"], int)
    assert content["total"]["forward_passes"] == 4.667
    assert cost_table({}).row_count == 1
