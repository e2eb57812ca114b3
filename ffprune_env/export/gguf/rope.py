"""How llama.cpp is told the frequencies at which heads are rotated: as a factor for each of the default ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Kinds of rotation whose frequencies do not depend on the length of the text.
FIXED = ("default", "linear", "llama3", "yarn")


def frequency_factors(model: PreTrainedModel) -> torch.Tensor | None:
    """What llama.cpp divides the default frequencies by, float32 [head_dim / 2]; None where they are the default."""
    found = model.get_decoder().rotary_emb.inv_freq.float().cpu()
    width = 2 * len(found)
    base = model.config.rope_parameters["rope_theta"]
    default = 1.0 / (base ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    return None if torch.allclose(found, default, rtol=1e-6, atol=0) else default / found


def score_scale(model: PreTrainedModel, attention: Any) -> float:
    """What llama.cpp's attention scores, which are divided by the root of the head size, are to be multiplied by."""
    rotated = getattr(model.get_decoder().rotary_emb, "attention_scaling", 1.0) ** 2
    return float(attention.scaling * math.sqrt(attention.head_dim) * rotated)


def interleave_rotation(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Hugging Face rotates feature j with j + D/2 of a head, deci 2j with 2j + 1: rows move accordingly."""
    heads = rows.view(-1, 2, head_dim // 2, *rows.shape[1:])
    return heads.transpose(1, 2).reshape(rows.shape)
