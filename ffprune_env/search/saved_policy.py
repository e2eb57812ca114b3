"""A trained policy as plain tensors and JSON: what another search starts from (Sec. 2.2 of the paper)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ffprune_env.budget.arrays import FloatArray
from ffprune_env.budget.units import PruneUnit
from ffprune_env.lm.replacing import replacing

if TYPE_CHECKING:
    from stable_baselines3 import PPO

_TENSORS, _FACTS = "policy.safetensors", "policy.json"


@dataclass(frozen=True)
class SavedPolicy:
    """The network of a policy, and what its scores meant.

    Attributes:
        weights: its tensors, by Stable-Baselines3's names.
        facts: ``groups`` (groups of every unit), the settings that scores depend on, ``targets`` and ``starts``: the
            sparsities it was trained for, and the mean actions that it started from, there and at others.
        run: folder of the run that left it.
    """

    weights: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]
    run: Path

    @property
    def targets(self) -> list[float]:
        """The sparsities that it was trained for, ascending."""
        return sorted(self.facts.get("targets", ()))

    def require_fits(self, units: Sequence[PruneUnit], meaning: Mapping[str, Any]) -> None:
        """Raises ValueError if it is of another model, or its scores meant something else; the message says what.

        Args:
            units: the units that it must score.
            meaning: the settings that scores depend on.
        """
        if not _of_same_units(self.facts, units):
            raise ValueError(f"the policy of {self.run} is of a model with other units: start from a run on this model")
        for name, value in meaning.items():
            if self.facts.get(name) != value:
                raise ValueError(
                    f"the policy of {self.run} was trained with {name} {self.facts.get(name)!r}, not {value!r}"
                )

    def mean(self, sparsity: float) -> FloatArray:
        """The mean action at a target sparsity, [N] in [-1, 1]."""
        hidden = torch.tensor([sparsity], dtype=torch.float32)
        for layer in ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2"):
            hidden = torch.relu(self.weights[f"{layer}.weight"] @ hidden + self.weights[f"{layer}.bias"])
        mean = self.weights["action_net.weight"] @ hidden + self.weights["action_net.bias"]
        action: FloatArray = np.clip(mean.double().numpy(), -1.0, 1.0)
        return action

    def guess(self, sparsity: float) -> FloatArray:
        """The best that the run knows of a target sparsity, [N] in [-1, 1]: what it started from and what it learned.

        A network that starts as a straight line in σ only comes near to what its run knew of other sparsities. So where
        that reaches, the answer is taken from it, and moved by what training changed at the targets.
        """
        starts = {float(at): np.array(mean) for at, mean in self.facts.get("starts", {}).items()}
        targets = self.targets
        if not targets or not min(starts) - 1e-9 <= sparsity <= max(starts) + 1e-9:
            return self.mean(sparsity)
        known = _interpolate(sparsity, sorted(starts), [starts[at] for at in sorted(starts)])
        learned = _interpolate(sparsity, targets, [self.mean(at) - starts[at] for at in targets])
        return np.clip(known + learned, -1.0, 1.0)

    def load_into(self, policy: PPO) -> None:
        """Gives a new policy this network; its exploration stays the new one's."""
        own = policy.policy.state_dict()
        policy.policy.load_state_dict({name: own[name] if name == "log_std" else self.weights[name] for name in own})


def _interpolate(x: float, points: Sequence[float], values: Sequence[FloatArray]) -> FloatArray:
    """Arrays at some points, interpolated piece by piece; beyond the points it is that of the nearest."""
    columns = np.stack(values).T
    return np.array([np.interp(x, points, column) for column in columns])


def save_policy(
    policy: PPO,
    folder: Path,
    units: Sequence[PruneUnit],
    settings: Mapping[str, Any],
    targets: Sequence[float] = (),
    starts: Mapping[float, FloatArray] | None = None,
) -> None:
    """Writes ``policy.safetensors`` and ``policy.json``, each in one move.

    Args:
        policy: the policy.
        folder: where; it must exist.
        units: the N units that it scores.
        settings: what its scores depend on.
        targets: the sparsities that it was trained for.
        starts: [N] mean actions that it started from, by sparsity, the targets among them.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.policy.state_dict().items()}
    knowledge = {str(at): mean.tolist() for at, mean in (starts or {}).items()}
    facts = {"params": [unit.n_params for unit in units], **settings, "targets": list(targets), "starts": knowledge}
    with replacing(folder / _FACTS) as described, replacing(folder / _TENSORS) as weights:
        save_file(tensors, weights)
        described.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def copy_policy(run: str | Path, folder: Path) -> None:
    """Keeps the policy that a run left under another folder, from where it can be read like that of a run."""
    with replacing(folder) as scratch:
        (scratch / "checkpoints").mkdir(parents=True)
        for name in (_TENSORS, _FACTS):
            shutil.copyfile(Path(run) / "checkpoints" / name, scratch / "checkpoints" / name)


def read_policy(run: str | Path) -> SavedPolicy:
    """Reads the policy that a run left; no code and no pickle is read.

    Args:
        run: folder of the run.

    Raises:
        ValueError: there is no such policy; the message says which file is missing or damaged.
    """
    folder = Path(run) / "checkpoints"
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError(f"{_FACTS} must hold an object, got {type(facts).__name__}")
        weights = load_file(folder / _TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"no policy can be read from {run}, a folder that train/ppo.py left is needed: {reason}"
        ) from error
    return SavedPolicy(weights, facts, Path(run))


def _of_same_units(facts: Mapping[str, Any], units: Sequence[PruneUnit]) -> bool:
    """Whether a policy scores such units, in whatever groups they are pruned."""
    if "params" in facts:
        return bool(facts["params"] == [unit.n_params for unit in units])
    members = facts.get("groups")  # of versions whose channels went one by one
    if not isinstance(members, list) or len(members) != len(units):
        return False
    return all(isinstance(n, int) and n % unit.n_groups == 0 for n, unit in zip(members, units, strict=True))
