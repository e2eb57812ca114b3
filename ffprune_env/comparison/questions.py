"""The zero-shot questions of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ffprune_env.comparison.subject import ZeroShotTest
    from ffprune_env.evaluators.zero_shot import ZeroShot

#: (model, tokenizer, tasks, limit, batch size) to accuracies.
Score = Callable[
    ["PreTrainedModel", "PreTrainedTokenizerBase", Mapping[str, Any], "int | None", "int | None"], "ZeroShot"
]


@dataclass(frozen=True)
class Questions:
    """The zero-shot questions that final models are asked.

    Attributes:
        tasks: what :func:`~ffprune_env.evaluators.zero_shot_tasks.open_tasks` yields.
        limit: questions per task, from the first; None asks all.
        data_dir: folder that they were read from; None where they came from the hub.
        score: asks them.
        apart: a digest of what was taken out, since searches see it; empty if that is nothing.
        seeds: of how many seeds of every search the final model is asked.
    """

    tasks: Mapping[str, Any]
    limit: int | None
    data_dir: Path | None
    score: Score
    apart: str = ""
    seeds: int = 1

    def asker(self, tokenizer: PreTrainedTokenizerBase, batch_size: int | None = None) -> ZeroShotTest:
        """What asks a model all of them.

        Args:
            tokenizer: the model's.
            batch_size: token sequences per forward pass, fewer where memory runs out; None takes the usual number.
        """
        return lambda model: self.score(model, tokenizer, self.tasks, self.limit, batch_size)

    def facts(self) -> dict[str, Any]:
        """What accuracies depend on."""
        from ffprune_env.evaluators.zero_shot_tasks import digest_of_files

        data = None if self.data_dir is None else digest_of_files(self.data_dir)
        apart = {"apart": self.apart} if self.apart else {}
        return {"data": data, "limit": self.limit, "lm_eval": metadata.version("lm_eval"), **apart}
