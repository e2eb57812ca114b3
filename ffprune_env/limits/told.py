"""What is told of the smallest model that meets a limit: in best.json, in a table and in lines."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from ffprune_env.limits.smallest import SMALLER, Smallest, Trial
from ffprune_env.lm.phases import windows_size


def limit_content(found: Smallest) -> dict[str, Any]:
    """What ``best.json`` holds under ``limit``.

    Args:
        found: what a search for the smallest model came to.
    """
    answer = found.answer
    return {
        "asked": str(found.limit),
        **_content(answer),
        "max_loss": math.expm1(found.most),
        "confidence": 0.95,
        "margin": answer.percent[1] - answer.percent[0],
        "dense_ppl": found.dense_ppl,
        "ppl": found.dense_ppl * (1 + answer.percent[0]),
        "windows": found.windows[0],
        "seq_len": found.windows[1],
        "range": [found.low, found.high],
        "missed": None if found.missed is None else _content(found.missed),
        "smaller": None if found.smaller is None else _content(found.smaller),
        "tried": [_content(trial) for trial in found.trials],
    }


def limit_table(found: Smallest) -> Table:
    """Every model that was tried, from the largest to the smallest.

    Args:
        found: what a search for the smallest model came to.
    """
    table = Table(
        title=f"{found.limit}: PPL / PPL_dense - 1 on {windows_size(found.windows)} that nobody else saw, "
        f"at most {math.expm1(found.most):.2%}"
    )
    for column in ("σ", "params\nleft", "calibration", "loses", "at most\n(95 %)", ""):
        table.add_column(column, justify="left" if column in ("calibration", "") else "right")
    for trial in sorted(found.trials, key=lambda trial: (trial.sparsity, not trial.written)):
        loses, below = trial.percent
        style = "bold" if trial is found.answer else "" if trial.written else "dim"
        table.add_row(
            f"{trial.sparsity:g}", f"{trial.params / 1e6:.2f} M", trial.calibration, f"{loses:.2%}", f"{below:.2%}",
            _verdict(found, trial), style=style,
        )  # fmt: skip
    return table


def limit_lines(found: Smallest) -> list[str]:
    """What a person reads below the table.

    Args:
        found: what a search for the smallest model came to.
    """
    answer = found.answer
    loses, below = answer.percent
    lines = [
        f"{found.limit}: sparsity {answer.sparsity:g}, {answer.params / 1e6:.2f} M parameters; loses {loses:.2%}, and "
        f"less than {below:.2%} with 95 % confidence"
    ]
    if found.missed is None:
        lines.append(
            f"{answer.sparsity:g} is the highest sparsity that the policy knows: a search of higher ones may find a "
            f"smaller model"
        )
    elif found.smaller is None:
        lines.append(f"no model with {SMALLER:.0%} fewer parameters was tried: the policy knows none")
    else:
        loses, below = found.smaller.percent
        lines.append(
            f"with {SMALLER:.0%} fewer parameters it would be missed: at {found.smaller.sparsity:g} the loss is "
            f"{loses:.2%}, and less than {below:.2%} with 95 % confidence"
        )
    return lines


def _verdict(found: Smallest, trial: Trial) -> str:
    if trial is found.answer:
        return "the answer"
    if not trial.written:
        return "to see where to look"
    verdict = "meets it" if trial.bound <= found.most else "misses it"
    return f"{verdict}, {SMALLER:.0%} fewer parameters" if trial is found.smaller else verdict


def _content(trial: Trial) -> dict[str, Any]:
    loses, below = trial.percent
    return {
        "sparsity": trial.sparsity,
        "achieved_sparsity": trial.allocation.sparsity,
        "params": trial.params,
        "calibration": trial.calibration,
        "written": trial.written,
        "loss": loses,
        "bound": below,
    }
