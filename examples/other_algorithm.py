"""The environment under other algorithms than PPO: A2C and SAC of Stable-Baselines3.

An episode is one step, so the discount does nothing, and a method that bootstraps has nothing to bootstrap from. The
surrogate answers in microseconds; put `ff.load_evaluator("smollm2-135m", "python-docs")` in its place for a model.
"""

import numpy as np
from stable_baselines3 import A2C, SAC

import ffprune_env as ff

STEPS = 256
env = ff.PruneBanditEnv(ff.SurrogateEvaluator.synthetic(n_layers=4), sparsity=0.3)


def reward_of(action):
    """What the environment says of one action."""
    env.reset()
    return env.step(action)[1]


equal = reward_of(np.zeros(env.action_space.shape, dtype=np.float32))
print(f"equal scores: reward {equal:.3f}")
for algorithm in (
    A2C("MlpPolicy", env, n_steps=8, seed=0, device="cpu"),
    SAC("MlpPolicy", env, learning_starts=16, batch_size=16, seed=0, device="cpu"),
):
    algorithm.learn(STEPS)
    observation, _ = env.reset()
    action, _ = algorithm.predict(observation, deterministic=True)
    print(f"{type(algorithm).__name__} after {STEPS} evaluations: reward {reward_of(action):.3f}")
