"""Which text a model is searched or measured on where nobody says."""

from __future__ import annotations

from pathlib import Path

from ffprune_env.lm.model_names import HUB_MODELS
from ffprune_env.texts.windows import DEFAULT_TEXT

#: What stands for the text that goes with a model.
AUTO_TEXT = "auto"
#: The text of the paper, and of most others who prune models of the hub.
_HUB_TEXT = "wikitext2"


def text_for(model: str, text: str = AUTO_TEXT) -> str:
    """The text that was asked for or, of ``auto``, the one that goes with the model.

    That is ``wikitext2`` for the short names of models of the hub, so that figures can be compared with anybody's, and
    ``python-docs``, which needs no hub, for every other model: the default one, folders and hub ids.

    Args:
        model: as it was asked for; see :func:`ffprune_env.load_model`.
        text: as it was asked for; see :func:`ffprune_env.load_windows`.
    """
    if text != AUTO_TEXT:
        return text
    return _HUB_TEXT if model in HUB_MODELS and not Path(model).is_dir() else DEFAULT_TEXT
