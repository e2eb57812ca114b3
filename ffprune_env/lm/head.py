"""From tokens to final hidden states, and from these to logits, as the model itself would: checked once per model."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ffprune_env.lm.around_layers import state_around_layers
from ffprune_env.lm.batches import is_out_of_memory
from ffprune_env.lm.devices import running_device
from ffprune_env.lm.one_line import one_line
from ffprune_env.lm.probing import ROUNDING, calm, probe_tokens, relative_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 9
_SPLIT = 7  # rows of the first of two chunks: neither a window nor a half of one
# Caps of logits bend large ones, and random weights make small ones.
_MAGNIFIED = 64.0
# A model's own code sees the rows of a chunk as one window, whose mask may take their square.
_MOST_ROWS = 2048
Route = Literal["projection", "own head", "whole"]


@dataclass(frozen=True)
class Head:
    """How a model's logits can be made.

    Attributes:
        route: ``"projection"``: the decoder, then the vocabulary projection and nothing else. ``"own head"``: the
            model's own code, which can be given final hidden states. ``"whole"``: the model's own code and no other
            way, so that there are no hidden states to work with.
        vocabulary: logits per token.
        output: what the decoder returns; None for the whole model.
        compared: whether the logits were numbers, so that they could be compared.
    """

    route: Route
    vocabulary: int
    output: type | None
    compared: bool = True


# With the state of the model in which it was found.
_heads: WeakKeyDictionary[nn.Module, tuple[Head, Hashable]] = WeakKeyDictionary()


class _Reached(Exception):  # noqa: N818 - nothing is wrong
    """The decoder has run."""


def head_of(model: PreTrainedModel) -> Head:
    """How the logits of a model are made, from a comparison with its own on a few tokens; done once per model.

    Whoever lets hooks count what passes asks before they are attached, so that they do not count the comparison.
    Whoever begins to measure a model calls :func:`look_again` first.

    Args:
        model: a causal language model, dense or pruned.

    Raises:
        ValueError: tokens alone give no logits, or a token changes the logits of those before it.
    """
    if model in _heads:
        return _heads[model][0]
    return _remember(model, _compare(model))


def look_again(model: PreTrainedModel, compare: bool = False) -> None:
    """Finds out again how the logits of a model are made, if it is no longer what it was.

    Args:
        model: a causal language model, whose hooks, settings, head or decoder may have been changed in memory.
        compare: compare its logits on a few tokens even if
            :func:`~ffprune_env.lm.around_layers.state_around_layers` sees no change; not of a model that is streamed,
            which takes long.

    Raises:
        ValueError: as for :func:`head_of`.
    """
    if model not in _heads:
        return
    head, state = _heads[model]
    if state != state_around_layers(model, decoder_of(model)):
        _remember(model, _compare(model))
    elif head.route != "whole" and (compare or not head.compared):
        if any(parameter.is_meta for parameter in model.parameters()):
            return
        now = _compare(model)
        if now.compared and now != head:
            _remember(model, now)


def distrust_head(model: PreTrainedModel) -> None:
    """From now on the logits of a model are those of its own forward pass: on text others were found wrong."""
    _remember(model, Head("whole", head_of(model).vocabulary, None))


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The part of a model that makes the final hidden states from tokens: what holds the embeddings, but no head."""
    decoder: nn.Module = model.get_decoder()
    embeddings: nn.Module = model.get_input_embeddings()
    if id(decoder) != id(model):
        return decoder
    # Some families have not told transformers where theirs is.
    holders = [child for child in decoder.children() if any(module is embeddings for module in child.modules())]
    return holders[0] if holders and holders[0] is not embeddings else decoder


