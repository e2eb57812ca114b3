"""PruneBanditEnv: the checkers of Gymnasium and SB3, the reward, and misuse."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env as gym_check_env
from plain import plain, plainly
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env

import ffprune_env as ff
from ffprune_env.budget.mapping import allocate
from ffprune_env.evaluators import build
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.settings import EvaluatorSettings


@pytest.fixture
def lm_evaluator(text_file):
    return build_evaluator(
        tiny_model("llama-gqa"),
        byte_tokenizer(),
        str(text_file),
        plain(seq_len=64, calibration_windows=4, search_windows=4),
    )


@pytest.fixture
def env():
    return ff.PruneBanditEnv(ff.SurrogateEvaluator.synthetic())


def make_kwargs(tiny_folder, text_file):
    return {
        "model": str(tiny_folder),
        "text": str(text_file),
        **plainly(seq_len=64, search_windows=2, calibration_windows=2),
    }


@pytest.mark.parametrize("checker", [gym_check_env, sb3_check_env])
@pytest.mark.parametrize("name", ["ffprune/PruneBandit-v0", "ffprune/PruneBanditSurrogate-v0"])
def test_the_checkers_have_nothing_to_say(name, checker, tiny_folder, text_file):
    env = gym.make(name, **({} if "Surrogate" in name else make_kwargs(tiny_folder, text_file)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker(env.unwrapped)


def test_a_made_env_can_be_described_in_json(tiny_folder, text_file):
    env = gym.make("ffprune/PruneBandit-v0", sparsity=0.3, **make_kwargs(tiny_folder, text_file))
    spec = json.loads(env.spec.to_json())
    assert spec["kwargs"]["sparsity"] == 0.3
    assert spec["max_episode_steps"] is None


def test_the_module_syntax_registers_by_itself(tiny_folder, text_file):
    arguments = make_kwargs(tiny_folder, text_file)
    code = (
        "import gymnasium as gym\n"
        f"env = gym.make('ffprune_env:ffprune/PruneBandit-v0', **{arguments!r})\n"
        "print(env.reset(seed=0)[0].item())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout.split()[-1]) == pytest.approx(0.2)


def test_one_step_is_one_episode(env):
    observation, info = env.reset(seed=0)
    assert observation == pytest.approx(0.2)
    assert info == {"target_sparsity": 0.2, "n_samples": 8}
    _, reward, terminated, truncated, info = env.step(np.zeros(24, dtype=np.float32))
    assert (terminated, truncated) == (True, False)
    assert 0 < reward < 1
    assert reward == info["dense_ppl"] / info["ppl"]
    assert {type(v) for k, v in info.items() if k not in ("scores", "rates", "kept")} <= {int, float, bool}
    with pytest.raises(ResetNeeded, match=r"call reset\(\) before every step"):
        env.step(np.zeros(24))


def test_a_step_before_the_first_reset_is_refused(env):
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(24))


def test_the_reward_is_the_perplexity_ratio_of_the_pruned_model(lm_evaluator):
    env = ff.PruneBanditEnv(lm_evaluator, sparsity=0.3, n_samples=3)
    env.reset(seed=0)
    action = np.linspace(-1, 1, 6, dtype=np.float32)
    _, reward, _, _, info = env.step(action)
    kept = allocate(action.astype(float) * 3, 0.3, lm_evaluator.units, a_min=0.2, mapping="waterfill").kept
    prunable, windows = lm_evaluator.prunable, lm_evaluator.windows[:3]
    with prunable.pruned(kept) as model:
        ppl = ff.perplexity(model, windows)
    np.testing.assert_array_equal(info["kept"], kept)
    assert info["ppl"] == ppl
    assert reward == ff.perplexity(prunable.model, windows) / ppl
    assert info["sparsity"] == pytest.approx(prunable.sparsity(kept))


def test_the_same_action_gives_the_same_reward_to_the_bit(text_file):
    rewards = set()
    for _ in range(2):
        evaluator = build_evaluator(
            tiny_model("opt"),
            byte_tokenizer(),
            str(text_file),
            plain(seq_len=64, calibration_windows=2, search_windows=2),
        )
        env = ff.PruneBanditEnv(evaluator)
        env.reset(seed=1)
        env.action_space.seed(1)
        rewards.add(env.step(env.action_space.sample())[1])
    assert len(rewards) == 1


def test_the_same_question_is_measured_once(lm_evaluator, monkeypatch):
    calls = []
    original = type(lm_evaluator.prunable).pruned
    monkeypatch.setattr(type(lm_evaluator.prunable), "pruned", lambda *a: calls.append(1) or original(*a))
    env = ff.PruneBanditEnv(lm_evaluator)
    rewards = []
    for n_samples in (2, 2, 3, 2):
        env.set_task(n_samples=n_samples)
        env.reset()
        rewards.append(env.step(np.zeros(6))[1])
    assert len(calls) == 2
    assert rewards[0] == rewards[1] == rewards[3] != rewards[2]


def test_a_dense_model_that_is_not_finite_is_refused_before_the_search(text_file):
    model = tiny_model("llama")
    model.lm_head.weight.data[0] = torch.inf
    with pytest.raises(ValueError, match="dense model's perplexity on the search text is not finite"):
        build_evaluator(
            model, byte_tokenizer(), str(text_file), plain(seq_len=64, calibration_windows=2, search_windows=2)
        )


def test_what_was_measured_is_void_after_another_ranking(lm_evaluator):
    prunable, kept = lm_evaluator.prunable, np.full(6, 2)
    before = lm_evaluator.measure(kept, 1)
    prunable.rank([np.arange(unit.n_groups)[::-1] * -1.0 for unit in prunable.units])
    assert lm_evaluator.measure(kept, 1) != before
    with prunable.pruned(kept), pytest.raises(RuntimeError, match="cannot measure as dense"):
        lm_evaluator.dense(1)


@pytest.mark.parametrize("ppl", [math.inf, math.nan, 1e9])
def test_a_collapsed_model_gets_nothing_and_says_so(ppl):
    class Collapsed(ff.SurrogateEvaluator):
        def measure(self, kept, n_samples):
            return ppl

    synthetic = ff.SurrogateEvaluator.synthetic()
    env = ff.PruneBanditEnv(Collapsed(synthetic.units, synthetic.curves))
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.zeros(24))
    assert reward == 0.0
    assert info["collapsed"] is True
    assert not math.isnan(info["ppl"])


def test_broken_weights_inside_a_unit_collapse_instead_of_crashing(text_file):
    model = tiny_model("llama")
    evaluator = build_evaluator(
        model, byte_tokenizer(), str(text_file), plain(seq_len=64, calibration_windows=2, search_windows=1)
    )
    env = ff.PruneBanditEnv(evaluator)
    model.model.layers[0].mlp.up_proj.weight.data[0] = torch.inf
    env.reset()
    _, reward, _, _, info = env.step(np.zeros(6))
    assert (reward, info["collapsed"], info["ppl"]) == (0.0, True, math.inf)


def test_a_task_holds_from_the_next_reset_on(env):
    env.reset(seed=0)
    env.set_task(sparsity=0.4, n_samples=2)
    _, _, _, _, info = env.step(np.zeros(24))
    assert (info["target_sparsity"], info["n_samples"]) == (0.2, 8)
    observation, _ = env.reset()
    assert observation == pytest.approx(0.4)
    _, _, _, _, info = env.step(np.zeros(24))
    assert (info["target_sparsity"], info["n_samples"]) == (0.4, 2)
    assert info["sparsity"] >= 0.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 0.9}, r"sparsity 0\.9 is out of range: with a_min=0\.2"),
        ({"sparsity": math.nan}, "out of range"),
        ({"n_samples": 9}, "n_samples must be between 1 and 8, got 9"),
        ({"n_samples": 0}, "n_samples must be between 1 and 8, got 0"),
        ({"a_min": 1.0}, "0 ≤ a_min < a_max ≤ 1"),
        ({"action_scale": 0}, "action_scale must be positive and finite, got 0"),
        ({"action_bound": math.inf}, "action_bound must be positive and finite, got inf"),
    ],
)
def test_arguments_out_of_range_say_what_would_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        ff.PruneBanditEnv(ff.SurrogateEvaluator.synthetic(), **arguments)


def test_actions_are_as_wide_as_asked_for():
    wide = ff.PruneBanditEnv(ff.SurrogateEvaluator.synthetic(), action_scale=1.0, action_bound=16.0)
    assert (wide.action_space.low.min(), wide.action_space.high.max()) == (-16, 16)
    wide.reset(seed=0)
    action = np.linspace(-9, 9, 24, dtype=np.float32)
    _, _, _, _, info = wide.step(action)
    np.testing.assert_array_equal(info["scores"], action.astype(np.float64))


def test_bad_actions_and_tasks_leave_the_episode_usable(env):
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(24,\)"):
        env.step(np.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        env.step(np.full(24, np.nan))
    with pytest.raises(ValueError, match="out of range"):
        env.set_task(sparsity=0.99)
    assert env.step(np.zeros(24))[4]["target_sparsity"] == 0.2


def test_the_reward_can_be_that_of_the_calibrated_model(tiny_folder, text_file):
    arguments = make_kwargs(tiny_folder, text_file)
    rewards = []
    arguments["calibration"] = "ridge"
    for rewarded in ("cut", "calibrated"):
        env = gym.make("ffprune/PruneBandit-v0", sparsity=0.4, **arguments | {"reward_model": rewarded})
        assert json.loads(env.spec.to_json())["kwargs"]["reward_model"] == rewarded
        evaluator = env.unwrapped.evaluator
        env.reset(seed=0)
        _, reward, _, _, info = env.step(np.zeros(6, dtype=np.float32))
        calibration = evaluator.calibration.approximate() if rewarded == "calibrated" else None
        with evaluator.prunable.pruned(info["kept"], calibration) as model:
            assert info["ppl"] == ff.perplexity(model, evaluator.windows[: info["n_samples"]])
        rewards.append(reward)
    assert rewards[0] != rewards[1]


def test_envs_of_the_same_model_share_it(tiny_folder, text_file):
    one, other = (
        gym.make("ffprune/PruneBandit-v0", sparsity=s, **make_kwargs(tiny_folder, text_file)).unwrapped
        for s in (0.2, 0.3)
    )
    assert one.evaluator is other.evaluator


def test_environments_share_a_model_whatever_part_of_its_windows_they_measure_on(tiny_folder, text_file):
    arguments = make_kwargs(tiny_folder, text_file)
    by_default = arguments.pop("search_windows")
    assert by_default == EvaluatorSettings().search_windows

    def made(**asked):
        return gym.make("ffprune/PruneBandit-v0", **arguments | asked).unwrapped

    every, one, told = made(), made(n_samples=1), made(n_samples=1, search_windows=by_default)
    assert one.evaluator is told.evaluator is every.evaluator
    assert one.reset()[1]["n_samples"] == 1
    one.set_task(n_samples=by_default)
    assert one.reset()[1]["n_samples"] == every.reset()[1]["n_samples"] == by_default
    more = made(n_samples=3)
    assert more.evaluator is not every.evaluator
    assert more.evaluator.max_samples == 3


@pytest.mark.parametrize("name", ["ffprune/PruneBandit-v0", "ffprune/PruneBanditSurrogate-v0"])
def test_envs_side_by_side_waste_no_step(name, tiny_folder, text_file):
    arguments = {"n_layers": 3} if "Surrogate" in name else make_kwargs(tiny_folder, text_file)
    envs = gym.make_vec(name, num_envs=4, sparsity=0.3, **arguments)
    assert json.loads(envs.spec.to_json())["kwargs"]["num_envs"] == 4
    evaluators = {id(env.unwrapped.evaluator) for env in envs.envs}
    assert len(evaluators) == 1
    alone = gym.make(name, sparsity=0.3, **arguments)
    envs.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        actions = rng.uniform(-1, 1, (4, 6)).astype(np.float32)
        _, rewards, terminated, _, infos = envs.step(actions)
        assert terminated.all()
        for action, reward, ppl in zip(actions, rewards, infos["final_info"]["ppl"], strict=True):
            alone.reset()
            _, expected, _, _, info = alone.step(action)
            assert (reward, ppl) == (expected, info["ppl"])


def test_an_episode_can_have_a_task_of_its_own(env):
    observation, info = env.reset(options={"sparsity": 0.4, "n_samples": 2})
    assert observation == pytest.approx(0.4)
    assert info == {"target_sparsity": 0.4, "n_samples": 2}
    info = env.step(np.zeros(24))[4]
    assert (info["target_sparsity"], info["n_samples"]) == (0.4, 2)
    assert env.reset()[1] == {"target_sparsity": 0.2, "n_samples": 8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.99}, r"sparsity 0\.99 is out of range"),
        ({"n_samples": 9}, "n_samples must be between 1 and 8, got 9"),
        ({"n_samples": (2, 2)}, "different indices"),
        ({"sparsty": 0.3}, "reset knows no option 'sparsty'; allowed are sparsity, n_samples"),
    ],
)
def test_options_of_a_reset_are_checked_and_leave_the_episode_as_it_was(env, options, message):
    env.reset(options={"sparsity": 0.3})
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)
    assert env.step(np.zeros(24))[4]["target_sparsity"] == 0.3


def test_there_is_nothing_to_render():
    env = gym.make("ffprune/PruneBanditSurrogate-v0", render_mode=None)
    assert env.render_mode is None
    with pytest.raises(TypeError, match=r"^there is nothing to render: render_mode must be None, got 'human'$"):
        ff.PruneBanditEnv(ff.SurrogateEvaluator.synthetic(), render_mode="human")


@pytest.mark.parametrize("name", ["ffprune/PruneBandit-v0", "ffprune/PruneBanditSurrogate-v0"])
def test_stable_baselines3_makes_it_by_its_name(name, tiny_folder, text_file, monkeypatch):
    """Which first asks for a render mode, and takes a TypeError for an answer, before a model is loaded."""
    loaded, real = [], build.load_evaluator
    monkeypatch.setattr(build, "load_evaluator", lambda *names, **given: loaded.append(names) or real(*names, **given))
    arguments = {"n_layers": 3} if "Surrogate" in name else make_kwargs(tiny_folder, text_file)
    envs = make_vec_env(name, n_envs=2, env_kwargs=arguments)
    assert envs.observation_space.shape == (1,)
    model = PPO("MlpPolicy", envs, n_steps=2, batch_size=4, n_epochs=1, device="cpu").learn(4)
    assert model.num_timesteps == 4
    assert len(loaded) == ("Surrogate" not in name)
    if "Surrogate" in name:
        assert PPO("MlpPolicy", name, n_steps=4, batch_size=4, device="cpu").learn(4).num_timesteps == 4


def test_the_surrogate_is_made_at_once_and_without_a_model():
    heavy = ("torch", "transformers", "datasets", "stable_baselines3")
    code = (
        "import sys, time, gymnasium, ffprune_env\n"
        "import ffprune_env.making\n"
        "began = time.perf_counter()\n"
        "env = gymnasium.make('ffprune/PruneBanditSurrogate-v0', n_layers=4, noise=0.01, seed=3, sparsity=0.3)\n"
        "print(time.perf_counter() - began)\n"
        "env.reset(); env.step(env.action_space.sample())\n"
        f"print([m for m in {heavy} if m in sys.modules])\n"
        "env.spec.to_json()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, imported = result.stdout.split("\n")[:2]
    assert imported == "[]"
    assert float(seconds) < 0.5


def test_importing_the_package_is_cheap():
    heavy = ("torch", "transformers", "datasets", "stable_baselines3")
    code = f"import sys, ffprune_env; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert {"allocate", "load_model", "register_auto_classes"} <= set(ff.__all__) <= set(dir(ff))
    for name in ff.__all__:
        assert getattr(ff, name).__name__.rpartition(".")[2] == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ff.nothing
