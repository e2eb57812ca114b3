"""Pruned models that load like any other: the dense family's own code, around smaller matrices.

This file is written into the folder of every pruned model, so it needs nothing but torch, transformers and the files
beside it. The classes of a family, such as ``PrunedLlamaForCausalLM``, are made when the first of them is asked for:
a family that the installed transformers does not have is in the way of no other.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn

from .absent import put, stand_ins
from .attention import require_indexable, use_indexed_attention
from .config_names import HEADS_KEY, KV_INDEX_KEY, PREFIX, named_as_pruned
from .families import AUTO_CLASSES, FAMILIES, pruned_names
from .layer_sizes import LayerSizes, layer_sizes


class PrunedConfig:
    """What the configurations of all families have in common.

    Raises:
        ValueError: the shapes of the layers are missing, or are not one number for each, or the key/value heads that
            their query heads read are none.
    """

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads a config.json."""
        settings, unused = super().get_config_dict(*args, **kwargs)  # type: ignore[misc]
        return named_as_pruned(settings), unused

    def to_json_string(self, use_diff: bool = True) -> str:
        """What is written to a config.json; the model type in it is that of the dense family."""
        settings = json.loads(super().to_json_string(use_diff))  # type: ignore[misc]
        family = self.model_type.removeprefix(PREFIX)  # type: ignore[attr-defined]
        settings["model_type"] = family
        if "auto_map" in settings:  # it goes into a folder, where transformers names the class that is written alone
            here = __name__.rpartition(".")[2]
            settings["auto_map"] = {auto: f"{here}.{name}" for auto, name in pruned_names(family).items()}
        return json.dumps(settings, indent=2, sort_keys=True) + "\n"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]
        # Libraries make a configuration from nothing to see its defaults, and compare with it.
        if hasattr(self, HEADS_KEY):
            layer_sizes(self)


class PrunedModel:
    """Builds the dense model, then gives every layer the sizes that its configuration lists.

    Nothing is allocated for what goes away where models are built on the meta device, as ``from_pretrained`` does. A
    layer whose query heads share their key/value heads unevenly holds ``kv_index``: the key/value head of each query
    head. A layer without an attention or an FFN runs as if that gave 0. All other layers run as they always did.

    Args:
        config: a pruned configuration of the same family.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        layers = self.get_decoder().layers  # type: ignore[attr-defined]
        for number, (layer, sizes) in enumerate(zip(layers, layer_sizes(config), strict=True)):
            _leave_out(layer, sizes, config, number)
            _resize(layer, sizes)
        attentions = [layer.self_attn for layer in layers]
        self._indexed: list[nn.Module] = [x for x in attentions if hasattr(x, "kv_index")]
        self._index_keys()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Loads a model like any other.

        Raises:
            ValueError: weights and configuration disagree about the key/value heads that the query heads read.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        model._require_same_index({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
        return (model, info) if output_loading_info else model

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Switches the attention; where a layer reads keys by index to eager or sdpa alone, and the index stays."""
        if self._indexed:
            require_indexable(str(attn_implementation))
        super().set_attn_implementation(attn_implementation, *args, **kwargs)  # type: ignore[misc]
        self._index_keys()

    def _index_keys(self) -> None:
        if self._indexed:
            use_indexed_attention(self, self._indexed)

    def _require_same_index(self, not_loaded: set[str]) -> None:
        """Compares the index in the weights with that in the configuration, and fills in what either lacks."""
        config: Any = self.config  # type: ignore[attr-defined]
        names = {module: name for name, module in self.named_modules()}  # type: ignore[attr-defined]
        said, held = getattr(config, KV_INDEX_KEY, None), []
        for i, layer in enumerate(self.get_decoder().layers):  # type: ignore[attr-defined]
            buffer, name = getattr(layer.self_attn, "kv_index", None), f"{names[layer.self_attn]}.kv_index"
            if said is not None and buffer is not None and name in not_loaded:
                buffer.copy_(torch.tensor(said[i]))
            held.append(None if buffer is None else buffer.tolist())
            if said is not None and held[i] != said[i]:
                raise ValueError(
                    f"config and weights disagree about {name}: {KV_INDEX_KEY} in config.json says {said[i]} for layer "
                    f"{i}, the weights hold {held[i]}; get both files from one place"
                )
        setattr(config, KV_INDEX_KEY, held)


