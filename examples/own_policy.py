"""A policy of one's own in the Gymnasium environment: perfusion by the last count, a cell-specific rate, against the recipe."""

from __future__ import annotations

import gymnasium
import numpy as np

env = gymnasium.make("simulators.environment:celltwin/Bioreactor-v0", donor=7)
names, limits = env.unwrapped.names, env.unwrapped.process.limits


def cspr(observation: np.ndarray, rate: float = 60.0) -> np.ndarray:
    """`rate` pL per cell and day, the recipe's dosing, harvest at 20 billion counted cells."""
    seen = dict(zip(names, observation.tolist(), strict=True))
    density = seen["viable_density"] if seen["viable_density_age"] >= 0.0 else 0.0
    perfusion = min(1.0, rate * density / 1000.0 / limits.perfusion_max)
    return np.array([perfusion, 0.0, 300.0 / limits.cytokine_dose_max, density >= 20.0], dtype=np.float32)


for policy in ("recipe", "own"):
    observation, info = env.reset(seed=1)
    earned, over = 0.0, False
    while not over:
        action = info["recipe"] if policy == "recipe" else cspr(observation)
        observation, reward, terminated, truncated, info = env.step(action)
        earned, over = earned + float(reward), terminated or truncated
    o = info["outcome"]
    verdict = "pass" if o["passed"] else "fail: " + ", ".join(o["missed"])
    print(f"{policy:7} {verdict}  day {o['day']:.1f}  {o['medium_vv']:.1f} volumes of medium  reward {earned:.1f}")
