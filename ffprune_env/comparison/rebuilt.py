"""Methods that rebuild the weights of a copy, and remove no groups: measured like all others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ffprune_env.comparison.cell import Cell
from ffprune_env.comparison.subject import Subject
from ffprune_env.methods.rebuilding.low_rank import lacking_update
from ffprune_env.methods.rebuilding.slicegpt import slicegpt
from ffprune_env.methods.rebuilding.svd_llm import svd_llm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rebuilder = Callable[["PreTrainedModel", torch.Tensor, int, int], "PreTrainedModel"]
#: By name: (model, calibration windows, parameters to remove, batch size) to the copy.
REBUILDERS: dict[str, Rebuilder] = {"svd-llm": svd_llm, "slicegpt": slicegpt}


def rebuild_and_measure(subject: Subject, name: str, sparsity: float) -> tuple[Cell, PreTrainedModel]:
    """Lets a method of :data:`REBUILDERS` remove what pruning at σ removes, from a copy; measures that, and returns it.

    Args:
        subject: the model and its texts.
        name: of the method.
        sparsity: σ; as many parameters of the whole model go as it takes from Σw.

    Raises:
        ValueError: the method cannot remove as much.
    """
    prunable = subject.evaluator.prunable
    subject.evaluator.give_up_dense_pass()  # the copy needs the room
    wanted = round(sparsity * sum(unit.n_params for unit in prunable.units))
    started = time.perf_counter()
    model = REBUILDERS[name](prunable.model, subject.calibration_windows, wanted, subject.batch_size or 1)
    seconds = time.perf_counter() - started
    params = model.num_parameters()
    test_ppl, interval = subject.test(model)
    cell = Cell(
        method=name,
        target_sparsity=sparsity,
        seed=None,
        kept=None,
        sparsity=None,
        total_sparsity=1 - params / prunable.n_params,
        params=params,
        search_ppl=None,
        test_ppl=test_ppl,
        test_interval=interval,
        calibrated_test_ppl=None,
        calibrated_test_interval=None,
        evaluations=0,
        tokens=0,
        tokens_seen=0,
        candidates=0,
        seconds=seconds,
        trace=[],
        lacks_update=lacking_update(model),
        held_out=subject.held_out()(model),
    )
    return cell, model
