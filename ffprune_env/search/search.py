"""``ff.search``: from a model and a text to a pruned model, in one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3 import PPO

from ffprune_env.budget.allocation import Allocation
from ffprune_env.budget.arrays import FloatArray
from ffprune_env.evaluators.build import build_evaluator
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.ledger import Ledger, Part
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.export.folder import save_pruned
from ffprune_env.export.model_card import CardFacts
from ffprune_env.lm.cost import Cost
from ffprune_env.lm.loss import perplexity
from ffprune_env.lm.models import load_model
from ffprune_env.search.presets import PRESETS
from ffprune_env.search.problem import Problem
from ffprune_env.search.run_search import run_search
from ffprune_env.search.samples import Sample
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.parse import parse_start
from ffprune_env.search.unheeded import UsedBy, by_search, require_heeded, require_used
from ffprune_env.texts.default_text import AUTO_TEXT, text_for
from ffprune_env.texts.overlap import require_unseen
from ffprune_env.texts.windows import load_test_windows, require_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

# Settings whose value here asks for less than the default does: in vain or not, who gives it gets what was asked for.
# Of `eval_every`, None leaves it to the search how often it looks, which here is never.
_ASKS_FOR_NOTHING = {
    "fresh_windows": False, "ramp_windows": False, "openings": 0, "init_steps": 0, "eval_every": None,
}  # fmt: skip


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        allocation: how much of every unit stays.
        scores: float64 [N], what the allocation was mapped from.
        samples: every evaluation of the search, in order.
        policy: Stable-Baselines3's PPO, as it was trained.
        dense_ppl: perplexity of the dense model on test text.
        search_ppl: of the model that :meth:`save` writes, on the windows that the search and its finalists saw.
        test_ppl: of that model on test text, which nothing saw before.
        evaluator: the ranked model, dense again, with its calibration.
        tokenizer: the model's.
        facts: what the model card will tell.
        cost: what the parts of the search cost; not what the perplexities took.
    """

    allocation: Allocation
    scores: FloatArray
    samples: Sequence[Sample]
    policy: PPO
    dense_ppl: float
    search_ppl: float
    test_ppl: float
    evaluator: LMEvaluator
    tokenizer: PreTrainedTokenizerBase
    facts: CardFacts
    cost: Mapping[Part, Cost]

    def save(self, folder: str | Path) -> None:
        """Writes the pruned model, calibrated if the settings say so; see :func:`ffprune_env.save_pruned`.

        Args:
            folder: where to; must not exist, or be empty.
        """
        kept = self.allocation.kept
        calibration = self.evaluator.final_calibration(kept)
        save_pruned(self.evaluator.prunable, kept, folder, self.tokenizer, calibration, self.facts)


