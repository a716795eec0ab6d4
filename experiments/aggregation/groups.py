"""Gaussian tasks in groups: of different reliability (F3), shifted prior (F5), ragged shards (E6).

All have the gradients h ⊙ (θ - wᵢ) of `gaussian`; what differs is how wᵢ is drawn and what else
is known of a task. Shapes: `d` = 8, `B` tasks.
"""

import jax
import jax.numpy as jnp
import numpy as np
from gaussian import CENTRE, CURVATURE, DIM, excess_risk, gradients, init
from simulate import Family

SIZES = np.repeat([1.0, 2.0, 5.0, 10.0, 50.0], 4)  # examples of each of 20 tasks
GROUP_SHIFT = np.repeat((np.arange(5) - 2) / np.sqrt(2), 4)  # of mean 0 and variance 1
LABEL_NOISE = np.tile([0.1, 10.0], 10)  # variance of a label, where it differs too
MINORITY = 0.1
SHARDS, SLOTS, COUNTS = 4, 8, (1, 3, 8, 8)
SUM_SQUARES = float((CURVATURE**2).sum())


def own_variance(label_noise):
    """σᵢ² `[20]` of each coordinate of an optimum: 1/n, or label noise over n."""
    return jnp.where(label_noise, jnp.asarray(LABEL_NOISE), 1.0) / jnp.asarray(SIZES)


def draw_reliability(key, setting, num_tasks):
    """F3: 4 tasks of each size n, wᵢ ~ N(w₀ + δ uᵢ/√d, τ² + σᵢ²), u rising with n.

    Args:
      key: consumed.
      setting: {"between": τ², "delta": δ, "label_noise": 0 or 1}.
      num_tasks: 20.

    Returns:
      {"optima" `[B, d]`, "num_query": n `[B]`, "precision": 1/(τ² + σᵢ²) `[B]`, "noise" `[B]`: the
      variance of each gradient as estimated from two halves of its examples}.
    """
    if num_tasks != len(SIZES):
        raise ValueError(f"this family has {len(SIZES)} tasks, got {num_tasks}.")
    between_key, halves_key = jax.random.split(key)
    own = own_variance(setting["label_noise"])[:, None]
    halves = jnp.sqrt(2 * own)[None] * jax.random.normal(halves_key, (2, num_tasks, DIM))
    shift = setting["delta"] * jnp.asarray(GROUP_SHIFT)[:, None] / np.sqrt(DIM)
    between = jnp.sqrt(setting["between"]) * jax.random.normal(between_key, (num_tasks, DIM))
    difference = jnp.asarray(CURVATURE)[None] * (halves[0] - halves[1])
    return {
        "optima": CENTRE + shift + between + halves.mean(0),
        "num_query": jnp.asarray(SIZES),
        "precision": 1 / (setting["between"] + own[:, 0]),
        "noise": (difference**2).sum(1) / 4,
    }


def monitor_centre(params, setting):
    """The excess risk `[1]` of all groups alike."""
    del setting
    return excess_risk(params)[None]


RELIABILITY = Family(init, draw_reliability, gradients, monitor_centre)


def draw_shifted(key, setting, num_tasks):
    """F5: wᵢ ~ N(w₀ ± Δ, I), the minority of 10% at +Δ; "weights" for a target of 50:50.

    θ starts on the majority's side, so that stopping early is no way to serve the minority.
    """
    group_key, own_key = jax.random.split(key)
    minority = jax.random.uniform(group_key, (num_tasks,)) < MINORITY
    sign = jnp.where(minority, 1.0, -1.0)
    own = jax.random.normal(own_key, (num_tasks, DIM))
    return {
        "optima": CENTRE + setting["delta"] * sign[:, None] + own,
        "task_ids": minority.astype(int),
        "weights": jnp.where(minority, 0.5 / MINORITY, 0.5 / (1 - MINORITY)),
    }


def monitor_shifted(params, setting):
    """Balanced excess risk, the worse group's, the offset towards the majority in Δ: `[3]`."""
    delta = setting["delta"]
    groups = jnp.stack([excess_risk(params, CENTRE + s * delta) for s in (1.0, -1.0)])
    offset = ((CENTRE - params) / delta).mean()
    return jnp.stack([excess_risk(params), groups.max(), offset])


SHIFTED = Family(init, draw_shifted, gradients, monitor_shifted)


def draw_ragged(key, setting, num_tasks):
    """E6: 4 shards of 8 slots, of which 1, 3, 8, 8 hold a task; groups at ±Δ.

    setting["by_shard"] 1: the two small shards hold the group +Δ, the others -Δ; 0: at random.
    """
    group_key, own_key = jax.random.split(key)
    shard = np.arange(num_tasks) // SLOTS
    valid = np.arange(num_tasks) % SLOTS < np.asarray(COUNTS)[shard]
    random_sign = jax.random.rademacher(group_key, (num_tasks,), float)
    sign = jnp.where(setting["by_shard"], jnp.asarray(np.where(shard < 2, 1.0, -1.0)), random_sign)
    own = jax.random.normal(own_key, (num_tasks, DIM))
    return {
        "optima": CENTRE + setting["delta"] * sign[:, None] + own,
        "mask": jnp.asarray(valid),
    }


def monitor_ragged(params, setting):
    """Excess risk over the mean of all valid tasks, and the mean of θ - w₀: `[2]`."""
    share = sum(COUNTS[:2]) / sum(COUNTS)
    target = CENTRE + setting["by_shard"] * setting["delta"] * (2 * share - 1)
    return jnp.stack([excess_risk(params, target), (params - CENTRE).mean()])


RAGGED = Family(init, draw_ragged, gradients, monitor_ragged)
