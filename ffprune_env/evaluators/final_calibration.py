"""How the model that the user will get is calibrated: in sequence for its allocation, or by Eqs. 6-7 alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ffprune_env.budget.arrays import IntArray
from ffprune_env.lm.batches import fitting_size, is_out_of_memory, release_memory
from ffprune_env.pruning.dense_pass import DensePass
from ffprune_env.pruning.sequential import CollapsedError, SequentialCalibration, WeightCalibration

if TYPE_CHECKING:
    from ffprune_env.pruning.calibration import RidgeCalibration

logger = logging.getLogger(__name__)


class FinalCalibration:
    """Calibrations in sequence of one model, each made for one allocation; the last one is remembered.

    Args:
        by_ridge: Eqs. 6-7, what a calibration in sequence begins with and falls back to.
        windows: int64 [n, seq_len], calibration text.
        batch_size: windows per forward pass, fewer where memory runs out; None chooses.
        openings: int64 [m, 1], windows of one token that are seen, too (:mod:`ffprune_env.texts.openings`).

    Attributes:
        dense_pass: the dense model's pass while calibrations share it, and one of them has made it; None otherwise.
    """

    def __init__(
        self,
        by_ridge: RidgeCalibration,
        windows: torch.Tensor,
        batch_size: int | None = None,
        openings: torch.Tensor | None = None,
    ) -> None:
        self.by_ridge, self.windows, self.batch_size, self.openings = by_ridge, windows, batch_size, openings
        self.dense_pass: DensePass | None = None
        self._shares = False
        self._pass_ranking = 0
        # With the ranking and the groups kept that it is for.
        self._last: tuple[tuple[int, bytes], WeightCalibration] | None = None
        # What could not be calibrated in sequence once is not tried again: what is written is what was reported.
        self._fell_back: set[tuple[int, bytes]] = set()

    def of(self, kept: IntArray) -> WeightCalibration:
        """The calibration of an allocation, in sequence if that can be: see :meth:`LMEvaluator.final_calibration`.

        Args:
            kept: int64 [N], groups kept per unit.
        """
        prunable = self.by_ridge.prunable
        key = (prunable.rankings, prunable.check_kept(kept).tobytes())
        if key in self._fell_back:
            return self.by_ridge
        if self._last is None or self._last[0] != key:
            self._last = None  # there may be no room for two
            made = self._in_sequence(kept)
            if made is None:
                self._fell_back.add(key)
                return self.by_ridge
            self._last = key, made
        return self._last[1]

    @contextmanager
    def sharing_dense_pass(self) -> Iterator[None]:
        """Inside, calibrations share the dense model's pass, if there is room; see :class:`LMEvaluator`."""
        self._shares = True
        try:
            yield
        finally:
            self._shares, self.dense_pass = False, None

    def give_up_dense_pass(self) -> bool:
        """Frees the pass that is shared by now; returns whether there was one."""
        shared, self.dense_pass = self.dense_pass is not None, None
        return shared

    def _in_sequence(self, kept: IntArray) -> SequentialCalibration | None:
        """None where memory does not do even for one window at a time, or the pruned model collapses."""
        size = fitting_size(self.by_ridge.prunable.model, self.windows, self.batch_size)
        try:
            while size:
                made = self._tried(kept, size)
                if made is not None:
                    return made
                size = self._with_less(size)
        except CollapsedError as error:
            logger.warning("%s: calibrated by Eqs. 6-7 alone", error)
            return None
        logger.warning("out of memory: this model is calibrated by Eqs. 6-7 alone, not in sequence")
        return None

    def _tried(self, kept: IntArray, size: int) -> SequentialCalibration | None:
        """None where memory runs out; nothing holds on then to what was made."""
        try:
            dense = self._dense_pass(size) if self._shares else self.windows
            return SequentialCalibration(self.by_ridge, kept, dense, batch_size=size, openings=self.openings)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _with_less(self, size: int) -> int:
        """Frees what can be, and says how many windows at once to go on with; 0 gives up."""
        shared = self.give_up_dense_pass()
        self._shares = False
        release_memory()
        if shared:
            logger.warning("out of memory: calibrations in sequence no longer share the dense model's pass")
            return size
        if size > 1:
            logger.warning("out of memory with %d windows at once: calibrating in sequence with %d", size, size // 2)
        return size // 2

    def _dense_pass(self, size: int) -> DensePass:
        prunable = self.by_ridge.prunable
        if self.dense_pass is None or self._pass_ranking != prunable.rankings:
            self.dense_pass = DensePass(prunable, self.windows, size, openings=self.openings)
            self._pass_ranking = prunable.rankings
        return self.dense_pass