def search(
    model: str | Path | PreTrainedModel = "smollm2-135m",
    tokenizer: PreTrainedTokenizerBase | None = None,
    text: str = AUTO_TEXT,
    sparsity: float = 0.2,
    *,
    test_text: str | None = None,
    test_seq_len: int = 2048,
    test_windows: int | None = 8,
    preset: str = "default",
    listeners: Sequence[Callable[[Sample], None]] = (),
    **settings: Any,
) -> SearchResult:
    """Finds out how much of each layer of a model to keep.

    The same search as ``train/ppo.py``, without a folder: nothing is written until the result is saved.

    Args:
        model: a name, a folder or a hub id, as for :func:`ffprune_env.load_model`; or a model in memory, whose heads
            and channels are put in order in place, which changes nothing that it computes.
        tokenizer: of a model in memory; one that is loaded brings its own.
        text: search and calibration text; see :func:`ffprune_env.load_windows`. ``auto`` is what goes with the model:
            ``wikitext2`` for the known names of the hub, ``python-docs`` for all others.
        sparsity: σ, the fraction of the prunable parameters to remove, between 0 and 1.
        test_text: test text; None takes the test part of ``text``.
        test_seq_len: tokens per window of test text.
        test_windows: windows of test text; None takes all.
        preset: which defaults the settings have: ``"default"``, ``"quick"`` or ``"paper"``.
        listeners: called with every sample: a progress bar, a log.
        **settings: fields of :class:`~ffprune_env.search.settings.SearchSettings` and
            :class:`~ffprune_env.evaluators.settings.EvaluatorSettings`, such as ``evaluations=96`` or ``seed=1``.

    Raises:
        ValueError: a setting is out of range, or nothing would look at one that was given, as ``rollout`` without a
            search; the model cannot be pruned, or a text is too short.
        TypeError: there is no such setting, or a model in memory has no tokenizer beside it.
        OSError: something cannot be loaded.
    """
    searching, measuring = _settings_of(preset, sparsity, settings)
    name = str(model) if isinstance(model, str | Path) else type(model).__name__
    text = text_for(name, text)
    for asked_for in filter(None, (text, test_text)):
        require_text(asked_for)
    start = parse_start(searching)
    if isinstance(model, str | Path):
        model, tokenizer = load_model(str(model))
    if tokenizer is None:
        raise TypeError("a model in memory needs its tokenizer beside it: ff.search(model, tokenizer, ...)")
    tested_on = load_test_windows(
        text, test_text, tokenizer, test_seq_len, test_windows, model=model, bos=measuring.bos
    )
    ledger = Ledger()
    evaluator = build_evaluator(model, tokenizer, text, measuring, ledger=ledger)
    require_unseen(tested_on, *evaluator.texts.values())
    problem = Problem.of(evaluator, sparsity, seed=searching.seed, a_min=searching.lowest, a_max=searching.a_max)
    with ledger.part("start", evaluator.devices):
        scores = start.scores(problem, searching.targets)
    outcome = run_search(searching, evaluator, start, scores, listeners=listeners, ledger=ledger)
    logger.info("%s", outcome.told())
    answer = outcome.answers[sparsity]
    dense_ppl = perplexity(evaluator.prunable.model, tested_on, measuring.batch_size)
    kept = answer.allocation.kept
    with ledger.part("calibration", evaluator.devices):
        calibration = evaluator.final_calibration(kept)
    with evaluator.prunable.pruned(kept, calibration) as pruned:
        search_ppl, test_ppl = (perplexity(pruned, x, measuring.batch_size) for x in (evaluator.chosen_on, tested_on))
    facts = replace(
        CardFacts.of(
            name,
            test_text or text,
            tested_on,
            measuring.calibration_text or text,
            evaluator.texts["calibration"],
            evaluator.bos,
        ),
        target_sparsity=sparsity,
        dense_ppl=dense_ppl,
        pruned_ppl=test_ppl,
        calibration_asked=evaluator.calibration_asked,
    )
    return SearchResult(
        allocation=answer.allocation,
        scores=answer.scores,
        samples=outcome.samples,
        policy=outcome.policy,
        dense_ppl=dense_ppl,
        search_ppl=search_ppl,
        test_ppl=test_ppl,
        evaluator=evaluator,
        tokenizer=tokenizer,
        facts=facts,
        cost=ledger.parts,
    )


def _settings_of(preset: str, sparsity: float, settings: Mapping[str, Any]) -> tuple[SearchSettings, EvaluatorSettings]:
    """What a search is told and what it measures with: a preset, and the settings that somebody gave beside it."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; allowed are {', '.join(PRESETS)}")
    if not isinstance(sparsity, int | float):
        raise ValueError(
            f"ff.search finds a model of one sparsity, got {sparsity!r}: give one number; of several, or of a range, "
            f"ffprune search --sparsity leaves a policy"
        )
    asked = {**PRESETS[preset], **settings}
    asked["eval_every"] = asked.get("eval_every") or 0  # None would keep windows to look at, and nobody does
    searching = SearchSettings(sparsity=sparsity, **_of(SearchSettings, asked))
    measuring = EvaluatorSettings(**_of(EvaluatorSettings, {**asked, **searching.needless}))
    unknown = asked.keys() - asdict(searching).keys() - asdict(measuring).keys()
    if unknown:
        raise TypeError(f"there is no setting {min(unknown)!r}; allowed are those of SearchSettings, EvaluatorSettings")
    searching.require_allowed()
    measuring.require_allowed()
    require_heeded(searching, settings.keys())
    in_vain = "TensorBoard shows what it measures, and ff.search leaves no folder for it: ffprune search does"
    watched = UsedBy(("eval_every",), searching.eval_every == 0, in_vain)
    require_used(_wishes(settings), (*by_search(searching, measuring), watched))
    return searching, measuring


def _wishes(settings: Mapping[str, Any]) -> set[str]:
    """Names of the settings that ask for something: neither for their default, nor for a thing to be left out."""
    plain = {**asdict(SearchSettings()), **asdict(EvaluatorSettings())}
    return {
        name
        for name, value in settings.items()
        if value != plain[name] and not (name in _ASKS_FOR_NOTHING and value == _ASKS_FOR_NOTHING[name])
    }


def _of(group: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some settings that a group has a field for."""
    names = {field.name for field in fields(group)}
    return {name: value for name, value in settings.items() if name in names}
