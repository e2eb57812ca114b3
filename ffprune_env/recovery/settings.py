"""RecoverySettings: what is trained, towards what, on how much text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ffprune_env.lm.ranges import require_in_range

#: Which weights are trained where there are no adapters.
Trained = Literal["all", "outputs"]
Precision = Literal["auto", "float32", "bfloat16"]

# Of AdamW, by what is trained: few weights, or adapters that begin at nothing, take larger steps.
_RATES: dict[str, float] = {"all": 2e-4, "outputs": 2e-4, "lora": 2e-4}


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
        learning_rate: of AdamW at its highest; None: by what is trained.
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
        require_in_range("tokens of a recovery", self.tokens, 1)
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes of a recovery must be more than 0, got {self.minutes}")
        if self.trained not in ("all", "outputs"):
            raise ValueError(f"what is trained must be all or outputs, got {self.trained!r}")
        require_in_range("the rank of the adapters", self.lora, 1)
        if self.lora is not None and self.trained != "all":
            raise ValueError("adapters are trained in the place of weights: give either a rank, or which weights")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"the learning rate of a recovery must be more than 0, got {self.learning_rate}")
        require_in_range("the share of cross-entropy", self.cross_entropy, 0, 1)
        require_in_range("the weight of hidden states", self.hidden, 0)
        for name, value in (("windows per step", self.windows_per_step), ("held-out windows", self.held_out)):
            require_in_range(name, value, 1)
        require_in_range("looks at the held-out loss", self.looks, 1)
        require_in_range("patience", self.patience, 0)
        require_in_range("probabilities per token of the teacher", self.teacher_topk, 1)
        if self.teacher_topk is not None and self.hidden:
            raise ValueError("hidden states are not kept on disk: leave out the top k of the teacher, or their weight")

    @property
    def rate(self) -> float:
        """The learning rate that was asked for, or the one that goes with what is trained."""
        return self.learning_rate or _RATES["lora" if self.lora is not None else self.trained]

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
