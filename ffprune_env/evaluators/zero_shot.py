"""Zero-shot accuracy on the seven common-sense tasks of the paper's tables, as lm-eval itself measures it."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lm_eval.evaluator import evaluate  # type: ignore[import-untyped]
from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

from ffprune_env.evaluators.zero_shot_tasks import TASKS, open_tasks, quiet_lm_eval
from ffprune_env.lm.batches import in_fitting_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Metric = Literal["acc", "acc_norm"]
#: What is told of progress: the task, how many token sequences the model has read, how many it will read.
Show = Callable[[str, int, int], None]

# The fastest of 1, 4, 8 and 16 for a model of 135M parameters in bfloat16 on one CPU core.
DEFAULT_BATCH_SIZE = 8
# What the paper averages of these tasks, for which lm-eval has no other metric; of the others it takes acc_norm.
_BY_ACC = ("boolq", "winogrande")


@dataclass(frozen=True)
class TaskResult:
    """What lm-eval reports of one task.

    Attributes:
        acc: share of questions whose right answer is the likeliest.
        acc_stderr: its standard error; None of a single question.
        acc_norm: the same by likelihood per character of the answer; None where the task has no such metric.
        acc_norm_stderr: its standard error.
        n: questions asked. Where an answer had no finite likelihood, which the right one may then be taken for, all of
            the above are NaN.
        averaged: the metric that the average over tasks takes.
    """

    acc: float
    acc_stderr: float | None
    acc_norm: float | None
    acc_norm_stderr: float | None
    n: int
    averaged: Metric

    @property
    def score(self) -> float:
        """The metric that the average takes."""
        return float(getattr(self, self.averaged))

    @property
    def score_stderr(self) -> float | None:
        """Its standard error."""
        stderr: float | None = getattr(self, f"{self.averaged}_stderr")
        return stderr


@dataclass(frozen=True)
class ZeroShot:
    """Zero-shot accuracies of one model, by lm-eval's names of the tasks."""

    tasks: dict[str, TaskResult]

    @property
    def average(self) -> float:
        """Mean over tasks, as in the paper: acc of boolq and winogrande, acc_norm of the others."""
        return sum(result.score for result in self.tasks.values()) / len(self.tasks)

    @property
    def average_stderr(self) -> float | None:
        """Standard error of the average, with independent tasks; None if one of them has none."""
        stderrs = [result.score_stderr for result in self.tasks.values()]
        known = [stderr for stderr in stderrs if stderr is not None]
        return math.hypot(*known) / len(known) if len(known) == len(stderrs) else None


def evaluate_zero_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    tasks: Sequence[str] = TASKS,
    show: Show | None = None,
) -> ZeroShot:
    """Loads tasks and measures a model on them: :func:`open_tasks` and :func:`score_tasks` in one call."""
    check_settings(limit, batch_size)
    with open_tasks(tasks, data_dir) as opened:
        return score_tasks(model, tokenizer, opened, limit, batch_size, show)


def score_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, Any],
    limit: int | None = None,
    batch_size: int | None = None,
    show: Show | None = None,
) -> ZeroShot:
    """Measures a model, dense or pruned, also inside ``with prunable.pruned(...)``.

    Args:
        model: a causal language model, in evaluation mode.
        tokenizer: the model's.
        tasks: what :func:`open_tasks` yields.
        limit: questions per task, from the first; None asks all.
        batch_size: token sequences per forward pass, fewer where memory runs out; None takes
            :data:`DEFAULT_BATCH_SIZE`.
        show: called after every forward pass.

    Raises:
        ValueError: a setting out of range, or a tokenizer that lm-eval cannot use.
        RuntimeError: memory runs out with a single sequence.
    """
    check_settings(limit, batch_size)
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise ValueError("lm-eval needs a tokenizer with a bos or an eos token, got one with neither: set one of them")
    results = {}
    started = time.perf_counter()
    with quiet_lm_eval():
        scorer = _Scorer(model, tokenizer, batch_size or DEFAULT_BATCH_SIZE, show)
        for name, task in tasks.items():
            scorer.task_name = name
            report = evaluate(lm=scorer, task_dict={"tasks": {name: task}}, limit=limit, log_samples=False)
            results[name] = result = _result(name, report, scorer.broken > 0)
            logger.info("%s: %s %.4f on %d questions", name, result.averaged, result.score, result.n)
    scored = ZeroShot(results)
    logger.info("average of %d tasks: %.4f, in %.0f s", len(results), scored.average, time.perf_counter() - started)
    return scored


def check_settings(limit: int | None, batch_size: int | None) -> None:
    """Raises ValueError if a setting is out of range."""
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


class _Scorer(HFLM):  # type: ignore[misc]
    """lm-eval's own scoring, which also tells how far it is and what a reader of its numbers must know."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, show: Show | None
    ) -> None:
        # A copy, because lm-eval gives tokenizers a padding token.
        own = copy.deepcopy(tokenizer)
        with _nothing_tied(model):
            super().__init__(model, "causal", tokenizer=own, batch_size=batch_size)
        self.task_name = ""
        #: Questions with an answer that has no finite likelihood, of the last task.
        self.broken = 0
        self._show = show
        self._read = self._to_read = 0
        self._at_most = batch_size

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        # Answers that differ in their last token alone are read at once.
        sequences = {(*context, *answer[:-1]) for _, context, answer in requests}
        self._to_read = len(sequences)

        def score(size: int) -> Any:
            self.batch_size_per_gpu, self._read = size, 0
            return super(_Scorer, self)._loglikelihood_tokens(requests, *args, **kwargs)

        # The longest are read first, so that little is read twice where memory runs out.
        longest = min(max(map(len, sequences), default=1), self.max_length)
        shape = torch.empty(len(sequences), longest, dtype=torch.int64, device="meta")
        scores = in_fitting_batches(self.model, shape, self._at_most, score)
        too_long = sum(len(context) + len(answer) > self.max_length + 1 for _, context, answer in requests)
        self.broken = sum(not math.isfinite(score) for score, _ in scores)
        for count, what in (
            (too_long, f"were cut from the left, to the {self.max_length} tokens that the model takes"),
            (self.broken, "have no finite likelihood: there is no accuracy"),
        ):
            if count:
                logger.warning("%s: %d of %d questions with an answer %s", self.task_name, count, len(scores), what)
        return scores

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits: torch.Tensor = super()._model_call(inps, *args, **kwargs)
        self._read += len(inps)
        if self._show is not None:
            self._show(self.task_name, self._read, self._to_read)
        return logits


@contextmanager
def _nothing_tied(model: PreTrainedModel) -> Iterator[None]:
    """Keeps lm-eval from tying weights by the config, which would replace a head of its own by the embedding."""
    model.__dict__["tie_weights"] = lambda: None
    try:
        yield
    finally:
        del model.__dict__["tie_weights"]


def _result(name: str, report: Mapping[str, Any], broken: bool) -> TaskResult:
    values = {key.removesuffix(",none"): value for key, value in report["results"][name].items()}
    acc_stderr, acc_norm, acc_norm_stderr = (
        value if isinstance(value := values.get(key), float) else None  # lm-eval writes "N/A" for no standard error
        for key in ("acc_stderr", "acc_norm", "acc_norm_stderr")
    )
    averaged: Metric = "acc" if name in _BY_ACC else "acc_norm"
    n = report["n-samples"][name]["effective"]
    if broken:
        return TaskResult(math.nan, None, None if acc_norm is None else math.nan, None, n, averaged)
    return TaskResult(float(values["acc"]), acc_stderr, acc_norm, acc_norm_stderr, n, averaged)
