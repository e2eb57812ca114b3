"""PruneBanditEnv over an evaluator of one's own: whatever can say how good an allocation is can be searched."""

import math

import ffprune_env as ff


class SizeOfLayers:
    """Says that every layer matters half as much as the one before it, and that attention matters twice as much."""

    max_samples = 1  # windows of text that a measurement can use; this one uses none

    def __init__(self, n_layers):
        kinds = (("attention", 8, 4096), ("ffn", 32, 16384))  # kind, groups, parameters
        named = [(f"layers.{i}.{kind}", kind, i, *size) for i in range(n_layers) for kind, *size in kinds]
        self.units = tuple(ff.PruneUnit(*facts) for facts in named)

    def measure(self, kept, n_samples):
        """Perplexity with so many groups of every unit."""
        lost = 0.0
        for unit, k in zip(self.units, kept, strict=True):
            lost += (2 if unit.kind == "attention" else 1) * 0.5**unit.layer * (1 - k / unit.n_groups) ** 2
        return self.dense(n_samples) * math.exp(lost)

    def dense(self, n_samples):
        """Perplexity of the dense model."""
        return 10.0


env = ff.PruneBanditEnv(SizeOfLayers(n_layers=4), sparsity=0.3)
env.action_space.seed(0)
best = 0.0
for _ in range(200):
    env.reset()
    _, reward, _, _, info = env.step(env.action_space.sample())
    if reward > best:
        best = reward
        print(f"reward {reward:.3f}, kept {info['kept'].tolist()}")
