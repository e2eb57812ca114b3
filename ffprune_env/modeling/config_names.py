"""What the config.json of a pruned model calls things.

This file is written into the folder of every pruned model, so it needs nothing at all.
"""

from __future__ import annotations

from typing import Any

#: What the ``model_type`` of a pruned model begins with; that of the dense family follows.
PREFIX = "ffprune_"
#: Keys of config.json: int per decoder layer, heads that the query projection and channels that the FFN have left.
#: ``num_attention_heads`` and ``intermediate_size`` (``ffn_dim``) stay those of the dense model.
HEADS_KEY, CHANNELS_KEY = "num_attention_heads_per_layer", "intermediate_size_per_layer"
#: int per decoder layer, heads that the key and value projections have left. Folders of older versions lack it: there
#: as many as in the dense model, or as query heads where each had its own.
KV_HEADS_KEY = "num_key_value_heads_per_layer"
#: Per decoder layer the key/value head that each query head reads, ascending, or null where the query heads share them
#: evenly and in order. Folders of older versions lack it: there the weights alone say it.
KV_INDEX_KEY = "kv_index_per_layer"
#: All keys that config.json of a dense model does not have.
PRUNED_KEYS = (HEADS_KEY, CHANNELS_KEY, KV_HEADS_KEY, KV_INDEX_KEY)


def named_as_pruned(settings: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json with the ``model_type`` of the pruned family, if it is one of a pruned model.

    In files it is that of the dense family. Transformers asks whether to run the code beside a config whose model type
    it does not know, and it reads the config for a tokenizer, too, which needs no code.

    Args:
        settings: as the file has them; a file of an older version may name the pruned family itself.
    """
    family = settings.get("model_type")
    if HEADS_KEY in settings and isinstance(family, str) and not family.startswith(PREFIX):
        return {**settings, "model_type": PREFIX + family}
    return settings
