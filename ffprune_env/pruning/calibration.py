"""Ridge calibration: what survives of a unit stands in for what was removed (Eqs. 6-7; docs/design.md, 4.5)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch

from ffprune_env.budget.arrays import FloatArray
from ffprune_env.lm.devices import require_resident
from ffprune_env.lm.phases import phase
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.raised_cholesky import raised_cholesky
from ffprune_env.pruning.ridge import DEFAULT_RIDGE, RidgeScale, check_ridge, ridge_unit
from ffprune_env.pruning.saliency import Statistics
from ffprune_env.pruning.unit_layout import member_columns

logger = logging.getLogger(__name__)

Storage = Literal["device", "cpu"]


class RidgeCalibration:
    """Re-fits the output projection of every unit, for any number of groups kept, from one factorization per unit.

    With the columns in order of rank, kept R first and removed P last, Eqs. 6 and 7 of the paper read
    W'_R = W_R + W_P Sᵀ with S = (G_RR + λI)⁻¹ G_RP. Let G + λI = L Lᵀ. Since W = (W L) L⁻¹ and L⁻¹ is lower
    triangular, keeping the first m columns is

        W'_R = (W L)[:, :m] · L⁻¹[:m, :m] = W_R - (W L)[:, m:] · L⁻¹[m:, :m],

    and the second form costs only as much as is removed, and touches W_R only by a correction. W L and L⁻¹ are made
    once, in float64 with one unit at a time, and kept in float32.

    Args:
        prunable: a ranked model, dense now. Ranking it again makes the calibration void.
        stats: statistics with Gram matrices of the dense model, or the matrices alone, per unit in original column
            order; an iterator is read one matrix at a time, so that it may let go of each
            (see :func:`~ffprune_env.pruning.saliency.stream_grams`).
        ridge: λ, in the unit that ``scale`` says. Where G + λI has no Cholesky factor λ is raised tenfold until it
            has, for that unit only.
        storage: where W L and L⁻¹ are kept: ``"device"``, beside the unit's weights, or ``"cpu"``, from where every
            use copies what it needs. They are float32 [columns, columns] and [C, columns] per unit.
        scale: ``"relative"``: λ is a fraction of the mean diagonal of G. ``"absolute"``: λ is added as it stands to
            the diagonal of G = XᵀX, summed over all tokens, as Eq. 6 is printed; 0.01 is then next to nothing.
        openings: the same as ``stats``, of openings (:mod:`ffprune_env.texts.openings`): G is the sum of both. The
            mean diagonal that λ is a fraction of stays that of ``stats``: in a few units first tokens outweigh all
            others.

    Attributes:
        ridge: float64 [N], what was used for every unit: ``ridge``, or more where it had to be raised.
        scale: as given.

    Raises:
        ValueError: there are no Gram matrices, too few, of the wrong shape or not finite; or ``ridge`` is negative or
            not finite, or ``scale`` is none.
        RuntimeError: the model is pruned now, or its groups were never ranked.

    Source:
        arXiv 2511.18977, Eqs. 6-7.
    """

    def __init__(
        self,
        prunable: PrunableModel,
        stats: Statistics | Iterable[torch.Tensor],
        ridge: float = DEFAULT_RIDGE,
        storage: Storage = "device",
        scale: RidgeScale = "relative",
        openings: Statistics | Iterable[torch.Tensor] | None = None,
    ) -> None:
        check_ridge(ridge, scale)
        check_storage(storage)
        prunable.require_dense("calibrate")
        prunable.require_ranked("calibrate")
        require_resident(prunable.model, "calibration")
        grams = _grams_of(stats)
        opened = [None] * len(prunable.units) if openings is None else _grams_of(openings)
        self.prunable, self.scale = prunable, scale
        self._rankings = prunable.rankings
        self._asked = ridge
        self._exact = True
        self._products: list[torch.Tensor] = []  # W L
        self._inverses: list[torch.Tensor] = []  # L⁻¹
        ridges = []
        n = len(prunable.units)
        with phase("factors of the calibration", f"{n} units", n) as advance:
            for i, (layout, gram, beside) in enumerate(zip(prunable.layouts, grams, opened, strict=True)):
                weight = layout.output.weight.detach()
                if gram.shape != (weight.shape[1], weight.shape[1]):
                    wanted = f"({weight.shape[1]}, {weight.shape[1]})"
                    raise ValueError(
                        f"{layout.unit.name}: got a Gram matrix of shape {tuple(gram.shape)}, wanted {wanted}"
                    )
                columns, mean = member_columns(layout, prunable.order[i]), float(gram.diagonal().double().mean())
                whole = gram if beside is None else gram + beside.to(gram.device)
                ranked = whole.to(weight.device)[columns][:, columns]
                product, inverse, used = _factors(ranked, weight, ridge, mean, scale, layout.unit.name)
                where = torch.device("cpu") if storage == "cpu" else weight.device
                self._products.append(product.to(where))
                self._inverses.append(inverse.to(where))
                ridges.append(used)
                advance()
        self.ridge: FloatArray = np.array(ridges)

    @torch.no_grad()
    def weight(self, i: int, k: int) -> torch.Tensor:
        """The re-fitted output projection of unit i with its k best groups kept.

        Args:
            i: index of the unit.
            k: groups kept, 1 to n_groups.

        Returns:
            [C, k * width], in the dtype and on the device of the unit's weights. With every group kept it is the dense
            weight itself.

        Raises:
            RuntimeError: the groups were ranked again since, or the model is pruned now.
        """
        self.prunable.require_current(self._rankings)
        layout = self.prunable.layouts[i]
        weight = layout.output.weight.detach()
        m = k * layout.width
        if m == weight.shape[1]:
            return weight
        dtype = torch.promote_types(torch.float32, weight.dtype) if self._exact else weight.dtype
        product = self._products[i][:, m:].to(weight.device, dtype)  # [C, removed]
        inverse = self._inverses[i][m:, :m].to(weight.device, dtype)  # [removed, kept]
        return torch.addmm(weight[:, :m].to(dtype), product, inverse, alpha=-1).to(weight.dtype)

    def factors(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """W L, [C, columns], and L⁻¹, [columns, columns], of unit i, where they are stored.

        Raises:
            RuntimeError: as for :meth:`weight`.
        """
        self.prunable.require_current(self._rankings)
        return self._products[i], self._inverses[i]

    def bias(self, i: int, k: int) -> None:
        """Output-projection biases stay (docs/design.md, 4.5)."""

    def approximate(self) -> RidgeCalibration:
        """The same calibration with factors and product in the dtype of the weights: faster, good enough for a reward.

        Where that is not float32 it holds a second copy of the factors.
        """
        fast = copy.copy(self)
        fast._exact = False
        weights = [layout.output.weight for layout in self.prunable.layouts]
        pairs = zip(self._products, self._inverses, strict=True)
        short = [_balanced(*pair, weight.dtype) for pair, weight in zip(pairs, weights, strict=True)]
        fast._products, fast._inverses = [x for x, _ in short], [y for _, y in short]
        return fast

    def raised(self) -> dict[str, float]:
        """Units whose λ had to be raised, with the λ that was used, in the unit of ``scale``."""
        used = zip(self.prunable.units, self.ridge, strict=True)
        return {unit.name: float(ridge) for unit, ridge in used if ridge > self._asked}


def _balanced(product: torch.Tensor, inverse: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """W L and L⁻¹ in another dtype, one divided and one multiplied by a power of two, so that float16 holds both.

    L grows with the root of the number of tokens.
    """
    if dtype == product.dtype:
        return product, inverse
    exponent = torch.frexp(product.abs().amax()).exponent
    return torch.ldexp(product, -exponent).to(dtype), torch.ldexp(inverse, exponent).to(dtype)


def check_storage(storage: str) -> None:
    """Raises ValueError if factors cannot be kept there."""
    if storage not in ("device", "cpu"):
        raise ValueError(f"unknown storage {storage!r} of calibration factors; allowed are device, cpu")


def _grams_of(stats: Statistics | Iterable[torch.Tensor]) -> Iterable[torch.Tensor]:
    grams = stats.grams if isinstance(stats, Statistics) else stats
    if grams is None:
        raise ValueError("the statistics hold no Gram matrices: collect them with gram=True")
    return grams


def _factors(
    gram: torch.Tensor, weight: torch.Tensor, ridge: float, mean: float, scale: RidgeScale, name: str
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """W L and L⁻¹ of G + λI = L Lᵀ in float32, and λ in the unit of its scale.

    Args:
        gram: [columns, columns], in order of rank.
        weight: [C, columns].
        ridge: λ to begin with.
        mean: the diagonal that it is a fraction of.
        scale: its unit.
        name: of the unit, for the log.
    """
    if not bool(torch.isfinite(gram).all()):
        raise ValueError(f"{name}: its Gram matrix is not finite")
    mean = mean if mean > 0 else 1.0  # a unit that never fires has nothing to stand in for
    try:
        lower, used = raised_cholesky(gram, ridge, ridge_unit(scale, mean), mean)
    except ValueError as error:
        raise ValueError(f"{name}: its Gram matrix is wrong: {error}") from error
    if used != ridge:
        of = " of the mean diagonal" if scale == "relative" else ""
        logger.warning("%s: G + λI has no Cholesky factor; λ raised from %g to %g%s", name, ridge, used, of)
    product = (weight.double() @ lower).float()
    inverse = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    return product, inverse.float(), used
