"""RecoverySettings: what is trained, towards what, on how much text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ffprune_env.lm.ranges import require_in_range

#: Which weights are trained where there are no adapters.
Trained = Literal["all", "outputs"]
Precision = Literal["auto", "float32", "bfloat16"]

# Of AdamW. Adapters take larger steps: what they add begins at 0, and they are few (docs/recovery.md).
_RATE, _RATE_OF_ADAPTERS = 2e-4, 1e-3

# The least and the most that a number may be.
_BOUNDS: dict[str, tuple[float, float]] = {
    "tokens": (1, math.inf),
    "lora": (1, math.inf),
    "cross_entropy": (0, 1),
    "hidden": (0, math.inf),
    "windows_per_step": (1, math.inf),
    "held_out": (1, math.inf),
    "looks": (1, math.inf),
    "patience": (0, math.inf),
    "teacher_topk": (1, math.inf),
}
_MORE_THAN_0 = ("minutes", "learning_rate")


@dataclass(frozen=True)
class RecoverySettings:
    """How a pruned model is trained; the defaults are those of docs/recovery.md.

    Attributes:
        tokens: tokens that go through the model, the text once more where it ends; None: the text once or, with
            ``minutes``, as often as there is time.
        minutes: how long it may take, all that it measures included; None: no limit.
        trained: ``all`` weights but the embeddings (and a head that is one of them), or ``outputs``: norms and output
            projections alone.
        lora: rank of adapters that are trained in the place of the weights, and merged in the end; None: no adapters.
        learning_rate: of AdamW at its highest; None: 0.0002, of adapters 0.001.
        cross_entropy: share of the loss that is the cross-entropy of the text; the rest is KL(dense ‖ pruned).
        hidden: weight of the relative squared error of the hidden states behind every layer, which is added; 0: none.
        windows_per_step: windows, or conversations, behind one step of the optimizer, whatever fits into memory.
        held_out: windows that are not trained on, by whose loss the best state is chosen.
        looks: how often the held-out loss is measured, at equal distances; every time a checkpoint is written.
        patience: looks without a better held-out loss after which training ends; 0 never ends it early. The loss falls
            most at the end, where the rate does: a few looks without a better one are no reason to stop.
        teacher_topk: let so many of the dense model's log-probabilities per token be computed first and kept on disk;
            None: the dense model predicts while the pruned one is trained.
        save_memory: compute what is inside the layers again in the backward pass, instead of keeping it.
        precision: of the products; weights that are trained, and the optimizer, are float32. ``auto``: bfloat16 where
            the hardware multiplies it fast.
        seed: of the order of windows and of the adapters.
    """

    tokens: int | None = None
    minutes: float | None = None
    trained: Trained = "all"
    lora: int | None = None
    learning_rate: float | None = None
    cross_entropy: float = 0.0
    hidden: float = 0.0
    windows_per_step: int = 1
    held_out: int = 4
    looks: int = 5
    patience: int = 0
    teacher_topk: int | None = None
    save_memory: bool = False
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        require_bounds(vars(self), {})
        if self.trained not in ("all", "outputs"):
            raise ValueError(f"what is trained must be all or outputs, got {self.trained!r}")
        if self.lora is not None and self.trained != "all":
            raise ValueError("adapters are trained in the place of weights: give either a rank, or which weights")
        if self.teacher_topk is not None and self.hidden:
            raise ValueError("hidden states are not kept on disk: leave out the top k of the teacher, or their weight")

    @property
    def rate(self) -> float:
        """The learning rate that was asked for, or the default one."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _RATE if self.lora is None else _RATE_OF_ADAPTERS

    @property
    def what_is_trained(self) -> str:
        """In words."""
        if self.lora is not None:
            return f"adapters of rank {self.lora}"
        return "all weights but the embeddings" if self.trained == "all" else "norms and output projections"

    @property
    def objective(self) -> str:
        """In words."""
        share = self.cross_entropy
        parts = ["KL to the dense model"] if share == 0 else ["cross-entropy"]
        if 0 < share < 1:
            parts = [f"{1 - share:g} KL to the dense model", f"{share:g} cross-entropy"]
        return " + ".join([*parts, *([f"{self.hidden:g} hidden states"] if self.hidden else [])])


def require_bounds(values: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Raises ValueError, in one line, for a number that is out of its bounds.

    Args:
        values: of fields of :class:`RecoverySettings`; what is missing or None is not looked at.
        names: what the message calls a field, where that is not its own name: a flag.
    """
    called = {name: names.get(name, f"{name} of a recovery") for name in (*_BOUNDS, *_MORE_THAN_0)}
    for name, (least, most) in _BOUNDS.items():
        require_in_range(called[name], values.get(name), least, most)
    for name in _MORE_THAN_0:
        value = values.get(name)
        if value is not None and not value > 0:
            raise ValueError(f"{called[name]} must be more than 0, got {value}")
