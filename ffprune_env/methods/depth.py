"""`depth`: whole layers go, those first that change the hidden state least."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ffprune_env.budget.allocation import Allocation, cost_limit, settle
from ffprune_env.budget.arrays import FloatArray
from ffprune_env.budget.cost_tables import CostTables
from ffprune_env.lm.batches import evaluating
from ffprune_env.lm.cost import count_forward
from ffprune_env.lm.head import decoder_outputs
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.units import find_layers
from ffprune_env.search.meter import LOOK_COST
from ffprune_env.search.problem import Problem
from ffprune_env.texts.spread import spread_windows

#: Text that layers are looked at on, in tokens; each costs a forward pass.
TOKENS = 8192


def depth(problem: Problem) -> Allocation:
    """Drops whole layers, attention and FFN, in the order of their block influence, until the budget is met.

    The influence of a layer is 1 - cos(what goes into it, what comes out of it), the mean over tokens of the dense
    model. What the last layer gives back is settled group by group. The lowest rate that searches may give a unit does
    not count here.

    Args:
        problem: what to answer; nothing is measured, and what is looked at is counted.

    Raises:
        ValueError: the problem has no model or no search text, or the layers of the model cannot do without a part.

    Source:
        Men et al., ShortGPT, arXiv 2403.03853.
    """
    if problem.prunable is None or problem.windows is None:
        raise ValueError("depth looks at hidden states: it needs a model and search text")
    problem.prunable.require_can_go({unit.kind for unit in problem.units})
    seen = spread_windows(problem.windows, TOKENS)
    problem.meter.look(-(-len(seen) // LOOK_COST))
    influence = block_influence(problem.prunable, seen)
    kept = np.array([unit.n_groups for unit in problem.units])
    of_layer, tables = np.array([unit.layer for unit in problem.units]), CostTables.of_units(problem.units)
    limit = cost_limit(problem.sparsity, problem.units, tables)
    for layer in np.argsort(influence, kind="stable"):
        if tables.total(kept) <= limit:
            break
        kept[of_layer == layer] = 0
    return settle(kept, influence[of_layer], problem.sparsity, problem.units, a_min=0.0)


@torch.no_grad()
def block_influence(prunable: PrunableModel, windows: torch.Tensor) -> FloatArray:
    """How much every decoder layer turns the hidden state.

    Args:
        prunable: the model, dense now.
        windows: int64 [n, seq_len].

    Returns:
        float64 [layers], 1 - the mean cosine over tokens.
    """
    prunable.require_dense("look at the layers of")
    layers = find_layers(prunable.model)[1]
    similar = [torch.zeros(()) for _ in layers]

    def note(layer: int, before: torch.Tensor, after: Any) -> None:
        state = after[0] if isinstance(after, tuple) else after
        cosines = F.cosine_similarity(before.float(), state.to(before.device).float(), dim=-1)
        similar[layer] = similar[layer].to(cosines.device) + cosines.double().sum()  # nobody waits for a device here

    with ExitStack() as hooks, evaluating(prunable.model):
        for i, layer in enumerate(layers):
            hook = layer.register_forward_hook(lambda _, args, after, i=i: note(i, args[0], after))
            hooks.callback(hook.remove)
        for window in windows:
            decoder_outputs(prunable.model, window[None])
            count_forward(window[None])
    return 1 - np.array([float(x) for x in similar]) / windows.numel()
