"""Exact risk of SGD on F1 from the recursion of its second moment, without sampling.

mⱼ = E (θⱼ - w₀ⱼ)² follows mⱼ ← (1 - ε hⱼ)² mⱼ + ε² hⱼ² V with the step ε on the mean and the
variance V of the meta-batch mean of the optima. The risk is ½ Σⱼ hⱼ mⱼ.
"""

import numpy as np
from gaussian import CURVATURE, START_SECOND_MOMENT
from simulate import TAIL


def risk_of_sgd(learning_rate, num_steps, variance, *, decay=True):
    """Gives the expected risk, averaged over the last 20% of the steps.

    Args:
      learning_rate: on the mean; an array `[...]` or a number.
      num_steps: the horizon.
      variance: V, above 0.
      decay: whether the learning rate falls linearly to 0, or stays.

    Returns:
      Risks `[...]`; infinite where the recursion overflows.
    """
    rate = np.asarray(learning_rate, float)[..., None]
    moment = np.full(np.broadcast_shapes(rate.shape, CURVATURE.shape), START_SECOND_MOMENT)
    total, count = 0.0, 0
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(num_steps):
            now = rate * CURVATURE * (1 - step / num_steps if decay else 1.0)
            moment = (1 - now) ** 2 * moment + now**2 * variance
            if step + 1 >= TAIL * num_steps:
                total, count = total + 0.5 * (CURVATURE * moment).sum(-1), count + 1
    return np.where(np.isfinite(total), total, np.inf) / count


def risk_of_adascale(learning_rate, horizon, variance, *, num_tasks, by_progress=True):
    """Gives the risk and the number of steps of AdaScale with the true gain.

    r = (m₂ + σ²)/(m₂ + σ² V) in [1, B], with m₂ + σ² = Σⱼ hⱼ² (mⱼ + 1).
    """
    moment = np.full_like(CURVATURE, START_SECOND_MOMENT)
    progress, risks = 0.0, []
    while progress < horizon:
        mean_square = (CURVATURE**2 * (moment + 1)).sum()
        gain = np.clip(mean_square / (CURVATURE**2 * (moment + variance)).sum(), 1.0, num_tasks)
        fraction = (progress if by_progress else len(risks)) / horizon
        now = learning_rate * (1 - fraction) * gain * CURVATURE
        moment = (1 - now) ** 2 * moment + now**2 * variance
        progress += gain
        risks.append((progress, 0.5 * (CURVATURE * moment).sum()))
    tail = [risk for reached, risk in risks if reached >= TAIL * horizon]
    return float(np.mean(tail)), len(risks)
