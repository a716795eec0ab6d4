"""Gradient surgery: each task's gradient gives way to the others in turn, in random order."""

import jax
import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Level
from maml_jax.aggregation.small_problems import per_length, unit_rows

# Of eps: a Gram matrix tells no smaller sin² of an angle from 0.
_ROUNDING = 16


def pcgrad(seed: int = 0) -> Aggregation:
    """Projects each task's gradient off those that it conflicts with, in turn (PCGrad).

    For each i, starting from g = gᵢ, and for the other tasks j in random order: if
    ⟨g, gⱼ⟩ < 0, then g ← g - ⟨g, gⱼ⟩ gⱼ / ‖gⱼ‖². The results are averaged.

    Args:
      seed: of the orders; step s draws with `fold_in(key(seed), s)`.

    Returns:
      An aggregation of level GRAM, on the scale of the mean; the mean itself if no two tasks
      conflict. The authors' sum is n times this. T steps of O(T²).

    References:
      Yu, Kumar, Gupta, Levine, Hausman, Finn, "Gradient Surgery for Multi-Task Learning",
      NeurIPS 2020, algorithm 1; https://arxiv.org/abs/2001.06782

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
      >>> rule = mj.aggregation.pcgrad()
      >>> got = mj.aggregation.aggregate(rule, grads, key=jax.random.key(0))
      >>> print(jnp.array_str(got, precision=3))
      [0.25 0.75]
    """

    def coefficients(evidence, state):
        lengths, cosines = unit_rows(evidence.gram)
        order = _random_orders(evidence.key, evidence.valid)
        points, _ = _in_turn(cosines, order, jnp.zeros_like(cosines))
        return evidence.over_valid(_average(points, lengths), evidence.num_valid), state

    return Aggregation(name="pcgrad", level=Level.GRAM, coefficients=coefficients, seed=seed)


def gradvac(num_task_ids: int, *, decay: float = 0.99, seed: int = 0) -> Aggregation:
    """Turns each task's gradient towards the others until they agree as usual (GradVac).

    As `pcgrad`, with a target cosine φ̂ᵢⱼ for each pair of task ids in place of 0: with φ the
    cosine of g and gⱼ, if φ < φ̂ᵢⱼ, then
    g ← g + gⱼ ‖g‖ (φ̂ᵢⱼ √(1 - φ²) - φ √(1 - φ̂ᵢⱼ²)) / (‖gⱼ‖ √(1 - φ̂ᵢⱼ²)), whose cosine is φ̂ᵢⱼ.
    Then φ̂ᵢⱼ ← decay φ̂ᵢⱼ + (1 - decay) φ, from 0.

    Args:
      num_task_ids: M, the size of the pool of tasks, or of groups of tasks; at least 1. Every
        task says which it is by `Task.task_id`.
      decay: of the running average of the cosines, in [0, 1].
      seed: of the orders; step s draws with `fold_in(key(seed), s)`.

    Returns:
      An aggregation of level GRAM, on the scale of the mean. The authors' sum is n times this.
      Its state is φ̂ `[M, M]`; pairs of one step with the same ids are averaged. A pair with a
      gradient of 0 has no cosine and changes nothing. T steps of O(T²).

    Raises:
      ValueError: if a number is out of range; at the outer step, if tasks have no `task_id`.

    References:
      Wang, Tsvetkov, Firat, Cao, "Gradient Vaccine: Investigating and Improving Multi-task
      Optimization in Massively Multilingual Models", ICLR 2021, algorithm 1;
      https://arxiv.org/abs/2010.05874. The paper keeps a target for each layer; here there is
      one for all parameters.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import maml_jax as mj
      >>> rule = mj.aggregation.gradvac(2, decay=0.5)
      >>> grads, ids = jnp.array([[1.0, 0.0], [0.6, 0.8]]), jnp.array([0, 1])
      >>> key = jax.random.key(0)
      >>> _, targets = mj.aggregation.aggregate(
      ...     rule, grads, task_ids=ids, key=key, state=rule.init()
      ... )
      >>> print(jnp.array_str(targets, precision=2))
      [[0.  0.3]
       [0.3 0. ]]
    """
    if num_task_ids < 1:
        raise ValueError(f"num_task_ids must be at least 1, got {num_task_ids}.")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay}.")

    def init():
        return jnp.zeros((num_task_ids, num_task_ids))

    def coefficients(evidence, state):
        lengths, cosines = unit_rows(evidence.gram)
        pairs = evidence.task_ids[:, None], evidence.task_ids[None]
        order = _random_orders(evidence.key, evidence.valid)
        points, seen = _in_turn(cosines, order, state[pairs].astype(cosines.dtype))
        present = lengths > 0
        met = present[:, None] & present[None] & ~jnp.eye(len(lengths), dtype=bool)
        counts = jnp.zeros_like(state).at[pairs].add(met.astype(state.dtype))
        totals = jnp.zeros_like(state).at[pairs].add(jnp.where(met, seen, 0).astype(state.dtype))
        average = decay * state + (1 - decay) * totals / jnp.maximum(counts, 1)
        coefficients = evidence.over_valid(_average(points, lengths), evidence.num_valid)
        return coefficients, jnp.where(counts > 0, average, state)

    return Aggregation(
        name=f"gradvac({num_task_ids})",
        level=Level.GRAM,
        coefficients=coefficients,
        init=init,
        num_task_ids=num_task_ids,
        seed=seed,
    )


