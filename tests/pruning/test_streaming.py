"""A model larger than memory: its layers come from disk when they run, and it measures what the resident one does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model
from tiny_runs import run_main, settings

from ffprune_env.export.folder import save_pruned
from ffprune_env.lm.devices import running_device
from ffprune_env.lm.loss import window_losses
from ffprune_env.lm.models import load_model
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.damage import damage_curves
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores, wifv_scores
from ffprune_env.pruning.streaming import streamed, weight_of


def on_disk(prunable):
    return [streamed(layout.output) is not None for layout in prunable.layouts]


@pytest.mark.parametrize(
    ("family", "heads"),
    [("opt", "single"), ("llama-gqa", "single"), ("llama-gqa", "groups"), ("mistral", "balanced"), ("qwen2", "single")],
)
@pytest.mark.parametrize("memory", ["1KB", "115KB"])
def test_a_streamed_model_is_ranked_pruned_and_measured_like_a_resident_one(family, heads, memory, save_tiny, windows):
    folder = str(save_tiny(family))
    whole = PrunableModel(load_model(folder, "float32", "cpu")[0], heads=heads)
    parts = PrunableModel(load_model(folder, "float32", device_map="auto", max_memory=memory)[0], heads=heads)
    assert all(on_disk(parts)) if memory == "1KB" else len(set(on_disk(parts))) == 2
    assert parts.units == whole.units
    assert parts.device == running_device(parts.model.get_input_embeddings()) == torch.device("cpu")

    before = window_losses(parts.model, windows)
    torch.testing.assert_close(before, window_losses(whole.model, windows), rtol=0, atol=0)
    for score in (wanda_scores, wifv_scores, wanda_scores):  # ranked again: orders add up
        for prunable in (parts, whole):
            prunable.rank(score(prunable, collect_statistics(prunable, windows, gram=False)))
        for ours, theirs in zip(parts.order, whole.order, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    kept = [min(k, unit.n_groups) for k, unit in zip([2, 9, 4, 24, 1, 3], whole.units, strict=True)]
    with parts.pruned(kept), whole.pruned(kept):
        pruned = window_losses(parts.model, windows)
        torch.testing.assert_close(pruned, window_losses(whole.model, windows), rtol=0, atol=0)
        for ours, theirs in zip(parts.layouts, whole.layouts, strict=True):
            with weight_of(ours.output) as weight:
                torch.testing.assert_close(weight, theirs.output.weight, rtol=0, atol=0)
    assert not torch.equal(pruned, before)
    torch.testing.assert_close(window_losses(parts.model, windows), window_losses(whole.model, windows), rtol=0, atol=0)


def test_between_two_passes_nothing_of_a_layer_is_in_memory(tiny_folder, windows):
    prunable = PrunableModel(load_model(str(tiny_folder), "float32", device_map="auto", max_memory="1KB")[0])
    prunable.rank([np.arange(unit.n_groups) for unit in prunable.units])
    with prunable.pruned([1] * len(prunable.units)):
        window_losses(prunable.model, windows)
        assert all(parameter.device.type == "meta" for parameter in prunable.model.parameters())
    shapes = {name: tuple(x.shape) for name, x in prunable.model.named_parameters()}
    assert shapes == {name: tuple(x.shape) for name, x in tiny_model("llama-gqa").named_parameters()}


def test_a_pass_that_memory_cut_short_leaves_nothing_behind(tiny_folder, windows, monkeypatch):
    prunable = PrunableModel(load_model(str(tiny_folder), "float32", device_map="auto", max_memory="1KB")[0])
    prunable.rank([np.arange(unit.n_groups) for unit in prunable.units])
    dense = window_losses(prunable.model, windows)
    with prunable.pruned([1, 9, 2, 5, 3, 7]):
        expected = window_losses(prunable.model, windows, 2)
    down, calls = prunable.layouts[-1].output, []
    forward = down._old_forward

    def fail_once(*args):
        calls.append(args)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args)

    monkeypatch.setattr(down, "_old_forward", fail_once)
    with prunable.pruned([1, 9, 2, 5, 3, 7]):
        torch.testing.assert_close(window_losses(prunable.model, windows, 2), expected)
    monkeypatch.setattr(down, "_old_forward", lambda *args: fail_once(*args) if calls.clear() is None else None)
    with pytest.raises(torch.OutOfMemoryError), prunable.pruned([1, 9, 2, 5, 3, 7]):
        window_losses(prunable.model, windows, 1)
    monkeypatch.setattr(down, "_old_forward", forward)
    assert all(parameter.device.type == "meta" for parameter in prunable.model.parameters())
    torch.testing.assert_close(window_losses(prunable.model, windows), dense)


def test_what_needs_all_weights_at_hand_says_so(tiny_folder, windows):
    prunable = PrunableModel(load_model(str(tiny_folder), "float32", device_map="auto", max_memory="1KB")[0])
    prunable.rank([np.arange(unit.n_groups) for unit in prunable.units])
    with pytest.raises(ValueError, match=r"a backward pass needs all of the model in memory.*--max-memory"):
        damage_curves(prunable, windows)
    with pytest.raises(ValueError, match=r"writing a pruned model needs all of the model in memory"):
        save_pruned(prunable, [1] * len(prunable.units), tiny_folder / "pruned")
    with pytest.raises(ValueError, match=r"calibration needs all of the model in memory"):
        RidgeCalibration(prunable, collect_statistics(prunable, windows))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_memory": "6GB"}, "--max-memory limits a model that is spread"),
        ({"device_map": "auto", "max_memory": "six"}, "--max-memory must be a size such as 6GB or 500MiB, got 'six'"),
        ({"device_map": "auto", "device": "cpu"}, "--device-map takes auto, and then --device is auto"),
        ({"device_map": "balanced"}, "--device-map takes auto"),
    ],
)
def test_settings_of_a_device_map_are_checked(tiny_folder, options, message):
    with pytest.raises(ValueError, match=message):
        load_model(str(tiny_folder), **options)


def test_a_model_that_fits_is_spread_and_stays_whole(tiny_folder, windows):
    prunable = PrunableModel(load_model(str(tiny_folder), "float32", device_map="auto", max_memory="1GB")[0])
    assert not any(on_disk(prunable))
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    RidgeCalibration(prunable, stats)


STREAMED = ("--device-map", "auto", "--max-memory", "1KB")
IN_PARTS = (
    "--criterion",
    "wanda",
    "--init",
    "ffn-only",
    "--reward-model",
    "cut",
    "--calibration",
    "none",
    "--no-save-model",
)


def test_a_search_runs_on_a_streamed_model(ppo_script, tiny_folder, text_file, tmp_path):
    for run, flags in ((tmp_path / "whole", ()), (tmp_path / "parts", STREAMED)):
        assert run_main(ppo_script, [*settings(tiny_folder, text_file, run), *IN_PARTS, *flags]) == 0
    ours, theirs = ((tmp_path / run / "best.json").read_text() for run in ("parts", "whole"))
    assert ours.split('"dense"')[1:] == theirs.split('"dense"')[1:]


@pytest.mark.parametrize("missing", range(4))
def test_a_search_that_needs_more_is_refused_in_one_line(ppo_script, tiny_folder, text_file, tmp_path, capsys, missing):
    pairs = (IN_PARTS[:2], IN_PARTS[2:4], IN_PARTS[4:8], IN_PARTS[8:])
    flags = [flag for i, pair in enumerate(pairs) if i != missing for flag in pair]
    # The tiny settings name other values of some; what is missing here falls back to what needs the whole model.
    defaults = (("--criterion", "taylor"), ("--init", "fisher"), ("--calibration", "ridge"), ("--save-model",))
    arguments = [*settings(tiny_folder, text_file, tmp_path / "run"), *flags, *defaults[missing], *STREAMED]
    assert run_main(ppo_script, arguments) == 2
    assert "needs all of the model in memory" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
