"""Samples of a search, and the archive of the best: plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.env import COLLAPSE_REWARD
from ffprune_env.search.in_words import windows_in_words

# Of the final sparsity: from here on rewards count as comparable. In the paper's curriculum that is the last ninth of a
# search. What 1 % of σ changes is little beside what samples differ by; with 5 % the lightest rollout won.
_NEARLY = 0.99


@dataclass(frozen=True)
class Sample:
    """One evaluation of a search.

    Attributes:
        step: environment steps done before it.
        target_sparsity: σ_t.
        n_samples: n_t.
        scores: [N] scores, as the mapping saw them.
        kept: [N] groups kept.
        rates: [N] fraction of groups kept.
        sparsity: fraction of Σ w removed.
        ppl: perplexity on the first n_t windows of search text; where something else is rewarded, exp of its loss.
        dense_ppl: of the dense model on the same windows.
        reward: PPL_dense / PPL, exp(-KL) or what a function says; 0 if collapsed.
        collapsed: whether it was.
        seconds: wall time of the environment step, divided by the number of environments that made it together.
        kl: divergence from the dense model, if that is what was rewarded.
        windows: n_t indices of the windows that were drawn for it; None stands for the first n_t of search text.
        start_reward: what the start is rewarded with at σ_t on these windows, where they were drawn.
    """

    step: int
    target_sparsity: float
    n_samples: int
    scores: FloatArray
    kept: IntArray
    rates: FloatArray
    sparsity: float
    ppl: float
    dense_ppl: float
    reward: float
    collapsed: bool
    seconds: float
    kl: float | None = None
    windows: tuple[int, ...] | None = None
    start_reward: float | None = None

    @property
    def merit(self) -> float:
        """What compares it with others: its reward, or where windows are drawn its reward in parts of the start's."""
        return self.reward if self.start_reward is None else self.reward / max(self.start_reward, COLLAPSE_REWARD)


def told(sample: Sample, of_text: bool = True) -> str:
    """Reward, perplexity and σ of a sample, and on how many windows it was measured: others do not compare.

    Args:
        sample: the sample.
        of_text: whether its perplexities are those of text, and not what takes their place.
    """
    against = "" if sample.start_reward is None else f" ({sample.merit:.3f} of the start's)"
    perplexities = f"PPL {sample.ppl:.2f} (dense {sample.dense_ppl:.2f}) " if of_text else ""
    on = windows_in_words(sample.n_samples)
    return f"reward {sample.reward:.3f}{against}  {perplexities}on {on}  σ {sample.target_sparsity:.3f}"


def share_at_bound(samples: Sequence[Sample], bound: float) -> float:
    """Of all scores of some samples, the share that was clipped to a bound, where units cannot be told apart.

    Args:
        samples: at least one.
        bound: the largest score that there is.
    """
    scores = np.abs([sample.scores for sample in samples])
    return float((scores >= bound * (1 - 1e-6)).mean())  # actions are of less precision than scores


class Archive:
    """The best samples of a search, by reward or, on windows that were drawn anew, by their lead on the start there.

    Rewards at different sparsities do not compare: a lighter pruning always looks better. So a sample made at less
    than 99 % of the final sparsity, or at more than it, ranks behind all others, and behind those made nearer to it.
    Nor do rewards on different windows, some of which are easy: a sample measured on fewer ranks behind all that were
    measured on more.

    Args:
        final_sparsity: S_final.
        size: samples kept; each differs from the others in ``kept``.

    Attributes:
        seen: samples that it was given.
    """

    def __init__(self, final_sparsity: float, size: int = 8) -> None:
        self.size, self.seen = size, 0
        self._comparable = (final_sparsity * _NEARLY, final_sparsity * (1 + 1e-6))
        self._samples: dict[bytes, Sample] = {}

    def __call__(self, sample: Sample) -> None:
        """Adds a sample, and drops the worst if there are too many."""
        self.seen += 1
        key = sample.kept.tobytes()
        if key in self._samples and self._rank(self._samples[key]) > self._rank(sample):
            return
        self._samples[key] = sample
        if len(self._samples) > self.size:
            worst = min(self._samples, key=lambda key: self._rank(self._samples[key]))
            del self._samples[worst]

    def best(self) -> list[Sample]:
        """The samples kept, best first."""
        return sorted(self._samples.values(), key=self._rank, reverse=True)

    def _rank(self, sample: Sample) -> tuple[float, int, float]:
        """How near it was made, windows measured on among those as near, and the merit among those of as many."""
        lowest, highest = self._comparable
        near = min(0.0, sample.target_sparsity - lowest, highest - sample.target_sparsity)
        return near, sample.n_samples, sample.merit
