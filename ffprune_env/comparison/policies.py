"""What the searches of a comparison have learnt, on disk, for other searches to start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ffprune_env.search.saved_policy import Policy


@dataclass(frozen=True)
class KeptPolicies:
    """A folder of policies, each in a folder of its own that ``--init`` of ``train/ppo.py`` takes.

    Attributes:
        path: the folder; made when there is something to keep.
    """

    path: Path

    def folder(self, method: str, sparsity: float, seed: int) -> Path:
        """Where the policy of one search is."""
        return self.path / f"{method}-s{100 * sparsity:g}-seed{seed}"

    def keep(self, method: str, sparsity: float, seed: int, policy: Policy) -> None:
        """Keeps what a search has learnt, in place of what it had learnt before.

        Args:
            method: its name.
            sparsity: σ that it searched at.
            seed: of what it drew.
            policy: what it has learnt.
        """
        checkpoints = self.folder(method, sparsity, seed) / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        policy.save(checkpoints)

    def find(self, method: str, sparsity: float, seed: int) -> Policy:
        """What a search has learnt; ValueError if it was not run, or not here."""
        folder = self.folder(method, sparsity, seed)
        if not folder.is_dir():
            raise ValueError(
                f"there is no policy {folder} to start from: first measure {method} at σ = {sparsity:g}, seed {seed}"
            )
        return Policy.load(folder)
