"""F2: MAML on sinusoids whose tasks are correlated within a meta-batch.

y = A sin(x - φ), A in [0.1, 5], φ in [0, π] radians, x ~ U[-5, 5]. The quantiles of A and of φ come
from a Gaussian copula with one centre z per meta-batch and coordinate:

    u = Φ(√ρ z + √(1-ρ) ε),    z, ε ~ N(0, 1),

so that each u is uniform for every ρ: the distribution of one task, hence the objective, does not
depend on ρ, only the dependence within a meta-batch does. Shapes: `B` tasks, `N` points.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from gaussian import OUTLIER, setting
from simulate import Family

import maml_jax as mj
from maml_jax.inner_loop import task_loss

SHOT = 10
INNER_RATE = 0.01
MODEL = mj.models.Mlp(features=(40, 40, 1))
LOSS = mj.losses.regression(MODEL.apply)
INNER = mj.maml(optax.sgd(INNER_RATE), num_steps=1)


def init(key):
    """Draws the parameters of the network."""
    return MODEL.init(key, jnp.zeros((1, 1)))


def curves(key, setting, num_tasks):
    """Draws amplitudes and phases.

    Args:
      key: consumed.
      setting: {"rho": in [0, 1], "corrupt": share of tasks of 20 times the amplitude}.
      num_tasks: B.

    Returns:
      A `[B]` and φ `[B]` in radians.
    """
    centre_key, own_key, corrupt_key = jax.random.split(key, 3)
    centre = jax.random.normal(centre_key, (1, 2))
    own = jax.random.normal(own_key, (num_tasks, 2))
    rho = setting["rho"]
    quantiles = jax.scipy.stats.norm.cdf(jnp.sqrt(rho) * centre + jnp.sqrt(1 - rho) * own)
    corrupt = jax.random.uniform(corrupt_key, (num_tasks,)) < setting["corrupt"]
    amplitude = (0.1 + 4.9 * quantiles[:, 0]) * jnp.where(corrupt, OUTLIER, 1.0)
    return amplitude, jnp.pi * quantiles[:, 1]


def draw(key, setting, num_tasks, num_query=SHOT):
    """Draws a meta-batch: a `Task` with axis `[B]`, 10 support points, `num_query` query points."""
    curve_key, inputs_key = jax.random.split(key)
    amplitude, phase = curves(curve_key, setting, num_tasks)
    shape = (num_tasks, SHOT + num_query, 1)
    inputs = jax.random.uniform(inputs_key, shape, minval=-5.0, maxval=5.0)
    targets = amplitude[:, None, None] * jnp.sin(inputs - phase[:, None, None])
    return mj.Task(
        support=mj.Examples(inputs=inputs[:, :SHOT], targets=targets[:, :SHOT]),
        query=mj.Examples(inputs=inputs[:, SHOT:], targets=targets[:, SHOT:]),
    )


def gradients(params, setting, batch):
    """Gives query losses `[B]` after adaptation and meta-gradients, a tree `[B, ...]`."""
    del setting

    def loss(params, task):
        return task_loss(INNER, LOSS, params, task)[0]

    return jax.vmap(jax.value_and_grad(loss), (None, 0))(params, batch)


def monitor(params, setting):
    """Nothing cheap is known: `[1]` of 0; risks come from `held_out_risks`."""
    del params, setting
    return jnp.zeros(1)


FAMILY = Family(init, draw, gradients, monitor)


@functools.partial(jax.jit, static_argnames="num_tasks")
def _task_losses(params, key, num_tasks):
    tasks = draw(key, setting(), num_tasks, num_query=20)

    def losses(one):
        return jax.vmap(lambda task: task_loss(INNER, LOSS, one, task)[0])(tasks)

    return jax.lax.map(losses, params)


def held_out_risks(params, *, num_tasks, seed):
    """Query MSE after adaptation on fixed independent, uncorrupted tasks.

    Args:
      params: a tree `[..., leaf]` of parameters, with the same leading axes on every leaf.
      num_tasks: number of tasks, each with 20 query points.
      seed: of the tasks.

    Returns:
      Mean over tasks and 95th percentile, `[..., 2]`; infinite where not finite.
    """
    one = jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)))[0]
    leaf = jax.tree.leaves(params)[0]
    lead = leaf.shape[: leaf.ndim - one.ndim]
    flat = jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, *x.shape[len(lead) :]), params)
    losses = np.asarray(_task_losses(flat, jax.random.key(seed), num_tasks))
    risks = np.stack([losses.mean(1), np.quantile(losses, 0.95, axis=1)], axis=1)
    return np.where(np.isfinite(risks), risks, np.inf).reshape(*lead, 2)
