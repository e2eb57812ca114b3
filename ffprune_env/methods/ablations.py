"""`ppo` and `ppo-paper` with a part changed, to see what that is worth (the paper's Table 3, and what goes past it)."""

from __future__ import annotations

from dataclasses import replace

from ffprune_env.budget.allocation import Allocation
from ffprune_env.methods.ppo import ppo
from ffprune_env.methods.ppo_paper import PAPER, ppo_paper
from ffprune_env.methods.registry import METHODS, Method, by_ppo
from ffprune_env.search.problem import Problem
from ffprune_env.search.settings import SearchSettings


def _as_told(problem: Problem, settings: SearchSettings) -> Allocation:
    """`ppo` from where its settings say, wherever other searches start."""
    return ppo(replace(problem, init="own"), settings)


def _ppo(settings: SearchSettings, plain_reward: bool = False) -> Method:
    return by_ppo(_as_told, settings, plain_reward=plain_reward)


def _paper(settings: SearchSettings) -> Method:
    return by_ppo(ppo_paper, settings, plain_reward=True)


#: Calibration alone is `uniform` calibrated, search alone is `ppo-plain-reward` not calibrated, both are `ppo`
#: calibrated. One part is changed at a time, but for two that cannot be changed alone. A search whose sparsity rises
#: draws no fresh windows, so `ppo-sparsity-ramp` compares with `ppo-same-windows`. With `greedy` only the order of
#: scores counts, and none stands for `ffn-only`; so it starts from equal scores, and compares with `ppo-from-nothing`.
ABLATIONS: dict[str, Method] = {
    "uniform": METHODS["uniform"],
    "ppo": METHODS["ppo"],
    "ppo-plain-reward": _ppo(SearchSettings(), plain_reward=True),
    "ppo-same-windows": _ppo(SearchSettings(fresh_windows=False)),
    "ppo-sparsity-ramp": _ppo(SearchSettings(ramp_sparsity=True, fresh_windows=False)),
    "ppo-no-windows-ramp": _ppo(SearchSettings(ramp_windows=False)),
    "ppo-fisher-start": _ppo(SearchSettings(init="fisher")),
    "ppo-ffn-only-start": _ppo(SearchSettings(init="ffn-only")),
    "ppo-from-nothing": METHODS["ppo-from-nothing"],
    "ppo-greedy": _ppo(SearchSettings(mapping="greedy", init="none")),
}

#: `ppo-paper` without its curricula: of sparsity (Eq. 4), of fidelity (Eq. 5), and of both.
PAPER_ABLATIONS: dict[str, Method] = {
    "ppo-paper-full-sparsity": _paper(replace(PAPER, ramp_sparsity=False)),
    "ppo-paper-all-windows": _paper(replace(PAPER, ramp_windows=False)),
    "ppo-paper-no-curriculum": _paper(replace(PAPER, ramp_sparsity=False, ramp_windows=False)),
}
