"""The table that a person reads at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from rich.table import Table

from ffprune_env.evaluators.objectives.mix import reward_of
from ffprune_env.lm.excess import change_text
from ffprune_env.pruning.calibration_kind import FELL_BACK_MARK, FELL_BACK_NOTE
from ffprune_env.run.results import Measured, PolicyResult, label
from ffprune_env.texts.bos import BosProtocol, stated


def results_table(results: Measured, texts: Mapping[str, torch.Tensor], bos: BosProtocol = "never") -> Table:
    """The table a person reads at the end of a run.

    Args:
        results: what was measured.
        texts: int64 [n, seq_len] by purpose, what it was measured on: ``search``, ``finalists`` and ``test``.
        bos: whether all of these windows begin with the BOS token.
    """
    n = {purpose: len(texts.get(purpose, ())) for purpose in ("search", "finalists", "test")}
    table = Table(
        title=f"Perplexity (test text: {n['test']} windows of {texts['test'].shape[1]} tokens; search text: "
        f"{n['search']} of the search and {n['finalists']} of its finalists, of {texts['search'].shape[1]} tokens"
        f"{stated(bos)})"
    )
    table.add_column("policy")
    for column in (
        "removed\nof Σw",
        "removed\nof model",
        "params\nleft",
        "search\nPPL",
        "test\nPPL",
        *(["against\nuniform"] if "uniform" in results.plain else []),
    ):
        table.add_column(column, justify="right")
    dense = results.plain.get("dense")
    measures = [] if dense is None or dense.held_out is None else [name for name in dense.held_out if name != "loss"]
    for name in (["reward"] if measures else []) + measures:
        table.add_column(f"held-out\n{name}", justify="right")
    sections = [
        {label(name): result for name, result in results.plain.items()},
        {f"{label(name)}, calibrated": x for name, x in results.calibrated.items() if x.sparsity > 0},
        {} if results.saved is None else {"searched, from disk": results.saved},
    ]
    fell_back = False
    bases = [results.plain.get("uniform"), results.calibrated.get("uniform"), results.final.get("uniform")]
    for section, uniform in zip(sections, bases, strict=True):
        for name, result in section.items():
            marked = result.calibrated and result.calibration != results.asked
            fell_back |= marked
            comparable = uniform is not None and uniform.calibration == result.calibration
            row = [
                f"{name} {FELL_BACK_MARK}" if marked else name,
                f"{result.sparsity:.2%}",
                f"{result.total_sparsity:.2%}",
                f"{result.params / 1e6:.1f} M",
                f"{result.search_ppl:.2f}",
                f"{result.test_ppl:.2f}",
            ]
            if "uniform" in results.plain:
                row.append(change_text(result.test_ppl, uniform.test_ppl) if uniform is not None and comparable else "")
            table.add_row(*row, *held_out_cells(result, dense, measures))
        table.add_section()
    if fell_back:
        table.caption, table.caption_justify = FELL_BACK_NOTE, "left"
    return table


def held_out_cells(result: PolicyResult, dense: PolicyResult | None, measures: Sequence[str]) -> list[str]:
    """What a row says of data that no search saw: the reward there, and what it is made of.

    Args:
        result: of the row.
        dense: of the dense model.
        measures: names of what it is made of.
    """
    if not measures:
        return []
    if result.held_out is None or dense is None or dense.held_out is None:
        return [""] * (1 + len(measures))
    reward = reward_of(result.held_out, dense.held_out)
    return [f"{reward + 0.0:.3f}", *(f"{result.held_out[name]:.3f}" for name in measures)]
