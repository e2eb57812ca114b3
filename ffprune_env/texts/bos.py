"""Whether windows of text begin with the tokenizer's BOS token, and which models need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from ffprune_env.modeling.config_names import PREFIX

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: What can be asked for.
Bos = Literal["auto", "always", "never"]
#: What was done: all windows begin with it, or they are cut from the tokens of the text as the tokenizer gives them.
BosProtocol = Literal["always", "never"]

# Beginnings of the model types that make nothing of text without it.
_NEED_IT = ("gemma", "recurrent_gemma", "vaultgemma")


def bos_protocol(asked: Bos, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase) -> BosProtocol:
    """What ``auto`` stands for: ``always`` for a model that needs it and whose tokenizer has it, ``never`` for others.

    Args:
        asked: as it was asked for.
        model: what windows are for; without one none is known to need it.
        tokenizer: its tokenizer.

    Raises:
        ValueError: no such setting, or a tokenizer without BOS token is to begin with it.
    """
    if asked not in get_args(Bos):
        raise ValueError(f"unknown bos {asked!r}; allowed are {', '.join(get_args(Bos))}")
    if asked == "auto":
        needed = model is not None and model.config.model_type.removeprefix(PREFIX).startswith(_NEED_IT)
        return "always" if needed and tokenizer.bos_token_id is not None else "never"
    if asked == "always" and tokenizer.bos_token_id is None:
        raise ValueError("windows cannot begin with a BOS token, the tokenizer has none: say --bos never")
    return asked


def stated(protocol: str) -> str:
    """What is added to "windows of 2048 tokens" wherever figures are shown; nothing for the paper's protocol."""
    return ", the first of them BOS" if protocol == "always" else ""
