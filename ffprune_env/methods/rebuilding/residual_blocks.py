"""A decoder seen as blocks on a residual path: x + attention(norm(x)), x + ffn(norm(x)), ..., head(norm(x))."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ffprune_env.lm.head import decoder_of, decoder_outputs
from ffprune_env.methods.rebuilding.projections import SharedInput, shared_inputs
from ffprune_env.pruning.layer_calls import probe_text
from ffprune_env.pruning.units import find_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Where a module computes something else than we believe it does, it is off by far more than rounding.
_TOLERANCE = 0.05
_EPSILONS = ("variance_epsilon", "eps")


class ScaleFreeNorm(nn.Module):
    """Divides by the root mean square over a width that may be larger than that of its input.

    Args:
        width: features the mean is taken over; those that are missing count as zero.
        eps: added to the mean square.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., up to width] to the same shape and dtype, computed in float32 or better."""
        exact = x.to(torch.promote_types(torch.float32, x.dtype))
        mean_square = exact.square().sum(dim=-1, keepdim=True) / self.width
        return (exact * torch.rsqrt(mean_square + self.eps)).to(x.dtype)


class SlicedEmbedding(nn.Module):
    """An embedding that stays whole, since the head is tied to it, and a matrix from there to fewer features.

    Args:
        table: the embedding, or whatever gives the features of tokens.
        entry: from its features to those that are kept.
    """

    def __init__(self, table: nn.Embedding, entry: nn.Linear) -> None:
        super().__init__()
        self.table, self.entry = table, entry
        self.num_embeddings, self.embedding_dim = table.num_embeddings, entry.out_features

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[...] to [..., k]."""
        features: torch.Tensor = self.entry(self.table(tokens))
        return features

    @property
    def weight(self) -> torch.Tensor:
        """[tokens, width], for code that asks a model for the weight of its embedding."""
        return self.table.weight


