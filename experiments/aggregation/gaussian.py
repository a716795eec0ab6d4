"""F1: tasks with linear gradients and Gaussian optima, of which everything is known.

The loss of task i is ½ Σⱼ hⱼ (θⱼ - wᵢⱼ)², its gradient h ⊙ (θ - wᵢ), with

    wᵢ = w₀ + √ρ c + √(1-ρ) eᵢ,    c, eᵢ ~ N(0, I),

c common to the meta-batch and new at each step. ρ is the correlation of the gradients within
a meta-batch, exactly. The excess risk of θ is ½ Σⱼ hⱼ (θⱼ - w₀ⱼ)². Shapes: `d` = 8, `B` tasks.
"""

import jax
import jax.numpy as jnp
import numpy as np
from simulate import Family

DIM = 8
CURVATURE = np.logspace(-1, 0, DIM)
CENTRE = 2.0
START_SECOND_MOMENT = CENTRE**2 + 1.0  # of θ₀ - w₀ with θ₀ ~ N(0, I)
OUTLIER = 20.0


def init(key):
    """Draws θ₀ `[d]`."""
    return jax.random.normal(key, (DIM,))


def draw(key, setting, num_tasks):
    """Draws the optima of a meta-batch.

    Args:
      key: consumed.
      setting: {"rho": in [0, 1], "corrupt": share of tasks with 20 times the deviation}.
      num_tasks: B.

    Returns:
      {"optima": `[B, d]`}.
    """
    common_key, own_key, corrupt_key = jax.random.split(key, 3)
    common = jax.random.normal(common_key, (1, DIM))
    own = jax.random.normal(own_key, (num_tasks, DIM))
    deviation = jnp.sqrt(setting["rho"]) * common + jnp.sqrt(1 - setting["rho"]) * own
    corrupt = jax.random.uniform(corrupt_key, (num_tasks, 1)) < setting["corrupt"]
    return {"optima": CENTRE + jnp.where(corrupt, OUTLIER, 1.0) * deviation}


def gradients(params, setting, batch):
    """Gives losses `[B]` and gradients `[B, d]`."""
    del setting
    curvature = jnp.asarray(CURVATURE, params.dtype)[None]
    distance = params[None] - batch["optima"]
    return 0.5 * (curvature * distance**2).sum(1), curvature * distance


def excess_risk(params, centre=CENTRE):
    """½ Σⱼ hⱼ (θⱼ - w₀ⱼ)², of θ `[..., d]`."""
    return 0.5 * (jnp.asarray(CURVATURE, params.dtype) * (params - centre) ** 2).sum(-1)


def monitor(params, setting):
    """The excess risk `[1]`."""
    del setting
    return excess_risk(params)[None]


FAMILY = Family(init, draw, gradients, monitor)


def setting(rho=0.0, corrupt=0.0):
    """What `draw` wants to know."""
    return {"rho": rho, "corrupt": corrupt}


def variance_of_mean(rho, num_tasks):
    """V = ρ + (1-ρ)/B."""
    return rho + (1 - rho) / num_tasks


def effective_tasks(rho, num_tasks):
    """B_eff = 1/V = B / (1 + (B-1) ρ)."""
    return 1 / variance_of_mean(rho, num_tasks)
