"""Curves that stand in for a language model, for tests against a known optimum (docs/design.md, 4.8)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.units import PruneUnit
from ffprune_env.evaluators.protocol import Windows

# Which text a window is of. None of them is 0, since numpy takes a seed that ends with zeros for one without.
_SEARCH, _FURTHER, _FINAL = 1, 2, 3


class SurrogateEvaluator:
    """Answers from damage curves in microseconds, so that a search can be tested against a known optimum.

    With noise every window has curves of its own, curve_i · (1 + r · z_i) with z_i standard normal, and a measurement
    is the mean over its windows. So the same question is answered the same way every time, as by a language model, and
    the nearer two allocations are, the more alike is what a window says wrongly of them. The mean of many is right.

    Args:
        units: the N units.
        curves: N arrays; ``curves[i][k]`` is the loss in nats that keeping k groups of unit i adds, k in 0..n_groups.
        dense_ppl: perplexity of the dense model.
        max_samples: N_max that is claimed.
        noise: standard deviation over windows, in nats, of ln PPL where half of the groups of every unit are kept,
            rounded down: that sets r. Of n windows it is noise / √n.
        max_final_samples: windows for finalists that are claimed; None claims as many as N_max.
        seed: of what windows differ by.
        pool: further windows that are claimed to draw from.
        watch: further windows that are claimed to watch a search on.

    Raises:
        ValueError: a curve has the wrong length, the noise is negative, or there is no damage at half to be off by.
    """

    def __init__(
        self,
        units: Sequence[PruneUnit],
        curves: Sequence[npt.ArrayLike],
        dense_ppl: float = 15.0,
        max_samples: int = 8,
        noise: float = 0.0,
        max_final_samples: int | None = None,
        seed: int = 0,
        pool: int = 0,
        watch: int = 0,
    ) -> None:
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise must be finite and at least 0, got {noise}")
        self.units = tuple(units)
        self.max_samples = max_samples
        self.max_final_samples = max_samples if max_final_samples is None else max_final_samples
        self.pool, self.watch = tuple(range(pool)), tuple(range(pool, pool + watch))
        self.curves: tuple[FloatArray, ...] = tuple(np.asarray(curve, dtype=np.float64) for curve in curves)
        self._dense_ppl = dense_ppl
        for unit, curve in zip(self.units, self.curves, strict=True):
            if curve.shape != (unit.n_groups + 1,):
                raise ValueError(f"{unit.name}: got a curve of shape {curve.shape}, expected ({unit.n_groups + 1},)")
        at_half = math.hypot(*(curve[unit.n_groups // 2] for unit, curve in zip(self.units, self.curves, strict=True)))
        if noise and not 0 < at_half < math.inf:
            raise ValueError(f"noise is a share of the damage where half is kept, which is {at_half:g}: give none")
        self.noise, self._seed = noise, seed
        self._spread = noise / at_half if noise else 0.0
        self._drawn: dict[tuple[int, int], FloatArray] = {}

    @classmethod
    def synthetic(
        cls, n_layers: int = 12, heads: int = 8, channels: int = 256, seed: int = 0, **arguments: Any
    ) -> SurrogateEvaluator:
        """An invented model whose units differ a hundredfold in how much their groups matter.

        The curve of unit i is s_i · (1 - k/n)², convex, with log s_i normal.

        Args:
            n_layers: decoder layers; N is twice that.
            heads: groups of every attention unit.
            channels: groups of every FFN unit.
            seed: of the sensitivities, and of what windows differ by.
            **arguments: further ones of the class, but for its seed.
        """
        rng = np.random.default_rng(seed)
        units, curves = [], []
        for layer in range(n_layers):
            attention = PruneUnit(f"layers.{layer}.attention", "attention", layer, heads, heads * 2 * channels)
            ffn = PruneUnit(f"layers.{layer}.ffn", "ffn", layer, channels, channels * 6 * heads)
            for unit in (attention, ffn):
                removed = 1 - np.arange(unit.n_groups + 1) / unit.n_groups
                units.append(unit)
                curves.append(np.exp(rng.normal(-1.5, 1.2)) * removed**2)
        return cls(units, curves, seed=seed, **arguments)

    def measure(self, kept: IntArray, n_samples: Windows) -> float:
        """PPL_dense · exp(Σ damage_i(kept_i)), with the curves that these windows have."""
        return self.compare(kept, n_samples)[0]

    def compare(self, kept: IntArray, n_samples: Windows) -> tuple[float, float]:
        """The perplexity, and Σ damage_i(kept_i): what pruning adds to the loss, as a small divergence does."""
        on = (_SEARCH, range(n_samples)) if isinstance(n_samples, int) else (_FURTHER, n_samples)
        damage = fmean(self._by_window(kept, *on)) if self.noise else self.damage(kept)
        return self._dense_ppl * math.exp(min(damage, 700.0)), damage

    def damage(self, kept: IntArray) -> float:
        """Σ damage_i(kept_i) in nats, as it is: without noise."""
        return sum(float(curve[k]) for curve, k in zip(self.curves, kept, strict=True))

    def final_losses(self, kept: IntArray, n_samples: int) -> FloatArray:
        """Ln PPL on each of these windows, which are others than those of :meth:`measure`: float64 [n]."""
        damages = self._by_window(kept, _FINAL, range(n_samples)) if self.noise else [self.damage(kept)] * n_samples
        return math.log(self._dense_ppl) + np.minimum(damages, 700.0)

    def remembers(self, kept: IntArray, n_samples: Windows, kl: bool = False) -> bool:
        """Nothing: every answer is made anew."""
        return False

    def dense(self, n_samples: Windows) -> float:
        """The given perplexity."""
        return self._dense_ppl

    def _by_window(self, kept: IntArray, place: int, windows: Iterable[int]) -> list[float]:
        """What pruning adds to the loss on each of these windows."""
        damage = self.damage(kept)
        each = np.array([curve[k] for curve, k in zip(self.curves, kept, strict=True)])
        return [damage + self._spread * float(each @ self._off(place, window)) for window in windows]

    def _off(self, place: int, window: int) -> FloatArray:
        """By how many times r the curves of this window are off: float64 [N], standard normal."""
        if (place, window) not in self._drawn:
            rng = np.random.default_rng([self._seed, window, place])
            self._drawn[place, window] = rng.standard_normal(len(self.units))
        return self._drawn[place, window]
