"""What a pruned model may lose, instead of how much is removed: flags that scripts share."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ffprune_env.budget.sparsity_range import Sparsity, SparsityRange
from ffprune_env.limits.limit import Limit
from ffprune_env.lm.intervals import LEAST_WINDOWS
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.texts.bos import Bos
from ffprune_env.texts.unseen_windows import load_unseen_windows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What is searched where nothing else is said: a few percent are lost early.
_LOWEST, _HIGHEST = 0.02, 0.5
# Of the sparsities that the bounds allow: close to them every unit is at its bound.
_WITHIN = 0.9


@dataclass(frozen=True)
class LimitFlags:
    """What may be lost; then the smallest model that loses no more is looked for."""

    max_loss: str | None = None
    """find the smallest model whose perplexity is so much higher than the dense model's at most, with 95 % confidence
    on text that nothing else saw: 5%, or 0.05"""
    max_ppl: float | None = None
    """the same for a perplexity, on the same text"""
    min_reward: float | None = None
    """the same for PPL_dense / PPL, which is to be at least this"""
    limit_windows: int = 32
    """windows of text that nothing else sees, to check a limit on; fewer where the text is short"""

    @property
    def limit(self) -> Limit | None:
        """What may be lost; None if it was not said.

        Raises:
            ValueError: in the words of the command line, for what is no limit, or for more than one.
        """
        require_in_range("--limit-windows", self.limit_windows, LEAST_WINDOWS)
        found = [
            *([Limit.max_loss(self.max_loss)] if self.max_loss is not None else []),
            *([Limit.max_ppl(self.max_ppl)] if self.max_ppl is not None else []),
            *([Limit.min_reward(self.min_reward)] if self.min_reward is not None else []),
        ]
        if len(found) > 1:
            raise ValueError(f"one limit is enough, got {' and '.join(map(str, found))}")
        return found[0] if found else None

    def require_ppl_rewarded(self, reward: str) -> None:
        """Raises ValueError for a limit of a reward that is another one in the search."""
        if self.min_reward is not None and reward != "ppl":
            raise ValueError(
                f"--min-reward is about PPL_dense / PPL, and --reward {reward} is another one: give --max-loss"
            )

    def load_limit_windows(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        text: str,
        seen: Mapping[str, torch.Tensor],
        bos: Bos,
    ) -> torch.Tensor:
        """Windows to check a limit on; see :func:`~ffprune_env.texts.unseen_windows.load_unseen_windows`."""
        return load_unseen_windows(model, tokenizer, text, seen, self.limit_windows, bos)


def range_for(limit: Limit | None, sparsity: Sparsity, a_min: float, asked: Set[str]) -> Sparsity:
    """The sparsities to search: a range where a limit is to be met, since it finds σ itself; else those asked for.

    Args:
        limit: what may be lost; None: no limit.
        sparsity: as it was read.
        a_min: lowest retention rate of a unit.
        asked: the names of the settings that the command line gives.

    Raises:
        ValueError: sparsities are given beside a limit that are no range.
    """
    if limit is None or isinstance(sparsity, SparsityRange):
        return sparsity
    if "sparsity" in asked:
        raise ValueError(
            f"{limit} finds the sparsity itself: leave out --sparsity, or give a range to look in, as in "
            f"{_LOWEST:g}:{_HIGHEST:g}"
        )
    return SparsityRange(_LOWEST, min(_HIGHEST, round(_WITHIN * (1 - a_min), 2)))
