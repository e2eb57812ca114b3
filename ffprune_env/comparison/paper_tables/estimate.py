"""What a table takes, by arithmetic: tokens through the model by method, and from there hours and memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace

from ffprune_env.budget.mapping import says_rates
from ffprune_env.comparison.answers import MARKS
from ffprune_env.comparison.paper_tables.contents import PaperTable
from ffprune_env.comparison.plan import ANSWERING, Key
from ffprune_env.comparison.rebuilt import REBUILDERS
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.lm.shapes import GIB, Shape, gpus_for
from ffprune_env.methods.rebuilding.svd_llm import GRAM_BYTES
from ffprune_env.methods.registry import Method
from ffprune_env.pruning.criteria import CRITERIA
from ffprune_env.search.affordable import affordable, most_windows, windows_at_last
from ffprune_env.search.meter import LOOK_COST
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.fisher import CURVE_TOKENS
from ffprune_env.search.starts.fisher_iterated import STEPS
from ffprune_env.search.starts.names import FISHER, FISHER_ITERATED
from ffprune_env.search.starts.other_run import STEPS as OTHER_STEPS

#: Tokens of the test split of WikiText-2 by the tokenizer of LLaMA; others make fewer of it.
TEST_TOKENS = 341_469
#: What a calibration in sequence takes, in forward passes over calibration text, as measured on the default model.
SEQUENTIAL_PASSES = 2.6
#: What the update of SVD-LLM takes, in forward passes over calibration text: every layer as it was, and compressed.
UPDATE_PASSES = 2
#: By task: questions, and tokens of all answers to one with what stands before them, by the default model's tokenizer.
QUESTIONS = {
    "boolq": (3270, 290.0),
    "piqa": (1838, 70.0),
    "hellaswag": (10042, 170.0),
    "winogrande": (1267, 45.0),
    "arc_easy": (2376, 124.0),
    "arc_challenge": (1172, 149.0),
    "openbookqa": (500, 59.0),
}
# At the model, by start; of all others none.
_LOOKS = {FISHER: 1, FISHER_ITERATED: 1 + STEPS}


@dataclass(frozen=True)
class Passes:
    """Tokens through the model by purpose; one that gradients are taken on counts as three.

    Attributes:
        start: what a search looks at before it begins.
        search: candidates.
        finalists: the last look at some of them.
        calibration: ranking and calibration.
        test: test text, and search text that answers are measured on beside it.
        questions: of the zero-shot tasks.
    """

    start: float = 0
    search: float = 0
    finalists: float = 0
    calibration: float = 0
    test: float = 0
    questions: float = 0

    @property
    def total(self) -> float:
        """Of all purposes."""
        return math.fsum(astuple(self))

    def __add__(self, other: Passes) -> Passes:
        return Passes(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Planned:
    """Cells of one method at one sparsity.

    Attributes:
        label: what they are called.
        cells: how many.
        passes: of all of them.
    """

    label: str
    cells: int
    passes: Passes


@dataclass(frozen=True)
class Protocol:
    """How everything in a table is measured.

    Attributes:
        settings: how a model is ranked, calibrated and measured.
        evaluations: budget of a search from nothing.
        seeds: of every search.
        test_windows: windows of test text; None takes all.
        test_seq_len: tokens of each.
        limit: questions per task; None asks all.
    """

    settings: EvaluatorSettings
    evaluations: int
    seeds: int
    test_windows: int | None
    test_seq_len: int
    limit: int | None

    @property
    def calibration_tokens(self) -> int:
        """Tokens of calibration text, and its openings."""
        tokens = self.settings.calibration_windows * self.settings.seq_len
        return tokens + (-(-tokens // self.settings.openings) if self.settings.openings else 0)

    @property
    def test_tokens(self) -> int:
        """Tokens of test text: those of WikiText-2 where all windows are asked for."""
        every = TEST_TOKENS // self.test_seq_len
        return self.test_seq_len * min(every, self.test_windows or every)

    @property
    def question_tokens(self) -> float:
        """Tokens of all answers to all questions."""
        asked = ((n if self.limit is None else min(n, self.limit), tokens) for n, tokens in QUESTIONS.values())
        return sum(n * tokens for n, tokens in asked)


def planned(table: PaperTable, protocol: Protocol, shape: Shape) -> list[Planned]:
    """What is measured for a table of one model, the dense one and what all share first.

    Args:
        table: which.
        protocol: how.
        shape: of the model.

    Raises:
        ValueError: a budget is too small for a search.
    """
    asked = protocol.question_tokens if table.zero_shot else 0
    lines = [Planned("dense", 1, Passes(test=protocol.test_tokens, questions=asked))]
    for other_text, mark in ((False, ""), (True, ", other calibration text")):
        keys = table.keys(protocol.seeds, other_text)
        if not keys:
            continue
        lines.append(Planned(f"ranking, calibration{mark}", 1, Passes(calibration=_prepared(protocol))))
        if other_text:
            lines.append(Planned(f"dense{mark}", 1, Passes(test=protocol.test_tokens, questions=asked)))
        for (method, sparsity), cells in Counter((key.method, key.sparsity) for key in keys).items():
            of_it = [key for key in keys if (key.method, key.sparsity) == (method, sparsity)]
            passes = _sum(_passes(key, protocol, shape, asked) for key in of_it)
            lines.append(Planned(f"{method} at {100 * sparsity:g} %{mark}", cells, passes))
    return lines


def total(lines: Iterable[Planned]) -> Passes:
    """Tokens of all of them."""
    return _sum(line.passes for line in lines)


@dataclass(frozen=True)
class Need:
    """What a model takes.

    Attributes:
        weights: GiB in bfloat16.
        factors: GiB of the calibration.
        copy: whether a method holds a second copy of the weights for a time.
        gpus: GPUs that hold weights and factors.
        tokens: through it, in all.
        hours: of one of them, which works while the others wait.
    """

    weights: float
    factors: float
    copy: bool
    gpus: int
    tokens: float
    hours: float


def need(shape: Shape, table: PaperTable, protocol: Protocol, gpu_memory: float, tflops: float) -> Need:
    """What a table of one model takes.

    Args:
        shape: of the model.
        table: which.
        protocol: how it is measured.
        gpu_memory: GiB of a GPU.
        tflops: 10¹² operations per second that it reaches.
    """
    tokens, settings = total(planned(table, protocol, shape)).total, protocol.settings
    calibrates = settings.calibration != "none"
    factors = _factors(shape, settings)
    operations = shape.forward_operations(tokens)
    if calibrates:
        preparations = sum(bool(table.keys(protocol.seeds, other_text)) for other_text in (False, True))
        operations += preparations * shape.calibration_operations(protocol.calibration_tokens)
    copy = any(key.method in REBUILDERS for key in table.keys(1))
    on_device = shape.weights * (2 if copy else 1) + (factors if settings.factor_storage == "device" else 0)
    return Need(
        weights=shape.weights / GIB,
        factors=factors / GIB,
        copy=copy,
        gpus=gpus_for(on_device, gpu_memory),
        tokens=tokens,
        hours=operations / (tflops * 1e12) / 3600,
    )


def rebuilding_passes(method: str, shape: Shape) -> int:
    """What a method that rebuilds weights takes, in forward passes over calibration text; decompositions come on top.

    SVD-LLM runs the text for the Gram matrices that fit in memory, again for the next ones, and for its update.
    SliceGPT runs every block once.

    Args:
        method: one of :data:`~ffprune_env.comparison.rebuilt.REBUILDERS`.
        shape: of the model.
    """
    return {"svd-llm": shape.gram_runs(GRAM_BYTES) + UPDATE_PASSES, "slicegpt": 1}[method]


def _factors(shape: Shape, settings: EvaluatorSettings) -> int:
    """Bytes of the calibration's factors; those in the dtype of the weights are of a reward that is calibrated."""
    if settings.calibration == "none":
        return 0
    return shape.factors if settings.reward_model == "calibrated" else shape.exact_factors


