"""PrunableModel: heads and channels are put in order once, then pruning is a prefix (docs/design.md, 4.4)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ffprune_env.budget.arrays import IntArray
from ffprune_env.budget.units import PruneUnit, UnitKind
from ffprune_env.lm.devices import running_device
from ffprune_env.modeling.attention import index_keys, require_indexable, use_indexed_attention
from ffprune_env.pruning.as_it_was import AsItWas
from ffprune_env.pruning.cutting import Dense, shrink
from ffprune_env.pruning.group_order import checked_scores, put_in_order, scores_of_order
from ffprune_env.pruning.head_groups import HeadGroups
from ffprune_env.pruning.leaving_out import why_none_can_go
from ffprune_env.pruning.probe import logits_before, probe
from ffprune_env.pruning.sizes import removed_params, unread_params
from ffprune_env.pruning.streaming import stream, streamed
from ffprune_env.pruning.tiled_attention import use_tiled_attention
from ffprune_env.pruning.unit_layout import UnitLayout
from ffprune_env.pruning.units import WholeAttentionError, find_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_WRAPPED = "_ffprune_wrapped"


class Calibration(Protocol):
    """Anything that makes what is left of a unit stand in for what was removed."""

    @property
    def prunable(self) -> PrunableModel:
        """The model it was made for."""
        ...

    def weight(self, i: int, k: int) -> torch.Tensor:
        """The output projection of unit i with its k best groups kept: [C, k * width], like the dense one."""
        ...

    def bias(self, i: int, k: int) -> torch.Tensor | None:
        """Its bias, [C]; None leaves the dense one, or none."""
        ...


class PrunableModel:
    """A Hugging Face causal language model, wrapped in place, that can be pruned and made dense again for free.

    :meth:`rank` sorts heads and channels of every unit by descending score, which changes nothing the model computes.
    From then on keeping k groups of a unit means keeping the first k of them, and a prefix of a matrix is a
    view: :meth:`pruned` neither copies nor masks a weight, and the matrix products are really smaller.

    Args:
        model: the model; its weights are reordered by :meth:`rank`, and its attention function is replaced by one
            that computes the same if it is grouped-query.
        channels_per_group: FFN channels that are removed at once; see :func:`~ffprune_env.pruning.units.find_parts`.
        heads: what of a grouped-query attention is removed at once: ``"single"``, a query head; ``"balanced"``, one
            query head of every key/value head, so that what is left shares them evenly; or ``"groups"``, a key/value
            head with all of its query heads.

    Attributes:
        model: as given.
        units: what can be cut; an attention that cannot be cut exactly stays whole and is none of them.
        whole: why the attention of a layer stays whole, by decoder layer; empty if all can be cut.

    Raises:
        ValueError: an FFN cannot be pruned, by what its modules are or by what a few tokens show; the model is
            grouped-query and uses flash attention; or it is wrapped already. The model is left as it was.
    """

    def __init__(self, model: PreTrainedModel, channels_per_group: int = 1, heads: HeadGroups = "single") -> None:
        if hasattr(model, _WRAPPED):  # its groups may be in another order than a second wrapper would believe
            raise ValueError("the model is wrapped by a PrunableModel already: use that one, or load the model again")
        self.model, self.heads = model, heads
        parts, before = find_parts(model, channels_per_group, heads), None
        while True:
            if any(layout.key_heads is not None for layout in parts.layouts):
                require_indexable(model.config._attn_implementation)
            before = logits_before(model) if before is None else before
            try:
                self._wrap_and_probe(parts.layouts, before)
                break
            except WholeAttentionError as found:  # what runs shows more than what is written
                parts = find_parts(model, channels_per_group, heads, parts.whole | found.reasons)
        self.whole: dict[int, str] = parts.whole
        self._stays: dict[UnitKind, str] = {}
        self.n_params: int = model.num_parameters()
        setattr(model, _WRAPPED, True)
        if self.whole:
            _say_what_stays_whole(self)

    def _wrap_and_probe(self, layouts: tuple[UnitLayout, ...], before: torch.Tensor) -> None:
        """Wraps the model to be cut in some units; if they turn out to be none, it is left as it was."""
        self.layouts = layouts
        self.units: tuple[PruneUnit, ...] = tuple(layout.unit for layout in self.layouts)
        #: int64 [n_members] per unit, on the unit's device: original index of the head or channel now at each place.
        self.order = tuple(torch.arange(x.n_members, device=x.device) for x in self.layouts)
        self._keys = tuple(_keys_of(x, order) for x, order in zip(self.layouts, self.order, strict=True))
        #: Number of the ranking, 0 for none; measurements and calibrations made under another one are void.
        self.rankings = 0
        self._most_rankings = 0
        self._is_pruned = False
        self._is_in_order = True
        as_it_was = AsItWas(self.model, self.layouts)
        try:
            self._wrap()
            probe(self, before)
            self.rankings = self._most_rankings = 0
        except BaseException:
            as_it_was.restore()
            raise

    def _wrap(self) -> None:
        for layout in self.layouts:
            for linear in layout.inputs:
                stream(linear, axis=0)
            stream(layout.output, axis=1)
        use_tiled_attention(self.model)
        grouped = [layout.owner for layout in self.layouts if layout.key_heads is not None]
        if grouped:
            use_indexed_attention(self.model, grouped)
        self._restore_keys()

    @property
    def device(self) -> torch.device:
        """Where the model's embeddings live, or come to; inputs go there."""
        return running_device(self.model.get_input_embeddings())

    def rank(self, scores: Sequence[npt.ArrayLike]) -> None:
        """Sorts heads and channels of every unit by descending score; ties keep their original order.

        Balanced query heads are sorted among those of their key/value head.

        Args:
            scores: N arrays of [n_members] finite scores, in original order, whatever the order now is.

        Raises:
            ValueError: an array has the wrong length or holds a non-finite score; the model is unchanged.
            RuntimeError: called inside :meth:`pruned`.
        """
        self.require_dense("rank")
        arrays = checked_scores(self.layouts, scores)
        self._put([layout.best_first(array) for layout, array in zip(self.layouts, arrays, strict=True)])

    def rank_as(self, order: Sequence[npt.ArrayLike]) -> None:
        """Puts heads and channels in an order that is known: the one of another process, or of before.

        Scores that are computed with another number of threads may order them otherwise.

        Args:
            order: per unit, int [n_members], the original index of the head or channel for each place, as
                :attr:`order` has it.

        Raises:
            ValueError: it is not an order of the members of every unit; the model is unchanged.
            RuntimeError: called inside :meth:`pruned`.
        """
        self.rank(scores_of_order(self.layouts, order, self.heads))

    @contextmanager
    def ranked(self, scores: Sequence[npt.ArrayLike]) -> Iterator[None]:
        """Inside the context the groups are in another order; outside in the one before, whose calibrations then hold.

        Args:
            scores: as for :meth:`rank`.

        Raises:
            ValueError: as for :meth:`rank`.
            RuntimeError: the model was never ranked, or is pruned now.
        """
        self.require_ranked("give another to")
        order, ranking = self.order, self.rankings
        self.rank(scores)
        try:
            yield
        finally:
            self.rank_as([members.cpu().numpy() for members in order])
            self.rankings = ranking

    def restore_order(self) -> None:
        """Ranks heads and channels in the order that they came in."""
        self.require_dense("rank")
        self._put([np.arange(layout.n_members) for layout in self.layouts])
        for layout in self.layouts:
            for hook in map(streamed, (*layout.inputs, layout.output)):
                if hook is not None:
                    hook.order = None

    @contextmanager
    def pruned(self, kept: npt.ArrayLike, calibration: Calibration | None = None) -> Iterator[PreTrainedModel]:
        """Inside the context the model is pruned; outside it is dense again, bit for bit.

        Args:
            kept: int [N], groups kept per unit, each in 0..n_groups; the best-ranked stay. With 0 the layer runs
                without the unit: nothing of it is computed, and it gives nothing.
            calibration: re-fits the output projections, which are then copies and not views.

        Yields:
            The model.

        Raises:
            ValueError: ``kept`` does not fit the model, or the calibration is of another.
            RuntimeError: the model was never ranked, or is pruned already.
        """
        counts = self.check_kept(kept)
        self.require_dense("prune")
        self.require_ranked("prune")
        outputs = [self._output(i, int(k), calibration) for i, k in enumerate(counts)]
        self._is_pruned = True
        with ExitStack() as undo:
            undo.callback(self._all_there_again)
            for layout, keys, k, output in zip(self.layouts, self._keys, counts, outputs, strict=True):
                if output is None:
                    undo.enter_context(layout.block.left_out())
                    continue
                undo.callback(Dense(layout).restore)
                shrink(layout, int(k), *output)
                if keys is not None:
                    index_keys(layout.owner, keys[: layout.members(int(k))])
            yield self.model

    def _all_there_again(self) -> None:
        self._restore_keys()
        self._is_pruned = False

    def kept_groups(self, kept: npt.ArrayLike) -> list[IntArray]:
        """Lists the original indices of the heads or channels in the groups that stay, ascending, per unit.

        Args:
            kept: int [N], groups kept per unit.
        """
        counts = self.check_kept(kept)
        return [
            np.sort(order[: layout.members(int(k))].cpu().numpy())
            for layout, order, k in zip(self.layouts, self.order, counts, strict=True)
        ]

    def count(self, units: Sequence[PruneUnit]) -> None:
        """Lets budgets count what units cost; they may differ from those of the model in their costs alone.

        Args:
            units: the N units.
        """
        if [replace(unit, costs=None) for unit in units] != [replace(unit, costs=None) for unit in self.units]:
            raise ValueError("costs must be of the units of this model")
        self.units = tuple(units)

    def sparsity(self, kept: npt.ArrayLike) -> float:
        """What goes away as a fraction of Σ w_i; the rest of a unit that goes entirely counts."""
        return removed_params(self.units, self.check_kept(kept)) / sum(unit.n_params for unit in self.units)

    def total_sparsity(self, kept: npt.ArrayLike) -> float:
        """Fraction of all parameters of the model that goes away."""
        return 1 - self.params(kept) / self.n_params

    def params(self, kept: npt.ArrayLike) -> int:
        """Parameters of the whole model that stay: as many as are written."""
        counts = self.check_kept(kept)
        return self.n_params - removed_params(self.units, counts) - unread_params(self.layouts, self.order, counts)

    def require_dense(self, verb: str) -> None:
        """Raises RuntimeError inside :meth:`pruned`; ``verb`` says what the caller wanted to do to the model.

        It does so for good, too, after a ranking that was interrupted half-way through the matrices.
        """
        if not self._is_in_order:
            raise RuntimeError(f"cannot {verb} a model whose ranking was interrupted: load it again")
        if self._is_pruned:
            raise RuntimeError(f"cannot {verb} a model that is pruned: leave the pruned(...) context first")

    def require_ranked(self, verb: str) -> None:
        """Raises RuntimeError if the groups were never ranked; ``verb`` says what the caller wanted to do."""
        if not self.rankings:
            raise RuntimeError(f"the groups have no order yet: call rank(scores) before you {verb} the model")

    def require_current(self, rankings: int) -> None:
        """Raises RuntimeError if a calibration made at ranking number ``rankings`` cannot be used now."""
        self.require_dense("calibrate")
        if rankings != self.rankings:
            raise RuntimeError("the groups were ranked again since this calibration was made: make another")

    def check_kept(self, kept: npt.ArrayLike) -> IntArray:
        """Returns ``kept`` as an int64 array, or raises ValueError saying what is wrong with it."""
        counts = np.asarray(kept)
        if counts.shape != (len(self.units),) or not np.issubdtype(counts.dtype, np.integer):
            raise ValueError(
                f"kept must be {len(self.units)} integers, one per unit; got shape {counts.shape}, dtype {counts.dtype}"
            )
        for unit, k in zip(self.units, counts, strict=True):
            if not 0 <= k <= unit.n_groups:
                raise ValueError(f"{unit.name}: {k} groups kept, allowed are 0 to {unit.n_groups}")
        self.require_can_go({unit.kind for unit, k in zip(self.units, counts, strict=True) if not k})
        return counts.astype(np.int64)

    def require_can_go(self, kinds: Collection[UnitKind]) -> None:
        """Raises ValueError unless units of these kinds can go with all of their groups; a few tokens show it.

        Args:
            kinds: of units that are to keep none.
        """
        for kind in sorted(kinds):
            if kind not in self._stays:
                self._stays[kind] = why_none_can_go(self, kind)
            if reason := self._stays[kind]:
                name = type(self.model).__name__
                raise ValueError(f"{name} cannot lose a whole {kind}: {reason}; keep 1 group of it")

    def _output(
        self, i: int, k: int, calibration: Calibration | None
    ) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Weight and new bias of an output projection with its first groups only: a view, or a re-fitted copy."""
        if calibration is not None and calibration.prunable is not self:
            raise ValueError("the calibration was made for another PrunableModel")
        if not k:
            return None
        if calibration is None:
            return self.layouts[i].output.weight.data[:, : k * self.layouts[i].width], None
        return calibration.weight(i, k), calibration.bias(i, k)

    def _put(self, orders: Sequence[IntArray]) -> None:
        """Puts heads and channels where an order per unit, of original indices, wants them."""
        self._is_in_order = False
        self.order = put_in_order(self.layouts, self.order, orders)
        self._keys = tuple(_keys_of(x, order) for x, order in zip(self.layouts, self.order, strict=True))
        self._restore_keys()
        self._most_rankings += 1
        self.rankings = self._most_rankings
        self._is_in_order = True

    def _restore_keys(self) -> None:
        for layout, keys in zip(self.layouts, self._keys, strict=True):
            if keys is not None:
                index_keys(layout.owner, keys)


def _say_what_stays_whole(prunable: PrunableModel) -> None:
    n, of = len(prunable.whole), len({unit.layer for unit in prunable.units})
    what = "its attention stays whole, FFNs alone are pruned"
    if n < of:
        what = f"the attention of {n} of its {of} layers stays whole"
    logger.warning("%s: %s: %s", type(prunable.model).__name__, what, next(iter(prunable.whole.values())))


def _keys_of(layout: UnitLayout, order: torch.Tensor) -> torch.Tensor | None:
    """The key/value head of each query head in ``order``; None where every query head has its own."""
    return None if layout.key_heads is None else layout.key_heads[order]