class SlicedLayer(nn.Module):
    """A decoder layer whose residual path goes through a matrix beside each block; serves every family.

    Args:
        attention_norm: of the hidden state, before the attention.
        attention: called with the hidden state and whatever the model gives to the layer; returns a tuple.
        attention_shortcut: of the residual path beside the attention.
        ffn_norm: of the hidden state, before the FFN.
        ffn: of the normed hidden state.
        ffn_shortcut: of the residual path beside the FFN.
    """

    def __init__(
        self,
        attention_norm: nn.Module,
        attention: nn.Module,
        attention_shortcut: nn.Module,
        ffn_norm: nn.Module,
        ffn: nn.Module,
        ffn_shortcut: nn.Module,
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention, self.attention_shortcut = attention_norm, attention, attention_shortcut
        self.ffn_norm, self.ffn, self.ffn_shortcut = ffn_norm, ffn, ffn_shortcut

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """[B, T, k] to [B, T, k]; the last layer of a sliced model leads back to all features, [B, T, C]."""
        attended = self.attention(hidden_states=self.attention_norm(hidden_states), **kwargs)[0]
        hidden_states = self.attention_shortcut(hidden_states) + attended
        output: torch.Tensor = self.ffn_shortcut(hidden_states) + self.ffn(self.ffn_norm(hidden_states))
        return output


@dataclass(frozen=True)
class Norm:
    """A norm taken apart.

    Attributes:
        module: the norm of the dense model.
        scale: float64 [width].
        bias: float64 [width], or None.
        centres: whether it subtracts the mean (LayerNorm).
        eps: added to the mean square.
    """

    module: nn.Module
    scale: torch.Tensor
    bias: torch.Tensor | None
    centres: bool
    eps: float

    def without_scale(self) -> ScaleFreeNorm:
        """What is left of the norm when scale, bias and mean subtraction are done elsewhere."""
        return ScaleFreeNorm(len(self.scale), self.eps)

    def scale_free(self, x: torch.Tensor) -> torch.Tensor:
        """What the norm gives without its scale and bias, [..., width] to the same in float32 or better."""
        exact = x.to(torch.promote_types(torch.float32, x.dtype))
        if self.centres:
            exact = exact - exact.mean(dim=-1, keepdim=True)
        normed: torch.Tensor = self.without_scale()(exact)
        return normed


@dataclass(frozen=True)
class Block:
    """What reads the hidden state in one place and, but for the head, adds to it.

    Attributes:
        norm: what it reads through.
        inputs: linear layers that read the normed hidden state.
        output: the linear layer whose output is added to the hidden state; None of the head.
    """

    norm: Norm
    inputs: tuple[nn.Linear, ...]
    output: nn.Linear | None


@dataclass(frozen=True)
class ResidualModel:
    """Everything of a model that touches the hidden state.

    Attributes:
        width: features of the hidden state.
        embeddings: tables whose entries are summed into the first hidden state, by their names in the decoder.
        blocks: attention 0, ffn 0, attention 1, ffn 1, ..., head.
        layers: the decoder layers.
        attentions: per layer, its attention.
        ffns: per layer, a module that computes its FFN.
    """

    width: int
    embeddings: dict[str, nn.Embedding]
    blocks: tuple[Block, ...]
    layers: nn.ModuleList
    attentions: tuple[nn.Module, ...]
    ffns: tuple[nn.Module, ...]


@torch.no_grad()
def find_residual_model(model: PreTrainedModel, windows: torch.Tensor) -> ResidualModel:
    """Takes a decoder apart, and checks on a few tokens that its parts compute what its layers do.

    Args:
        model: a causal language model, in evaluation mode.
        windows: int64 [n, seq_len].

    Raises:
        ValueError: the architecture is another; the message says where.
    """
    decoder, head = decoder_of(model), model.get_output_embeddings()
    layers = find_layers(model)[1]
    last = [name for name, module in decoder.named_children() if _is_norm(module)]
    if len(last) != 1 or type(head) is not nn.Linear:
        wanted = "one norm before a linear head is needed (OPT with do_layer_norm_before=False has none)"
        raise _unsupported(
            model, f"its decoder has {len(last)} norms and its head is a {type(head).__name__}; {wanted}"
        )
    width = head.in_features
    tables = {name: module for name, module in decoder.named_children() if isinstance(module, nn.Embedding)}
    widths = [table.embedding_dim for table in tables.values()]
    if set(widths) != {width} or model.config.get_text_config().hidden_size != width:
        found = ", ".join(map(str, widths))
        sizes = f"embeddings of {found}, a head of {width} and a hidden state of {model.config.hidden_size} features"
        raise _unsupported(model, f"{sizes} must be one width (as in OPT with word_embed_proj_dim = hidden_size)")
    blocks: list[Block] = []
    attentions, ffns = [], []
    for layer, groups in zip(layers, shared_inputs(model, windows), strict=True):
        norms = [module for module in layer.children() if _is_norm(module)]
        if len(norms) != 2 or len(groups) != 4 or any(len(group.linears) != 1 for group in groups[1::2]):
            found = f"{len(norms)} norms and linear layers that read {len(groups)} tensors"
            wanted = "2 are needed, and 4, as in q, k, v; o; gate, up; down"
            raise _unsupported(model, f"{type(layer).__name__} has {found}; {wanted}")
        for norm, reads, writes in zip(norms, groups[::2], groups[1::2], strict=True):
            blocks.append(Block(_take_apart(model, norm), reads.linears, writes.linears[0]))
        attentions.append(_branch(groups[0]))
        ffns.append(_branch(groups[2]))
    blocks.append(Block(_take_apart(model, decoder.get_submodule(last[0])), (head,), None))
    if len({block.norm.centres for block in blocks}) > 1:
        raise _unsupported(model, "some of its norms subtract the mean and some do not")
    parts = ResidualModel(width, tables, tuple(blocks), layers, tuple(attentions), tuple(ffns))
    _check_layers(model, parts, windows)
    return parts


def _is_norm(module: nn.Module) -> bool:
    return any(hasattr(module, name) for name in _EPSILONS)


def _take_apart(model: PreTrainedModel, module: nn.Module) -> Norm:
    """A norm as scale, bias and the rest, compared with what it gives."""
    eps = next(float(getattr(module, name)) for name in _EPSILONS if hasattr(module, name))
    width = model.config.get_text_config().hidden_size
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    like = next(model.parameters()) if weight is None else weight
    scale = torch.ones(width, dtype=torch.float64, device=like.device) if weight is None else weight.double()
    norm = Norm(module, scale, None if bias is None else bias.double(), isinstance(module, nn.LayerNorm), eps)
    x = torch.linspace(-1, 2, width, dtype=like.dtype, device=like.device)[None]
    expected = module(x).double()
    got = norm.scale_free(x).double() * scale + (0 if norm.bias is None else norm.bias)
    if not bool((got - expected).norm() <= _TOLERANCE * expected.norm()):
        raise _unsupported(
            model, f"{type(module).__name__} is neither LayerNorm nor a division by the root mean square"
        )
    return norm


def _branch(reads: SharedInput) -> nn.Module:
    """The module of a layer that holds the given linear layers, or the FFN that lies in the layer itself (OPT)."""
    child, _, inside = reads.names[0].partition(".")
    if inside:
        return reads.layer.get_submodule(child)
    activation = getattr(reads.layer, "activation_fn", None)
    after = [module for module in reads.layer.children() if type(module) is nn.Linear and module not in reads.linears]
    if not isinstance(activation, nn.Module) or len(reads.linears) != 1 or len(after) != 1:
        raise ValueError(f"{type(reads.layer).__name__} is not supported: its FFN is not two linear layers around one")
    return nn.Sequential(reads.linears[0], activation, after[0])


def _check_layers(model: PreTrainedModel, parts: ResidualModel, windows: torch.Tensor) -> None:
    """Runs every layer beside its parts put together anew, which must give the same."""

    def compare(layer: nn.Module, args: tuple[torch.Tensor], kwargs: dict[str, Any], output: torch.Tensor) -> None:
        i = next(i for i, other in enumerate(parts.layers) if other is layer)
        first, second = (block.norm.module for block in parts.blocks[2 * i : 2 * i + 2])
        same = SlicedLayer(first, parts.attentions[i], nn.Identity(), second, parts.ffns[i], nn.Identity())
        change = (output - args[0]).double()
        if not bool((same(*args, **kwargs) - output).double().norm() <= _TOLERANCE * change.norm()):
            raise _unsupported(model, f"{type(layer).__name__} is not x + attention(norm(x)), then x + ffn(norm(x))")

    with ExitStack() as hooks:
        for layer in parts.layers:
            hooks.callback(layer.register_forward_hook(compare, with_kwargs=True).remove)
        decoder_outputs(model, probe_text(windows))


def _unsupported(model: PreTrainedModel, reason: str) -> ValueError:
    return ValueError(f"{type(model).__name__} cannot be sliced: {reason}")
