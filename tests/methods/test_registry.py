"""What a method is told is in the record of its cells: a cell on disk that says otherwise is refused."""

from __future__ import annotations

import inspect
from dataclasses import asdict

import pytest

from ffprune_env.comparison.plan import ANSWERING
from ffprune_env.methods.ablations import ABLATIONS
from ffprune_env.methods.registry import settings_of
from ffprune_env.search.settings import SearchSettings

#: What is recorded of every method; of searches by PPO, what differs from the defaults of their settings.
PLAIN = {"plain_reward": False, "flap_bias": False}
PAPER = {
    "plain_reward": True, "mapping": "paper", "a_min": None, "action_scale": 1.0, "action_bound": 16.0,
    "evaluations": 1000, "ramp_sparsity": True, "fresh_windows": False, "search_windows": 8, "final_windows": 8,
    "init": "none", "network": "mlp", "learning_rate": 1e-4, "rollout": 16, "n_epochs": 20, "log_std_init": 0.0,
    "finalists": 2, "seq_len": 2048, "calibration_windows": 32,
}  # fmt: skip
FROM_20 = {"sparsity": 0.2, "share": 0.15}
BY_PPO = {
    "ppo": {},
    "ppo-from-nothing": {},
    "policy": {"targets": [0.2, 0.3]},
    "ppo-from-20": {"warm": {"method": "ppo", **FROM_20}},
    "ppo-plain-reward": {"plain_reward": True},
    "ppo-same-windows": {"fresh_windows": False},
    "ppo-sparsity-ramp": {"fresh_windows": False, "ramp_sparsity": True},
    "ppo-no-windows-ramp": {"ramp_windows": False},
    "ppo-fisher-start": {"init": "fisher"},
    "ppo-ffn-only-start": {"init": "ffn-only"},
    "ppo-greedy": {"mapping": "greedy", "init": "none"},
    "ppo-paper": PAPER,
    "ppo-paper-from-20": PAPER | {"warm": {"method": "ppo-paper", **FROM_20}},
    "ppo-paper-full-sparsity": PAPER | {"ramp_sparsity": False},
    "ppo-paper-all-windows": PAPER | {"ramp_windows": False},
    "ppo-paper-no-curriculum": PAPER | {"ramp_sparsity": False, "ramp_windows": False},
}
OTHERS = {"flap-bias": {"flap_bias": True}, "fisher-iterated": {"steps": 8}}


@pytest.mark.parametrize("name", ANSWERING)
def test_what_is_recorded_of_a_method_stays_what_it_was(name):
    told = PLAIN | (asdict(SearchSettings()) | BY_PPO[name] if name in BY_PPO else OTHERS.get(name, {}))
    assert settings_of(ANSWERING[name], (0.2, 0.3)) == told


@pytest.mark.parametrize(("name", "other"), [("ppo-sparsity-ramp", "ppo-same-windows"), ("ppo-same-windows", "ppo")])
def test_of_the_sparsity_ramp_one_part_is_changed_at_a_time(name, other):
    """A search whose sparsity rises draws no windows, whatever it is told; so it is told that it draws none."""
    first, second = asdict(ABLATIONS[name].settings), asdict(ABLATIONS[other].settings)
    assert len({key for key in first if first[key] != second[key]}) == 1


def test_no_method_is_told_to_draw_windows_that_it_does_not_draw():
    told = (method.settings for method in ANSWERING.values() if method.settings is not None)
    assert not [settings for settings in told if settings.fresh_windows and settings.ramp_sparsity]


@pytest.mark.parametrize("name", ANSWERING)
def test_what_is_recorded_is_what_the_method_is_told(name):
    """Whatever has a default in its signature."""
    method = ANSWERING[name]
    for answer in filter(None, (method.answer, method.answer_all)):
        parameters = inspect.signature(answer).parameters.values()
        told = {x.name: x.default for x in parameters if x.default is not x.empty}
        recorded = {"settings": method.settings, "steps": method.steps}
        assert told == {name: value for name, value in recorded.items() if value is not None}
