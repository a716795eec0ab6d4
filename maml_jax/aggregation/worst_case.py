"""The worst case over a finite pool of tasks."""

import jax
import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Level


def worst_case(learning_rate: float, num_tasks: int) -> Aggregation:
    """Minimises the largest loss of a finite pool of tasks (TR-MAML).

    min_θ max_{p ∈ Δ} Σⱼ pⱼ ℓⱼ over a pool of M tasks: descent in θ with the coefficients
    M pᵢ / n, and ascent in p, projected on the simplex, p ← Proj_Δ(p + η ℓ̂) with
    ℓ̂ⱼ = (M / n) Σ_{i is task j} ℓᵢ, an unbiased estimate of all losses. The step for θ uses p
    from before.

    Args:
      learning_rate: η of the ascent, in 1/nats; above 0.
      num_tasks: M, the size of the pool; every task says which it is by `Task.task_id`.

    Returns:
      An aggregation of level LOSS, on the scale of the mean while p is uniform, as at the
      start; its state is p `[M]`.

    Raises:
      ValueError: if a number is out of range; at the outer step, if tasks have no `task_id`.

    References:
      Collins, Mokhtari, Shakkottai, "Task-Robust Model-Agnostic Meta-Learning", NeurIPS 2020,
      algorithm 1; https://arxiv.org/abs/2002.04766. Wang, Carreira-Perpiñán, "Projection onto
      the probability simplex", 2013, algorithm 1; https://arxiv.org/abs/1309.1541

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> rule = mj.aggregation.worst_case(0.05, num_tasks=2)
      >>> grads, ids = jnp.array([[1.0], [3.0]]), jnp.array([0, 1])
      >>> _, p = mj.aggregation.aggregate(
      ...     rule, grads, losses=jnp.array([1.0, 3.0]), task_ids=ids, state=rule.init()
      ... )
      >>> print(p.round(2))
      [0.45 0.55]
    """
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate must be above 0 and finite, got {learning_rate}.")
    if num_tasks < 1:
        raise ValueError(f"num_tasks must be at least 1, got {num_tasks}.")

    def init():
        return jnp.full(num_tasks, 1 / num_tasks)

    def coefficients(evidence, state):
        count = jnp.maximum(evidence.num_valid, 1)
        scale = num_tasks / count
        seen = jnp.where(evidence.valid, evidence.losses, 0) * scale
        # An id beyond the pool is dropped here and clipped below; known ones were refused.
        ascent = jnp.zeros_like(state).at[evidence.task_ids].add(seen.astype(state.dtype))
        after = _on_simplex(state + learning_rate * ascent)
        after = jnp.where(evidence.valid.any(), after, state)
        return evidence.over_valid(state[evidence.task_ids] * num_tasks, evidence.num_valid), after

    return Aggregation(
        name=f"worst_case({learning_rate}, {num_tasks})",
        level=Level.LOSS,
        coefficients=coefficients,
        init=init,
        num_task_ids=num_tasks,
    )


def _on_simplex(point: jax.Array) -> jax.Array:
    """Projects on the probability simplex, by sorting."""
    ordered = jnp.sort(point)[::-1]
    excess = jnp.cumsum(ordered) - 1
    ranks = jnp.arange(1, len(point) + 1)
    last = jnp.sum(ordered * ranks > excess) - 1
    return jnp.maximum(point - excess[last] / ranks[last], 0)
