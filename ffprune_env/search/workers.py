"""Candidates measured side by side: Ray actors that each hold the model, behind one Stable-Baselines3 VecEnv."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from ffprune_env.budget.arrays import IntArray
from ffprune_env.env import PruneBanditEnv
from ffprune_env.evaluators.language_model import LMEvaluator
from ffprune_env.evaluators.protocol import Windows
from ffprune_env.evaluators.rewarded import identity_of_reward
from ffprune_env.evaluators.settings import EvaluatorSettings
from ffprune_env.lm.cost import Cost, count, counting
from ffprune_env.lm.identity import (
    Identity,
    identity_of_model,
    identity_of_texts,
    identity_of_versions,
    require_same,
    text_names,
)
from ffprune_env.search.noted import Note, unnoted
from ffprune_env.search.worker_places import give_back, require_listening, reserve_places

logger = logging.getLogger(__name__)

# A question that brings down so many workers is at fault itself.
_ATTEMPTS = 3


@dataclass(frozen=True)
class Question:
    """What one worker is asked.

    Attributes:
        kept: [N] groups kept.
        n_samples: windows of search text, how many or which.
        kl: whether the divergence from the dense model is wanted too.
    """

    kept: tuple[int, ...]
    n_samples: Windows
    kl: bool


class Workers:
    """N Ray actors, each with an evaluator of its own that it builds from names.

    A worker measures on one GPU, or on a CPU with one thread: so what it answers does not depend on how many there are.
    A worker that dies is replaced and its question asked again; a failure of machines is never an answer.

    Args:
        count: how many, at least 1.
        evaluator: arguments of :func:`ffprune_env.load_evaluator`. With ``order`` among them, that of the model here,
            they prune what is pruned here: their own ranking, in one thread, might differ in the last digits. Their
            calibration is their own, and differs by rounding alone.
        address: of a running Ray cluster to join; None starts one on this machine.
        on_gpu: whether every worker needs a GPU.
        identity: what their answers must depend on, see :mod:`ffprune_env.lm.identity`: on another machine the same
            names may stand for another model or text. None does not compare it.

    Raises:
        ValueError: there are no such workers, the cluster has no room for them, or Ray is not installed.
    """

    def __init__(
        self,
        count: int,
        evaluator: Mapping[str, Any],
        address: str | None = None,
        on_gpu: bool = False,
        identity: Identity | None = None,
    ) -> None:
        if count < 1:
            raise ValueError(f"workers must be at least 1, got {count}")
        try:
            import ray
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
        except ImportError as error:
            raise ValueError("--workers needs Ray: pip install -e '.[ray]'") from error
        self._ray = ray
        self._started = not ray.is_initialized()
        self.actors: list[Any] = []
        self._places: Any = None
        if self._started:
            if address:
                require_listening(address)
            try:
                local = {} if address else {"num_cpus": count, "include_dashboard": False}
                ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
            except (ConnectionError, OSError, RuntimeError) as error:
                raise ValueError(f"no Ray cluster at {address}: {' '.join(str(error).split())}") from error
        try:
            self._places = reserve_places(count, "GPU" if on_gpu else "CPU")  # or Ray would wait for them for ever
        except BaseException:
            self.close()
            raise
        there = PlacementGroupSchedulingStrategy(self._places)
        resources = {"num_cpus": 0, "num_gpus": 1} if on_gpu else {"num_cpus": 1}
        self._make = ray.remote(**resources, scheduling_strategy=there)(_Worker).remote
        self._arguments, self._identity = dict(evaluator), identity
        self.actors = [self._make(self._arguments, self._identity) for _ in range(count)]

    @classmethod
    def like(
        cls,
        evaluator: LMEvaluator,
        count: int,
        settings: Mapping[str, Any],
        address: str | None = None,
        identity: Identity | None = None,
    ) -> Workers:
        """Workers that measure what an evaluator here would, of the same heads and channels in the same order.

        Args:
            evaluator: the one here.
            count: how many.
            settings: that it was built with, by name, the model and its text among them; others may be there too.
            address: see above, as for ``identity``.
            identity: of the model, the texts and the versions here.
        """
        device = evaluator.prunable.device.type
        measuring = {name: settings[name] for name in ("model", "text", *asdict(EvaluatorSettings()))}
        loading = {name: settings[name] for name in ("dtype", "trust_remote_code")}
        order = [members.cpu().numpy() for members in evaluator.prunable.order]
        arguments = {**measuring, **loading, "device": device, "order": order}
        return cls(count, arguments, address, device == "cuda", identity)

    def ask(
        self, questions: Sequence[Question], heard: Callable[[Question, float, float | None], None] | None = None
    ) -> list[tuple[float, float | None]]:
        """Answers in the order of the questions: perplexity and, if asked for, divergence.

        What the workers read is counted here, with what each of them read to be ready; not what one did that died.

        Args:
            questions: what to measure.
            heard: called with every answer as soon as it is there.

        Raises:
            RuntimeError: a question cannot be answered: it failed in a worker, or brought down several.
        """
        ray = self._ray
        answers: dict[int, tuple[float, float | None]] = {}
        waiting, idle = list(enumerate(questions)), list(range(len(self.actors)))
        running: dict[Any, tuple[int, int]] = {}  # what is to come -> index of the question and of the actor
        attempts = [0] * len(questions)
        while len(answers) < len(questions):
            while waiting and idle:
                (i, question), actor = waiting.pop(0), idle.pop(0)
                attempts[i] += 1
                running[self.actors[actor].measure.remote(question)] = (i, actor)
            (done,), _ = ray.wait(list(running), num_returns=1)
            i, actor = running.pop(done)
            try:
                ppl, kl, cost = ray.get(done)
                answers[i] = ppl, kl
                count(cost)
                if heard is not None:
                    heard(questions[i], *answers[i])
            except ray.exceptions.RayActorError as error:
                if attempts[i] == _ATTEMPTS:
                    raise RuntimeError(f"a candidate brought down {_ATTEMPTS} workers: {_line(error)}") from error
                logger.warning("worker %d died: it is replaced, and its candidate measured again", actor)
                self.actors[actor] = self._make(self._arguments, self._identity)
                waiting.insert(0, (i, questions[i]))
            except ray.exceptions.RayError as error:
                raise RuntimeError(f"worker {actor} failed: {_line(error)}") from error
            idle.append(actor)
        return [answers[i] for i in range(len(questions))]

    def close(self) -> None:
        """Ends the workers, and leaves the cluster, or ends it, if it was joined or started for them."""
        for actor in self.actors:
            self._ray.kill(actor)
        self.actors = []
        if self._places is not None:
            give_back(self._places)
            self._places = None
        if self._started:
            self._ray.shutdown()


class WorkersVecEnv(DummyVecEnv):
    """Environments of one evaluator that step together: what their actions ask is measured by workers, side by side.

    Every environment then finds its answer in the evaluator's memory. Rewards are gathered by index, so they do not
    depend on which worker was first.

    Args:
        envs: environments that share an :class:`~ffprune_env.evaluators.language_model.LMEvaluator`.
        workers: what measures; they must have been made for the same model, texts and settings.
        note: called with every answer at once, so that it can be kept while others are still to come.

    Attributes:
        beside: groups kept [N] at a sparsity that are measured beside the candidates, on windows that were drawn for
            them; None measures nothing beside them.
    """

    def __init__(
        self,
        envs: Sequence[PruneBanditEnv],
        workers: Workers,
        note: Note = unnoted,
    ) -> None:
        super().__init__([_giving(env) for env in envs])
        self.workers, self.note = workers, note
        self.beside: Callable[[float], IntArray] | None = None
        self.bandits = list(envs)
        evaluator = envs[0].evaluator
        assert isinstance(evaluator, LMEvaluator)
        self.evaluator = evaluator

    def step_wait(self) -> VecEnvStepReturn:
        """Measures what is not known yet, then steps every environment."""
        asked = {}
        for env, action in zip(self.bandits, self.actions, strict=True):
            kept, n_samples = env.would_measure(action)
            pairs = [kept]
            if self.beside is not None and not isinstance(n_samples, int):
                pairs.append(self.beside(env.sparsity))
            for wanted in pairs:
                question = Question(tuple(wanted.tolist()), n_samples, env.reward_kind == "kl")
                if not self.evaluator.remembers(wanted, n_samples, question.kl):
                    asked[question] = wanted

        def heard(question: Question, ppl: float, kl: float | None) -> None:
            self.evaluator.remember(asked[question], question.n_samples, ppl, kl)
            self.note(asked[question], question.n_samples, ppl, kl)

        self.workers.ask(list(asked), heard)
        return super().step_wait()


def require_same_rollouts(before: int, now: int) -> None:
    """Raises ValueError if a run begun with so many workers cannot find its samples again with so many now.

    Workers have one thread each and measure a rollout that was drawn at one σ_t; how many they are does not matter.
    """
    if bool(before) != bool(now):
        raise ValueError(
            f"--resume: the run was begun with --workers {before}, and finds its samples again only with "
            f"{'any number of workers above 0' if before else 'none'}, got --workers {now}"
        )


def _giving(env: PruneBanditEnv) -> Callable[[], PruneBanditEnv]:
    return lambda: env


class _Worker:
    """What runs in an actor."""

    def __init__(self, arguments: Mapping[str, Any], identity: Identity | None = None) -> None:
        import torch

        from ffprune_env.evaluators.build import build_evaluator
        from ffprune_env.lm.models import load_model

        torch.set_num_threads(1)
        of_model = {name: arguments[name] for name in inspect.signature(load_model).parameters if name in arguments}
        model, tokenizer = load_model(str(arguments["model"]), **of_model)
        self.identity = {**identity_of_versions(), **identity_of_model(model)}
        text, order = str(arguments["text"]), arguments.get("order")
        others = {name: value for name, value in arguments.items() if name not in (*of_model, "model", "text", "order")}
        with counting() as tally:
            self.evaluator = build_evaluator(model, tokenizer, text, EvaluatorSettings(**others), order)
        self.untold = tally.cost
        self.identity |= identity_of_texts(self.evaluator.texts) | identity_of_reward(self.evaluator)
        self.expected = identity
        names = text_names(text, None, self.evaluator.texts, arguments.get("calibration_text"))
        self.names = (str(arguments["model"]), names)

    def measure(self, question: Question) -> tuple[float, float | None, Cost]:
        """Perplexity, divergence, and what the worker read since it was asked before."""
        if self.expected is not None:
            since, advice = "the run was begun elsewhere", "give its machine the same"
            require_same(self.expected, self.identity, since, advice, *self.names)
        kept: IntArray = np.array(question.kept, dtype=np.int64)
        kl = None
        with counting() as tally:
            if question.kl:
                ppl, kl = self.evaluator.compare(kept, question.n_samples)
            else:
                ppl = self.evaluator.measure(kept, question.n_samples)
        cost, self.untold = self.untold + tally.cost, Cost()
        return ppl, kl, cost


def _line(error: Exception) -> str:
    """The last line of what may be a traceback."""
    return str(error).strip().splitlines()[-1]
