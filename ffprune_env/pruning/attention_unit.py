"""How the attention of a layer is cut: in query heads, or in key/value heads with all that read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ffprune_env.budget.units import PruneUnit
from ffprune_env.lm.devices import running_device
from ffprune_env.modeling.config_names import KV_HEADS_KEY
from ffprune_env.modeling.layer_sizes import query_heads_per_key_head
from ffprune_env.pruning.block import UnitBlock, path_inside
from ffprune_env.pruning.head_groups import HeadGroups, heads_at_once
from ffprune_env.pruning.unit_layout import UnitLayout, cut_params
from ffprune_env.pruning.unsupported import UnsupportedError, linear_of, owner_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A unit is recognised by the projections that one module owns, not by the name of its class.
ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
ATTENTION_OUTPUTS = ("o_proj", "out_proj", "dense")
# Its rows are three projections, one behind the other.
FUSED_ATTENTION = "qkv_proj"


def attention_layout(
    model: PreTrainedModel, layer: nn.Module, name: str, index: int, grouping: HeadGroups
) -> UnitLayout:
    """Where the heads of an attention are.

    Args:
        model: that it is of, for messages.
        layer: the decoder layer that holds it.
        name: path of the layer in the model.
        index: which layer it is.
        grouping: what is removed at once.

    Raises:
        UnsupportedError: it cannot be cut exactly.
        ValueError: it lost query heads before, and so cannot lose them by ``grouping``.
    """
    for path, module in layer.named_modules():
        if hasattr(module, FUSED_ATTENTION):
            raise UnsupportedError(
                model, f"{name}.{path}.{FUSED_ATTENTION} holds queries, keys and values in one matrix"
            )
    where, owner = owner_of(model, layer, name, "attention", ATTENTION_INPUTS, ATTENTION_OUTPUTS)
    q, k, v = (linear_of(model, owner, where, attribute) for attribute in ATTENTION_INPUTS)
    output = linear_of(model, owner, where, next(o for o in ATTENTION_OUTPUTS if hasattr(owner, o)))
    head_dim = getattr(owner, "head_dim", None) or q.out_features // model.config.get_text_config().num_attention_heads
    heads, key_heads = q.out_features // head_dim, k.out_features // head_dim
    if not q.out_features == output.in_features == heads * head_dim:
        raise UnsupportedError(
            model,
            f"{where}: the query projection gives {q.out_features} features, "
            f"its output projection takes {output.in_features}, with heads of {head_dim}",
        )
    shared = getattr(owner, "kv_index", None)  # of an attention that lost query heads already
    if v.out_features != k.out_features or (shared is None and heads % key_heads):
        shapes = f"{heads} query heads, {key_heads} key heads, {v.out_features} value features"
        raise UnsupportedError(model, f"{where} has {shapes}, which do not share evenly")
    _refuse_state_of_heads(model, owner, where, head_dim)
    block = UnitBlock.of(model, layer, name, index, "attention", (path_inside(name, where),), output)
    if grouping == "groups" and shared is None:
        unit = PruneUnit(where, "attention", index, key_heads, cut_params((q, k, v), output))
        return _key_value_groups(unit, owner, (q, k, v), output, head_dim, block)
    if shared is None and (key_heads != heads or _shared_before(model.config)):
        shared = torch.arange(heads, device=running_device(output)) // (heads // key_heads)
    at_once = heads_at_once(shared, grouping)
    if at_once is None:
        raise ValueError(
            f"{where} has lost query heads one by one before, and cannot lose them by heads={grouping!r}: give 'single'"
        )
    inputs = (q, k, v) if shared is None else (q,)
    unit = PruneUnit(where, "attention", index, heads // at_once, cut_params(inputs, output))
    widths = (head_dim,) * len(inputs)
    width = at_once * head_dim
    return UnitLayout(unit, owner, inputs, output, width, head_dim, widths, shared, at_once > 1, block=block)


def _key_value_groups(
    unit: PruneUnit,
    owner: nn.Module,
    inputs: tuple[nn.Linear, ...],
    output: nn.Linear,
    head_dim: int,
    block: UnitBlock,
) -> UnitLayout:
    """An attention that loses key/value heads with all that read them; stock code shares what is left."""
    width = output.in_features // unit.n_groups
    return UnitLayout(unit, owner, inputs, output, width, width, (width, head_dim, head_dim), block=block)


def _shared_before(config: Any) -> bool:
    """Whether keys are shared in a pruned model, where a layer may have one query head left for every key head."""
    return hasattr(config, KV_HEADS_KEY) and query_heads_per_key_head(config) > 1


def _refuse_state_of_heads(model: PreTrainedModel, attention: nn.Module, where: str, head_dim: int) -> None:
    """Finds an attention that keeps more about its heads than the four projections.

    A norm over one head's features serves every head alike and may stay; sinks, norms over all heads and norms of
    single heads would have to be cut and reordered with them.
    """
    for name, parameter in attention.named_parameters():
        if name.split(".")[0] not in (*ATTENTION_INPUTS, *ATTENTION_OUTPUTS) and parameter.shape != (head_dim,):
            raise UnsupportedError(model, f"{where}.{name} spans the heads and cannot be cut with them")
    if any(isinstance(module, nn.ModuleList) for module in attention.modules()):
        raise UnsupportedError(model, f"{where} has modules for single heads, which cannot be cut with them")
