"""Curves that stand in for a language model, for tests against a known optimum (docs/design.md, 4.8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ffprune_env.budget.arrays import FloatArray, IntArray
from ffprune_env.budget.units import PruneUnit
from ffprune_env.evaluators.protocol import Windows, number_of


class SurrogateEvaluator:
    """Answers from damage curves in microseconds, so that a search can be tested against a known optimum.

    Args:
        units: the N units.
        curves: N arrays; ``curves[i][k]`` is the loss in nats that keeping k groups of unit i adds, k in 0..n_groups.
        dense_ppl: perplexity of the dense model.
        max_samples: N_max that is claimed.
        noise: standard deviation, in nats, of what one window says of ln PPL; n windows say it with noise / √n.
        max_final_samples: windows for finalists that are claimed; None claims as many as N_max.
        seed: of the noise.
        pool: further windows that are claimed to draw from.
        watch: further windows that are claimed to watch a search on.

    Raises:
        ValueError: a curve has the wrong length, or the noise is negative.
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
        self.noise, self._rng = noise, np.random.default_rng(seed)
        self.curves: tuple[FloatArray, ...] = tuple(np.asarray(curve, dtype=np.float64) for curve in curves)
        self._dense_ppl = dense_ppl
        for unit, curve in zip(self.units, self.curves, strict=True):
            if curve.shape != (unit.n_groups + 1,):
                raise ValueError(f"{unit.name}: got a curve of shape {curve.shape}, expected ({unit.n_groups + 1},)")

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
            seed: of the sensitivities, and not of the noise.
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
        return cls(units, curves, **arguments)

    def measure(self, kept: IntArray, n_samples: Windows) -> float:
        """PPL_dense · exp(Σ damage_i(kept_i)), and the noise."""
        return self.compare(kept, n_samples)[0]

    def compare(self, kept: IntArray, n_samples: Windows) -> tuple[float, float]:
        """The perplexity, and Σ damage_i(kept_i): what pruning adds to the loss, as a small divergence does."""
        damage = self.damage(kept)
        if self.noise:
            damage += float(self._rng.normal(0, self.noise / math.sqrt(number_of(n_samples))))
        return self._dense_ppl * math.exp(min(damage, 700.0)), damage

    def damage(self, kept: IntArray) -> float:
        """Σ damage_i(kept_i) in nats, as it is."""
        return sum(float(curve[k]) for curve, k in zip(self.curves, kept, strict=True))

    def final_losses(self, kept: IntArray, n_samples: int) -> FloatArray:
        """What :meth:`measure` gives the exponential of, each window with its noise: float64 [n]."""
        loss = math.log(self._dense_ppl) + min(self.damage(kept), 700.0)
        return loss + self._rng.normal(0, self.noise, n_samples) if self.noise else np.full(n_samples, loss)

    def remembers(self, kept: IntArray, n_samples: Windows, kl: bool = False) -> bool:
        """Nothing: every answer is made anew."""
        return False

    def dense(self, n_samples: Windows) -> float:
        """The given perplexity."""
        return self._dense_ppl