def decoder_outputs(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """Final hidden states of a batch, without the vocabulary projection.

    Args:
        model: a causal language model.
        batch: int64 [B, T] on any device.

    Returns:
        [B, T, C] on the model's device.

    Raises:
        ValueError: nothing but the whole model knows how to get from tokens to logits.
    """
    head, tokens = head_of(model), _placed(model, batch)
    if head.route == "whole":
        raise ValueError(f"{_name(model)} has no hidden states that give its logits: it can be measured and no more")
    return _states(model, tokens) if head.route == "projection" else _own_states(model, tokens)[0]


def native_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of final hidden states, as the model makes them.

    Args:
        model: the model that made the hidden states.
        hidden: [tokens, C].

    Returns:
        [tokens, vocabulary], in whatever dtype the model gives.
    """
    head = head_of(model)
    if head.output is None:
        raise ValueError(f"{_name(model)} has no hidden states that give its logits: it can be measured and no more")
    return _projected(model, hidden) if head.route == "projection" else _own_head(model, head.output, hidden)


def rows_at_once(model: PreTrainedModel, n_bytes: int) -> int:
    """Rows of hidden states whose float32 logits take no more than so many bytes, at least one."""
    head = head_of(model)
    rows = max(1, n_bytes // (4 * head.vocabulary))
    return rows if head.route == "projection" else min(rows, _MOST_ROWS)


def own_logits(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """What the model's own forward pass gives.

    Args:
        model: a causal language model.
        batch: int64 [B, T] on any device.

    Returns:
        [B, T, vocabulary].
    """
    logits: torch.Tensor = model(input_ids=_placed(model, batch), **_without_cache(model)).logits
    return logits


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Lets a module do something else."""
    before = vars(module).get("forward")  # there is one where accelerate moves what a module is given
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _remember(model: PreTrainedModel, head: Head) -> Head:
    _heads[model] = (head, state_around_layers(model, decoder_of(model)))
    if head.route == "own head":
        logger.info("%s: logits are more than a vocabulary projection; its own code makes them", _name(model))
    if head.route == "whole":
        logger.warning("%s: logits are made by its own forward pass, a window at a time", _name(model))
    return head


def _compare(model: PreTrainedModel) -> Head:
    with calm(model):
        return _find_head(model)


def _find_head(model: PreTrainedModel) -> Head:
    tokens = probe_tokens(model, (1, _PROBE_TOKENS)).repeat(2, 1)
    tokens[1, -1] = (tokens[0, -1] + 1) % model.get_input_embeddings().num_embeddings
    try:
        logits = own_logits(model, tokens)
    except Exception as error:  # a model that wants more than tokens can raise anything
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        reason = one_line(error)
        raise ValueError(f"{_name(model)} cannot be measured: tokens alone give no logits ({reason})") from error
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        shapes = f"{tuple(logits.shape)} for {tuple(tokens.shape)} tokens"
        raise ValueError(f"{_name(model)} cannot be measured: its logits have shape {shapes}")
    vocabulary, limit = logits.shape[-1], ROUNDING[logits.dtype]
    broken = bool(torch.isnan(logits).any())  # nothing can be compared; whoever measures says what is wrong
    if relative_error(logits[1, :-1], logits[0, :-1]) > limit:
        raise ValueError(
            f"{_name(model)} cannot be measured: a token changes the logits of those before it, so that it knows what "
            "it is to predict; an encoder must have is_decoder=True in its config"
        )
    try:
        hidden, output = _own_states(model, _placed(model, tokens))
        rows = hidden.flatten(0, 1)
        parts = [_own_head(model, output, chunk) for chunk in (rows[:_SPLIT], rows[_SPLIT:])]
        if not broken and not relative_error(torch.cat(parts), logits.flatten(0, 1)) <= limit:
            return Head("whole", vocabulary, None)
    except Exception as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        logger.debug("%s: no way from hidden states to logits", _name(model), exc_info=True)
        return Head("whole", vocabulary, None)
    plain = _is_projection(model, _placed(model, tokens), hidden, output, logits)
    return Head("projection" if plain else "own head", vocabulary, output, not broken)


def _is_projection(
    model: PreTrainedModel, tokens: torch.Tensor, hidden: torch.Tensor, output: type, logits: torch.Tensor
) -> bool:
    """Whether the decoder called by itself, then the vocabulary projection, give the same to the last bit.

    Rounding is no excuse: both would do the same operations, and the way that is taken otherwise is as right.
    """
    if not isinstance(model.get_output_embeddings(), nn.Module):
        return False
    try:
        states, large = _states(model, tokens), hidden[:1].flatten(0, 1) * _MAGNIFIED
        same = torch.equal(_projected(model, states), logits)
        return same and torch.equal(_projected(model, large[None])[0], _own_head(model, output, large))
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return False


def _states(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = decoder_of(model)(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden


def _projected(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.get_output_embeddings()(hidden)
    return logits


def _own_states(model: PreTrainedModel, tokens: torch.Tensor) -> tuple[torch.Tensor, type]:
    """What the decoder returns when the model calls it, and in which kind of wrapping; the model runs no farther."""
    found: list[Any] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output)
        raise _Reached

    hook = decoder_of(model).register_forward_hook(note)
    try:
        model(input_ids=tokens, **_without_cache(model))
    except _Reached:
        pass
    finally:
        hook.remove()
    if not found:
        raise ValueError(f"{_name(model)} does not call its decoder")
    output = found[0]
    return (output[0] if isinstance(output, tuple) else output.last_hidden_state), type(output)


def _own_head(model: PreTrainedModel, output: type, hidden: torch.Tensor) -> torch.Tensor:
    """The model's own code from the output of its decoder on, [tokens, C] to [tokens, vocabulary]."""
    states = hidden[None]

    def give(*args: Any, **kwargs: Any) -> Any:
        return (states,) if output is tuple else output(last_hidden_state=states)

    tokens = torch.zeros(states.shape[:2], dtype=torch.int64)
    with replaced_forward(decoder_of(model), give):
        return own_logits(model, tokens)[0]


def _placed(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    return batch.to(running_device(model.get_input_embeddings()))


def _without_cache(model: PreTrainedModel) -> dict[str, bool]:
    """What tells a model to keep no cache, if it has a way to be told."""
    parameters = inspect.signature(type(model).forward).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    return {"use_cache": False} if "use_cache" in parameters or inspect.Parameter.VAR_KEYWORD in kinds else {}


def _name(model: nn.Module) -> str:
    return type(model).__name__
