"""FFN channels removed several at once: the model that removing them one by one gives, at the same numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from plain import plain
from safetensors.torch import load_file
from tiny_runs import run_main, settings

import ffprune_env as ff
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.methods.flap import flap
from ffprune_env.modeling.config_names import CHANNELS_KEY, HEADS_KEY, KV_INDEX_KEY
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.criteria import CRITERIA, Evidence
from ffprune_env.pruning.damage import damage_curves
from ffprune_env.pruning.flap_bias import FlapBias
from ffprune_env.pruning.gradients import collect_gradients
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics
from ffprune_env.pruning.sequential import SequentialCalibration
from ffprune_env.pruning.units import find_parts
from ffprune_env.search.meter import Meter
from ffprune_env.search.problem import Problem

CHANNELS = 64
FAMILIES = ("llama-gqa", "opt")


@pytest.mark.parametrize(
    ("channels", "asked", "width"),
    [
        (128, 1, 1),
        (128, 4, 4),
        (132, 8, 4),  # 8 does not divide 132
        (128, 8, 4),  # 16 groups would be too few
        (127, 4, 1),
        (1024, 32, 8),  # 16 channels have more parameters than a head
        (1024, 64, 64),  # who asks for more than 32 has them, larger than a head
        (1536, 256, 256),
        (512, 256, 128),  # 2 groups would be too few
        (1216, 128, 64),  # 128 does not divide 1216
    ],
)
def test_a_group_is_the_most_channels_that_fit(channels, asked, width):
    attention, ffn = find_parts(tiny_model("llama", channels=channels), asked).layouts[:2]
    assert (ffn.width, ffn.unit.n_groups, ffn.n_members) == (width, channels // width, channels)
    assert ffn.unit.group_params == 3 * 32 * width
    assert (attention.width, attention.unit.n_groups, attention.n_members) == (8, 4, 4)


def test_no_channels_at_once_are_refused():
    with pytest.raises(ValueError, match="channels_per_group must be at least 1, got 0"):
        PrunableModel(tiny_model("llama"), 0)


def scored(family, name, windows, channels_per_group):
    prunable = PrunableModel(tiny_model(family, channels=CHANNELS), channels_per_group)
    stats, gradients = collect_statistics(prunable, windows), collect_gradients(prunable, windows)
    return prunable, stats, CRITERIA[name].score(prunable, Evidence(stats, gradients, lambda: stats.grams, 0.01))


@pytest.mark.parametrize("name", CRITERIA)
def test_channels_are_ranked_one_by_one(name, windows):
    scores = [scored("llama-gqa", name, windows, channels_per_group)[2] for channels_per_group in (1, 2)]
    for one, other in zip(*scores, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(params=FAMILIES)
def both(request, windows):
    """A ranked model whose channels go one by one, the same with two at once, and numbers of groups for either."""
    (single, stats, scores), (paired, _, _) = (scored(request.param, "wanda", windows, n) for n in (1, 2))
    for prunable in (single, paired):
        prunable.rank(scores)
    rng = np.random.default_rng(3)
    pairs = np.array([rng.integers(1, unit.n_groups + 1) for unit in paired.units])
    return single, paired, stats, np.where(np.arange(len(pairs)) % 2, 2 * pairs, pairs), pairs


def test_two_at_once_are_one_after_the_other(both, windows):
    single, paired, stats, kept, pairs = both
    calibrations = [RidgeCalibration(prunable, stats) for prunable in (single, paired)]
    in_sequence = [SequentialCalibration(x, k, windows) for x, k in zip(calibrations, (kept, pairs), strict=True)]
    compensated = [FlapBias(prunable, stats) for prunable in (single, paired)]
    for one, other in ((None, None), calibrations, in_sequence, compensated):
        with single.pruned(kept, one) as model:
            expected = model(windows, use_cache=False).logits
        with paired.pruned(pairs, other) as model:
            assert torch.equal(model(windows, use_cache=False).logits, expected)
    assert single.sparsity(kept) == paired.sparsity(pairs)
    for one, other in zip(single.kept_groups(kept), paired.kept_groups(pairs), strict=True):
        np.testing.assert_array_equal(one, other)
    for around in ((None, None), (kept, pairs)):
        fine, coarse = (
            damage_curves(x, windows, y, k) for x, y, k in zip((single, paired), calibrations, around, strict=True)
        )
        for i, (one, other) in enumerate(zip(fine, coarse, strict=True)):
            np.testing.assert_array_equal(one[:: 1 + i % 2], other)


def test_what_is_written_says_heads_and_channels(both, tmp_path):
    single, paired, _, kept, pairs = both
    ff.save_pruned(single, kept, tmp_path / "single")
    ff.save_pruned(paired, pairs, tmp_path / "paired")
    configs, cards, weights = (
        [read(tmp_path / name) for name in ("single", "paired")]
        for read in (
            lambda folder: json.loads((folder / "config.json").read_text(encoding="utf-8")),
            lambda folder: (folder / "README.md").read_text(encoding="utf-8"),
            lambda folder: load_file(folder / "model.safetensors"),
        )
    )
    assert configs[0] == configs[1]
    assert cards[0] == cards[1]
    assert f" {kept[1]}/{CHANNELS}" in cards[1]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_flap_keeps_as_many_channels(text_file):
    kept = []
    for channels_per_group in (1, 2):
        evaluator = build_evaluator(
            tiny_model("llama", channels=CHANNELS),
            byte_tokenizer(),
            str(text_file),
            plain(seq_len=32, calibration_windows=4, channels_per_group=channels_per_group, search_windows=2),
        )
        found = flap(Problem(evaluator.prunable, evaluator.statistics, Meter(evaluator, 0), 0.2, 0))
        layouts = evaluator.prunable.layouts
        kept.append([layout.members(int(k)) for layout, k in zip(layouts, found.kept, strict=True)])
    assert np.abs(np.subtract(*kept)).max() <= 2
    assert max(kept[0][1::2]) - min(kept[0][1::2]) > 4  # not all FFNs alike


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama-gqa", channels=CHANNELS).float().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_a_run_removes_them_so(tmp_path, wide_folder, text_file, ppo_script):
    """And query heads in balance, which the policy, the baselines and what is written go by."""
    asked = {"channels-per-group": 2, "heads": "balanced"}
    assert run_main(ppo_script, settings(wide_folder, text_file, tmp_path / "run", **asked)) == 0
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text(encoding="utf-8"))
    best = json.loads((tmp_path / "run" / "best.json").read_text(encoding="utf-8"))
    channels = config[CHANNELS_KEY]
    assert channels == [2 * k for k in best["chosen"]["kept"][1::2]]
    assert any(k < CHANNELS for k in channels)
    assert config[HEADS_KEY] == [2 * k for k in best["chosen"]["kept"][::2]]
    assert config[KV_INDEX_KEY] == [None] * 3
    assert best["uniform"]["sparsity"] >= best["target_sparsity"]
    # Gone on with, it goes by the order that it ranked.
    assert run_main(ppo_script, ["--resume", tmp_path / "run"]) == 0


def test_a_policy_serves_groups_of_other_sizes(tmp_path, wide_folder, tiny_folder, text_file, ppo_script, capsys):
    one = tmp_path / "one"
    assert run_main(ppo_script, settings(wide_folder, text_file, one, **{"channels-per-group": 1})) == 0
    facts = json.loads((one / "checkpoints" / "policy.json").read_text(encoding="utf-8"))
    before = {"groups": [4, CHANNELS] * 3} | {name: value for name, value in facts.items() if name != "params"}
    for name, content in (("as it is", facts), ("as it was before blocks", before)):
        (one / "checkpoints" / "policy.json").write_text(json.dumps(content), encoding="utf-8")
        changes = {"channels-per-group": 2, "init": one}
        assert run_main(ppo_script, settings(wide_folder, text_file, tmp_path / name, **changes)) == 0
        assert run_main(ppo_script, settings(tiny_folder, text_file, tmp_path / "other", init=one)) == 2
        assert "is of a model with other units" in capsys.readouterr().err
