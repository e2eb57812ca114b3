"""What is rewarded, and where questions are read from: settings of everything that measures a model."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ffprune_env.evaluators.objectives.reward import RewardMix, parse_reward

#: What stands behind ``--reward``, as one string: see :func:`~ffprune_env.evaluators.objectives.reward.parse_reward`.
RewardText = str | Literal["ppl", "kl", "tasks"]


def parse_words(words: Sequence[str]) -> RewardText:
    """Reads what stands behind ``--reward``; ValueError if it is no reward."""
    text = shlex.join(words) if len(words) > 1 else " ".join(words)
    parse_reward(text)
    return text


@dataclass(frozen=True)
class DataSettings:
    """Where questions are read from; the field is a flag, with its help."""

    data_dir: Path | None = None
    """folder with a file <task>.jsonl for each zero-shot task, in the columns of the hub's data set; by default the
    data come from the hub"""


@dataclass(frozen=True)
class RewardSettings(DataSettings):
    """What a step is rewarded with; the field is a flag, with its help."""

    reward: RewardText = "ppl"
    """what a step is rewarded with: ppl (PPL_dense / PPL), kl (exp of minus the divergence from the dense model), tasks
    or tasks:piqa,arc_easy (questions with choices, of --data-dir or the hub), tasks:questions.jsonl (your own),
    tasks:task.yaml (any multiple-choice task in lm-eval's format), chat:talks.jsonl (answers of conversations),
    module:function (of model and tokenizer to a number), or several with weights, as in ppl=0.5 tasks=0.5: see
    docs/environment.md"""

    @property
    def rewarded(self) -> RewardMix:
        """The same, parsed."""
        return parse_reward(self.reward)