def _random_orders(key: jax.Array, valid: jax.Array) -> jax.Array:
    """Draws an order of all tasks for each task, `[T, T]`; valid ones' as if alone."""
    # Numbered among the valid tasks, so that masked ones do not change what others draw.
    numbers = jnp.cumsum(valid) - 1
    pairs = (numbers[:, None] * 2**16 + numbers[None]).ravel()
    draws = jax.vmap(lambda pair: jax.random.bits(jax.random.fold_in(key, pair)))(pairs)
    return jnp.argsort(draws.reshape(len(valid), len(valid)), axis=1)


def _in_turn(cosines, order, targets):
    """Turns every unit gradient towards the others, in its order, to at least a target cosine.

    Args:
      cosines: K `[T, T]`.
      order: row i `[T]` is the order in which task i meets all; itself it passes by.
      targets: `[T, T]`, in [-1, 1]; 0 is a projection off conflicts.

    Returns:
      Weights `[T, T]` of the unit gradients, a row for each task; the cosines `[T, T]` met.
    """
    count = len(cosines)
    rows = jnp.arange(count)
    present = jnp.diagonal(cosines) > 0
    floor = _ROUNDING * jnp.finfo(cosines.dtype).eps

    def sine(cosine):
        return jnp.sqrt(jnp.maximum(1 - jnp.square(cosine), floor))

    def step(turn, now):
        points, products, seen = now
        other = order[:, turn]
        here = other[:, None] == rows[None]

        def at_other(matrix):
            return jnp.where(here, matrix, 0).sum(axis=1)

        towards, target = at_other(products), at_other(targets)
        length = jnp.sqrt(jnp.maximum((points * products).sum(axis=1), 0))
        cosine = jnp.clip(per_length(towards, length), -1, 1)
        turns = (cosine < target) & (other != rows) & present & present[other]
        added = length * (target * sine(cosine) / sine(target) - cosine)
        added = jnp.where(turns, added, 0)
        points = points + jnp.where(here, added[:, None], 0)
        products = products + added[:, None] * cosines[other]
        return points, products, jnp.where(here, cosine[:, None], seen)

    start = jnp.eye(count, dtype=cosines.dtype), cosines, jnp.zeros_like(cosines)
    points, _, seen = jax.lax.fori_loop(0, count, step, start)
    return points, seen


def _average(points, lengths):
    """Gives n times the coefficients `[T]` of the mean of ‖gᵢ‖ Σⱼ pointsᵢⱼ ûⱼ."""
    longest = lengths.max()
    relative = lengths / jnp.where(longest > 0, longest, 1)
    return per_length(relative @ points, relative)
