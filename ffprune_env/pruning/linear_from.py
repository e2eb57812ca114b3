"""A linear layer of weights that there are."""

from __future__ import annotations

import torch
from torch import nn


def linear_from(weight: torch.Tensor, bias: torch.Tensor | None = None, *, requires_grad: bool = True) -> nn.Linear:
    """A linear layer with the given weights, which become its parameters.

    Args:
        weight: [out_features, in_features].
        bias: [out_features].
        requires_grad: whether they can be trained.
    """
    # On the meta device no memory is taken and no random number drawn for weights that are replaced at once.
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=requires_grad)
    return linear
