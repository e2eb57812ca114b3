"""The README.md of a pruned model: where it comes from, what is left of it, how well it does, how to load it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ffprune_env.modeling.absent import absent_blocks
from ffprune_env.modeling.config_names import PREFIX
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.calibration_kind import CalibrationKind, calibration_kind
from ffprune_env.pruning.sequential import SequentialCalibration
from ffprune_env.pruning.units import find_layers
from ffprune_env.texts.bos import BosProtocol, stated

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ffprune_env.pruning.prunable import Calibration, PrunableModel
    from ffprune_env.pruning.unit_layout import UnitLayout

_BAR = 20  # characters for a whole unit
# What goes at once where query heads share keys and values, and do not go one by one.
_AT_ONCE = {"balanced": "a query head of every key/value head", "groups": "a key/value head with its query heads"}


@dataclass(frozen=True)
class CardFacts:
    """What a model card tells and the model itself does not know; what is None is left out.

    Attributes:
        base_model: name of the model that was pruned.
        target_sparsity: fraction of Σ w that was asked for; None also where σ is a fraction of something else.
        dense_ppl: perplexity of that model.
        pruned_ppl: perplexity of the pruned model.
        protocol: what both were measured on, such as "wikitext2 test, 141 windows of 2048 tokens".
        calibration_asked: how the model was to be calibrated, which the card says where it was not.
        calibrated_on: what its heads and channels were ranked on, and its weights re-fitted, if they were.
        budget: what was asked for in the place of a sparsity, such as "kv 0.5x".
    """

    base_model: str | None = None
    target_sparsity: float | None = None
    dense_ppl: float | None = None
    pruned_ppl: float | None = None
    protocol: str | None = None
    calibration_asked: CalibrationKind | None = None
    calibrated_on: str | None = None
    budget: str | None = None

    @classmethod
    def of(
        cls,
        model: str,
        test_text: str,
        test_windows: torch.Tensor,
        calibration_text: str,
        calibration: torch.Tensor,
        bos: BosProtocol,
    ) -> CardFacts:
        """What is known before anything is measured; of local folders and files no more than their names.

        Args:
            model: a name, a folder or a hub id.
            test_text: what perplexities are of: a name or a file.
            test_windows: int64 [n, seq_len].
            calibration_text: what ranking and calibration saw: a name or a file.
            calibration: int64 [n, seq_len], its windows.
            bos: whether all of these windows begin with the BOS token.
        """
        return cls(
            base_model=Path(model).name if Path(model).exists() else model,
            protocol="{} test text, {} windows of {} tokens{}".format(
                Path(test_text).name, *test_windows.shape, stated(bos)
            ),
            calibrated_on="{}, {} windows of {} tokens{}".format(
                Path(calibration_text).name, *calibration.shape, stated(bos)
            ),
        )


def model_card(prunable: PrunableModel, kept: npt.ArrayLike, calibration: Calibration | None, facts: CardFacts) -> str:
    """Writes the card in Markdown.

    Args:
        prunable: the model that it was made from, dense or pruned before.
        kept: int [N], groups kept per unit.
        calibration: what the weights were re-fitted with, if they were.
        facts: the rest.
    """
    counts, model_type = prunable.check_kept(kept), prunable.model.config.model_type
    name, before = facts.base_model or model_type.removeprefix(PREFIX), "dense"
    given = name if facts.base_model else f"a {name}"
    if model_type.startswith(PREFIX):
        given, before = f"{given}, pruned before: all figures here are relative to what that had left", "before"
    asked = "" if facts.target_sparsity is None else f" ({facts.target_sparsity:.2%} asked for)"
    rows = {
        "base model": given,
        "sparsity σ, of the prunable parameters": f"{prunable.sparsity(counts):.2%}{asked}",
        "sparsity, of all parameters": f"{prunable.total_sparsity(counts):.2%}",
        **({} if facts.budget is None else {"budget asked for": facts.budget}),
        "parameters before": f"{prunable.n_params:,}",
        "parameters after": f"{prunable.params(counts):,}",
        "calibration": "no" if calibration is None else _describe(calibration),
    }
    if facts.calibration_asked not in (None, calibration_kind(calibration)):
        rows["calibration"] += f"; {facts.calibration_asked} was asked for and could not be made"
    if any(x.unit.kind == "attention" and x.width > x.head_dim for x in prunable.layouts):
        rows["removed at once of an attention"] = _AT_ONCE[prunable.heads]
    if facts.calibrated_on is not None:
        rows[f"ranked{'' if calibration is None else ' and calibrated'} on"] = facts.calibrated_on
    if facts.dense_ppl is not None:
        rows[f"perplexity, {before}"] = f"{facts.dense_ppl:.2f}"
    if facts.pruned_ppl is not None:
        rows["perplexity, pruned"] = f"{facts.pruned_ppl:.2f}"
    if facts.protocol is not None:
        rows["perplexity measured on"] = facts.protocol
    layers = find_layers(prunable.model)[1]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [ffprune, pruned]
---

# {name}, pruned

Whole attention heads and FFN channels were removed with `ffprune`, an implementation of FastForward Pruning
([arXiv 2511.18977](https://arxiv.org/abs/2511.18977)); what every layer keeps is listed below.

| | |
|---|---|
{table}

## Load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
```

`trust_remote_code=True` runs the Python files in this folder, which build the dense architecture with smaller
matrices; without it transformers builds the dense architecture, and ends with an error because the sizes differ. Where
`ffprune` is installed no code needs to be trusted: call `ffprune_env.load_pruned(folder)`, or leave the argument out
after `import ffprune_env; ffprune_env.register_auto_classes()`.

## What every layer keeps

```text
{_bars(prunable.layouts, layers, counts, "key/value" if prunable.heads == "groups" else "attention")}
```
"""


def _describe(calibration: Calibration) -> str:
    if isinstance(calibration, SequentialCalibration):
        return f"{_describe(calibration.first)}; then in sequence, λ = {calibration.prior_tokens:g} tokens"
    if isinstance(calibration, RidgeCalibration):
        where = "of the mean diagonal of G" if calibration.scale == "relative" else "added to the diagonal of G"
        return f"ridge, λ = {_span(calibration.ridge)} {where}"
    return type(calibration).__name__


def _bars(layouts: Sequence[UnitLayout], layers: Iterable[nn.Module], counts: npt.NDArray[np.int64], which: str) -> str:
    """One line per layer, with a bar for the attention and one for the FFN."""
    lines = [f"layer  {f'{which} heads':<{_BAR + 12}}FFN channels"]
    units = {(layout.unit.layer, layout.unit.kind): i for i, layout in enumerate(layouts)}
    for number, layer in enumerate(layers):
        cells = []
        for kind in ("attention", "ffn"):
            i = units.get((number, kind))
            if i is None:  # an attention that is no unit, or what went before
                cells.append(f"{'none' if kind in absent_blocks(layer) else 'whole':<{_BAR + 12}}")
                continue
            kept, of = layouts[i].members(int(counts[i])), layouts[i].n_members
            bar = "█" * max(1, round(_BAR * kept / of)) if kept else "none"
            cells.append(f"{bar:<{_BAR}} {f'{kept}/{of}':<11}")
        lines.append(f"{number:5}  {''.join(cells)}".rstrip())
    return "\n".join(lines)


def _span(values: npt.NDArray[np.float64]) -> str:
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