def _prepared(protocol: Protocol) -> float:
    """Tokens that ranking and calibration read, before any method answers."""
    passes = 1 + (LOOK_COST if CRITERIA[protocol.settings.criterion].gradients else 0)
    return passes * protocol.calibration_tokens


def _passes(key: Key, protocol: Protocol, shape: Shape, asked: float) -> Passes:
    settings = protocol.settings
    if key.method in REBUILDERS:
        made = rebuilding_passes(key.method, shape) * protocol.calibration_tokens
        return Passes(calibration=made, test=protocol.test_tokens, questions=asked)
    method, window = ANSWERING[key.method], settings.seq_len
    start, search, finalists = (window * n for n in searched(method, key.sparsity, protocol))
    looks = (1 + len(MARKS) if method.searches else 1) * settings.search_windows * window
    models = 1 if settings.calibration == "none" else 2  # cut, and calibrated
    sequential = settings.calibration == "sequential" and not method.flap_bias
    calibration = SEQUENTIAL_PASSES * protocol.calibration_tokens if sequential else 0
    return Passes(start, search, finalists, calibration, models * protocol.test_tokens + looks, asked)


def searched(method: Method, sparsity: float, protocol: Protocol) -> tuple[int, int, int]:
    """Windows of search text that a method is charged at the most: of its start, its search, and its last look.

    Args:
        method: the method.
        sparsity: σ.
        protocol: with its budget.

    Raises:
        ValueError: the budget is too small.
    """
    settings = protocol.settings
    budget = method.budget(protocol.evaluations) * settings.search_windows
    told = method.settings
    if not budget or told is None:
        return 0, budget, 0
    told = replace(
        told,
        sparsity=(sparsity,),
        search_windows=settings.search_windows,
        final_windows=settings.final_windows,
        fresh_windows=settings.fresh_windows and told.fresh_windows and not told.ramp_sparsity,
        pool_windows=settings.pool_windows,
    )
    start = _looked_at(method, told, settings)
    afforded = affordable(told, budget - start)
    at_last = windows_at_last(afforded)
    return start, most_windows(afforded) - at_last, at_last


def _looked_at(method: Method, told: SearchSettings, settings: EvaluatorSettings) -> int:
    """Windows that the start is charged: of nothing where only the order of scores counts, which steps cannot keep."""
    if not says_rates(told.mapping):
        return 0
    looks = _LOOKS.get(told.init, 0) if method.warm is None else 1 + OTHER_STEPS
    windows = min(settings.curve_windows, max(1, CURVE_TOKENS // settings.seq_len))
    return LOOK_COST * looks * windows


def _sum(passes: Iterable[Passes]) -> Passes:
    return sum(passes, Passes())
