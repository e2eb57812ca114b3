"""Generation settings that transformers reads but will not write: found out before a search, not after it."""

from __future__ import annotations

import copy
import logging
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

logger = logging.getLogger(__name__)


def make_writable(model: PreTrainedModel) -> None:
    """Unsets generation settings of a model that transformers refuses to write, and says which.

    Published checkpoints have such settings, a ``temperature`` without ``do_sample`` above all. They have no effect, so
    that the model generates as before. Where transformers writes them as they are, nothing is changed.

    Args:
        model: a model as it was loaded.

    Raises:
        ValueError: the settings contradict each other in another way.
    """
    settings: GenerationConfig | None = getattr(model, "generation_config", None)
    if settings is None or (problem := _problem(settings)) is None:
        return
    defaults, unset = type(settings)().to_dict(), {}
    for name, value in settings.to_diff_dict().items():
        trial = copy.deepcopy(settings)
        setattr(trial, name, defaults.get(name))
        left = _problem(trial)
        if left is None or len(left.splitlines()) < len(problem.splitlines()):
            settings, problem, unset[name] = trial, left or "", value
        if left is None:
            model.generation_config = settings
            given = ", ".join(f"{key} = {value}" for key, value in unset.items())
            logger.warning("generation settings without effect, which cannot be written, are unset: %s", given)
            return
    raise ValueError(f"its generation_config.json could not be written again: {' '.join(problem.split())}; correct it")


def _problem(settings: GenerationConfig) -> str | None:
    """What transformers says when it is to write the settings; versions differ, so it is asked."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            settings.save_pretrained(folder)
        except (ValueError, TypeError) as error:
            return str(error)
    return None
