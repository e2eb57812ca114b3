"""A look at a model before it is pruned: is the order of groups free, is a view a mask, does every unit count?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ffprune_env.lm.batches import is_out_of_memory
from ffprune_env.lm.context import context_length
from ffprune_env.lm.head import decoder_outputs, head_of, look_again, own_logits
from ffprune_env.lm.one_line import one_line
from ffprune_env.lm.probing import ROUNDING, calm, probe_tokens, relative_error
from ffprune_env.pruning.unit_flow import UnitFlow, off_in_order, off_in_views
from ffprune_env.pruning.units import WholeAttentionError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ffprune_env.pruning.prunable import PrunableModel

logger = logging.getLogger(__name__)

# What begins to count some twenty tokens into a text is seen, too.
_TOKENS = 32
# A batch has a row for every unit, of so few tokens that all of them cost no more than some lines of text.
_TOKENS_PER_UNIT = 2
# A unit is made to say something so many times as large as what it says itself, which rounding cannot hide.
_LOUD = 10.0
# A few heads may come to lie as they must, by chance. In one of so many orders they do not.
_ORDERS = 8
_GROUPS = {"attention": "heads", "ffn": "channels"}


def logits_before(model: PreTrainedModel) -> torch.Tensor:
    """What a model that is about to be wrapped says of a few tokens.

    Args:
        model: a causal language model.

    Returns:
        [1, tokens, vocabulary].

    Raises:
        ValueError: the model has no final hidden states that its logits can be made of, or is no causal one.
    """
    look_again(model)
    if head_of(model).route == "whole":
        raise ValueError(
            f"{type(model).__name__} cannot be pruned: its logits are made of more than the output of its decoder; "
            "its perplexity can be measured"
        )
    with calm(model):
        return own_logits(model, _some_tokens(model))


def probe(prunable: PrunableModel, before: torch.Tensor) -> None:
    """Tries on a few tokens what pruning relies on, and leaves the model as it was.

    Every unit runs once in a forward pass, and what it gives reaches the logits. Heads and channels can be put in
    another order, which changes nothing. With half of the groups of every unit removed, the model computes what the
    dense one does with them masked. A few forward passes show it, whatever the family; what fails is refused by name.

    Each unit is given what the dense model gave it, and compared where it ends: what its own rounding does not explain
    is wrong, however little of it reaches the logits. These are compared, too, when all units are in another order.

    Args:
        prunable: a model that was never ranked.
        before: of the same model, what :func:`logits_before` gave before it was wrapped.

    Raises:
        WholeAttentionError: nothing but attention is at fault, and what is has to stay whole.
        ValueError: the model cannot be pruned; the message names the first FFN at fault.
    """
    if bool(torch.isnan(before).any()):
        logger.warning("%s gives no numbers: whether it can be pruned was not tried", type(prunable.model).__name__)
        return
    tokens = _some_tokens(prunable.model)
    with calm(prunable.model):
        _require_heard(prunable)
        try:
            flow = UnitFlow(prunable, tokens)
            _require_order(prunable, flow, tokens, before)
            _require_views(prunable, flow, tokens)
        finally:
            prunable.restore_order()


def _some_tokens(model: PreTrainedModel) -> torch.Tensor:
    return probe_tokens(model, (1, min(_TOKENS, context_length(model))))


def _require_heard(prunable: PrunableModel) -> None:
    """Every row of a batch hears another unit say something loud, and is compared with one that hears none."""
    n = len(prunable.units)
    tokens = probe_tokens(prunable.model, (1, _TOKENS_PER_UNIT)).repeat(n + 1, 1)
    calls = [0] * n
    with ExitStack() as hooks:
        for i, layout in enumerate(prunable.layouts):
            hooks.callback(layout.output.register_forward_hook(_speak_up(i, calls, tokens.shape)).remove)
        hidden = decoder_outputs(prunable.model, tokens)[:, -1]
    faults = {}
    for i, unit in enumerate(prunable.units):
        if calls[i] != 1:
            faults[i] = f"{unit.name} runs {calls[i]} times in a forward pass on text, it must run once"
        elif relative_error(hidden[i + 1], hidden[0]) <= ROUNDING[hidden.dtype] / 10:
            faults[i] = f"what {unit.name} gives does not reach the logits"
    _require_none(prunable, faults)


def _speak_up(i: int, calls: list[int], shape: torch.Size) -> Callable[[nn.Module, object, torch.Tensor], torch.Tensor]:
    """A hook that counts how often unit i runs, and adds noise to row i + 1 of a batch of the given shape."""

    def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        calls[i] += 1
        said = output.view(*shape, -1).clone()  # some decoders flatten the tokens of a batch before their FFN
        noise = torch.randn(said.shape[-1], generator=torch.Generator().manual_seed(i)).to(said)
        size = said[i + 1].float().square().mean().sqrt().item() or 1.0
        said[i + 1] += noise * (_LOUD * size)
        return said.view_as(output)

    return hook


def _require_order(prunable: PrunableModel, flow: UnitFlow, tokens: torch.Tensor, before: torch.Tensor) -> None:
    """Heads and channels of all units in other orders: units, then logits are what they were."""
    everything = range(len(prunable.units))
    for seed in range(max(1, 2 * _ORDERS // len(everything))):  # every layer has one
        _shuffle(prunable, everything, seed)
        try:
            outputs = flow.again()
        except Exception as error:
            _why(error)
            raise _refusal_of_some(prunable, partial(_fault_of_order, prunable, tokens, before)) from error
        wrong = {
            i: off_in_order(layout, prunable.order[i], outputs[i], flow.dense[i])
            for i, layout in enumerate(prunable.layouts)
        }
        _require_none(prunable, {i: _reordered(prunable, i, what) for i, what in wrong.items() if what})
    if _difference(lambda: own_logits(prunable.model, tokens), before):
        raise _refusal_of_some(prunable, partial(_fault_of_order, prunable, tokens, before))


def _require_views(prunable: PrunableModel, flow: UnitFlow, tokens: torch.Tensor) -> None:
    """Half of the groups of all units removed, and masked."""
    kept = [max(1, unit.n_groups // 2) for unit in prunable.units]
    masked = flow.again(kept)
    try:
        with prunable.pruned(kept):
            cut = flow.again()
    except Exception as error:
        _why(error)
        raise _refusal_of_some(prunable, partial(_fault_of_views, prunable, tokens)) from error
    wrong = {i: off_in_views(cut[i], masked[i]) for i in range(len(kept))}
    _require_none(prunable, {i: _cut_in_half(prunable, i, what) for i, what in wrong.items() if what})


def _shuffle(prunable: PrunableModel, units: range, seed: int) -> None:
    """Puts the heads and channels of some units in a random order in which none keeps its place."""
    rng = np.random.default_rng(seed)
    scores = []
    for i, layout in enumerate(prunable.layouts):
        drawn, place = rng.permutation(layout.n_members), np.zeros(layout.n_members)
        place[drawn] = -np.roll(drawn, 1)
        scores.append(place if i in units else np.zeros(layout.n_members))
    prunable.rank(scores)


def _fault_of_order(prunable: PrunableModel, tokens: torch.Tensor, before: torch.Tensor, units: range) -> str:
    """What is wrong when the heads and channels of some units are in random order; nothing if nothing is."""
    for seed in range(_ORDERS if len(units) == 1 else 1):
        _shuffle(prunable, units, seed)
        wrong = _difference(lambda: own_logits(prunable.model, tokens), before)
        if wrong:
            return _reordered(prunable, units[0], wrong)
    return ""


def _fault_of_views(prunable: PrunableModel, tokens: torch.Tensor, units: range) -> str:
    """What is raised when some units, in whatever order they are, keep half of their groups; nothing if nothing is."""
    kept = [max(1, unit.n_groups // 2) if i in units else unit.n_groups for i, unit in enumerate(prunable.units)]
    try:
        with prunable.pruned(kept) as model:
            own_logits(model, tokens)
    except Exception as error:
        return _cut_in_half(prunable, units[0], _why(error))
    return ""


def _reordered(prunable: PrunableModel, i: int, wrong: str) -> str:
    unit = prunable.units[i]
    return f"reordering the {_GROUPS[unit.kind]} of {unit.name} changes what it computes ({wrong})"


def _cut_in_half(prunable: PrunableModel, i: int, wrong: str) -> str:
    unit = prunable.units[i]
    return f"{unit.name} with half of its {_GROUPS[unit.kind]} removed is not what it is with them masked ({wrong})"


def _difference(run: Callable[[], torch.Tensor], expected: torch.Tensor) -> str:
    """How far logits are from what they should be, or why there are none; nothing if rounding explains it."""
    try:
        off = relative_error(run(), expected)
    except Exception as error:  # code that is given other shapes than it counts on can raise anything
        return _why(error)
    return "" if off <= ROUNDING[expected.dtype] else f"logits are off by {off:.2g} of their size"


def _why(error: Exception) -> str:
    """What an error says, in one line; raised again if memory ran out."""
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        raise error
    return one_line(error)


def _refusal_of_some(prunable: PrunableModel, fault: Callable[[range], str]) -> ValueError:
    """The refusal for the first unit that is wrong by itself, or for all together.

    Of an attention all layers that have the same are: it would take long to try each.
    """
    n = len(prunable.units)
    owners = [type(layout.owner) for layout in prunable.layouts]
    for i, unit in enumerate(prunable.units):
        if wrong := fault(range(i, i + 1)):
            alike = [j for j in range(n) if j == i or (unit.kind == "attention" and owners[j] is owners[i])]
            return _refusal(prunable, dict.fromkeys(alike, wrong))
    return _refusal(prunable, {n - 1: fault(range(n))})


def _require_none(prunable: PrunableModel, faults: Mapping[int, str]) -> None:
    """Raises the refusal for what is wrong with some units, if anything is."""
    if faults:
        raise _refusal(prunable, faults)


def _refusal(prunable: PrunableModel, faults: Mapping[int, str]) -> ValueError:
    """What is raised for units at fault, by index: an attention can stay whole, an FFN is refused."""
    ffns = [i for i in faults if prunable.units[i].kind == "ffn"]
    message = f"{type(prunable.model).__name__} cannot be pruned: {faults[min(ffns or faults)]}"
    if ffns:
        return ValueError(message)
    return WholeAttentionError(message, {prunable.units[i].layer: reason for i, reason in faults.items()})