@cache
def pruned_classes(family: str) -> dict[str, Any]:
    """The classes of a pruned family, by the Auto class that finds each; made and registered once.

    Args:
        family: one of ``FAMILIES``.

    Raises:
        ImportError: the installed transformers does not have the family.
    """
    dense = {auto: _of_transformers(name) for auto, name in zip(AUTO_CLASSES, FAMILIES[family], strict=True)}
    if dense["AutoConfig"] is None or dense["AutoModelForCausalLM"] is None:
        raise ImportError(
            f"transformers {transformers.__version__} has no {FAMILIES[family][2]}, of which a pruned {family} is "
            f"built; install a newer one"
        )
    names = pruned_names(family)
    made = {auto: _pruned(names[auto], dense[auto], family) for auto in names if dense[auto] is not None}
    for auto, made_class in made.items():
        made_class.register_for_auto_class(auto)  # save_pretrained writes this file beside the weights
        if auto != "AutoConfig":
            made_class.config_class = made["AutoConfig"]
    if "AutoModel" in made:  # a classifier asks it for its decoder
        transformers.AutoModel.register(made["AutoConfig"], made["AutoModel"], exist_ok=True)
    globals().update({made_class.__name__: made_class for made_class in made.values()})
    return made


def __getattr__(name: str) -> Any:
    for family in FAMILIES:
        for auto, own in pruned_names(family).items():
            if own == name and auto in pruned_classes(family):
                return pruned_classes(family)[auto]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _of_transformers(name: str | None) -> Any:
    try:
        return getattr(transformers, name or "", None)
    except (ImportError, RuntimeError):  # it is there, and needs a package that is not
        return None


def _pruned(name: str, dense: Any, family: str) -> Any:
    """A class of this module, which processes that are given a pickled one find under its name."""
    is_config = issubclass(dense, transformers.PreTrainedConfig)
    content: dict[str, Any] = {"__module__": __name__, "__doc__": f"A pruned {family}."}
    if is_config:
        content["model_type"] = PREFIX + family
    return type(name, (PrunedConfig if is_config else PrunedModel, dense), content)


def _leave_out(layer: Any, sizes: LayerSizes, config: Any, number: int) -> None:
    """Takes what a layer does not have any more out of a dense one."""
    if not sizes.heads:
        put(layer, stand_ins(layer, "attention", ("self_attn",), config, number, config.hidden_size))
    if not sizes.channels:
        ffn = ("mlp",) if hasattr(layer, "mlp") else ("fc1", "fc2")
        put(layer, stand_ins(layer, "ffn", ffn, config, number, config.hidden_size))


def _resize(layer: Any, sizes: LayerSizes) -> None:
    """Gives a dense layer its own sizes; a layer that has them already stays as it is."""
    if sizes.heads:
        _resize_attention(layer.self_attn, sizes)
    if sizes.channels:
        ffn = getattr(layer, "mlp", layer)
        _resize_linear(ffn, ("gate_proj", "up_proj", "fc1"), rows=sizes.channels)
        _resize_linear(ffn, ("gate_up_proj",), rows=2 * sizes.channels)
        _resize_linear(ffn, ("down_proj", "fc2"), columns=sizes.channels)


def _resize_attention(attention: Any, sizes: LayerSizes) -> None:
    rows, kv_rows = sizes.heads * attention.head_dim, sizes.kv_heads * attention.head_dim
    _resize_linear(attention, ("q_proj",), rows=rows)
    _resize_linear(attention, ("k_proj", "v_proj"), rows=kv_rows)
    _resize_linear(attention, ("o_proj", "out_proj"), columns=rows)
    if hasattr(attention, "num_heads"):  # OPT; the others infer it from the projection's width
        attention.num_heads = sizes.heads
    if sizes.kv_index is not None:
        index = torch.tensor(sizes.kv_index, device=attention.q_proj.weight.device)
        attention.register_buffer("kv_index", index)
    elif hasattr(attention, "num_key_value_groups"):
        attention.num_key_value_groups = sizes.heads // sizes.kv_heads


def _resize_linear(
    owner: nn.Module, names: tuple[str, ...], rows: int | None = None, columns: int | None = None
) -> None:
    for name in names:
        old = getattr(owner, name, None)
        if old is None:
            continue
        shape = rows or old.out_features, columns or old.in_features
        if shape != (old.out_features, old.in_features):
            weight, bias = old.weight, old.bias is not None
            new = nn.Linear(shape[1], shape[0], bias, device=weight.device, dtype=weight.dtype)
            setattr(owner, name, new)
